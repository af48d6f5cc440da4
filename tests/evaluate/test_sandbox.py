"""Code that a model wrote can compute, and can do nothing else, and never takes anything with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapterhub.evaluate import sandboxed
from adapterhub.evaluate.sandbox import run_code

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="code is only run where Linux can confine it"
)
DOUBLE = "def double(x):\n    return 2 * x"


def test_right_code_passes_and_wrong_code_says_why() -> None:
    assert run_code(DOUBLE, {"double(4)": 8, "double('a')": "aa", "[double(1)]": [2]}).passed
    wrong = run_code("def double(x):\n    return x", {"double(4)": 8})
    assert not wrong.passed
    assert wrong.why == "double(4) is 4, not 8"
    assert "SyntaxError" in run_code("def double(x", {}).why
    assert "NameError" in run_code("", {"double(1)": 2}).why


def test_it_may_use_what_small_functions_use() -> None:
    code = "import math, re, collections, itertools, functools, heapq, string, datetime, typing\n"
    assert run_code(code + DOUBLE, {"math.gcd(double(6), 8)": 4}).passed


@pytest.mark.parametrize(
    ("value", "wanted", "passed"),
    [("3.0", 3, True), ("True", 1, False), ("1", True, False), ("(1, 2)", [1, 2], True), ("'1'", 1, False), ("None", False, False)],
)  # fmt: skip
def test_values_are_compared_by_kind(value: str, wanted: object, passed: bool) -> None:
    assert run_code("", {value: wanted}).passed is passed


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "def f(): return f()\nf()",
        "x = [0] * 10**10",
        "x = 'a'\nwhile True: x += x",
        "import os\nwhile True: os.fork()",
        "import os\nfor _ in range(10**9): os.write(3, b'x' * 4096)",
        "import os\nos._exit(0)",
        "raise SystemExit(0)",
        "import os\nos.kill(os.getppid(), 9)",
        "import os\nos.setsid()",
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass",
        "import subprocess\nsubprocess.run(['true'])",
        "import ctypes\nassert ctypes.CDLL(None).fork() >= 0",
        "import ctypes\nassert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
        "import threading\nthreading.Thread(target=print).start()",
        "open('/etc/passwd').read()",
        "open('/tmp/written', 'w')",
        "import os\nos.stat('/etc/passwd')",
        "import os\nos.listdir('/')",
        "import socket\nsocket.socket()",
        "import os\nos.chmod('/tmp', 0o1777)",
        "import torch",
    ],
)
def test_nothing_else_works_and_everything_ends(code: str) -> None:
    began = time.monotonic()
    assert not run_code(code, {"1": 1}, seconds=2).passed
    assert time.monotonic() - began < 60
    assert not Path("/tmp/written").exists()


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.write(3, b'{\"values\": [7]}\\n')\nos._exit(0)",
        "class A:\n    def __eq__(self, other): return True\ndef f(): return A()",
        "class A(int):\n    def __eq__(self, other): return True\ndef f(): return A(7)",
        "import json\njson.dumps = lambda *_: '{\"values\": [7]}'\ndef f(): return 8",
        "import sys\nsys._getframe().f_back.f_locals['calls'][:] = []",
        "import __main__\n__main__.computed = None\n__main__.confine = lambda: True\ndef f(): return 7",
    ],
)
def test_a_pass_cannot_be_forged_without_knowing_the_value(code: str) -> None:
    assert not run_code(code, {"f()": 8191}).passed


def test_no_process_is_left_behind() -> None:
    code = (
        "import os, ctypes\nlibc = ctypes.CDLL(None)\n"
        "libc.prctl(1, 0, 0, 0, 0); libc.setsid(); libc.fork()\n"
        "import time\nwhile True: time.sleep(1)"
    )
    began = time.monotonic()
    run_code(code, {}, seconds=2)
    assert time.monotonic() - began < 60
    mine = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(Path(sandboxed.__file__)) not in mine


def confined(what: str) -> subprocess.CompletedProcess[str]:
    """Runs `what` behind the kernel's wall, with every part of the interpreter at hand."""
    folder = str(Path(sandboxed.__file__).parent)
    script = (
        f"import sys; sys.path.insert(0, {folder!r}); import os, socket, sandboxed\n"
        f"s = socket.socket(); u = socket.socket(socket.AF_UNIX)\nassert sandboxed.confine()\n{what}"
    )
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_kernel_refuses_even_what_was_open_before(tmp_path: Path) -> None:
    """The user's own files, sockets that exist already, unix sockets by their path, signals, other processes."""
    mine = tmp_path / "mine"
    mine.write_text("secret")
    mine.chmod(0o600)
    path = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        address = (b"127.0.0.1", server.getsockname()[1])
        for what in (
            f"open({str(mine)!r})",
            f"os.chmod({str(mine)!r}, 0o777)",
            f"os.stat({str(mine)!r})",
            f"os.unlink({str(mine)!r})",
            f"s.connect({address!r})",
            f"u.connect({str(path)!r})",
            f"os.kill({os.getpid()}, 0)",
            "os.fork()",
            "os.execv('/bin/true', ['true'])",
        ):
            assert "PermissionError" in confined(what).stderr, what
    assert mine.read_text() == "secret"
    assert mine.stat().st_mode & 0o777 == 0o600
    assert confined("x = [0] * 10**6; print('computed', flush=True)").stdout == "computed\n"
