"""Through a server the numbers are those computed here; what a server doesn't prove isn't attested, nor taken by a gate.

The server computes with transformers, in float32 as the evaluation here does, so likelihoods agree to rounding (1e-4 nats
a token) and greedy answers token for token. vLLM itself: test_served_real.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.data import dataset_digest, read_rows
from adapterhub.errors import (
    ExitCode,
    GateError,
    IncompatibleError,
    NotFoundError,
    RemoteError,
    UsageError,
)
from adapterhub.evaluate import EvalRow, evaluate
from adapterhub.evaluate.measures import parse_measure
from adapterhub.evaluate.server import KEY, RefusedError, connect
from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.cli.calling import call
from tests.support.answering import Answering, answering
from tests.support.chat import COLOURS, write_rows
from tests.support.evaluated import loss_of
from tests.support.stand_in import free_port

Add = Callable[..., str]
TOLERANCE = 1e-4
FEW = 4
TURN = 1
"""The token that begins a turn."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows of short answers, a token a byte."""
    return write_rows(
        tmp_path / "data.json",
        [{"instruction": f"Paint {i}?", "output": COLOURS[i % 8]} for i in range(12)],
    )


@pytest.fixture
def there(store: Store, add: Add, base: Path) -> Iterator[Answering]:
    """A foreign server of the base and of `one`; `two` is only in the store."""
    digest = add("one")
    add("two", seed=1)
    with answering(base, one=store.view(digest)) as server:
        yield server


@pytest.fixture
def door(store: Store, there: Answering, base: Path) -> Answering:
    """The same, listed as a door of ours lists it."""
    digest = store.resolve("one").digest
    version = f"one@{digest[7:19]}"
    there.models[version] = there.models["one"]
    adapter = {"owned_by": "adapterhub", "root": digest, "parent": "org/tiny"}
    about = {
        "fingerprint": store.bases.open(str(base)).fingerprint,
        "dtype": "float32",
        "engine": "vllm 0.32.0",
        "options": "sha256:0",
    }
    there.cards = [
        {"id": "org/tiny", "owned_by": "adapterhub", "root": "org/tiny", "parent": None, "adapterhub": about},
        {"id": "one", **adapter},
        {"id": version, **adapter},
    ]  # fmt: skip
    there.routes -= {"/version"}
    return there


@pytest.fixture
def asked(store: Store, base: Path, data: Path) -> Callable[..., list[EvalRow]]:
    """asked(names, at=server): evaluates on a few rows."""

    def ask(*names: str, at: Answering | None = None, **given: Any) -> list[EvalRow]:
        how = {"data": data, "split": "all", "max_rows": FEW, "max_new_tokens": 6, **given}
        return evaluate(store, names, base=str(base), server=at.url if at else None, **how)

    return ask


Ask = Callable[..., list[EvalRow]]
EXACT = {"measures": [parse_measure("exact"), parse_measure("length")]}


def alike(served: list[EvalRow], local: list[EvalRow]) -> None:
    """The same numbers, to rounding; the same answers, to the token."""
    for there, here in zip(served, local, strict=True):
        assert loss_of(there) == pytest.approx(loss_of(here), abs=TOLERANCE)
        assert (there.tokens, there.rows, there.answer) == (here.tokens, here.rows, here.answer)
        values = [{name: one.value for name, one in row.measures.items()} for row in (there, here)]
        assert values[0] == values[1]


def test_through_a_door_of_ours_it_is_the_same_table(door: Answering, asked: Ask) -> None:
    local = asked("base", "one", prompt="hi", system="Be brief.", attest=False, **EXACT)
    served = asked("base", "one", at=door, prompt="hi", system="Be brief.", **EXACT)
    alike(served, local)
    assert len({round(loss_of(row), 3) for row in served}) == 3
    assert [(row.name, row.kind, row.digest) for row in served] == [
        (row.name, row.kind, row.digest) for row in local
    ]
    assert served[1].versus_base is not None


def test_a_token_at_a_time_is_asked_where_adapters_are_served_and_never_the_row_at_once(
    door: Answering, asked: Ask
) -> None:
    (row,) = asked("one", at=door)
    assert not [body for _, body in door.asked if "prompt_logprobs" in body]
    forced = [body for body in door.completions() if "allowed_token_ids" in body]
    assert len(forced) == row.tokens + 2, "one for each trained token, and two to try it out"
    assert {body["model"] for body in forced} == {"one@" + str(row.digest)[7:19]}


def test_where_no_adapters_are_served_a_row_is_one_request(there: Answering, asked: Ask) -> None:
    there.cards = there.cards[:1]
    alike(asked("base", at=there), asked("base"))
    assert not [body for body in there.completions() if "allowed_token_ids" in body]
    assert len(there.completions(prompt_logprobs=0)) == FEW + 1 + 1  # tried out; behaviour


def test_a_row_that_leaves_no_room_for_one_token_more_is_asked_token_by_token(
    there: Answering, asked: Ask
) -> None:
    there.cards = there.cards[:1]
    local = asked("base")
    alike(asked("base", at=there), local)
    whole = [body for body in there.completions(prompt_logprobs=0) if body["prompt"][0] == TURN]
    there.cards[0]["max_model_len"] = max(len(body["prompt"]) for body in whole)
    there.asked.clear()
    alike(asked("base", at=there, cached=False), local)
    assert [body for body in there.completions() if "allowed_token_ids" in body]
    rows = [body["prompt"] for body in there.completions() if body["prompt"][0] == TURN]
    assert max(map(len, rows)) < there.cards[0]["max_model_len"]


def test_what_doesnt_fit_is_told_with_what_would(there: Answering, asked: Ask) -> None:
    for card in there.cards:
        card["max_model_len"] = 20
    with pytest.raises(UsageError, match="reads 20 at this server") as caught:
        asked("base", at=there)
    assert "--max-length 20" in caught.value.hint
    for card in there.cards:
        card["max_model_len"] = 64
    with pytest.raises(UsageError, match="don't fit into the 64"):
        asked("base", at=there, max_new_tokens=60, **EXACT)


def test_another_servers_adapters_are_models_of_its_own_and_nothing_is_attested(
    store: Store, there: Answering, asked: Ask
) -> None:
    local = asked("base", "one", attest=False, **EXACT)
    served = asked("base", "one", at=there, **EXACT)
    alike(served, local)
    assert (served[1].kind, served[1].digest) == ("model", None)
    assert not [a for a in store.attestations(store.resolve("one").digest) if a.type == "eval"]


def test_a_name_that_only_the_server_has_is_a_model_there(there: Answering, asked: Ask) -> None:
    there.models["elsewhere"] = there.models["one"]
    there.cards.append({"id": "elsewhere", "parent": "org/tiny"})
    named = asked("elsewhere", at=there)[0]
    assert (named.kind, named.digest) == ("model", None)
    assert named.loss == pytest.approx(asked("one")[0].loss, abs=TOLERANCE)


def test_a_server_of_other_tokens_is_asked_in_messages_and_has_no_perplexity(
    there: Answering, asked: Ask
) -> None:
    there.routes -= {"/tokenize", "/v1/completions", "/version"}
    told: list[str] = []
    local = asked("base", prompt="hi", **EXACT)[0]
    served = asked("base", at=there, prompt="hi", remark=told.append, **EXACT)[0]
    assert (served.loss, served.perplexity, served.tokens) == (None, None, 0)
    assert served.measures["length"].value == local.measures["length"].value
    assert served.answer == local.answer
    assert len(told) == 1
    assert "asked in messages and has no perplexity" in told[0]
    assert [body["messages"][-1]["role"] for path, body in there.asked if "chat" in path]


@pytest.mark.parametrize("lost", ["allowed_token_ids", "return_token_ids"])
def test_a_server_that_passes_a_field_over_is_asked_otherwise(
    lost: str, there: Answering, asked: Ask
) -> None:
    there.knows -= {lost}
    told: list[str] = []
    row = asked("base", at=there, remark=told.append, **EXACT)[0]
    assert row.loss is None
    assert row.measures
    assert "no perplexity" in told[0]


def test_likelihoods_among_what_was_allowed_are_no_likelihoods(
    there: Answering, asked: Ask
) -> None:
    there.processed = True
    told: list[str] = []
    assert asked("base", at=there, remark=told.append)[0].loss is None
    assert "among those allowed" in told[0]


@pytest.mark.parametrize("odd", [float("nan"), float("-inf"), -9999.0, 3.0, "x", True])
def test_a_likelihood_that_is_none_ends_it_and_isnt_kept(
    odd: Any, store: Store, there: Answering, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked("one", at=there, max_rows=1)
    there.odd = odd
    with pytest.raises(RemoteError, match="tells no likelihood"):
        _after_trying_out(asked, there, monkeypatch)
    there.odd = 0.0
    assert loss_of(asked("one", at=there)[0]) == pytest.approx(
        loss_of(asked("one")[0]), abs=TOLERANCE
    )


def _after_trying_out(asked: Ask, there: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluates at a server that was sound as long as it was tried out."""
    from adapterhub.evaluate.served import Served, Way

    monkeypatch.setattr(Served, "way", lambda self, name: Way(True, "token"))
    monkeypatch.setattr(Served, "recognised", lambda self, subject: {})
    asked("one", at=there)


def test_another_version_under_the_name_is_refused_with_both_digests(
    store: Store, door: Answering, asked: Ask
) -> None:
    other = store.resolve("two").digest
    for card in door.cards[1:]:
        card["root"] = other
    with pytest.raises(NotFoundError, match="doesn't serve what the store means by one") as caught:
        asked("one", at=door)
    assert store.resolve("one").digest[7:19] in caught.value.why
    assert other[7:19] in caught.value.why
    assert "server update one" in caught.value.hint
    assert not door.completions()


def test_an_earlier_version_that_still_answers_is_asked_by_its_digest(
    store: Store, door: Answering, asked: Ask
) -> None:
    alias, version = door.cards[1:]
    door.unlisted[version["id"]] = dict(version)
    door.cards = [door.cards[0], {**alias, "root": store.resolve("two").digest}]
    row = asked("one", at=door)[0]
    assert row.digest == store.resolve("one").digest
    assert {body["model"] for body in door.completions()} == {version["id"]}


def test_a_name_it_doesnt_serve_is_told_with_how_to_add_it(door: Answering, asked: Ask) -> None:
    with pytest.raises(NotFoundError, match="doesn't serve two") as caught:
        asked("two", at=door)
    assert "server add two" in caught.value.hint
    with pytest.raises(NotFoundError, match="Neither the store nor the server"):
        asked("nobody", at=door)


def test_a_door_of_another_base_is_refused(door: Answering, asked: Ask) -> None:
    door.cards[0]["adapterhub"]["fingerprint"] = "sha256:" + "0" * 64
    with pytest.raises(IncompatibleError, match="serves another base"):
        asked("base", "one", at=door)
    assert not door.completions()


def test_a_door_that_makes_other_tokens_is_refused(
    door: Answering, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "tokens", lambda text: [1, 2, 3])
    with pytest.raises(IncompatibleError, match="other tokens"):
        asked("one", at=door)


def test_what_a_server_computes_in_is_its_own_choice(there: Answering, asked: Ask) -> None:
    with pytest.raises(UsageError, match="what it was started with"):
        asked("base", at=there, dtype="bfloat16")


def test_a_folder_isnt_at_the_server(there: Answering, asked: Ask, base: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        asked(str(base), at=there)


def test_of_several_whole_models_it_isnt_guessed_which_is_the_base(
    there: Answering, asked: Ask
) -> None:
    there.cards.append({"id": "another"})
    with pytest.raises(UsageError, match="which of its models is the base"):
        asked("base", at=there)


def test_served_and_local_numbers_never_mix(
    store: Store, door: Answering, asked: Ask, base: Path
) -> None:
    asked("one")
    before = len(door.completions())
    asked("one", at=door)
    assert len(door.completions()) > before, "what was computed here doesn't answer for the server"
    bodies = [a.body for a in store.attestations(store.resolve("one").digest) if a.type == "eval"]
    assert [body["settings"].get("server") for body in bodies] == [None, "adapterhub"]
    assert bodies[1]["versions"] == {"vllm": "0.32.0"}
    assert bodies[1]["settings"]["dtype"] == "float32"
    assert "127.0.0.1" not in json.dumps(bodies)
    door.cards[0]["adapterhub"]["dtype"] = "bfloat16"
    again = len(door.completions())
    asked("one", at=door)
    assert len(door.completions()) > again, "nor for a server of another precision"


def test_the_second_time_nothing_is_asked(door: Answering, asked: Ask) -> None:
    first = asked("base", "one", at=door, **EXACT)
    door.asked.clear()
    second = asked("base", "one", at=door, **EXACT)
    assert door.counted() == {"/v1/models": 1}
    assert [row.loss for row in second] == [row.loss for row in first]


def test_a_foreign_model_of_other_weights_under_the_same_name_is_asked_anew(
    there: Answering, asked: Ask
) -> None:
    first = asked("one", at=there)[0]
    there.models["one"] = there.models["org/tiny"]
    assert abs(loss_of(asked("one", at=there)[0]) - loss_of(first)) > 0.01


def test_a_server_that_dies_half_way_loses_nothing_that_was_found(
    door: Answering, asked: Ask
) -> None:
    local = asked("one", max_rows=12)[0]
    door.left = local.tokens // 2 + 4
    with pytest.raises(RemoteError, match="can't be reached") as caught:
        asked("one", at=door, max_rows=12)
    assert "goes on where it was" in caught.value.hint
    door.left = None
    door.asked.clear()
    row = asked("one", at=door, max_rows=12)[0]
    forced = len([body for body in door.completions() if "allowed_token_ids" in body])
    assert forced <= local.tokens // 2 + 4 + 16, "what was in flight and the row it belongs to"
    assert loss_of(row) == pytest.approx(loss_of(local), abs=TOLERANCE)


def test_answers_that_came_before_it_died_are_kept(door: Answering, asked: Ask) -> None:
    scored = asked("one", at=door, cached=False)[0].tokens
    door.left = 3 + scored + 2  # three try out how to ask
    with pytest.raises(RemoteError):
        asked("one", at=door, **EXACT)
    door.left = None
    door.asked.clear()
    asked("one", at=door, **EXACT)
    answered = [body for body in door.completions() if "stop_token_ids" in body]
    assert 0 < len(answered) < FEW


def test_a_busy_server_is_asked_again(there: Answering, asked: Ask) -> None:
    there.busy = 1
    assert asked("base", at=there, max_rows=1)[0].loss is not None
    assert there.busy == 0


def test_only_so_many_questions_are_in_flight(door: Answering, asked: Ask) -> None:
    asked("one", at=door, max_rows=27)
    assert 1 < door.most_together <= 16


def test_the_key_comes_from_the_environment_and_is_told_to_nobody(
    store: Store,
    door: Answering,
    asked: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    door.key = "ah-secret"
    with pytest.raises(RefusedError) as caught:
        asked("one", at=door)
    assert f"{KEY}=..." in caught.value.hint
    monkeypatch.setenv(KEY, "ah-wrong")
    with pytest.raises(RefusedError) as caught:
        asked("one", at=door)
    assert "ah-wrong" not in str(caught.value)
    assert "(the key)" in caught.value.why
    monkeypatch.setenv(KEY, "ah-secret")
    asked("one", at=door)
    (found,) = [a for a in store.attestations(store.resolve("one").digest) if a.type == "eval"]
    assert "ah-secret" not in json.dumps(found.body)
    assert "ah-secret" not in repr(connect(door.url))


@pytest.mark.parametrize("key", ["sec\nret", "s\u00e9cret", "two words", "sec\x1bret"])
def test_what_no_key_can_be_is_refused_before_anything_is_sent_and_not_repeated(
    there: Answering, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, key)
    with pytest.raises(UsageError, match=f"What {KEY} holds is no key") as caught:
        connect(there.url)
    told = "".join(traceback.format_exception(caught.value))
    assert not any(word in told for word in (key, repr(key), *key.split()))
    assert not there.asked


@pytest.mark.parametrize(
    "where",
    [
        "",
        "x",
        "ftp://host",
        "http://",
        "http://a:b@host",
        "http://host/?key=1",
        "http://h:99999",
        "-1",
    ],
)
def test_an_address_that_is_none_or_tells_secrets_is_refused(where: str) -> None:
    with pytest.raises(UsageError) as caught:
        connect(where)
    assert "a:b" not in str(caught.value)


def test_an_address_may_end_in_v1_or_be_a_port(there: Answering) -> None:
    port = there.url.rpartition(":")[2]
    found = [connect(where) for where in (port, there.url, f"{there.url}/", f"{there.url}/v1/")]
    assert {(one.url, *one.models) for one in found} == {(there.url, "org/tiny", "one")}


def test_nobody_there_is_told_at_once(asked: Ask, store: Store, base: Path, data: Path) -> None:
    with pytest.raises(RemoteError, match="can't be reached"):
        evaluate(store, ["base"], base=str(base), data=data, server=str(free_port()))


def test_a_server_that_lists_nothing_sound_is_refused(there: Answering, asked: Ask) -> None:
    there.cards = [{"id": 7}, "x"]  # type: ignore[list-item]
    with pytest.raises(RemoteError, match="lists no models"):
        asked("base", at=there)


def test_a_gate_takes_no_servers_word(
    store: Store, door: Answering, asked: Ask, data: Path
) -> None:
    digest = dataset_digest(read_rows(data))
    demand = f'[[gates]]\n[[gates.demands]]\ndata = "{digest}"\nat_most = 1e9\n'
    store.layout.settings.write_text(demand)
    gated = Store.open(store.home)
    prod = parse_name("one:prod")
    asked("one", at=door, max_rows=None)
    with pytest.raises(GateError) as caught:
        gated.tag(gated.resolve("one"), prod)
    assert "answered by a server" in caught.value.why
    asked("one", max_rows=None)
    asked("one", at=door, max_rows=None, cached=False)
    assert gated.tag(gated.resolve("one"), prod), "nor does it stand before what was computed here"


def test_the_command_asks_the_server_and_says_what_it_doesnt_know(
    store: Store, there: Answering, base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(store.home))
    there.processed = True
    said = call(
        "eval", "base", "one", "--base", base, "--data", data, "--max-rows", "3", "--server", there.url,
        "--measure", "length", "--max-new-tokens", "4",
    )  # fmt: skip
    assert said.code == ExitCode.OK, said.err
    assert "has no perplexity" in said.err
    assert "length" in said.out
