"""Training and evaluation data: files to rows, rows to splits, rows to tokens with the answers marked.

One idea: the trainer and `eval` must agree on which tokens count and which rows were never trained on, so both
derive them here, from the file alone. Nothing in this room imports torch.
"""

from adapterhub.data.formats import FORMATS, Message, Row, read_rows
from adapterhub.data.masking import (
    IGNORED,
    Encoded,
    encode,
    encode_rows,
    stop_token_ids,
    template_digest,
)
from adapterhub.data.split import Split, dataset_digest, split_rows

__all__ = [
    "FORMATS",
    "IGNORED",
    "Encoded",
    "Message",
    "Row",
    "Split",
    "dataset_digest",
    "encode",
    "encode_rows",
    "read_rows",
    "split_rows",
    "stop_token_ids",
    "template_digest",
]
