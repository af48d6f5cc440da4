"""The worker with accelerate's FSDP let through on CPUs, where accelerate itself would train without it.

Everything else is as on GPUs: accelerate's and torch's own sharding, over gloo. With `STOP_AT` in the environment the
training is asked to stop at that step; how much of the base each process holds goes to `HELD` (a folder).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import accelerate.accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from adapterhub.trainer.loop import Stop
from adapterhub.trainer.watch import Watch
from adapterhub.trainer.worker import main

_init, _prepare, _step = (
    AcceleratorState.__init__,
    accelerate.accelerator.fsdp2_prepare_model,
    Watch._step,
)


def init(self: Any, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    _init(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin


def prepare(accelerator: Any, model: Any) -> Any:
    prepared = _prepare(accelerator, model)
    bits4 = [
        p
        for p in prepared.parameters()
        if type(p).__name__ == "Params4bit" or "4bit" in str(type(p))
    ]
    everything: list[Any] = list(prepared.parameters())
    held = {
        "whole": sum(p.numel() for p in everything),
        "here": sum(p.to_local().numel() for p in everything),
        "layers in 4 bits": len(bits4),
    }
    (Path(os.environ["HELD"]) / f"{accelerator.process_index}.json").write_text(json.dumps(held))
    return prepared


def step(self: Watch, state: Any, logs: Any) -> None:
    _step(self, state, logs)
    if state.global_step == int(os.environ.get("STOP_AT", "-1")):
        asked: Stop = self._stop
        asked.asked = self._ranks.first


AcceleratorState.__init__ = init
accelerate.accelerator.fsdp2_prepare_model = prepare
Watch._step = step  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
