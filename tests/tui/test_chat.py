"""The playground: one prompt to several, through a server that serves them all, and through transformers without one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from adapterhub.serve.client import servers
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.chatting.sources import LocalSource
from adapterhub.tui.chatting.state import Playground, Turn, Voice, differing
from adapterhub.tui.screens.chat import ChatScreen
from adapterhub.tui.widgets.voice_column import VoiceColumn
from tests.support.adapters import AdapterMaker
from tests.support.chat import chat_base
from tests.support.models import peft_adapter
from tests.support.screen import USUAL, WIDE, open_app, until
from tests.support.stand_in import free_port, write_stand_in
from tests.tui.serving import Elsewhere, adder, options, toasts


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "home")


@pytest.fixture
def server(
    store: Store, tmp_path: Path, tiny_llama: Path, make_adapter: AdapterMaker
) -> Iterator[Elsewhere]:
    """A server of tone and terms, which was started by somebody else; `alone` is in the store and not served."""
    add = adder(store, tiny_llama, make_adapter)
    for seed, name in enumerate(("tone", "terms", "alone")):
        add(name, seed=seed)
    found = Elsewhere(write_stand_in(tmp_path / "stand-in" / "vllm"), free_port(), "tone", "terms")
    yield found
    found.end()


async def chatting(pilot: Pilot[Any], app: AdapterHubApp, *names: str) -> ChatScreen:
    """The playground with these columns, once it knows who answers."""
    app.visit("chat", names=names)
    await until(lambda: isinstance(app.screen, ChatScreen), pilot)
    screen = app.screen
    assert isinstance(screen, ChatScreen)
    await until(lambda: bool(screen.about) and "Looking" not in screen.about, pilot)
    return screen


def answers(screen: ChatScreen) -> list[str]:
    """The last answer of each column."""
    return [voice.last.answer if voice.last else "" for voice in screen.playground.voices]


async def ask(pilot: Pilot[Any], screen: ChatScreen, question: str) -> None:
    """Types a question and waits until everybody has answered."""
    count = len(screen.playground.voices[0].turns)
    screen.query_one("#prompt", Input).value = question
    await pilot.press("enter")
    await until(lambda: len(screen.playground.voices[0].turns) > count, pilot)
    await until(lambda: not screen.playground.busy, pilot, 120)


async def test_everybody_is_asked_at_once_through_the_server_that_serves_them(
    store: Store, server: Elsewhere
) -> None:
    tone, terms = (store.resolve(name).digest.removeprefix("sha256:") for name in ("tone", "terms"))
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        screen = await chatting(pilot, app, "base", "tone", "terms")
        assert screen.about.startswith(f"Through the server at {server.record['url']}")
        await ask(pilot, screen, "[bold]Hi[/] \x1b[31m")
        assert answers(screen) == [
            f"{who[:12]} heard [bold]Hi[/] \x1b[31m." for who in ("org/tiny", tone, terms)
        ]
        drawn = [str(column.query_one(Static).content) for column in screen.query(VoiceColumn)]
        assert "heard [bold]Hi[/] \\x1b[31m." in drawn[1]  # as text, and commanding no terminal
        assert "4 tokens" in str(screen.query(VoiceColumn).first().border_subtitle)
        await ask(pilot, screen, "Again")
        assert [len(voice.turns) for voice in screen.playground.voices] == [2, 2, 2]
        await pilot.press("ctrl+y")
        assert app.clipboard == answers(screen)[0]
        await pilot.press("ctrl+g", "ctrl+n")
        assert answers(screen) == ["", "", ""]
        screen.query_one("#max_tokens", Input).value = "many"
        screen.query_one("#prompt", Input).value = "x"
        await pilot.press("enter")
        assert "max tokens: 'many' is no whole number" in toasts(app)
        assert screen.command_line().startswith("adapterhub server chat base --prompt")


async def test_escape_stops_the_answers_and_keeps_what_was_said(
    store: Store, server: Elsewhere
) -> None:
    app = open_app(store)
    async with app.run_test(size=USUAL) as pilot:
        screen = await chatting(pilot, app, "tone", "terms")
        screen.query_one("#prompt", Input).value = "slowly"
        await pilot.press("enter")
        await until(lambda: all("more more" in answer for answer in answers(screen)), pilot)
        await pilot.press("escape")
        await until(lambda: not screen.playground.busy, pilot)
        assert [voice.turns[0].ended for voice in screen.playground.voices] == ["halted", "halted"]
        (running,) = servers(store)
        await until(lambda: running.status()["running"] == 0, pilot)  # and nobody writes on
        await ask(pilot, screen, "Hi")
        assert all(answer.endswith("heard Hi.") for answer in answers(screen))
        await pilot.press("escape")
        await until(lambda: not isinstance(app.screen, ChatScreen), pilot)


async def test_a_server_that_dies_fails_its_columns_and_one_that_lacks_somebody_is_not_asked(
    store: Store, server: Elsewhere
) -> None:
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        screen = await chatting(pilot, app, "tone")
        screen.query_one("#prompt", Input).value = "slowly"
        await pilot.press("enter")
        await until(lambda: "more more" in answers(screen)[0], pilot)
        server.process.kill()
        await until(lambda: not screen.playground.busy, pilot)
        turn = screen.playground.voices[0].last
        assert turn is not None
        assert turn.problem is not None
        assert "broke off" in turn.problem.what
        assert "more more" in turn.answer
        await pilot.press("ctrl+n")
        screen.query(VoiceColumn).first().focus()
        await pilot.press("a")
        await until(lambda: app.screen.is_modal, pilot)
        assert options(app, "OptionList") == ["base", "alone", "terms"]
        await pilot.press(*"alo", "enter")
        await until(lambda: screen.playground.names == ("tone", "alone"), pilot)
        await until(lambda: "No running server serves all of these" in screen.about, pilot)
        assert "in float32" in screen.about
        assert "are free" in screen.about
        assert screen.command_line() == "adapterhub chat tone alone --prompt ..."


async def test_an_unknown_name_is_told_in_words_and_the_screen_stays(store: Store) -> None:
    app = open_app(store)
    async with app.run_test(size=USUAL) as pilot:
        screen = await chatting(pilot, app, "nobody")
        assert "There is no adapter named nobody" in screen.about
        await ask(pilot, screen, "Hi")
        turn = screen.playground.voices[0].last
        assert turn is not None
        assert turn.ended == "failed"
        await pilot.press("escape")
        await until(lambda: not isinstance(app.screen, ChatScreen), pilot)


@pytest.mark.slow
async def test_without_a_server_one_process_answers_for_all_as_the_command_does_and_is_gone_afterwards(
    store: Store, tmp_path: Path
) -> None:
    from tests.cli.calling import run

    base = chat_base(tmp_path / "base")
    for seed, name in enumerate(("one", "two")):
        folder = peft_adapter(base, tmp_path / name, strength=0.3, seed=seed)
        store.add_folder(folder, name=name, base=str(base))
    said = run("chat", "base", "one", "two", "--base", str(base), "--prompt", "Hi", "--max-tokens", "6", "--json").json  # fmt: skip
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        screen = await chatting(pilot, app, "base", "one", "two")
        assert "doesn't say which base" in screen.about
        screen.query(VoiceColumn).first().focus()
        await pilot.press("b")
        await until(lambda: app.screen.is_modal, pilot)
        app.screen.query_one(Input).value = str(base)
        await pilot.press("enter")
        await until(lambda: "With the first question" in screen.about, pilot)
        screen.query_one("#prompt", Input).focus()
        screen.query_one("#max_tokens", Input).value = "6"
        await ask(pilot, screen, "Hi")
        assert [voice.last.problem for voice in screen.playground.voices if voice.last] == [
            None
        ] * 3
        assert answers(screen) == [one["answer"] for one in said]
        assert "float32" in screen.about
        (child,) = _children()
        screen.query_one("#max_tokens", Input).value = "900"
        screen.query_one("#prompt", Input).value = "More"
        child.suspend()  # or it may have said all before the key comes
        await pilot.press("enter")
        await until(lambda: screen.playground.busy, pilot)
        await pilot.press("escape")
        child.resume()
        await until(lambda: not screen.playground.busy, pilot)
        assert _ended(screen)[1:] == ["halted", "halted"]
        assert await _halted_early(screen)
        assert _children() == [child]
        screen.query_one("#max_tokens", Input).value = "2"
        await ask(pilot, screen, "Still there?")
        assert all(answers(screen))
        child.kill()
        await ask(pilot, screen, "And now?")
        problem = screen.playground.voices[0].turns[-1].problem
        assert problem is not None
        assert problem.what == "The process that answers has ended."
        assert "Memory may have run out" in problem.why
        assert all(answers(screen)[1:])  # by another process
        (child,) = _children()
        await pilot.press("escape")
        await until(lambda: not isinstance(app.screen, ChatScreen), pilot)
        await until(lambda: not child.is_running(), pilot)
        assert store.leases.all() == [], "not even those of the one that was killed"


def test_a_conversation_is_what_was_answered_with_the_system_first() -> None:
    turns = (Turn("a", "A", "stop"), Turn("b", "", "halted"), Turn("c"))
    voice = Voice("x", turns)
    assert voice.said("s") == [("system", "s"), ("user", "a"), ("assistant", "A"), ("user", "c")]
    assert Playground((voice,)).busy


@pytest.mark.parametrize(
    ("text", "other", "found"),
    [
        ("a b c", "a b c", []),
        ("a x c", "a b c", ["x"]),
        ("a b c d", "a b", ["c d"]),
        ("a b", "a b c", []),
        ("", "a", [""]),
    ],
)
def test_the_words_that_differ_are_found(text: str, other: str, found: Sequence[str]) -> None:
    assert [text[begin:end] for begin, end in differing(text, other)] == found


async def _halted_early(screen: ChatScreen) -> bool:
    """Whether an answer that is being written ends when it is told to."""
    source = screen._source
    assert isinstance(source, LocalSource)
    process = source._process
    assert process is not None
    written = asyncio.create_task(
        asyncio.to_thread(
            process.ask, "one", [("user", "x")], max_tokens=900, temperature=0, heard=lambda _: None
        )
    )
    await asyncio.sleep(0.2)
    process.halt()
    found = await written
    return found.ended == "halted" and found.tokens < 900


def _ended(screen: ChatScreen) -> list[str]:
    return [voice.turns[-1].ended for voice in screen.playground.voices]


def _children() -> list[psutil.Process]:
    """The processes that talk, of this one's children."""
    found = psutil.Process().children()
    return [one for one in found if "adapterhub.evaluate.chat_process" in one.cmdline()]
