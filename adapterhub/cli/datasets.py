"""`adapterhub data`: what is in files of training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.command import Context, command, require_extra
from adapterhub.cli.output import Output
from adapterhub.errors import ExitCode, UsageError
from adapterhub.words import counted, hanging, some

if TYPE_CHECKING:
    from adapterhub.data.report import DataReport, Tokenizing

app = typer.Typer(no_args_is_help=True, help="Look into files of training data.")
_MOST_SHOWN = 400
"""Characters of a text of the example."""


@app.callback()
def _group() -> None:
    """Without it typer would make the only command the group itself."""


@command
def report(
    ctx: Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Files (.json .jsonl .csv .parquet .txt), folders, hf://datasets/org/name[@revision][/path].",
        ),
    ],
    fmt: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="alpaca, messages, sharegpt, prompt_completion, preference or text; by default told from the rows.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Folder or repository: count the tokens of this base, too."),
    ] = None,
    max_length: Annotated[
        str, typer.Option(metavar="N|auto", help="Tokens a row is cut to, as in the recipe.")
    ] = "1024",
    held_out: Annotated[
        float, typer.Option(help="Share of the rows held out, as in the recipe.")
    ] = 0.1,
    split_seed: Annotated[int, typer.Option(help="Seed of the split, as in the recipe.")] = 0,
    replay: Annotated[
        str | None, typer.Option(metavar="PATH", help="General data to mix in.")
    ] = None,
    ratio: Annotated[
        float, typer.Option(help="Replayed rows for every training row of your own.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Which rows are replayed: the recipe's seed.")] = 0,
) -> ExitCode:
    """Say what is in training data, how it splits, how long it is, and what is wrong with it; exit 1 when it is refused."""
    from adapterhub.data.reading import read_data, scan_any
    from adapterhub.data.report import Replay, make_report

    limit = _limit(max_length)
    if not 0 <= held_out < 1:
        raise UsageError(f"--held-out is {held_out:g}; it must be at least 0 and less than 1.")
    scan = scan_any(paths, fmt, ctx.out.note)
    general = Replay(read_data(replay, None, ctx.out.note), ratio, seed) if replay else None
    with ExitStack() as stack:
        tokenizing = None
        if base is not None:
            tokenizing = _tokenizing(ctx, stack, base, limit, len(scan.rows))
        found = make_report(
            scan, held_out=held_out, seed=split_seed, tokenizing=tokenizing, replay=general
        )
    if ctx.out.mode == "human":
        _show(ctx.out, found)
    else:
        ctx.out.record(found.record, ids=("digest",))
    return ExitCode.FAILED if found.health.refused else ExitCode.OK


def _limit(text: str) -> Any:
    """`auto`, or a number of tokens."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 8:
        raise UsageError(
            f"'{text}' is no length.", hint="--max-length is `auto` or a number of 8 at least."
        )
    return int(text)


def _tokenizing(ctx: Context, stack: ExitStack, base: str, limit: Any, rows: int) -> Tokenizing:
    require_extra("transformers", "train")
    from adapterhub.data.report import Tokenizing
    from adapterhub.evaluate.models import load_tokenizer, quiet_libraries

    model = ctx.store.bases.open(base)
    stack.enter_context(quiet_libraries())
    tokenizer = load_tokenizer(model.path)
    progress = stack.enter_context(ctx.out.progress("Counting tokens", rows))
    return Tokenizing(tokenizer, model.label, model.path, limit, progress.advance)


# The report for people


def _show(out: Output, found: DataReport) -> None:
    record = found.record
    out.record(_summary(record))
    for problem in found.health.problems:
        label = "refused: " if problem.severity == "refuse" else "warning: "
        out.text("")
        _wrapped(out, label, f"{problem.words} [{problem.kind}]")
        if problem.groups:
            _wrapped(out, "         ", problem.shown())
    if record["example"]:
        out.text("")
        _show_example(out, record["example"])
    refused = len(found.health.refused)
    if refused:
        out.text("")
        out.text(f"Training would be refused: {counted(refused, 'problem')} of that kind.")
    if any(len(problem.groups) > 6 for problem in found.health.problems):
        out.note("All rows of every problem: --json")


def _summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as a few lines."""
    split, tokens, replay = record["split"], record["tokens"], record["replay"]
    turns = record["turns"]
    shown: dict[str, Any] = {
        "files": [
            {
                "name": file["name"],
                "rows": counted(file["rows"], "row"),
                "format": file["format"],
                **({"unused": f"not used: {some(file['unused'], 8)}"} if file["unused"] else {}),
                **({"source": file["source"]} if "://" in file["source"] else {}),
            }
            for file in record["files"]
        ],
        "rows": f"{record['rows']} {record['kind']}"
        + (f", and {record['faulty']} that can't be read" if record["faulty"] else ""),
        "digest": record["digest"],
    }
    if turns:
        shown["turns"] = _spread(turns)
        shown["with"] = (
            f"a system message: {record['with_system']}, tool calls: {record['with_tools']}"
        )
    if split:
        shown["split"] = (
            f"{split['train']} to train on, {split['held_out']} held out ({split['fraction']:g}, seed {split['seed']})"
        )
    shown["characters"] = {key: _spread(value) for key, value in record["characters"].items()}
    if tokens:
        shown["tokens"] = {
            "row": _spread(tokens["row"]),
            "answers": _spread(tokens["answers"]),
            "trained": f"{tokens['trained']} of {tokens['total']} ({tokens['trained_share']:.0%})",
            "max_length": f"{tokens['max_length']}: {tokens['truncated']} cut, {tokens['dropped']} dropped"
            f" (auto would be {tokens['auto']})",
            "base": tokens["base"],
        }
    if replay:
        shown["replay"] = (
            f"{replay['taken']} of {replay['general']} general rows, {replay['train']} to train on in all"
        )
    return shown


def _spread(values: Mapping[str, int]) -> str:
    """50% <= 120, 90% <= 300, ..., max 1200: or one number where all are equal."""
    if len(set(values.values())) == 1:
        return f"{values['max']} each"
    parts = [f"{key[1:]}% ≤ {value}" for key, value in values.items() if key != "max"]
    return ", ".join([*parts, f"all ≤ {values['max']}"]) if values else "–"


def _show_example(out: Output, example: Mapping[str, Any]) -> None:
    out.text(f"example ({example['row']})")
    if "text" in example:
        _wrapped(out, "  text: ", _cut(example["text"]))
    for part in ("messages", "prompt", "chosen", "rejected"):
        turns: Sequence[Mapping[str, str]] = example.get(part, ())
        if turns and part != "messages":
            out.text(f"  {part}")
        for turn in turns:
            _wrapped(out, f"  {turn['role']}: ", _cut(turn["content"]))


def _cut(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _MOST_SHOWN else f"{words[: _MOST_SHOWN - 1]}…"


def _wrapped(out: Output, head: str, text: str) -> None:
    for line in hanging(head, text, out.width):
        out.text(line)


app.command("report")(report)
