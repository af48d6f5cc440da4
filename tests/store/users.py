"""Runs commands as other users of this machine: a program of its own that must be started by root.

It imports the product first, because the interpreter may lie where others can't read, and forks a child for every
command, which gives up all rights of root before it begins.

    python -m tests.store.users < {"home", "group", "steps": [{"user", "member", "do": [word, ...]}]}

prints what every step said, as one JSON list of {"code", "out", "err"}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.cli.calling import Said, call
from tests.support.adapters import AdapterMaker


def do(words: list[str]) -> Said:
    """A command line; or one of three things that no command does alone."""
    store = Store.open()
    if words[0] == "attest":
        store.attest(store.resolve(words[1]).digest, "note", {"text": words[2]})
    elif words[0] == "view":
        store.view(store.resolve(words[1]).digest)
    elif words[0] == "use":
        with store.leases.held("serve", [store.resolve(words[1]).digest], "at a port"):
            return Said(0, str(len(store.leases.live())), "")
    else:
        return call(*words)
    return Said(0, "", "")


def warm(folder: Path) -> None:
    """Everything once, in a store of root's own: then all modules are loaded."""
    os.environ["ADAPTERHUB_HOME"] = str(folder / "home")
    os.environ["ADAPTERHUB_CACHE"] = str(folder / "cache")
    make = AdapterMaker(folder)
    one, two = make("one"), make("two", seed=1, rank=3)
    for words in (
        ["add", str(one)],
        ["add", str(two), "--name", "one", "--move"],
        *(["attest", "one", "x"], ["view", "one"], ["use", "one"], ["ls"], ["show", "one"]),
        *(["tag", "one", "b"], ["rollback", "one"], ["rm", "b", "--yes"], ["log"]),
        *(["gc", "--grace", "0s", "--yes"], ["gc", "--yes", "--json"], ["undo"]),
        ["checkout", "one", str(folder / "out")],
    ):
        said = do(words)
        assert said.code == 0, (words, said)
    store = Store.open()
    store.layout.blob(store.resolve("one").manifest.files[0].digest).unlink()
    do(["fsck", "--read-data", "--repair"])
    assert do(["fsck", "--read-data", "--json"]).code == 0
    do(["show", "nobody"])
    store.tag(store.resolve("one"), parse_name("last"))


def as_user(step: dict[str, Any], order: dict[str, Any]) -> dict[str, Any]:
    """One step in a child that is that user, with the group of the store if it is a member."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said: dict[str, Any] = {"code": 70, "out": "", "err": ""}
        try:
            os.setgroups([order["group"]] if step["member"] else [])
            os.setresgid(step["user"], step["user"], step["user"])
            os.setresuid(step["user"], step["user"], step["user"])
            os.umask(0o002)
            os.environ |= {
                "ADAPTERHUB_HOME": order["home"],
                "ADAPTERHUB_CACHE": f"{order['home']}.cache.{step['user']}",
                "LOGNAME": f"user{step['user']}",
            }
            found = do(step["do"])
            said = {"code": found.code, "out": found.out, "err": found.err}
        except BaseException:  # noqa: BLE001 - told to the test
            said["err"] = traceback.format_exc()
        finally:
            os.write(writer, json.dumps(said).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = json.loads(file.read())
    os.waitpid(child, 0)
    return said


if __name__ == "__main__":
    order = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        warm(Path(folder))
        sys.stdout.write(json.dumps([as_user(step, order) for step in order["steps"]]))
