"""Manifests and canonical JSON: one encoding of the same facts, unknown fields kept, unknown schemas refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.canonical import canonical_bytes, digest_of, parse_object
from adapterhub.errors import FormatError, UnsupportedError
from adapterhub.manifest import (
    BaseClaim,
    FileEntry,
    LoraFacts,
    Manifest,
    is_commit,
    is_safe_relative_path,
    make_attestation,
    make_manifest,
    parse_attestation,
    parse_manifest,
)

SOME = "sha256:" + "ab" * 32
COMMIT = "0123456789" * 4

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
documents = st.dictionaries(
    texts,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=5,
)


def a_manifest(**fields: Any) -> Manifest:
    facts = LoraFacts(rank=4, alpha=8.0, targets=["q"], modules=1, parameters=512, dtype="float32")
    made = make_manifest(
        kind="lora",
        base=BaseClaim("org/base"),
        lora=facts,
        files=[FileEntry("b.txt", SOME, 2), FileEntry("a.txt", SOME, 1)],
        content=SOME,
    )
    return parse_manifest(canonical_bytes({**made.document, **fields}))


def one_file(path: str, digest: str = SOME, size: int = 1) -> list[dict[str, Any]]:
    return [{"path": path, "digest": digest, "size": size}]


@given(documents)
def test_canonical_json_says_the_same_and_is_a_fixed_point(document: dict[str, Any]) -> None:
    data = canonical_bytes(document)
    assert json.loads(data) == document
    assert canonical_bytes(json.loads(data)) == data


@given(documents)
def test_the_order_of_keys_is_no_fact(document: dict[str, Any]) -> None:
    assert canonical_bytes(dict(reversed(list(document.items())))) == canonical_bytes(document)


def test_canonical_json_has_no_blanks_sorted_keys_and_plain_utf8() -> None:
    assert (
        canonical_bytes({"b": [1.0, 2.5, True], "a": "é"}) == '{"a":"é","b":[1,2.5,true]}'.encode()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}, "\ud800"])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(FormatError):
        canonical_bytes({"x": value})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"a":1,"a":2}', "'a' appears twice"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not valid JSON"),
        (b'{"a":' + b'{"a":' * 100_000, "not valid JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b'{"a":"' + b"x" * (17 * 2**20) + b'"}', "too large"),
        (b'{"a":["\\ud800"]}', "half of a surrogate pair"),
        (b'{"\\udc00\\ud800":0}', "half of a surrogate pair"),
        (b'{"a":"\\\\\\ud83d\\\\ude00"}', "half of a surrogate pair"),
        (b'{"a":1e999}', "too large for a number"),
        (b'{"a":' + b"[" * 100 + b"0" + b"]" * 100 + b"}", "nested too deeply"),
    ],
)
def test_hostile_json_is_refused_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_object(data, "It")
    assert why in str(caught.value)


def test_what_is_only_near_to_that_is_taken() -> None:
    data = b'{"a":"\\ud83d\\uDE00","b":"\\\\ud800","c":' + b"[" * 99 + b"1e300" + b"]" * 99 + b"}"
    document = parse_object(data, "It")
    assert (document["a"], document["b"]) == ("\U0001f600", "\\ud800")
    assert json.loads(canonical_bytes(document)) == document


def test_the_digest_of_a_manifest_is_the_sha256_of_its_bytes() -> None:
    manifest = a_manifest()
    assert manifest.digest == "sha256:" + hashlib.sha256(manifest.data).hexdigest()
    assert parse_manifest(manifest.data) == manifest


def test_the_order_of_files_is_no_fact() -> None:
    assert [entry.path for entry in a_manifest().files] == ["a.txt", "b.txt"]


def test_a_manifest_holds_no_time_path_host_or_version() -> None:
    assert set(a_manifest().document) == {"schema", "kind", "base", "lora", "files", "content"}


def test_fields_of_a_later_version_are_kept_and_hashed() -> None:
    plain = a_manifest()
    later = a_manifest(tomorrow={"x": [1, 2]}, base={"repo": "org/base", "sampled": True})
    assert later.document["tomorrow"] == {"x": [1, 2]}
    assert later.document["base"]["sampled"] is True
    assert b'"tomorrow":{"x":[1,2]}' in later.data
    assert later.digest != plain.digest
    assert later.digest == digest_of(later.data)


@pytest.mark.parametrize("schema", ["adapterhub.manifest/2", "other/1", None, 1])
def test_an_unknown_schema_is_refused_by_its_name(schema: object) -> None:
    with pytest.raises(UnsupportedError) as caught:
        a_manifest(schema=schema)
    assert repr(schema) in caught.value.what
    assert "adapterhub.manifest/1" in caught.value.why
    assert "Upgrade" in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"files": one_file("../x")}, "leaves the folder"),
        ({"files": one_file("/etc/passwd")}, "leaves the folder"),
        ({"files": one_file("a/../../x")}, "leaves the folder"),
        ({"files": one_file("C:/x")}, "leaves the folder"),
        ({"files": one_file("a\\..\\x")}, "leaves the folder"),
        ({"files": one_file("a\0")}, "leaves the folder"),
        ({"files": one_file("")}, "leaves the folder"),
        ({"files": one_file("a//b")}, "leaves the folder"),
        ({"files": one_file("x", "sha256:../../x")}, "wrong digest"),
        ({"files": one_file("x", SOME.upper())}, "wrong digest"),
        ({"files": one_file("x", SOME + "\n")}, "wrong digest"),
        ({"files": one_file("x", SOME, -1)}, "wrong digest or size"),
        ({"files": one_file("x", SOME, 2**63)}, "size"),
        ({"files": one_file("x", SOME, 2**62) + one_file("y", SOME, 2**62)}, "No disk"),
        ({"files": one_file("x") * 2}, "same path"),
        ({"files": one_file("x") + one_file("xx/y") + one_file("x/y/z")}, "folder of another"),
        ({"files": one_file("x", SOME, 1)[0]}, "array"),
        ({"content": "abc"}, "content is not"),
        ({"kind": 3}, "kind"),
        ({"lora": {"rank": "4"}}, "rank"),
        ({"base": None}, "base"),
    ],
)
def test_a_wrong_manifest_is_refused_naming_the_field(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(FormatError) as caught:
        a_manifest(**fields)
    assert why in str(caught.value)


def test_an_attestation_keeps_unknown_fields_and_hangs_on_its_subject() -> None:
    made = make_attestation(SOME, "eval", {"perplexity": 3.5}, "2026-11-22T00:00:00+00:00")
    later = parse_attestation(canonical_bytes({**made.document, "signature": "..."}))
    assert later.subject == SOME
    assert later.body == {"perplexity": 3.5}
    assert later.document["signature"] == "..."


@pytest.mark.parametrize("fields", [{"subject": "x"}, {"body": []}, {"type": None}])
def test_a_wrong_attestation_is_refused(fields: dict[str, Any]) -> None:
    made = make_attestation(SOME, "note", {}, "2026-11-22T00:00:00+00:00")
    with pytest.raises(FormatError):
        parse_attestation(canonical_bytes({**made.document, **fields}))


def test_only_a_whole_commit_hash_is_a_revision_that_cannot_move() -> None:
    assert is_commit(COMMIT)
    assert not any(
        map(
            is_commit,
            ["main", COMMIT[:-1], COMMIT.upper().replace("0", "A"), COMMIT + "\n", None, 3],
        )
    )


@given(st.text("ab/.\\:~ \0", max_size=12))
def test_a_safe_path_never_leaves_its_folder(path: str) -> None:
    import ntpath
    import posixpath

    if is_safe_relative_path(path):
        for flavour, root in ((posixpath, "/root"), (ntpath, "c:\\root")):
            joined = flavour.normpath(flavour.join(root, path))
            assert joined.startswith(root)
            assert joined != root
