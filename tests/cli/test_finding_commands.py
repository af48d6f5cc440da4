"""`ls` with its filters, `lineage`, `duplicates` and `affected-by`, as they are typed."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.base import read_base
from adapterhub.cli.listing import COLUMNS
from adapterhub.cli.output import Output
from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.words import short
from tests.cli.calling import call
from tests.cli.terminals import on_a_terminal
from tests.store.catalogued import merged
from tests.support.adapters import AdapterMaker, llama_modules


@pytest.fixture
def family(store: Store, make_adapter: AdapterMaker) -> dict[str, str]:
    """one + two -> both -> last; two was made from something that is gone."""
    gone = "sha256:" + "0" * 64
    digests = {"gone": gone}

    def made(name: str, *parents: str, **shape: Any) -> None:
        folder = make_adapter(name, seed=len(digests), **shape)
        provenance = merged(*(digests[parent] for parent in parents)) if parents else None
        digests[name] = store.add_folder(folder, name=name, provenance=provenance).digest

    made("one", rank=8)
    made("two", "gone")
    made("both", "one", "two", modules=llama_modules("up_proj"))
    made("last", "both", "one", base=None)
    return digests


# ls


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "both last one two"),
        (["o", "--reverse"], "two one both"),
        (["--target", "up_proj"], "both"),
        (["--target", "q_proj", "--target", "v_proj", "--rank", ">=8"], "one"),
        (["--rank", "4..4", "--sort", "added"], None),
        (["--method", "merged"], "both last two"),
        (["--method", "ties", "--parent", "one"], "both last"),
        (["--parent", "two", "--kind", "lora"], "both"),
        (["--base", "ORG/tiny"], "both one two"),
        (["--base", "org/tiny", "--rank", "8"], "one"),
        (["--base", "org/nobody"], ""),
        (["--unused", "30d"], ""),
        (["--unused", "0s", "--method", "imported"], None),
    ],
)
def test_ls_lists_what_is_asked_for(
    words: list[str], expected: str | None, family: dict[str, str]
) -> None:
    said = call("ls", "-q", *words)
    assert said.code == 0
    if expected is not None:
        assert said.out.split() == expected.split()
        assert [row["name"] for row in call("ls", "--json", *words).json] == expected.split()


def test_ls_fits_takes_a_folder(family: dict[str, str], tiny_llama: Path) -> None:
    said = call("ls", "--fits", tiny_llama)
    header, *rows = (line.split("\t") for line in said.out.splitlines())
    assert header[-1] == "match"
    assert [(row[0], row[-1]) for row in rows] == [
        (name, "fingerprint unknown") for name in ("both", "last", "one", "two")
    ]
    assert call("ls", "--fits", "./nowhere", "--json").code == 4


def test_ls_shows_the_columns_asked_for_in_that_order(family: dict[str, str]) -> None:
    said = call("ls", "one", "--columns", "rank,name, method,event")
    assert said.out == "rank\tname\tmethod\tevent\n8\tone\t–\timported\n"
    everything = call("ls", "--columns", ",".join(COLUMNS)).out.splitlines()
    assert everything[0].split("\t") == list(COLUMNS)
    assert {len(line.split("\t")) for line in everything} == {len(COLUMNS)}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--columns", "rnak"], ["rnak", "Did you mean rank", "name,digest,kind"]),
        (["--columns", ","], ["name,digest,kind"]),
        (["--sort", "colour"], ["colour", "added"]),
        (["--rank", "many"], ["many", "8..64"]),
        (["--unused", "long"], ["long", "7d"]),
    ],
)
def test_what_ls_cannot_take_is_said_with_what_it_can(
    words: list[str], told: list[str], family: dict[str, str]
) -> None:
    said = call("ls", *words)
    assert said.code == 2
    assert all(part in said.err for part in told), said.err


def test_unknown_parents_and_bases_are_exit_4(family: dict[str, str]) -> None:
    assert call("ls", "--parent", "nobody", "--json").code == 4
    assert call("ls", "--base", "./nowhere", "--json").code == 4
    assert call("affected-by", "./nowhere", "--json").code == 4
    assert call("lineage", "nobody", "--json").code == 4


def test_json_of_ls_says_everything_whole(store: Store, family: dict[str, str]) -> None:
    (row,) = call("ls", "--json", "--target", "up_proj").json
    assert (row["digest"], row["event"], row["method"]) == (family["both"], "merged", "ties")
    assert row["targets"] == ["up_proj"]
    assert (row["base"], row["base_label"], row["rank"]) == ("org/tiny", "org/tiny", 4)
    assert row["content"] == store.resolve("both").manifest.content


def test_a_base_without_a_claim_is_called_what_it_is_called_here(
    store: Store, make_adapter: AdapterMaker, tiny_llama: Path
) -> None:
    store.add_folder(make_adapter(base="/content/x"), name="tone", base=str(tiny_llama))
    assert call("ls", "--json").json[0]["base_label"] is None
    store.bases.remember(read_base(tiny_llama, repo="org/llama"))
    assert call("ls", "--json").json[0]["base_label"] == "org/llama"
    assert call("ls", "--columns", "base").out.split() == ["base", "org/llama"]
    assert (
        store.base_label(store.resolve("tone").digest, store.resolve("tone").manifest)
        == "org/llama"
    )


def test_thousands_of_rows_on_a_terminal_are_aligned_without_rich() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    rows = [{"name": f"adapter-{n}" if n else "日本", "size": n, "note": None} for n in range(501)]
    rows[3]["note"] = "\x1b[31mred"
    shown = Terminal()
    Output(stdout=shown).table(rows, ("name", "size", "note"))
    lines = shown.getvalue().splitlines()
    assert len(lines) == 502
    assert lines[0] == "name         size  note"
    assert lines[1] == "日本         0     –"
    assert lines[4] == "adapter-3    3     \\x1b[31mred"
    assert lines[501] == "adapter-500  500   –"


def test_a_few_rows_on_a_terminal_keep_their_frame(family: dict[str, str]) -> None:
    assert "──" in on_a_terminal("ls", width=200).out


# lineage


def test_lineage_draws_both_directions_and_what_is_missing(family: dict[str, str]) -> None:
    said = call("lineage", "both")
    at = {name: f"@{short(digest)}" for name, digest in family.items()}
    assert said.out.splitlines() == [
        f"both  {at['both']}  merged (ties)",
        "made from",
        f"├─ one  {at['one']}  imported",
        f"└─ two  {at['two']}  merged (ties)",
        f"   └─ {at['gone']} (was-0)  not in this store",
        "made of it",
        f"└─ last  {at['last']}  merged (ties)",
    ]
    assert "1 of them is not in this store" in said.err
    assert call("lineage", "one").out.splitlines()[1:] == [
        "made of it",
        f"├─ both  {at['both']}  merged (ties)",
        f"│  └─ last  {at['last']}  merged (ties)",
        f"└─ last  {at['last']}  merged (ties)",
    ]


def test_lineage_for_programs_and_for_graphviz(family: dict[str, str]) -> None:
    found = call("lineage", "both", "--json").json
    assert {one["digest"] for one in found["relatives"]} == set(family.values())
    assert {one["digest"]: one["here"] for one in found["relatives"]}[family["gone"]] is False
    edge = {"child": family["both"], "parent": family["two"], "position": 1, "how": "merged"}
    assert edge in found["edges"]
    assert set(call("lineage", "both", "-q").out.split()) == set(family.values())
    dot = call("lineage", "both", "--dot").out
    assert dot.startswith("digraph")
    assert f'"{short(family["one"])}" -> "{short(family["both"])}" [label="merged"];' in dot
    assert "style=dashed" in dot
    assert dot.count("->") == 5


def test_foreign_names_cannot_break_out_of_a_graph(
    store: Store, make_adapter: AdapterMaker
) -> None:
    body = merged("sha256:" + "0" * 64)
    body["parents"][0]["name"] = '"]; evil [label="x\x1b[31m\\'
    body["event"] = 'mer"ged'
    store.add_folder(make_adapter("one"), name="one", provenance=body)
    dot = call("lineage", "one", "--dot").out
    assert '\\"]; evil [label=\\"x\\x1b' in dot
    assert "\x1b" not in dot + call("lineage", "one").out


# duplicates


def test_duplicates_names_the_same_and_the_nearly_same(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter("original")
    store.add_folder(folder, name="original")
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a copy")
    assert call("duplicates", "--json").json == []
    store.add_folder(tmp_path / "copy", name="zcopy")
    said = call("duplicates")
    assert [line.split("\t") for line in said.out.splitlines()] == [
        ["name", "like", "what", "tensors", "bytes"],
        ["zcopy", "original", "same content", "100%", "100%"],
    ] or [line.split("\t")[:2] for line in said.out.splitlines()][1] == ["original", "zcopy"]
    (row,) = call("duplicates", "--json").json
    assert (row["tensors"], row["what"]) == (1.0, "same content")
    assert {row["digest"], row["like_digest"]} == {
        store.resolve(name).digest for name in ("original", "zcopy")
    }
    assert call("duplicates", "-q").out.strip() == row["digest"]


@pytest.mark.parametrize("share", ["0", "1.5", "-1"])
def test_a_share_is_between_nothing_and_all(share: str) -> None:
    assert call("duplicates", f"--min-share={share}", "--json").code == 2


def test_duplicates_says_which_weights_are_gone(store: Store, make_adapter: AdapterMaker) -> None:
    store.add_folder(make_adapter("one"), name="one")
    entry = store.resolve("one").manifest.file("adapter_model.safetensors")
    assert entry
    store.layout.blob(entry.digest).unlink()
    said = call("duplicates", "--json")
    assert said.code == 6
    assert str(store.layout.blob(entry.digest)) in said.error["why"]


# affected-by


def test_affected_by_names_why_through_whom_and_who_is_using_it(
    store: Store, make_adapter: AdapterMaker, tiny_llama: Path
) -> None:
    store.bases.remember(read_base(tiny_llama, repo="org/tiny"))
    trained = store.add_folder(
        make_adapter("a", base="./x"), name="trained", base="org/tiny"
    ).digest
    store.add_folder(make_adapter("b", seed=1), name="claims")
    child = make_adapter("c", seed=2, base="org/elsewhere")
    made = store.add_folder(child, name="child", provenance=merged(trained)).digest
    store.add_folder(make_adapter("d", seed=3, base="org/elsewhere"), name="stranger")
    store.tag(store.resolve("child"), parse_name("child:prod"))
    with store.leases.held("serve", [made], "at a port"):
        rows = {row["name"]: row for row in call("affected-by", "ORG/tiny", "--json").json}
    assert set(rows) == {"trained", "claims", "child"}
    assert (rows["trained"]["how"], rows["trained"]["why"]) == ("equal", "checked")
    assert (rows["claims"]["how"], rows["claims"]["why"]) == ("claimed", "claims org/tiny")
    assert (rows["child"]["how"], rows["child"]["why"]) == ("descendant", "merged from trained")
    assert rows["child"]["names"] == ["child", "child:prod"]
    assert [use.partition(" ")[0] for use in rows["child"]["used by"]] == ["serve"]
    assert rows["trained"]["used by"] == []
    assert call("affected-by", "org/tiny").out.splitlines()[0] == "name\thow\twhy\tused by"


def test_affected_by_says_when_the_base_is_not_here(family: dict[str, str]) -> None:
    said = call("affected-by", "org/tiny")
    assert "not registered" in said.err
    found = [line.split("\t")[:3] for line in said.out.splitlines()[1:]]
    assert found == [
        ["both", "claimed", "claims org/tiny"],
        ["one", "claimed", "claims org/tiny"],
        ["two", "claimed", "claims org/tiny"],
        ["last", "descendant", "merged from both"],
    ]
    assert "Nothing here depends on it" in call("affected-by", "org/nobody").err


def test_quick_options_are_taken_as_typer_takes_them(family: dict[str, str]) -> None:
    """Plain text skips the conversion; numbers, paths and lists don't."""
    assert "typer" in sys.modules
    assert call("ls", "--columns", "").code == 2
    assert call("duplicates", "--min-share", "half").code == 2
    assert json.loads(call("ls", "--json", "--target", "q_proj", "--target", "v_proj").out)
    assert call("ls", "--sort").code == 2
