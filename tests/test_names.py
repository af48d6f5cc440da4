"""Names: what is allowed, that what is written can be read again, and that no name leads out of the store."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapterhub.errors import UsageError
from adapterhub.names import DigestPointer, Name, parse_name, parse_pointer, slug
from adapterhub.store.layout import Layout

LETTERS = string.ascii_letters + string.digits
parts = st.builds(
    lambda first, rest: first + rest,
    st.sampled_from(LETTERS),
    st.text(LETTERS + "._-", max_size=95),
)


def accepted(text: str) -> Name | None:
    try:
        return parse_name(text)
    except UsageError:
        return None


@given(st.lists(parts, min_size=1, max_size=2), st.none() | parts)
def test_a_name_as_written_is_read_as_the_same_name(path: list[str], tag: str | None) -> None:
    name = accepted("/".join(path) + (f":{tag}" if tag else ""))
    if name is not None:
        assert parse_name(str(name)) == name
        assert parse_pointer(str(name)) == name


@given(st.text() | st.text("ab/.:@\\_-~\0\n "))
@example("a/../b")
@example("con")
@example("tone\n")
@example("a:b:c")
@example("é")
def test_nothing_that_is_accepted_leaves_the_folder_of_refs(text: str) -> None:
    name = accepted(text)
    if name is None:
        return
    refs = Path("/store/refs")
    place = Layout(Path("/")).ref(name)
    assert Path(os.path.normpath(place)).is_relative_to(refs)
    inside = place.relative_to(refs).parts
    assert len(inside) == 3
    assert all(part.isascii() and part[0] != "." and "/" not in part for part in inside)


@given(st.text())
@example("con")
@example("con.v1")
@example("aux.safetensors")
@example("LPT1.2024-01-01")
@example("x" * 300)
@example("..")
@example("_private")
@example("Ünïcödé")
@example("a.")
def test_a_name_proposed_for_a_folder_is_always_a_legal_name(folder: str) -> None:
    proposed = slug(folder)
    assert parse_name(proposed) == Name("", proposed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a/",
        "/a",
        "a/b/c",
        "..",
        "../a",
        "a/..",
        ".hidden",
        "-flag",
        "_",
        "a b",
        "a\\b",
        "a\0b",
        "a\n",
        "a:",
        ":v1",
        "a:b:c",
        "a:../b",
        "tone.",
        "nul",
        "NUL.txt",
        "com1",
        "support/aux",
        "tone:prn",
        "x" * 97,
        "ns/" + "x" * 97,
        "a:" + "x" * 97,
        "naïve",
        "\x1b[31mred",
        "$(id)",
    ],
)
def test_a_bad_name_is_refused_with_the_form_of_a_good_one(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_name(text)
    assert "not a valid name" in caught.value.what
    assert "support/tone:v2" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tone", Name("", "tone")),
        ("tone:latest", Name("", "tone")),
        ("support/tone:v2", Name("support", "tone", "v2")),
        ("a.b_c-d", Name("", "a.b_c-d")),
        ("Llama-3.1/7B", Name("Llama-3.1", "7B")),
        ("x" * 96, Name("", "x" * 96)),
    ],
)
def test_a_good_name_is_taken_apart(text: str, name: Name) -> None:
    assert parse_name(text) == name


def test_the_default_tag_is_not_written() -> None:
    assert str(parse_name("support/tone:latest")) == "support/tone"
    assert str(parse_name("support/tone:v2")) == "support/tone:v2"


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        ("@1f2e3d", DigestPointer("1f2e3d")),
        ("@sha256:1F2E3D", DigestPointer("1f2e3d")),
        ("tone@sha256:1f2e3d", DigestPointer("1f2e3d", Name("", "tone"))),
        ("support/tone:v2@1f2e3d", DigestPointer("1f2e3d", Name("support", "tone", "v2"))),
    ],
)
def test_a_digest_is_pointed_at_by_its_beginning(text: str, pointer: DigestPointer) -> None:
    assert parse_pointer(text) == pointer


@pytest.mark.parametrize(
    "text",
    ["@", "@1f2e3", "@xyzxyz", "@sha256:", "tone@", "tone@md5:1f2e3d", "@" + "a" * 65, "@../../x"],
)
def test_what_is_no_digest_is_refused_with_the_length_it_needs(text: str) -> None:
    with pytest.raises(UsageError, match="6 to 64 hexadecimal"):
        parse_pointer(text)
