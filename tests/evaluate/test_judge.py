"""A judge's verdicts are counted from both places, can't be bought by an answer, and are asked for once."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from adapterhub.data import dataset_digest, read_rows
from adapterhub.data.rows import Message
from adapterhub.errors import GateError, RemoteError, UsageError
from adapterhub.evaluate import EvalRow, evaluate
from adapterhub.evaluate.endpoint import KEY, MAX_TOKENS, endpoint_at
from adapterhub.evaluate.judge import Judge, judge_of, value_of
from adapterhub.evaluate.rubric import Rubric
from adapterhub.evaluate.server import IN_FLIGHT
from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.cli.calling import call, wait_until
from tests.support.adapters import AdapterMaker
from tests.support.chat import write_rows
from tests.support.judge_server import Case, JudgeServer, judging, verdict
from tests.support.parrot import other_beginning, parrot

if TYPE_CHECKING:
    from adapterhub.evaluate.judge import Against

SAYS, ADAPTED = "Sory,we-paid.", "we-paid."
COUNT = 20
RUBRIC = "Be kind.\nSay {what} was done."


@pytest.fixture(scope="module")
def bird(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that says SAYS to everything."""
    return parrot(tmp_path_factory.mktemp("bird") / "bird", SAYS)


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    """Questions with a number in them; the answers are SAYS for the even ones and ADAPTED for the odd ones."""
    answers = (SAYS, ADAPTED)
    rows = [{"instruction": f"Ticket {n}", "output": answers[n % 2]} for n in range(COUNT)]
    return write_rows(tmp_path / "tickets.json", rows)


@pytest.fixture
def curt(store: Store, bird: Path, make_adapter: AdapterMaker) -> str:
    """An adapter with which it says ADAPTED; its digest."""
    folder = make_adapter("curt", factors=other_beginning(SAYS, "w"), rank=1, alpha=1)
    found = store.add_folder(folder, name="curt", base=str(bird))
    store.bases.remember(store.bases.open(str(bird)))
    return found.digest


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    """A judge that finds everything alike, until a test says otherwise."""
    with judging(lambda case: verdict(0)) as judge:
        yield judge


@pytest.fixture
def run(
    store: Store, bird: Path, tickets: Path, server: JudgeServer, curt: str
) -> Callable[..., list[EvalRow]]:
    def evaluated(*names: str, against: Against = "base", **given: Any) -> list[EvalRow]:
        judge = Judge(
            endpoint_at(server.url, "arbiter"), Rubric(RUBRIC, "sha256:" + "0" * 64), against
        )
        how = {"split": "all", "max_new_tokens": 20, "judge": judge, **given}
        return evaluate(store, names or ("base", "curt"), base=str(bird), data=tickets, **how)

    return evaluated


Run = Callable[..., list[EvalRow]]


def number(case: Case) -> int:
    return int(case.question.split()[-1])


def by_number(case: Case) -> str:
    """Likes the adapter's answer to tickets below 14, the base's to 14 and 15, and neither above."""
    wanted = ADAPTED if number(case) < 14 else SAYS
    return verdict(0 if number(case) >= 16 else case.place_of(wanted))


def resampled(values: list[float], seed: int = 5) -> tuple[float, float]:
    """The plain percentile interval of a mean, from the definition."""
    random = np.random.default_rng(seed)
    drawn = random.choice(np.asarray(values, np.float64), (20_000, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def test_the_win_rate_and_its_interval_are_those_of_the_judges_mind(
    run: Run, server: JudgeServer
) -> None:
    server.rule = by_number
    base, curt = run()
    values = [1.0] * 14 + [0.0] * 2 + [0.5] * 4
    measured = curt.measures["judge"]
    assert measured.value == pytest.approx(sum(values) / COUNT)
    assert base.measures["judge"].value == 0.5
    versus = measured.versus_base
    assert versus is not None
    assert versus.difference == pytest.approx(sum(values) / COUNT - 0.5)
    low, high = resampled([value - 0.5 for value in values])
    assert versus.low == pytest.approx(low, abs=0.05)  # the plain one isn't bias-corrected
    assert versus.high == pytest.approx(high, abs=0.05)
    assert versus.verdict == "better"
    told = curt.judged
    assert told is not None
    assert (told.pairs, told.identical, told.unreadable) == (COUNT, 0, 0)
    assert (told.consistent, told.first_place) == (1.0, 0.5)
    assert told.models == ("arbiter-7b",)
    assert base.judged is None


def test_each_pair_is_asked_about_twice_in_both_orders_and_blind(
    run: Run, server: JudgeServer
) -> None:
    run()
    shown = sorted((case.question, case.answers) for case in server.cases)
    assert shown == sorted(
        (f"Ticket {n}", pair) for n in range(COUNT) for pair in ((SAYS, ADAPTED), (ADAPTED, SAYS))
    )
    for body, case in zip(server.bodies, server.cases, strict=True):
        assert (body["model"], body["temperature"], body["max_tokens"]) == (
            "arbiter",
            0,
            MAX_TOKENS,
        )
        assert RUBRIC in case.system
        assert not {"curt", "base", "adapter"} & set(case.system.split() + case.user.split())


def test_which_order_comes_first_is_drawn_and_not_always_the_same() -> None:
    from adapterhub.data import Row
    from adapterhub.evaluate.judge import _Pair

    rows = [Row((Message("user", str(n)), Message("assistant", ""))) for n in range(200)]
    first = [_Pair(row, "a", "b").first for row in rows]
    assert first == [_Pair(row, "a", "b").first for row in rows]
    assert 70 < sum(first) < 130


@pytest.mark.parametrize("place", [1, 2])
def test_a_judge_that_always_takes_one_place_says_nothing_and_is_told_of(
    run: Run, server: JudgeServer, place: int
) -> None:
    server.rule = lambda case: verdict(place)
    curt = run()[1]
    versus = curt.measures["judge"].versus_base
    assert curt.measures["judge"].value == 0.5
    assert versus is not None
    assert (versus.difference, versus.verdict) == (0.0, "same")
    assert curt.judged is not None
    assert curt.judged.consistent == 0.0
    assert curt.judged.first_place == (1.0 if place == 1 else 0.0)


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        (1.0, 1.0, 1.0),
        (0.0, 0.0, 0.0),
        (1.0, 0.0, 0.5),
        (1.0, 0.5, 0.5),
        (0.5, 0.0, 0.5),
        (0.5, 0.5, 0.5),
        (None, 1.0, None),
        (0.0, None, None),
    ],
)
def test_only_who_wins_from_both_places_wins(
    first: float | None, second: float | None, value: float | None
) -> None:
    assert value_of((first, second, True)) == value


def test_the_same_answer_twice_is_a_tie_that_nobody_is_asked_about(
    run: Run, server: JudgeServer
) -> None:
    server.rule = lambda case: verdict(case.place_of(SAYS))
    base, curt = run(against="reference")
    assert len(server.cases) == 2 * COUNT, (
        "each of them differs from one half of the data's answers"
    )
    # The base says SAYS: a tie on the even ones, and it wins the odd ones; the adapter loses the even ones.
    assert base.measures["judge=reference"].value == pytest.approx((10 * 0.5 + 10 * 1) / 20)
    assert curt.measures["judge=reference"].value == pytest.approx((10 * 0 + 10 * 0.5) / 20)
    versus = curt.measures["judge=reference"].versus_base
    assert versus is not None
    assert versus.difference == pytest.approx(-0.5)
    assert base.judged is not None
    assert (base.judged.pairs, base.judged.identical) == (10, 10)


def test_a_reply_that_is_none_is_left_out_and_counted(run: Run, server: JudgeServer) -> None:
    server.rule = lambda case: "Hm." if number(case) == 3 else by_number(case)
    curt = run()[1]
    measured = curt.measures["judge"]
    assert measured.value == pytest.approx((13 * 1 + 2 * 0 + 4 * 0.5) / 19)
    assert measured.versus_base is not None
    assert measured.versus_base.difference == pytest.approx(measured.value - 0.5)
    assert curt.judged is not None
    assert (curt.judged.pairs, curt.judged.unreadable, curt.judged.consistent) == (COUNT, 1, 1.0)


def test_a_row_that_is_unknown_of_one_of_two_models_is_no_difference_between_them(
    run: Run, server: JudgeServer
) -> None:
    def rule(case: Case) -> str:
        return "Hm." if number(case) == 3 else verdict(case.place_of(SAYS))

    server.rule = (
        rule  # about ticket 3 only the base is judged: the adapter's answer is the data's own
    )
    base, curt = run(against="reference")
    assert base.judged is not None
    assert curt.judged is not None
    assert (base.judged.unreadable, curt.judged.unreadable) == (1, 0)
    versus = curt.measures["judge=reference"].versus_base
    assert versus is not None
    assert (versus.difference, versus.low, versus.high) == (-0.5, -0.5, -0.5)


def test_too_many_of_them_are_an_error_before_all_are_asked(run: Run, server: JudgeServer) -> None:
    server.rule = lambda case: "I love\x1b[31m both."
    with pytest.raises(RemoteError, match="can't be read: those about 3 pairs of 20") as caught:
        run()
    assert "I love" in caught.value.why
    assert "\x1b" not in caught.value.why
    assert len(server.bodies) < 2 * COUNT


def test_a_server_that_fails_half_way_is_asked_for_the_rest_only(
    run: Run, server: JudgeServer
) -> None:
    server.rule = lambda case: 500 if len(server.bodies) > 25 else by_number(case)
    with pytest.raises(RemoteError, match=r"refuses \(HTTP 500\)") as caught:
        run()
    assert "what was judged is kept" in caught.value.hint
    server.bodies.clear()
    server.rule = by_number
    broken = run()[1]
    assert 2 * COUNT - 25 <= len(server.bodies) <= 2 * COUNT - 25 + IN_FLIGHT
    server.bodies.clear()
    assert run()[1].measures == broken.measures
    assert not server.bodies, "all is known"
    assert run(cached=False)[1].measures == broken.measures
    assert len(server.bodies) == 2 * COUNT


def test_a_row_more_moves_no_verdict_to_another_row(
    run: Run, server: JudgeServer, tickets: Path
) -> None:
    others = [f"Other {n}." for n in range(9)]

    def rule(case: Case) -> str:
        """Takes the data's answer to those below Other 3, and SAYS beyond: whatever the row's place."""
        answer = next(one for one in case.answers if one != SAYS)
        return verdict(case.place_of(answer if answer in others[:3] else SAYS))

    def rate(same: int, **given: Any) -> float:
        said = [SAYS] * same + others
        rows = [{"instruction": f"Ticket {n}", "output": one} for n, one in enumerate(said, -same)]
        write_rows(tickets, rows)
        return run("base", against="reference", **given)[0].measures["judge=reference"].value

    server.rule = rule
    assert rate(1) == pytest.approx((0.5 + 6) / 10)
    assert rate(2) == pytest.approx((1 + 6) / 11)
    assert rate(2, cached=False) == pytest.approx((1 + 6) / 11)
    assert rate(3) == pytest.approx((1.5 + 6) / 12)


def test_what_is_asked_afresh_takes_the_place_of_what_was_known(
    run: Run, server: JudgeServer
) -> None:
    server.rule = by_number
    assert run()[1].measures["judge"].value == pytest.approx(0.8)
    server.rule = lambda case: verdict(case.place_of(SAYS))
    assert run(cached=False)[1].measures["judge"].value == 0
    server.bodies.clear()
    assert run()[1].measures["judge"].value == 0
    assert not server.bodies, "it was kept"


def test_ctrl_c_while_the_judge_thinks_ends_at_once_and_loses_nothing(
    run: Run, server: JudgeServer
) -> None:
    ended = threading.Event()

    def rule(case: Case) -> str:
        if len(server.bodies) == 20:
            os.kill(os.getpid(), signal.SIGINT)
            assert ended.wait(60), "it waited for the judge"
        return verdict(0)

    server.rule = rule
    with pytest.raises(KeyboardInterrupt):
        run()
    ended.set()
    assert wait_until(lambda: server.busy == 0), "what was under way is over"
    server.rule = by_number
    server.bodies.clear()
    run()
    # Who asks for the 20th has read 20 replies less those that are still in flight.
    assert 2 * COUNT - 20 <= len(server.bodies) <= 2 * COUNT - 20 + IN_FLIGHT


def test_a_fault_that_passes_is_waited_for(run: Run, server: JudgeServer) -> None:
    server.rule = lambda case: 429 if len(server.bodies) <= 2 else by_number(case)
    assert run()[1].measures["judge"].value == pytest.approx(0.8)
    assert len(server.bodies) == 2 * COUNT + 2


def test_another_judge_rubric_or_answer_is_asked_anew(
    run: Run, server: JudgeServer, store: Store
) -> None:
    run()
    asked = len(server.bodies)
    other = Judge(endpoint_at(server.url, "arbiter"), Rubric("Be brief.", "sha256:" + "1" * 64))
    run(judge=other)
    assert len(server.bodies) == 2 * asked
    run(max_new_tokens=3)
    assert len(server.bodies) == 3 * asked


def test_a_dead_endpoint_is_said_to_be_one(run: Run, server: JudgeServer, bird: Path) -> None:
    from tests.support.stand_in import free_port

    dead = Judge(endpoint_at(f"http://127.0.0.1:{free_port()}", "m"), Rubric("x", "sha256:0"))
    with pytest.raises(RemoteError, match="can't be asked") as caught:
        run(judge=dead)
    assert "can't be reached" in caught.value.why


def test_the_key_is_sent_and_neither_told_nor_attested(
    run: Run, server: JudgeServer, store: Store, curt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "sk-hidden")
    run()
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-hidden"}
    (found,) = [one for one in store.attestations(curt) if one.type == "eval"]
    body = json.dumps(found.body)
    assert "sk-hidden" not in body
    assert "127.0.0.1" not in body
    assert "sk-hidden" not in repr(endpoint_at(server.url, "m"))
    server.rule = lambda case: 401
    with pytest.raises(RemoteError) as caught:
        run(cached=False)
    assert "(the key)" in caught.value.why
    assert "sk-hidden" not in str(caught.value)
    assert KEY in caught.value.hint


def test_what_a_verdict_depends_on_is_attested(
    run: Run, server: JudgeServer, store: Store, curt: str
) -> None:
    server.rule = by_number
    row = run()[1]
    (found,) = [one for one in store.attestations(curt) if one.type == "eval"]
    told = found.body["settings"]["judge"]
    assert told["model"] == "arbiter"
    assert told["rubric"] == "sha256:" + "0" * 64
    assert (told["prompt"], told["against"]) == ("pairwise/1", "base")
    result = found.body["result"]
    assert row.judged is not None
    assert result["judged"]["consistent"] == row.judged.consistent
    assert result["judged"]["models"] == ["arbiter-7b"]
    assert result["measures"]["judge"]["value"] == row.measures["judge"].value


def test_a_gate_can_ask_for_a_judge(
    run: Run, server: JudgeServer, store: Store, curt: str, tickets: Path
) -> None:
    digest = dataset_digest(read_rows(tickets))
    demand = f'[[gates]]\n[[gates.demands]]\ndata = "{digest}"\nmeasure = "judge"\nmax_new_tokens = 20\nat_least = 0.7\nverdict = "better"\n'
    store.layout.settings.write_text(demand)
    gated = Store.open(store.home)
    prod = parse_name("curt:prod")

    def refused() -> str:
        with pytest.raises(GateError) as caught:
            gated.tag(gated.resolve("curt"), prod)
        return caught.value.why

    assert "never evaluated" in refused()
    server.rule = lambda case: verdict(case.place_of(SAYS))
    run()
    assert "judge 0, worse than the base" in refused()
    run(judge=None)
    assert "judge 0, worse than the base" in refused(), "what nobody was asked again still stands"
    run(cached=False, against="reference")
    assert "judge 0, worse than the base" in refused(), "beside other answers it is another number"
    server.rule = by_number
    run(cached=False)
    told = [a for a in store.attestations(curt) if a.type == "eval"][-1].body["settings"]["judge"]
    store.layout.settings.write_text(demand + 'judge = "sha256:00000000"\n')
    gated = Store.open(store.home)
    assert "by another judge" in refused()
    store.layout.settings.write_text(demand + f'judge = "{told["digest"]}"\n')
    gated = Store.open(store.home)
    assert gated.tag(gated.resolve("curt"), prod)


def test_what_can_be_refused_is_before_a_model_is_loaded(
    run: Run, server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric = tmp_path / "rubric.md"
    rubric.write_text("Kind.")
    assert judge_of(None, None, None, None) is None
    with pytest.raises(UsageError, match="needs an address") as caught:
        judge_of(server.url, None, str(rubric), None)
    assert caught.value.hint == "Add --judge-model NAME."
    with pytest.raises(UsageError, match="needs an address"):
        judge_of(None, None, None, "base")
    with pytest.raises(UsageError, match="the base isn't among the names"):
        run("curt")
    with pytest.raises(UsageError, match="nobody else is named"):
        run("base")
    assert [row.name for row in run("curt", against="reference")] == ["curt"]
    monkeypatch.setenv(KEY, "two words")
    with pytest.raises(UsageError, match="is no key") as refused:
        judge_of(server.url, "m", str(rubric), None)
    assert "two words" not in str(refused.value)


def test_on_the_command_line_the_judge_is_told_of(
    curt: str, bird: Path, tickets: Path, server: JudgeServer, tmp_path: Path
) -> None:
    server.rule = by_number
    rubric = tmp_path / "rubric.md"
    rubric.write_text("Kind.")
    words = ("eval", "base", "curt", "--data", tickets, "--split", "all", "--max-new-tokens", "20")
    judge = ("--judge", server.url, "--judge-model", "arbiter", "--rubric", rubric)
    said = call(*words, *judge)
    assert said.code == 0, said.err
    assert "0.8 (better)" in said.out
    assert "The judge on curt: 20 pairs, 100% with the same verdict from both places" in said.err
    assert "the first place won 50%" in said.err
    rows = call(*words, *judge, "--json").json
    assert rows[1]["judged"]["consistent"] == 1
    assert rows[1]["measures"]["judge"]["versus_base"]["verdict"] == "better"
    assert len(server.bodies) == 2 * COUNT
