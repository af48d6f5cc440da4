"""Models in memory: one base, adapters attached to it in turn, merged models loaded by themselves; and what they answer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adapterhub.data import Message
from adapterhub.data.rows import plain_messages
from adapterhub.data.templates import chat_template, render
from adapterhub.errors import IncompatibleError, MissingDependencyError, UsageError
from adapterhub.evaluate.pieces import Pieces

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
    import torch
    from peft import PeftModel

    # Trained biases are written over the model's own, and peft doesn't put those back.
    biases = {
        name: value.detach().clone()
        for name, value in model.named_parameters()
        if name.endswith("bias")
    }
    with quiet_libraries():
        wrapped = PeftModel.from_pretrained(model, adapter, is_trainable=False)
    try:
        yield wrapped.eval()
    finally:
        if hasattr(wrapped.base_model, "unload"):  # not where only the input is changed
            wrapped.unload()
        with torch.no_grad():
            for name, value in biases.items():
                model.get_parameter(name).copy_(value)
        # peft leaves its mark, and warns when the next adapter is attached
        with contextlib.suppress(AttributeError):
            del model.peft_config


@dataclass(frozen=True)
class Answer:
    """What a model said, as text and as tokens (the stop token included), and why it went no further."""

    text: str
    tokens: tuple[int, ...]
    ended: Literal["stop", "length", "halted"]


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
    asked = prompt_tokens(tokenizer, prompt)
    return stream_answer(model, tokenizer, asked, stop_ids, max_new_tokens).text.strip()


def prompt_tokens(tokenizer: Any, prompt: str | Sequence[Message]) -> list[int]:
    """The tokens that the model is asked with: a question or the turns so far, up to where its answer begins.

    Where there is no chat template, they are those of the text alone. A template that asks for the date is told the one
    it was told in training, so the same question gets the same tokens tomorrow.

    Raises IncompatibleError when the template can't render these turns.
    """
    if not tokenizer.chat_template:
        text = prompt if isinstance(prompt, str) else prompt[-1].content
        found: list[int] = tokenizer(text)["input_ids"]
        return found
    asked = [Message("user", prompt)] if isinstance(prompt, str) else prompt
    turns = plain_messages(asked)
    try:
        text = render(tokenizer, chat_template(tokenizer), turns, add_generation_prompt=True)
    except IncompatibleError as error:
        raise IncompatibleError(
            "The chat template can't render this conversation.",
            why=error.why or error.what,
            hint="Some templates know no system message; leave it out.",
        ) from error
    rendered: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return rendered


def stream_answer(
    model: Any,
    tokenizer: Any,
    asked: Sequence[int],
    stop_ids: frozenset[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int | None = None,
    heard: Callable[[str], None] = lambda _: None,
    halted: Callable[[], bool] = lambda: False,
) -> Answer:
    """The model's answer to the tokens `asked`, told piece by piece as it is made.

    Args:
        temperature: 0 is greedy; above it the answer is drawn, within the top-k and top-p of the model's
            generation_config.json where that names them.
        seed: of the draw; None draws anew each time. The random state of the process is left as it was.
        heard: called with each piece of text; joined they are the answer's text. A character whose bytes come with
            several tokens is told once it is whole.
        halted: asked after each token; true ends the answer there.
    """
    import torch
    from transformers import StoppingCriteriaList

    device = next(model.parameters()).device
    inputs = torch.tensor([list(asked)], device=device)
    pieces = Pieces(tokenizer, heard)

    def stop_here(ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((1,), halted(), device=ids.device, dtype=torch.bool)

    # None takes the model's own values away; without it they would be remarked upon where nothing is drawn
    drawing: dict[str, Any] = {
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
    }
    if temperature > 0:
        own = model.generation_config
        drawing = {
            "do_sample": True,
            "temperature": temperature,
            "top_p": 1.0 if own.top_p is None else own.top_p,
            "top_k": 0 if own.top_k is None else own.top_k,
        }
    gpus = [device] if device.type == "cuda" else []
    with torch.no_grad(), quiet_libraries(), torch.random.fork_rng(gpus):
        if temperature > 0:
            torch.manual_seed(torch.seed() if seed is None else seed)
        model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            num_beams=1,
            use_cache=True,  # trainers turn it off
            eos_token_id=sorted(stop_ids),
            pad_token_id=min(stop_ids),
            streamer=pieces,
            stopping_criteria=StoppingCriteriaList([stop_here]),
            **drawing,
        )
    made = tuple(pieces.tokens)
    ended: Literal["stop", "length", "halted"] = "length"
    if made and made[-1] in stop_ids:
        ended = "stop"
    elif len(made) < max_new_tokens:
        ended = "halted"
    return Answer(pieces.text, made, ended)


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
