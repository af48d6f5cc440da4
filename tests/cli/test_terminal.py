"""Pipes and terminals: tables and colour for people, plain text for pipes, and no traceback when a reader leaves."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from adapterhub.store import Store
from tests.cli.calling import PROGRAM, run
from tests.cli.terminals import on_a_terminal
from tests.store.watching import refs, unchanged
from tests.support.adapters import AdapterMaker


@pytest.fixture
def home(store: Store, make_adapter: AdapterMaker, tmp_path: Path) -> Path:
    store.add_folder(make_adapter("tone"), name="support/tone")
    store.add_folder(make_adapter("other", seed=1), name="other")
    return tmp_path / "home"


def test_a_terminal_gets_a_table_with_aligned_columns(home: Path) -> None:
    lines = on_a_terminal("ls", width=200).out.replace("\r", "").splitlines()
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in lines]
    header = next(line for line in plain if line.startswith("name"))
    rows = [line for line in plain if "support/tone" in line or line.startswith("other")]
    assert len(rows) == 2
    assert "\t" not in "".join(plain)
    assert len({row.index("lora") for row in rows}) == 1
    assert rows[0].index("lora") == header.index("kind")


def test_a_narrow_terminal_folds_and_never_cuts(home: Path) -> None:
    shown = on_a_terminal("ls", width=40)
    assert shown.code == 0
    assert "…" not in shown.out


def test_no_color_means_no_escape_at_all(home: Path, tmp_path: Path) -> None:
    for words in (
        ["ls"],
        ["show", "nobody"],
        ["add", str(tmp_path / "adapters" / "tone"), "--name", "again"],
    ):
        assert "\x1b[3" not in on_a_terminal(*words, NO_COLOR="1").out


def test_colour_is_for_terminals_only(home: Path) -> None:
    assert "\x1b[" in on_a_terminal("show", "nobody").out
    said = run("show", "nobody")
    assert "\x1b" not in said.err + said.out


def test_rm_asks_on_a_terminal_and_takes_a_no(home: Path) -> None:
    with unchanged(home):
        for answer in ("n\n", "\n", "\x04", "nonsense\n"):
            shown = on_a_terminal("rm", "other", typed=answer, after="[y/N]")
            assert "Remove other?" in shown.out
            assert shown.code != 0
            assert "Traceback" not in shown.out
    assert on_a_terminal("rm", "other", typed="y\n", after="[y/N]").code == 0
    assert list(refs(home)) == ["support/tone/latest"]


def test_ctrl_c_at_the_question_removes_nothing(home: Path) -> None:
    with unchanged(home):
        shown = on_a_terminal("rm", "other", typed="\x03", after="[y/N]")
    assert shown.code == 130
    assert "Traceback" not in shown.out


@pytest.mark.parametrize(
    "words", ["ls --json", "log", "show support/tone --modules --json", "--help"]
)
def test_a_reader_that_leaves_early_is_no_error(words: str, home: Path) -> None:
    journal = home / "store" / "log" / "refs.jsonl"
    journal.write_bytes(journal.read_bytes() * 2000)  # more than a pipe holds
    done = subprocess.run(
        ["bash", "-c", f'"$0" {words} | head -1; echo "${{PIPESTATUS[0]}}"', str(PROGRAM)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "1" if words == "--help" else "0")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_output_will_do(
    encoding: str, home: Path, store: Store, make_adapter: AdapterMaker
) -> None:
    store.add_folder(make_adapter("unknown", base=None, seed=5))
    for words in (["ls"], ["show", "unknown"], ["methods"]):
        said = subprocess.run(
            [PROGRAM, *words],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            check=False,
        )
        assert said.returncode == 0, said.stderr
        assert b"Something went wrong" not in said.stderr


def test_json_on_a_terminal_is_json(home: Path) -> None:
    assert len(json.loads(on_a_terminal("ls", "--json").out)) == 2


def test_closed_streams_are_no_bug(home: Path) -> None:
    """As under some daemons: no stdin, no stderr."""
    done = subprocess.run(
        ["bash", "-c", '"$0" ls -q 2>&- <&-', str(PROGRAM)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.split() == ["other", "support/tone"]
