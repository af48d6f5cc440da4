"""The process that looks at recipes: its words are the trainer's, it can be ended at any moment, and its end is told."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adapterhub.errors import AdapterHubError, ExternalToolError
from adapterhub.trainer.desk import Desk, Draft, Stopped
from adapterhub.trainer.plan import make_plan
from adapterhub.trainer.preview import preview_rows
from adapterhub.trainer.recipe import load_recipe

if TYPE_CHECKING:
    from adapterhub.store import Store

Write = Callable[..., Path]


@pytest.fixture
def desk(store: Store) -> Iterator[Desk]:
    desk = Desk(store.home)
    yield desk
    desk.close()


def draft_of(path: Path) -> Draft:
    return Draft(path.read_text(), path)


@pytest.mark.slow
def test_it_says_what_the_trainer_says(desk: Desk, store: Store, write_recipe: Write) -> None:
    path = write_recipe()
    recipe = load_recipe(path)
    base = store.bases.open(recipe.base)
    heard: list[str] = []

    told = desk.plan(draft_of(path), heard.append)
    plan = make_plan(recipe, base)
    assert told.sections.keys() == plan.sections.keys()
    for title in ("what", "data", "steps", "machine"):
        assert told.sections[title] == plan.sections[title]
    assert told.sections["memory"].keys() == plan.sections["memory"].keys(), (
        "the machine is another moment's"
    )
    assert [text for _, text in told.remarks] == [one.text for one in plan.remarks]
    assert heard[0] == "starting"
    assert "reading the data" in heard

    rows = desk.row(draft_of(path), "held out", 1)
    assert (rows.place, rows.rows) == (1, preview_rows(recipe, base, count=2, held_out=True)[1:])
    last = desk.row(draft_of(path), "training", 10**6)
    assert last.place == last.count - 1

    with pytest.raises(AdapterHubError, match="unknown key: x") as refused:
        desk.plan(Draft("x: 1", path))
    assert refused.value.hint


@pytest.mark.slow
def test_it_can_be_ended_while_it_works_and_begins_anew(desk: Desk, write_recipe: Write) -> None:
    draft = draft_of(write_recipe())
    closed: list[BaseException] = []

    def ask() -> None:
        try:
            desk.plan(draft, lambda what: working.set() if what != "starting" else None)
        except BaseException as error:  # noqa: BLE001 - what it was is the question
            closed.append(error)

    working = threading.Event()
    thread = threading.Thread(target=ask)
    thread.start()
    assert working.wait(60)
    desk.close()
    thread.join(60)
    assert [type(error) for error in closed] == [Stopped]

    def kill(what: str) -> None:
        if what != "starting":
            assert desk.pid is not None
            os.kill(desk.pid, signal.SIGKILL)

    with pytest.raises(ExternalToolError, match="ended"):
        desk.plan(draft, kill)
    assert desk.row(draft, "training", 0).rows, "the next question starts another"
