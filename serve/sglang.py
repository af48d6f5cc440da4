"""A plan as it would be said to SGLang: the words of its command line, and what is uncertain about them.

Nothing is launched, and nothing was run: the flags are those that SGLang 0.5 documents, the limits those its source
shows. So every point that only SGLang itself can settle is said as a remark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from adapterhub.formats.peft import WEIGHTS_NAME, AdapterFacts, read_facts
from adapterhub.formats.peft_config import CONFIG_NAME
from adapterhub.formats.safetensors import TensorFile
from adapterhub.merge.recipe import DTYPES
from adapterhub.serve.invocation import in_lines
from adapterhub.serve.plan import MOST_IN_A_BATCH, Plan, ServedAdapter
from adapterhub.words import some

_MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    | {"qkv_proj", "gate_up_proj"}
)
"""Target modules that every version of SGLang 0.5 serves."""


class Command(NamedTuple):
    """The words of a command line, and what a person should know of it."""

    words: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def shell(self) -> str:
        """The command as a shell takes it, a line for each flag and name."""
        return in_lines(self.words, head=5)  # PYTHON -m MODULE --model-path MODEL

    def document(self) -> dict[str, Any]:
        """The command as data."""
        return {
            "engine": "sglang",
            "command": list(self.words),
            "shell": self.shell,
            "remarks": list(self.remarks),
        }


def command(plan: Plan) -> Command:
    """The words that start SGLang as `plan` says, and remarks: what is uncertain, or known to come out otherwise.

    The base takes a slot of a batch as each adapter does, so there is one more than adapters.
    """
    facts = {adapter: _facts(adapter) for adapter in plan.adapters}
    targets = sorted({target for one in facts.values() for target in one.targets})
    rank = max(plan.places.rank or 1, *(adapter.rank for adapter in plan.adapters))
    batch = plan.places.batch or min(len(plan.modules), MOST_IN_A_BATCH)
    limit = [] if plan.max_model_len is None else ["--context-length", str(plan.max_model_len)]
    words = (
        "python", "-m", "sglang.launch_server",
        "--model-path", str(plan.base.path),
        "--served-model-name", _base_name(plan),
        "--host", plan.host,
        "--port", str(plan.port),
        "--dtype", plan.dtype,
        *limit,
        "--enable-lora",
        "--max-lora-rank", str(rank),
        "--max-loras-per-batch", str(batch + 1),
        "--lora-target-modules", *targets,
        "--lora-paths", *(f"{name}={path}" for name, path in plan.modules.items()),
        *plan.extra,
    )  # fmt: skip
    of_adapters = [text for adapter, one in facts.items() for text in _on_adapter(adapter, one)]
    return Command(words, (*_on_plan(plan), *of_adapters))


def _base_name(plan: Plan) -> str:
    """SGLang keeps the colon for itself: behind it stands the adapter."""
    return plan.base_name.replace(":", "-")


def _facts(adapter: ServedAdapter) -> AdapterFacts:
    with TensorFile(adapter.path / WEIGHTS_NAME, label=WEIGHTS_NAME) as weights:
        return read_facts(adapter.path / CONFIG_NAME, weights)


def _on_plan(plan: Plan) -> Iterator[str]:
    first = plan.adapters[0].label
    yield (
        "this was not run: the flags are those SGLang 0.5 documents;"
        " `python -m sglang.launch_server --help` tells those of your version"
    )
    yield (
        f"SGLang takes an adapter's name only behind the base's and a colon: ask for the model"
        f" {_base_name(plan)}:{first}. {first} alone names no adapter, and the base may answer"
    )
    if any(len(adapter.names) > 1 for adapter in plan.adapters):
        yield (
            "each adapter is listed under its name and under its digest, and SGLang loads each name by itself:"
            " memory is taken twice"
        )
    if _base_name(plan) != plan.base_name:
        yield f"{plan.base_name} is served as {_base_name(plan)}: SGLang allows no colon there"
    tagged = [name for name in plan.modules if ":" in name]
    if tagged:
        yield (
            f"{some(tagged)}: a name with a colon works as long as SGLang cuts at the first colon, as its source does;"
            " without one it is certain: adapterhub tag"
        )
    yield "/ and @ in names are nothing special in SGLang's source; whether all its routes take them wasn't tried"
    if plan.dtype == "float32":
        yield "whether SGLang's LoRA kernels compute in float32 wasn't tried"
    if plan.extra:
        yield "what follows -- goes to SGLang as it is"
    if not plan.local:
        yield (
            f"--host {plan.host} can be reached from other machines, and anybody there may use it, and load adapters,"
            " unless SGLang is given a key"
        )


def _on_adapter(adapter: ServedAdapter, facts: AdapterFacts) -> Iterator[str]:
    for text in (*adapter.remarks, *(f"allowed: {reason}" for reason in adapter.overridden)):
        yield f"{adapter.label}: {text}"
    plain = facts.config.alpha / facts.config.rank
    others = [name for name, one in facts.modules.items() if not math.isclose(one.scaling, plain)]
    if others:
        why = "rsLoRA" if facts.config.use_rslora else "ranks or alphas of single modules"
        meant = facts.modules[others[0]].scaling
        dtype = facts.dtype if facts.dtype in DTYPES else "float32"
        yield (
            f"{adapter.label}: SGLang scales every module by alpha/r, {plain:.4g} (sgl-project/sglang #40835);"
            f" {len(others)} of {len(facts.modules)} are meant otherwise ({why}), {others[0]} by {meant:.4g}."
            f" The same adapter in plain form: adapterhub merge {adapter.label} --dtype {dtype} --name NAME"
        )
    elif len({one.rank for one in facts.modules.values()}) > 1:
        yield f"{adapter.label}: its modules have several ranks, and SGLang's source expects one"
    unknown = [target for target in facts.targets if target not in _MODULES]
    if unknown:
        yield f"{adapter.label}: not every SGLang serves LoRA on {some(unknown)}"
    if not facts.config.target_modules:
        yield (
            f"{adapter.label}: its adapter_config.json gives the target modules as a pattern, and SGLang wants a list"
        )
