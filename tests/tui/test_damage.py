"""A damaged store on the screen: what is whole stays usable, what isn't says why, and nothing ends in a traceback."""

from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import pytest

from adapterhub.cli.output import Output
from adapterhub.errors import StoreDamagedError
from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.screens import library
from tests.support.screen import USUAL, cells, detail, settled, shown, until


def kinds(app: AdapterHubApp) -> dict[str, str]:
    """What the list says each name is: `damaged`, `unknown`, or its base."""
    return {name: found["base"] for name, found in cells(app).items()}


def told(app: AdapterHubApp) -> str:
    """The detail pane in one line."""
    return " ".join(detail(app).split())


def notices(app: AdapterHubApp) -> list[str]:
    return [notice.message for notice in app._notifications]


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


async def test_a_damaged_manifest_marks_its_row_and_hides_no_other(
    app: AdapterHubApp, store: Store
) -> None:
    path = store.layout.manifest(store.resolve("legal/terms").digest)
    overwrite(path, b"{}")
    with pytest.raises(StoreDamagedError):
        store.entries()
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        assert len(kinds(app)) == 6
        assert kinds(app)["legal/terms"] == "damaged"
        assert "SmolLM2" in kinds(app)["desk/both"]
        await pilot.press("down")
        await settled(pilot)
        assert "has changed on disk" in told(app)
        assert "adapterhub fsck --repair" in told(app)
        await pilot.press("y", "up")
        await settled(pilot)
        assert "ties" in told(app)


async def test_an_adapter_of_a_newer_version_is_unknown_not_damaged(
    app: AdapterHubApp, write_newer: Callable[[str], None]
) -> None:
    write_newer("legal/terms")
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        assert kinds(app)["legal/terms"] == "unknown"
        await pilot.press("down")
        await settled(pilot)
        assert "Upgrade adapterhub" in told(app)


async def test_a_damaged_ref_marks_its_row_and_hides_no_other(
    app: AdapterHubApp, store: Store
) -> None:
    overwrite(store.layout.ref(parse_name("tools/calls")), b"\xff\xfe nonsense")
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        assert len(kinds(app)) == 6
        assert kinds(app)["tools/calls"] == "damaged"
        await pilot.press("G")
        await settled(pilot)
        assert "The ref tools/calls is damaged." in told(app)
        assert "adapterhub log tools/calls" in told(app)


@pytest.mark.parametrize("how", ["gone", "cut"])
async def test_damaged_weights_say_so_in_the_detail_pane(
    app: AdapterHubApp, store: Store, how: str
) -> None:
    entry = store.resolve("desk/both").manifest.file(WEIGHTS_NAME)
    assert entry is not None
    blob = store.layout.blob(entry.digest)
    if how == "gone":
        blob.unlink()
    else:
        overwrite(blob, blob.read_bytes()[:100])
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        assert "SmolLM2" in kinds(app)["desk/both"], "the list reads manifests only"
        assert "What the list knows" in told(app)
        assert "SmolLM2" in told(app)
        assert "Traceback" not in told(app)
        assert "inside adapterhub" not in told(app), "it is told as what it is, not as a bug"


async def test_a_damaged_attestation_says_what_to_do(app: AdapterHubApp, store: Store) -> None:
    folder = store.layout.attestations(store.resolve("desk/both").digest)
    overwrite(next(folder.iterdir()), b"[]")
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        assert "has changed on disk" in told(app)
        assert "adapterhub fsck --repair" in told(app)


async def test_a_store_deleted_while_open_is_an_empty_one(app: AdapterHubApp, store: Store) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        rmtree(store.home)
        await pilot.press("j")
        await until(lambda: "is missing from the store" in told(app), pilot)
        await pilot.press("r")
        await until(lambda: "The store is empty." in shown(app, "#instead"), pilot)


async def test_a_store_that_cant_be_read_keeps_the_list_and_says_why(
    app: AdapterHubApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> object:
        raise PermissionError(13, "Permission denied", "/store/[red]refs[/]")

    async with app.run_test(size=USUAL, notifications=True) as pilot:
        await settled(pilot)
        monkeypatch.setattr(library, "read_rows", refuse)
        await pilot.press("r")
        await settled(pilot)
        assert notices(app)[-1] == "Not allowed: /store/[red]refs[/].\nPermission denied"
        assert len(kinds(app)) == 6
        assert shown(app, "#count") == "not up to date: 6 adapters"
        monkeypatch.undo()
        await pilot.press("r")
        await settled(pilot)
        assert shown(app, "#count") == "6 adapters"


async def test_a_store_that_was_never_readable_says_why_in_its_place(
    app: AdapterHubApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> object:
        raise StoreDamagedError("The store is [b]odd[/b].", why="Because.", hint="adapterhub fsck")

    monkeypatch.setattr(library, "read_rows", refuse)
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        text = shown(app, "#instead")
        assert "The store is [b]odd[/b]." in text
        assert "adapterhub fsck" in text
        assert "r tries again" in text


async def test_the_screen_words_an_error_as_the_command_line_does(
    app: AdapterHubApp, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.layout.manifest(store.resolve("desk/both").digest).unlink()
    with pytest.raises(StoreDamagedError) as caught:
        store.resolve("desk/both")
    Output().error(caught.value)
    said = capsys.readouterr().err.removeprefix("error: ")
    async with app.run_test(size=(300, 40)) as pilot:
        await settled(pilot)
        assert "".join(said.split()) in told(app).replace(" ", ""), "the same but for line breaks"
