"""Checks the import contracts of pyproject.toml (import-linter) on the tree as it is installed.

import-linter reads packages from their folder and can't follow the mapping of four sibling folders to one package, so it
would never look at `tui`, `trainer` and `serve`, and would keep every contract about them. This copies the modules to where
they are when installed, in a temporary folder, and runs import-linter there.
"""

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(root: Path = ROOT) -> int:
    pyproject = root / "pyproject.toml"
    folders = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["setuptools"][
        "package-dir"
    ]
    with tempfile.TemporaryDirectory(prefix="adapterhub-imports-") as assembled:
        for package, folder in folders.items():
            for module in (root / folder).rglob("*.py"):
                target = Path(assembled, *package.split("."), module.relative_to(root / folder))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(module, target)
        linter = Path(sys.executable).with_name("lint-imports")
        arguments = [str(linter), "--config", str(pyproject), "--no-cache", "--no-logo"]
        return subprocess.run(arguments, cwd=assembled, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
