"""`config.toml` in the store's home: the defaults a person may change. What isn't there has the value below."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from adapterhub.errors import UsageError

DAY = 86400.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY, "w": 7 * DAY}
_SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMG]I?B|B)\Z")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])\Z")


class StoreSettings(msgspec.Struct, forbid_unknown_fields=True):
    """How long the store keeps what no name leads to."""

    grace: str = "14d"
    """Garbage younger than this is spared, and so is all that the journal of this time names: what `undo` needs."""
    trash: str = "30d"
    """How long the trash keeps what a collection took."""
    keep_releases: int = 3
    """How many earlier adapters of every tag are kept for `rollback`, however old."""


class ToolSettings(msgspec.Struct, forbid_unknown_fields=True):
    """Environments of other programs."""

    quantize: str | None = None
    """The folder of llm-compressor's virtual environment; tools/quantize in the home where nothing is said."""


class TuiSettings(msgspec.Struct, forbid_unknown_fields=True):
    """How the terminal UI looks and is steered."""

    theme: str | None = None
    """The colours it starts with; those chosen last where nothing is said."""
    keys: dict[str, str] = msgspec.field(default_factory=dict)
    """Other keys: the id of what a key does, and the key, or several with commas."""


class Demand(msgspec.Struct, forbid_unknown_fields=True):
    """One thing a gate asks for: see adapterhub.evaluate.gates."""

    suite: str | None = None
    data: str | None = None
    """The digest of a data file, or its beginning: `eval --json` and `show` tell it."""
    held_out: float = 0.1
    split_seed: int = 0
    """Which rows of the data: as `eval` and recipes have them. An evaluation of all rows counts, too."""
    by: str | None = None
    """The column that tells the parts of data apart; a suite has its own parts."""
    part: str | None = None
    max_new_tokens: int = 256
    """Of an evaluation's answers, at least: in few tokens nobody says what he mustn't."""
    measure: str = "perplexity"
    judge: str | None = None
    """Of a measure `judge`: the digest of the judge, or its beginning, as `show --json` tells it. Any where nothing is said."""
    at_least: float | None = None
    at_most: float | None = None
    than: Literal["base", "current"] = "base"
    verdict: Literal["better", "not worse"] | None = None
    at_most_worse: float | None = None
    """Of the perplexity a share of it, of other measures so much less."""


class Gate(msgspec.Struct, forbid_unknown_fields=True):
    """Which names ask for what."""

    demands: list[Demand]
    names: list[str] = msgspec.field(default_factory=lambda: ["*"])
    tag: str = "prod"


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """Everything in config.toml."""

    store: StoreSettings = msgspec.field(default_factory=StoreSettings)
    tools: ToolSettings = msgspec.field(default_factory=ToolSettings)
    tui: TuiSettings = msgspec.field(default_factory=TuiSettings)
    gates: list[Gate] = msgspec.field(default_factory=list)


def read_settings(path: Path) -> Settings:
    """The settings in `path`; the defaults where there is no such file. UsageError names what is wrong in it."""
    try:
        settings = msgspec.convert(tomllib.loads(path.read_text("utf-8")), Settings)
    except FileNotFoundError:
        return Settings()
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        # Of ValueError, beside what isn't TOML and what isn't UTF-8: a number of more digits than Python converts.
        raise UsageError(
            f"{path} can't be used.", why=str(error), hint="Mend that file."
        ) from error
    duration(settings.store.grace, f"for store.grace in {path}")
    duration(settings.store.trash, f"for store.trash in {path}")
    if settings.store.keep_releases < 0:
        raise UsageError(
            f"store.keep_releases in {path} must be 0 or more.", hint="Mend that file."
        )
    for demand in (demand for gate in settings.gates for demand in gate.demands):
        _place_files(demand, path.parent)
        if demand.part is not None and demand.data is not None and demand.by is None:
            raise UsageError(
                f"A demand of a gate in {path} names a part of its data, and not by which column.",
                why=f'part = "{demand.part}" needs by = "COLUMN", as eval --by has it.',
                hint="Mend that file.",
            )
        if (demand.suite is None) == (demand.data is None):
            raise UsageError(
                f"A demand of a gate in {path} must name a suite or data, one of them.",
                why='suite = "forgetting", or data = "sha256:…"',
                hint="Mend that file.",
            )
        bounds = (demand.at_least, demand.at_most, demand.at_most_worse, demand.held_out)
        if not all(math.isfinite(bound) for bound in bounds if bound is not None):
            raise UsageError(f"A bound of a gate in {path} is no number.", hint="Mend that file.")
        for key, digest in (("data", demand.data), ("judge", demand.judge)):
            if digest is not None and not re.match(r"sha256:[0-9a-f]{8,64}\Z", digest):
                raise UsageError(
                    f"{key} = '{digest}' of a gate in {path} is no digest.",
                    why="It must begin with sha256: and eight or more of its digits.",
                    hint=f"`adapterhub show NAME --json` has the digest of the {key} it was evaluated with.",
                )
    return settings


def _place_files(demand: Demand, folder: Path) -> None:
    """Suites and schemas of one's own are looked for beside config.toml, wherever the command runs."""
    if demand.suite is not None and demand.suite.endswith((".yaml", ".yml")):
        demand.suite = str(folder / demand.suite)
    kind, _, file = demand.measure.partition("=")
    if kind == "schema" and file:
        demand.measure = f"schema={folder / file}"


def duration(text: str, where: str) -> float:
    """Seconds in `90s`, `10m`, `12h`, `7d` or `2w`; `where` is what an error names."""
    match = _DURATION.match(text.strip())
    if match is None:
        raise UsageError(
            f"'{text}' {where} is no duration.",
            why="It must be a number with s, m, h, d or w (seconds, minutes, hours, days, weeks).",
            hint="For example 12h or 7d.",
        )
    return float(match[1]) * _UNITS[match[2]]


def size(text: str, where: str) -> int:
    """Bytes in `512MB`, `2GB` or `1.5GiB`; `where` is what an error names."""
    match = _SIZE.match(text.strip().upper())
    if match is None:
        raise UsageError(
            f"'{text}' {where} is no size.",
            why="It must be a number with B, kB, MB, GB, KiB, MiB or GiB.",
            hint="For example 512MB or 2GB.",
        )
    return int(float(match[1]) * _SIZES[match[2]])
