"""`recipe preview` shows the tokens that a training takes, each as what it is: trained, masked, control or cut off."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.data import Message, Row, encode, read_rows, split_rows
from adapterhub.errors import ExitCode
from adapterhub.trainer.preview import pieces, preview_rows
from adapterhub.trainer.recipe import load_recipe
from tests.cli.calling import call
from tests.data.test_templates import PHI4
from tests.support.chat import chat_tokenizer, write_rows

if TYPE_CHECKING:
    from adapterhub.store import Store

Write = Callable[..., Path]
HEAD = "<|im_start|>user\nHow high?<|im_end|>\n<|im_start|>assistant\n"
HEAD_TOKENS = 28
"""One a byte, and three control tokens."""
ROWS = [
    {"instruction": "How high?", "output": "8848 m, 🏔 high.\n\nReally."},
    {"instruction": "How deep?", "output": "⟦\x1b[31m⟧ deep"},
]


@pytest.fixture
def everest(write_recipe: Write, tmp_path: Path) -> Write:
    """everest(**changes) -> a recipe on two rows, nothing held out."""
    write_rows(tmp_path / "data.json", ROWS)

    def write(**changes: Any) -> Path:
        return write_recipe(**{"data": {"path": "data.json", "held_out": 0}, **changes})

    return write


def test_the_pieces_are_what_training_marks(everest: Write, store: Store, base: Path) -> None:
    recipe = load_recipe(everest())
    (found,) = preview_rows(recipe, store.bases.open(str(base)), number=1)
    encoded = encode(
        chat_tokenizer(), read_rows(Path(recipe.data.paths[0]))[0], stop_ids=frozenset({2})
    )
    assert "".join(p.text for p in found.pieces).startswith(HEAD)
    assert [p.text for p in found.pieces if p.trained] == [ROWS[0]["output"], "<|im_end|>"]
    assert [p.text for p in found.pieces if p.control] == ["<|im_start|>", "<|im_end|>"] * 2
    assert (found.tokens, found.trained) == (len(encoded.input_ids), encoded.trained)
    assert (found.row, found.file, found.side, found.lost) == (1, "data.json", "training", 0)


def test_off_a_terminal_brackets_keep_what_colours_would_say(everest: Write) -> None:
    said = call("recipe", "preview", everest(), "--row", "1")
    assert said.code == 0
    assert said.out == (
        "⟦trained⟧  masked  ⟪cut off by max_length⟫\n\n"
        "row 1 of data.json (training): 28 of 57 tokens are trained\n"
        f"{HEAD}⟦{ROWS[0]['output']}<|im_end|>⟧\n\n"
    )


def test_a_row_that_contains_the_brackets_gets_others_and_commands_no_terminal(
    everest: Write,
) -> None:
    said = call("recipe", "preview", everest(), "--row", "2")
    assert "⟪trained⟫  masked" in said.out
    assert "⟪⟦\\x1b[31m⟧ deep<|im_end|>⟫" in said.out
    assert "\x1b" not in said.out


def test_what_max_length_cuts_off_is_shown_as_cut(everest: Write, store: Store, base: Path) -> None:
    path = everest(max_length=HEAD_TOKENS + 10)  # through the mountain, four bytes long
    said = call("recipe", "preview", path, "--row", "1")
    assert f"cut after {HEAD_TOKENS + 10} tokens" in said.out
    assert f"{HEAD}⟦8848 m, ⟧⟪🏔 high.\n\nReally.<|im_end|>\n⟫" in said.out
    recipe = load_recipe(path)
    (found,) = preview_rows(recipe, store.bases.open(str(base)), number=1)
    assert "".join(p.text for p in found.pieces).endswith("Really.<|im_end|>\n")
    said = call("recipe", "preview", everest(max_length=HEAD_TOKENS), "--row", "1")
    assert "nothing is left to train, so the row is left out" in said.out


def test_json_holds_every_piece(everest: Write) -> None:
    (found,) = call("recipe", "preview", everest(), "--row", "2", "--json").json
    assert (found["row"], found["file"], found["side"]) == (2, "data.json", "training")
    trained = [piece["text"] for piece in found["pieces"] if piece["trained"]]
    assert trained == [ROWS[1]["output"], "<|im_end|>"]
    assert call("recipe", "preview", everest(), "--row", "2", "-q").out == "2\n"


def test_as_many_rows_as_asked_for_and_of_the_side_asked_for(
    write_recipe: Write, tmp_path: Path
) -> None:
    path = write_recipe(max_length="auto")
    split = split_rows(read_rows(tmp_path / "data.json"), 0.2)
    assert len(call("recipe", "preview", path, "--json").json) == 3
    shown = call("recipe", "preview", path, "--rows", "5", "--held-out", "--json").json
    assert [item["row"] for item in shown] == [row.number for row in split.held_out[:5]]
    assert {item["side"] for item in shown} == {"held out"}
    assert all(item["lost"] == 0 for item in shown)


def test_the_recipes_template_is_used(everest: Write, tmp_path: Path) -> None:
    (tmp_path / "phi.jinja").write_text(PHI4)
    said = call("recipe", "preview", everest(template="phi.jinja"), "--row", "1")
    assert "<|im_start|>assistant<|im_sep|>⟦8848" in said.out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--row", "9"], ExitCode.NOT_FOUND, "uses no row 9"),
        (["--held-out"], ExitCode.USAGE, "holds no rows out"),
    ],
)
def test_rows_that_are_not_there_are_told(
    everest: Write, words: list[str], code: ExitCode, says: str
) -> None:
    said = call("recipe", "preview", everest(), *words, "--json")
    assert said.code == code
    assert says in said.error["what"]


def test_on_a_terminal_trained_masked_and_control_tokens_differ(
    everest: Write, store: Store, base: Path
) -> None:
    from adapterhub.cli.output import Output
    from adapterhub.trainer.preview_command import coloured

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    found = preview_rows(load_recipe(everest()), store.bases.open(str(base)), number=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.delenv("NO_COLOR", raising=False)
        Output(stdout=screen).pieces(coloured(found))
    drawn = screen.getvalue()
    assert "\x1b[1;32m8848 m, 🏔 high.\x1b[0m\x1b[1;32m↵\x1b[0m" in drawn
    assert "\x1b[1;7;32m<|im_end|>\x1b[0m" in drawn
    assert "\x1b[90muser\x1b[0m\x1b[90m↵\x1b[0m" in drawn
    assert "control token" in drawn


def test_pieces_put_together_are_the_text_also_where_a_blank_begins_them() -> None:
    tokenizer = chat_tokenizer()
    row = Row((Message("user", " a "), Message("assistant", "  b\n"), Message("user", "\u00a0"), Message("assistant", "é")))  # fmt: skip
    encoded = encode(tokenizer, row, stop_ids=frozenset({2}))
    for length in range(len(encoded.input_ids) + 1):
        found = pieces(tokenizer, encoded, length)
        assert "".join(p.text for p in found) == tokenizer.decode(encoded.input_ids)
        assert sum(len(p.text) for p in found if p.trained) == len("  b\n<|im_end|>é<|im_end|>")
