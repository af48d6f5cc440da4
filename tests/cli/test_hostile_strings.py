"""Strings out of strangers' files: never a command to the terminal, never markup, and never lost from the data."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from adapterhub.cli.output import Output, clean
from adapterhub.store import Store
from tests.cli.calling import Said, call
from tests.cli.terminals import on_a_terminal
from tests.support.adapters import AdapterMaker

ESC, CSI, RLO = "\x1b", "\x9b", "\u202e"
EVIL = f"{ESC}[31mred{ESC}[0m{ESC}]0;title\a{CSI}2J\r\n\t\b\x7f{RLO}gnp.exe [bold red]markup[/] [link=http://x]l[/link] :boom: 名 é"
HARMLESS = {"\n"}


def harmful(text: str, *, tabs: bool = False) -> set[str]:
    """Control and bidirectional characters in what was printed."""
    allowed = HARMLESS | ({"\t"} if tabs else set())
    return {
        character
        for character in text
        if character not in allowed
        and (
            unicodedata.category(character) == "Cc"
            or unicodedata.bidirectional(character)
            in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI")
        )
    }


@pytest.fixture
def evil(store: Store, make_adapter: AdapterMaker) -> Path:
    """An adapter whose base, kind of task, file names, README and module names are all hostile."""
    folder = make_adapter(
        "evil",
        base=EVIL,
        bias=EVIL,
        modules={"model.layers.0.q_proj": (8, 8), f"model.{ESC}[5m[red]q_proj": (8, 8)},
        modules_to_save=[EVIL],
        unknown_field=EVIL,
        peft_version=EVIL,
    )
    (folder / f"{ESC}[31m[bold]README{RLO}.md").write_text(EVIL)
    (folder / "README.md").write_text(EVIL)
    store.add_folder(folder, name="evil")
    return folder


COMMANDS = (
    ["ls"],
    ["show", "evil"],
    ["show", "evil", "--modules"],
    ["log"],
    ["diff", "evil", "evil"],
    ["merge", "evil", "evil", "--dry-run"],
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_nothing_in_a_pipe_commands_a_terminal(words: list[str], evil: Path) -> None:
    said = call(*words)
    assert said.code == 0, said.err
    assert not harmful(said.out, tabs=True)
    assert not harmful(said.err)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_json_holds_the_very_string_and_no_raw_control_character(
    words: list[str], evil: Path
) -> None:
    said = call(*words, "--json")
    assert not harmful(said.out)
    if words == ["show", "evil"]:
        assert said.json["base"]["claimed"] == EVIL


def test_markup_is_shown_as_it_is_written(evil: Path) -> None:
    shown = call("show", "evil").out
    assert "[bold red]markup[/]" in shown
    assert "[link=http://x]l[/link]" in shown
    assert ":boom:" in shown
    assert "名 é" in shown
    assert "\\x1b[31mred" in shown


def test_a_foreign_line_break_is_no_new_line_of_the_record(
    store: Store, make_adapter: AdapterMaker
) -> None:
    """A base called `x\\ndigest  sha256:...` must not be able to forge a line."""
    store.add_folder(make_adapter("tone", base="x\ndigest  sha256:forged\u2028forged\u0085forged"))
    shown = call("show", "tone").out
    assert sum(line.lstrip().startswith("digest") for line in shown.splitlines()) == 1


def test_what_adding_it_says_is_harmless_too(make_adapter: AdapterMaker) -> None:
    said = call("add", make_adapter("evil", base=EVIL), "--name", "tone")
    assert said.code == 0
    assert "path" in said.err
    assert not harmful(said.out + said.err)


@pytest.mark.parametrize("mode", [[], ["--json"]])
def test_errors_with_foreign_words_are_harmless(
    mode: list[str], make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter("bad-rank")
    path = folder / "adapter_config.json"
    path.write_text(
        json.dumps(
            {
                **json.loads(path.read_text()),
                "rank_pattern": {f"(?:{ESC}\\[31m{RLO}{CSI})|q_proj": 2},
            }
        )
    )
    said: list[Said] = [
        call("show", EVIL, *mode),
        call("show", f"@{EVIL}", *mode),
        call("add", tmp_path / EVIL.replace("/", "-"), *mode),
        call("add", folder, *mode),
        call("merge", "a", "b", "--method", EVIL, *mode),
        call("base", "add", EVIL, *mode),
    ]
    for one in said:
        assert one.code in (1, 2, 4)
        assert not harmful(one.out + one.err)


def test_a_terminal_gets_no_foreign_escape_either(evil: Path) -> None:
    """The table's own escapes are rich's: colours and styles only."""
    import re

    for words in (["ls"], ["show", "evil"]):
        text = on_a_terminal(*words, width=300).out.replace("\r\n", "\n")
        assert not harmful(re.sub(r"\x1b\[[0-9;]*m", "", text))
        assert "\x1b[31mred" not in text
        assert "[bold red]markup[/]" in text or words == ["ls"]


def test_bytes_that_are_no_utf8_are_printed_as_something(
    store: Store, make_adapter: AdapterMaker
) -> None:
    """A base folder or file may have such a name; stdout can't encode the surrogates Python makes of it."""
    out = Output()
    text = clean("caf\udce9")
    assert text.encode("utf-8")
    out.text("caf\udce9")


@pytest.mark.parametrize(
    "character",
    [
        chr(code)
        for code in (
            *range(32),
            *range(127, 160),
            0x202A,
            0x202E,
            0x2066,
            0x2069,
            0x200E,
            0x200F,
            0x061C,
            0x2028,
            0x2029,
        )
    ],
)
def test_every_control_character_is_made_visible(character: str) -> None:
    shown = clean(f"a{character}b")
    assert character not in shown
    assert shown.startswith("a")
    assert shown.endswith("b")
    assert shown.isprintable()


def test_attestations_with_hostile_keys_are_harmless(
    store: Store, make_adapter: AdapterMaker
) -> None:
    digest = store.add_folder(make_adapter("tone")).digest
    store.attest(digest, "note", {EVIL: {EVIL: [EVIL, {EVIL: EVIL}]}})
    said = call("show", "tone")
    assert not harmful(said.out)
    assert not harmful(call("show", "tone", "--attestations").out)
    (note,) = [
        item
        for item in call("show", "tone", "--json").json["attestations"]
        if item["type"] == "note"
    ]
    assert note["body"] == {EVIL: {EVIL: [EVIL, {EVIL: EVIL}]}}
