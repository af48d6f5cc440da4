"""Fixtures of the screen: the sample store, as it is and as a copy that a test may change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from tests.support.sample import DAY, NOON, fill, set_added
from tests.support.screen import open_app


@pytest.fixture(scope="session")
def sample_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of six names; read-only by agreement."""
    root = tmp_path_factory.mktemp("sample")
    store = Store.open(root / "home")
    with pytest.MonkeyPatch.context() as patch:
        for room in ("attestations", "refs"):
            patch.setattr(f"adapterhub.store.{room}.now", lambda *_: "2026-01-01T12:00:00+00:00")
        fill(store, root)
    for place, (name, _) in enumerate(store.refs.all()):
        set_added(store, str(name), NOON + place * DAY)
    return store.home


@pytest.fixture
def home(sample_home: Path, tmp_path: Path) -> Path:
    """A copy of the sample store that a test may change."""
    return Path(shutil.copytree(sample_home, tmp_path / "home"))


@pytest.fixture
def store(home: Path) -> Store:
    return Store.open(home)


@pytest.fixture
def app(store: Store) -> AdapterHubApp:
    return open_app(store)


@pytest.fixture
def write_newer(store: Store) -> Callable[[str], None]:
    """Points a name at a manifest of a schema this version doesn't know."""

    def write(name: str) -> None:
        data = canonical_bytes({"schema": "adapterhub.manifest/9"})
        path = store.layout.manifest(digest_of(data))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        store.layout.ref(parse_name(name)).write_text(digest_of(data) + "\n")
        set_added(store, name, NOON)

    return write


@pytest.fixture(autouse=True)
def _quiet_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on the screen moves by itself, and no colour depends on the environment."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("textual.widgets.Input.cursor_blink", False)


@pytest.fixture(autouse=True)
def _library_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits for no pause of the user, and tells ages by a time of its own."""
    monkeypatch.setattr("adapterhub.tui.library.reading.now", lambda: float(NOON + 20 * DAY))
    for seconds in ("MOVING_SECONDS", "RESTING_SECONDS", "TYPING_SECONDS"):
        monkeypatch.setattr(f"adapterhub.tui.screens.library.{seconds}", 0)


@pytest.fixture(autouse=True)
def quick_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test knows which question it answers, and when it is there."""
    monkeypatch.setattr("adapterhub.tui.screens.confirm.ATTENTION_SECONDS", 0.0)
