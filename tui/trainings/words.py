"""What the training screen says: how a run stands, what was measured at a step, what comes next, samples, findings."""

from __future__ import annotations

import math
from collections.abc import Iterator

from textual.content import Content

from adapterhub.cli.output import clean
from adapterhub.trainer.history import History, Step
from adapterhub.tui.facts import Fact, Section, Tone
from adapterhub.tui.trainings.model import Axis, Watched, at_step, nearest
from adapterhub.words import human_count, human_size

_STATES: dict[str, tuple[str, str]] = {
    "running": ("▶ running", "$text-success"),
    "done": ("✓ done", "$text-success"),
    "failed": ("✗ failed", "$text-error"),
    "interrupted": ("■ stopped", "$text-warning"),
    "died": ("✗ died", "$text-error"),
    "gone": ("? gone", "$text-error"),
}
_TONES: dict[str, Tone] = {"problem": "error", "warning": "warning", "remark": ""}


def duration(seconds: float) -> str:
    """`45 s`, `3:20 min`, `2:05 h`."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def on_axis(axis: Axis, x: float) -> str:
    """A place on the axis."""
    if axis == "time":
        return duration(x)
    return human_count(round(x)) if axis == "tokens" else str(round(x))


def headline(one: Watched, *, stopping: bool, several: bool) -> Content:
    """One line on a run: its state, its name, how far it has come, how long yet."""
    sign, style = _STATES[one.state]
    history = one.history
    if stopping and one.runs:
        sign = "▶ stopping after this step"
    step = f"step {history.last} of {max(history.planned, history.last)}" if history.steps else ""
    if one.runs and not history.steps:
        doing = one.record.progress.what if one.record and one.record.progress else ""
        step = f"preparing: {clean(doing) or 'reading the data and the base'}"
    last = history.steps[-1] if history.steps else None
    left = f"{duration(last.left)} left" if last and one.runs and last.left is not None else ""
    parts = [part for part in (clean(one.name), step, left) if part]
    letter = f"{one.letter} " if several else ""
    return Content.assemble((f"{letter}{sign}", f"bold {style}"), "  ", "  ·  ".join(parts))


def outcome(one: Watched) -> tuple[Fact, ...]:
    """What became of a run that has ended, and how to go on."""
    history = one.history
    after = f"after step {history.last}" if history.steps else "before its first step"
    on = (
        f"R goes on after step {history.checkpoint}."
        if history.checkpoint is not None
        else "There is no checkpoint to go on from."
    )
    if one.state == "gone":
        return (Fact("", "There is no such run any more.", "error"),)
    if one.state == "died":
        said = f"Its process ended without a word {after}: killed, or out of memory."
        return (Fact("died", said, "error"), Fact("", on))
    if one.state == "interrupted":
        return (Fact("stopped", f"{after[0].upper()}{after[1:]}. {on}", "warning"),)
    if one.state == "failed":
        error = (one.record.error if one.record else None) or {}
        told = [clean(error[part]) for part in ("what", "why", "hint") if error.get(part)]
        words = told or [clean(history.error) or "It said nothing."]
        again = [Fact("", on)] if history.checkpoint is not None else []
        return (Fact("failed", words[0], "error"), *(Fact("", word) for word in words[1:]), *again)
    if one.state == "done" and history.result is None:
        return (Fact("", "The store had the result of this very training already."),)
    if history.result is not None:
        return (
            Fact("done", f"{clean(history.result)} is in the store; enter shows it.", "strong"),
        )
    return ()


def now(one: Watched, step: Step | None) -> tuple[Section, ...]:
    """The figures at a step (None: the newest one), and what comes next."""
    history = one.history
    step = step or (history.steps[-1] if history.steps else None)
    found = [Section("", outcome(one))] if outcome(one) else []
    if step is not None:
        found.append(Section(f"step {step.step}", tuple(_measured(step, history))))
    if one.runs and history.steps:
        found.append(Section("next", tuple(_next(history))))
    if step is not None and step.grad_norms:
        norms = sorted(step.grad_norms.items(), key=lambda item: -item[1])
        groups = tuple(Fact(clean(name), f"{norm:.4g}") for name, norm in norms)
        found.append(Section("gradient norm by module", groups))
    return tuple(found)


def _measured(step: Step, history: History) -> Iterator[Fact]:
    scored = at_step(history).get(step.step)
    yield Fact(
        "loss", f"{step.loss:.4g}" + (f"  (perplexity {_exp(step.loss)})" if step.loss < 20 else "")
    )
    if scored is not None:
        yield Fact("held out", f"{scored:.4g}", "strong")
    best = min(history.evaluations, key=lambda one: one.loss, default=None)
    if best is not None:
        first = history.evaluations[0]
        before = f"; {first.loss:.4g} at step {first.step}" if best is not first else ""
        yield Fact("best", f"{best.loss:.4g} at step {best.step}{before}")
    if step.learning_rate is not None:
        yield Fact("rate", f"{step.learning_rate:.3g}")
    if step.grad_norm is not None:
        yield Fact("gradient", f"{step.grad_norm:.4g}")
    if step.tokens_per_second is not None:
        trained = f", {human_count(step.tokens)} so far" if step.tokens is not None else ""
        yield Fact("tokens/s", f"{step.tokens_per_second:.4g}{trained}")
    if step.memory is not None:
        yield Fact("memory", human_size(step.memory))
    if step.seconds is not None:
        yield Fact("took", duration(step.seconds))


def _next(history: History) -> Iterator[Fact]:
    """When it will be scored and saved next, and when it ends."""
    after = history.last
    every = history.setting("eval.every") or max(20, math.ceil(history.planned / 10))
    save = history.setting("save_every") or every
    if history.evaluations:
        yield Fact("scored", f"at step {min((after // every + 1) * every, history.planned)}")
    coming = (after // save + 1) * save
    kept = f", the last at {history.checkpoint}" if history.checkpoint is not None else ""
    yield Fact(
        "checkpoint", (f"at step {coming}" if coming < history.planned else "none more") + kept
    )
    patience = history.setting("eval.patience")
    yield Fact(
        "ends",
        f"at step {history.planned}"
        + (f", or after {patience} scores without gain" if patience else ""),
    )


def samples(history: History) -> tuple[Section, ...]:
    """Held-out questions and their answers, the newest first."""
    if not history.samples:
        return (
            Section(
                "",
                (
                    Fact(
                        "",
                        "No samples: eval.samples in the recipe says how many questions are answered.",
                    ),
                ),
            ),
        )
    steps = sorted({one.step for one in history.samples}, reverse=True)
    return tuple(
        Section(
            f"after step {step}" if step else "before training",
            tuple(
                fact
                for one in history.samples
                if one.step == step
                for fact in (
                    Fact("asked", clean(one.question)),
                    Fact("answer", clean(one.answer), "strong"),
                    Fact("", ""),
                )
            ),
        )
        for step in steps
    )


def findings(one: Watched) -> tuple[Section, ...]:
    """What the doctor says."""
    if not one.findings:
        so_far = "so far, " if one.runs else ""
        return (Section("", (Fact("", f"Nothing is wrong, {so_far}as far as the events tell."),)),)
    return tuple(
        Section(
            f"{found.severity}: {found.rule}",
            (Fact("", found.words, _TONES[found.severity]), Fact("", found.advice)),
        )
        for found in one.findings
    )


def recipe(history: History) -> tuple[Section, ...]:
    """The recipe that is trained."""
    plain = tuple(
        Fact(clean(key), _said(value))
        for key, value in history.recipe.items()
        if not isinstance(value, dict)
    )
    inner = tuple(
        Section(
            clean(key), tuple(Fact(clean(name), _said(inside)) for name, inside in value.items())
        )
        for key, value in history.recipe.items()
        if isinstance(value, dict)
    )
    return (Section("", plain), *inner)


def readout(watched: tuple[Watched, ...], x: float, axis: Axis) -> Content:
    """What was measured at the cursor, of every run."""
    parts = []
    for one in watched:
        step = nearest(one.history, x, axis)
        if step is None:
            continue
        scored = at_step(one.history).get(step.step)
        said = f": loss {step.loss:.4g}" + (
            f", held out {scored:.4g}" if scored is not None else ""
        )
        if len(watched) == 1 and step.learning_rate is not None and step.grad_norm is not None:
            said += f", rate {step.learning_rate:.2g}, gradient {step.grad_norm:.3g}"
        letter = f"{one.letter} " if len(watched) > 1 else ""
        parts.append(Content.assemble((f"{letter}step {step.step}", "bold"), said))
    return Content("   ").join(parts)


def _said(value: object) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else clean(value)
    )


def _exp(loss: float) -> str:
    return f"{math.exp(loss):.4g}"


def stopping(one: Watched, *, again: bool) -> list[str]:
    """What follows from stopping a training."""
    history = one.history
    unchanged = "The store stays as it is: nothing is added."
    if not history.steps:
        return ["It has not begun yet, so there is nothing to keep.", unchanged]
    if again:
        kept = history.checkpoint
        lost = (
            f"What it learned after step {kept} is lost."
            if kept is not None
            else "Everything it learned is lost."
        )
        return [
            "It was asked already and is in the middle of a step; this doesn't wait for it.",
            lost,
        ]
    return [
        f"It ends after the step it is in (now {history.last} of {history.planned}) and keeps a checkpoint there.",
        "R goes on from there, here or with:  adapterhub train RECIPE --resume",
        unchanged,
    ]
