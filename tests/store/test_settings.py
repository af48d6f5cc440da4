"""config.toml: what it may say, and what an error in it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.errors import UsageError
from adapterhub.settings import Settings, StoreSettings, duration, read_settings
from adapterhub.store import Store
from tests.cli.calling import call
from tests.support.adapters import AdapterMaker


def test_without_a_file_or_with_an_empty_one_the_defaults_hold(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "config.toml") == Settings()
    (tmp_path / "config.toml").write_text("# nothing\n[store]\n")
    assert read_settings(tmp_path / "config.toml") == Settings()
    assert Settings().store == StoreSettings("14d", "30d", 3)


def test_what_it_says_holds_for_gc(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter("tone"))
    call("rm", "tone", "--yes")
    assert call("gc", "--dry-run", "--json").json["garbage"] == []
    (tmp_path / "home" / "config.toml").write_text('[store]\ngrace = "0s"\n')
    assert len(call("gc", "--dry-run", "--json").json["garbage"]) == 4
    spared = call("gc", "--grace", "1h", "--dry-run", "--json").json
    assert spared["garbage"] == [], "the command line has the last word"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[store]\ngrace = 14\n", ["store.grace", "str", "int"]),
        ('[store]\ngrace = "a while"\n', ["store.grace", "a while"]),
        ('[store]\ntrash = "30"\n', ["store.trash", "30"]),
        ('[store]\ntrash = "-1d"\n', ["store.trash", "-1d"]),
        ("[store]\nkeep_releases = -1\n", ["store.keep_releases", "0 or more"]),
        ('[store]\nkeep_releases = "3"\n', ["store.keep_releases", "int", "str"]),
        ("[store]\nkeep_releases = true\n", ["store.keep_releases", "int", "bool"]),
        ('[store]\ngrase = "1d"\n', ["grase", "store"]),
        ('[stores]\ngrace = "1d"\n', ["stores"]),
        ("[store\n", ["line 1"]),
        ("store = 7\n", ["store"]),
    ],
)
def test_an_error_names_the_key_the_file_and_what_is_right(
    text: str, parts: list[str], store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter("tone"))
    path = tmp_path / "home" / "config.toml"
    path.write_text(text)
    said = call("gc", "--dry-run", "--json")
    assert said.code == 2
    words = f"{said.error['what']} {said.error['why']}"
    for part in (str(path), *parts):
        assert part in words, words
    assert said.error["hint"]
    assert call("ls").code == 0, "what needs no settings doesn't mind"


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UsageError, match=r"config\.toml"):
        read_settings(tmp_path / "config.toml")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("90s", 90), ("10m", 600), ("12h", 43200), ("1.5d", 129600), ("2w", 1209600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text, "") == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "7 days", "7D", "1e3s", "-1d", "7d ago", "inf"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="for --grace") as caught:
        duration(text, "for --grace")
    assert "7d" in caught.value.hint
    said = call("gc", f"--grace={text}", "--dry-run", "--json")
    assert said.code == 2
