"""Replay: general rows mixed into the training rows, against forgetting what the base could do before.

Which rows are taken depends on their contents and the seed alone, as in the split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub.data.rows import Row
from adapterhub.data.split import hashed
from adapterhub.errors import UsageError
from adapterhub.words import counted


@dataclass(frozen=True)
class Replayed:
    """The rows to train on, those of `taken` among them, in the order of their digests."""

    rows: tuple[Row, ...]
    taken: tuple[Row, ...]


def mix_replay(
    train: Sequence[Row],
    general: Sequence[Row],
    ratio: float,
    seed: int,
    held_out: Sequence[Row] = (),
) -> Replayed:
    """Adds `round(ratio * len(train))` rows of `general`: replayed rows per training row of your own.

    A row of `train`, a row that asks what one in `held_out` asks, and a row that was already taken are never taken.
    Raises UsageError where `general` hasn't so many others, or the ratio comes to none.
    """
    wanted = round(ratio * len(train))
    if wanted < 1:
        raise UsageError(
            f"Nothing would be replayed: {ratio:g} rows for each of {len(train)} is less than one row.",
            hint="Raise data.replay.ratio, or leave out data.replay.",
        )
    own = {row.digest for row in train}
    asked = {row.split_key for row in held_out}
    others = {
        row.digest: row for row in general if row.digest not in own and row.split_key not in asked
    }
    if len(others) < wanted:
        most = math.floor(100 * len(others) / len(train)) / 100
        raise UsageError(
            f"The general data have too few rows to replay: {wanted} are needed ({ratio:g} for each of {len(train)}),"
            f" and {len(others)} can be taken.",
            why=f"They hold {counted(len(general), 'row')}; repeated ones, ones you train on and ones that ask what is"
            " held out don't count.",
            hint=f"Give more general data, or a ratio of {most:g} at most."
            if most > 0
            else "Give other general data.",
        )
    order = sorted(others.values(), key=lambda row: hashed(b"replay", seed, row.canonical()))
    taken = tuple(sorted(order[:wanted], key=lambda row: row.digest))
    return Replayed(tuple(sorted((*train, *taken), key=lambda row: row.digest)), taken)
