"""What an experienced colleague would say about a recipe before anything trains. Nothing here refuses.

A remark is made only where people who do this for a living would nod; each says what to change. Sources:

    QLoRA   Dettmers et al. 2023, arXiv:2305.14314     rsLoRA  Kalajdzievski 2023, arXiv:2312.03732
    LoRA+   Hayou et al. 2024, arXiv:2402.12354        (IA)3   Liu et al. 2022, arXiv:2205.05638
    NEFTune Jain et al. 2023, arXiv:2310.05914         DPO     Rafailov et al. 2023, arXiv:2305.18290
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from adapterhub.merge.recipe import SERVABLE_RANKS
from adapterhub.words import word_of

if TYPE_CHECKING:
    from adapterhub.base import BaseModel
    from adapterhub.trainer.recipe import Recipe

FEW_STEPS = 50
_SCALES = (0.125, 8.0)
"""Smallest and largest usual factor on B·A: papers and tools use 1/4 to 4."""
_RATES = {"sft": (1e-5, 1e-3), "dpo": (1e-7, 1e-4), "ia3": (3e-4, 3e-2)}
"""Smallest and largest usual learning rate of AdamW. LoRA wants about ten times that of full fine-tuning."""
_FASTEST_B = 1e-2
_EMBEDDINGS = frozenset({"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"})


@dataclass(frozen=True)
class Remark:
    """`warn`: likely a mistake, or something that shows too late; `note`: good to know."""

    severity: Literal["warn", "note"]
    words: str
    change: str
    """What to write in the recipe, or to do; empty where there is nothing to change."""

    @property
    def text(self) -> str:
        """As people read it."""
        return self.words + (f"\n  {self.change}" if self.change else "")

    @property
    def record(self) -> dict[str, str]:
        """As JSON has it."""
        return asdict(self)


def remarks(
    recipe: Recipe, base: BaseModel | None = None, steps: int | None = None
) -> list[Remark]:
    """Remarks on `recipe`, warnings first.

    `base` adds those on the model's length and form; `steps` is how many the training will have, where the recipe counts
    in epochs.
    """
    steps = steps if steps is not None else recipe.steps
    found = [
        *_targets(recipe),
        *_serving(recipe),
        *_scale(recipe),
        *_rate(recipe),
        *_regularising(recipe),
        *_length(recipe, steps),
        *_scoring(recipe, steps),
        *_unused(recipe),
        *(_on_base(recipe, base) if base is not None else ()),
    ]
    return sorted(found, key=lambda remark: remark.severity != "warn")


def _targets(recipe: Recipe) -> Iterator[Remark]:
    named = recipe.target_modules
    last = {name.rpartition(".")[2] for name in named} if isinstance(named, list) else set()
    whole = "target_modules: all-linear"
    if last and last <= _EMBEDDINGS:
        yield Remark("warn", "Only the embedding is trained, and no layer of the model.", whole)
    elif named == "qv" or (last and last <= {"q_proj", "v_proj", "q", "v", "query", "value"}):
        yield Remark(
            "warn",
            "Only the q and v projections are trained. QLoRA's authors found all linear layers needed to match full"
            " fine-tuning (Dettmers et al. 2023, section 4).",
            whole,
        )
    elif named == "qkvo":
        yield Remark(
            "note",
            "Only the attention is trained; the MLPs, most of the weights, are not. QLoRA's authors found all linear"
            " layers needed to match full fine-tuning (Dettmers et al. 2023, section 4).",
            whole,
        )


def _serving(recipe: Recipe) -> Iterator[Remark]:
    if recipe.kind == "dora":
        yield Remark(
            "warn",
            "vLLM can't serve a DoRA adapter as it is.",
            f"afterwards: adapterhub export {recipe.name} -o DIR, and serve that model; or kind: lora",
        )
    elif recipe.kind in ("adalora", "ia3"):
        yield Remark(
            "warn",
            f"vLLM can't serve an adapter of the kind {recipe.kind}, and `adapterhub export` can't merge one.",
            "kind: lora, or merge it with PEFT's merge_and_unload",
        )
    if recipe.kind == "ia3":
        return
    # What begins as part of the base is stored beside its own beginning, which takes as much again.
    rank = recipe.rank * (1 if recipe.init == "default" else 2)
    as_stored = f"Rank {rank}" + (
        f" (twice {recipe.rank}: {recipe.init} becomes plain LoRA)" if rank != recipe.rank else ""
    )
    if rank > SERVABLE_RANKS[-1]:
        yield Remark(
            "warn",
            f"{as_stored} is more than vLLM serves, which is {SERVABLE_RANKS[-1]}.",
            f"a rank of {SERVABLE_RANKS[-1] * recipe.rank // rank} or less",
        )
    elif rank not in SERVABLE_RANKS:
        slot = next(size for size in SERVABLE_RANKS if size > rank)
        yield Remark(
            "note",
            f"{as_stored} is served by vLLM in slots of {slot}, so it takes that much memory there.",
            f"rank: {slot * recipe.rank // rank} costs the same to serve",
        )
    if recipe.template is not None:
        yield Remark(
            "note",
            "The adapter will know the recipe's template, not the base's own.",
            f"serve it with the same one: vLLM's --chat-template {recipe.template}",
        )


def _scale(recipe: Recipe) -> Iterator[Remark]:
    if recipe.kind == "ia3":
        return
    divisor = math.sqrt(recipe.rank) if recipe.use_rslora else recipe.rank
    scale = recipe.alpha / divisor
    least, most = _SCALES
    if least < scale < most:
        return
    formula = "alpha/sqrt(rank), as use_rslora has it," if recipe.use_rslora else "alpha/rank"
    usual = 2 * divisor
    yield Remark(
        "warn",
        f"The adapter is scaled by {formula} = {scale:.3g}; {least:g} to {most:g} is usual. The scale multiplies the"
        " learning rate, in effect.",
        f"alpha: {usual:.3g}",
    )


def _rate(recipe: Recipe) -> Iterator[Remark]:
    kind = "ia3" if recipe.kind == "ia3" else recipe.objective
    least, most = _RATES[kind]
    rate = recipe.learning_rate
    if kind == "sft" and recipe.use_rslora and recipe.rank >= 64:
        most /= 2  # its scale falls only with the square root of the rank
    what = {"sft": "an adapter", "dpo": "DPO", "ia3": "(IA)3"}[kind]
    if rate > most:
        yield Remark(
            "warn",
            f"A learning rate of {rate:g} is high for {what}: above {most:g} trainings tend to diverge or forget.",
            f"learning_rate: {most / 5:g}",
        )
    elif rate < least:
        ten = (
            " Adapters want about ten times the rate of full fine-tuning." if kind == "sft" else ""
        )
        yield Remark(
            "warn",
            f"A learning rate of {rate:g} is low for {what}: below {least:g} little is learned.{ten}",
            f"learning_rate: {least * 10:g}",
        )
    if recipe.loraplus_ratio is not None and rate * recipe.loraplus_ratio > _FASTEST_B:
        yield Remark(
            "warn",
            f"With loraplus_ratio {word_of(recipe.loraplus_ratio)} the B factors learn at"
            f" {rate * recipe.loraplus_ratio:g}, which is high.",
            f"learning_rate: {_FASTEST_B / 4 / recipe.loraplus_ratio:.1g}",
        )


def _regularising(recipe: Recipe) -> Iterator[Remark]:
    if recipe.kind != "ia3" and recipe.dropout > 0.2:
        yield Remark(
            "warn",
            f"A dropout of {recipe.dropout:g} is a lot; QLoRA used 0.05 to 0.1.",
            "dropout: 0.05",
        )
    elif recipe.kind != "ia3" and recipe.dropout and recipe.rank <= 4:
        yield Remark(
            "note",
            f"Rank {recipe.rank} has little to overfit with, so dropout mostly adds noise.",
            "dropout: 0",
        )
    if recipe.neftune_alpha is not None and recipe.neftune_alpha > 15:
        yield Remark(
            "warn",
            f"A neftune_alpha of {word_of(recipe.neftune_alpha)} is a lot; its authors used 5 to 15.",
            "neftune_alpha: 5",
        )


def _length(recipe: Recipe, steps: int | None) -> Iterator[Remark]:
    if steps is not None and steps < FEW_STEPS:
        again = "steps" if recipe.steps is not None else "epochs"
        yield Remark(
            "warn",
            f"{steps} steps are few: below about {FEW_STEPS} an adapter has hardly begun to learn.",
            f"more {again}"
            + (", or less gradient_accumulation" if recipe.gradient_accumulation > 1 else ""),
        )
    if recipe.epochs is not None and recipe.epochs > 5 and recipe.eval.patience is None:
        yield Remark(
            "note",
            f"{word_of(recipe.epochs)} epochs are many: small data is known by heart after a few.",
            "eval: {patience: 3} ends it when the held-out loss no longer falls",
        )
    if recipe.save_every is not None and steps is not None and recipe.save_every >= steps:
        yield Remark(
            "note",
            f"save_every is {recipe.save_every}, and the training has {steps} steps: there will be no checkpoint to"
            " resume from.",
            f"save_every: {max(1, steps // 4)}",
        )


def _scoring(recipe: Recipe, steps: int | None) -> Iterator[Remark]:
    scores = recipe.eval
    if recipe.data.held_out == 0:
        yield Remark(
            "warn",
            "No row is held out, so nothing will show whether the adapter learned the task or the rows."
            + (
                " keep: best has nothing to go by: the last one is kept."
                if scores.keep == "best"
                else ""
            ),
            "data: {held_out: 0.1}",
        )
    elif scores.rows == 0:
        yield Remark(
            "warn",
            "Rows are held out and none is scored (eval.rows is 0), so overfitting won't show.",
            "eval: {rows: 64}",
        )
    elif scores.every is not None and steps is not None and scores.every >= steps:
        yield Remark(
            "note",
            f"eval.every is {scores.every}, and the training has {steps} steps: it is scored at the beginning and at"
            " the end alone.",
            f"eval: {{every: {max(1, steps // 5)}}}",
        )


def _unused(recipe: Recipe) -> Iterator[Remark]:
    """Keys that were given and have no effect here."""
    if recipe.kind == "ia3":
        yield Remark("note", "(IA)3 has no factors: rank, alpha and dropout are not used.", "")
    if recipe.objective == "dpo" and recipe.packing:
        yield Remark(
            "note", "Preference pairs are not packed: packing is not used.", "packing: false"
        )
    if recipe.objective == "dpo" and recipe.dropout:
        yield Remark(
            "note",
            "Preferences are trained without dropout, which would move the reference as well.",
            "dropout: 0",
        )
    if recipe.objective == "sft" and recipe.dpo.beta != type(recipe.dpo)().beta:
        yield Remark(
            "note", "dpo.beta is set and not used: the objective is sft.", "objective: dpo"
        )


def _on_base(recipe: Recipe, base: BaseModel) -> Iterator[Remark]:
    longest = base.text_config.get("max_position_embeddings") or base.config.get(
        "max_position_embeddings"
    )
    if (
        isinstance(recipe.max_length, int)
        and isinstance(longest, int)
        and recipe.max_length > longest
    ):
        yield Remark(
            "warn",
            f"max_length is {recipe.max_length}, and {base.label} was made for {longest} tokens.",
            f"max_length: {longest}",
        )
    quantised = base.config.get("quantization_config")
    if isinstance(quantised, dict):
        how = quantised.get("quant_method")
        yield Remark(
            "warn",
            f"{base.label} is quantised already" + (f" ({how})." if isinstance(how, str) else "."),
            "the repository it was made from; method: qlora quantises that one as it is loaded",
        )
