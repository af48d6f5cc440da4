"""The rules of `doctor`: each looks at a training's history for one thing that goes wrong, and says what to change.

They judge shapes of curves, so they are robust against noise: levels are medians of windows, and the noise of a step's
loss is told from the differences of neighbours (median absolute deviation), which no trend can inflate. A rule that can't
tell yet is silent. Losses are in nats a token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from adapterhub.trainer.finding import (
    Finding,
    deviation,
    error_of_medians,
    finite,
    held_out_curve,
    in_words,
    length_until,
    levels,
    new_length,
    new_rate,
    none,
    to_length,
    to_rate,
    wide_window,
)
from adapterhub.trainer.history import History, Step
from adapterhub.words import counted, some

WINDOW = 20
"""Steps before a step that tell which losses are usual there; also the fewest that tell a trend."""
RECENT = 100
"""Steps at most that a rule looks at while a training runs, so that asking at every step costs nothing."""
_SPIKE = 8.0
"""A loss is a spike so many deviations above the usual: noise with heavy tails reaches six."""
_MATERIAL = 0.1
"""Nats: a rise of less is not worth a word."""
_GONE = 0.01
"""A group's gradient is gone where it fell to this share of what became of another group's."""
_KNOWN = 0.3
"""Nats: text that a model has not seen is hardly ever predicted better than this (a perplexity of 1.35)."""


Rule = Callable[[History], Finding | None]


# The loss of training


def not_finite(history: History) -> Finding | None:
    """A loss that is NaN or infinite, in the events or as the reason why the training failed."""
    lost = next((step for step in history.steps[-RECENT:] if not math.isfinite(step.loss)), None)
    said = re.search(r"loss is (?:nan|-?inf)\S* at step (\d+)", history.error)
    if lost is None and said is None:
        return None
    step = lost.step if lost else int(said[1]) if said else 0
    before = [taken.loss for taken in history.steps if taken.step < step and finite(taken.loss)]
    usual = f" It was {before[-1]:.3g} just before." if before else ""
    return Finding(
        "loss-not-finite",
        "problem",
        f"The loss is no number at step {step}.{usual} Nothing after that step means anything.",
        f"Halve the learning rate{to_rate(history, 0.5)}, or let it rise more slowly (warmup: 0.1). If it happens at the very "
        "first step, the base itself computes NaN: look at its dtype.",
        step,
        new_rate(history, 0.5),
    )


def spike(history: History) -> Finding | None:
    """A sudden jump above what was usual, from which the loss does not come back."""
    steps = history.steps[-RECENT:] if history.outcome is None else history.steps
    losses = [step.loss for step in steps]
    for place in range(WINDOW // 2, len(losses) - 4):
        usual = median(losses[max(0, place - WINDOW) : place])
        height = losses[place] - usual
        if not height > max(_MATERIAL, 0.15 * usual) or height <= _SPIKE * deviation(
            losses[max(0, place - 3 * WINDOW) : place]
        ):
            continue
        after = losses[place + 1 : place + 1 + WINDOW]
        if len(after) < WINDOW // 2 and history.outcome is None:
            return None  # it may come back yet
        if median(after) - usual > height / 3 and median(losses[place + 1 :]) - usual > height / 3:
            step = steps[place].step
            return Finding(
                "loss-spike",
                "problem",
                f"At step {step} the loss jumped from about {usual:.3g} to {losses[place]:.3g} and did not come back: over the "
                f"next {counted(len(after), 'step')} it was about {median(after):.3g}. A step threw the adapter out of where "
                "it was learning.",
                f"Halve the learning rate{to_rate(history, 0.5)}, or clip harder (max_grad_norm: "
                f"{float(history.setting('max_grad_norm', 1.0)) / 2:g}). Then look at the rows around that step: one that is "
                "empty, enormous or in another format does this too.",
                step,
                new_rate(history, 0.5),
            )
    return None


def diverging(history: History) -> Finding | None:
    """The loss ends well above where it began, or climbs back from its lowest level."""
    running = history.outcome is None
    steps = history.steps
    if running and len(steps) > RECENT:
        steps = steps[:WINDOW] + steps[-RECENT:]
    losses = [step.loss for step in steps if finite(step.loss)]
    if len(losses) < WINDOW:
        return None
    wide = wide_window(losses)
    late = max(wide, 3 * WINDOW // 2) if running else wide  # what jumped just now may come back
    first, last = median(losses[:wide]), median(losses[-late:])
    error = error_of_medians(losses, wide)
    low = min(levels(losses, late)) if len(losses) >= 2 * late else last
    if last - first > max(_MATERIAL, 0.1 * first, 5 * error):
        words = f"The loss rises: it began at about {first:.3g} and is at about {last:.3g} after step {history.last}."
    elif last - low > max(_MATERIAL, 0.3 * low, 6 * error):
        words = (
            f"The loss fell from {first:.3g} to {low:.3g} and has climbed back to {last:.3g} by step {history.last}: what "
            "was learned is being lost again."
        )
    else:
        return None
    return Finding(
        "diverging",
        "problem",
        words,
        f"The learning rate is too high. Try a fifth of it{to_rate(history, 0.2)}"
        + (", with rank-stable scaling off" if history.setting("use_rslora") else "")
        + ".",
        history.last,
        new_rate(history, 0.2),
    )


def plateau(history: History) -> Finding | None:
    """The loss is from beginning to end what it was, although there is something to learn."""
    losses = list(filter(finite, history.losses))
    wide = wide_window(losses)
    if len(losses) < WINDOW:
        return None
    first, last = median(losses[:wide]), median(losses[-wide:])
    fell = first - last
    if first < _KNOWN or abs(fell) > max(0.02 * first, 3 * error_of_medians(losses, wide)):
        return None
    curve = history.evaluations
    if len(curve) > 1 and curve[0].loss - min(e.loss for e in curve) > 0.02 * curve[0].loss:
        return None  # the training rows are noisy, but the held-out ones tell that it learns
    return Finding(
        "plateau",
        "warning",
        f"The loss has not moved: about {first:.3g} over the first {counted(wide, 'step')}, about {last:.3g} over the last of "
        f"{len(losses)}.",
        f"The learning rate is most likely too low: try ten times as much{to_rate(history, 10)}. If that changes nothing, look at "
        "the rows: labels that don't follow from the questions can't be learned.",
        history.last,
        new_rate(history, 10),
    )


def still_falling(history: History) -> Finding | None:
    """The loss falls as steeply at the end as before: training ended too early."""
    losses = list(filter(finite, history.losses))
    if len(losses) < 3 * WINDOW or history.stopped_early:
        return None
    sixth = len(losses) // 6
    first, last = median(losses[:sixth]), median(losses[-sixth:])
    late = median(losses[-2 * sixth : -sixth]) - last
    fell = first - last
    if fell < max(_MATERIAL, 0.05 * first) or late < max(
        0.13 * fell, 4 * error_of_medians(losses, sixth)
    ):
        return None
    steps = len(losses)
    return Finding(
        "underfitting",
        "warning",
        f"The loss was still falling when training ended: by {late:.2g} in its last sixth, of {fell:.2g} over all "
        f"{steps} steps. There is more to learn in these rows.",
        f"Train twice as long{to_length(history, 2)}. If that is too long, a higher learning rate{to_rate(history, 2)} or twice the "
        "rank gets further in the same time.",
        history.last,
        new_length(history, 2),
    )


def starts_known(history: History) -> Finding | None:
    """The loss before any learning is lower than unseen text allows."""
    if history.setting("start_from") or not history.steps:
        return None
    before = next((e.loss for e in history.evaluations if e.step == 0), None)
    first = [s.loss for s in history.steps[:3] if s.step <= 3]
    train = median(first) if first else None
    seen = [loss for loss in (before, train) if loss is not None and finite(loss)]
    if not seen or min(seen) >= _KNOWN:
        return None
    rows = "held-out rows" if before is not None and before == min(seen) else "training rows"
    return Finding(
        "known-already",
        "warning",
        f"Before anything was learned, the loss on the {rows} was {min(seen):.2g} already (a perplexity of "
        f"{math.exp(min(seen)):.3g}). Text a model hasn't seen is hardly ever that easy.",
        "Either the base has been trained on these rows, or the answers are all alike, or they stand in the questions. Read "
        "some: adapterhub data report. The scores say little about new questions.",
        0,
    )


# The held-out rows


def overfitting(history: History) -> Finding | None:
    """The held-out loss rises while the training loss falls."""
    curve = held_out_curve(history)
    if len(curve) < 2:
        return None
    best = min(curve, key=lambda e: e.loss)
    last = curve[-1]
    rise = last.loss - best.loss
    later = [e for e in curve if e.step > best.step]
    if not later or rise < max(0.02, 0.03 * best.loss):
        return None
    if history.outcome is None and len(later) < 2:
        return None  # it may fall again
    if len(later) == 1 and len(curve) > 2 and rise < 0.1 * best.loss:
        return None  # one worse score among several proves nothing
    now = median(step.loss for step in history.steps[-WINDOW:]) if history.steps else math.inf
    then = history.between(best.step - WINDOW // 2, best.step + WINDOW // 2)
    if not then or now >= median(step.loss for step in then):
        return None  # both rise: that is divergence, not learning by heart
    kept = history.setting("eval.keep") == "best" and best.step > 0
    rank = history.setting("rank")
    change = length_until(history, best.step)
    fewer = f"Train less ({in_words(change)})" if change else "Train less"
    lower = f", or with a lower rank (rank: {max(1, rank // 2)})" if isinstance(rank, int) else ""
    return Finding(
        "overfitting",
        "remark" if kept and history.stopped_early else "warning",
        f"From step {best.step} on it learned the rows by heart: the held-out loss was lowest there, {best.loss:.3g}, and "
        f"{last.loss:.3g} after step {last.step}, while the training loss went on falling to "
        f"{now:.3g}."
        + (
            f" The adapter of step {best.step} was kept, so nothing is lost but time."
            if kept
            else ""
        ),
        f"{fewer}{lower}, with dropout, or on more rows."
        + (
            ""
            if kept or not best.step
            else " With eval.keep: best the best adapter is kept by itself."
        ),
        best.step,
        change,
    )


def unmoved(history: History) -> Finding | None:
    """Training learned something, and the held-out rows hardly show it."""
    curve = held_out_curve(history)
    losses = list(filter(finite, history.losses))
    if len(curve) < 2 or curve[0].step != 0 or len(losses) < WINDOW:
        return None
    wide = wide_window(losses)
    start, best = curve[0].loss, min(e.loss for e in curve)
    fell = median(losses[:wide]) - median(losses[-wide:])
    if start < _KNOWN or start - best > 0.02 * start or fell < max(_MATERIAL, 0.1 * start):
        return None
    rank = history.setting("rank")
    return Finding(
        "not-generalising",
        "warning",
        f"The training loss fell by {fell:.2g}, but the held-out loss hardly did: {start:.3g} before, {best:.3g} at its best. "
        "What was learned holds for the training rows only.",
        "Give it more rows, or more different ones. A lower rank"
        + (f" (rank: {max(1, rank // 2)})" if isinstance(rank, int) else "")
        + " leaves less room for learning by heart.",
        history.last,
    )


def held_out_apart(history: History) -> Finding | None:
    """Before any learning the held-out rows are much harder than the training rows: the two differ in kind."""
    before = next((e for e in history.evaluations if e.step == 0), None)
    first = [s.loss for s in history.steps[:5] if s.step <= 5]
    if before is None or len(first) < 5 or history.setting("start_from"):
        return None
    train, noise = max(first), deviation([s.loss for s in history.steps[:RECENT]])
    gap = before.loss - train
    if not gap > max(0.3, 0.25 * before.loss, 3 * noise):
        return None
    change = {"data.split_seed": int(history.setting("data.split_seed", 0) or 0) + 1}
    return Finding(
        "held-out-apart",
        "warning",
        f"Before anything was learned, the held-out rows had a loss of {before.loss:.3g} and the first training rows "
        f"{train:.3g} at most. Rows held out by chance should be as hard as the others.",
        "Look for training rows that stand there many times, or that the base knows: adapterhub data report. Another split "
        f"({in_words(change)}) tells whether it was chance.",
        0,
        change,
    )


def unwatched(history: History) -> Finding | None:
    """No held-out rows were scored."""
    if history.evaluations or not history.steps:
        return None
    none = history.setting("data.held_out") == 0
    change: dict[str, Any] = {"data.held_out": 0.1} if none else {"eval.rows": 64}
    return Finding(
        "no-held-out-rows",
        "remark",
        "No held-out rows were scored, so nobody can see whether it learns the task or the rows by heart.",
        f"Hold some out ({in_words(change)}).",
        None,
        change,
    )


# Gradients


def dead_groups(history: History) -> Finding | None:
    """Groups of modules whose gradient is zero. At the first step that of A is, since B is zero then."""
    steps = [step for step in history.steps[-RECENT:] if step.step > 1 and step.grad_norms]
    if len(steps) < 3:
        return None
    names = [
        name for name in steps[-1].grad_norms if all(none(s.grad_norms.get(name)) for s in steps)
    ]
    if not names:
        return None
    every = len(names) == len(steps[-1].grad_norms)
    return Finding(
        "no-gradient",
        "problem",
        (
            f"No gradient reaches the adapter at all: its norm has been 0 at each of {counted(len(steps), 'step')}."
            if every
            else f"No gradient reaches {some(sorted(names))}: its norm has been 0 at each of {counted(len(steps), 'step')}, "
            f"while {counted(len(steps[-1].grad_norms) - len(names), 'other group')} learned."
        ),
        "Gradient checkpointing loses it when the embeddings' output doesn't require one (gradient_checkpointing: false tells)."
        if every
        else "These modules are frozen, or the loss doesn't depend on them. Leave them out of target_modules, or find out why.",
        steps[-1].step,
        {"gradient_checkpointing": False} if every else {},
    )


def vanished(history: History) -> Finding | None:
    """Groups whose gradient has all but gone while that of the others has not: attention that is saturated, most often."""
    begin, now = history.steps[1:6], history.steps[-WINDOW // 2 :]
    if len(history.steps) < WINDOW:
        return None
    ratios = {
        name: _level(now, name) / _level(begin, name)
        for name in now[-1].grad_norms
        if _level(begin, name) > 0
    }
    if len(ratios) < 2:
        return None
    lost = {
        name: ratio for name, ratio in ratios.items() if 0 < ratio < _GONE * max(ratios.values())
    }
    if not lost or max(ratios.values()) < 0.1:  # all of them fall where everything is learned
        return None
    worst = min(lost, key=lambda name: lost[name])
    which = "it" if len(lost) == 1 else f"that of {worst}"
    return Finding(
        "gradient-vanished",
        "problem",
        f"The gradient of {some(sorted(lost))} has all but vanished: {which} fell from "
        f"{_level(begin, worst):.2g} to {_level(now, worst):.2g}, while others are as large as they were. What those "
        "modules feed is saturated, and they no longer learn.",
        f"The first steps were too large. Try a tenth of the learning rate{to_rate(history, 0.1)}, with warmup: 0.1.",
        history.last,
        {**new_rate(history, 0.1), "warmup": 0.1},
    )


def _level(steps: Sequence[Step], group: str) -> float:
    """The usual gradient norm of a group in these steps."""
    return median([step.grad_norms.get(group, 0.0) for step in steps] or [0.0])


def clipping(history: History) -> Finding | None:
    """Nearly every step is clipped, so max_grad_norm decides how far a step goes and not the learning rate."""
    limit = history.setting("max_grad_norm", 1.0)
    steps = history.steps if history.outcome is not None else history.steps[-RECENT:]
    norms = [s.grad_norm for s in steps if s.grad_norm is not None and finite(s.grad_norm)]
    if not isinstance(limit, int | float) or len(norms) < WINDOW:
        return None
    over = sum(norm > limit for norm in norms)
    usual = median(norms)
    if over < 0.9 * len(norms) or usual < 2 * limit:
        return None
    change = {"max_grad_norm": float(f"{1.5 * usual:.2g}")}
    return Finding(
        "always-clipped",
        "remark",
        f"{over} of {len(norms)} steps were clipped: the gradient's norm is usually {usual:.3g}, and max_grad_norm is {limit:g}. "
        "Clipping is meant for the odd step; here it evens all of them out, hard rows and easy ones.",
        f"Raise the limit ({in_words(change)}), or take more rows into a step (gradient_accumulation).",
        None,
        change,
    )


RULES: tuple[Rule, ...] = (
    not_finite, diverging, spike, dead_groups, vanished, overfitting, unmoved, plateau, still_falling, starts_known, held_out_apart,
    clipping, unwatched,
)  # fmt: skip
RUNNING: tuple[Rule, ...] = (
    not_finite, diverging, spike, dead_groups, vanished, starts_known, held_out_apart, overfitting, unwatched,
)  # fmt: skip
"""Those that can tell while the training runs; each looks at a bounded number of steps, or at the evaluations."""
IMPLIED: Mapping[str, frozenset[str]] = {
    "loss-not-finite": frozenset({"loss-spike", "diverging", "underfitting", "plateau"}),
    "diverging": frozenset({"overfitting", "not-generalising", "always-clipped"}),
    "loss-spike": frozenset({"diverging", "overfitting", "not-generalising", "always-clipped"}),
    "no-gradient": frozenset({"plateau"}),
    "gradient-vanished": frozenset({"plateau", "underfitting", "always-clipped"}),
    "overfitting": frozenset({"not-generalising"}),
    "known-already": frozenset({"plateau"}),
}
"""What a finding explains, so that it is not told as well."""
