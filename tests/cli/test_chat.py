"""`chat` as people and programs call it: the answer alone on stdout, a loop on a terminal, words for what can't be."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapterhub.cli.main import build
from adapterhub.store import Store
from tests.cli.calling import PROGRAM, call
from tests.cli.terminals import on_a_terminal
from tests.cli.test_hostile_strings import harmful
from tests.support.adapters import AdapterMaker
from tests.support.chat import chat_base
from tests.support.parrot import other_beginning, parrot

SAYS, ADAPTED = "Poly-wants 5€", "wants 5€"
ESC, RLO = "\x1b", "\u202e"


@pytest.fixture(scope="module")
def bird(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that says SAYS to everything."""
    return parrot(tmp_path_factory.mktemp("bird") / "bird", SAYS)


@pytest.fixture
def curt(store: Store, bird: Path, make_adapter: AdapterMaker) -> str:
    """An adapter with which it says ADAPTED."""
    folder = make_adapter("curt", factors=other_beginning(SAYS, "w"), rank=1, alpha=1)
    store.add_folder(folder, name="birds/curt", base=str(bird))
    store.bases.remember(store.bases.open(str(bird)))
    return "birds/curt"


def test_off_a_terminal_stdout_is_the_answer_and_nothing_else(curt: str, bird: Path) -> None:
    said = call("chat", curt, "--prompt", "Hello")
    assert (said.code, said.out) == (0, f"{ADAPTED}\n")
    assert call("chat", "base", "--base", bird, "--prompt", "Hello", "-q").out == f"{SAYS}\n"
    piped = CliRunner().invoke(build("chat"), ["chat", curt], input="Hello\n")
    assert (piped.exit_code, piped.stdout) == (0, f"{ADAPTED}\n")


def test_as_json_an_answer_says_whose_it_is(curt: str, store: Store, bird: Path) -> None:
    said = call("chat", curt, "--prompt", "Hello", "--json").json
    assert said.pop("seconds") > 0
    assert said == {
        "answer": ADAPTED,
        "tokens": len(ADAPTED.encode()) + 1,
        "ended": "stop",
        "adapter": curt,
        "digest": store.resolve(curt).digest,
        "base": "bird",
    }


def test_the_base_answers_after_the_adapter_so_that_the_difference_is_seen(
    curt: str, store: Store, bird: Path
) -> None:
    said = call("chat", curt, "--prompt", "Hello", "--base-too")
    assert said.out == f"birds/curt:\n{ADAPTED}\n\nbase bird:\n{SAYS}\n"
    rows = call("chat", curt, "--prompt", "Hello", "--base-too", "--json").json
    assert [(row["adapter"], row["answer"]) for row in rows] == [(curt, ADAPTED), (None, SAYS)]


def test_an_answer_that_is_cut_off_is_said_to_be(curt: str) -> None:
    said = call("chat", curt, "--prompt", "Hello", "--max-tokens", "3")
    assert said.out == "wan\n"
    assert "cut off after 3 tokens" in said.err


def test_an_answer_cannot_command_a_terminal(tmp_path: Path) -> None:
    wild = f"{ESC}[31m\tred{RLO}"
    model = parrot(tmp_path / "wild", wild)
    said = call("chat", model, "--prompt", "Hello")
    assert said.out == "\\x1b[31m\tred\\u202e\n"
    assert not harmful(said.out, tabs=True)
    answer = call("chat", model, "--prompt", "Hello", "--json")
    assert not harmful(answer.out)
    assert answer.json["answer"] == wild


def test_a_base_without_a_template_continues_the_text_and_says_so(tmp_path: Path) -> None:
    model = parrot(tmp_path / "plain", "-upon", after="e", template=None)
    said = call("chat", model, "--prompt", "Once")
    assert said.out == "-upon\n"
    assert "no chat template: texts are continued" in said.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "Missing argument"),
        (["nobody"], 4, "nobody"),
        (["base"], 2, "Which base"),
        (["CURT", "--dtype", "int8"], 2, "auto, float32, bfloat16, float16"),
        (["CURT", "--temperature", "-1"], 2, "temperature"),
        (["CURT", "--max-tokens", "0"], 2, "max-tokens"),
        (["CURT", "--prompt", " "], 2, "empty"),
        (["CURT", "--template", "nowhere.jinja"], 4, "nowhere.jinja"),
        (["CURT", "--base", "OTHER"], 5, "doesn't fit the base other"),
        (["BIRD", "CURT"], 2, "by itself"),
        (["BIRD", "--base-too"], 2, "whole model"),
    ],
)
def test_what_cannot_be_is_told_in_words(
    words: list[str], code: int, says: str, curt: str, bird: Path, tmp_path: Path
) -> None:
    other = chat_base(tmp_path / "other") if "OTHER" in words else tmp_path
    meant = {"CURT": curt, "BIRD": str(bird), "OTHER": str(other)}
    asked = [] if "--prompt" in words else ["--prompt", "Hello"]
    said = call("chat", *(meant.get(word, word) for word in words), *asked)
    assert said.code == code, said.err
    assert says in said.err
    assert said.out == ""


def test_typed_at_but_not_read_by_a_person_it_wants_the_question_as_an_option() -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [PROGRAM, "chat", "tone"], stdin=theirs, capture_output=True, timeout=60, check=False
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2
    assert b"--prompt" in done.stderr


@pytest.mark.slow
def test_on_a_terminal_it_is_a_conversation(curt: str) -> None:
    prompt = "birds/curt> "
    shown = on_a_terminal(
        "chat",
        curt,
        typed="Hello\n",
        after=prompt,
        then=[
            (prompt, "/base\n"),
            (prompt, "/nonsense\n"),
            (prompt, "/help\n"),
            (prompt, "/adapter nobody\n"),
            (prompt, "/adapter base\n"),
            ("base> ", "Say \\\n"),
            ("… ", "more\n"),
            ("base> ", "/reset\n"),
            ("base> ", "/base\n"),
            ("base> ", "\x04"),
        ],
    )
    said = re.sub("\x1b\\[\\?2004[hl]\r?", "", shown.out).replace("\r\n", "\n")  # readline's own
    assert shown.code == 0, said
    first, after_base, unknown, helped, nobody, *_ = said.split(prompt)[1:]
    assert f"\n{ADAPTED}\n" in first
    assert f"base bird:\n{SAYS}\n" in after_base
    assert "There is no command /nonsense" in unknown
    assert "/adapter NAME" in helped
    assert "nobody" in nobody
    *_, answered, forgotten, nothing, _ = said.split("base> ")
    assert f"\n{SAYS}\n" in answered
    assert "Forgotten" in forgotten
    assert "Nothing has been asked yet" in nothing
    assert "Traceback" not in said


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_leaves_at_the_prompt(tmp_path: Path) -> None:
    endless = parrot(tmp_path / "endless", "abc", again=True)
    shown = on_a_terminal(
        "chat",
        str(endless),
        "--max-tokens",
        "90000",
        typed="Hello\n",
        after="> ",
        then=[("abcabcabc", "\x03"), ("> ", "Again\n"), ("abcabc", "\x03"), ("> ", "\x03")],
    )
    assert shown.code == 0, shown.out
    assert shown.out.count("endless> ") == 3
    assert "Traceback" not in shown.out
    assert "cut off" not in shown.out
