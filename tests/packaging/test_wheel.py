"""What a user gets from `pip install`: one command, four packages under one name, no torch unless asked for."""

import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "adapterhub": "adapterhub",
    "tui": "adapterhub/tui",
    "trainer": "adapterhub/trainer",
    "serve": "adapterhub/serve",
}
EXTRAS = {"merge", "train", "harness", "door", "serve", "tui", "web", "all", "dev"}

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build in the checkout would leave folders there, and pick up those of the build before."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    done = run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tree / "dist", cwd=tree
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (tree / "dist").glob("adapterhub-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel and what its core depends on, at the versions of the lock."""
    place = tmp_path_factory.mktemp("user")
    run(sys.executable, "-m", "venv", place / "venv", cwd=place)
    python = place / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    lock = ROOT / "requirements" / "dev.lock"
    probe = run(*pip, "download", "--no-deps", "-d", place, "-c", lock, "typer", cwd=place)
    if probe.returncode:
        pytest.skip(
            f"no package index is reachable from here: {probe.stderr.strip().splitlines()[-1]}"
        )
    done = run(*pip, "install", "--constraint", lock, wheel, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_the_wheel_holds_every_module_and_data_file_of_the_four_folders(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == wanted
    assert {f"{target}/py.typed" for target in FOLDERS.values()} <= names


def test_the_wheel_has_the_licence_the_extras_and_the_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name.partition(".dist-info/")[2]: name for name in archive.namelist()}
        metadata = message_from_string(archive.read(files["METADATA"]).decode())
        entry_points = archive.read(files["entry_points.txt"]).decode()
        licence = archive.read(files["licenses/LICENSE"]).decode()
    assert "Apache License" in licence
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS
    assert "adapterhub = adapterhub.cli.main:main" in entry_points
    for command in (
        "train = adapterhub.trainer.",
        "serve = adapterhub.serve.",
        "tui = adapterhub.tui.",
    ):
        assert command in entry_points


def test_the_core_alone_lists_its_store_from_another_folder(installed: Path) -> None:
    command = installed / "venv" / "bin" / "adapterhub"
    home = {
        "ADAPTERHUB_HOME": str(installed / "home"),
        "ADAPTERHUB_CACHE": str(installed / "cache"),
    }

    shown = run(command, "--help", cwd=installed, **home)
    assert shown.returncode == 0, shown.stderr
    assert "merge" in shown.stdout

    listed = run(command, "ls", "--json", cwd=installed, **home)
    assert listed.returncode == 0, listed.stderr


def test_four_packages_are_installed_under_one_name(installed: Path) -> None:
    statement = "import adapterhub, adapterhub.tui, adapterhub.trainer, adapterhub.serve as s; print(s.__file__)"
    done = run(installed / "venv" / "bin" / "python", "-c", statement, cwd=installed)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed / "venv")


@pytest.mark.parametrize("name", ["tui", "trainer", "serve", "torch", "textual", "transformers"])
def test_nothing_else_comes_along(installed: Path, name: str) -> None:
    done = run(installed / "venv" / "bin" / "python", "-c", f"import {name}", cwd=installed)
    assert "ModuleNotFoundError" in done.stderr
