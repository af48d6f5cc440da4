"""Every command that README and docs show is run, page by page, in the order a reader would type it.

A file that a page shows, a block of YAML that begins with its name, is there.

The pages speak of `./my-base`, `./tone-lora` and so on; here those are a tiny base and adapters made by PEFT. A server is only
planned (`--dry-run`) and the screen only asked for its help: starting them for real is tested in tests/serve and tests/tui.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.models import ModelMaker

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^```yaml\n# (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INSTEAD = {"serve": ["--dry-run"], "tui": ["--help"]}


def commands(page: Path) -> list[str]:
    """The lines after `$ ` in a page's console blocks."""
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def files(page: Path) -> dict[str, str]:
    """The files a page shows, by name."""
    return dict(_FILE.findall(page.read_text(encoding="utf-8")))


_TASK = """\
task: late
dataset_path: json
dataset_kwargs: {data_files: {test: tickets.json}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{instruction}}"
doc_to_choice: ["Sorry.", "No."]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""
"""A task of one's own for lm-evaluation-harness."""


@pytest.fixture
def workplace(
    tmp_path: Path, tiny: ModelMaker, make_peft_adapter: Callable[..., Path]
) -> tuple[Path, dict[str, str]]:
    """A folder with everything the pages mention, and the environment to run in. The store knows the pages' names."""
    folder = tmp_path / "work"
    folder.mkdir()
    base = tiny.llama()
    (folder / "my-base").symlink_to(base)
    for seed, name in enumerate(("tone-lora", "terms-lora")):
        made = make_peft_adapter(base, name, seed=seed, r=4 * (seed + 1))
        config = json.loads((made / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "my-org/my-base"
        (made / "adapter_config.json").write_text(json.dumps(config))
        made.rename(folder / name)
    _on_disk(folder)
    rows = [{"instruction": f"Ticket {n}: late?", "output": f"Sorry. Day {n}."} for n in range(40)]
    (folder / "tickets.json").write_text(json.dumps(rows))
    found = [
        {"question": row["instruction"], "contexts": [f"Parcel {n} is late."]}
        for n, row in enumerate(rows)
    ]
    (folder / "found.json").write_text(json.dumps(found))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "late.yaml").write_text(_TASK)
    wishes = [
        {"prompt": f"Ticket {n}: late?", "chosen": f"Sorry. Day {n}.", "rejected": "No."}
        for n in range(40)
    ]
    (folder / "wishes.json").write_text(json.dumps(wishes))
    (folder / "recipe.yaml").write_text(
        "name: support/trained\nbase: my-org/my-base\ndata: {path: tickets.json}\nsteps: 2\nmax_length: 96\n"
    )
    environment = {**os.environ, "ADAPTERHUB_HOME": str(tmp_path / "home")}
    return folder, environment


def _on_disk(folder: Path) -> None:
    """What store.md adds besides: a tree with a checkpoint, a single file, a pickle."""
    import torch
    from safetensors.torch import load_file

    for place in ("runs/a", "runs/a/checkpoint-100", "old-lora", "lone"):
        shutil.copytree(folder / "tone-lora", folder / place)
    weights = folder / "old-lora" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    for name, other in (
        ("adapter_model.safetensors", "polite.safetensors"),
        ("adapter_config.json", "adapter_config.json"),
    ):
        (folder / "lone" / name).rename(folder / other)


@dataclass(frozen=True)
class Done:
    """What a command returned and printed."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Shell:
    """Runs a page's commands, in the warm process of all pages."""

    process: subprocess.Popen[str]
    said: Path

    def run(self, line: str, folder: Path, environment: dict[str, str]) -> Done:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "adapterhub", f"only our own commands are shown as commands: {line}"
        arguments[1:1] = _INSTEAD.get(arguments[0], [])  # what follows -- belongs to others
        out, err = self.said / "out", self.said / "err"
        job = {"arguments": arguments, "folder": str(folder), "environment": environment}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({**job, "out": str(out), "err": str(err)}) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return Done(code, out.read_text(), err.read_text())


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    warm = [sys.executable, str(Path(__file__).with_name("warm.py"))]
    with subprocess.Popen(
        warm, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Shell(process, tmp_path_factory.mktemp("said"))
        assert process.stdin
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_does_what_the_page_says(
    page: Path, workplace: tuple[Path, dict[str, str]], shell: Shell
) -> None:
    folder, environment = workplace
    shown = commands(page)
    for name, text in files(page).items():
        (folder / name).write_text(text)
    if page.name != "README.md":  # the other pages go on from where README ends
        for line in commands(PAGES[0])[:3]:
            if not (page.name == "store.md" and " add " in line and "base add" not in line):
                assert shell.run(line, folder, environment).returncode == 0
    for line in shown:
        done = shell.run(line, folder, environment)
        assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr


def test_every_file_shown_has_a_name_and_is_used() -> None:
    for page in PAGES:
        blocks = page.read_text(encoding="utf-8").count("```yaml")
        assert len(files(page)) == blocks, f"{page.name} shows a file without a name"
        for name in files(page):
            assert any(name in line.split() for line in commands(page)), name


def test_readme_shows_commands_and_the_two_make_targets() -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert len(commands(PAGES[0])) >= 8


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []
