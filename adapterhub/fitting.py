"""Everything that decides whether an adapter may be used with a base, whoever is to use it: `fit` says it, `serve` builds on it.

The places and the claims (`base.fits`), and beyond them the values: finite, and not without effect; the chat template
it was trained with; and whether the base has the adapter in its weights already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapterhub.base import BaseModel, Comparison, Verdict
from adapterhub.canonical import read_object
from adapterhub.chat_template import Template, digest_of_template, template_in
from adapterhub.errors import FormatError
from adapterhub.export.card import RECORD_NAME
from adapterhub.formats.peft import AdapterFacts, scan_values
from adapterhub.store import Resolved, Store
from adapterhub.words import short


@dataclass(frozen=True)
class Fitting:
    """What was found out about one adapter on one base."""

    facts: AdapterFacts
    verdict: Verdict
    rank: int
    """The largest it declares, whether or not a module has it: what a server must be prepared for."""
    misfits: tuple[str, ...]
    """Why it doesn't fit this base; empty where it does."""
    unsound: tuple[str, ...]
    """Why it should be used with no base: values that are no numbers."""
    remarks: tuple[str, ...]
    template: Comparison
    """Whether it was trained with the chat template at hand."""

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against using it; remarks don't."""
        return not self.misfits and not self.unsound


def examine(
    store: Store, adapter: Resolved, base: BaseModel, *, template: Template | None = None
) -> Fitting:
    """Judges `adapter` on `base`, reading every value once.

    Args:
        template: the chat template it will be asked through; by default the base's own.
    """
    facts = store.facts(adapter)
    verdict = store.fit(adapter, base)
    unsound: tuple[str, ...] = ()
    remarks = list(verdict.reasons) if verdict.ok else []
    try:
        with store.tensors(adapter, verify=True) as weights:
            remarks += scan_values(facts, weights)[1]
    except FormatError as error:
        unsound = (error.what,)
    if facts.modules and all(module.scaling == 0 for module in facts.modules.values()):
        remarks.append("alpha is 0: this adapter changes nothing")
    misfits = () if verdict.ok else verdict.reasons
    if holds(base, adapter.digest):
        words = f"{base.label} was exported with this adapter in its weights"
        if misfits:
            misfits = (*misfits, words)
        else:
            remarks.append(f"{words}: on it, it would be added twice")
    comparison, told = _compared(trained_template(store, adapter.digest), base, template)
    remarks += told
    return Fitting(
        facts, verdict, declared_rank(facts), misfits, unsound, tuple(remarks), comparison
    )


def _compared(
    trained: str | None, base: BaseModel, template: Template | None
) -> tuple[Comparison, list[str]]:
    """The template an adapter was trained with beside the one at hand."""
    if trained is None:
        return "unknown", []
    try:
        found = digest_of_template(template_in(base.path) if template is None else template)
    except FormatError as error:
        return "unknown", [f"the chat template of {base.label} can't be read: {error.what}"]
    if found == trained:
        return "equal", []
    here = "there is none" if found is None else f"it will be asked in {short(found)}"
    return "different", [
        f"it was trained with the chat template {short(trained)}, and here {here}: its answers in a chat may suffer"
    ]


def declared_rank(facts: AdapterFacts) -> int:
    """The largest rank in the configuration or among the modules."""
    ranks = [module.rank for module in facts.modules.values()]
    return max([facts.config.rank, *facts.config.rank_pattern.values(), *ranks])


def trained_template(store: Store, digest: str) -> str | None:
    """Digest of the chat template an adapter was trained with, where that is attested."""
    for attestation in reversed(store.attestations(digest)):
        if attestation.type == "template" and isinstance(attestation.body.get("digest"), str):
            return str(attestation.body["digest"])
    return None


def holds(base: BaseModel, digest: str) -> bool:
    """Whether `base` is a model that `export` made with the adapter `digest` in it."""
    path = base.path / RECORD_NAME
    if not path.is_file():
        return False
    try:
        adapters = read_object(path, RECORD_NAME).get("adapters")
    except FormatError:
        return False  # somebody else's file of that name
    return isinstance(adapters, list) and any(
        isinstance(one, Mapping) and one.get("digest") == digest for one in adapters
    )
