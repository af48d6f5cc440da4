"""Several processes for one training: accelerate's configuration, and its launcher with our signals and exit codes.

The launcher runs inside the command's own process. Ctrl-C goes to the first process of the training, which ends all of
them after the step; a second one ends them at once. What the first process prints and returns is what the command does.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adapterhub.errors import ExitCode, ExternalToolError, UnsupportedError, UsageError
from adapterhub.fsio import write_file
from adapterhub.trainer.ranks import FOLDER, outcome, pid_of

if TYPE_CHECKING:
    from types import FrameType

    from adapterhub.trainer.model import Device
    from adapterhub.trainer.recipe import Recipe

Sharding = Literal["none", "fsdp"]
WORKER = "adapterhub.trainer.worker"
_OURS = ("--processes", "--sharding", "--accelerate-config")
"""Flags that the configuration stands for."""
_SHUTDOWN_SECONDS = "10"
"""What processes get to end themselves before they are killed, once one of them failed."""


def accelerate_config(processes: int, sharding: Sharding, device: Device) -> dict[str, Any]:
    """Accelerate's configuration for `processes` on this machine, in the form of its own files.

    On CPUs the kind is MULTI_GPU with `use_cpu` as well: for MULTI_CPU accelerate starts one process only, unless
    there is mpirun. FSDP is for GPUs, whatever is here. Port 0 is any free one.
    """
    fsdp = sharding == "fsdp"
    on_cpus = device.kind == "cpu" and not fsdp
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP" if fsdp else "MULTI_GPU",
        "mixed_precision": "bf16" if device.bf16 or (fsdp and device.kind == "cpu") else "no",
        "use_cpu": on_cpus,
        "debug": False,
        "num_processes": processes,
        "num_machines": 1,
        "machine_rank": 0,
        "main_process_ip": "127.0.0.1",
        "main_process_port": 0,
        "rdzv_backend": "static",
        "same_network": True,
        "main_training_function": "main",
    }
    if fsdp:
        config["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # the model says which its layers are
            "fsdp_reshard_after_forward": True,
            "fsdp_cpu_ram_efficient_loading": True,
            "fsdp_state_dict_type": "FULL_STATE_DICT",  # checkpoints hold the adapter, whole
            "fsdp_offload_params": False,
            "fsdp_activation_checkpointing": False,  # the recipe's gradient_checkpointing does it
        }
    return config


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Writes `config` as YAML to `path`, in one piece, after accelerate has read it."""
    import yaml

    text = yaml.safe_dump(dict(config), sort_keys=False)
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / "accelerate.yaml"
        tried.write_text(text, encoding="utf-8")
        check_config(tried)
    write_file(path, text.encode("utf-8"), path.parent)


def check_config(path: Path) -> None:
    """UsageError where accelerate doesn't know a key of the file. It checks the upper ones itself, those of FSDP never."""
    from accelerate.commands.config.config_args import (  # type: ignore[import-untyped,unused-ignore]
        load_config_from_file,
    )
    from accelerate.commands.launch import (  # type: ignore[import-untyped,unused-ignore]
        launch_command_parser,
    )

    try:
        config: Any = load_config_from_file(str(path))
    except ValueError as error:
        raise UsageError(
            f"{path.name} is no configuration of accelerate.", why=str(error)
        ) from error
    known = vars(launch_command_parser().parse_args([WORKER]))
    for key in config.fsdp_config:
        if (key if key.startswith("fsdp") else f"fsdp_{key}") not in known:
            raise UsageError(
                f"{path.name} is no configuration of accelerate.", why=f"FSDP has no {key}."
            )


def processes_for(asked: int | None, sharding: Sharding, device: Device) -> int:
    """How many processes: as asked, else one for each GPU. UsageError where that is no training in several."""
    import torch

    count = asked or torch.cuda.device_count()
    if count < 2:
        raise UsageError(
            "A training in several processes needs at least two of them.",
            why=f"Asked for: {asked}." if asked else f"GPUs here: {count}.",
            hint="Say how many with --processes.",
        )
    if device.kind == "cuda" and asked and asked > torch.cuda.device_count():
        raise UsageError(
            f"There are {torch.cuda.device_count()} GPUs here for {asked} processes.",
            hint="Use --processes with at most one for each, or write the configuration of a cluster: --accelerate-config",
        )
    return count


def check_sharding(recipe: Recipe, sharding: Sharding) -> None:
    """UnsupportedError for what isn't trained in a model that is cut over processes."""
    if sharding == "none":
        return
    for wrong, what in (
        (recipe.kind not in ("lora", "ia3"), f"kind: {recipe.kind}"),
        (recipe.init != "default", f"init: {recipe.init}"),
        (recipe.objective != "sft", f"objective: {recipe.objective}"),
        ("8bit" in recipe.optimizer, f"optimizer: {recipe.optimizer}"),
    ):
        if wrong:
            raise UnsupportedError(
                f"With --sharding fsdp there is no {what}.",
                why="It works on whole tensors, of which each process has a part.",
                hint="Use --sharding none, which keeps the whole base on every GPU.",
            )


def no_sharding_here() -> UnsupportedError:
    """The error of FSDP on CPUs: accelerate would train without it and say nothing."""
    return UnsupportedError(
        "A model can't be cut over CPUs.",
        why="accelerate shards over GPUs only.",
        hint="Use --sharding none; or write the configuration for another machine with --accelerate-config FILE.",
    )


def command_for(config: Path, arguments: Sequence[str]) -> str:
    """What to type to start the processes of `config` for what was typed after `adapterhub train`."""
    kept, words = [], iter(arguments)
    for word in words:
        if word in _OURS:
            next(words, None)
        elif word.partition("=")[0] not in _OURS and word != "--resume":
            kept.append(word)
    return shlex.join(["accelerate", "launch", "--config_file", str(config), "-m", WORKER, *kept])


def launch(config: Mapping[str, Any], arguments: Sequence[str]) -> ExitCode:
    """Runs `adapterhub train` with `arguments` in the processes of `config`; returns the first one's exit code.

    Raises ExternalToolError when a process is lost and the first one can't say so. No process outlives the call.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with tempfile.TemporaryDirectory(prefix="adapterhub-processes-") as name:
        folder = Path(name)
        path = folder / "accelerate.yaml"
        write_config(path, config)
        command = ["--config_file", str(path), "--module", WORKER, *arguments]
        options = launch_command_parser().parse_args(command)
        options.signals_to_handle = "SIGHUP,SIGQUIT"  # SIGINT and SIGTERM are ours
        failures: Mapping[int, Any] = {}
        with _environment(folder), _silence(), _passing_on(folder):
            try:
                launch_command(options)
            except ChildFailedError as error:
                failures = error.failures
            except SignalException:
                return ExitCode.INTERRUPTED
        code = outcome(folder, 0)
        if code is None:
            raise _lost(folder, failures)
        return ExitCode(code)


def _lost(folder: Path, failures: Mapping[int, Any]) -> ExternalToolError:
    """The error of a training whose first process left no word: it was killed, or stopped because of another."""
    index, failure = min(failures.items(), key=lambda item: item[1].timestamp, default=(0, None))
    log = folder / f"{index}.log"
    words = log.read_text(encoding="utf-8", errors="replace").strip() if log.exists() else ""
    how = f"exit status {failure.exitcode}" if failure else "no exit status"
    return ExternalToolError(
        f"Process {index} of the training ended ({how}), and the training with it.",
        why=words[-400:] or "It was killed: was there enough memory?",
        hint="Go on from the newest checkpoint with --resume.",
    )


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """While the block runs, the variables that the processes inherit, and none of an outer launcher."""
    before = dict(os.environ)
    os.environ[FOLDER] = str(folder)
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = _SHUTDOWN_SECONDS
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _silence() -> Iterator[None]:
    """The launcher's own remarks and tracebacks stay unsaid: the processes say what there is to say."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _passing_on(folder: Path) -> Iterator[None]:
    """The first SIGINT or SIGTERM goes to the training's first process; the next one stops all of them at once."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        first = pid_of(folder, 0)
        if asked or first is None:
            raise SignalException("interrupted", signal.SIGTERM)
        asked = True
        try:
            os.kill(first, signal.SIGINT)
        except ProcessLookupError:  # it is through already
            return

    ours = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in (*ours, signal.SIGHUP, signal.SIGQUIT)}
    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
