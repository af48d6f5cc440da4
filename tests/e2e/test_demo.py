"""The demo, unchanged, on a tiny base and tiny data put where it would have fetched the real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.chat import chat_base, chat_rows, write_rows

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The demo's folder, with its inputs there already."""
    inputs = tmp_path / "demo" / "inputs"
    (inputs / "data").mkdir(parents=True)
    chat_base(inputs / "base")
    (inputs / "base-source.json").write_text(json.dumps({"path": "base"}))
    rows = chat_rows(60)
    write_rows(inputs / "data" / "alpaca_en_demo.json", rows)
    calls = [
        {
            "conversations": [
                {"from": "human", "value": row["instruction"]},
                {
                    "from": "function_call",
                    "value": json.dumps({"name": "paint", "arguments": {"n": n}}),
                },
                {"from": "observation", "value": "done"},
                {"from": "gpt", "value": row["output"]},
            ],
            "tools": json.dumps([{"name": "paint", "parameters": {}}]),
        }
        for n, row in enumerate(rows)
    ]
    write_rows(inputs / "data" / "glaive_toolcall_en_demo.json", calls)
    return tmp_path / "demo"


def run(folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ADAPTERHUB_DEMO": str(folder), "HOME": str(home)}
    return subprocess.run(
        [sys.executable, DEMO],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.mark.slow
def test_the_demo_goes_all_the_way_and_reuses_what_is_there(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "empty-home"
    home.mkdir()

    first = run(folder, home)

    assert first.returncode == 0, first.stdout + first.stderr
    table = first.stdout[first.stdout.rindex("model\tppl instruct") :].splitlines()
    names = [line.split("\t")[0] for line in table]
    assert names == [
        "model",
        "base",
        "demo/instruct",
        "demo/tools",
        "demo/linear",
        "demo/ties",
        "model/ (exported demo/ties)",
    ]
    assert all(line.count("\t") == 3 for line in table)
    assert (folder / "model" / "config.json").is_file()
    assert list(home.iterdir()) == [], "nothing is written to the home directory"

    trainings = sorted(path.name for path in (folder / "home" / "runs").glob("train-*"))
    second = run(folder, home)

    assert second.returncode == 0, second.stderr
    assert second.stdout.endswith("\n".join(table) + "\n"), "the same table"
    assert trainings == sorted(path.name for path in (folder / "home" / "runs").glob("train-*"))
