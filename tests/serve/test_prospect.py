"""The checklist: all that is wrong at once, where `serve` itself stops at the first."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.errors import GateError, IncompatibleError, UsageError
from adapterhub.names import parse_name
from adapterhub.serve.prospect import Prospect, prospect
from adapterhub.serve.wish import SETTINGS, Wish, values_of, wish_of
from adapterhub.store import Store

Add = Callable[..., str]


def marks(found: Prospect, name: str = "") -> dict[str, str]:
    """What is marked how: of the server, or of an adapter."""
    checks = found.checks
    if name:
        checks = next(one.checks for one in found.adapters if one.name == name)
    return {check.what: check.mark for check in checks}


def test_what_is_wrong_with_the_server_and_with_each_adapter_is_told_together(
    store: Store, add: Add, port: int, tmp_path: Path
) -> None:
    add("tone")
    add("far", base="org/other", seed=1)
    add("shifted", seed=2, use_dora=True)
    with socket.create_server(("127.0.0.1", port)):
        wish = Wish(("tone", "far", "shifted"), port=port, vllm=str(tmp_path / "nowhere"))
        found = prospect(store, wish)
    assert not found.startable
    assert found.plan is None
    assert isinstance(found.problem, IncompatibleError)
    assert marks(found) == {"base": "refused", "vLLM": "refused", "port": "refused"}
    assert set(marks(found, "tone").values()) == {"ok", "unknown"}
    assert marks(found, "far")["fits its base"] == "refused"
    assert marks(found, "shifted")["kind"] == "refused"


def test_what_only_a_pattern_brought_is_left_out_and_stops_nothing(
    store: Store, add: Add, stand_in: Path, port: int
) -> None:
    add("desk/tone")
    add("desk/shifted", seed=2, use_dora=True)
    found = prospect(store, Wish(("desk/*",), port=port, vllm=str(stand_in)))
    assert found.startable
    assert [(one.name, one.left_out) for one in found.adapters] == [("desk/shifted", True), ("desk/tone", False)]  # fmt: skip
    assert found.plan is not None
    assert [adapter.label for adapter in found.plan.adapters] == ["desk/tone"]
    assert found.room is not None


def test_a_form_is_read_as_the_command_reads_its_words() -> None:
    plain = values_of(Wish())
    assert set(plain) == {setting.field for setting in SETTINGS}
    wish = wish_of(["a"], {**plain, "port": "8123", "pin": "a 'b c'", "direct": True})
    assert wish == Wish(("a",), port=8123, pin=("a", "b c"), direct=True)
    for field, text in (("port", "0"), ("port", "70000"), ("loaded", "x"), ("pin", "'")):
        with pytest.raises(UsageError, match=text):
            wish_of(["a"], {**plain, field: text})


def test_prod_lets_through_what_is_released_and_what_its_gate_would_release(
    store: Store, add: Add, stand_in: Path, port: int
) -> None:
    digest = add("desk/tone")
    wish = Wish(("desk/tone",), port=port, vllm=str(stand_in), prod=True)
    assert wish.words()[-1] == "--prod"
    assert prospect(store, wish).startable, "no gate asks for anything"
    store.layout.settings.write_text(
        '[[gates]]\n[[gates.demands]]\nsuite = "forgetting"\nat_most = 9.0\n'
    )
    store = Store.open(store.home)
    found = prospect(store, wish)
    assert marks(found)["gates"] == "refused"
    assert isinstance(found.problem, GateError)
    assert not prospect(store, Wish(("@" + digest[7:23],), vllm=str(stand_in), prod=True)).startable
    store.tag(store.resolve("desk/tone"), parse_name("desk/tone:prod"), without_gates=True)
    assert prospect(store, wish).startable, "it was released, and that is recorded"
