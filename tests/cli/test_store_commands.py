"""Every store command in its three modes: stdout is data that parses, stderr is everything else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.cli.calling import call
from tests.store.watching import refs, unchanged
from tests.support.adapters import AdapterMaker

# One command of each kind, and the id that -q prints.
COMMANDS: dict[str, tuple[list[str], str]] = {
    "add": (["add", "{new}", "--name", "new"], r"sha256:[0-9a-f]{64}"),
    "ls": (["ls"], r"other\nsupport/tone\nsupport/tone:v2"),
    "ls with a query": (["ls", "TONE"], r"support/tone\nsupport/tone:v2"),
    "show": (["show", "support/tone"], r"sha256:[0-9a-f]{64}"),
    "show --modules": (["show", "support/tone", "--modules"], r"sha256:[0-9a-f]{64}"),
    "checkout": (["checkout", "other", "{out}"], r"/.*/out"),
    "tag": (["tag", "other", "another"], r"sha256:[0-9a-f]{64}"),
    "rm": (["rm", "support/tone", "--yes"], r"support/tone\nsupport/tone:v2"),
    "log": (["log"], r"support/tone:v2\nother\nsupport/tone"),
    "log of a name": (["log", "other"], r"other"),
    "base add": (["base", "add", "{base}", "--repo", "org/tiny"], r"sha256:[0-9a-f]{64}"),
    "base ls": (["base", "ls"], r"/.*"),
    "fit": (["fit", "other", "--base", "{base}"], r"True|yes|true|other"),
    "methods": (["methods"], r"linear\n(\w+\n)+sce"),
    "methods of a name": (["methods", "ties"], r"ties"),
    "merge --dry-run": (["merge", "other", "support/tone", "--dry-run"], r"other-tone-linear"),
    "merge": (["merge", "other", "support/tone", "--name", "merged"], r"sha256:[0-9a-f]{64}"),
    "diff": (["diff", "other", "support/tone"], r"-?[0-9.e-]+"),
}


@pytest.fixture
def words(
    request: pytest.FixtureRequest,
    store: Store,
    make_adapter: AdapterMaker,
    tiny_llama: Path,
    tmp_path: Path,
) -> list[str]:
    """The words of the command in a store with three names of two adapters, and a base."""
    store.add_folder(make_adapter("tone"), name="support/tone")
    store.add_folder(make_adapter("other", seed=1), name="other")
    store.tag(store.resolve("support/tone"), parse_name("support/tone:v2"))
    if COMMANDS[request.param][0][:2] == ["base", "ls"]:
        store.bases.remember(store.bases.open(str(tiny_llama)))
    places = {"new": make_adapter("new", seed=2), "out": tmp_path / "out", "base": tiny_llama}
    return [word.format(**places) for word in COMMANDS[request.param][0]]


EVERY = pytest.mark.parametrize("words", COMMANDS, indirect=True)


@EVERY
def test_json_is_one_value_on_stdout_and_nothing_else(words: list[str]) -> None:
    said = call(*words, "--json")
    assert said.code == 0, said.err
    assert isinstance(
        said.json,
        list
        if words[0] in ("ls", "log", "rm") or words == ["methods"] or words[1] == "ls"
        else dict,
    )
    assert json.loads(json.dumps(said.json, allow_nan=False)) == said.json
    assert "\x1b" not in said.out


@EVERY
def test_quiet_is_ids_only_and_a_silent_stderr(
    words: list[str], request: pytest.FixtureRequest
) -> None:
    said = call(*words, "-q")
    assert said.code == 0, said.err
    assert re.fullmatch(COMMANDS[request.node.callspec.params["words"]][1], said.out.rstrip("\n"))
    assert said.err == ""


@EVERY
def test_a_pipe_gets_plain_complete_text(words: list[str]) -> None:
    """Digests may be short there; names, paths and lines are whole, and nothing is coloured, boxed or cut."""
    said = call(*words)
    assert said.code == 0, said.err
    assert said.out.endswith("\n")
    assert "\x1b" not in said.out + said.err
    assert not set(said.out) & set("│╭╰─━┃…"), said.out
    assert "Traceback" not in said.err


def test_a_piped_table_is_tab_separated_with_a_header(
    store: Store, make_adapter: AdapterMaker
) -> None:
    long = "n" * 90 + "/" + "a" * 90 + ":" + "t" * 90
    store.add_folder(make_adapter(base="org/" + "x" * 90), name=long)
    header, row = (line.split("\t") for line in call("ls").out.splitlines())
    assert header[0] == "name"
    assert len(row) == len(header)
    assert row[0] == long
    assert "org/" + "x" * 90 in row


def test_json_of_ls_has_whole_digests_and_raw_sizes(
    store: Store, make_adapter: AdapterMaker
) -> None:
    added = store.add_folder(make_adapter(), name="tone")
    (row,) = call("ls", "--json").json
    assert row["digest"] == added.digest
    assert row["size"] == added.manifest.size
    assert (row["name"], row["rank"], row["alpha"], row["base"], row["targets"]) == (
        "tone",
        4,
        8,
        "org/tiny",
        ["q_proj", "v_proj"],
    )


def test_an_empty_store_is_an_empty_table_and_says_what_to_do(tmp_path: Path) -> None:
    said = call("ls")
    assert said.code == 0
    assert "adapterhub add" in said.err
    assert call("ls", "--json").json == []
    assert call("ls", "-q").out == ""
    assert call("log", "--json").json == []
    assert not (tmp_path / "home").exists()


def test_show_tells_everything_known(
    store: Store, make_adapter: AdapterMaker, tiny_llama: Path
) -> None:
    folder = make_adapter(rank_pattern={"v_proj": 2}, base="/content/gemma")
    (folder / "README.md").write_text("hello")
    digest = store.add_folder(folder, name="tone", base=str(tiny_llama)).digest
    store.attest(digest, "eval", {"perplexity": 3.25})
    found = call("show", "tone", "--json", "--modules").json
    assert found["digest"] == digest
    assert found["names"] == ["tone"]
    assert found["base"]["claimed"] == "/content/gemma"
    assert found["base"]["fingerprint"].startswith("sha256:")
    assert {entry["path"] for entry in found["files"]} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert len(found["modules"]) == 4
    assert "perplexity" in json.dumps(found["attestations"])
    assert "given as a path" in json.dumps(found["notes"])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("tonne", "tone"),
        ("tone", "support/tone"),
        ("suport/tone", "support/tone"),
        ("support/tone:v3", "support/tone"),
    ],
)
def test_an_unknown_name_is_exit_4_with_did_you_mean(
    typed: str, meant: str, store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter(), name="tone" if typed == "tonne" else "support/tone")
    with unchanged(tmp_path / "home"):
        for words in (
            ["show", typed],
            ["checkout", typed, "out"],
            ["tag", typed, "x"],
            ["rm", typed, "--yes"],
            ["merge", typed, meant],
            ["diff", meant, typed],
            ["export", typed, "-o", "out"],
        ):
            said = call(*words, "--json")
            assert said.code == 4, words
            assert typed in said.error["what"]
            assert f"Did you mean {meant}" in said.error["why"]
            assert said.error["hint"]


def test_a_log_of_a_name_that_never_was_is_exit_4(store: Store, make_adapter: AdapterMaker) -> None:
    store.add_folder(make_adapter(), name="support/tone")
    said = call("log", "tone", "--json")
    assert said.code == 4
    assert "Did you mean support/tone" in said.error["why"]
    assert call("log", "support/tone:never").code == 0, "the log is of all tags of a name"


def test_an_unknown_digest_is_exit_4(store: Store, make_adapter: AdapterMaker) -> None:
    store.add_folder(make_adapter(), name="tone")
    assert call("show", "@abcdef123456").code == 4
    assert call("show", "tone@abcdef123456").code == 4


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["--method", "tise"], 2, ["tise", "ties"]),
        (["--method", "ties", "--density", "1.5"], 2, ["--density 1.5", "above 0 up to 1"]),
        (["--method", "ties", "--density", "0"], 2, ["above 0 up to 1"]),
        (["--method", "ties", "--density", "nan"], 2, ["above 0 up to 1"]),
        (["--method", "ties", "--lambda", "inf"], 2, ["--lambda"]),
        (["--method", "ties", "--trim-scope", "layer"], 2, ["model or module"]),
        (["--method", "linear", "--density", "0.5"], 2, ["linear has no parameter density"]),
        (["--weights", "1"], 2, ["1 weight was given", "2 adapters"]),
        (["--weights", "1,x"], 2, ["--weights 1,x"]),
        (["--weights", "1,nan"], 2, ["finite"]),
        (["--rank", "0"], 2, ["--rank 0", "from 1"]),
        (["--rank", "many"], 2, ["--rank many", "auto, full"]),
        (["--dtype", "int8"], 2, ["--dtype int8", "float32, bfloat16, float16"]),
        (["--workers", "0"], 2, ["1"]),
        (["--name", "a/b/c"], 2, ["not a valid name"]),
    ],
)
def test_a_wrong_method_or_parameter_is_exit_2_naming_the_range(
    words: list[str],
    code: int,
    parts: list[str],
    store: Store,
    make_adapter: AdapterMaker,
    tmp_path: Path,
) -> None:
    store.add_folder(make_adapter("one"))
    store.add_folder(make_adapter("two", seed=1))
    with unchanged(tmp_path / "home"):
        said = call("merge", "one", "two", *words)
    assert said.code == code
    assert said.out == ""
    for part in parts:
        assert part in said.err
    assert not (tmp_path / "home" / "runs").exists()


def test_a_base_that_is_known_to_differ_is_exit_5_saying_what_differs(
    store: Store, make_adapter: AdapterMaker, tiny_llama: Path, tmp_path: Path
) -> None:
    store.add_folder(make_adapter("good", seed=1))
    call("base", "add", tiny_llama, "--repo", "org/other")
    with unchanged(tmp_path / "home"):
        said = call("add", make_adapter("tone"), "--base", tiny_llama, "--json")
    assert said.code == 5
    assert "org/tiny" in said.error["why"]
    assert "org/other" in said.error["why"]
    assert "--allow-mismatch" in said.error["hint"]
    done = call(
        "add", tmp_path / "adapters" / "tone", "--base", tiny_llama, "--allow-mismatch", "--json"
    )
    assert done.code == 0
    attested = json.dumps(call("show", "tone", "--json").json["attestations"])
    assert "the repository differs" in attested


@pytest.mark.parametrize("wrong", ["modules", "shapes"])
def test_an_adapter_of_other_modules_or_shapes_does_not_fit(
    wrong: str, store: Store, make_adapter: AdapterMaker, tiny_llama: Path, tmp_path: Path
) -> None:
    modules = (
        {"model.layers.7.self_attn.q_proj": (64, 64)}
        if wrong == "modules"
        else {"model.layers.0.self_attn.q_proj": (64, 32)}
    )
    folder = make_adapter("tone", modules=modules, base=None)
    store.add_folder(make_adapter("good", seed=1))
    with unchanged(tmp_path / "home"):
        said = call("add", folder, "--base", tiny_llama, "--json")
    assert said.code == 5
    assert ("not in" if wrong == "modules" else "[64, 32]") in said.error["why"]


def test_a_base_that_is_not_here_is_exit_4_saying_how_to_get_it(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter("good", seed=1))
    folder = make_adapter("tone")
    with unchanged(tmp_path / "home"):
        for base in ("nobody/nothing", str(tmp_path / "nowhere"), str(folder)):
            said = call("add", folder, "--base", base, "--json")
            assert said.code == 4
            assert said.error["hint"]


def test_rm_off_a_terminal_refuses_and_names_the_flag(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter(), name="tone")
    with unchanged(tmp_path / "home"):
        said = call("rm", "tone", "--json")
    assert said.code == 2
    assert "tone" in said.error["what"]
    assert "--yes" in said.error["hint"]
    assert call("rm", "tone", "--yes").code == 0


def test_rm_takes_one_tag_or_all_of_a_name_and_says_how_to_undo_it(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    digest = store.add_folder(make_adapter(), name="tone").digest
    for name in ("tone:v1", "tone:v2", "ns/tone"):
        call("tag", "tone", name)
    call("rm", "tone:v1", "--yes")
    assert set(refs(tmp_path / "home")) == {"_/tone/latest", "_/tone/v2", "ns/tone/latest"}
    said = call("rm", "tone", "--yes")
    assert set(refs(tmp_path / "home")) == {"ns/tone/latest"}
    assert "adapterhub undo" in said.err
    assert call("undo").code == 0
    assert set(refs(tmp_path / "home")) == {"_/tone/latest", "_/tone/v2", "ns/tone/latest"}
    assert store.resolve("tone").digest == digest


def test_rm_of_several_is_all_or_none(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter(), name="tone")
    with unchanged(tmp_path / "home"):
        assert call("rm", "tone", "nobody", "--yes").code == 4
    assert call("rm", "tone", "tone", "tone:latest", "--yes").code == 0
    assert len(store.log()) == 2


def test_a_second_add_says_that_nothing_changed(store: Store, make_adapter: AdapterMaker) -> None:
    folder = make_adapter("tone")
    call("add", folder)
    said = call("add", folder)
    assert said.code == 0
    assert "nothing changed" in said.err
    assert call("add", folder, "--json").json["created"] is False


def test_a_taken_tag_hints_only_at_flags_that_tag_has(
    store: Store, make_adapter: AdapterMaker
) -> None:
    store.add_folder(make_adapter("one"))
    store.add_folder(make_adapter("two", seed=1))
    said = call("tag", "one", "two")
    assert said.code == 1
    assert "--move" in said.err
    assert set(re.findall(r"--[a-z-]+", said.err)) <= set(
        re.findall(r"--[a-z-]+", call("tag", "--help").out)
    )


def test_the_log_is_newest_first_and_of_all_tags_of_a_name(
    store: Store, make_adapter: AdapterMaker
) -> None:
    store.add_folder(make_adapter("one"))
    call("tag", "one", "one:v1")
    call("tag", "one", "two")
    rows = call("log", "--json").json
    assert [(row["op"], row["ref"]) for row in rows] == [
        ("tag", "two"),
        ("tag", "one:v1"),
        ("add", "one"),
    ]
    assert [row["ref"] for row in call("log", "one", "--json").json] == ["one:v1", "one"]
    assert all(row["after"].startswith("sha256:") for row in rows)
