"""A damaged store on the screen: what is whole stays usable, what isn't says why, and nothing ends in a traceback."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from shutil import rmtree

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from adapterhub.cli.output import Output
from adapterhub.errors import StoreDamagedError
from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.screens import library
from adapterhub.tui.widgets.adapter_table import AdapterTable
from adapterhub.tui.widgets.detail_pane import DetailPane, Sections

Settled = Callable[[Pilot[None]], Awaitable[None]]
SIZE = (80, 24)


def rows(app: AdapterHubApp) -> dict[str, str]:
    """Names and kinds as they are drawn."""
    table = app.screen.query_one(AdapterTable)
    cells = [table.get_row_at(row) for row in range(table.row_count)]
    return {row[0].plain: row[1].plain for row in cells}


def detail(app: AdapterHubApp) -> str:
    return " ".join(str(app.screen.query_one(DetailPane).query_one(Sections).render()).split())


def notices(app: AdapterHubApp) -> list[str]:
    return [notice.message for notice in app._notifications]


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


async def test_a_damaged_manifest_marks_its_row_and_hides_no_other(
    app: AdapterHubApp, store: Store, settled: Settled
) -> None:
    path = store.layout.manifest(store.resolve("legal/terms").digest)
    overwrite(path, b"{}")
    with pytest.raises(StoreDamagedError):
        store.entries()
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        assert len(rows(app)) == 6
        assert rows(app)["legal/terms"] == "damaged"
        assert rows(app)["desk/both"] == "lora"
        await pilot.press("down")
        await settled(pilot)
        assert "has changed on disk" in detail(app)
        assert "Delete that file, then add the adapter again" in detail(app)
        await pilot.press("y", "up")
        await settled(pilot)
        assert "ties" in detail(app)


async def test_an_adapter_of_a_newer_version_is_unknown_not_damaged(
    app: AdapterHubApp, write_newer: Callable[[str], None], settled: Settled
) -> None:
    write_newer("legal/terms")
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        assert rows(app)["legal/terms"] == "unknown"
        await pilot.press("down")
        await settled(pilot)
        assert "Upgrade adapterhub" in detail(app)


async def test_a_damaged_ref_marks_its_row_and_hides_no_other(
    app: AdapterHubApp, store: Store, settled: Settled
) -> None:
    overwrite(store.layout.ref(parse_name("tools/calls")), b"\xff\xfe nonsense")
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        assert len(rows(app)) == 6
        assert rows(app)["tools/calls"] == "damaged"
        await pilot.press("G")
        await settled(pilot)
        assert "The ref tools/calls is damaged." in detail(app)
        assert "adapterhub log tools/calls" in detail(app)


@pytest.mark.parametrize("how", ["gone", "cut"])
async def test_damaged_weights_say_so_in_the_detail_pane(
    app: AdapterHubApp, store: Store, settled: Settled, how: str
) -> None:
    entry = store.resolve("desk/both").manifest.file(WEIGHTS_NAME)
    assert entry is not None
    blob = store.layout.blob(entry.digest)
    if how == "gone":
        blob.unlink()
    else:
        overwrite(blob, blob.read_bytes()[:100])
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        assert rows(app)["desk/both"] == "lora", "the list reads manifests only"
        assert "What the list knows" in detail(app)
        assert "SmolLM2" in detail(app)
        assert "Traceback" not in detail(app)
        assert "inside adapterhub" not in detail(app), "it is told as what it is, not as a bug"


async def test_a_damaged_attestation_says_what_to_delete(
    app: AdapterHubApp, store: Store, settled: Settled
) -> None:
    folder = store.layout.attestations(store.resolve("desk/both").digest)
    overwrite(next(folder.iterdir()), b"[]")
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        assert "has changed on disk" in detail(app)
        assert "Delete that file." in detail(app)


async def test_a_store_deleted_while_open_is_an_empty_one(
    app: AdapterHubApp, store: Store, settled: Settled
) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        rmtree(store.home)
        await pilot.press("j")
        await settled(pilot)
        assert "is missing from the store" in detail(app)
        await pilot.press("r")
        await settled(pilot)
        assert "The store is empty." in str(app.screen.query_one("#instead", Static).content)


async def test_a_store_that_cant_be_read_keeps_the_list_and_says_why(
    app: AdapterHubApp, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: Store) -> object:
        raise PermissionError(13, "Permission denied", "/store/[red]refs[/]")

    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await settled(pilot)
        monkeypatch.setattr(library, "read_rows", refuse)
        await pilot.press("r")
        await settled(pilot)
        assert notices(app)[-1] == "Not allowed: /store/[red]refs[/].\nPermission denied"
        assert len(rows(app)) == 6
        assert str(app.screen.query_one("#count", Static).content) == "not up to date: 6 adapters"
        monkeypatch.undo()
        await pilot.press("r")
        await settled(pilot)
        assert str(app.screen.query_one("#count", Static).content) == "6 adapters"


async def test_a_store_that_was_never_readable_says_why_in_its_place(
    app: AdapterHubApp, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: Store) -> object:
        raise StoreDamagedError("The store is [b]odd[/b].", why="Because.", hint="adapterhub fsck")

    monkeypatch.setattr(library, "read_rows", refuse)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        text = str(app.screen.query_one("#instead", Static).content)
        assert "The store is [b]odd[/b]." in text
        assert "adapterhub fsck" in text
        assert "r tries again" in text


async def test_the_screen_words_an_error_as_the_command_line_does(
    app: AdapterHubApp, store: Store, settled: Settled, capsys: pytest.CaptureFixture[str]
) -> None:
    store.layout.manifest(store.resolve("desk/both").digest).unlink()
    with pytest.raises(StoreDamagedError) as caught:
        store.resolve("desk/both")
    Output().error(caught.value)
    said = capsys.readouterr().err.removeprefix("error: ")
    async with app.run_test(size=(300, 40)) as pilot:
        await settled(pilot)
        assert "".join(said.split()) in detail(app).replace(" ", ""), "the same but for line breaks"
