"""In which form an exported model is written: its values rounded to the base's dtypes, or its linears in 4 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from adapterhub.base import BaseModel
from adapterhub.export.bake import Writer
from adapterhub.export.layout import Shard
from adapterhub.export.quantize.fourbit import FourBit
from adapterhub.export.stream import write_shards
from adapterhub.export.views import stored_dtype
from adapterhub.export.whole import Seen


@dataclass(frozen=True)
class Form:
    """Shards as they will lie on the disk, and who writes them, given what the base's values are seen as."""

    shards: Sequence[Shard]
    writer: Callable[[Seen], Writer]
    configuration: Mapping[str, Any]
    """What config.json says of it."""
    record: Mapping[str, Any] | None
    """What is attested of it; None where nothing was quantised."""


def form_of(shards: Sequence[Shard], base: BaseModel, quantize: Literal["nf4"] | None) -> Form:
    """The form of these shards."""
    if quantize is None:
        return Form(shards, lambda seen: partial(write_shards, seen=seen), {}, None)
    from adapterhub.export.quantize.linears import read_loading
    from adapterhub.export.quantize.nf4 import configuration, layouts_in_4bit, write_in_4bit

    linears = read_loading(base).linears
    how = FourBit(quantize, double=True, dtype=stored_dtype(base))

    def writer(seen: Seen) -> Writer:
        plain = {shard.name: shard for shard in shards}
        return partial(write_in_4bit, unquantised=plain, weights=seen, linears=linears, how=how)

    return Form(
        layouts_in_4bit(shards, linears, how),
        writer,
        {"quantization_config": configuration(how)},
        {"method": how.kind, "bits": 4, "double_quantization": True, "dtype": how.dtype},
    )
