"""A plan as it is said to vLLM 0.32: the words of its command line, and the variables set for it."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.errors import UsageError
from adapterhub.serve.plan import Plan
from adapterhub.serve.vllm import PLUGIN, Engine

ENGINE_SOCKET = "vllm.sock"
"""In a session's private folder: where vLLM listens behind the door."""
DTYPES = ("auto", "float32", "bfloat16", "float16")

_PLANNED = "the plan says it"
_COMPUTED = "the plan computes it; see --loaded, --batch and --max-rank"
_LISTENS = "the plan says where vLLM listens; for TLS, put a proxy in front of it"
_FORBIDDEN = {
    **dict.fromkeys(("--host", "--port", "--dtype", "--max-model-len"), "say it before the --"),
    **dict.fromkeys(("--model", "--served-model-name", "--lora-modules"), _PLANNED),
    **dict.fromkeys(("--enable-lora", "--no-enable-lora"), _PLANNED),
    **dict.fromkeys(("--max-loras", "--max-cpu-loras", "--max-lora-rank"), _COMPUTED),
    **dict.fromkeys(("--uds", "--ssl-keyfile", "--ssl-certfile"), _LISTENS),
    "--api-key": "others on this machine could see it, and logs would keep it; set VLLM_API_KEY instead",
    "--hf-token": "others on this machine could see it, and logs would keep it; set HF_TOKEN instead",
}
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "tekken.json",
)


@dataclass(frozen=True)
class Invocation:
    """What starts a plan on one engine. `variables` are set on top of the environment."""

    engine: Engine
    command: tuple[str, ...]
    variables: Mapping[str, str]

    @property
    def shell(self) -> str:
        """The exact command as a shell takes it: variables, program and model, then a line for each flag and name."""
        variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in self.variables.items())
        return f"{variables} \\\n  {in_lines(self.command, head=3)}"  # PROGRAM serve MODEL

    def document(self) -> dict[str, Any]:
        """The invocation as data."""
        return {
            "vllm": self.engine.version,
            "command": list(self.command),
            "environment": dict(self.variables),
            "shell": self.shell,
        }


def in_lines(words: Sequence[str], *, head: int) -> str:
    """A command as a shell takes it: its first `head` words, then a line for each flag and further name."""
    lines = [shlex.join(words[:head])]
    after_flag = False
    for word in words[head:]:
        if after_flag and not word.startswith("-"):
            lines[-1] += f" {shlex.quote(word)}"
        else:
            lines.append(shlex.quote(word))
        after_flag = word.startswith("-")
    return " \\\n  ".join(lines)


def invoke(
    plan: Plan,
    engine: Engine,
    inherited: Mapping[str, str] | None = None,
    *,
    socket: Path = Path(ENGINE_SOCKET),
) -> Invocation:
    """What starts `plan` on `engine`, given the environment `inherited` (default: this process's).

    Behind the door, vLLM listens on the Unix `socket` and starts with the base alone: adapters are loaded through it.
    """
    limit = [] if plan.max_model_len is None else ["--max-model-len", str(plan.max_model_len)]
    command = [
        str(engine.executable), "serve", str(plan.base.path),
        "--served-model-name", plan.base_name,
        *(("--host", plan.host, "--port", str(plan.port)) if plan.direct else ("--uds", str(socket))),
        "--dtype", plan.dtype,
        *limit,
        "--enable-lora",
        "--max-lora-rank", str(plan.max_lora_rank),
        "--max-loras", str(plan.max_loras),
        "--max-cpu-loras", str(plan.max_cpu_loras),
        *(("--lora-modules", *(_module(name, path) for name, path in plan.modules.items())) if plan.direct else ()),
        *plan.extra,
    ]  # fmt: skip
    return Invocation(
        engine,
        tuple(command),
        _variables(plan, engine, os.environ if inherited is None else inherited),
    )


def split_extra(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Adapters and what follows `--`: no adapter's name begins with a dash, every argument of vLLM does.

    Raises:
        UsageError: an argument for vLLM that would undo what the plan promises.
    """
    cut = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    extra = list(words[cut:])
    for word in extra:
        flag = word.split("=")[0].replace("_", "-")
        # argparse takes any beginning that is unique, so `--por 9` is --port too
        known = next(
            (known for known in _FORBIDDEN if len(flag) > 3 and known.startswith(flag)), None
        )
        if known is not None:
            raise UsageError(
                f"{word} can't be handed on to vLLM.", why=f"About {known}: {_FORBIDDEN[known]}."
            )
    return list(words[:cut]), extra


def cautions(plan: Plan, *, keys: bool = False) -> list[str]:
    """What a person should know before relying on this plan, though nothing in it is wrong. `keys`: the door asks for one."""
    found = []
    if not plan.local and not keys:
        key = "unless VLLM_API_KEY is set" if plan.direct else "without --keys"
        found.append(
            f"--host {plan.host} can be reached from other machines, and anybody there may use it {key}"
        )
    if plan.dtype == "auto" and all(info.dtype == "F32" for info in plan.base.tensors.values()):
        found.append(
            "the base's weights are float32, which vLLM rounds to 16 bits; --dtype float32 keeps them"
        )
    given = any(word.startswith(("--tokenizer", "--skip-tokenizer")) for word in plan.extra)
    if not given and not any((plan.base.path / name).is_file() for name in _TOKENIZERS):
        found.append(
            f"{plan.base.path} has no tokenizer, so vLLM will not start; name one: -- --tokenizer FOLDER"
        )
    return found


def _variables(plan: Plan, engine: Engine, inherited: Mapping[str, str]) -> dict[str, str]:
    fixed = {
        "HF_HUB_OFFLINE": "1",  # the base is a folder on this machine: nothing is to be fetched
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Directly, whoever reaches the port could load any folder as a model, and fill the slot that must stay empty.
        # Behind the door only the door reaches the socket, and no route of it leads there.
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0" if plan.direct else "1",
        "ADAPTERHUB_VLLM_RESOLVER": "0",  # every name is resolved before vLLM hears of it
    }
    if engine.protection == "mask" and not plan.direct:
        fixed["ADAPTERHUB_VLLM_MASK"] = "require"  # rather no server than one that answers wrongly
    if not plan.direct and "VLLM_API_KEY" in inherited:
        fixed["VLLM_API_KEY"] = ""  # the door asks for it
    allowed = inherited.get("VLLM_PLUGINS")
    if engine.has_plugin and allowed is not None and PLUGIN not in allowed.split(","):
        fixed["VLLM_PLUGINS"] = f"{allowed},{PLUGIN}".lstrip(",")
    if engine.cpu:  # in GiB; left out, vLLM takes nearly all memory
        fixed["VLLM_CPU_KVCACHE_SPACE"] = inherited.get("VLLM_CPU_KVCACHE_SPACE") or "1"
    return fixed


def _module(name: str, path: Path) -> str:
    """`name=path`, or vLLM's JSON form where a comma in the path would be misread as JSON."""
    plain = f"{name}={path}"
    return json.dumps({"name": name, "path": str(path)}) if "," in plain else plain
