"""A terminal that has only ASCII gets only ASCII, column for column."""

import pytest
from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color

from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.ascii import Ascii, in_ascii, speaks_ascii_only
from adapterhub.tui.personal import Choices
from tests.support.screen import settled


@pytest.mark.parametrize(
    ("text", "ascii_text"),
    [
        ("╭─ Adapters ─╮", "+- Adapters -+"),
        ("│ ✓ done … │", "| v done ~ |"),
        ("a → b – 3 × Δ", "a > b - 3 x D"),
        ("⠀⠉⣀⣿⡇", " '.#:"),
        ("▁▅█░", "_##."),
        ("café", "cafe"),
        ("模型 x", "???? x"),
        ("👩\u200d🚀 ♥\ufe0f e\u0301", "?? ?? e"),
    ],
)
def test_what_has_a_likeness_is_drawn_as_that(text: str, ascii_text: str) -> None:
    assert in_ascii(text) == ascii_text


def test_every_character_becomes_ascii_of_the_same_width() -> None:
    for code in range(0xA0, 0x30000):
        if 0xD800 <= code <= 0xDFFF:
            continue
        drawn = in_ascii(chr(code))
        assert drawn.isascii()
        assert len(drawn) == cell_len(chr(code)), hex(code)


def test_the_filter_leaves_ascii_and_styles_alone() -> None:
    plain = Segment("plain")
    kept, drawn = Ascii().apply([plain, Segment("…", None)], Color(0, 0, 0))
    assert kept is plain
    assert drawn == Segment("~", None)


@pytest.mark.parametrize(
    ("environment", "ascii_only"),
    [
        ({}, False),
        ({"LANG": "en_US.UTF-8"}, False),
        ({"LANG": "C.utf8"}, False),
        ({"LANG": "C"}, True),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, True),  # as Python changes it when it starts
        ({"LC_CTYPE": "C.UTF-8"}, False),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "POSIX"}, True),
        ({"LANG": "de_DE.ISO-8859-1"}, True),
        ({"LANG": "en_US.UTF-8", "TERM": "linux"}, True),
        ({"LANG": "C", "ADAPTERHUB_ASCII": "0"}, False),
        ({"LANG": "en_US.UTF-8", "ADAPTERHUB_ASCII": "1"}, True),
    ],
)
def test_the_locale_decides_and_the_switch_has_the_last_word(
    environment: dict[str, str], ascii_only: bool
) -> None:
    assert speaks_ascii_only(environment) is ascii_only


async def test_the_whole_screen_is_drawn_in_ascii(store: Store) -> None:
    app = AdapterHubApp(store, Choices(ascii_only=True))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "legal/terms" in drawn(app)
        for key in ("question_mark", "escape", "ctrl+p"):
            assert drawn(app).isascii()
            await pilot.press(key)
            await settled(pilot)
        assert drawn(app).isascii()


def drawn(app: AdapterHubApp) -> str:
    """The text of the screen, line by line."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())
