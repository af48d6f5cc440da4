"""Strings from strangers' files are drawn as they are: no markup is read, no control character reaches the terminal."""

from pathlib import Path

from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.library.model import Library
from adapterhub.tui.library.rows import Row
from adapterhub.tui.library.words import instead_of_list
from adapterhub.tui.problem import Problem
from adapterhub.tui.widgets.detail_pane import DetailPane, Sections
from tests.support.sample import write_adapter
from tests.support.screen import names, open_app, settled

EVIL = "[bold red]x[/]\x1b[2J\x07[link=https://e.example]y[/link]\u202egnp.exe[@click=app.quit]z[/]"
LITERAL = (
    "[bold red]x[/]\\x1b[2J\\x07[link=https://e.example]y[/link]\\u202egnp.exe[@click=app.quit]z[/]"
)


def screen_text(app: AdapterHubApp) -> str:
    return "\n".join(
        "".join(segment.text for segment in strip)
        for strip in app.screen._compositor.render_strips()
    )


async def test_hostile_strings_are_shown_literally(
    store: Store,
    tmp_path: Path,
) -> None:
    folder = write_adapter(tmp_path / "evil", base=EVIL, seed=9)
    (folder / "README[red]![b].md").write_text(EVIL)
    added = store.add_folder(
        folder,
        name="a/evil",
        provenance={"event": EVIL, EVIL: {EVIL: [EVIL, 1.5]}, "notes": [EVIL]},
    )
    store.attest(added.digest, "note", {"text": EVIL, "[/]": None, "table": [{EVIL: EVIL}]})
    store.attest(
        added.digest,
        "eval",
        {"result": {"perplexity": EVIL}, "said": {"answer": EVIL}, "settings": EVIL},
    )
    app = open_app(store)
    async with app.run_test(size=(300, 80)) as pilot:
        await settled(pilot)
        assert names(app)[0] == "a/evil"
        drawn = screen_text(app)
        assert drawn.count(LITERAL) >= 7
        assert "README[red]![b].md" in drawn
        for character in ("\x1b", "\x07", "\u202e"):
            assert character not in drawn
        sections = app.screen.query_one(DetailPane).query_one(Sections)
        styles = {str(span.style) for span in sections.render().spans}  # type: ignore[union-attr]
        assert not any("red" in style or "link" in style or "click" in style for style in styles)


async def test_the_filter_shows_what_was_typed(app: AdapterHubApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("slash", "left_square_bracket", "slash", "right_square_bracket")
        await settled(pilot)
        assert "No adapter matches [/]." in screen_text(app)


def test_a_manifest_from_elsewhere_may_hold_any_base_and_kind() -> None:
    row = Row("n", "sha256:" + "0" * 64, "", kind="[b]k", base="[red]o/[/]", targets=("[u]",))
    state = Library((row,), query="[red]o/[/] [b]k [u]", loaded=True)
    assert state.visible == (row,)
    problem = Problem("[red]what[/]\x1b", "[b]why", "[i]hint")
    text = str(instead_of_list(Library(problem=problem, loaded=True)))
    assert "[red]what[/]\\x1b" in text
    assert "[b]why" in text
