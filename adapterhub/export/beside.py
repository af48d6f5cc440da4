"""What lies beside the weights of an exported model: the base's files, and the tokenizer that the adapter was trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.base import BaseModel
from adapterhub.export.card import CARD_NAME
from adapterhub.store import Resolved

# Other serialisations of the weights would be the unmerged ones: never copied.
_FOREIGN_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack"}
)
_TOKENIZER = frozenset(
    {
        "added_tokens.json", "chat_template.jinja", "chat_template.json", "merges.txt", "special_tokens_map.json",
        "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
    }
)  # fmt: skip
"""What transformers' tokenizers save."""


@dataclass(frozen=True)
class Beside:
    """Files by their names in the model, and where they are copied from; remarks are sentences."""

    files: Mapping[str, Path]
    remarks: tuple[str, ...]

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


def beside(
    base: BaseModel,
    parents: Sequence[Resolved],
    blob: Callable[[str], Path],
    vocabulary: int | None,
) -> Beside:
    """The base's configuration, tokenizer, template and whatever else, less its card and other forms of its weights.

    A tokenizer that the adapters bring, one and the same, is the one they were trained with and comes before the base's.

    Args:
        blob: where the bytes of a digest lie.
        vocabulary: of the model to come, where it isn't the base's.
    """
    files = {name: path for name, path in companions(base.path).items() if name != CARD_NAME}
    brought = [own for own in (_tokenizer(parent) for parent in parents) if own]
    remarks = []
    if brought and all(own == brought[0] for own in brought):
        files |= {name: blob(digest) for name, digest in brought[0].items()}
    elif brought:
        remarks.append(
            f"the adapters were trained with different tokenizers or templates; {base.label}'s comes along"
        )
    elif vocabulary is not None:
        remarks.append(
            f"the vocabulary has {vocabulary} words now, and no adapter brought the tokenizer that knows them all"
        )
    return Beside(files, tuple(remarks))


def companions(folder: Path) -> dict[str, Path]:
    """The files of a model's folder that are neither weights nor tell where weights are."""
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and path.suffix not in _FOREIGN_WEIGHTS
        and not path.name.endswith(".index.json")
    }


def _tokenizer(parent: Resolved) -> dict[str, str]:
    """Name -> digest of the tokenizer's files that were stored with an adapter."""
    return {file.path: file.digest for file in parent.manifest.files if file.path in _TOKENIZER}
