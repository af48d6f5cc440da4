"""Who asks: keys, and which adapters each may use.

The file is a list, in YAML or JSON. It holds digests of keys, never a key:

    - {name: acme, key: "sha256:<hex>", adapters: ["support/*", "base"], rate: 60/min, concurrent: 8}
    - {name: watch, key: "sha256:<hex>", adapters: [], metrics: true}

name        what metrics call the tenant
key         the SHA-256 of the key, or a list of several while one replaces another. A plain hash is enough because
            `new_key` draws 256 random bits; a word that somebody chose has no place here
adapters    patterns of names (* and ?). `support/tone` means the adapter with all its tags and versions, one with a tag
            (`support/tone:v2`) that tag alone. `base` is the base, `*` everything
rate        requests per s, min, h or d
burst       how many of them may come at once; left out, ten seconds' worth
concurrent  answers that may be written at once; more are refused. Left out, a share of the server, and more wait
metrics     may read /metrics

A file that changes is read again within a second. One that can't be read or understood changes nothing and is reported.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import json
import math
import re
import secrets
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import yaml

from adapterhub.errors import AdapterHubError, FormatError, NotFoundError
from adapterhub.serve.door.refusal import Refused

PREFIX = "ah-"
"""What a key starts with, so that scanners for leaked secrets can know it."""

_BASE = "base"
_LOOK_SECONDS = 1.0
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_RATE = re.compile(r"(\d+(?:\.\d+)?) ?/ ?(s|min|h|d)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASHED = re.compile(r"sha256:[0-9a-f]{64}")
_RESERVED = ("anonymous", "unknown")  # metrics use them
_BURST_SECONDS = 10

Signature = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tenant:
    """Who asks. `rate` is in requests a second; None is no limit. `keyed`: known by a key."""

    name: str
    patterns: tuple[str, ...]
    rate: float | None = None
    burst: int = 1
    concurrent: int | None = None
    metrics: bool = False
    keyed: bool = True

    def may(self, model: str, base: str) -> bool:
        """Whether it may ask for `model`, where `base` is what the base is called.

        The name alone decides, known or not: a tenant can't tell another's adapter from one that doesn't exist.
        """
        if model == base:
            return any(pattern in (_BASE, "*") for pattern in self.patterns)
        name = model.partition("@")[0].partition(":")[0]
        return any(
            fnmatch.fnmatchcase(model if ":" in pattern else name, pattern)
            for pattern in self.patterns
            if pattern != _BASE
        )


ANONYMOUS = Tenant("anonymous", ("*",), metrics=True, keyed=False)
"""Everybody, where there is no key file."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A line of the file, as it is written."""

    name: str
    key: str | list[str]
    adapters: list[str]
    rate: str | None = None
    burst: int | None = None
    concurrent: int | None = None
    metrics: bool = False


class Keys:
    """The tenants of a file, or everybody without one.

    `log` gets a sentence for each thing an operator should know; `clock` gives monotonic seconds.
    """

    def __init__(
        self, path: Path | None, log: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._path = path
        self._log = log
        self._clock = clock
        self._tenants: tuple[tuple[bytes, Tenant], ...] = ()
        self._seen: Signature | None = None
        self._looked = clock()
        self._exposed = False

    @classmethod
    def load(
        cls,
        path: Path | None,
        log: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Keys:
        """Reads the file now.

        Raises:
            NotFoundError: it isn't there.
            FormatError: it isn't a list of tenants; the message says where.
        """
        keys = cls(path, log, clock)
        if path is not None:
            try:
                keys._seen = keys._signature(path)
            except OSError as error:
                raise _unreadable(path, error) from error
            keys._tenants = _read(path)
        return keys

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return self._path is not None

    @property
    def tenants(self) -> list[Tenant]:
        """Everybody in the file, each once."""
        return list(dict.fromkeys(tenant for _, tenant in self._tenants))

    def who(self, authorization: str | None) -> Tenant:
        """The tenant of an Authorization header. Refused 401 without a key, or with one that isn't known."""
        if self._path is None:
            return ANONYMOUS
        self._look(self._path)
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _no_entry("This server needs a key: send it as `Authorization: Bearer KEY`.")
        asked = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, tenant in self._tenants:  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, asked):
                found = tenant
        if found is None:
            raise _no_entry("This key is not known here.")
        return found

    def _look(self, path: Path) -> None:
        """Reads the file again where it has changed, at most once a second."""
        if self._clock() - self._looked < _LOOK_SECONDS:
            return
        self._looked = self._clock()
        try:
            seen = self._signature(path)
            if seen == self._seen:
                return
            self._seen = seen
            self._tenants = _read(path)
        except OSError as error:
            if self._seen is not None:
                self._seen = None
                self._log(f"{_unreadable(path, error).what} The keys read before stay valid.")
        except AdapterHubError as error:
            self._log(f"{error.what} {error.why} The keys read before stay valid.")
        else:
            self._log(f"Read {path} again: {len(self.tenants)} tenants.")

    def _signature(self, path: Path) -> Signature:
        """What changes with the file's contents; says so where others may read it."""
        found = path.stat()
        exposed = bool(stat.S_IMODE(found.st_mode) & 0o077)
        if exposed and not self._exposed:
            self._log(f"Others on this machine can reach {path}: chmod 600 {path}")
        self._exposed = exposed
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def new_key(name: str, adapters: Sequence[str] = ("*",)) -> tuple[str, str]:
    """A key to hand over, and the line of the file that lets it in. The key is nowhere else."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, line_of(name, key, adapters)


def line_of(name: str, key: str, adapters: Sequence[str] = ("*",), **fields: object) -> str:
    """The line of the file that lets `key` in, whoever made it."""
    entry = {"name": name, "key": _hash(key), "adapters": list(adapters), **fields}
    line = f"- {json.dumps(entry)}"
    _parse(line, "the new line")
    return line


def _hash(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def _read(path: Path) -> tuple[tuple[bytes, Tenant], ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise _broken(path, "it is no text in UTF-8") from error
    return _parse(text, path)


def _parse(text: str, where: object) -> tuple[tuple[bytes, Tenant], ...]:
    """Digest of a key -> its tenant. FormatError for anything that isn't understood to the last word."""
    try:
        entries = msgspec.convert(yaml.safe_load(text), list[_Entry])
    except yaml.YAMLError as error:
        raise _broken(where, f"it is no YAML: {' '.join(str(error).split())}") from error
    except msgspec.ValidationError as error:
        raise _broken(where, f"{error}") from error
    found: dict[bytes, Tenant] = {}
    names: set[str] = set()
    for entry in entries:
        if not _NAME.fullmatch(entry.name) or entry.name in _RESERVED or entry.name in names:
            raise _broken(where, f"'{entry.name}' can't be the name of a tenant, or is one twice")
        names.add(entry.name)
        hashes = [entry.key] if isinstance(entry.key, str) else entry.key
        for hashed in hashes:
            if not _HASHED.fullmatch(hashed):
                raise _broken(where, f"a key of {entry.name} isn't sha256: and 64 hex digits")
            if (
                found.setdefault(bytes.fromhex(hashed[7:]), _tenant(entry, where)).name
                != entry.name
            ):
                raise _broken(where, f"a key of {entry.name} is another tenant's too")
    return tuple(found.items())


def _tenant(entry: _Entry, where: object) -> Tenant:
    rate, burst = None, 1
    if entry.rate is not None:
        parts = _RATE.fullmatch(entry.rate.strip())
        rate = float(parts[1]) / _UNITS[parts[2]] if parts else 0.0
        if not rate:
            raise _broken(where, f"the rate of {entry.name} isn't like 60/min or 5/s")
        burst = max(1, math.ceil(rate * _BURST_SECONDS)) if entry.burst is None else entry.burst
    elif entry.burst is not None:
        raise _broken(where, f"{entry.name} has a burst and no rate")
    if burst < 1 or (entry.concurrent is not None and entry.concurrent < 1):
        raise _broken(where, f"burst and concurrent of {entry.name} must be 1 or more")
    return Tenant(entry.name, tuple(entry.adapters), rate, burst, entry.concurrent, entry.metrics)


def _no_entry(message: str) -> Refused:
    return Refused(
        401,
        message,
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _broken(where: object, why: str) -> FormatError:
    return FormatError(
        f"The keys in {where} can't be used.",
        why=f"{why[0].upper()}{why[1:]}.",
        hint="A line is made by: adapterhub server key NAME",
    )


def _unreadable(path: Path, error: OSError) -> NotFoundError:
    return NotFoundError(
        f"The key file {path} can't be read: {error.strerror or error}.",
        hint="Make a first line with: adapterhub server key NAME",
    )
