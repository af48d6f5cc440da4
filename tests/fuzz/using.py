"""What people do with a store of which somebody else wrote a part: its commands, and what they must never say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from adapterhub.canonical import DIGEST_PREFIX, digest_of
from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.formats.peft_config import CONFIG_NAME
from adapterhub.manifest import (
    AttestationType,
    BaseClaim,
    FileEntry,
    LoraFacts,
    make_attestation,
    make_manifest,
)
from adapterhub.store.layout import Layout
from tests.cli.calling import call
from tests.formats.raw import pair, sound_file

FAULTS = ("Something went wrong inside adapterhub", "The operating system says so")
"""How the command line tells of an error that isn't ours, and of a path that nobody judged before the system did."""

FILES: Mapping[str, bytes] = {
    CONFIG_NAME: b'{"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 4, "lora_alpha": 8}',
    WEIGHTS_NAME: sound_file(pair("q_proj", rank=4, width=4, out=4, fill=b"\0\0\x80?")),
    "README.md": b"---\nlicense: mit\n---\n# Tone\n",
}
MANIFEST = make_manifest(
    kind="lora",
    base=BaseClaim("org/base"),
    lora=LoraFacts(4, 8.0, ["q_proj"], 1, 32, "float32"),
    files=[FileEntry(path, digest_of(data), len(data)) for path, data in FILES.items()],
    content=digest_of(b"tensors"),
)
"""A sound adapter of three small files."""
_PARENT = {"digest": digest_of(b"parent"), "name": "legal"}
_RECIPE = {"method": "ties", "parents": [_PARENT], "weights": [0.5], "parameters": {"density": 0.2}}
_TOLD: tuple[tuple[AttestationType, Mapping[str, object]], ...] = (
    ("provenance", {"event": "imported", "notes": ["no base"], "claimed_base": "org/base"}),
    (
        "provenance",
        {"event": "merged", "parents": [_PARENT], "recipe": _RECIPE, "report": {"rank": 4, "error": 0.1}},
    ),
    (
        "provenance",
        {"event": "trained", "steps": 3, "recipe": {"method": "qlora", "base": "org/base"}, "data": {"rows": 5},
         "metrics": {"held_out": {"perplexity_before": 3.5, "perplexity_after": 2.5}}, "seconds": 1.5},
    ),
    (
        "base",
        {"repo": "org/base", "revision": "0123456789" * 4, "fingerprint": digest_of(b"base"), "how": "checked",
         "modules_found": 1, "modules_total": 1, "allowed_mismatch": []},
    ),
    ("eval", {"result": {"perplexity": 3.5, "base_perplexity": 4.5, "rows": 5, "tokens": 7}, "data": {"digest": "x"}}),
    ("note", {"text": "good", "tags": ["a", {"b": [1]}]}),
)  # fmt: skip
ATTESTATIONS = tuple(
    make_attestation(MANIFEST.digest, kind, body, f"2026-01-0{day}T00:00:00+00:00").data
    for day, (kind, body) in enumerate(_TOLD, 1)
)
"""What this project says of an adapter, one of each kind."""
COUNTS = tuple(
    MANIFEST.data.replace(before, before[:-1] + b"9" * 400)
    for before in (b'"parameters":32', b'"rank":4', b'"size":28')
)
"""Manifests of more than any database can count."""
_A = digest_of(b"base")
_ODD: tuple[tuple[AttestationType, Mapping[str, object]], ...] = (
    ("provenance", {"event": "imported", "notes": 5}),
    ("provenance", {"event": "imported", "notes": {"a": None}}),
    ("base", {"fingerprint": _A, "repo": "x" * 5000}),
    ("base", {"fingerprint": _A, "repo": "~nobody-here"}),
    ("base", {"fingerprint": _A, "repo": "org/base", "revision": 5}),
    ("base", {"fingerprint": _A, "repo": "org/base", "revision": "../../x"}),
    ("note", {"a": [{"b": 1}, 5]}),
)
BODIES = tuple(make_attestation(MANIFEST.digest, kind, body, "").data for kind, body in _ODD)
"""What this project never says of an adapter, though the form is right."""


def put(layout: Layout, manifest: bytes, attestation: bytes = b"") -> None:
    """Writes an adapter called `tone`, and perhaps something told of it, as the store itself would."""
    digest, told = digest_of(manifest), digest_of(attestation)
    time = "2026-01-01T00:00:00+00:00"
    line = {"time": time, "who": "a@b", "op": "add", "ref": "tone", "before": None, "after": digest, "why": "", "id": "1"}  # fmt: skip
    files = {
        layout.manifest(digest): manifest,
        layout.refs / "_" / "tone" / "latest": f"{digest}\n".encode(),
        layout.journal: json.dumps(line).encode() + b"\n",
        **{layout.blob(digest_of(data)): data for data in FILES.values()},
    }
    if attestation:
        line = {"time": time, "subject": digest, "digest": told, "type": "note"}
        files[layout.attested] = json.dumps(line).encode() + b"\n"
        files[layout.attestations(digest) / told.removeprefix(DIGEST_PREFIX)] = attestation
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def commands(home: Path, *calls: tuple[str, ...]) -> None:
    """Runs commands on the store at `home`; whatever they find there, they say it in words of their own."""
    with _at(home):
        for words in calls:
            said = call(*words)
            assert not any(fault in said.err for fault in FAULTS), (words, said.err)


@contextmanager
def _at(home: Path) -> Iterator[None]:
    before = os.environ.get("ADAPTERHUB_HOME")
    os.environ["ADAPTERHUB_HOME"] = str(home)
    try:
        yield
    finally:
        if before is None:
            del os.environ["ADAPTERHUB_HOME"]
        else:
            os.environ["ADAPTERHUB_HOME"] = before
