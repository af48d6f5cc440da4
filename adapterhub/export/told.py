"""What an export's check found, in words for people. Without torch, so that a screen can say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterhub.words import counted, human_size


def in_words(report: Mapping[str, Any]) -> dict[str, str] | str:
    """The report in a few lines for people."""
    if not report:
        return "not checked"
    weights, untouched, loss = (report[key] for key in ("weights", "untouched", "bake_loss"))
    rows = f"{weights['rows']} of {weights['of_rows']} rows"
    if weights["rows"] == weights["of_rows"]:
        rows = f"all {weights['rows']} rows"
    taken = "" if weights["deltas"] == "from the adapters" else " (the writing, not the recipe)"
    same = f"{human_size(untouched['bytes'])} of {human_size(untouched['of_bytes'])}"
    if untouched["bytes"] == untouched["of_bytes"]:
        same = f"all {human_size(untouched['bytes'])}"
    return {
        "weights": f"{rows} of {counted(weights['tensors'], 'changed tensor')} are right{taken}; worst error"
        f" {weights['worst_error_ulp']:.3g} units in the last place",
        **_replaced_in_words(report["replaced"]["tensors"]),
        "untouched": f"{same} of {counted(untouched['tensors'], 'tensor')} are the base's",
        "bake_loss": f"{loss['total']:.1%} by rounding to {weights['dtype']} (worst {loss['worst']:.1%}:"
        f" {loss['worst_tensor']})",
        "logits": _logits_in_words(report["logits"]),
    }


def _replaced_in_words(count: int) -> dict[str, str]:
    if not count:
        return {}
    return {
        "whole": f"{counted(count, 'tensor')} {'is' if count == 1 else 'are'} the adapters' own, trained whole"
    }


def _logits_in_words(document: Mapping[str, Any]) -> str:
    if "skipped" in document:
        return f"not compared: {document['skipped']}"
    exported, attached = document["exported"], document["attached"]
    beside = (
        f"; the weights' rounding alone is {document['share_lost']:.1%} of what the adapter does"
    )
    if document["dtype"] != "float32":
        beside += f"; unmerged in {document['dtype']}: {_three(attached)}"
    return (
        f"against the adapter attached in float32, on {document['tokens']} tokens of {document['on']}:"
        f" {_three(exported)}{beside}"
    )


def _three(one: Mapping[str, float]) -> str:
    return f"worst {one['worst']:.2g}, KL {one['kl']:.1e}, {one['same_argmax']:.1%} same next token"
