"""`show` and `checkout`: one adapter, everything known about it, and out again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from adapterhub.cli.attested import for_people
from adapterhub.cli.command import Context, command
from adapterhub.formats.peft import NO_BASE
from adapterhub.store import Entry, Resolved, Store
from adapterhub.words import human_count, human_size, short


@command
def show(
    ctx: Context,
    name: Annotated[str, typer.Argument(help="A name, or @digest.")],
    modules: Annotated[
        bool, typer.Option("--modules", help="List every module with its rank, shape and scale.")
    ] = False,
    attestations: Annotated[
        bool, typer.Option("--attestations", help="Show every attestation whole, not in a line.")
    ] = False,
) -> None:
    """Show everything known about an adapter."""
    resolved = ctx.store.resolve(name)
    record = details(ctx.store, resolved, modules=modules)
    if ctx.out.mode == "human":
        record = _for_people(record)
        if not attestations:
            del record["attestations"]
            record |= for_people(ctx.store.attestations(resolved.digest))
    ctx.out.record(record, ids=("digest",))


@command
def checkout(
    ctx: Context,
    name: Annotated[str, typer.Argument(help="A name, or @digest.")],
    folder: Annotated[
        Path, typer.Argument(help="The folder to write; it must not exist or be empty.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Write an adapter as a PEFT folder of your own."""
    resolved = ctx.store.resolve(name)
    ctx.store.checkout(resolved, folder, overwrite=overwrite)
    ctx.out.record(
        {"name": resolved.label, "digest": resolved.digest, "folder": str(folder)}, ids=("folder",)
    )


def describe(entry: Entry) -> dict[str, Any]:
    """One row of `ls`."""
    manifest, lora = entry.manifest, entry.manifest.lora
    return {
        "name": str(entry.name),
        "digest": entry.digest,
        "kind": manifest.kind,
        "base": manifest.base.repo,
        "revision": manifest.base.revision,
        "rank": lora.rank if lora else None,
        "alpha": lora.alpha if lora else None,
        "targets": lora.targets if lora else None,
        "parameters": lora.parameters if lora else None,
        "dtype": lora.dtype if lora else None,
        "size": manifest.size,
        "content": manifest.content,
        "added": entry.added,
    }


def details(
    store: Store, resolved: Resolved, *, modules: bool = False, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Everything known about an adapter, as `show` prints it: manifest, names, attestations and remarks.

    `names` are its names, where the caller knows them; else every ref of the store is read.
    """
    manifest = resolved.manifest
    facts = store.facts(resolved)
    record: dict[str, Any] = {
        "name": resolved.label,
        "digest": resolved.digest,
        "names": [str(name) for name in store.names_of(resolved.digest)]
        if names is None
        else [*names],
        "kind": manifest.kind,
        "base": {
            "repo": manifest.base.repo,
            "revision": manifest.base.revision,
            "fingerprint": store.known_fingerprint(resolved.digest),
            "claimed": facts.config.claimed_base,
            "trained_on": manifest.base.trained_on,
        },
        "content": manifest.content,
        "size": manifest.size,
        "files": [
            {"path": entry.path, "size": entry.size, "digest": entry.digest}
            for entry in manifest.files
        ],
    }
    if manifest.lora is not None:
        lora = manifest.lora
        record["lora"] = {
            "rank": lora.rank,
            "alpha": lora.alpha,
            "scaling": sorted({round(module.scaling, 6) for module in facts.modules.values()}),
            "targets": lora.targets,
            "modules": lora.modules,
            "parameters": lora.parameters,
            "dtype": lora.dtype,
            "use_rslora": lora.use_rslora,
            "use_dora": lora.use_dora,
            "rank_pattern": lora.rank_pattern,
            "alpha_pattern": lora.alpha_pattern,
            "bias": lora.bias,
            "modules_to_save": lora.modules_to_save,
        }
        ranks = Counter(module.rank for module in facts.modules.values())
        if len(ranks) > 1:
            record["lora"]["ranks"] = {
                str(rank): f"{count} modules" for rank, count in sorted(ranks.items())
            }
    if beyond := facts.beyond_lora():
        record["beyond plain LoRA"] = beyond
    attestations = store.attestations(resolved.digest)
    notes = dict.fromkeys(
        [*facts.notes, *chain.from_iterable(item.remarks for item in attestations)]
    )
    if store.known_base(resolved.digest):
        notes.pop(NO_BASE, None)
    record["notes"] = list(notes)
    record["attestations"] = [
        {"type": item.type, "created": item.created, "body": dict(item.body)}
        for item in attestations
    ]
    if modules:
        record["modules"] = [
            {
                "module": module.name,
                "rank": module.rank,
                "shape": f"{module.out_features}x{module.in_features}",
                "scaling": round(module.scaling, 6),
            }
            for module in facts.modules.values()
        ]
    return record


def _for_people(record: dict[str, Any]) -> dict[str, Any]:
    """The same with sizes and digests as people read them, and without what is empty."""
    shown = {**record, "size": human_size(record["size"])}
    shown["files"] = [
        {**file, "size": human_size(file["size"]), "digest": short(file["digest"])}
        for file in record["files"]
    ]
    if "lora" in record:
        lora = {**record["lora"], "parameters": human_count(record["lora"]["parameters"])}
        shown["lora"] = {key: value for key, value in lora.items() if value not in ({}, [])}
    return shown
