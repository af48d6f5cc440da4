"""`eval`: held-out perplexity of the base, adapters and exported models, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from adapterhub.cli.command import Context, command, require_extra
from adapterhub.errors import UsageError
from adapterhub.words import counted

if TYPE_CHECKING:
    from adapterhub.evaluate import EvalRow
    from adapterhub.evaluate.table import Measured, Part

_ANSWERS = "Answers"
_JUDGE = "A judge, and retrieval"
_PAIR = "QLoRA beside LoRA"
_HARNESS = "lm-evaluation-harness"
_SERVER = "A server"
_USUAL: dict[str, Any] = {
    "held_out": 0.1,
    "split": "held_out",
    "split_seed": 0,
    "max_length": 1024,
    "max_new_tokens": 256,
}
"""Where nothing is said; with --pair the recipe speaks first."""
_FEW = 10
"""Rows below which an interval is hardly one."""


@command
def evaluate(
    ctx: Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Adapters, the word `base`, or folders of exported models."
        ),
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="The data file of the task; with --interactions one an adapter."
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="In place of data: forgetting (what it knew before), injections (orders hidden in tickets), or a YAML file.",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Folder or repository; by default the first adapter's own.")
    ] = None,
    fmt: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="alpaca, messages, sharegpt or text; by default told from the first row.",
        ),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(help="Share of the rows held out, as in the recipe.", show_default="0.1"),
    ] = None,
    split: Annotated[
        Literal["held_out", "all"] | None,
        typer.Option(help="Score the held-out rows, or all.", show_default="held_out"),
    ] = None,
    split_seed: Annotated[
        int | None, typer.Option(help="Seed of the split, as in the recipe.", show_default="0")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use only so many rows of the file, as in the recipe.", min=1)
    ] = None,
    interactions: Annotated[
        str | None,
        typer.Option(
            metavar="MERGED",
            help="An adapter made of the others: score all on each one's task, and tell what it kept of each gain.",
        ),
    ] = None,
    max_rows: Annotated[int | None, typer.Option(help="Score at most so many rows.", min=1)] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens a row is cut to.", min=8, show_default="1024")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Let each of them answer this, too.", rich_help_panel=_ANSWERS),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE",
            rich_help_panel=_ANSWERS,
            help="Let each answer every row's question and measure that: exact, contains, contains=TEXT, lacks=TEXT, regex=PATTERN, json,"
            " schema=FILE, length (in words). Repeat it for several.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="Length of an answer.", min=1, rich_help_panel=_ANSWERS, show_default="256"
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="A column of the data; its values are also scored by themselves."
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Also score the base told this first: what a prompt alone does."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Compute everything again, whatever is known of before.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="Compute in float32, bfloat16 or float16.")
    ] = "float32",
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Go on although one doesn't fit the base.")
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="PORT|URL",
            rich_help_panel=_JUDGE,
            help="Send the answers to this OpenAI-compatible server, which says whether each is better than the base's."
            " Its key goes into the environment: ADAPTERHUB_JUDGE_KEY.",
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model there that judges.", rich_help_panel=_JUDGE),
    ] = None,
    rubric: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="By what it judges: text, or YAML.", rich_help_panel=_JUDGE
        ),
    ] = None,
    judge_against: Annotated[
        Literal["base", "reference"] | None,
        typer.Option(
            help="Beside whose answers it lays each: the base's, or the data's own. By default the base's.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    contexts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also score the base with the texts that were retrieved for each question: what retrieval alone does.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="PORT|URL",
            rich_help_panel=_SERVER,
            help="Ask this server in place of computing here: one of `adapterhub serve`, vLLM, or any that speaks OpenAI's"
            " protocol. Names may be its own, too. Its key goes into the environment: VLLM_API_KEY.",
        ),
    ] = None,
    pair: Annotated[
        bool,
        typer.Option(
            "--pair",
            rich_help_panel=_PAIR,
            help="Two adapters of one recipe, trained with QLoRA and with LoRA: did 4 bits cost quality? On the rows that"
            " the recipe held out, unless the options say others.",
        ),
    ] = False,
    margin: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=_PAIR,
            help="Of the perplexity: so much counts as no difference.",
            show_default="0.01",
        ),
    ] = None,
    harness: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK",
            rich_help_panel=_HARNESS,
            help="In place of data: a task, group or tag of lm-evaluation-harness. Repeat it for several. --max-rows takes so"
            " many of each. Nothing is fetched.",
        ),
    ] = None,
    harness_tasks: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=_HARNESS,
            help="Tasks of your own. They are programs: whatever Python is in the folder is run with all your rights.",
        ),
    ] = None,
    few_shot: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            rich_help_panel=_HARNESS,
            help="Examples before each question; by default what the task says.",
        ),
    ] = None,
) -> None:
    """Score adapters on rows they were never trained on, beside the base: perplexity, and what they answer.

    What was found row by row is kept, so an evaluation that was cut short goes on where it was.
    """
    for package in ("torch", "transformers", "peft"):
        require_extra(package, "train")
    of_data: dict[str, object] = {"--by": by, "--format": fmt, "--limit": limit}
    of_data |= {"--held-out": held_out, "--split": split, "--split-seed": split_seed}
    if harness:
        from adapterhub.cli.harness import harness as run_harness

        given: dict[str, object] = {"--data": data, "--suite": suite, "--pair": pair}
        given |= {"--interactions": interactions, "--prompt": prompt, "--measure": measure}
        given |= {"--system": system, "--server": server, "--judge": judge, "--rubric": rubric}
        given |= {"--judge-model": judge_model, "--judge-against": judge_against}
        given |= {"--contexts": contexts, "--margin": margin, "--max-length": max_length}
        given |= {"--max-new-tokens": max_new_tokens, **of_data}
        _require_none(
            given,
            "--harness",
            why="Its tasks bring their own questions, rows and measures.",
            hint="Ask one after the other; each is attested by itself.",
        )
        asked: dict[str, Any] = {"base": base, "max_rows": max_rows, "dtype": dtype}
        asked |= {"allow_mismatch": allow_mismatch, "cached": not fresh}
        run_harness(
            ctx,
            names,
            harness,
            folder=harness_tasks,
            few_shot=few_shot,
            table=_in_words,
            how=asked,
        )
        return
    if harness_tasks is not None or few_shot is not None:
        raise UsageError(
            "--harness-tasks and --few-shot are for --harness.",
            hint="adapterhub eval NAME base --harness TASK",
        )
    if interactions is not None:
        _require_none(
            {"--suite": suite, "--prompt": prompt},
            "--interactions",
            why="Each adapter is asked the rows of every one's own task.",
            hint="Name a --data FILE an adapter; leave out --interactions to ask all of them something else.",
        )
    elif suite is not None and not data:
        _require_none(
            of_data,
            "--suite",
            why="A suite is asked as a whole, and told apart by parts of its own.",
            hint="Leave it out; --max-rows takes so many of each part.",
        )
    from adapterhub.evaluate import evaluate as run_evaluate
    from adapterhub.evaluate.judge import judge_of
    from adapterhub.evaluate.measures import parse_measure

    chosen = [parse_measure(text) for text in dict.fromkeys(measure or ())]
    judging = judge_of(judge, judge_model, rubric, judge_against)
    answering = bool(chosen) or any(one is not None for one in (judging, prompt, suite))
    if max_new_tokens is not None and not answering:
        raise UsageError(
            "--max-new-tokens: nothing is asked that would be answered.",
            why="A perplexity is taken over the answers of the data.",
            hint="Leave it out, or add --measure, --prompt or a judge.",
        )
    how: dict[str, Any] = {
        "base": base,
        "fmt": fmt,
        "held_out": held_out,
        "split": split,
        "split_seed": split_seed,
        "limit": limit,
        "max_rows": max_rows,
        "max_length": max_length,
        "measures": chosen,
        "by": by,
        "system": system,
        "cached": not fresh,
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
        "allow_mismatch": allow_mismatch,
        "judge": judging,
        "contexts": contexts,
        "server": server,
        "remark": ctx.out.note,
    }
    if pair:
        from adapterhub.cli.pairing import pair as run_pair

        if interactions is not None:
            raise UsageError("--pair and --interactions are two questions.", hint="Ask one.")
        if server is not None:
            raise UsageError(
                "A pair is computed here, not by a server.", hint="Leave out --server."
            )
        run_pair(
            ctx,
            names,
            data or [],
            suite=suite,
            margin=margin,
            table=_in_words,
            how={**how, "prompt": prompt},
        )
        return
    if margin is not None:
        raise UsageError("--margin is for --pair.", hint="adapterhub eval QLORA LORA --pair")
    how |= {key: usual for key, usual in _USUAL.items() if how[key] is None}
    if interactions is not None:
        _interactions(ctx, names, interactions, data or [], how)
        return
    if data is not None and len(data) > 1:
        raise UsageError(
            "Several data files are for --interactions.", hint="Evaluate on one at a time."
        )
    with ctx.out.progress("Evaluating", _models(names, how)) as progress:
        rows = run_evaluate(
            ctx.store,
            names,
            data=data[0] if data else None,
            suite=suite,
            prompt=prompt,
            progress=progress,
            **how,
        )
    if ctx.out.mode == "json":
        ctx.out.table([asdict(row) for row in rows], ())
        return
    if len(rows) > 1 and not any(row.kind == "base" for row in rows):
        ctx.out.note("Are they better than the base? Name it too, the word `base`, to be told.")
    columns, lines = _in_words(rows)
    ctx.out.table(lines, columns)
    told: list[EvalRow | Part] = [*rows, *(part for row in rows for part in row.parts.values())]
    if (fewest := min((one.rows for one in told if one.versus_base), default=_FEW)) < _FEW:
        ctx.out.note(f"{fewest} rows say little, whatever their interval: it knows only these.")
    _remarks(ctx, rows)


def _require_none(given: Mapping[str, object], beside: str, *, why: str, hint: str) -> None:
    """UsageError where an option was given that changes nothing `beside` another."""
    idle = [
        option
        for option, value in given.items()
        if value is not None and value is not False and value != []
    ]
    if idle:
        raise UsageError(f"{', '.join(idle)}: not with {beside}.", why=why, hint=hint)


def _interactions(
    ctx: Context, names: Sequence[str], merged: str, data: Sequence[Path], how: dict[str, Any]
) -> None:
    """A table a task, and what was kept beside what the weights promised."""
    from adapterhub.evaluate.interactions import interactions as run_interactions
    from adapterhub.evaluate.subjects import BASE

    units = _models([BASE, *names, merged], how) * len(data)
    with ctx.out.progress("Evaluating", units) as progress:
        found = run_interactions(ctx.store, names, merged, data, progress=progress, **how)
    if ctx.out.mode == "json":
        ctx.out.table([asdict(one) for one in found], ())
        return
    for one in found:
        columns, lines = _in_words(one.rows)
        ctx.out.table(lines, columns, title=one.data)
        _remarks(ctx, one.rows)
    told = [
        {
            "adapter": one.adapter,
            "gain": one.gain,
            "kept of it": None if one.kept is None else f"{one.kept:.0%}",
            "held of its weights": None if one.retained is None else f"{one.retained:.0%}",
            "nearest cosine": one.cosine,
        }
        for one in found
    ]
    ctx.out.table(told, list(told[0]), ids="adapter", title=f"What {merged} kept")


def _models(names: Sequence[str], how: dict[str, Any]) -> int:
    """How many lines are computed, those of the base asked otherwise among them."""
    return len(set(names)) + sum(how[key] is not None for key in ("system", "contexts"))


def _remarks(ctx: Context, rows: Sequence[EvalRow]) -> None:
    """What should be known before the numbers are relied on."""
    from adapterhub.evaluate.judge import in_words

    if left_out := rows[0].left_out:
        ctx.out.note(
            f"Left out for all: {counted(left_out, 'row')} whose answer has no room within --max-length."
        )
    for text in in_words(rows):
        ctx.out.note(text)


def _in_words(rows: Sequence[EvalRow]) -> tuple[list[str], list[dict[str, Any]]]:
    """The table for people: a line a model, and below it one for each part of the data."""
    measures = list(rows[0].measures)
    columns = ["name", "kind", "perplexity"]
    if any(row.versus_base for row in rows):
        columns.append("against base")
    columns += [*measures, "tokens", "rows"]
    if measures:
        columns.append("tokens/s")
    if any(row.answer is not None for row in rows):
        columns.append("answer")
    lines = []
    for row in rows:
        lines.append(
            {
                "name": row.name,
                "kind": row.kind,
                "tokens": row.tokens,
                "tokens/s": row.tokens_per_second,
                "answer": row.answer,
                **_cells(row),
            }
        )
        lines += [
            {"name": f"  {name or 'the rest'}", "kind": None, **_cells(part)}
            for name, part in row.parts.items()
        ]
    return columns, lines


def _cells(part: EvalRow | Part) -> dict[str, Any]:
    """What a model and a part of the data are told alike."""
    from adapterhub.perplexity import loss_in_words

    versus = part.versus_base
    return {
        "perplexity": part.perplexity,
        "rows": part.rows,
        "against base": loss_in_words(versus.verdict, versus.difference, versus.low, versus.high)
        if versus
        else None,
        **{name: _measured(one) for name, one in part.measures.items()},
    }


def _measured(one: Measured) -> str:
    """`0.62 (better)`."""
    word = one.versus_base.verdict if one.versus_base else None
    return f"{one.value:.3g}" + (f" ({word})" if word else "")
