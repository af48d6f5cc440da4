"""Training and evaluation data: files to rows, rows to splits, rows to tokens with the answers marked.

One idea: the trainer and `eval` must agree on which tokens count and which rows were never trained on, so both
derive them here, from the file alone. Nothing in this room imports torch.
"""

from adapterhub.data.formats import FORMATS
from adapterhub.data.health import examine
from adapterhub.data.masking import (
    IGNORED,
    Encoded,
    covering_length,
    cut_rows,
    encode,
    encode_rows,
    encode_whole,
    stop_token_ids,
    template_digest,
)
from adapterhub.data.problems import Health, Problem
from adapterhub.data.reading import (
    read_data,
    read_preferences,
    read_rows,
    scan_preferences,
    scan_rows,
)
from adapterhub.data.replay import Replayed, mix_replay
from adapterhub.data.rows import Message, Preference, Row
from adapterhub.data.split import Split, dataset_digest, split_rows

__all__ = [
    "FORMATS",
    "IGNORED",
    "Encoded",
    "Health",
    "Message",
    "Preference",
    "Problem",
    "Replayed",
    "Row",
    "Split",
    "covering_length",
    "cut_rows",
    "dataset_digest",
    "encode",
    "encode_rows",
    "encode_whole",
    "examine",
    "mix_replay",
    "read_data",
    "read_preferences",
    "read_rows",
    "scan_preferences",
    "scan_rows",
    "split_rows",
    "stop_token_ids",
    "template_digest",
]
