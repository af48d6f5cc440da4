"""`adapterhub doctor`: what a training's events and its adapter say about it."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.command import Context, command

if TYPE_CHECKING:
    from adapterhub.trainer.doctor import Examination
    from adapterhub.trainer.finding import Finding
    from adapterhub.trainer.probe import Probe, Spectra


@command
def doctor(
    ctx: Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_RUN",
            help="An adapter's name, a training's id or its beginning, or `last`.",
        ),
    ],
) -> None:
    """Say how a training went, what to change next time, and how much of its rank the adapter uses."""
    # One BLAS thread: more of them only wait for each other on matrices this small, and change the last digits.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from adapterhub.trainer.doctor import examine

    with ctx.out.progress("looking at the spectra") as bar:
        examination = examine(ctx.store, what, bar.advance)
    findings = examination.findings
    if ctx.out.mode == "json":
        ctx.out.record(examination.record)
    elif ctx.out.mode == "quiet":
        ctx.out.table([{"rule": finding.rule} for finding in findings], ("rule",), ids="rule")
    else:
        _show(ctx, examination, findings)


def _show(ctx: Context, examination: Examination, findings: list[Finding]) -> None:
    for remark in examination.remarks:
        ctx.out.note(remark)
    if examination.history is not None:
        ctx.out.note(_looked_at(examination))
    for finding in findings:
        _say(ctx, f"{finding.severity}: {finding.rule}")
        _say(ctx, finding.words, "  ")
        _say(ctx, finding.advice, "  ")
        ctx.out.text("")
    if not findings and examination.history is not None:
        _say(ctx, "Nothing is wrong with this training, as far as its events tell.")
        ctx.out.text("")
    if examination.probe is not None:
        _spectra(ctx, examination.probe)


def _looked_at(examination: Examination) -> str:
    history = examination.history
    assert history is not None
    of = f" of {history.planned}" if history.planned > history.last else ""
    ended = history.outcome or "not finished"
    return f"{examination.run}: {ended}, {history.last}{of} steps, held-out rows scored {len(history.evaluations)} times"


def _spectra(ctx: Context, probe: Probe) -> None:
    """One row a kind of module, and one for all; the shares that lower ranks keep are rounded down, so that 1 means all."""
    from adapterhub.trainer.probe import cuts

    shown = cuts(probe.whole.rank)[:-1][-3:]
    rows = [
        _row(name, spectra, shown) for name, spectra in (*probe.parts.items(), ("all", probe.whole))
    ]
    ctx.out.table(rows, tuple(rows[0]))
    if ctx.out.width is None:  # a table on a terminal ends with an empty line
        ctx.out.text("")
    _say(ctx, probe.recommendation.words)


def _row(name: str, spectra: Spectra, ranks: list[int]) -> dict[str, Any]:
    from adapterhub.trainer.probe import SHARES

    return {
        "module": name,
        "norm": spectra.norm,
        "used": round(spectra.mean(lambda module: module.effective_rank), 1),
        **{f"at {rank}": int(100 * spectra.kept(rank)) / 100 for rank in ranks},
        **{f"{share:.0%} at": spectra.needed(share) for share in SHARES},
    }


def _say(ctx: Context, sentence: str, indent: str = "") -> None:
    """A sentence, broken between words where it is longer than the terminal is wide."""
    wide = ctx.out.width
    lines = [sentence]
    if wide is not None:
        lines = textwrap.wrap(
            sentence, max(20, wide - len(indent)), break_on_hyphens=False, break_long_words=False
        )
    for line in lines:
        ctx.out.text(indent + line)
