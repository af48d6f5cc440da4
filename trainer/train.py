"""`train`: recipe in, adapter in the store out, with everything about how it came to be attested.

Whatever can be refused is refused before the base is loaded. The store is touched once, at the very end; until then a
training leaves only its run's folder behind, from which it can be resumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from adapterhub.data import examine
from adapterhub.errors import ConflictError, IncompatibleError, NotFoundError
from adapterhub.names import parse_name
from adapterhub.runs import EVENTS, Run, running
from adapterhub.trainer.board import writer_class
from adapterhub.trainer.data import Corpus, TokenData, load_corpus, tokenize, tokenizer_for
from adapterhub.trainer.launch import no_sharding_here
from adapterhub.trainer.libraries import logged_to, require_libraries
from adapterhub.trainer.objectives import objective_of
from adapterhub.trainer.provenance import NOT_CHOSEN, metrics, training_digest
from adapterhub.trainer.ranks import SilentRun, here
from adapterhub.trainer.recipe import anywhere
from adapterhub.trainer.remarks import remarks
from adapterhub.words import short

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapterhub.base import BaseModel
    from adapterhub.cli.output import Output
    from adapterhub.store import Resolved, Store
    from adapterhub.trainer.loop import QuietTrainer, Stop
    from adapterhub.trainer.model import Device
    from adapterhub.trainer.provenance import Finished
    from adapterhub.trainer.recipe import Recipe
    from adapterhub.trainer.saving import Initial
    from adapterhub.trainer.watch import Course, Watch


PACKED_LENGTH = 1024
"""Tokens of a packed sequence where `max_length: auto` says only how long a row may be."""


@dataclass(frozen=True)
class Trained:
    """The outcome. `reused` means that this very training was in the store already and nothing was computed."""

    name: str
    digest: str
    base: str
    steps: int
    kept: int
    """The step whose adapter it is."""
    metrics: Mapping[str, Any]
    seconds: float
    run: str | None
    reused: bool

    @property
    def record(self) -> dict[str, Any]:
        """As `out.record` takes it."""
        held_out = self.metrics.get("held_out") or {}
        shown = ("accuracy", "margin") if "margin_after" in held_out else ("perplexity",)
        return {
            "name": self.name,
            "digest": self.digest,
            "base": self.base,
            "steps": self.steps,
            "kept_step": self.kept,
            "first_loss": self.metrics.get("first_loss"),
            "last_loss": self.metrics.get("last_loss"),
            **{
                key: held_out.get(key)
                for name in shown
                for key in (f"{name}_before", f"{name}_after")
            },
            "seconds": self.seconds,
            "run": self.run,
            "reused": self.reused,
        }


def train(
    store: Store,
    recipe: Recipe,
    out: Output,
    *,
    move: bool = False,
    redo: bool = False,
    resume: bool = False,
    typed: str = "adapterhub train RECIPE",
) -> Trained:
    """Trains `recipe` and puts the adapter into `store` under its name.

    Args:
        move: point the name at the new adapter when it names another one.
        redo: train again although the store has the result of this very training under this name.
        resume: go on with the newest unfinished run of this very training.
        typed: the command line, for the words on how to go on after an interrupt.

    Raises ConflictError when the name is taken, NotFoundError when there is nothing to resume, and what reading, masking
    and loading raise, before any training. A Ctrl-C during training ends it after the current step.
    """
    require_libraries()
    if recipe.tensorboard:
        writer_class()
    ranks = here()
    base, start, corpus, training = _opened(store, recipe)
    known = known_result(store, recipe, training, move=move)
    if known and not redo:
        ranks.share(None)
        return known
    move = move or known is not None  # a training done again replaces its own result, nothing else
    again = _unfinished(store.runs_dir, training) if resume else None
    if resume and again is None:
        raise NotFoundError(
            "There is no unfinished run of this training to resume.",
            why="No run with the same settings, data and base has a complete checkpoint.",
            hint="Train without --resume; or is the recipe, the data or the base another one now?",
        )
    with (
        running(store.runs_dir, "train", anywhere(recipe).document, again=again) as run,
        logged_to(run.path / "log"),
    ):
        run.event("prepared", training=training)
        ranks.share((run.path, training, resume))
        job = _Job(store, recipe, out, base, corpus, run, training, start, typed)
        trained = _train(job, move=move, resume=resume)
        (run.path / "result.json").write_text(
            json.dumps(trained.record, indent=2), encoding="utf-8"
        )
        run.event("added", name=trained.name, digest=trained.digest)
        return trained


def follow(store: Store, recipe: Recipe, out: Output) -> None:
    """What the other processes of a training do: they compute with the first one, and keep nothing.

    Raises IncompatibleError when the base, the data or the settings here are others than those of the first one.
    """
    require_libraries()
    ranks = here()
    told: Any = ranks.share(None)
    if told is None:  # the store has the result
        return
    path, training, resume = told
    base, start, corpus, found = _opened(store, recipe)
    if found != training:
        raise IncompatibleError(
            f"Process {ranks.index} has another base, other data or other settings than the first one.",
            hint="Give every machine the same recipe, base and data.",
        )
    with logged_to(path / f"log.{ranks.index}"):
        run = SilentRun(path.name, path)
        _fit(_Job(store, recipe, out, base, corpus, run, training, start, ""), resume=resume)


def _opened(store: Store, recipe: Recipe) -> tuple[BaseModel, Resolved | None, Corpus, str]:
    """The base, the adapter to go on from, the rows, and the digest of the training that they are."""
    base = store.bases.open(recipe.base)
    start = _start(store, recipe, base)
    corpus = load_corpus(recipe)
    started = start.digest if start else None
    return base, start, corpus, training_digest(recipe, corpus, base, started, here().count)


def _start(store: Store, recipe: Recipe, base: BaseModel) -> Resolved | None:
    """The adapter to go on from, when the recipe names one; it must fit the base and be of the recipe's making."""
    if recipe.start_from is None:
        return None
    found = store.resolve(recipe.start_from)
    store.require_fit(found, base)
    lora = found.manifest.lora
    if lora is None or found.manifest.kind not in ("lora", "dora"):
        raise IncompatibleError(
            f"{recipe.start_from} is of the kind {found.manifest.kind}, which can't be trained on.",
            hint="Start from a LoRA or DoRA adapter.",
        )
    return found


def known_result(store: Store, recipe: Recipe, training: str, *, move: bool) -> Trained | None:
    """The result of this very training, when the name holds it already; ConflictError when it holds another."""
    try:
        found = store.resolve(recipe.name)
    except NotFoundError:
        return None
    for attestation in store.attestations(found.digest):
        body = attestation.body
        if attestation.type != "provenance" or body.get("training") != training:
            continue
        if body["kept"]["why"] != NOT_CHOSEN:  # somebody may have named a checkpoint so
            return Trained(
                name=str(parse_name(recipe.name)),
                digest=found.digest,
                base=str(body["recipe"]["base"]),
                steps=int(body["steps"]),
                kept=int(body["kept"]["step"]),
                metrics=body["metrics"],
                seconds=float(body["seconds"]),
                run=None,
                reused=True,
            )
    if not move:
        raise ConflictError(
            f"The name {recipe.name} is taken by another adapter ({short(found.digest)}).",
            why="It is not the result of this recipe on these data and this base.",
            hint="Choose another with --name, or point this one at the new adapter with --move.",
        )
    return None


def _unfinished(runs: Path, training: str) -> Run | None:
    """The newest run of this training that has something to go on from and no result."""
    from adapterhub.trainer.checkpoints import newest

    for folder in sorted(runs.glob("train-*"), reverse=True):
        events = folder / EVENTS
        if (folder / "result.json").exists() or not events.is_file():
            continue
        # The line is near the start; a file of many thousand events isn't read for it.
        with events.open(encoding="utf-8") as file:
            if training in file.read(2**16) and newest(folder / "scratch") is not None:
                return Run(folder.name, folder)
    return None


@dataclass(frozen=True)
class _Job:
    """What every step of a training needs to know."""

    store: Store
    recipe: Recipe
    out: Output
    base: BaseModel
    corpus: Corpus
    run: Run
    training: str
    start: Resolved | None
    typed: str


def _train(job: _Job, *, move: bool, resume: bool) -> Trained:
    from adapterhub.trainer.doctor import diagnose
    from adapterhub.trainer.finish import put_into_store
    from adapterhub.trainer.history import History

    finished = _fit(job, resume=resume)
    added = put_into_store(job.store, job.run, finished, job.out, move=move)
    for finding in diagnose(History.from_events(job.run.path / EVENTS)):
        (job.out.note if finding.severity == "remark" else job.out.warn)(
            f"{finding.words}\n  {finding.advice}"
        )
    history = finished.history
    score = history.at(finished.kept)
    if score is not None:
        job.out.note(
            f"kept step {finished.kept} of {history.steps} ({finished.why}); held out: "
            + ", ".join(f"{e.score.loss:.4g} at {e.step}" for e in history.evaluations)
        )
    return Trained(
        name=str(added.name),
        digest=added.digest,
        base=job.base.label,
        steps=history.steps,
        kept=finished.kept,
        metrics=metrics(history, finished.kept),
        seconds=round(history.seconds, 1),
        run=job.run.id,
        reused=False,
    )


def _fit(job: _Job, *, resume: bool) -> Finished:
    """The training itself, up to the adapters in the run's folder. Every process of a training does this."""
    from adapterhub.trainer.loop import Stop, stopping_on_interrupt
    from adapterhub.trainer.model import choose_device
    from adapterhub.trainer.provenance import Finished

    out, run, base = job.out, job.run, job.base
    with out.progress("reading the data"):
        tokenizer = tokenizer_for(job.corpus, base.path)
        tokens = tokenize(job.recipe, job.corpus, tokenizer, base.path)
    _remark(out, job.recipe, job.corpus, tokens)
    recipe = settled(job.recipe, tokens, job.start)
    device = choose_device()
    stop = Stop()
    with out.progress(f"loading {base.label}"):
        model, trainer, initial, parameters = _prepare(job, recipe, tokens, tokenizer, device)
    run.event(
        "loaded", device=device.kind, rows=len(tokens.train.rows), tokens=tokens.train.tokens,
        trainable_parameters=parameters[0],
    )  # fmt: skip
    watch, checkpoint = _watch(job, recipe, tokens, tokenizer, model, trainer, initial, stop, resume=resume)  # fmt: skip
    history, steps = watch.history, trainer.args.max_steps
    with (
        out.progress(f"training {recipe.name}", total=steps, above=_drawn(history, steps)) as bar,
        stopping_on_interrupt(
            stop, lambda: out.note("stopping after this step; Ctrl-C again stops at once")
        )
        if here().first
        else nullcontext(),
    ):
        bar.advance(history.steps)
        watch.on_each = lambda: bar.advance(1, **_status(history))
        watch.on_finding = lambda finding: out.warn(f"{finding.words}\n  {finding.advice}")
        try:
            if not here().share(watch.over):
                trainer.train(resume_from_checkpoint=checkpoint)
        except KeyboardInterrupt:
            raise _stopped(job, history, steps) from None
    if watch.stopped:
        watch.keep(history.steps)
        raise _stopped(job, history, steps)
    return Finished(
        recipe, base, job.corpus, tokens, device, history, parameters, job.training, job.start,
        here().count,
    )  # fmt: skip


def settled(recipe: Recipe, tokens: TokenData, start: Resolved | None) -> Recipe:
    """The recipe with everything decided that it leaves open: the length, whether rows are packed, and the shape of an
    adapter that goes on."""
    packing = recipe.packing and objective_of(recipe).packs
    length = tokens.max_length
    if packing and recipe.max_length == "auto":
        # Rows are cut already; a packed sequence no longer than most rows would hold one row.
        length = max(length, PACKED_LENGTH)
    plain = msgspec.structs.replace(recipe, max_length=length, packing=packing)
    lora = start.manifest.lora if start else None
    if start is None or lora is None:
        return plain
    return msgspec.structs.replace(
        plain,
        kind="dora" if lora.use_dora else "lora",
        rank=lora.rank,
        alpha=float(lora.alpha),
        use_rslora=lora.use_rslora,
        target_modules=list(lora.targets),
    )


def _prepare(
    job: _Job, recipe: Recipe, tokens: TokenData, tokenizer: Any, device: Device
) -> tuple[Any, QuietTrainer, Initial | None, tuple[int, int]]:
    """The model with its adapter, the trainer around it, how the factors began where that must be known later, and the
    numbers of parameters (trainable, all)."""
    from adapterhub.data import stop_token_ids
    from adapterhub.trainer.loop import packed_sequences, steps_of
    from adapterhub.trainer.model import count_parameters, load_for_training
    from adapterhub.trainer.saving import initial_factors

    rows = tokens.train.rows
    ranks = here()
    steps = steps_of(recipe, packed_sequences(recipe, rows), ranks.count)
    view = job.store.view(job.start.digest) if job.start and ranks.first else None
    start = ranks.share(view)
    model = load_for_training(recipe, job.base, device, steps=steps, start=start)
    parameters = count_parameters(model)  # before a preference training adds its reference
    objective = objective_of(recipe)
    trainer = objective.trainer(model, tokenizer, rows, recipe, device, job.run.path / "scratch")
    if objective.gate is not None:
        conversations = any(example.turns for example in job.corpus.train)
        objective.gate(trainer, rows, stop_token_ids(tokenizer, job.base.path), conversations)
    if ranks.sharded and not trainer.is_fsdp_enabled:
        raise no_sharding_here()
    return model, trainer, initial_factors(model, recipe), parameters


def _watch(
    job: _Job, recipe: Recipe, tokens: TokenData, tokenizer: Any, model: Any, trainer: QuietTrainer,
    initial: Initial | None, stop: Stop, *, resume: bool,
) -> tuple[Watch, str | None]:  # fmt: skip
    """The callback beside the loop, and the checkpoint to go on from; a fresh training is scored before its first step."""
    from adapterhub.data import stop_token_ids
    from adapterhub.trainer.checkpoints import newest, whole_tensors
    from adapterhub.trainer.saving import save_adapter
    from adapterhub.trainer.watch import Course, Watch, drop_lost, past

    run, out = job.run, job.out
    ranks = here()

    def save(folder: Path) -> None:
        whole = whole_tensors(model) if ranks.sharded else None
        if ranks.first:
            save_adapter(model, job.base, folder, initial, whole)

    examiner = objective_of(recipe).examiner()(
        model, tokenizer, tokens.held_out.rows, run, recipe, job.corpus.split.held_out,
        stop_token_ids(tokenizer, job.base.path),
    )  # fmt: skip
    examiner.on_sample = lambda asked, said: out.note(f"  {asked}\n  -> {said}")
    found = ranks.share(newest(run.path / "scratch") if resume else None)
    if found is not None:
        checkpoint, step = found
        history = past(run.path / EVENTS, step) if ranks.computes else Course(step)
        for lost in drop_lost(run, history) if ranks.first else ():
            out.warn(
                f"The adapter after step {lost} is gone from the run's folder; it can't be kept."
            )
        run.event("resumed", step=step)
        out.note(f"going on after step {step} of {trainer.args.max_steps}")
    else:
        checkpoint, history = None, Course()
        # A model that is cut over processes can't compute before it is; the watch has it scored then.
        with out.progress("scoring held-out rows before training", total=examiner.rows) as bar:
            alone = ranks.first and not ranks.sharded
            before = examiner.examine(0, bar.advance) if alone else None
        if before is not None:
            history.evaluations.append(before)
        ranks.wait()
    watch = Watch(
        trainer, recipe, run, stop, examiner,
        save, history,
    )  # fmt: skip
    trainer.add_callback(watch)
    return watch, str(checkpoint) if checkpoint else None


def _drawn(history: Course, steps: int) -> Callable[[int], list[str]]:
    """The curve above the progress bar: training loss, and the held-out losses on it."""
    from adapterhub.trainer.plot import curve

    def lines(width: int) -> list[str]:
        held_out = [(float(e.step), e.score.loss) for e in history.evaluations if e.step]
        losses = [(float(i), loss) for i, loss in enumerate(history.losses, 1)]
        drawn = curve(losses, min(width, 100), 8, right=steps, marks=held_out)
        return [*drawn, "loss of each step; o: held out"] if drawn else []

    return lines


def _status(history: Course) -> dict[str, float]:
    shown = {"loss": round(history.losses[-1], 3)}
    if history.evaluations and history.evaluations[-1].step:
        shown["held_out"] = round(history.evaluations[-1].score.loss, 3)
    return shown


def _remark(out: Output, recipe: Recipe, corpus: Corpus, tokens: TokenData) -> None:
    split, objective = corpus.split, objective_of(recipe)
    out.note(
        f"{len(corpus.train)} {objective.unit}s to train on ({tokens.train.trained} of {tokens.train.tokens} tokens are "
        f"answers), {len(split.held_out)} held out"
        + ("" if objective.packs else "; padded, not packed")
    )
    if tokens.train.truncated:
        out.warn(
            f"{tokens.train.truncated} {objective.unit}s {objective.cut}; raise max_length to keep them"
        )
    if tokens.train.dropped:
        out.warn(f"{tokens.train.dropped} {objective.unit}s are left out: {objective.left_out}")
    for problem in examine(corpus.rows, split).problems:
        out.warn(f"{problem.words} {problem.shown()}".strip())
    for remark in remarks(recipe):
        if remark.severity == "warn":  # `recipe check` tells the notes as well
            out.warn(remark.text)


def _stopped(job: _Job, history: Course, steps: int) -> KeyboardInterrupt:
    """The interrupt of a training that can go on: its text says how, and where the adapter so far is."""
    from adapterhub.trainer.checkpoints import newest
    from adapterhub.trainer.watch import checkpoint_folder

    said = "The store is as it was."
    found = newest(job.run.path / "scratch")
    if found is not None:
        said += f" To go on after step {found[1]} of {steps}:  {job.typed} --resume"
    folder = checkpoint_folder(job.run, history.steps)
    if folder.is_dir():
        job.run.event("kept", step=history.steps, path=str(folder))
        said += f"\n  Or take the adapter as it is:  adapterhub add {folder} --name NAME --base {job.base.path}"
    return KeyboardInterrupt(said)
