"""An export that is killed, or loses power, at any file operation: nothing half is under its name, and it can be gone on
with, to the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--overwrite"]], ids=["new", "overwrite"])
def test_a_kill_leaves_nothing_half_and_everything_to_go_on_with(
    tiny: ModelMaker, make_adapter: AdapterMaker, tmp_path: Path, flags: list[str]
) -> None:
    base, adapter = tiny.llama(sharded=True), make_adapter()
    words: list[str | Path] = [base, adapter, tmp_path / "scratch", "--points", "12", *flags]
    done = subprocess.run(
        [sys.executable, "-m", "tests.export.killing", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["points"] >= 10
    assert 0 < found["resumed"] < found["states"]
