"""`train`: recipe in, adapter in the store out, with everything about how it came to be attested.

Whatever can be refused is refused before the base is loaded. The store is touched once, at the very end; until then a
training leaves only its run's folder behind.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import AdapterHubError, ConflictError, NotFoundError
from adapterhub.names import parse_name
from adapterhub.runs import Run, running
from adapterhub.trainer.data import Corpus, TokenData, load_corpus, tokenize
from adapterhub.trainer.libraries import logged_to, require_libraries
from adapterhub.trainer.provenance import metrics, provenance_body, training_digest
from adapterhub.words import short

if TYPE_CHECKING:
    from adapterhub.base import BaseModel
    from adapterhub.cli.output import Output
    from adapterhub.evaluate.scoring import Score
    from adapterhub.store import Store
    from adapterhub.trainer.loop import History
    from adapterhub.trainer.recipe import Recipe


@dataclass(frozen=True)
class Trained:
    """The outcome. `reused` means that this very training was in the store already and nothing was computed."""

    name: str
    digest: str
    base: str
    steps: int
    metrics: Mapping[str, Any]
    seconds: float
    run: str | None
    reused: bool

    @property
    def record(self) -> dict[str, Any]:
        """As `out.record` takes it."""
        held_out = self.metrics.get("held_out") or {}
        return {
            "name": self.name,
            "digest": self.digest,
            "base": self.base,
            "steps": self.steps,
            "first_loss": self.metrics.get("first_loss"),
            "last_loss": self.metrics.get("last_loss"),
            "perplexity_before": held_out.get("perplexity_before"),
            "perplexity_after": held_out.get("perplexity_after"),
            "seconds": self.seconds,
            "run": self.run,
            "reused": self.reused,
        }


def train(
    store: Store, recipe: Recipe, out: Output, *, move: bool = False, redo: bool = False
) -> Trained:
    """Trains `recipe` and puts the adapter into `store` under its name.

    Args:
        move: point the name at the new adapter when it names another one.
        redo: train again although the store has the result of this very training under this name.

    Raises ConflictError when the name is taken, and what reading, masking and loading raise, before any training.
    A Ctrl-C during training ends it after the current step and keeps the adapter so far in the run's folder.
    """
    require_libraries()
    base = store.bases.open(recipe.base)
    corpus = load_corpus(recipe)
    known = _known(store, recipe, training_digest(recipe, corpus, base), move=move)
    if known and not redo:
        return known
    move = move or known is not None  # a training done again replaces its own result, nothing else
    with running(store.runs_dir, "train", recipe.document) as run, logged_to(run.path / "log"):
        trained = _train(store, recipe, out, base, corpus, run, move=move)
        (run.path / "result.json").write_text(
            json.dumps(trained.record, indent=2), encoding="utf-8"
        )
        run.event("added", name=trained.name, digest=trained.digest)
        return trained


def _known(store: Store, recipe: Recipe, training: str, *, move: bool) -> Trained | None:
    """The result of this very training, when the name holds it already; ConflictError when it holds another."""
    try:
        found = store.resolve(recipe.name)
    except NotFoundError:
        return None
    for attestation in store.attestations(found.digest):
        body = attestation.body
        if attestation.type == "provenance" and body.get("training") == training:
            return Trained(
                name=str(parse_name(recipe.name)),
                digest=found.digest,
                base=str(body["recipe"]["base"]),
                steps=int(body["steps"]),
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


def _train(
    store: Store,
    recipe: Recipe,
    out: Output,
    base: BaseModel,
    corpus: Corpus,
    run: Run,
    *,
    move: bool,
) -> Trained:
    from adapterhub.evaluate.models import load_tokenizer
    from adapterhub.trainer.loop import Reporter, Stop, make_trainer, stopping_on_interrupt
    from adapterhub.trainer.model import choose_device, count_parameters, load_for_training

    with out.progress("reading the data"):
        tokenizer = load_tokenizer(base.path)
        tokens = tokenize(recipe, corpus, tokenizer, base.path)
    _remark(out, corpus, tokens)
    device = choose_device()
    with out.progress(f"loading {base.label}"):
        model = load_for_training(recipe, base, device)
        trainer = make_trainer(
            model, tokenizer, tokens.train.rows, recipe, device, run.path / "scratch"
        )
    parameters = count_parameters(model)
    run.event(
        "loaded", device=device.kind, rows=len(tokens.train.rows), tokens=tokens.train.tokens,
        trainable_parameters=parameters[0],
    )  # fmt: skip

    before = _score(model, tokens, out, run, "before")
    stop = Stop()
    with out.progress(f"training {recipe.name}", total=trainer.args.max_steps) as bar:
        reporter = Reporter(run, stop, lambda step, loss: bar.advance(1, loss=round(loss, 3)))
        trainer.add_callback(reporter)
        with stopping_on_interrupt(
            stop, lambda: out.note("stopping after this step; Ctrl-C again stops at once")
        ):
            trainer.train()
    shutil.rmtree(run.path / "scratch", ignore_errors=True)
    history = reporter.history
    result = run.path / "result"
    save_adapter(model, base, result)
    try:
        if stop.asked and history.steps < trainer.args.max_steps:
            raise KeyboardInterrupt
        after = _score(model, tokens, out, run, "after")
    except KeyboardInterrupt:
        raise _kept(result, base, run, history, trainer.args.max_steps) from None
    scores = (before, after) if before and after else None
    body = provenance_body(recipe, base, corpus, tokens, device, history, scores, parameters)
    added = _add(store, recipe, base, result, body, tokens.template, out, move=move)
    return Trained(
        name=str(added.name),
        digest=added.digest,
        base=base.label,
        steps=history.steps,
        metrics=metrics(history, scores),
        seconds=round(history.seconds, 1),
        run=run.id,
        reused=False,
    )


def _add(
    store: Store, recipe: Recipe, base: BaseModel, result: Path, body: Mapping[str, Any],
    template: str | None, out: Output, *, move: bool,
) -> Any:  # fmt: skip
    """Puts the finished folder into the store; on any failure it stays in the run, and the error says where."""

    def note(remark: str) -> None:
        if (
            base.repo is not None or "which base" not in remark
        ):  # it is this one, and that is attested
            out.note(remark)

    try:
        added = store.add_folder(
            result,
            name=recipe.name,
            base=str(base.path),
            move=move,
            provenance=body,
            attestations=[("template", {"digest": template, "event": "trained"})]
            if template
            else [],
            why=f"train {recipe.name}",
            op="train",
            note=note,
        )
    except (
        AdapterHubError
    ) as error:  # the name was taken while we trained, say, or the disk is full
        error.why = f"{error.why} The trained adapter is kept in {result}.".strip()
        error.hint = f"adapterhub add {result} --name NAME --base {base.path}"
        raise
    # The name of a local base says nothing; remembered, later commands find it by its fingerprint.
    store.bases.remember(base)
    shutil.rmtree(result)
    return added


def save_adapter(model: Any, base: BaseModel, folder: Path) -> None:
    """Writes the adapter as PEFT does, but so that the same training gives the same bytes.

    PEFT writes sets in the order of the process's hash seed, and a model card; here the configuration is canonical
    (sorted), names the base by repository and revision only, and is alone with the weights.
    """
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base.repo
    config["revision"] = base.revision
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _score(model: Any, tokens: TokenData, out: Output, run: Run, when: str) -> Score | None:
    """Held-out loss of the model as it is now; None where nothing is held out."""
    from adapterhub.evaluate.scoring import score
    from adapterhub.trainer.model import scoring_mode

    rows = tokens.held_out.rows
    if not rows:
        return None
    with (
        out.progress(f"scoring held-out rows {when} training", total=len(rows)) as bar,
        scoring_mode(model),
    ):
        found = score(model, rows, on_rows=bar.advance)
    run.event("evaluated", when=when, loss=found.loss, perplexity=found.perplexity, rows=found.rows)
    return found


def _remark(out: Output, corpus: Corpus, tokens: TokenData) -> None:
    split = corpus.split
    out.note(
        f"{len(split.train)} rows to train on ({tokens.train.trained} of {tokens.train.tokens} tokens are answers), "
        f"{len(split.held_out)} held out"
    )
    if tokens.train.truncated:
        out.warn(
            f"{tokens.train.truncated} rows are cut at max_length and lose their stop token; raise max_length to keep them"
        )
    if tokens.train.dropped:
        out.warn(f"{tokens.train.dropped} rows are left out: their question alone fills max_length")


def _kept(
    folder: Path, base: BaseModel, run: Run, history: History, steps: int
) -> KeyboardInterrupt:
    """The interrupt of a training whose adapter so far is in `folder`: its text says where and how to go on."""
    run.event("kept", step=history.steps, path=str(folder))
    return KeyboardInterrupt(
        f"The store is as it was. The adapter after step {history.steps} of {steps} is kept in {folder}; "
        f"to add it:  adapterhub add {folder} --name NAME --base {base.path}"
    )
