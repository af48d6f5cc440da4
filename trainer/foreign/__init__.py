"""Configurations of other trainers, read as recipes: what each of their keys becomes, and what can't be honoured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.errors import NotFoundError, UsageError
from adapterhub.names import slug
from adapterhub.trainer.foreign import axolotl, llamafactory
from adapterhub.trainer.foreign.common import Line
from adapterhub.yamltext import parse_yaml

_TOOLS = {"axolotl": axolotl, "llama-factory": llamafactory}
_BASES = {"axolotl": "base_model", "llama-factory": "model_name_or_path"}
"""The key that names the base, which no recipe has."""


@dataclass(frozen=True)
class Imported:
    """A recipe as plain values, and a line for every key of the configuration it came from."""

    tool: str
    document: Mapping[str, Any]
    lines: tuple[Line, ...]

    @property
    def differing(self) -> tuple[Line, ...]:
        """The lines that make another result, and those of unknown keys, which may."""
        return tuple(line for line in self.lines if line.verdict in ("differs", "unknown"))


def tool_of(document: Mapping[str, Any]) -> str | None:
    """The name of the trainer whose configuration this is; None where it is none that is known."""
    found = [name for name, key in _BASES.items() if key in document]
    return _TOOLS[found[0]].TOOL if len(found) == 1 else None


def import_file(
    path: Path, *, tool: str | None = None, name: str | None = None, base: str | None = None
) -> Imported:
    """The configuration in `path` as a recipe; `tool` is axolotl or llama-factory, told from the keys where it is None.

    Raises NotFoundError (no such file) and UsageError (no YAML, of neither tool, or nothing adapterhub could train).
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    given = parse_yaml(path.read_bytes(), path.name)
    if not isinstance(given, dict):
        raise UsageError(
            f"{path.name} must hold keys and values.", why=f"It is a {type(given).__name__}."
        )
    known = [one for one in _TOOLS if tool in (None, one) and _BASES[one] in given]
    if len(known) != 1:
        raise UsageError(
            f"{path.name} is no configuration of {tool or 'a trainer that is known'}.",
            why=f"Axolotl's has the key {_BASES['axolotl']}, LLaMA-Factory's {_BASES['llama-factory']}"
            + ("; this one has both." if known else ", and this one hasn't."),
            hint="Say which with --from axolotl or --from llama-factory." if known else "",
        )
    reading = _TOOLS[known[0]].read(given, path.parent)
    document = {"name": name or slug(path.stem), "base": "", **reading.document}
    if base is not None:
        document["base"] = base
    return Imported(reading.tool, document, tuple(reading.lines))
