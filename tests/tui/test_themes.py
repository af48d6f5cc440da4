"""Every text is legible in every one of our themes: the pairs that may meet, worked out, and what is really drawn."""

import pytest
from textual.color import Color
from textual.theme import Theme

from adapterhub.store import Store
from adapterhub.tui.themes import THEMES
from tests.support.contrast import drawn_words, ratio
from tests.support.screen import open_app, settled

TEXTS = [
    "foreground", "text", "text-muted", "text-primary", "text-secondary", "text-accent", "text-warning", "text-error",
    "text-success", "foreground-muted", "footer-key-foreground", "primary", "accent", "warning", "error", "success",
]  # fmt: skip
BACKGROUNDS = ["background", "surface", "panel", "surface-active"]
TINTED = ["primary", "secondary", "accent", "warning", "error", "success"]


def needed(theme: Theme) -> float:
    return 7 if "contrast" in theme.name else 4.5


def pairs(theme: Theme) -> list[tuple[str, str]]:
    """A text's colour and what it may stand on."""
    return [
        *((text, behind) for text in TEXTS for behind in BACKGROUNDS),
        *((text, f"{name}-muted") for name in TINTED for text in ("text", f"text-{name}")),
        *(("button-color-foreground", name) for name in TINTED),
        *(("text", name) for name in ("primary", "error", "success")),
        ("block-cursor-foreground", "block-cursor-background"),
        ("block-cursor-blurred-foreground", "block-cursor-blurred-background"),
        ("text-muted", "block-cursor-blurred-background"),
        ("input-cursor-foreground", "input-cursor-background"),
        ("input-selection-foreground", "input-selection-background"),
        ("footer-description-foreground", "footer-background"),
    ]


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_each_text_colour_is_legible_on_each_background(theme: Theme) -> None:
    given = {**theme.to_color_system().generate(), **theme.variables}
    weak: dict[str, float] = {}
    for text, behind in pairs(theme):
        back = Color.parse(given["background"]) + Color.parse(given[behind])
        found = given[text]
        if found.startswith("auto"):
            share = float(found.removeprefix("auto").strip().rstrip("%")) / 100
            front = back + back.get_contrast_text(share)
        else:
            front = back + Color.parse(found)
        contrast = ratio(front.rgb, back.rgb)
        if contrast < needed(theme):
            weak[f"{text} on {behind}"] = round(contrast, 2)
    assert not weak


SCREENS = [
    pytest.param((), id="library"),
    pytest.param(("question_mark",), id="help"),
    pytest.param(("ctrl+o",), id="jump"),
    *(pytest.param((key,), id=f"place-{key}") for key in "2345"),
]


def within(keys: tuple[str, ...]) -> str:
    """What lies under a dialog is veiled on purpose."""
    return "#help" if keys == ("question_mark",) else ""


@pytest.mark.parametrize("keys", SCREENS)
async def test_every_word_that_is_drawn_is_legible(store: Store, keys: tuple[str, ...]) -> None:
    app = open_app(store)
    async with app.run_test(size=(140, 45)) as pilot:
        await settled(pilot)
        await pilot.press(*keys)
        await settled(pilot)
        weak: dict[tuple[str, str], float] = {}
        for theme in THEMES:
            app.theme = theme.name
            await settled(pilot)
            await pilot.pause()
            for word, front, back in drawn_words(app, within(keys)):
                contrast = ratio(front, back)
                if contrast < needed(theme):
                    weak[theme.name, word] = round(contrast, 2)
        assert not weak


@pytest.mark.parametrize("keys", SCREENS)
async def test_without_colour_every_word_is_there_and_legible(
    store: Store, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = open_app(store)
    app.theme = THEMES[0].name
    async with app.run_test(size=(140, 45)) as pilot:
        await settled(pilot)
        await pilot.press(*keys)
        await settled(pilot)
        words = list(drawn_words(app, within(keys)))
        assert words
        for word, front, back in words:
            assert len(set(front)) == len(set(back)) == 1, f"{word} is grey on grey"
            assert ratio(front, back) >= 4.5, word
