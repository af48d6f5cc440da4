"""Fuzzes the readers for as long as one likes, guided by the coverage of the product's code.

    python -m tests.fuzz.run --seconds 600 [--only NAME ...]

divides the time over the targets, one process each, one after another. What is known to be interesting is kept in
.cache/fuzz/corpus/ and is where the next run begins; an input that breaks a reader is saved in .cache/fuzz/found/ under
the reader's name, with the stack in .cache/fuzz/logs/. To see it again: python -m tests.fuzz.run --read NAME FILE
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".cache" / "fuzz"
LONGEST = 6000
"""Bytes of an input: the readers have no cases that need more."""
HANG_SECONDS = 60
MEMORY_MIB = 2048

_EXECUTED = re.compile(r"stat::number_of_executed_units: (\d+)")
_SAVED = re.compile(r"Test unit written to (\S+)")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=600, help="of fuzzing, altogether")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these targets alone")
    parser.add_argument("--read", nargs=2, metavar=("NAME", "FILE"), help="read one saved input")
    parser.add_argument("--fuzz", nargs=2, metavar=("NAME", "SECONDS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.fuzz:
        fuzz(asked.fuzz[0], int(asked.fuzz[1]))
    if asked.read:
        return read(asked.read[0], Path(asked.read[1]))
    return run(asked.seconds, asked.only)


def run(seconds: int, only: list[str] | None) -> int:
    """Every target for its share of the time; 1 where one was broken."""
    from tests.fuzz.seeds import NAMES

    names = only or list(NAMES)
    share = max(1, seconds // len(names))
    executed, broken = {}, []
    _say(f"{len(names)} targets, {share} seconds each")
    for name in names:
        said = _start(name, share)
        units = _EXECUTED.search(said)
        executed[name] = int(units[1]) if units else 0
        saved = _SAVED.search(said)
        if saved or not units:
            broken.append(name)
        verdict = f"BROKEN: {saved[1] if saved else _log(name)}" if name in broken else "sound"
        _say(f"{name:15} {executed[name]:>9,} executions   {verdict}")
    _say(f"{'together':15} {sum(executed.values()):>9,} executions")
    for name in broken:
        _say(f"{name}: the stack is in {_log(name)}")
    return 1 if broken else 0


def _start(name: str, seconds: int) -> str:
    """Fuzzes one target in a process of its own, and returns what it said."""
    for folder in (PLACE / "found", PLACE / "logs", _corpus(name)):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.run", "--fuzz", name, str(seconds)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": scratch, "ADAPTERHUB_CACHE": f"{scratch}/cache", "HF_HUB_OFFLINE": "1", "HF_HOME": f"{scratch}/hf"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )  # fmt: skip
    _log(name).write_bytes(done.stdout)
    return done.stdout.decode("utf-8", "replace")


def fuzz(name: str, seconds: int) -> None:
    """Runs libFuzzer in this process, which it ends."""
    import atheris

    with atheris.instrument_imports(include=["adapterhub", "tomllib"]):  # pyright: ignore[reportAttributeAccessIssue]
        from adapterhub.errors import AdapterHubError
        from tests.fuzz.targets import Readers

    target = Readers(Path(tempfile.mkdtemp())).targets()[name]
    for number, seed in enumerate(target.seeds):
        (_corpus(name) / f"seed{number}").write_bytes(seed[:LONGEST])

    def once(data: bytes) -> None:
        with suppress(AdapterHubError):
            target.read(data)

    prefix = PLACE / "found" / f"{name.replace(' ', '_')}-"
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}",
               f"-artifact_prefix={prefix}", "-print_final_stats=1", "-verbosity=1"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(_corpus(name))], once)
    atheris.Fuzz()


def read(name: str, path: Path) -> int:
    """What a reader makes of one input; a stack where it breaks."""
    from adapterhub.errors import AdapterHubError
    from tests.fuzz.targets import Readers

    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        os.environ["ADAPTERHUB_CACHE"] = f"{scratch}/cache"
        found: Any = Readers(Path(scratch)).targets()[name]
        try:
            found.read(path.read_bytes())
        except AdapterHubError as error:
            _say(f"refused: {error}")
        else:
            _say("taken")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _corpus(name: str) -> Path:
    return PLACE / "corpus" / name.replace(" ", "_")


def _log(name: str) -> Path:
    return PLACE / "logs" / f"{name.replace(' ', '_')}.txt"


if __name__ == "__main__":
    sys.exit(main())
