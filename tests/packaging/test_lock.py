"""The committed lock is complete, has nothing too much, and is what is installed here."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_lock_is_what_the_project_needs_and_nothing_more() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "lock.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_is_pinned_to_its_cpu_build() -> None:
    lock = (ROOT / "requirements" / "dev.lock").read_text(encoding="utf-8")
    assert re.search(r"^torch==[0-9.]+\+cpu$", lock, re.MULTILINE)
    assert "nvidia" not in lock
