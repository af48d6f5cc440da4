"""Foreign words in Markdown, where they must stay words."""

from __future__ import annotations


def plain(text: object) -> str:
    """Foreign words on one line, without what a terminal or Markdown would act on."""
    printable = "".join(letter if letter.isprintable() else " " for letter in str(text))
    return printable.replace("`", "'").replace("<", "‹")


def code(text: object) -> str:
    """The same as code, which is never a link; it may stand in a table."""
    words = plain(text).replace("|", " ").strip()
    return f"`{words}`" if words else ""
