"""lm-evaluation-harness behind the same table: its tasks on the base, adapters and models, attested as everything else.

One base is in memory and adapters are attached to it in turn, as `adapterhub.evaluate.run` does; what the harness says of
each sample goes through the same bootstrap. One table a task, and one attestation, so that a gate can ask for a task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.data import stop_token_ids, template_digest
from adapterhub.errors import UsageError
from adapterhub.evaluate import models
from adapterhub.evaluate.attesting import body_of
from adapterhub.evaluate.harness_chat import Turns
from adapterhub.evaluate.harness_peace import guest, in_peace
from adapterhub.evaluate.harness_tasks import (
    Leaf,
    Marks,
    Unit,
    ask_task,
    is_better,
    load_units,
)
from adapterhub.evaluate.local import Local
from adapterhub.evaluate.measuring import Progress
from adapterhub.evaluate.run import require_attachable
from adapterhub.evaluate.scoring import BATCH_TOKENS
from adapterhub.evaluate.subjects import BASE, Subject, find_subject, shared_base_of
from adapterhub.evaluate.table import EvalRow, Found, Measured, line
from adapterhub.evaluate.task import Settings
from adapterhub.store.catalogue.cachefile import default_folder

if TYPE_CHECKING:
    from adapterhub.base import BaseModel
    from adapterhub.store import Store

BATCH = 8
"""Requests at a time: the harness keeps all logits of a batch, 0.2 GB a thousand tokens where there are 49,152 words."""


@dataclass(frozen=True)
class TaskTable:
    """One task, or group of tasks, and a line for every model."""

    task: str
    digest: str
    """Of what it asks: the data of the attestation, which a gate names."""
    rows: tuple[EvalRow, ...]
    truncated: int
    """Requests that were cut on the left because they are longer than what a model reads."""


def evaluate_with_harness(
    store: Store,
    names: Sequence[str],
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    base: str | None = None,
    max_rows: int | None = None,
    few_shot: int | None = None,
    chat: bool = False,
    dtype: str = "float32",
    progress: Progress | None = None,
    allow_mismatch: bool = False,
    attest: bool = True,
    cached: bool = True,
) -> list[TaskTable]:
    """Asks every name every task; a table a task, in the order of `names`. Measures are called `task/metric`.

    Args:
        names, base, dtype, allow_mismatch, attest: as `adapterhub.evaluate.run.evaluate` takes them.
        tasks: names of tasks, groups and tags of the harness.
        folder: of tasks of one's own; whatever Python is in it is run.
        max_rows: ask so many samples of each task.
        few_shot: examples given before each question; None leaves it to the tasks.
        chat: ask through the base's chat template, examples as turns before; else in plain text, as the harness does.
        cached: take what was found of the same task and the same weights before; what is found is kept either way.

    Raises, before any weights are loaded, what `load_units` and `Turns` raise, UsageError, NotFoundError and IncompatibleError.
    """
    models.require_libraries()
    if not names:
        raise UsageError(
            "Name something to evaluate.", hint=f"adapterhub eval NAME {BASE} --harness TASK"
        )
    models.torch_dtype(dtype)
    subjects = [find_subject(store, name) for name in names]
    require_attachable(store, subjects)
    base_model = shared_base_of(store, subjects, base, allow_mismatch=allow_mismatch)
    home = base_model.path if base_model else next(s.folder for s in subjects if s.folder)
    tokenizer = models.load_tokenizer(home)
    units = load_units(tasks, folder, max_rows, few_shot, Turns(tokenizer) if chat else None)
    backend = Local(
        store, base_model, tokenizer, stop_token_ids(tokenizer, home), dtype, BATCH_TOKENS
    )
    versions = {**backend.identity["versions"], "lm_eval": version("lm_eval")}
    different = {subject.name: subject for subject in subjects}.values()
    marks: dict[str, dict[str, Marks]] = {}
    used = [subject.digest for subject in subjects if subject.digest]
    with store.leases.held("eval", used, f"on {', '.join(tasks)}"):
        for subject in sorted(different, key=lambda one: one.folder is not None):
            what = _what(subject, base_model, backend, versions)
            marks[subject.name] = _ask_all(
                units, subject, backend, max_rows, what, progress, cached=cached
            )
    settings = Settings("all", 0.0, 0, None, max_rows, _window(home, tokenizer), dtype)
    tables = []
    for unit in units:
        table = _table(unit, subjects, marks)
        tables.append(table)
        if attest and base_model is not None:
            facts = _facts(unit, table, base_model, tokenizer, settings, versions)
            for row in table.rows:
                if row.digest is not None:
                    store.attest(row.digest, "eval", body_of(row, table.rows, facts, None))
    return tables


def _ask_all(
    units: Sequence[Unit],
    subject: Subject,
    backend: Local,
    max_rows: int | None,
    what: Mapping[str, Any] | None,
    progress: Progress | None,
    *,
    cached: bool,
) -> dict[str, Marks]:
    """What each task says about one model, which is loaded once one of them isn't known yet, or known ones don't count."""
    leaves = {leaf.name: leaf for unit in units for leaf in unit.leaves}
    requests = sum(leaf.requests for leaf in leaves.values())

    def advance(done: int) -> None:
        if progress:
            progress.advance(done / requests)

    found: dict[str, Marks] = {}
    with ExitStack() as stack:
        lm = None
        for name, leaf in leaves.items():
            kept = None if what is None else _kept_in(what, leaf)
            known = _read(kept) if cached else None
            if known is not None:
                found[name] = known
                advance(leaf.requests)
                continue
            if progress:
                progress.update(f"asking {subject.name}: {name}")
            if lm is None:
                lm = stack.enter_context(_speaking(subject, backend))
            found[name] = ask_task(leaf, lm, max_rows, advance)
            _keep(kept, found[name])
    return found


@contextmanager
def _speaking(subject: Subject, backend: Local) -> Iterator[Any]:
    """The harness's own wrapper around the model."""
    plain = subject if subject.folder else Subject(BASE, "base")
    with backend.model(plain) as alone:
        tokenizer = models.load_tokenizer(Path(alone.name_or_path))  # it may change its own
        with in_peace():
            # Made of the bare model, because it ties weights, which trained ones of an adapter would not survive.
            wrapper = guest("models.huggingface").HFLM
            lm = wrapper(pretrained=alone, tokenizer=tokenizer, batch_size=BATCH)
        with backend.model(subject) as model:
            lm._model = model
            yield lm


def _window(home: Path, tokenizer: Any) -> int:
    """Tokens that a model reads at a time, as the harness finds them."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(home, local_files_only=True)
    return int(guest("models.utils").resolve_max_length(config, tokenizer))


def _table(
    unit: Unit, subjects: Sequence[Subject], marks: Mapping[str, Mapping[str, Marks]]
) -> TaskTable:
    """One task's line for every model."""
    found = [_found(unit, subject, marks[subject.name]) for subject in subjects]
    reference = next((one for one in found if one.subject.kind == "base"), None)
    parts = [leaf.name for leaf in unit.leaves for _ in range(leaf.samples)]
    rows = [
        _with_totals(line(one, reference, parts if len(unit.leaves) > 1 else (), found), unit, told)
        for one, told in zip(found, (marks[subject.name] for subject in subjects), strict=True)
    ]
    cut = max(sum(told[leaf.name].truncated for leaf in unit.leaves) for told in marks.values())
    return TaskTable(unit.name, unit.digest, tuple(rows), cut)


def _found(unit: Unit, subject: Subject, marks: Mapping[str, Marks]) -> Found:
    """What the tasks of a unit say of one model, one after another."""
    measures = dict.fromkeys(one for leaf in unit.leaves for one in marks[leaf.name].values)
    values: dict[str, list[float | None]] = {}
    better: dict[str, bool] = {}
    for measure in measures:
        name = f"{unit.name}/{measure}"
        values[name] = [
            value
            for leaf in unit.leaves
            for value in marks[leaf.name].values.get(measure, [None] * leaf.samples)
        ]
        said = {is_better(leaf.task, measure) for leaf in unit.leaves} - {None}
        if len(said) == 1:
            better[name] = bool(said.pop())
    return Found(
        subject=subject,
        rows=sum(leaf.samples for leaf in unit.leaves),
        scores=None,
        answers=(),
        values=values,
        better=better,
        said=None,
        seconds=round(sum(marks[leaf.name].seconds for leaf in unit.leaves), 3),
        answering_seconds=0.0,
    )


def _with_totals(row: EvalRow, unit: Unit, marks: Mapping[str, Marks]) -> EvalRow:
    """Also the measures that are one number for all samples (F1, BLEU): without an interval, and of each task alone."""

    def of(leaf: Leaf) -> dict[str, Measured]:
        totals = marks[leaf.name].totals
        return {f"{unit.name}/{name}": Measured(value, None) for name, value in totals.items()}

    if len(unit.leaves) == 1:
        return replace(row, measures={**row.measures, **of(unit.leaves[0])})
    parts = {
        leaf.name: replace(part, measures={**part.measures, **of(leaf)})
        for leaf, part in zip(unit.leaves, row.parts.values(), strict=True)
    }
    return replace(row, parts=parts)


def _facts(
    unit: Unit,
    table: TaskTable,
    base: BaseModel,
    tokenizer: Any,
    settings: Settings,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """What all numbers of one task have in common, as `adapterhub.evaluate.attesting.facts_of` tells it."""
    tasks = {
        leaf.name: {
            "version": str(leaf.task.VERSION),
            "few_shot": int(leaf.task.get_config("num_fewshot") or 0),
            "samples": leaf.samples,
        }
        for leaf in unit.leaves
    }
    return {
        "harness": unit.name,
        "data": {
            "digest": unit.digest,
            "rows_digest": unit.rows_digest,
            "truncated": table.truncated,
            "dropped": 0,
        },
        "settings": {
            **asdict(settings),
            "tasks": tasks,
            "chat_template": unit.leaves[0].chat is not None,
        },
        "base": {
            "repo": base.repo,
            "revision": base.revision,
            "fingerprint": base.fingerprint,
            "config": base.config_digest,
        },
        "template": template_digest(tokenizer),
        "versions": dict(versions),
    }


def _what(
    subject: Subject, base: BaseModel | None, backend: Local, versions: Mapping[str, str]
) -> dict[str, Any] | None:
    """What the numbers depend on beside the task; None for a folder of one's own, whose files may change."""
    if subject.folder is not None or base is None:
        return None
    how = {**backend.identity, "versions": dict(versions)}
    return {
        "adapter": subject.digest,
        "weights": base.fingerprint,
        "config": base.config_digest,
        # A fingerprint is of a sample: weights that differ elsewhere are files of another size or time.
        "files": [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in base.shards],
        **how,
    }


def _kept_in(what: Mapping[str, Any], leaf: Leaf) -> Path:
    facts = {**what, "harness": leaf.rows_digest}
    name = digest_of(canonical_bytes(facts)).removeprefix("sha256:")
    return default_folder() / "evaluations" / f"{name}.json"


def _read(kept: Path | None) -> Marks | None:
    """What was found before; None where nothing was, or what is there can't be read."""
    if kept is None:
        return None
    with suppress(OSError, ValueError, msgspec.ValidationError):
        return msgspec.json.decode(kept.read_bytes(), type=Marks)
    return None


def _keep(kept: Path | None, found: Marks) -> None:
    if kept is None:
        return
    with suppress(OSError):  # a cache that can't be written costs only time
        kept.parent.mkdir(parents=True, exist_ok=True)
        writing = kept.with_suffix(".writing")
        writing.write_bytes(msgspec.json.encode(found))
        writing.replace(kept)
