"""Four folders, one import package: the one thing that pyproject.toml can't say, which is "find the packages".

Everything else is in pyproject.toml. A static list there would forget the next sub-package in the wheel, and nothing says so.
"""

import tomllib
from pathlib import Path

from setuptools import find_packages, setup

pyproject = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))
folders = pyproject["tool"]["setuptools"]["package-dir"]
setup(
    packages=[
        name
        for package, folder in folders.items()
        for name in (package, *(f"{package}.{sub}" for sub in find_packages(folder)))
    ]
)
