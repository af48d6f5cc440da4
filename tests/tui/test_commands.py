"""The `tui` command: refuses where there is no terminal, and costs nothing until it is used."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from adapterhub.tui.commands import tui


@pytest.fixture
def cli() -> typer.Typer:
    app = typer.Typer()
    app.command()(tui)
    return app


def test_off_a_terminal_it_refuses_and_names_the_command_for_text(cli: typer.Typer) -> None:
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 2
    assert "The terminal UI needs a terminal." in result.stderr
    assert "adapterhub ls" in result.stderr


def test_json_is_refused_with_the_command_that_has_it(cli: typer.Typer) -> None:
    result = CliRunner().invoke(cli, ["--json"])
    assert result.exit_code == 2
    assert "adapterhub ls --json" in json.loads(result.stderr)["error"]["hint"]


def test_loading_the_command_loads_no_screen() -> None:
    program = "import sys, adapterhub.tui.commands; print([m for m in ('textual', 'torch', 'peft') if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


_AT_ONCE = "1 / 0"
_IN_A_WORKER = "self.run_worker(fail())"
_FAULTY = """
from adapterhub.cli.main import main
from adapterhub.tui.screens.library import LibraryScreen
async def fail(): 1 / 0
def on_mount(self): {how}
LibraryScreen.on_mount = on_mount
main()
"""


@pytest.mark.parametrize(("how", "debug"), [(_AT_ONCE, False), (_IN_A_WORKER, True)])
def test_a_fault_of_ours_ends_it_in_words_with_the_code_of_a_failure(
    home: Path, how: str, debug: bool
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _FAULTY.format(how=how), "tui", *(["--debug"] if debug else [])],
        env={
            **os.environ,
            "ADAPTERHUB_HOME": str(home),
            "TEXTUAL_DRIVER": "textual.drivers.web_driver:WebDriver",  # needs no terminal
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 1, said
    told = "Something went wrong inside adapterhub: ZeroDivisionError: division by zero"
    assert told in " ".join(said.split())
    assert "--debug" in said
    assert ("Traceback" in said) is debug
    assert "locals" not in said


def test_the_picture_for_readme_is_the_same_every_time_and_names_no_path(
    sample_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path(__file__).parents[2] / "scripts" / "screenshot.py"
    pictures: list[str] = []
    for environment in ({"NO_COLOR": "1", "TERM": "dumb", "TZ": "Asia/Tokyo"}, {"TERM": "xterm"}):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        output = tmp_path / f"{len(pictures)}.svg"
        arguments = [
            "--home",
            str(sample_home),
            "--output",
            str(output),
            "--size",
            "100x30",
            "--select",
            "legal/terms",
        ]
        monkeypatch.setattr("sys.argv", [str(script), *arguments])
        runpy.run_path(str(script), run_name="__main__")
        pictures.append(output.read_text())
    assert pictures[0] == pictures[1]
    assert pictures[0].count("legal/terms") == 2, "in the list and above its details"
    assert str(sample_home) not in pictures[0]


def test_a_picture_of_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).parents[2] / "scripts" / "screenshot.py"
    monkeypatch.setattr("sys.argv", [str(script), "--home", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="is empty; make one with: make demo"):
        runpy.run_path(str(script), run_name="__main__")
