"""The key file: what it may say, when it is read again, and that a broken one opens nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from adapterhub.errors import FormatError, NotFoundError
from adapterhub.serve.door.keys import ANONYMOUS, Keys, Tenant, new_key
from adapterhub.serve.door.refusal import Refused

BASE = "org/tiny"


def line(name: str, key: str, more: str = "") -> str:
    return f'- {{name: {name}, key: "sha256:{hashlib.sha256(key.encode()).hexdigest()}", adapters: ["a/*"]{more}}}\n'


class File:
    """A key file that is read by hand-made time."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.now = 0.0
        self.said: list[str] = []
        self.write(text)
        self.keys = Keys.load(path, self.said.append, lambda: self.now)

    def write(self, text: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o600)
        new.replace(self.path)

    def who(self, key: str) -> str | None:
        """The tenant, a moment later."""
        self.now += 2
        try:
            return self.keys.who(f"Bearer {key}").name
        except Refused:
            return None


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "keys.yaml", line("acme", "one"))


def test_a_changed_file_counts_from_the_next_second_on(file: File) -> None:
    assert file.who("one") == "acme"
    file.write(line("acme", "two") + line("bolt", "three", ", rate: 90/min"))
    assert file.keys.who("Bearer one").name == "acme"  # it isn't looked at for every request
    assert (file.who("one"), file.who("two"), file.who("three")) == (None, "acme", "bolt")
    bolt = file.keys.who("bearer three")
    assert (bolt.rate, bolt.burst, bolt.concurrent, bolt.metrics) == (1.5, 15, None, False)


def test_a_broken_file_changes_nothing_and_is_reported_once(file: File) -> None:
    for broken in ("", "- {name: acme", line("acme", "x", ", adaptors: [b]"), "- 3\n", "\0"):
        file.write(broken)
        assert file.who("one") == file.who("one") == "acme"
        assert len(file.said) == 1, broken
        assert "stay valid" in file.said.pop()
    file.path.unlink()
    assert file.who("one") == file.who("one") == "acme"
    assert len(file.said) == 1
    file.write("[]")
    assert file.who("one") is None  # a file that lets nobody in is a sound one


def test_while_one_key_replaces_another_both_are_valid(file: File) -> None:
    hashes = [hashlib.sha256(key).hexdigest() for key in (b"old", b"new")]
    file.write(f'- {{name: acme, key: ["sha256:{hashes[0]}", "sha256:{hashes[1]}"], adapters: []}}')
    assert file.who("old") == file.who("new") == "acme"
    assert file.keys.tenants == [Tenant("acme", ())]


def test_a_file_that_others_can_read_is_warned_about(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    said: list[str] = []
    path.write_text(line("acme", "one"))
    path.chmod(0o640)
    Keys.load(path, said.append)
    assert said == [f"Others on this machine can reach {path}: chmod 600 {path}"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (line("acme", "x", ", adaptors: [b]"), "unknown field `adaptors`"),
        (line("unknown", "x"), "can't be the name"),
        (line("a b", "x"), "can't be the name"),
        (line("acme", "x") + line("acme", "y"), "twice"),
        (line("acme", "x") + line("bolt", "x"), "another tenant's"),
        (line("acme", "x", ", rate: 5 per hour"), "60/min"),
        (line("acme", "x", ", rate: 0/s"), "60/min"),
        (line("acme", "x", ", burst: 3"), "no rate"),
        (line("acme", "x", ", concurrent: 0"), "1 or more"),
        ("- {name: acme, key: secret, adapters: []}", "64 hex digits"),
        ("- {name: acme, adapters: []}", "missing required field `key`"),
        ("name: acme", "Expected `array`"),
    ],
)
def test_a_file_is_understood_to_the_last_word_or_refused(
    tmp_path: Path, text: str, why: str
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(FormatError) as caught:
        Keys.load(path)
    assert why in caught.value.why
    assert str(path) in caught.value.what
    with pytest.raises(NotFoundError):
        Keys.load(tmp_path / "none.yaml")


def test_a_new_key_is_nowhere_in_its_line_and_opens(tmp_path: Path) -> None:
    key, text = new_key("acme", ["support/*"])
    assert key not in text
    assert len(key) > 40
    file = File(tmp_path / "keys.yaml", text)
    assert file.who(key) == "acme"
    assert new_key("acme")[0] != key


@pytest.mark.parametrize(
    ("patterns", "may", "may_not"),
    [
        (("support/tone",), "support/tone support/tone:v2 support/tone@1f", f"support/tones {BASE} @1f"),
        (("support/*",), "support/tone@1f support/x", "supports/x support base"),
        (("support/tone:v2",), "support/tone:v2", "support/tone support/tone@1f support/tone:v3"),
        (("base",), BASE, "base base@1f support/tone"),
        (("*",), f"{BASE} support/tone @1f", ""),
        ((), "", f"{BASE} base x"),
    ],
)  # fmt: skip
def test_patterns_are_about_names(patterns: tuple[str, ...], may: str, may_not: str) -> None:
    tenant = Tenant("acme", patterns)
    assert all(tenant.may(name, BASE) for name in may.split())
    assert not any(tenant.may(name, BASE) for name in may_not.split())


def test_without_a_file_everybody_may_everything() -> None:
    assert Keys.load(None).who(None) is ANONYMOUS
    assert ANONYMOUS.may("anything", BASE)
