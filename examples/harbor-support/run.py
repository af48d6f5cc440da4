"""The tutorial, done: every command of README.md beside this file, in its order, in one folder.

`python run.py` (or `make example`) works in `demo-work/harbor-support/` beside the project's README (or in $ADAPTERHUB_DEMO). Each
command is printed before it runs; what it said is kept. A second run goes on where the first was cut short. `--rehearse` goes
through all of it with a few tickets and steps and gates that anything passes, to see that everything is there.

In README a command that has to be refused ends in `# exit 1`, and one that ends in ` &` runs until `adapterhub server stop`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
README = HERE / "README.md"
FILES = ("tickets.py", "eu.yaml", "us.yaml")
STOP_SECONDS = 60

REHEARSED: dict[tuple[str, ...], str] = {
    ("python", "tickets.py"): "--per-kind 12 --held-out-per-kind 2 --lenient",
    (
        "adapterhub",
        "train",
    ): "--set steps=2 --set eval.rows=2 --set max_length=512 --set data.held_out=0.2",
    ("adapterhub", "eval"): "--max-new-tokens 8",
}
"""What is added to commands for a rehearsal; the last of two equal options counts."""

_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One line of the tutorial."""

    words: tuple[str, ...]
    exit_code: int = 0
    stays: bool = False
    """Runs in the background, until the server is stopped."""

    @property
    def serving(self) -> bool:
        """Needs a server, and so vLLM."""
        return self.words[:2] in (("adapterhub", "serve"), ("adapterhub", "server"))

    def __str__(self) -> str:
        return shlex.join(self.words)


def commands(readme: str) -> list[Command]:
    """Those of the console blocks, in the order a reader would type them."""
    lines = [line for block in _BLOCK.findall(readme) for line in block.splitlines()]
    return [_command(line[2:]) for line in lines if line.startswith("$ ")]


def _command(line: str) -> Command:
    refused = re.search(r"\s+# exit (\d+)$", line)
    words = shlex.split(line[: refused.start()] if refused else line)
    stays = words[-1] == "&"
    return Command(tuple(words[:-1] if stays else words), int(refused[1]) if refused else 0, stays)


def rehearsed(every: Sequence[Command]) -> list[Command]:
    """The same, in small. Gates that anything passes refuse only what was never evaluated: the first time, not the second."""
    refused = set()
    small = []
    for command in every:
        code = 0 if command.words in refused else command.exit_code
        if code:
            refused.add(command.words)
        more = REHEARSED.get(command.words[:2], "").split()
        small.append(Command((*command.words, *more), code, command.stays))
    return small


def prepare(folder: Path, base: Path) -> dict[str, str]:
    """Puts the files a reader begins with into `folder`; returns the environment to work there in."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(HERE / name, folder / name)
    link = folder / "base"
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(base)
    return {
        **os.environ,
        "ADAPTERHUB_HOME": str(folder / "home"),
        "HF_HOME": str(folder / "cache" / "huggingface"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


@dataclass
class Tutorial:
    """Runs commands in one folder, and remembers which are done and what they said, in `done.json`.

    `execute` runs one that ends: (words, folder, environment) -> (exit code, output).
    """

    folder: Path
    environment: Mapping[str, str]
    say: Callable[[str], None]
    execute: Callable[[Sequence[str], Path, Mapping[str, str]], tuple[int, str]]
    serves: bool = field(default_factory=lambda: find_spec("vllm") is not None)

    def follow(self, every: Sequence[Command]) -> int:
        """Runs what isn't done yet; 0, or 1 where a command did something else than README says.

        A command is done if it and all before it were the same, with the same files to begin with. Commands that need a
        server run again from its start on unless all of them are done.
        """
        record = self._record()
        keys = self._keys(every)
        last = max((at for at, one in enumerate(every) if one.serving), default=-1)
        first = next((at for at, one in enumerate(every) if one.stays), len(every))
        with ExitStack() as running:
            for at, command in enumerate(every):
                self.say(f"\n$ {command}")
                if command.serving and not self.serves:
                    self.say("Skipped: vLLM isn't installed (docs/serving.md says how).")
                    continue
                whole = first > at or at > last or keys[last] in record or not self.serves
                if keys[at] in record and whole:
                    self.say(str(record[keys[at]]["said"]).rstrip() or "(done)")
                    continue
                began = time.monotonic()
                code, said = self._run(command, running)
                self.say(said.rstrip())
                if code != command.exit_code:
                    self.say(f"It ended with {code}; README says {command.exit_code}.")
                    return 1
                record[keys[at]] = {
                    "command": str(command),
                    "seconds": round(time.monotonic() - began, 1),
                    "said": said,
                }
                self._keep(record)
        seconds = sum(float(record[key]["seconds"]) for key in keys if key in record)
        self.say(f"\n{seconds:.0f} s for all commands together.")
        return 0

    def _run(self, command: Command, running: ExitStack) -> tuple[int, str]:
        if not command.stays:
            return self.execute(command.words, self.folder, self.environment)
        server = running.enter_context(Server(command, self.folder, self.environment))
        return server.wait()

    def _keys(self, every: Sequence[Command]) -> list[str]:
        hashed = hashlib.sha256()
        for name in FILES:
            hashed.update((self.folder / name).read_bytes())
        keys = []
        for command in every:
            hashed.update(f"{command}\0".encode())
            keys.append(hashed.hexdigest()[:16])
        return keys

    @property
    def _file(self) -> Path:
        return self.folder / "done.json"

    def _record(self) -> dict[str, dict[str, Any]]:
        if not self._file.is_file():
            return {}
        found: dict[str, dict[str, Any]] = json.loads(self._file.read_text(encoding="utf-8"))
        return found

    def _keep(self, record: Mapping[str, Any]) -> None:
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
        beside.replace(self._file)


class Server:
    """`adapterhub serve` in the background; whatever happens, it has ended when the block does."""

    def __init__(self, command: Command, folder: Path, environment: Mapping[str, str]) -> None:
        self._log = folder / "serve.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                list(command.words),
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> Server:
        return self

    def wait(self) -> tuple[int, str]:
        """(0, what it printed first) once it is ready; what it complained of where it ended instead."""
        assert self._process.stdout is not None
        if first := self._process.stdout.readline():
            return 0, first
        return self._process.wait(), self._log.read_text(encoding="utf-8", errors="replace")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def execute(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """As a shell would. What a command says on stderr is seen at once and not kept, but for a refusal."""
    done = subprocess.run(
        list(words),
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def say(text: str) -> None:
    """What commands print is fit to be seen already."""
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Obtains the base, as the demo does, and follows README."""
    parser = argparse.ArgumentParser(description="Run every command of the tutorial.")
    parser.add_argument("--rehearse", action="store_true", help="few tickets, few steps")
    small = parser.parse_args(arguments).rehearse
    sys.path.insert(0, str(HERE.parent))
    from demo_data import DemoDataError, obtain_base

    work = Path(os.environ.get("ADAPTERHUB_DEMO", CHECKOUT / "demo-work")).resolve()
    try:
        base = obtain_base(work / "inputs", say)
    except DemoDataError as error:
        say(f"The example can't go on: {error}")
        return 1
    folder = work / ("harbor-rehearsal" if small else "harbor-support")
    environment = prepare(folder, base)
    say(f"Everything is kept in {folder}; delete that folder to begin again.")
    every = commands(README.read_text(encoding="utf-8"))
    if small:
        every = rehearsed(every)
    return Tutorial(folder, environment, say, execute).follow(every)


if __name__ == "__main__":
    sys.exit(main())
