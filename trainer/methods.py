"""What is trained: a recipe's `kind`, `init` and `target_modules` as PEFT's configuration, and the way back to plain LoRA.

PiSSA and OLoRA move part of the base's weights into the adapter before training. What they learned is the difference
between the factors at the end and at the beginning, B·A - B0·A0, which is a plain adapter of twice the rank on the
unchanged base; that is what is saved, so nobody has to know how its factors began.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.errors import UsageError
from adapterhub.words import did_you_mean

if TYPE_CHECKING:
    import torch

    from adapterhub.trainer.recipe import Recipe

_ATTENTION = ("attn", "attention")
_QV = frozenset({"q_proj", "v_proj", "query", "value", "q", "v", "wq", "wv"})
_FUSED = frozenset({"qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv", "in_proj"})
_FEED_FORWARD = frozenset({"down_proj", "fc2", "w2", "fc_out", "dense_4h_to_h", "wo"})
"""Layers whose *input* (IA)³ scales (Liu et al. 2022, section 3.3); elsewhere it scales the output."""
_IA3 = (
    frozenset({"k_proj", "v_proj", "key", "value", "query_key_value", "qkv_proj"}) | _FEED_FORWARD
)


def adapter_config(recipe: Recipe, model: Any, steps: int) -> Any:
    """PEFT's configuration of the recipe's adapter on `model`; `steps` is the training's length, which AdaLoRA plans by.

    Raises UsageError where a target is not in the model.
    """
    from peft import AdaLoraConfig, IA3Config, LoraConfig

    targets = resolve_targets(recipe, model)
    if recipe.kind == "ia3":
        return IA3Config(
            task_type="CAUSAL_LM",
            target_modules=targets,
            feedforward_modules=[name for name in targets if _last(name) in _FEED_FORWARD],
        )
    alpha = int(recipe.alpha) if recipe.alpha.is_integer() else recipe.alpha
    common: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "lora_alpha": alpha,
        "lora_dropout": recipe.dropout,
        "target_modules": targets,
        "bias": "none",
    }
    if recipe.kind == "adalora":
        # Zhang et al. 2023 begin with half as much rank again, and keep it while the singular values find themselves.
        return AdaLoraConfig(
            **common,
            target_r=recipe.rank,
            init_r=math.ceil(1.5 * recipe.rank),
            tinit=steps // 10,
            tfinal=steps // 3,
            total_step=steps,
        )
    return LoraConfig(
        **common,
        r=recipe.rank,
        use_rslora=recipe.use_rslora,
        use_dora=recipe.kind == "dora",
        init_lora_weights=True if recipe.init == "default" else recipe.init,
    )


def resolve_targets(recipe: Recipe, model: Any) -> list[str] | str:
    """The recipe's `target_modules` as PEFT takes them: names that are in `model`, or `all-linear`.

    Raises UsageError for a name that isn't there (PEFT ignores it) and for the output head, whose weights the loss reads.
    """
    linear = _linear_names(model)
    wanted = recipe.target_modules
    if isinstance(wanted, list):
        return _checked(
            wanted, [n for n, m in model.named_modules() if hasattr(m, "weight")], linear
        )
    if recipe.kind == "ia3" and wanted == "all-linear":
        return _found("the layers (IA)³ scales", {n for n in linear if _last(n) in _IA3}, linear)
    if wanted == "all-linear":
        return wanted
    inside = {
        n for n in linear if any(word in part for part in n.split(".")[:-1] for word in _ATTENTION)
    }
    if wanted == "qv":
        inside = {n for n in inside if _last(n) in _QV | _FUSED}
    return _found(wanted, inside, linear)


def _found(what: str, names: set[str], linear: Sequence[str]) -> list[str]:
    if not names:
        raise UsageError(
            f"The base model has no layers that are known as {what}.",
            hint=f"List them in target_modules. Linear layers here: {_kinds(linear)}.",
        )
    return sorted({_last(name) for name in names})


def _checked(wanted: list[str], names: Sequence[str], linear: Sequence[str]) -> list[str]:
    for target in wanted:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise UsageError(
                f"The recipe's target_modules names {target}, which is not in the base model.",
                why=did_you_mean(target, {_last(name) for name in linear}),
                hint=f"Linear layers here: {_kinds(linear)}; or `all-linear`.",
            )
        if target == "lm_head":
            raise UsageError(
                "The recipe's target_modules names lm_head, which can't be trained.",
                why="The loss is computed from its weight directly, so an adapter on it would be ignored.",
            )
    return wanted


def _linear_names(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if module is not head
        and (hasattr(module, "in_features") or type(module).__name__ == "Conv1D")
    ]


def _kinds(names: Sequence[str]) -> str:
    return ", ".join(sorted({_last(name) for name in names}))


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def as_plain_lora(
    trained: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The factors of B·A - B0·A0: `trained` and `initial` by the names PEFT saves, the result with twice the rank.

    Its scale must stay what it was: alpha doubles, or with rsLoRA grows by √2.
    """
    import torch

    joined: dict[str, torch.Tensor] = {}
    for name, value in trained.items():
        first = initial[name].to(value.device)
        if ".lora_A." in name or ".lora_embedding_A" in name:
            joined[name] = torch.cat([value, first], dim=0)  # (2r, in)
        elif ".lora_B." in name or ".lora_embedding_B" in name:
            joined[name] = torch.cat([value, -first], dim=1)  # (out, 2r)
        else:
            joined[name] = value
    return joined


def orthogonality(tuner: Any) -> torch.Tensor:
    """AdaLoRA's regulariser: how far each P and Q is from orthogonal, ‖P'P - I‖, the mean of all (Zhang et al. 2023, eq. 4,
    with PEFT's norm in place of its square)."""
    import torch

    distances = []
    for name, factor in tuner.model.named_parameters():
        if factor.requires_grad and ("lora_A" in name or "lora_B" in name):
            gram = factor @ factor.T if "lora_A" in name else factor.T @ factor  # (r, r)
            distances.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)))
    return torch.stack(distances).mean()
