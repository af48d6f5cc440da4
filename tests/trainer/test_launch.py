"""Two processes are one training: the same losses, gradients and adapter as one process with twice the accumulation.

DDP runs here as it does for users, on CPUs over gloo. FSDP is accelerate's and torch's own, let through on CPUs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from adapterhub.errors import ExitCode, UnsupportedError, UsageError
from adapterhub.store import Store
from adapterhub.trainer.launch import (
    accelerate_config,
    check_config,
    check_sharding,
    command_for,
    processes_for,
    write_config,
)
from adapterhub.trainer.model import Device
from adapterhub.trainer.recipe import parse_recipe
from tests.cli.calling import PROGRAM, wait_until
from tests.support.chat import chat_base
from tests.trainer.conftest import events
from tests.trainer.test_interrupt import events_text

if TYPE_CHECKING:
    from tests.trainer.conftest import Training

ROOT = Path(__file__).parents[2]
CPU, GPU = Device("cpu", "a CPU", "float32"), Device("cuda", "a GPU", "bfloat16")


@contextmanager
def begun(store: Store, recipe: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """`adapterhub train RECIPE --processes 2 --json` while it runs."""
    with subprocess.Popen(
        [PROGRAM, "train", str(recipe), "--processes", "2", "--json", *flags],
        env={**os.environ, "ADAPTERHUB_HOME": str(store.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit code, stdout and stderr once it is through."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def until_it_steps(process: subprocess.Popen[str], store: Store) -> None:
    def stepped() -> bool:
        return '"event": "step"' in events_text(store.home)

    assert wait_until(lambda: stepped() or process.poll() is not None, seconds=300)
    assert stepped(), ended(process)


def processes_of(store: Store) -> list[psutil.Process]:
    """Every living process that works on this store, the test's own not among them."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("ADAPTERHUB_HOME") == str(store.home)
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def rank(store: Store, index: int) -> psutil.Process:
    """The process of that rank."""
    (found,) = [p for p in processes_of(store) if p.environ().get("RANK") == str(index)]
    return found


def nobody_is_left(store: Store) -> bool:
    return wait_until(lambda: not processes_of(store), seconds=60)


def tensors(store: Store) -> dict[str, Any]:
    return dict(load_file(store.view(store.resolve("paint").digest) / "adapter_model.safetensors"))


def told(store: Store, *what: str) -> list[dict[str, Any]]:
    return [event for event in events(store) if event["event"] in what]


@pytest.mark.slow
def test_two_processes_train_what_one_trains_with_twice_the_accumulation(
    store: Store, write_recipe: Callable[..., Path], train_tiny: Training, tmp_path: Path
) -> None:
    """An epoch of 50 rows, so that the number of steps tells whether the processes are counted."""
    changes: dict[str, Any] = {
        "steps": None, "epochs": 1, "packing": False,
        "eval": {"rows": 6, "every": 10, "samples": 1, "sample_tokens": 4},
    }  # fmt: skip
    with begun(store, write_recipe(**changes)) as process:
        code, out, err = ended(process)
    assert code == 0, err
    record = json.loads(out)
    assert record["steps"] == 25

    alone = Store(tmp_path / "alone")
    expected = train_tiny(to=alone, gradient_accumulation=2, **changes)
    steps, ours = told(alone, "step"), told(store, "step")
    assert [e["step"] for e in ours] == list(range(1, 26))  # one process tells
    for key in ("loss", "grad_norm"):
        assert [e[key] for e in ours] == pytest.approx([e[key] for e in steps], rel=1e-5)
    for mine, theirs in zip(ours, steps, strict=True):
        assert mine["grad_norms"] == pytest.approx(theirs["grad_norms"], rel=1e-5)
    for what in ("evaluated", "sample", "saved", "best", "checkpoint"):
        assert [e["step"] for e in told(store, what)] == [e["step"] for e in told(alone, what)]
    assert [e["answer"] for e in told(store, "sample")] == [
        e["answer"] for e in told(alone, "sample")
    ]
    weights = tensors(alone)
    for name, value in tensors(store).items():
        assert value.numpy() == pytest.approx(weights[name].numpy(), abs=1e-6), name
    assert record["kept_step"] == expected.kept
    (provenance,) = [a.body for a in store.attestations(record["digest"]) if a.type == "provenance"]
    assert provenance["hardware"]["processes"] == 2
    assert nobody_is_left(store)


@pytest.mark.slow
def test_an_interrupted_training_in_two_processes_goes_on_and_ends_early_as_in_one(
    store: Store, write_recipe: Callable[..., Path], train_tiny: Training, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "steps": 400, "learning_rate": 0.02, "scheduler": "constant", "packing": False,
        "eval": {"rows": 6, "every": 20, "patience": 1}, "save_every": 5,
    }  # fmt: skip
    recipe = write_recipe(**changes)
    with begun(store, recipe) as process:
        until_it_steps(process, store)
        process.send_signal(signal.SIGINT)
        code, out, err = ended(process)
    assert (code, out) == (ExitCode.INTERRUPTED, ""), err
    assert nobody_is_left(store)
    assert f"adapterhub train {recipe} --processes 2 --json --resume" in err
    assert store.entries() == []
    kept = told(store, "kept")[-1]

    with begun(store, recipe, "--resume") as process:
        code, out, err = ended(process)
    assert code == 0, err
    assert [e["step"] for e in told(store, "resumed")] == [kept["step"]]
    alone = Store(tmp_path / "alone")
    expected = train_tiny(to=alone, gradient_accumulation=2, **changes)
    record = json.loads(out)
    assert (record["steps"], record["kept_step"]) == (expected.steps, expected.kept)
    assert expected.steps < 400
    assert len(told(store, "stopped_early")) == 1
    assert record["perplexity_after"] == pytest.approx(
        expected.metrics["held_out"]["perplexity_after"], rel=1e-4
    )
    weights = tensors(alone)
    for name, value in tensors(store).items():
        assert value.numpy() == pytest.approx(weights[name].numpy(), abs=1e-3), name


@pytest.mark.slow
def test_a_lost_process_ends_the_training_which_says_so(
    store: Store, write_recipe: Callable[..., Path]
) -> None:
    with begun(store, write_recipe(steps=100_000)) as process:
        until_it_steps(process, store)
        rank(store, 1).kill()
        code, out, err = ended(process)
    assert (code, out) == (ExitCode.FAILED, ""), err
    error = json.loads(err.strip().splitlines()[-1])["error"]
    assert error["what"] == "Process 1 of 2 ended, and the training with it."
    assert "--resume" in error["hint"]
    assert nobody_is_left(store)


@pytest.mark.slow
def test_no_process_outlives_the_command(store: Store, write_recipe: Callable[..., Path]) -> None:
    with begun(store, write_recipe(steps=100_000)) as process:
        until_it_steps(process, store)
        assert len(processes_of(store)) == 3
    assert nobody_is_left(store)
    assert [e["event"] for e in events(store)][-2:] == ["kept", "interrupted"]


@pytest.mark.slow
def test_what_the_first_process_refuses_is_the_commands_own_error(
    store: Store, write_recipe: Callable[..., Path]
) -> None:
    with begun(store, write_recipe(), "--resume") as process:
        code, out, err = ended(process)
    assert (code, out) == (ExitCode.NOT_FOUND, ""), err
    (line,) = [line for line in err.splitlines() if line.startswith("{")]
    assert "no unfinished run" in json.loads(line)["error"]["what"]
    assert "Traceback" not in err
    assert nobody_is_left(store)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"method": "qlora"}], ids=["lora", "qlora"])
def test_a_model_cut_over_two_processes_trains_as_a_whole_one(
    changes: dict[str, Any],
    store: Store,
    write_recipe: Callable[..., Path],
    train_tiny: Training,
    tmp_path: Path,
) -> None:
    """Stopped, gone on with, and at the end the adapter of one process. The base's head is a matrix of its own."""
    base = chat_base(tmp_path / "untied", tied=False)
    changes = {
        "base": str(base),
        "steps": 8,
        "eval": {"rows": 6, "every": 4, "samples": 1},
        **changes,
    }
    config = {
        **accelerate_config(2, "fsdp", GPU), "use_cpu": True, "mixed_precision": "no",
    }  # fmt: skip
    write_config(tmp_path / "fsdp.yaml", config)
    command = [
        sys.executable, "-m", "accelerate.commands.launch",
        "--config_file", str(tmp_path / "fsdp.yaml"),
        "-m", "tests.support.fsdp_on_cpu", str(write_recipe(**changes)), "--json",
    ]  # fmt: skip
    environment = {**os.environ, "ADAPTERHUB_HOME": str(store.home), "HELD": str(tmp_path)}

    def run(*flags: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *flags], cwd=ROOT, env={**environment, **more}, capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip

    assert "Interrupted" in (stopped := run(STOP_AT="5")).stderr, stopped.stderr
    resumed = run("--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert [e["step"] for e in told(store, "resumed")] == [5]
    for index in (0, 1):
        held = json.loads((tmp_path / f"{index}.json").read_text())
        assert held["here"] == pytest.approx(held["whole"] / 2, rel=0.02)

    alone = Store(tmp_path / "alone")
    train_tiny(to=alone, gradient_accumulation=2, **changes)
    for key in ("loss", "grad_norm"):
        ours, theirs = ([e[key] for e in told(s, "step")] for s in (store, alone))
        assert ours == pytest.approx(theirs, rel=1e-4)
    weights = tensors(alone)
    for name, value in tensors(store).items():
        assert value.numpy() == pytest.approx(weights[name].numpy(), abs=1e-4), name


def test_accelerate_reads_what_is_written_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = tmp_path / "fsdp.yaml"
    config = accelerate_config(4, "fsdp", GPU)
    write_config(path, config)
    read: Any = load_config_from_file(str(path))
    assert (read.distributed_type.value, read.num_processes, read.mixed_precision) == (
        "FSDP",
        4,
        "bf16",
    )
    assert read.fsdp_config == config["fsdp_config"]
    for wrong in (
        {**config, "num_proceses": 4},
        {**config, "fsdp_config": {**config["fsdp_config"], "fsdp_reshard": True}},
    ):
        path.write_text(yaml.safe_dump(wrong))
        with pytest.raises(UsageError, match="no configuration of accelerate"):
            check_config(path)


def test_the_sharding_that_accelerate_makes_of_it_is_the_one_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the file through the launcher's variables to the plugin, as in a worker."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env
    from torch.distributed.fsdp import StateDictType
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    write_config(tmp_path / "fsdp.yaml", accelerate_config(2, "fsdp", GPU))
    typed = ["--config_file", str(tmp_path / "fsdp.yaml"), "-m", "adapterhub.trainer.worker"]
    options, *_ = _validate_launch_command(launch_command_parser().parse_args(typed))
    variables = prepare_multi_gpu_env(options)
    for key, value in variables.items():
        if key.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(key, value)
    assert variables["ACCELERATE_USE_FSDP"] == "true"
    assert variables["ACCELERATE_MIXED_PRECISION"] == "bf16"
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is True
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.state_dict_type is StateDictType.FULL_STATE_DICT
    assert plugin.activation_checkpointing is False


def test_the_command_to_type_has_the_arguments_that_were_typed_and_none_of_the_launchers() -> None:
    typed = ["r.yaml", "--processes", "8", "--set", "rank=4", "--sharding=fsdp", "--accelerate-config", "a.yaml"]  # fmt: skip
    assert command_for(Path("a.yaml"), typed) == (
        "accelerate launch --config_file a.yaml -m adapterhub.trainer.worker r.yaml --set rank=4"
    )


@pytest.mark.parametrize(
    "changes",
    [{"kind": "adalora"}, {"kind": "dora"}, {"init": "pissa"}, {"objective": "dpo"}, {"optimizer": "adamw_8bit"}],
    ids=lambda changes: next(iter(changes.values())),
)  # fmt: skip
def test_what_needs_whole_tensors_is_refused_where_each_process_has_a_part(
    changes: dict[str, Any],
) -> None:
    recipe = parse_recipe(
        {"name": "a", "base": "b", "data": {"path": "c.json"}, "steps": 1, **changes}
    )
    check_sharding(recipe, "none")
    with pytest.raises(UnsupportedError, match="--sharding fsdp"):
        check_sharding(recipe, "fsdp")


def test_a_training_in_several_processes_needs_several() -> None:
    assert processes_for(3, "none", CPU) == 3
    for asked in (None, 1):
        with pytest.raises(UsageError, match="at least two"):
            processes_for(asked, "none", CPU)
