"""Models in memory: one base, adapters attached to it in turn, merged models loaded by themselves."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.data import Message
from adapterhub.errors import IncompatibleError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def hush_optional_kernels() -> None:
    """Keeps bitsandbytes from recommending, at every import, a package of kernels that it does without."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def require_libraries() -> None:
    """MissingDependencyError, with what to install, when a library is missing."""
    hush_optional_kernels()
    for name in ("torch", "transformers", "peft"):
        if find_spec(name) is None:
            raise MissingDependencyError(
                f"Evaluation needs {name}, which isn't installed.",
                hint='pip install "adapterhub[train]"',
            )


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`; UsageError lists the known ones."""
    import torch

    if name not in DTYPES:
        raise UsageError(
            f"'{name}' is not a dtype to compute in.", hint=f"Use one of: {', '.join(DTYPES)}."
        )
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`, without touching the network."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise IncompatibleError(
            f"{folder.name} has no tokenizer that can be loaded.", why=str(error).split("\n")[0]
        ) from error


def load_model(folder: Path, dtype: str, device: str | None = None) -> Any:
    """The model in `folder` for inference, in `dtype`, on `device` (by default a GPU where there is one)."""
    import torch
    from transformers import AutoModelForCausalLM

    with quiet_libraries():
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch_dtype(dtype), local_files_only=True
        )
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


@contextmanager
def attached(model: Any, adapter: Path | None) -> Iterator[Any]:
    """`model` with the adapter in the folder `adapter` attached (None: as it is), and without it again afterwards."""
    if adapter is None:
        yield model
        return
    from peft import PeftModel

    with quiet_libraries():
        wrapped = PeftModel.from_pretrained(model, adapter, is_trainable=False)
    try:
        yield wrapped.eval()
    finally:
        wrapped.unload()
        # peft leaves its mark, and warns when the next adapter is attached
        with contextlib.suppress(AttributeError):
            del model.peft_config


def answer(
    model: Any,
    tokenizer: Any,
    prompt: str | Sequence[Message],
    stop_ids: frozenset[int],
    max_new_tokens: int,
) -> str:
    """One greedy answer to `prompt`: a question or the turns so far, through the chat template.

    Where there is no template, a question is continued as it is.
    """
    import torch

    if tokenizer.chat_template:
        asked = [Message("user", prompt)] if isinstance(prompt, str) else prompt
        turns = [{"role": message.role, "content": message.content} for message in asked]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    inputs = inputs.to(next(model.parameters()).device)
    with torch.no_grad():
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,  # trainers turn it off
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=sorted(stop_ids),
            pad_token_id=min(stop_ids),
        )
    text: str = tokenizer.decode(
        output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return text.strip()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences the progress bars and remarks of transformers; stdout stays ours."""
    from transformers.utils import logging as remarks

    verbosity = remarks.get_verbosity()
    shown = remarks.is_progress_bar_enabled()
    remarks.set_verbosity_error()
    remarks.disable_progress_bar()
    try:
        yield
    finally:
        remarks.set_verbosity(verbosity)
        if shown:
            remarks.enable_progress_bar()
