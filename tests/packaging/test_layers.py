"""The layering is checked by import contracts, and the contracts are checked here: they hold, and they can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "lint_imports.py"), str(tree)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_layers_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("adapterhub/planted.py", "import adapterhub.tui"),
        ("adapterhub/planted.py", "from adapterhub import trainer"),
        ("adapterhub/store/planted.py", "from adapterhub import serve"),
        ("adapterhub/store/planted.py", "import adapterhub.cli"),
        ("adapterhub/planted.py", "def late():\n    import adapterhub.tui"),
        ("trainer/planted.py", "import adapterhub.tui"),
        ("trainer/planted.py", "import adapterhub.serve"),
        ("serve/planted.py", "import adapterhub.trainer"),
        ("serve/planted.py", "from adapterhub import tui"),
    ],
)
def test_an_import_against_the_layers_is_found(tmp_path: Path, module: str, statement: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("adapterhub", "tui", "trainer", "serve"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    (tmp_path / module).write_text(f"{statement}\n", encoding="utf-8")

    done = lint_imports(tmp_path)

    assert done.returncode == 1, done.stdout + done.stderr
    assert module.removesuffix(".py").replace("/", ".") in done.stdout
