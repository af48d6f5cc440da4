"""What the readers are first given: something sound each, then what was a fault once or may well be one.

From these the fuzzers go on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.formats.single import METADATA_KEY
from adapterhub.manifest import BaseClaim, FileEntry, LoraFacts, make_attestation, make_manifest
from tests.formats.raw import file_of, pair, sound_file, table_of
from tests.fuzz.using import ATTESTATIONS, BODIES, COUNTS, MANIFEST

SPLIT = b"\n-- weights --\n"
"""Between the two files of the target `adapter`."""
A, B = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
DEEP = b"[" * 700 + b"]" * 700
"""Deep enough for a parser in C to be content with it, and for a function that calls itself not."""
ODD = ("\ud800", "x" * 5000, "../../x", "~nobody-here", "a\0b")
"""Texts that no name, path or database takes without a word."""
TRASH = "20260101-000000-abcdef"


def _with(document: bytes, key: str, value: bytes) -> bytes:
    """A JSON object with one more field."""
    return document.rstrip()[:-1] + b', "' + key.encode() + b'": ' + value + b"}"


def _spoiled(document: bytes) -> list[bytes]:
    """A sound document with one more field that JSON can say and hardly anything else can hold."""
    half = _with(document, "\\ud800", b"0")
    return [half, *(_with(document, "other", value) for value in (DEEP, b'"\\ud800"', b"1e999"))]


def _config(**fields: object) -> bytes:
    plain = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 4, "lora_alpha": 8}
    return json.dumps({**plain, "target_modules": ["q_proj"], **fields}).encode()


_MANIFEST = make_manifest(
    kind="lora",
    base=BaseClaim("org/base", "0123456789" * 4, {"repo": "org/base-4bit"}),
    lora=LoraFacts(4, 8.0, ["q_proj"], 1, 512, "float32", {"v": 2}, {"v": 4.5}),
    files=[FileEntry("a/b.txt", A, 3), FileEntry(WEIGHTS_NAME, B, 2048)],
    content=A,
).data
_ATTESTATION = make_attestation(A, "provenance", {"event": "merged", "parents": [{"digest": B, "name": "tone"}]}, "2026-01-01T00:00:00.000001+00:00").data  # fmt: skip


def _line(**fields: object) -> bytes:
    plain = {
        "time": "2026-01-01T00:00:00+00:00",
        "who": "a@b",
        "op": "add",
        "ref": "tone",
        "before": None,
        "after": A,
    }
    return json.dumps({**plain, "why": "add tone", "id": "0123", "about": "", **fields}).encode() + b"\n"  # fmt: skip


_JOURNAL = b"".join((
    _line(), _line(op="done", ref="", after=None, id="1", about="0123"),
    _line(op="tag", ref="a/legal:v1", id="2"), _line(op="tag", ref="tone", before=A, after=B, id="2"),
    _line(op="cancel", ref="", after=None, id="3", about="2"),
    _line(op="gc", ref="", after=None, id="4", about=f"sweep {TRASH}"), _line(op="done", ref="", after=None, id="5", about="4"),
    _line(op="rm", before=A, after=None, id="6"),
))  # fmt: skip


def _attested(**fields: object) -> bytes:
    plain = {"time": "2026-01-01T00:00:00+00:00", "subject": A, "digest": B, "type": "note"}
    return json.dumps({**plain, **fields}).encode() + b"\n"


_ATTESTED = _attested()
_LEASE = json.dumps({
    "kind": "serve", "digests": [A, B], "about": "a server", "created": "2026-01-01T00:00:00+00:00", "pid": 12,
    "host": os.uname().nodename, "boot": "x", "space": "pid:[1]", "started": 3, "id": "serve-1",
}).encode()  # fmt: skip
_SETTINGS = b'[store]\ngrace = "14d"\ntrash = "2.5w"\nkeep_releases = 3\n'
_PLACES = b"".join(
    json.dumps({"digest": MANIFEST.digest, "folder": folder}).encode() + b"\n"
    for folder in ("/nowhere/tone", "rel", "~", "a\0b", "x" * 5000, "\ud800", "\udcff")
)
_CONTENTS = json.dumps([f"manifests/sha256/ab/{A[7:]}", f"blobs/sha256/cd/{B[7:]}", f"views/{A[7:]}"]).encode()  # fmt: skip


def _record(**fields: object) -> bytes:
    plain = {"repo": "org/base", "revision": None, "path": "/nowhere", "fingerprint": A}
    return json.dumps({**plain, "parameters": 3, "architecture": None, **fields}).encode()


_RECORD = _record()
_SMALL = pair("q_proj", rank=4, width=4, out=4, fill=b"\0\0\x80?")
TENSOR_FILES = (
    sound_file(_SMALL, padding=5),
    sound_file({"a": ("BF16", [2, 1], b"\1\2\3\4"), "b": ("F8_E4M3", [3], b"abc"), "c": ("I64", [0], b""), "d": ("C64", [], bytes(8))}),
    file_of({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)),
    file_of({"__metadata__": {"format": "pt"}}, length=2**63),
    file_of(b'{"a":' + DEEP + b"}"),
    sound_file({"a" * 5000: ("F32", [1], bytes(4))}),
)  # fmt: skip
_SINGLE_FILES = tuple(
    file_of({"__metadata__": {METADATA_KEY: metadata}, **table_of(tensors)}, b"".join(data for _, _, data in tensors.values()))
    for metadata, tensors in (
        (_config().decode(), _SMALL),
        (json.dumps({"transformer.r": 4, "transformer.peft_type": "LORA"}), {f"transformer.{k}": v for k, v in _SMALL.items()}),
        ("\ud800", _SMALL),
    )
)  # fmt: skip
_CONFIGS = (
    _config(),
    _config(rank_pattern={r"^model\.layers\.[0-9]+\.mlp$": 2}, alpha_pattern={"(q|k)_proj": 1.5}, use_rslora=True),
    _config(rank_pattern={"(a+)+$": 2, "(.*.*.*.*)*x": 1}, modules_to_save=["head"], revision="0123456789" * 4),
    _config(rank_pattern={r"(?:q_proj){e<=3}": 2, "[[:alpha:]]+": 1, "(?i)Q": 3, "x{99999}": 1, "(x{1000}){1000}": 1}),
    _config(lora_alpha=1e308, use_dora=True, init_lora_weights="pissa", base_model_name_or_path="/a/path"),
    _with(_config(), "other", DEEP),
    b'{"peft_type": "LORA", "r": ' + b"9" * 5000 + b"}",
)  # fmt: skip


def _parquet() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist([{"messages": turns}, {"messages": turns}]), sink)
    written: bytes = sink.getvalue().to_pybytes()
    return written


_ROWS = tuple(
    json.dumps([row]).encode()
    for row in (
        {"instruction": "q", "input": "", "output": "a", "history": [["b", "c"]]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool", "content": "3"},
            ],
            "tools": [{"name": "f"}],
        },
        {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "[{}]"}], "tools": "[1]"},
        {"prompt": "q", "completion": [{"role": "assistant", "content": "{{name}}<tool_call>{</tool_call>"}]},
        {"text": "\ud800"},
    )
)  # fmt: skip
_DEEP_CALL = b'[{"function": {"name": "f", "arguments": {"a": ' + DEEP + b"}}}]"
_PAIRS = tuple(
    json.dumps([row]).encode()
    for row in (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
        },
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": []},
    )
)  # fmt: skip
SEEDS: Mapping[str, tuple[bytes, ...]] = {
    "manifest": (_MANIFEST, *_spoiled(_MANIFEST)),
    "attestation": (_ATTESTATION, *_spoiled(_ATTESTATION)),
    "stored manifest": (MANIFEST.data, *_spoiled(MANIFEST.data), *COUNTS),
    "stored attestation": (*ATTESTATIONS, *_spoiled(ATTESTATIONS[0]), *BODIES),
    "ref": (f"{A}\n".encode(), b"sha256:", b""),
    "journal": (_JOURNAL, _JOURNAL[:-20], _with(_line(), "other", DEEP) + b"\n"),
    "catalogue": (
        _JOURNAL,
        _ATTESTED,
        *(line + b"\n" for line in _spoiled(_ATTESTED)),
        *(_line(after=text) for text in ODD),
        *(_attested(subject=text) + _attested(digest=text) for text in ODD),
    ),
    "lease": (_LEASE, *_spoiled(_LEASE)),
    "settings": (_SETTINGS, b"a=" + b"[" * 5000, b"a=" + b"9" * 5000),
    "places": (_PLACES, _with(_PLACES.partition(b"\n")[0], "other", DEEP)),
    "format and id": (b"1\n", b"\xff", b"2", b"0123456789abcdef"),
    "file name": (
        b"tone",
        b"\xff" * 64,
        b"**" + b"a" * 62,
        b"99999999-999999-abcdef",
        "٠".encode() * 14,
        b"con",
        b".x",
    ),
    "trash contents": (_CONTENTS, b'["../../x"]', b'["/etc/passwd"]', b'[""]', b"[[]]", DEEP),
    "safetensors": TENSOR_FILES,
    "config": _CONFIGS,
    "adapter": (_config() + SPLIT + TENSOR_FILES[0],),
    "single file": _SINGLE_FILES,
    "base": (
        b'{"model_type": "gpt2", "tie_word_embeddings": true}',
        b'{"a":' + DEEP + b"}",
        b'{"model_type": [], "architectures": 5, "text_config": [], "tie_word_embeddings": {}}',
    ),
    "base index": (b'{"weight_map": {"q.weight": "model-1.safetensors"}}',),
    "base record": (
        _RECORD,
        b"{}",
        *(_record(path=f"/{text}") for text in ODD),
        *(_record(repo=text) for text in ODD),
        _record(path=""),
        _record(parameters=10**400),
        _record(architecture=[]),
    ),
    "data rows": (
        *_ROWS,
        b'[{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": '
        + _DEEP_CALL
        + b"}]}]",
        b'[{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": '
        + DEEP
        + b"}]",
        b"instruction,output\nq,a\n",
        b'instruction,output\n"q,a\n',
        b'{"text": "a"}\n{"text": ' + b"9" * 5000 + b"}",
    ),
    "preferences": _PAIRS,
    "parquet": (_parquet(), _parquet()[:-40], b"PAR1" + b"\xff" * 40 + b"PAR1"),
    "tensor name": (
        b"base_model.model.q.lora_A.default.weight",
        b"a.modules_to_save.b.modules_to_save.c.weight",
        b"a" + b".modules_to_save" * 2000 + b".x",
        b"a.lora_E.x.modules_to_save.c.weight",
    ),
    "argument": (
        b"tone",
        *(text.encode("utf-8", "replace") for text in ODD),
        b"\xff",
        b"9" * 30,
        b"9" * 5000,
        b">=" + b"9" * 30,
    ),
    "name": (b"support/tone:v2", b"tone@sha256:1f2e3d", b"a\x00b", b"con.x"),
    "address": (
        b"hf://org/repo@main/folder",
        b"hf://gpt2@refs%2Fpr%2F1/a/b",
        b"hf://models/a/b",
        b"hf://models/models/a@v1/b",
    ),
}
"""The readers' names (methods of `Readers`), and what each is first given: something sound, then what was a fault once."""
NAMES = tuple(SEEDS)
BINARY = frozenset({"safetensors", "adapter", "single file", "parquet"})
