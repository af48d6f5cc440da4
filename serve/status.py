"""What a running server says of itself (`Running.status`), as the lines and sums that people read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterhub.words import short

Status = Mapping[str, Any]

COUNTED = ("answered", "failed", "cancelled", "tokens_in", "tokens_out")
"""Numbers that only grow while a server runs."""


def rows(status: Status) -> list[dict[str, Any]]:
    """A line for each version an alias means, with what was asked of it through the door."""
    traffic = {(one["adapter"], one["version"]): one for one in status["traffic"]}
    nothing = dict.fromkeys(COUNTED, 0)
    return [
        {
            "name": alias["name"],
            "version": short(target["digest"]),
            "digest": target["digest"],
            "share": share,
            **status["versions"][target["digest"]],
            **{
                key: traffic.get((_counted_as(alias["name"]), short(target["digest"])), nothing)[
                    key
                ]
                for key in COUNTED
            },
        }
        for alias in status["aliases"]
        for target, share in zip(alias["targets"], shares(alias), strict=True)
    ]


def totals(status: Status) -> dict[str, int]:
    """Everything that was asked through the door, of adapters, the base and names that don't exist."""
    return {key: sum(one[key] for one in status["traffic"]) for key in COUNTED}


def of_base(status: Status) -> dict[str, int]:
    """What was asked of the base through the door."""
    base = status["base"]["name"]
    asked = [one for one in status["traffic"] if one["adapter"] == _counted_as(base)]
    return {key: sum(one[key] for one in asked if not one["version"]) for key in COUNTED}


def shares(alias: Mapping[str, Any]) -> list[str]:
    """Of the requests, in the order of the targets."""
    weights = [target["weight"] for target in alias["targets"]]
    return ["all"] if len(weights) == 1 else [f"{one / sum(weights):.0%}" for one in weights]


def _counted_as(name: str) -> str:
    """The door counts requests for a version under the name before its @."""
    return name.partition("@")[0] or name
