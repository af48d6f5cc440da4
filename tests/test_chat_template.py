"""A folder's chat template is the one that transformers would use, and its digest is one for the trainer, `fit` and `serve`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.chat_template import digest_of_template, template_in
from adapterhub.data import template_digest
from adapterhub.errors import FormatError
from tests.support.chat import CHATML, chat_tokenizer

OTHER = "{{ messages[0]['content'] }}\r\nümlaut"


def in_a_file(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")


def in_the_configuration(folder: Path) -> None:
    configure(folder, OTHER)


def in_both(folder: Path) -> None:
    configure(folder, OTHER)
    in_a_file(folder)


def several_in_the_configuration(folder: Path) -> None:
    configure(
        folder, [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": OTHER}]
    )


def several_in_files(folder: Path) -> None:
    in_a_file(folder)
    (folder / "additional_chat_templates").mkdir()
    further = folder / "additional_chat_templates" / "tool_use.jinja"
    further.write_text(OTHER, encoding="utf-8")


def nowhere(folder: Path) -> None:
    """The tokenizer has none."""


def configure(folder: Path, template: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))


@pytest.mark.parametrize(
    "place",
    [
        in_a_file,
        in_the_configuration,
        in_both,
        several_in_the_configuration,
        several_in_files,
        nowhere,
    ],
)
def test_a_folder_has_the_template_that_transformers_loads_from_it(
    place: Callable[[Path], None], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    chat_tokenizer(None).save_pretrained(tmp_path)
    place(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert template_in(tmp_path) == tokenizer.chat_template
    assert digest_of_template(template_in(tmp_path)) == template_digest(tokenizer)


def test_without_a_tokenizer_there_is_none_and_what_is_no_template_is_said(tmp_path: Path) -> None:
    assert template_in(tmp_path) is None
    chat_tokenizer(None).save_pretrained(tmp_path)
    for wrong in (3, {"default": 3}):
        configure(tmp_path, wrong)
        with pytest.raises(FormatError, match="no text"):
            template_in(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="UTF-8"):
        template_in(tmp_path)
