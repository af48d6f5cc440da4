"""Beside the steps: the best adapter is kept and not the last, training ends when nothing gets better, samples are read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file

from adapterhub.errors import MissingDependencyError
from adapterhub.evaluate.scoring import Score
from adapterhub.store import Store
from adapterhub.trainer.recipe import EvalSpec
from adapterhub.trainer.watch import Course, Scored, evaluation_steps, past
from tests.support.chat import write_rows
from tests.trainer.conftest import events

if TYPE_CHECKING:
    from tests.trainer.conftest import Training


@pytest.fixture
def overfitting(tmp_path: Path) -> dict[str, Any]:
    """A few rows with answers that say nothing about the held-out ones: the held-out loss falls and then rises."""
    rows = [
        {
            "instruction": f"Name thing {i}.",
            "output": f"{'abcdefghijkl'[i % 12] * 3} {(i * 37) % 91} {(i * 53) % 97}.",
        }
        for i in range(24)
    ]
    write_rows(tmp_path / "few.json", rows)
    return {
        "data": {"path": "few.json", "held_out": 0.3}, "steps": 60, "learning_rate": 3e-2, "rank": 16,
        "eval": {"rows": None, "every": 4},
    }  # fmt: skip


def provenance(store: Store, digest: str) -> Any:
    (body,) = [a.body for a in store.attestations(digest) if a.type == "provenance"]
    return body


def test_the_best_step_is_kept_and_the_others_stay_reachable(
    train_tiny: Training, store: Store, overfitting: dict[str, Any]
) -> None:
    trained = train_tiny(**overfitting)
    told = [e for e in events(store) if e["event"] == "evaluated" and e["step"] > 0]
    best = min(told, key=lambda e: e["loss"])
    assert trained.kept == best["step"] < 60
    assert trained.metrics["held_out"]["loss_after"] == best["loss"]
    body = provenance(store, trained.digest)
    assert body["kept"] == {
        "step": best["step"],
        "why": "lowest held-out loss",
        "stopped_early": False,
    }
    assert [c["step"] for c in body["checkpoints"]] == [
        s for s in range(4, 61, 4) if s != best["step"]
    ]
    for checkpoint in body["checkpoints"]:
        kept = store.resolve("@" + checkpoint["digest"].removeprefix("sha256:")[:16])
        assert kept.name is None
        assert (store.view(kept.digest) / "adapter_model.safetensors").is_file()
        assert (
            provenance(store, kept.digest)["metrics"]["held_out"]["loss_after"]
            == checkpoint["loss"]
        )
    assert [entry.name.path for entry in store.entries()] == ["paint"]

    last = train_tiny(
        name="last", **{**overfitting, "eval": {**overfitting["eval"], "keep": "last"}}
    )
    assert last.kept == 60
    assert (
        last.digest == body["checkpoints"][-1]["digest"]
    )  # the same run but for which step was kept
    for digest in (trained.digest, last.digest):
        tensors = load_file(store.view(digest) / "adapter_model.safetensors")
        assert {str(value.dtype) for value in tensors.values()} == {"torch.float32"}


def test_training_ends_when_nothing_gets_better(
    train_tiny: Training, store: Store, overfitting: dict[str, Any]
) -> None:
    overfitting["eval"]["patience"] = 2
    trained = train_tiny(**overfitting)
    assert trained.steps == trained.kept + 8 < 60
    assert provenance(store, trained.digest)["kept"]["stopped_early"]
    assert "stopped_early" in [e["event"] for e in events(store)]


def test_held_out_questions_are_answered_at_each_evaluation(
    train_tiny: Training, store: Store
) -> None:
    train_tiny(steps=40, eval={"rows": 4, "every": 40, "samples": 2, "sample_tokens": 40})
    samples = [e for e in events(store) if e["event"] == "sample"]
    assert [e["step"] for e in samples] == [0, 0, 40, 40]
    assert all(e["question"].startswith("Paint number") for e in samples)
    assert all(e["answer"].startswith("The colour is ") for e in samples[2:])


def test_evaluating_changes_nothing_about_the_training(
    train_tiny: Training, tmp_path: Path
) -> None:
    """Dropout and noise draw from the same stream of random numbers whether or not anything is scored on the way."""
    noisy = {"dropout": 0.2, "neftune_alpha": 5}
    often = train_tiny(
        to=Store(tmp_path / "a"),
        eval={"rows": 4, "every": 3, "samples": 1, "keep": "last"},
        **noisy,
    )
    once = train_tiny(to=Store(tmp_path / "b"), eval={"rows": 4, "keep": "last"}, **noisy)
    assert often.digest == once.digest


@pytest.mark.parametrize(
    ("spec", "steps", "every"),
    [
        (EvalSpec(), 40, 20),
        (EvalSpec(), 1000, 100),
        (EvalSpec(), 1001, 101),
        (EvalSpec(every=7), 1000, 7),
    ],
)
def test_how_often_is_evaluated(spec: EvalSpec, steps: int, every: int) -> None:
    assert evaluation_steps(spec, steps) == every


def test_the_best_is_the_first_of_equals_and_never_the_start() -> None:
    losses = [1.0, 3.0, 2.0, 2.0, 2.5]
    history = Course(evaluations=[Scored(10 * i, Score(x, 1, 1)) for i, x in enumerate(losses)])
    assert history.best is not None
    assert (history.best.step, history.without_gain) == (20, 2)
    assert Course().best is None


def test_a_resumed_run_reads_its_past_up_to_the_checkpoint(tmp_path: Path) -> None:
    def step(number: int, loss: float) -> dict[str, Any]:
        return {
            "event": "step",
            "step": number,
            "loss": loss,
            "seconds": number * 2.0,
            "epoch": 0.1,
        }

    def scored(number: int, loss: float) -> dict[str, Any]:
        return {
            "event": "evaluated",
            "step": number,
            "loss": loss,
            "nll": loss * 5,
            "tokens": 5,
            "rows": 2,
        }

    told = [
        scored(0, 4.0), step(1, 3.0), step(2, 2.9), scored(2, 3.5), {"event": "saved", "step": 2}, step(3, 9.0),
        {"event": "resumed", "step": 2}, step(3, 2.8), step(4, 2.7), scored(4, 3.0), {"event": "saved", "step": 4}, step(5, 1.0),
    ]  # fmt: skip
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(e) + "\n" for e in told))
    history = past(path, 4)
    assert history.losses == [3.0, 2.9, 2.8, 2.7]
    assert [(e.step, e.score.loss) for e in history.evaluations] == [(0, 4.0), (2, 3.5), (4, 3.0)]
    assert (history.steps, history.saved, history.seconds) == (4, [2, 4], 8.0)


def test_numbers_for_tensorboard_are_those_of_the_events(
    train_tiny: Training, store: Store
) -> None:
    from tensorboardX.proto import event_pb2

    train_tiny(steps=4, tensorboard=True, eval={"rows": 4, "every": 2})
    (run,) = store.runs_dir.iterdir()
    (path,) = (run / "tensorboard").iterdir()
    data, found, at = path.read_bytes(), {}, 0  # records: length, its checksum, event, its checksum
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event.FromString(  # type: ignore[attr-defined,unused-ignore] # made at import
            data[at + 12 : at + 12 + length]
        )
        at += length + 16
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    told = events(store)
    losses = {("train/loss", e["step"]): e["loss"] for e in told if e["event"] == "step"}
    losses |= {
        ("held_out/loss", e["step"]): e["loss"]
        for e in told
        if e["event"] == "evaluated" and e["step"]
    }
    assert {key: found[key] for key in losses} == pytest.approx(losses, rel=1e-6)
    assert ("grad_norm/q_proj", 4) in found


def test_without_a_writer_tensorboard_is_refused_before_anything_trains(
    train_tiny: Training, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch.utils.tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="TensorBoard"):
        train_tiny(tensorboard=True)
    assert not store.runs_dir.exists()
