"""Which chat template a model has, told from its folder alone, and the digest that names it everywhere.

An adapter answers well in the template it was trained with. Its digest is attested when it is trained, and held against the
base's when it is served or asked: one function computes both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adapterhub.canonical import canonical_bytes, digest_of, read_object
from adapterhub.errors import FormatError

FILE_NAME = "chat_template.jinja"
_FURTHER = "additional_chat_templates"
_CONFIG = "tokenizer_config.json"

Template = str | Mapping[str, str]
"""A template's text; or several by name, where a tokenizer has more than one."""


def digest_of_template(template: object) -> str | None:
    """`sha256:<hex>` of a tokenizer's `chat_template`, or None where there is none."""
    if not template:
        return None
    if isinstance(template, Mapping):
        return digest_of(canonical_bytes(template))
    return digest_of(str(template).encode("utf-8"))


def template_in(folder: Path) -> Template | None:
    """What `chat_template` of the tokenizer in `folder` is when transformers loads it: files come before the configuration.

    Raises FormatError for a configuration that is no JSON object, or templates that are no text.
    """
    files = {
        path.stem: path
        for path in [folder / FILE_NAME, *sorted((folder / _FURTHER).glob("*.jinja"))]
        if path.is_file()
    }
    if files:
        found = {
            "default" if path.name == FILE_NAME else name: _text(path)
            for name, path in files.items()
        }
        return found["default"] if set(found) == {"default"} else found
    config = folder / _CONFIG
    if not config.is_file():
        return None
    stated = read_object(config, _CONFIG).get("chat_template")
    if isinstance(stated, list):
        stated = {
            one["name"]: one["template"]
            for one in stated
            if isinstance(one, dict) and {"name", "template"} <= one.keys()
        }
    if stated is None or isinstance(stated, str):
        return stated or None
    if isinstance(stated, dict) and all(isinstance(text, str) for text in stated.values()):
        return stated or None
    raise FormatError(f"{folder.name}/{_CONFIG} has a chat_template that is no text.")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path.name} is not UTF-8 text.", why=str(error)) from error
