"""Every rule finds what it is for in a history where that was planted, and nothing in trainings that went well."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.errors import FormatError, NotFoundError
from adapterhub.store import Store
from adapterhub.trainer.doctor import diagnose, during
from adapterhub.trainer.finding import Finding
from adapterhub.trainer.history import History
from adapterhub.trainer.rules import RUNNING
from tests.cli.calling import call
from tests.cli.terminals import on_a_terminal
from tests.support.adapters import AdapterMaker, llama_modules, random_factors

if TYPE_CHECKING:
    from adapterhub.trainer.train import Trained

RECIPE: dict[str, Any] = {
    "learning_rate": 2e-4,
    "steps": 200,
    "epochs": None,
    "rank": 16,
    "max_grad_norm": 1.0,
    "data": {"held_out": 0.1, "split_seed": 0},
    "eval": {"rows": 64, "keep": "last"},
}
Curve = Callable[[float], float]
"""From the share of the training that is done to a loss."""


def healthy(t: float) -> float:
    """Falls quickly, then slowly: what a training that goes well looks like."""
    return 1.1 + 1.2 * math.exp(-6 * t)


def above(curve: Curve, gap: float = 0.06) -> Curve:
    return lambda t: curve(t) + gap * min(1.0, 3 * t)


def history(
    train: Curve = healthy,
    held_out: Curve | None = None,
    *,
    steps: int = 200,
    noise: float = 0.08,
    seed: int = 0,
    norms: Curve = lambda _: 0.6,
    groups: Callable[[int], dict[str, float]] | None = None,
    evaluations: int = 10,
    outcome: str | None = "done",
    recipe: dict[str, Any] | None = None,
    heavy: bool = False,
) -> History:
    """A training as its events would tell it, with noisy steps (lognormal noise with `heavy`) and exact evaluations."""
    rng = random.Random(seed)
    held_out = held_out or above(train)
    found = History(recipe={**RECIPE, "steps": steps, **(recipe or {})})
    found.take({"event": "training", "steps": steps})
    if evaluations:
        found.take(
            {"event": "evaluated", "when": "before", "step": 0, "loss": held_out(0), "rows": 64}
        )
    for step in range(1, steps + 1):
        loss = train(step / steps)
        loss *= math.exp(rng.gauss(0, noise)) if heavy else 1
        loss += 0 if heavy else rng.gauss(0, noise)
        event = {"event": "step", "step": step, "steps": steps, "loss": max(loss, 1e-3)}
        event |= {
            "learning_rate": 2e-4,
            "grad_norm": norms(step / steps) * math.exp(rng.gauss(0, 0.2)),
        }
        found.take(
            event | {"grad_norms": groups(step) if groups else {"q_proj": 0.3, "v_proj": 0.2}}
        )
        if evaluations and step % (steps // evaluations) == 0:
            found.take(
                {
                    "event": "evaluated",
                    "when": "during",
                    "step": step,
                    "loss": held_out(step / steps),
                }
            )
    if outcome:
        found.take({"event": outcome})
    return found


def rules(findings: Sequence[Finding]) -> list[str]:
    return [finding.rule for finding in findings]


def with_spikes(steps: Sequence[int], height: float, length: int, of: int = 200) -> Curve:
    """A healthy curve that jumps at these steps for so many."""

    def curve(t: float) -> float:
        step = round(t * of)
        return healthy(t) + (height if any(s <= step < s + length for s in steps) else 0)

    return curve


def late_rise(t: float) -> float:
    return 1.7 - 0.5 * min(t, 0.3) / 0.3 + max(0.0, t - 0.3)


PLANTED: dict[str, Callable[[], History]] = {
    "loss-not-finite": lambda: history(lambda t: math.nan if t > 0.5 else healthy(t)),
    "diverging": lambda: history(lambda t: 2.0 + 4 * max(0.0, t - 0.3)),
    "loss-spike": lambda: history(with_spikes([100], 0.9, 95), noise=0.04),
    "no-gradient": lambda: history(
        lambda _: 2.0, groups=lambda step: {"lora_A": 0.0, "lora_B": 0.0}
    ),
    "gradient-vanished": lambda: history(
        groups=lambda step: {"q_proj": 0.2 * 0.9**step + 1e-4, "v_proj": 1.2}
    ),
    "overfitting": lambda: history(lambda t: 1.7 - 1.4 * t**0.5, late_rise),
    "not-generalising": lambda: history(lambda t: 2 - 1.2 * t**0.3, lambda t: 2.0 - 0.01 * t),
    "plateau": lambda: history(lambda _: 2.1, lambda _: 2.1),
    "underfitting": lambda: history(lambda t: 3.0 - 1.5 * t, lambda t: 3.1 - 1.5 * t),
    "known-already": lambda: history(lambda t: 0.2 - 0.05 * t, noise=0.01),
    "held-out-apart": lambda: history(healthy, lambda t: healthy(t) + 1.2),
    "always-clipped": lambda: history(norms=lambda _: 9.0),
    "no-held-out-rows": lambda: history(evaluations=0),
}  # fmt: skip


@pytest.mark.parametrize("rule", PLANTED)
def test_each_rule_finds_what_was_planted_and_no_other_rule_does(rule: str) -> None:
    (finding,) = diagnose(PLANTED[rule]())
    assert finding.rule == rule
    assert finding.words.endswith(".")
    assert finding.advice.endswith(".")
    assert "nan" not in finding.advice
    assert all(
        key.split(".")[0] in {*RECIPE, "gradient_checkpointing", "warmup"} for key in finding.change
    )


SHAPES: dict[str, Callable[[int], History]] = {
    "quick": lambda seed: history(seed=seed),
    "long": lambda seed: history(steps=1500, noise=0.3, seed=seed),
    "short": lambda seed: history(steps=30, evaluations=3, seed=seed),
    "power law": lambda seed: history(lambda t: 1.5 + 1.4 * (1 + 20 * t) ** -0.5, seed=seed),
    "heavy tails": lambda seed: history(noise=0.25, heavy=True, seed=seed),
    "hard rows now and then": lambda seed: history(with_spikes([40, 90, 91, 160], 2.5, 1), seed=seed),
    "stairs of epochs": lambda seed: history(
        lambda t: 1.6 - 0.5 * min(1.0, 12 * t) - 0.12 * int(3 * t) + (0.12 if t == 1 else 0),
        lambda t: 1.6 - 0.5 * min(1.0, 12 * t) - 0.03 * min(t, 0.6),
        seed=seed,
    ),
    "already good, a little better": lambda seed: history(lambda t: 1.4 - 0.1 * (1 - math.exp(-9 * t)), noise=0.05, seed=seed),
    "held-out flat at the end": lambda seed: history(healthy, lambda t: above(healthy)(min(t, 0.5)) + 0.01 * t, seed=seed),
    "learned by heart to the end, gradients and all": lambda seed: history(
        lambda t: 0.02 + 1.5 * math.exp(-9 * t),
        lambda t: 0.9 + 0.7 * math.exp(-9 * t),
        noise=0.1,
        heavy=True,
        groups=lambda step: {"q_proj": 0.3 * 0.97**step, "v_proj": 0.5 * 0.96**step},
        seed=seed,
    ),
    "clipped at the beginning": lambda seed: history(norms=lambda t: 8.0 * math.exp(-8 * t), seed=seed),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_found_in_trainings_that_go_well_nor_at_any_step_of_them(shape: str) -> None:
    for seed in range(8):
        whole = SHAPES[shape](seed)
        assert rules(diagnose(whole)) == []
        if seed:
            continue
        running = History(recipe=whole.recipe, planned=whole.planned)
        scored = list(whole.evaluations)
        for step in whole.steps:
            while scored and scored[0].step < step.step:
                running.evaluations.append(scored.pop(0))
            running.steps.append(step)
            assert rules(during(running)) == []


def test_while_it_runs_a_finding_comes_soon_and_once() -> None:
    whole = history(with_spikes([100], 0.9, 95), noise=0.04, outcome=None)
    running = History(recipe=RECIPE, evaluations=whole.evaluations[:1])
    told: set[str] = set()
    when = []
    for step in whole.steps:
        running.steps.append(step)
        for finding in during(running, told):
            told.add(finding.rule)
            when.append((finding.rule, step.step, finding.step))
    ((rule, found, jumped),) = when
    assert (rule, jumped) == ("loss-spike", 100)
    assert 105 <= found <= 125


def test_every_running_rule_looks_at_a_bounded_number_of_losses() -> None:
    """Measured in elements read, not in time."""

    class Counted(list[Any]):
        read = 0

        def __getitem__(self, key: Any) -> Any:
            found = super().__getitem__(key)
            Counted.read += len(found) if isinstance(key, slice) else 1
            return found

        def __iter__(self) -> Any:
            Counted.read += len(self)
            return super().__iter__()

    long = history(steps=20_000, outcome=None, evaluations=20)
    long.steps = Counted(long.steps)
    for rule in RUNNING:
        rule(long)
    assert Counted.read < 2_000


def test_words_carry_the_numbers_and_advice_the_new_values() -> None:
    jumped = diagnose(PLANTED["loss-spike"]())[0]
    assert jumped.step == 100
    assert "At step 100 the loss jumped from about 1.1" in jumped.words
    assert jumped.change == {"learning_rate": 1e-4}
    assert "(learning_rate: 0.0001)" in jumped.advice
    learned_by_heart = diagnose(PLANTED["overfitting"]())[0]
    assert "step 60" in learned_by_heart.words
    assert learned_by_heart.change == {"steps": 60}
    assert diagnose(PLANTED["plateau"]())[0].change == {"learning_rate": 2e-3}
    assert diagnose(PLANTED["underfitting"]())[0].change == {"steps": 400}
    assert diagnose(history(evaluations=0, recipe={"data": {"held_out": 0}}))[0].change == {
        "data.held_out": 0.1
    }


def test_one_group_without_gradient_is_named() -> None:
    dead = history(groups=lambda step: {"layers.0": 0.4, "layers.1": 0.0})
    (finding,) = diagnose(dead)
    assert "No gradient reaches layers.1" in finding.words
    late = history(groups=lambda step: {"lora_A": 0.0 if step == 1 else 0.2, "lora_B": 0.3})
    assert diagnose(late) == []  # A's gradient is zero at the first step, while B is


def test_a_loss_that_stopped_the_training_is_found_in_what_it_said(tmp_path: Path) -> None:
    healthy_so_far = history(outcome=None)
    healthy_so_far.take(
        {"event": "failed", "error": "The loss is nan at step 201: the training has diverged."}
    )
    (finding,) = diagnose(healthy_so_far)
    assert (finding.rule, finding.step) == ("loss-not-finite", 201)


def test_events_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [
        {"event": "started", "kind": "train"},
        {"event": "training", "steps": 9},
        {"event": "evaluated", "when": "before", "loss": 2.0, "rows": 8},
        *({"event": "step", "step": s, "steps": 9, "loss": 2 - s / 10} for s in range(1, 7)),
        {"event": "evaluated", "when": "during", "step": 6, "loss": 1.5},
        {"event": "failed", "error": "the power was gone"},
        {"event": "resumed", "step": 4},
        {"event": "step", "step": 5, "loss": float("nan"), "grad_norms": {"q": 0.5, "v": None}},
        {"event": "best", "step": 4, "loss": 1.7},
        {"event": "evaluated", "when": "during", "step": 5, "loss": 1.7},
        {"event": "evaluated", "when": "during", "step": 5, "loss": 1.6},
    ]
    (tmp_path / "recipe.json").write_text('{"learning_rate": 0.1, "data": {"held_out": 0.2}}')
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "st')
    read = History.from_events(path)
    assert [step.step for step in read.steps] == [1, 2, 3, 4, 5]
    assert math.isnan(read.steps[-1].loss)
    assert read.steps[-1].grad_norms == {"q": 0.5}
    assert [(e.step, e.loss) for e in read.evaluations] == [(0, 2.0), (5, 1.6)]
    assert (read.best, read.planned, read.outcome) == (4, 9, None)
    assert read.setting("data.held_out") == 0.2
    path.write_text('{"event": "started"}\nno event\n{"event": "done"}\n')
    with pytest.raises(FormatError, match="Line 2 of"):
        History.from_events(path)
    with pytest.raises(NotFoundError):
        History.from_events(tmp_path / "none.jsonl")


# The adapter


def silent(store: Store, make_adapter: AdapterMaker, *dead: str) -> None:
    """An adapter called `quiet` whose B is zero in the modules that have one of `dead` in their names."""
    factors = {
        name: (b * 0 if any(part in name for part in dead) else b, a)
        for name, (b, a) in random_factors(llama_modules("q_proj", "v_proj")).items()
    }
    store.add_folder(make_adapter("quiet", factors=factors), name="quiet")


def run_of(
    store: Store,
    past: History,
    digest: str | None = None,
    name: str = "train-20260101-000000-abcdef",
) -> Path:
    """A run's folder with these steps and evaluations."""
    folder = store.runs_dir / name
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(past.recipe))
    events: list[dict[str, Any]] = [{"event": "training", "steps": past.planned}]
    events += [
        {"event": "step", "step": s.step, "loss": s.loss, "learning_rate": s.learning_rate, "grad_norm": s.grad_norm}
        for s in past.steps
    ]  # fmt: skip
    events += [{"event": "evaluated", "step": e.step, "loss": e.loss} for e in past.evaluations]
    events += [{"event": past.outcome}] if past.outcome else []
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if digest:
        (folder / "result.json").write_text(json.dumps({"digest": digest}))
    return folder


def test_modules_that_learned_nothing_are_named_and_the_reason_is_told_from_the_events(
    store: Store, make_adapter: AdapterMaker
) -> None:
    silent(store, make_adapter, "layers.0.", "q_proj")
    (some_dead,) = call("doctor", "quiet", "--json").json["findings"]
    assert some_dead["rule"] == "silent-modules"
    assert "lora_B is zero in 3 of 4 modules" in some_dead["words"]
    assert "model.layers.0.self_attn.q_proj" in some_dead["words"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learning_rate": 0.0}, "The learning rate was 0 at every step"),
        ({"grad_norm": 0.0}, "No gradient reached it"),
        ({}, "what was saved is not what was trained"),
    ],
)
def test_an_adapter_that_learned_nothing_at_all(
    store: Store, make_adapter: AdapterMaker, changes: dict[str, float], says: str
) -> None:
    silent(store, make_adapter, "proj")
    past = history()
    past.steps = [type(step)(**{**vars(step), **changes}) for step in past.steps]
    run_of(store, past, store.resolve("quiet").digest)
    (finding,) = call("doctor", "last", "--json").json["findings"]
    assert "in all 4 modules: the adapter changes nothing" in finding["words"]
    assert says in f"{finding['words']} {finding['advice']}"


# The command


def test_doctor_takes_an_adapter_a_run_its_beginning_and_last(
    store: Store, make_adapter: AdapterMaker
) -> None:
    added = store.add_folder(make_adapter("tone"), name="tone")
    old = run_of(store, PLANTED["diverging"](), name="train-20250101-000000-000001")
    run = run_of(store, PLANTED["plateau"](), added.digest)
    for text in ("tone", run.name, "train-2026", "last"):
        said = call("doctor", text, "--json").json
        assert (said["name"], said["digest"], said["run"]) == (
            "tone" if text == "tone" else said["name"],
            added.digest,
            run.name,
        )
        assert [finding["rule"] for finding in said["findings"]] == ["plateau"]
        assert said["probe"]["rank"] == 4
    lost = call("doctor", old.name, "--json").json
    assert (lost["name"], lost["probe"], lost["outcome"]) == (None, None, "done")
    assert "left no adapter" in lost["remarks"][0]
    assert call("doctor", old.name, "-q").out == "diverging\n"


def test_people_read_findings_first_and_then_the_spectra(
    store: Store, make_adapter: AdapterMaker
) -> None:
    added = store.add_folder(make_adapter("tone"), name="tone")
    run_of(store, PLANTED["plateau"](), added.digest)
    said = call("doctor", "tone")
    lines = said.out.splitlines()
    assert lines[0] == "warning: plateau"
    assert lines[1].startswith("  The loss has not moved: about 2.")
    head = next(i for i, line in enumerate(lines) if line.startswith("module\t"))
    assert lines[head].split("\t")[1:] == [
        "norm", "used", "at 1", "at 2", "90% at", "95% at", "99% at",
    ]  # fmt: skip
    assert [line.split("\t")[0] for line in lines[head + 1 : head + 4]] == [
        "q_proj",
        "v_proj",
        "all",
    ]
    assert said.code == 0


def test_what_is_not_there_is_not_found_with_what_was_perhaps_meant(
    store: Store, make_adapter: AdapterMaker
) -> None:
    assert "No training has been recorded" in call("doctor", "last", "--json").error["why"]
    store.add_folder(make_adapter("tone"), name="support/tone")
    run_of(store, history(), name="train-20250101-000000-000001")
    run_of(store, history(), name="train-20250101-000000-000002")
    missed = call("doctor", "support/tome", "--json")
    assert missed.code == 4
    assert "support/tone" in missed.error["why"]
    assert call("doctor", "train-20250102-000000-000001", "--json").code == 4
    several = call("doctor", "train-2025", "--json")
    assert several.code == 2
    assert "2 trainings begin with train-2025" in several.error["what"]


def test_on_a_terminal_a_row_of_the_spectra_is_one_line(
    store: Store, make_adapter: AdapterMaker
) -> None:
    folder = make_adapter("wide", rank=32, modules=llama_modules())
    store.add_folder(folder, name="wide")
    shown = on_a_terminal("doctor", "wide", width=80).out
    row = next(line for line in shown.splitlines() if line.strip().startswith("down_proj"))
    assert len(row.split()) == 1 + 2 + 3 + 3


def test_of_a_training_that_runs_only_what_can_be_said_yet_is_said(store: Store) -> None:
    run_of(store, history(lambda t: 3.0 - 1.5 * t, lambda t: 3.1 - 1.5 * t, outcome=None))
    said = call("doctor", "last", "--json").json
    assert (said["outcome"], said["findings"]) == (None, [])


# Real trainings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "rule", "better"), [(1.0, "gradient-vanished", 0.1), (1e-7, "plateau", 1e-6)]
)
def test_a_real_training_at_a_hopeless_learning_rate_is_diagnosed(
    train_tiny: Callable[..., Trained], rate: float, rule: str, better: float
) -> None:
    trained = train_tiny(learning_rate=rate, steps=40, scheduler="constant")
    found = {f["rule"]: f for f in call("doctor", trained.name, "--json").json["findings"]}
    assert found[rule]["change"]["learning_rate"] == better


@pytest.mark.slow
def test_a_real_training_that_goes_well_is_left_alone(
    train_tiny: Callable[..., Trained], store: Store
) -> None:
    trained = train_tiny(steps=60)
    said = call("doctor", trained.name, "--json").json
    assert said["run"] == trained.run
    assert [
        finding["rule"] for finding in said["findings"] if finding["severity"] == "problem"
    ] == []
    assert len(said["probe"]["modules"]) == 14
