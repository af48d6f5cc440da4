"""gc, fsck, undo and rollback as they are typed: three modes, a terminal, hints that work, Ctrl-C."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path

import pytest

from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.cli.calling import PROGRAM, call, run, start, wait_until
from tests.cli.terminals import on_a_terminal
from tests.store.ageing import everything, flip, meaning, weights
from tests.store.watching import journal, problems, refs, unchanged
from tests.support.adapters import AdapterMaker

COMMANDS: dict[str, tuple[list[str], int, str]] = {
    "gc": (["gc", "--grace", "0s", "--yes"], 0, r"(/.*/(manifests|blobs|attestations)/.*\n?)+"),
    "gc --dry-run": (["gc", "--grace", "0s", "--dry-run"], 0, r"(/.*/(manifests|blobs|attestations)/.*\n?)+"),
    "fsck": (["fsck"], 0, ""),
    "fsck --read-data": (["fsck", "--read-data"], 6, r"/.*/blobs/.*"),
    "fsck --repair": (["fsck", "--read-data", "--repair"], 0, r"/.*/blobs/.*"),
    "undo": (["undo"], 0, r"gone"),
    "undo --dry-run": (["undo", "2", "--dry-run"], 0, r"gone\ntone"),
    "rollback": (["rollback", "tone"], 0, r"sha256:[0-9a-f]{64}"),
}  # fmt: skip
"""The words, the exit code, and what -q prints."""


@pytest.fixture
def home(store: Store, make_adapter: AdapterMaker, tmp_path: Path) -> Path:
    """`tone`, which was another adapter before; `gone`, removed; and a changed byte in tone."""
    store.add_folder(make_adapter("first", seed=2), name="tone")
    store.add_folder(make_adapter("gone", seed=1))
    store.add_folder(make_adapter("tone"), move=True)
    store.remove([parse_name("gone")])
    flip(weights(tmp_path / "home", "tone"))
    return tmp_path / "home"


EVERY = pytest.mark.parametrize("command", COMMANDS)


@EVERY
def test_json_is_one_value_on_stdout(command: str, home: Path) -> None:
    words, code, _ = COMMANDS[command]
    said = call(*words, "--json")
    assert said.code == code, said.err
    assert isinstance(said.json, list if words[0] == "undo" else dict)
    assert "Traceback" not in said.err


@EVERY
def test_quiet_is_ids_only(command: str, home: Path) -> None:
    words, code, ids = COMMANDS[command]
    said = call(*words, "-q")
    assert said.code == code, said.err
    assert re.fullmatch(ids, said.out.rstrip("\n")), said.out
    assert said.err == ""


@EVERY
def test_a_pipe_gets_plain_text(command: str, home: Path) -> None:
    words, code, _ = COMMANDS[command]
    said = call(*words)
    assert said.code == code, said.err
    assert "\x1b" not in said.out + said.err
    assert not set(said.out) & set("│╭╰─━┃…"), said.out


@EVERY
def test_what_it_says_to_type_works(command: str, home: Path) -> None:
    said = call(*COMMANDS[command][0])
    hints = re.findall(r"adapterhub ((?:undo|fsck|gc|log|rollback)[^\n`]*)", said.err)
    for hint in hints:
        assert call(*shlex.split(hint)).code == 0, hint


def test_the_programs_own_help_shows_how_to_choose_what_is_read() -> None:
    said = call("fsck", "--help")
    assert "--read-data" in said.out
    assert "[=N/T|X%]" in said.out


@pytest.mark.parametrize("words", [["--read-data"], ["--read-data=all"], ["--read-data=1/1"]])
def test_reading_everything_is_typed_in_one_word(words: list[str], home: Path) -> None:
    assert run("fsck", *words, "--json").json["blobs_read"] == 4


def test_gc_asks_on_a_terminal_and_takes_a_no(home: Path) -> None:
    with unchanged(home):
        shown = on_a_terminal("gc", "--grace", "0s", typed="n\n", after="[y/N]")
    assert shown.code == 2
    assert "Nothing was done" in shown.out
    shown = on_a_terminal("gc", "--grace", "0s", typed="y\n", after="[y/N]")
    assert shown.code == 0
    assert "adapterhub undo" in shown.out


def test_gc_says_how_much_and_undo_brings_it_back(home: Path) -> None:
    before = everything(home)
    said = call("gc", "--grace", "0s", "--yes")
    assert "went to the trash" in said.err
    assert re.search(r"\d objects, [0-9.]+ kB", said.err)
    assert everything(home) < before
    assert "spared" in said.err
    assert "an earlier release of tone, for rollback" in said.err
    said = call("undo")
    assert "took back: gc" in said.err
    assert everything(home) == before


def test_the_log_shows_what_was_undone_rolled_back_and_collected(home: Path) -> None:
    call("gc", "--grace", "0s", "--yes")
    call("undo")
    call("rollback", "tone")
    rows = call("log", "--json").json
    assert [row["op"] for row in rows[:4]] == ["rollback", "undo", "gc", "rm"]
    assert rows[0]["why"] == "rollback tone"
    assert rows[1]["why"].startswith("undo of gc")
    assert [row["op"] for row in call("log", "tone", "--json").json] == ["rollback", "add", "add"]
    assert call("log").code == 0


def test_rollback_says_what_it_was_and_undo_takes_it_back(home: Path) -> None:
    before = meaning(home, "tone")
    said = call("rollback", "tone")
    assert before[:12] in said.err
    assert meaning(home, "tone") != before
    assert call("undo").code == 0
    assert meaning(home, "tone") == before


@pytest.mark.parametrize("words", [["rollback", "nobody"], ["rollback", "gone"]])
def test_rollback_of_no_name_is_exit_4(words: list[str], home: Path) -> None:
    with unchanged(home):
        said = call(*words, "--json")
    assert said.code == 4
    assert said.error["hint"]


@pytest.mark.parametrize("words", [["undo", "0"], ["undo", "-1"], ["undo", "many"], ["undo", "99"]])
def test_undo_of_no_number_of_operations_is_exit_2(words: list[str], home: Path) -> None:
    with unchanged(home):
        assert call(*words).code == 2


def test_fsck_tells_what_a_damage_reaches_and_where_it_was_mended_from(home: Path) -> None:
    said = call("fsck", "--read-data")
    assert said.code == 6
    assert str(weights(home, "tone")) in said.err
    assert "it is part of tone" in said.err
    assert "adapterhub fsck --repair" in said.err
    mended = call("fsck", "--read-data", "--repair")
    assert mended.code == 0
    assert "copied from" in mended.err
    assert problems(home) == []
    assert call("fsck", "--read-data").out.endswith("no damage\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "words", [["gc", "--grace", "0s", "--yes"], ["undo"], ["fsck", "--repair"]]
)
def test_an_interrupt_while_it_waits_for_others_leaves_all_as_it_was(
    words: list[str], number: signal.Signals, store: Store, home: Path, tmp_path: Path
) -> None:
    (home / "store" / "refs" / "_" / "tone" / "latest").write_text("rubbish")
    if words[0] == "undo":
        call("fsck", "--repair")
    before = refs(home), len(journal(home))
    with store.alone(), start(*words, stderr=tmp_path / "stderr") as process:
        assert wait_until(lambda: _waits(process.pid, home)), "it never came to the lock"
        process.send_signal(number)
        assert process.wait(30) == 130
    assert (refs(home), len(journal(home))) == before
    assert "Interrupted" in (tmp_path / "stderr").read_text()


def _waits(pid: int, home: Path) -> bool:
    """Whether the process has the store's lock file open."""
    found = []
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            found.append(str(path.readlink()))
        except OSError:
            continue
    return str(home / "store" / "lock") in found


def test_the_commands_need_neither_torch_nor_the_hub(home: Path) -> None:
    """They are typed often, and in a hurry."""
    import subprocess
    import sys

    program = (
        "import json, sys\nfrom tests.cli.calling import call\n"
        "call('undo', '--dry-run'); call('gc', '--dry-run'); call('fsck')\n"
        "print(json.dumps([name for name in ('torch', 'huggingface_hub', 'transformers') if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert json.loads(done.stdout) == []
    assert PROGRAM.exists()
