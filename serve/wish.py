"""What somebody wants served, as it is asked for: the values of `adapterhub serve`'s options, and the line that says them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from adapterhub.errors import UsageError
from adapterhub.serve.invocation import DTYPES, split_extra
from adapterhub.serve.plan import Places

READY_SECONDS = 600.0


@dataclass(frozen=True)
class Wish:
    """Everything `adapterhub serve` may be told. What is None or empty is computed, or left to vLLM."""

    names: tuple[str, ...] = ()
    everything: bool = False
    base: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str = DTYPES[0]
    max_model_len: int | None = None
    loaded: int | None = None
    batch: int | None = None
    max_rank: int | None = None
    pin: tuple[str, ...] = ()
    keys: Path | None = None
    verify: bool = True
    direct: bool = False
    ready_timeout: float = READY_SECONDS
    vllm: str | None = None
    allow_mismatch: bool = False
    prod: bool = False
    """Only what the tag prod means, or could mean by the gates in config.toml."""
    extra: tuple[str, ...] = ()
    """Handed on to vLLM as it is."""

    @property
    def places(self) -> Places:
        """Room for adapters, as it was asked for."""
        return Places(self.loaded, self.batch, self.max_rank)

    def require_sound(self) -> None:
        """UsageError where the options say nothing, or contradict each other."""
        if not self.names and not self.everything:
            raise UsageError(
                "Name the adapters to serve, or say --all.",
                hint="adapterhub serve NAME... [-- VLLM_ARGUMENT...]",
            )
        split_extra(self.extra)
        require_known("dtype to serve in", self.dtype, DTYPES)
        if self.direct and (self.keys or self.pin or self.loaded or self.batch):
            raise UsageError(
                "--keys, --pin, --loaded and --batch belong to the door, which --direct goes without."
            )

    def words(self) -> list[str]:
        """The words after `adapterhub` that ask for this, with nothing said that is the default."""
        plain = Wish()
        options: list[tuple[str, object, object]] = [
            ("--base", self.base, plain.base),
            ("--host", self.host, plain.host),
            ("--port", self.port, plain.port),
            ("--dtype", self.dtype, plain.dtype),
            ("--max-model-len", self.max_model_len, plain.max_model_len),
            ("--loaded", self.loaded, plain.loaded),
            ("--batch", self.batch, plain.batch),
            ("--max-rank", self.max_rank, plain.max_rank),
            *(("--pin", name, None) for name in self.pin),
            ("--keys", self.keys, plain.keys),
            ("--ready-timeout", f"{self.ready_timeout:g}", f"{plain.ready_timeout:g}"),
            ("--vllm", self.vllm, plain.vllm),
        ]
        flags = (
            ("--all", self.everything),
            ("--no-verify", not self.verify),
            ("--direct", self.direct),
            ("--allow-mismatch", self.allow_mismatch),
            ("--prod", self.prod),
        )
        return [
            "serve",
            *self.names,
            *(word for flag, value, default in options if value != default for word in (flag, str(value))),
            *(flag for flag, said in flags if said),
            *(("--", *self.extra) if self.extra else ()),
        ]  # fmt: skip


def require_known(what: str, word: str, known: Sequence[str]) -> None:
    """UsageError, with those that are, where `word` isn't one of the `known`."""
    if word not in known:
        raise UsageError(f"'{word}' is no {what}.", hint=f"Choose one of {', '.join(known)}.")


@dataclass(frozen=True)
class Setting:
    """One option as a form asks for it. `kind` says what its text must be; `choices` where there are few.

    `help` stands where the value will be, so it is short; `about` is the whole sentence.
    """

    field: str
    label: str
    kind: Literal["text", "number", "words", "switch", "choice"] = "text"
    help: str = ""
    choices: tuple[str, ...] = ()
    about: str = ""


SETTINGS = (
    Setting("base", "base", help="the adapters' own", about="A folder or a repository."),
    Setting("host", "host", help="this machine only", about="Where it listens. With 127.0.0.1 only this machine can ask it."),
    Setting("port", "port", "number", about="Where clients ask."),
    Setting("loaded", "loaded", "number", "as needed, up to 16", about="How many adapters vLLM holds in memory at the same time; the others are loaded when they are asked for."),
    Setting("batch", "batch", "number", "8 different at most", about="How many different adapters one batch of requests may have; more take more memory on the GPU."),
    Setting("max_rank", "max rank", "number", "the adapters' own", about="The largest rank that vLLM has room for. A later adapter can't be larger."),
    Setting("dtype", "dtype", "choice", choices=DTYPES, about="What vLLM computes in."),
    Setting("max_model_len", "longest", "number", "tokens; base's own", about="How many tokens a question and its answer may have together."),
    Setting("pin", "pin", "words", "names kept loaded", about="pin: these names always stay loaded, so that nobody waits for them; others are put out when room is short."),
    Setting("keys", "keys file", help="tenants, limits", about="A file of tenants, the hashes of their keys, and what each may ask. Without one no key is asked for."),
    Setting("verify", "verify", "switch", "before it opens", about="Each adapter is asked, alone and all mixed, whether it answers as it was trained; clients are let in after that."),
    Setting("direct", "direct", "switch", "without the door", about="The door is our HTTP server in front of vLLM: clients ask it; it loads adapters, checks keys, counts, and lets names be"
            " changed while it runs. Direct goes without: vLLM itself listens."),
    Setting("allow_mismatch", "mismatch", "switch", "misfits too", about="Adapters are served though they don't fit the base; what doesn't fit is recorded."),
    Setting("prod", "prod", "switch", "gated ones only", about="prod is the tag for what is in production. With this, only versions are served that the tag prod means, or could mean by the gates"
            " in config.toml."),
    Setting("vllm", "vllm", help="found by itself", about="The command that starts vLLM."),
    Setting("extra", "for vLLM", "words", "--seed 1 ...", about="Handed on to vLLM as it is."),
)  # fmt: skip
"""The options of `serve`, as a form shows them."""


def values_of(wish: Wish) -> dict[str, str | bool]:
    """The values of SETTINGS, as a form holds them."""
    found: dict[str, str | bool] = {}
    for setting in SETTINGS:
        value = getattr(wish, setting.field)
        if setting.kind == "words":
            value = shlex.join(value)
        found[setting.field] = (
            value if isinstance(value, bool) else "" if value is None else str(value)
        )
    return found


def wish_of(names: Sequence[str], values: Mapping[str, str | bool]) -> Wish:
    """What a form asks for. UsageError where a text isn't what it should be."""
    read: dict[str, Any] = {}
    for setting in SETTINGS:
        value = values[setting.field]
        if setting.kind == "switch" or value == "":
            read[setting.field] = value
        elif setting.kind == "number":
            read[setting.field] = _whole(setting, str(value))
        elif setting.kind == "words":
            read[setting.field] = _words(setting, str(value))
        else:
            read[setting.field] = Path(str(value)) if setting.field == "keys" else value
    return replace(
        Wish(names=tuple(names)), **{key: value for key, value in read.items() if value != ""}
    )


def _whole(setting: Setting, text: str) -> int:
    most = {"port": 65535, "max_rank": 512}.get(setting.field, 10**9)
    if not text.isdecimal() or not 1 <= int(text[:12]) <= most:
        upto = f" up to {most}" if most < 10**9 else ""
        raise UsageError(f"{setting.label}: '{text}' is no whole number from 1{upto}.")
    return int(text)


def _words(setting: Setting, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(
            f"{setting.label}: '{text}' can't be read as words.", why=f"{error}."
        ) from None
