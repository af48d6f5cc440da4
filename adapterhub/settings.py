"""`config.toml` in the store's home: the defaults a person may change. What isn't there has the value below."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

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


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """Everything in config.toml."""

    store: StoreSettings = msgspec.field(default_factory=StoreSettings)
    tools: ToolSettings = msgspec.field(default_factory=ToolSettings)


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
    return settings


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
