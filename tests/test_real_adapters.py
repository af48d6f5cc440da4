"""People's own adapters and configurations: one table of what each must give, or why it is refused.

The folder lies beside the checkout (`../shared`) or where $ADAPTERHUB_SHARED says. Nothing of it is copied in here.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import FormatError, UnsupportedError
from adapterhub.formats.convert import convert_into
from adapterhub.formats.peft import require_plain
from adapterhub.formats.peft_config import PeftConfig, read_config
from adapterhub.store import Added, Store
from tests.store.watching import unchanged

SHARED = Path(os.environ.get("ADAPTERHUB_SHARED", Path(__file__).parents[1].parent / "shared"))
pytestmark = pytest.mark.skipif(
    not (SHARED / "adapters").is_dir(), reason="the folder with people's adapters isn't here"
)


@dataclass(frozen=True)
class Expected:
    """What an adapter must come out as; with `refused`, words of the refusal, only after it was converted."""

    base: str | None = None
    kind: str = "lora"
    rank: int = 0
    alpha: float = 0
    targets: tuple[str, ...] = ()
    modules: int = 0
    notes: tuple[str, ...] = ()
    """Words that must be said on adding."""
    beyond: tuple[str, ...] = ()
    """Words a refusal to merge must say; none: a plain LoRA."""
    refused: tuple[str, ...] = ()


ADAPTERS: Mapping[str, Expected] = {
    "0112LY__logo-gemma-lora": Expected(
        "google/gemma-3-270m-it", rank=4, alpha=4, targets=("q_proj", "v_proj"), modules=36
    ),
    "fanyihan-max__WorkforLLM": Expected(
        None,
        rank=8,
        alpha=32,
        targets=("q_proj", "v_proj"),
        modules=36,
        notes=("given as a path (/content/work/gemma3-270m/google/gemma-3-270m-it)",),
    ),
    "ao-wei__gemma3-270m-svg-lora-partb": Expected(
        "gemma3-270m-it",
        rank=4,
        alpha=16,
        targets=("k_proj", "o_proj", "q_proj", "v_proj"),
        modules=72,
    ),
    "deepbiolab__gpt2-classification-peft": Expected(
        "gpt2",
        rank=8,
        alpha=32,
        targets=("c_attn", "c_proj"),
        modules=36,
        beyond=("modules_to_save", "score.weight"),
    ),
    "sukhmandhawan__LightWeightFineTUning": Expected(
        "gpt2",
        rank=4,
        alpha=16,
        targets=("c_attn",),
        modules=12,
        notes=("every lora_B is zero: this adapter changes nothing",),
        beyond=("modules_to_save", "score.weight"),
    ),
    "RifqiCah__Adalora_indonesiaDataset.emot_lora_ckpt1665": Expected(
        "prajjwal1/bert-tiny",
        rank=8,
        alpha=16,
        targets=("query", "value"),
        modules=4,
        beyond=("classifier.weight",),
    ),
    "RifqiCah__Adalora_indonesiaDataset.emot_adalora_best": Expected(
        "prajjwal1/bert-tiny",
        kind="adalora",
        rank=32,
        alpha=64,
        targets=("query", "value"),
        beyond=("ADALORA", "lora_E"),
    ),
    "FaithSang__anime-lora-gnerator": Expected(
        None,
        rank=4,
        alpha=16,
        targets=("to_k", "to_q", "to_v"),
        modules=96,
        notes=("doesn't say which base",),
    ),
    # cuda:0 storages, a head although modules_to_save is null
    "yijun-deng__GenAI_P1_LightWeight_FineTuning": Expected(
        "gpt2",
        rank=16,
        alpha=32,
        targets=("c_attn",),
        modules=12,
        notes=("although modules_to_save names none",),
        beyond=("modules_to_save", "score.weight"),
        refused=("adapter_model.bin is a pickle", "safetensors only", "adapterhub convert"),
    ),
    # enable_lora: B is three-dimensional. Kept and refused by that name, never taken for half a pair.
    "wujindou__BLOOM-LORA": Expected(
        "bigscience/bloom-560m",
        rank=8,
        alpha=16,
        targets=("query_key_value",),
        modules=0,
        notes=("kept whole",),
        beyond=("enable_lora", "no low-rank pair"),
        refused=("adapter_model.bin is a pickle", "safetensors only", "adapterhub convert"),
    ),
}


def adapter(name: str) -> Path:
    return SHARED / "adapters" / name


def copied(name: str, tmp_path: Path) -> Path:
    """A writable copy, for tests that change it."""
    target = tmp_path / name
    shutil.copytree(adapter(name), target, copy_function=shutil.copyfile)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def test_the_table_knows_every_adapter() -> None:
    assert {path.name for path in (SHARED / "adapters").iterdir() if path.is_dir()} == set(ADAPTERS)


@pytest.mark.parametrize(
    "name", [name for name, expected in ADAPTERS.items() if not expected.refused]
)
def test_an_adapter_comes_in_as_what_it_is(name: str, store: Store) -> None:
    notes: list[str] = []
    added = store.add_folder(adapter(name), note=notes.append)
    check(name, store, added, notes)
    kept = {path.name for path in adapter(name).iterdir()}
    assert {entry.path for entry in added.manifest.files} == kept


def check(name: str, store: Store, added: Added, notes: list[str]) -> None:
    """Compares what came in with the table."""
    expected = ADAPTERS[name]
    manifest, lora = added.manifest, added.manifest.lora
    assert lora is not None
    assert (manifest.kind, manifest.base.repo, manifest.base.revision) == (
        expected.kind,
        expected.base,
        None,
    )
    assert (lora.rank, lora.alpha, tuple(lora.targets), lora.modules, lora.dtype) == (
        expected.rank,
        expected.alpha,
        expected.targets,
        expected.modules,
        "float32",
    )
    said = "; ".join(notes)
    assert all(words in said for words in expected.notes)
    assert ("every lora_B is zero" in said) == ("every lora_B is zero" in "".join(expected.notes))
    facts = store.facts(store.resolve(f"@{added.digest[7:]}"))
    if expected.beyond:
        with pytest.raises(UnsupportedError) as caught:
            require_plain(facts, name, "merged")
        assert all(words in caught.value.why for words in expected.beyond)
    else:
        require_plain(facts, name, "merged")


@pytest.mark.parametrize("name", [name for name, expected in ADAPTERS.items() if expected.refused])
def test_an_adapter_that_cannot_come_in_is_refused_saying_why(
    name: str, store: Store, tmp_path: Path
) -> None:
    store.add_folder(adapter("0112LY__logo-gemma-lora"))
    with unchanged(tmp_path / "home"), pytest.raises(FormatError) as caught:
        store.add_folder(adapter(name))
    assert all(words in str(caught.value) for words in ADAPTERS[name].refused)


def test_peft_and_diffusers_key_layouts_are_one_content(store: Store, tmp_path: Path) -> None:
    name = "FaithSang__anime-lora-gnerator"
    other = copied(name, tmp_path)
    (other / "pytorch_lora_weights.safetensors").replace(other / "adapter_model.safetensors")
    peft = store.add_folder(adapter(name), name="peft")
    diffusers = store.add_folder(other, name="diffusers")
    assert diffusers.manifest.content == peft.manifest.content
    assert diffusers.digest != peft.digest
    assert diffusers.manifest.lora == peft.manifest.lora


@pytest.mark.parametrize("name", [name for name, expected in ADAPTERS.items() if expected.refused])
def test_a_pickled_adapter_comes_in_once_it_is_converted(
    name: str, store: Store, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    (tmp_path / "new").mkdir()
    done = convert_into(adapter(name), tmp_path / "new")
    before = torch.load(adapter(name) / done.pickle, map_location="cpu", weights_only=True)
    after = load_file(tmp_path / "new" / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    notes: list[str] = []
    added = store.add_folder(
        tmp_path / "new", name="new", provenance=done.provenance(), note=notes.append
    )
    check(name, store, added, notes)
    kept = {path.name for path in adapter(name).iterdir()} - {done.pickle}
    assert {entry.path for entry in added.manifest.files} == kept | {"adapter_model.safetensors"}


def test_a_file_of_diffusers_comes_in_with_the_configuration_in_its_header(store: Store) -> None:
    name = "FaithSang__anime-lora-gnerator"
    whole = store.add_folder(adapter(name))
    alone = store.add_folder(adapter(name) / "pytorch_lora_weights.safetensors", name="alone")
    assert alone.manifest.content == whole.manifest.content
    assert alone.manifest.lora == whole.manifest.lora
    assert {entry.path for entry in alone.manifest.files} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_three_spellings_of_one_base_are_three_claims_and_none_is_known_to_differ(
    store: Store,
) -> None:
    """A path and a bare name can't be told from the repository, so merging warns at most."""
    from adapterhub.same_base import shared_base

    names = [
        "0112LY__logo-gemma-lora",
        "fanyihan-max__WorkforLLM",
        "ao-wei__gemma3-270m-svg-lora-partb",
    ]
    for name in names:
        store.add_folder(adapter(name), name=name)
    shared = shared_base(store, [store.resolve(name) for name in names])
    assert shared.overridden == ()
    assert "unknown" in " ".join(shared.remarks)


def test_all_of_them_live_in_one_store(store: Store) -> None:
    for name, expected in ADAPTERS.items():
        if not expected.refused:
            store.add_folder(adapter(name), name=name)
    assert len(store.entries()) == len(ADAPTERS) - 2


# Configurations alone: file name -> words of the refusal. All others must be read.
REFUSED_CONFIGS = {
    "Inishpy__lerobot-libero.json": "no peft_type",
    "chan4lk__mlx-fine-tune.json": "MLX",
    "ekgus9__Legal_Domain_PEFT.json": "no peft_type",
}
# What some of the others must be read as.
CONFIGS: Mapping[str, dict[str, Any]] = {
    "Alex720415__MicroVlm.json": {"claimed_base": "", "repo": None},
    "JaimeMitchell__Mom_Painting_Style_GenAI.json": {
        "claimed_base": "",
        "repo": None,
        "rank": 16,
        "alpha": 40,
    },
    "COMS-lwz__SVG-logo-LoRA-training.json": {"claimed_base": "./gemma-3-270m-it", "repo": None},
    "lc1234567484848__svg-lora-partb.json": {"repo": None},
    "Hastws__NVIDIA-Nemotron-Model-Reasoning-Challenge.json": {"repo": None},
    "EPlus-LLM__Model.json": {"repo": None, "rank": 1000, "alpha": 100000},
    "L1uZQ__llm-course-svg-generation.json": {"repo": "gemma3-270m"},
    "DigitalIntelligenceCenter-of-ICMM__Baize-Traditional-Chinese-Medicine-Large-Language-Model.json": {
        "repo": "unsloth/qwen3-8b-unsloth-bnb-4bit"
    },
    "rashad-h__LEGO-Minifig-Generator.json": {"repo": "unsloth/meta-llama-3.1-8b-bnb-4bit"},
    "elisagdelope__ESM2-bindingsites.json": {
        "rank": 2,
        "alpha": 1,
        "repo": "facebook/esm2_t12_35M_UR50D",
    },
    "lucasaugustodev__heretic-project.json": {"rank": 1, "alpha": 1},
    "wujindou__BLOOM-LORA.json": {"rank": 8, "variants": 1},
    "RifqiCah__Adalora_indonesiaDataset.json": {"peft_type": "ADALORA", "rank_pattern": {}},
    "sebischair__LLM-KG-D2T.json": {"repo": None},
}
# How many of each kind there are in all.
KINDS = {
    "LORA": 58, "ADALORA": 5, "BEFT": 1, "BOFT": 1, "C3A": 1, "DEFT": 4, "FROD": 2, "GLORA": 2, "HIRA": 1, "HRA": 1,
    "IA3": 2, "LILY": 1, "LN_TUNING": 1, "LOHA": 2, "LOKR": 1, "MISS": 2, "OSF": 1, "PEANUT": 2, "PREFIX_TUNING": 1,
    "PROMPT_TUNING": 1, "PSOFT": 1, "PVERA": 1, "P_TUNING": 1, "RANDLORA": 1, "ROAD": 2, "SUPERTUNING": 3,
    "TINYLORA": 1, "UNILORA": 1, "VBLORA": 1,
}  # fmt: skip


def configs() -> dict[str, Path]:
    return {path.name: path for path in sorted((SHARED / "adapter-configs").glob("*.json"))}


def read_all() -> dict[str, PeftConfig]:
    return {
        name: read_config(path)[0]
        for name, path in configs().items()
        if name not in REFUSED_CONFIGS
    }


def test_every_configuration_is_read_or_refused_for_the_right_reason() -> None:
    assert len(configs()) == 105
    for name, words in REFUSED_CONFIGS.items():
        with pytest.raises(FormatError) as caught:
            read_config(configs()[name])
        assert words in str(caught.value)
    found = read_all()
    assert Counter(config.peft_type for config in found.values()) == KINDS
    assert all(
        config.rank > 0 for config in found.values() if config.peft_type in ("LORA", "ADALORA")
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_read_as_what_it_says(name: str) -> None:
    config, document = read_config(configs()[name])
    found: dict[str, Any] = {
        "peft_type": config.peft_type,
        "rank": config.rank,
        "alpha": config.alpha,
        "repo": config.base.repo,
        "claimed_base": config.claimed_base,
        "rank_pattern": config.rank_pattern,
        "variants": len(config.variants),
    }
    assert {key: found[key] for key in CONFIGS[name]} == CONFIGS[name]
    assert config.claimed_base == (document.get("base_model_name_or_path") or "")


def test_dora_mica_and_rslora_among_the_experiments_are_recognised() -> None:
    found = read_all()
    dora = {name for name, config in found.items() if config.use_dora}
    stabilised = {name for name, config in found.items() if config.use_rslora}
    assert len(dora) == 2
    assert all("dora" in name for name in dora)
    assert len(stabilised) == 1
    assert "rslora" in stabilised.pop()
    assert sum("mica" in " ".join(config.variants) for config in found.values()) == 1
