"""adapter_config.json: old and new PEFT versions, wrong types named, foreign patterns applied as PEFT does and bounded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.errors import FormatError
from adapterhub.formats.patterns import match_pattern
from adapterhub.formats.peft_config import looks_like_repo, parse_config, read_config

COMMIT = "0123456789" * 4
MODULE = "model.layers.11.self_attn.q_proj"


def config(**fields: Any) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": "org/base",
        "r": 8,
        "lora_alpha": 16,
        **fields,
    }


def test_a_config_of_the_first_peft_versions_is_read() -> None:
    """0.2-0.4: no patterns, no use_rslora, modules_to_save null, and no version of itself."""
    found = parse_config(
        config(
            target_modules=["q_proj", "v_proj"],
            merge_weights=False,
            fan_in_fan_out=False,
            modules_to_save=None,
        )
    )
    assert (found.rank, found.alpha, found.use_rslora, found.modules_to_save) == (8, 16, False, ())
    assert found.module_scaling(MODULE, 8) == 2.0
    assert found.variants == ()


def test_a_config_of_todays_peft_is_read() -> None:
    """Every field PEFT writes now, most of them null."""
    from peft import LoraConfig

    fields = {
        k: sorted(v) if isinstance(v, set) else v
        for k, v in LoraConfig(r=4, lora_alpha=6).to_dict().items()
    }
    found = parse_config(json.loads(json.dumps({**fields, "peft_type": "LORA"}, default=str)))
    assert (found.rank, found.alpha, found.bias, found.variants) == (4, 6, "none", ())


def test_null_means_left_out() -> None:
    fields = (
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "bias",
        "modules_to_save",
        "revision",
    )
    assert parse_config(config(**dict.fromkeys(fields))) == parse_config(
        {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 8}
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": 0}, "r must be a whole number from 1"),
        ({"r": -8}, "r must be a whole number from 1"),
        ({"r": "8"}, "r must be a whole number"),
        ({"r": True}, "r must be a whole number"),
        ({"r": 8.5}, "r must be a whole number"),
        ({"r": 10**400}, "r must be a whole number"),
        ({"lora_alpha": "16"}, "lora_alpha must be a finite number"),
        ({"lora_alpha": False}, "lora_alpha must be a finite number"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be a finite number"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a finite number"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern must be a table"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern must be a table"),
        ({"rank_pattern": {"q_proj": 4.5}}, "rank_pattern must be a table"),
        ({"rank_pattern": {"q_proj": True}}, "rank_pattern must be a table"),
        ({"rank_pattern": {"q_proj": 10**400}}, "rank_pattern must be a table"),
        ({"alpha_pattern": {"q_proj": "4"}}, "alpha_pattern must be a table"),
        ({"alpha_pattern": {"q_proj": 10**400}}, "alpha_pattern must be a table"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false"),
        ({"use_dora": 1}, "use_dora must be true or false"),
        ({"fan_in_fan_out": "true"}, "fan_in_fan_out must be true or false"),
        ({"bias": 3}, "bias must be a text"),
        ({"modules_to_save": [1]}, "modules_to_save must be a list"),
        ({"modules_to_save": {"a": 1}}, "modules_to_save must be a list"),
        ({"target_modules": 3}, "target_modules must be a list"),
    ],
)
def test_a_field_of_the_wrong_type_is_refused_by_its_name(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(FormatError) as caught:
        parse_config(config(**fields))
    assert words in caught.value.what
    assert "It is" in caught.value.why


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "no peft_type"),
        ({"peft_type": None}, "no peft_type"),
        ({"peft_type": 3}, "no peft_type"),
        ({"fine_tune_type": "lora", "lora_parameters": {"rank": 16}}, "MLX"),
    ],
)
def test_what_is_no_peft_config_is_refused_saying_what_it_lacks(
    document: dict[str, Any], words: str
) -> None:
    with pytest.raises(FormatError) as caught:
        parse_config(document)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff", b'{"r":1,"r":2}', b'{"r":NaN}', b'{"r":' + b"[" * 99_999]
)
def test_a_config_that_is_no_json_object_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"adapter_config\.json"):
        read_config(path)


@pytest.mark.parametrize(
    ("claimed", "repo"),
    [
        ("org/base", "org/base"),
        ("gpt2", "gpt2"),
        ("unsloth/qwen3-8b-unsloth-bnb-4bit", "unsloth/qwen3-8b-unsloth-bnb-4bit"),
        ("", None),
        (None, None),
        (3, None),
        ("None", None),
        ("/root/autodl-tmp/google/flan-t5-xxl", None),
        ("./gemma3-270m", None),
        ("../gemma", None),
        ("~/models/x", None),
        ("D:\\models\\gemma", None),
        ("/kaggle/input/models/x", None),
        ("a/b/c", None),
        ("org/base\n", None),
        ("org/../base", None),
        ("\x1b[31m", None),
    ],
)
def test_only_a_hub_id_is_a_repository_and_the_words_are_kept(
    claimed: object, repo: str | None
) -> None:
    found = parse_config(config(base_model_name_or_path=claimed))
    assert found.base.repo == repo
    assert found.claimed_base == (claimed if isinstance(claimed, str) else "")


def test_a_revision_counts_only_as_a_commit_of_a_repository() -> None:
    assert parse_config(config(revision=COMMIT)).base.revision == COMMIT
    assert parse_config(config(revision="main")).base.revision is None
    assert (
        parse_config(config(revision=COMMIT, base_model_name_or_path="./here")).base.revision
        is None
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"enable_lora": [True, False, True]}, "enable_lora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer replication"),
        ({"trainable_token_indices": [1, 2]}, "trainable tokens"),
        ({"alora_invocation_tokens": [3]}, "aLoRA"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "eva"}, ""),
        ({"init_lora_weights": "gaussian"}, ""),
        ({"init_lora_weights": True}, ""),
    ],
)
def test_what_changes_the_meaning_of_the_factors_is_named(
    fields: dict[str, Any], words: str
) -> None:
    variants = parse_config(config(**fields)).variants
    assert len(variants) == bool(words)
    assert words in " ".join(variants)


@pytest.mark.parametrize(
    "kind",
    ["ADALORA", "LOHA", "LOKR", "OFT", "IA3", "VERA", "PROMPT_TUNING", "adalora", "FUTURE_KIND"],
)
def test_another_kind_is_read_as_what_it_says(kind: str) -> None:
    assert (
        parse_config({"peft_type": kind, "r": 8, "rank_pattern": {"q": [True, False]}}).peft_type
        == kind.upper()
    )


def test_rank_stabilised_lora_scales_by_the_root() -> None:
    found = parse_config(config(use_rslora=True, alpha_pattern={"q_proj": 6}))
    assert found.module_scaling(MODULE, 9) == 2.0
    assert found.module_scaling("model.layers.0.mlp.up_proj", 16) == 4.0


names = st.sampled_from(
    [
        "q_proj",
        "layers.1.self_attn.q_proj",
        "layers.11.self_attn.q_proj",
        "proj",
        "model",
        MODULE,
        "self_attn",
    ]
)
expressions = st.sampled_from(
    [
        r".*\.q_proj",
        r"layers\.\d+\.self_attn\.q_proj",
        "q_proj|v_proj",
        r"layers\.(1|11)\..*",
        "[qv]_proj",
        "q.proj",
        ".*",
        "^model.*",
        "x*",
    ]
)


@given(
    st.lists(names | expressions, unique=True, max_size=4),
    st.sampled_from([MODULE, "model.layers.1.self_attn.v_proj", "lm_head", "q_proj"]),
)
def test_patterns_apply_to_the_modules_peft_applies_them_to(keys: list[str], module: str) -> None:
    from peft.utils.other import get_pattern_key

    theirs = get_pattern_key(keys, module)
    ours = match_pattern(keys, module)
    assert (module if ours is None else ours) == theirs


letters = st.text("ab.", min_size=1, max_size=5)


@given(st.lists(letters | st.just("a|b"), unique=True, max_size=6), letters)
def test_a_dot_in_a_name_matches_anything_as_in_peft(keys: list[str], module: str) -> None:
    from peft.utils.other import get_pattern_key

    ours = match_pattern(keys, module)
    assert (module if ours is None else ours) == get_pattern_key(keys, module)


def test_thousands_of_names_are_told_apart() -> None:
    """As many as a merge of experts writes: each against each would be 80 million expressions."""
    modules = [f"model.layers.{layer}.experts.{n}.w1" for layer in range(90) for n in range(100)]
    ranks = {module: 1 + place % 7 for place, module in enumerate(modules)}
    found = parse_config(config(rank_pattern=ranks, r=64))
    assert [found.module_rank(module) for module in modules] == list(ranks.values())
    assert found.module_rank("model.layers.0.experts.0.w2") == 64


HOSTILE = {
    "catastrophic backtracking": [r"((\w|\w\w|\.)+)+[A-Z]"],
    "catastrophic, without nesting": ["(?:.*?){12}[A-Z]"],
    "slow, but each time within the limit of one match": ["(?:.*?){5}[A-Z]"],
    "several slow ones": [f"(?:.*?){{4}}[A-Z]{n}" for n in range(20)],
    "repeats that explode when compiled": ["(?:(?:(?:(?:x?){99}){99}){99}){99}q_proj"],
    "open repeats that explode when compiled": ["(?:(?:(?:(?:x?){99,}){99,}){99,}){99,}q_proj"],
    "endless recursion": ["(?:q_proj|(?R))+"],
    "a very long pattern": ["(" + "a|" * 50_000 + "b)"],
    "very many patterns": [f"layers.{n}.(q|v)_proj" for n in range(20_000)],
}
_MATCH_ALL = """
import json, sys, resource
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
from adapterhub.errors import AdapterHubError
from adapterhub.formats.peft_config import parse_config
patterns = json.load(sys.stdin)
try:
    config = parse_config({"peft_type": "LORA", "r": 8, "rank_pattern": dict.fromkeys(patterns, 8)})
    for layer in range(64):
        for kind in ("q_proj", "v_proj"):
            config.module_rank(f"base.language_model.model.layers.{layer}.self_attn.{kind}")
except AdapterHubError:
    pass
# Not ru_maxrss: that survives exec, and would count the test process that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)  # MB
"""


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(attack, marks=[pytest.mark.slow] if place % 2 else [])
        for place, attack in enumerate(HOSTILE)
    ],
)
def test_a_foreign_pattern_takes_bounded_time_and_memory(attack: str) -> None:
    """Ten seconds and 500 MB are plenty for any honest configuration of 128 modules."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _MATCH_ALL],
        input=json.dumps(HOSTILE[attack]),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert time.monotonic() - began < 10
    if sys.platform == "linux":
        assert int(done.stdout) < 500


@pytest.mark.parametrize("pattern", ["[", "(", "*", "(?P<a>x", "x{2,1}"])
def test_a_pattern_that_is_no_expression_is_refused_naming_it(pattern: str) -> None:
    with pytest.raises(FormatError) as caught:
        match_pattern([pattern], MODULE)
    assert pattern in caught.value.what.replace("\\\\", "\\")
    with pytest.raises(re.error):
        re.compile(rf"(.*\.)?({pattern})$")


def test_repository_ids_follow_the_hubs_rules() -> None:
    assert not looks_like_repo("org/a--b")
    assert not looks_like_repo("org/a..b")
    assert looks_like_repo("meta-llama/Llama-3.1-8B")
