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
    from adapterhub.evaluate.table import Part

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
            metavar="FILE",
            help="The data file of the task; with --interactions one for each adapter.",
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
            help="alpaca, messages, sharegpt, prompt_completion or text; by default told from the first row.",
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
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_ANSWERS,
            help="Write what each of them answered into this new file: a JSON line a row, with what was expected.",
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
    harness_chat: Annotated[
        bool,
        typer.Option(
            "--harness-chat",
            rich_help_panel=_HARNESS,
            help="Ask through the base's chat template, examples as turns before; without it in plain text.",
        ),
    ] = False,
) -> None:
    """Score adapters on rows they were never trained on, beside the base: perplexity, and what they answer.

    What was found row by row is kept, so an evaluation that was cut short goes on where it was.
    """
    for package in ("torch", "transformers", "peft"):
        require_extra(package, "train")
    of_data: dict[str, object] = {"--by": by, "--format": fmt, "--limit": limit}
    of_data |= {"--held-out": held_out, "--split": split, "--split-seed": split_seed}
    given: dict[str, object] = {"--data": data, "--suite": suite, "--prompt": prompt}
    given |= {"--pair": pair, "--margin": margin, "--interactions": interactions}
    given |= {"--system": system, "--server": server, "--contexts": contexts, "--rubric": rubric}
    given |= {"--judge": judge, "--judge-model": judge_model, "--judge-against": judge_against}
    given |= {"--measure": measure, "--max-length": max_length}
    given |= {"--max-new-tokens": max_new_tokens, "--answers": answers}
    if harness:
        from adapterhub.cli.harness import harness as run_harness

        _require_none(
            given | of_data,
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
            chat=harness_chat,
            how=asked,
        )
        return
    if harness_tasks is not None or few_shot is not None or harness_chat:
        raise UsageError(
            "--harness-tasks, --few-shot and --harness-chat are for --harness.",
            hint="adapterhub eval NAME base --harness TASK",
        )
    _require_all_used(given, of_data)
    from adapterhub.evaluate.judge import judge_of
    from adapterhub.evaluate.measures import parse_measure

    how: dict[str, Any] = {
        "base": base,
        "fmt": fmt,
        "held_out": held_out,
        "split": split,
        "split_seed": split_seed,
        "limit": limit,
        "max_rows": max_rows,
        "max_length": max_length,
        "measures": [parse_measure(text) for text in dict.fromkeys(measure or ())],
        "by": by,
        "system": system,
        "cached": not fresh,
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
        "allow_mismatch": allow_mismatch,
        "judge": judge_of(judge, judge_model, rubric, judge_against),
        "contexts": contexts,
        "server": server,
        "remark": ctx.out.note,
    }
    files = data or []
    if pair:
        from adapterhub.cli.pairing import pair as run_pair

        run_pair(ctx, names, files, suite=suite, margin=margin, how={**how, "prompt": prompt})
        return
    how |= {key: usual for key, usual in _USUAL.items() if how[key] is None}
    if interactions is not None:
        from adapterhub.cli.interacting import interactions as run_interactions

        run_interactions(ctx, names, interactions, files, how)
        return
    if len(files) > 1:
        raise UsageError(
            "Several data files are for --interactions.", hint="Evaluate on one at a time."
        )
    how["answers"] = answers
    _one_table(ctx, names, files[0] if files else None, suite=suite, prompt=prompt, how=how)


def _one_table(
    ctx: Context,
    names: Sequence[str],
    data: Path | None,
    *,
    suite: str | None,
    prompt: str | None,
    how: Mapping[str, Any],
) -> None:
    """All names on one task, side by side."""
    from adapterhub.cli.eval_words import FEW, in_words, models, remarks
    from adapterhub.evaluate import evaluate as run_evaluate

    with ctx.out.progress("Evaluating", models(names, how)) as progress:
        rows = run_evaluate(
            ctx.store, names, data=data, suite=suite, prompt=prompt, progress=progress, **how
        )
    if ctx.out.mode == "json":
        ctx.out.table([asdict(row) for row in rows], ())
        return
    if len(rows) > 1 and not any(row.kind == "base" for row in rows):
        ctx.out.note("Are they better than the base? Name it too, the word `base`, to be told.")
    columns, lines = in_words(rows)
    ctx.out.table(lines, columns)
    told: list[EvalRow | Part] = [*rows, *(part for row in rows for part in row.parts.values())]
    if (fewest := min((one.rows for one in told if one.versus_base), default=rows[0].rows)) < FEW:
        ctx.out.note(
            f"{counted(fewest, 'row')} {'says' if fewest == 1 else 'say'} little, whatever the interval: it knows only these."
        )
    if data is not None and how["split"] == "held_out" and how["max_rows"] is None and fewest < FEW:
        ctx.out.note(
            f"Scored is what --held-out {how['held_out']:g} leaves of the file. Of a file that was held out as a whole:"
            " --split all --held-out 0."
        )
    remarks(ctx, rows)


def _require_all_used(given: Mapping[str, object], of_data: Mapping[str, object]) -> None:
    """UsageError where an option was given that changes nothing beside the others; --harness is not among them."""
    if given["--interactions"] is not None:
        _require_none(
            {option: given[option] for option in ("--suite", "--prompt", "--answers")},
            "--interactions",
            why="Each adapter is asked the rows of every one's own task.",
            hint="Name a --data FILE an adapter; leave out --interactions to ask all of them something else.",
        )
    elif given["--suite"] is not None and not given["--data"]:
        _require_none(
            of_data,
            "--suite",
            why="A suite is asked as a whole, and told apart by parts of its own.",
            hint="Leave it out; --max-rows takes so many of each part.",
        )
    answering = any(given[option] for option in ("--measure", "--judge", "--prompt", "--suite"))
    if given["--max-new-tokens"] is not None and not answering:
        raise UsageError(
            "--max-new-tokens: nothing is asked that would be answered.",
            why="A perplexity is taken over the answers of the data.",
            hint="Leave it out, or add --measure, --prompt or a judge.",
        )
    if given["--pair"]:
        _require_none(
            {option: given[option] for option in ("--interactions", "--answers")},
            "--pair",
            why="They are two questions.",
            hint="Ask one.",
        )
        _require_none(
            {"--server": given["--server"]},
            "--pair",
            why="A pair is computed here, not by a server.",
            hint="Leave out --server.",
        )
    elif given["--margin"] is not None:
        raise UsageError("--margin is for --pair.", hint="adapterhub eval QLORA LORA --pair")


def _require_none(given: Mapping[str, object], beside: str, *, why: str, hint: str) -> None:
    """UsageError where an option was given that changes nothing `beside` another."""
    idle = [
        option
        for option, value in given.items()
        if value is not None and value is not False and value != []
    ]
    if idle:
        raise UsageError(f"{', '.join(idle)}: not with {beside}.", why=why, hint=hint)
