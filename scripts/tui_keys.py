"""Writes the table of keys in docs/tui.md from the bindings themselves. `--check` only says whether it is up to date."""

import sys
from pathlib import Path

from adapterhub.tui import app  # noqa: F401 - its keys are in the table
from adapterhub.tui.keymap import remappable, shown_keys

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tui.md"
BEGIN, END = "<!-- keys: scripts/tui_keys.py -->\n", "<!-- end of keys -->\n"


def main() -> int:
    text = PAGE.read_text("utf-8")
    wanted = page(text)
    if wanted == text:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{PAGE.name} is out of date: .venv/bin/python scripts/tui_keys.py", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, "utf-8")
    return 0


def page(text: str) -> str:
    """The page with the table as it should be."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def table() -> str:
    """A row for each id."""
    rows = ["| id | keys | what it does |", "|---|---|---|"]
    for one in remappable().values():
        keys = shown_keys(one.keys).replace("|", "\\|")
        rows.append(f"| `{one.id}` | {' '.join(f'`{key}`' for key in keys.split())} | {one.about or one.label} |")  # fmt: skip
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
