"""What another trainer's configuration asks for is in the recipe, or is told with the reason; nothing is dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapterhub.errors import NotFoundError, UsageError
from adapterhub.trainer.foreign import Imported, import_file
from adapterhub.trainer.recipe import Recipe, parse_recipe

AXOLOTL: dict[str, Any] = {
    "base_model": "org/base",
    "adapter": "lora",
    "datasets": [{"path": "org/rows", "type": "alpaca"}],
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_linear": True,
    "learning_rate": 0.0002,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
}
FACTORY: dict[str, Any] = {
    "model_name_or_path": "org/base",
    "stage": "sft",
    "finetuning_type": "lora",
    "dataset": "mine",
}


@pytest.fixture(params=[AXOLOTL, FACTORY], ids=["axolotl", "llama-factory"])
def either(request: pytest.FixtureRequest) -> dict[str, Any]:
    given: dict[str, Any] = request.param
    return given


def imported(folder: Path, given: dict[str, Any], **changes: Any) -> Imported:
    """`given` with `changes` (None takes a key out), written to a file and imported."""
    path = folder / "theirs.yml"
    document = {key: value for key, value in {**given, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(document))
    return import_file(path)


def recipe_of(found: Imported) -> Recipe:
    return parse_recipe(found.document)


def verdicts(found: Imported) -> dict[str, str]:
    return {line.key: line.verdict for line in found.lines if line.key}


def test_axolotls_keys_become_ours(tmp_path: Path) -> None:
    found = imported(
        tmp_path, AXOLOTL, adapter="qlora", load_in_4bit=True, lora_dropout=0.05, sequence_len=2048,
        sample_packing=True, num_epochs=3, optimizer="adamw_bnb_8bit", lr_scheduler="linear",
        learning_rate="1e-4", warmup_ratio=0.1, weight_decay=0.01, max_grad_norm=0.5, val_set_size=0.05,
        gradient_checkpointing=True, peft_use_dora=True, peft_use_rslora=True, loraplus_lr_ratio=16,
        neftune_noise_alpha=5, seed=7, eval_steps=50, save_steps=100, early_stopping_patience=3,
        use_tensorboard=True,
    )  # fmt: skip
    assert found.differing == ()
    recipe = recipe_of(found)
    assert recipe.name == "theirs"
    assert recipe.base == "org/base"
    assert recipe.data.path == "hf://datasets/org/rows"
    assert (recipe.data.format, recipe.data.held_out) == ("alpaca", 0.05)
    assert (recipe.method, recipe.kind, recipe.rank, recipe.alpha) == ("qlora", "dora", 16, 32)
    assert (recipe.dropout, recipe.use_rslora, recipe.target_modules) == (0.05, True, "all-linear")
    assert (recipe.loraplus_ratio, recipe.neftune_alpha) == (16, 5)
    assert (recipe.epochs, recipe.batch_size, recipe.gradient_accumulation) == (3, 2, 4)
    assert (recipe.learning_rate, recipe.optimizer, recipe.scheduler) == (
        1e-4,
        "adamw_8bit",
        "linear",
    )
    assert (recipe.warmup, recipe.weight_decay, recipe.max_grad_norm) == (0.1, 0.01, 0.5)
    assert (recipe.max_length, recipe.packing, recipe.gradient_checkpointing) == (2048, True, True)
    assert (recipe.eval.every, recipe.eval.patience, recipe.eval.keep) == (50, 3, "best")
    assert (recipe.save_every, recipe.seed, recipe.tensorboard) == (100, 7, True)


def test_llama_factorys_keys_become_ours(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    found = imported(
        tmp_path, FACTORY, lora_rank=32, lora_alpha=16, lora_dropout=0.1, lora_target="q_proj, v_proj",
        quantization_bit=4, quantization_method="bnb", double_quantization=True, cutoff_len=512,
        num_train_epochs=2, per_device_train_batch_size=1, gradient_accumulation_steps=8,
        learning_rate=1e-4, optim="paged_adamw_8bit", lr_scheduler_type="constant_with_warmup",
        warmup_steps=0.1, val_size=0.2, use_rslora=True, pissa_init=True, loraplus_lr_ratio=8,
        neftune_noise_alpha=5, packing=True, neat_packing=True, max_samples=100, report_to="tensorboard",
        load_best_model_at_end=True, eval_steps=20, seed=3,
    )  # fmt: skip
    assert [line.key for line in found.differing] == ["pissa_init"]  # on a base in 4 bits
    recipe = recipe_of(found)
    assert recipe.data.path == str(tmp_path / "data" / "mine.json")
    assert (recipe.data.format, recipe.data.limit, recipe.data.held_out) == ("alpaca", 100, 0.2)
    assert (recipe.method, recipe.init, recipe.use_rslora) == ("qlora", "default", True)
    assert (recipe.rank, recipe.alpha, recipe.dropout) == (32, 16, 0.1)
    assert recipe.target_modules == ["q_proj", "v_proj"]
    assert (recipe.epochs, recipe.batch_size, recipe.gradient_accumulation) == (2, 1, 8)
    assert (recipe.optimizer, recipe.scheduler) == ("paged_adamw_8bit", "constant")
    assert (recipe.warmup, recipe.max_length, recipe.packing) == (0.1, 512, True)
    assert (recipe.loraplus_ratio, recipe.neftune_alpha) == (8, 5)
    assert (recipe.eval.every, recipe.eval.keep, recipe.tensorboard) == (20, "best", True)


def test_the_defaults_of_the_other_tool_are_written_out(tmp_path: Path) -> None:
    recipe = recipe_of(imported(tmp_path, AXOLOTL))
    assert (recipe.epochs, recipe.max_length, recipe.packing) == (1, 512, False)
    assert (recipe.scheduler, recipe.warmup, recipe.seed) == ("cosine", 0.03, 42)
    assert (recipe.data.held_out, recipe.eval.keep, recipe.optimizer) == (0, "last", "adamw")
    found = imported(tmp_path, FACTORY)
    recipe = recipe_of(found)
    assert (recipe.rank, recipe.alpha, recipe.target_modules) == (8, 16, "all-linear")
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (3, 8, 5e-5)
    assert (recipe.max_length, recipe.packing, recipe.warmup, recipe.seed) == (2048, False, 0, 42)
    told = [line.became for line in found.lines if line.verdict == "default"]
    assert "alpha: 16" in told
    assert "max_length: 2048" in told


def test_every_key_is_told_once_and_unknown_ones_are_no_exception(
    tmp_path: Path, either: dict[str, Any]
) -> None:
    found = imported(
        tmp_path, either, nobody_knows=1, output_dir="out", deepspeed="z3.json", bf16=True, wandb=""
    )
    told = [line.key for line in found.lines if line.key and "[" not in line.key]
    whole = [key for key in told if " " not in key]
    assert sorted(whole) == sorted(
        {*either, "nobody_knows", "output_dir", "deepspeed", "bf16", "wandb"}
    )
    verdict = verdicts(found)
    assert verdict["nobody_knows"] == "unknown"
    assert (verdict["output_dir"], verdict["bf16"]) == ("ignored", "ignored")
    assert (verdict["deepspeed"], verdict["wandb"]) == ("differs", "empty")
    assert {"nobody_knows", "deepspeed"} <= {line.key for line in found.differing}
    assert all(line.why for line in found.lines if line.verdict in ("differs", "ignored"))


@pytest.mark.parametrize(
    ("changes", "key", "becomes"),
    [
        ({"lora_modules_to_save": ["lm_head"]}, "lora_modules_to_save", {}),
        ({"load_in_8bit": True}, "load_in_8bit", {"method": "lora"}),
        ({"optimizer": "lion_8bit"}, "optimizer", {"optimizer": "adamw"}),
        ({"lr_scheduler": "rex"}, "lr_scheduler", {"scheduler": "cosine"}),
        ({"warmup_steps": 10}, "warmup_steps", {"warmup": 0.05}),
        ({"peft_init_lora_weights": "gaussian"}, "peft_init_lora_weights", {"init": "default"}),
        ({"chat_template": "llama3"}, "chat_template", {}),
        ({"train_on_inputs": True}, "train_on_inputs", {}),
        ({"special_tokens": {"eos_token": "<x>"}}, "special_tokens", {}),
        ({"plugins": ["axolotl.integrations.spectrum.SpectrumPlugin"]}, "plugins", {}),
        (
            {"lora_target_linear": None, "lora_target_modules": ["q_proj", "lm_head"]},
            "lora_target_modules",
            {"target_modules": ["q_proj"]},
        ),
        (
            {"datasets": [{"path": "d.json", "type": "chat_template", "field_messages": "talk"}]},
            "datasets[0].type",
            {"data.format": "messages"},
        ),
        (
            {"datasets": [{"path": "o/d", "type": "alpaca", "split": "train[:9]"}]},
            "datasets[0].split",
            {},
        ),
    ],
)
def test_what_axolotl_can_and_adapterhub_cannot_is_flagged(
    tmp_path: Path, changes: dict[str, Any], key: str, becomes: dict[str, Any]
) -> None:
    found = imported(tmp_path, AXOLOTL, **changes)
    assert [line.key for line in found.differing] == [key]
    document = recipe_of(found).document
    for ours, value in becomes.items():
        section, _, last = ours.rpartition(".")
        assert (document[section] if section else document)[last] == value


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"template": "qwen3"}, "template"),
        ({"quantization_bit": 8}, "quantization_bit"),
        ({"double_quantization": False}, None),
        ({"quantization_bit": 4, "double_quantization": False}, "double_quantization"),
        ({"packing": True}, "packing"),
        ({"additional_target": "embed_tokens"}, "additional_target"),
        ({"use_galore": True}, "use_galore"),
        ({"use_galore": False}, None),
        ({"mask_history": True}, "mask_history"),
        ({"adapter_name_or_path": "saves/x"}, "adapter_name_or_path"),
        ({"val_size": 200}, "val_size"),
    ],
)
def test_what_llama_factory_can_and_adapterhub_cannot_is_flagged(
    tmp_path: Path, changes: dict[str, Any], key: str | None
) -> None:
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    found = imported(tmp_path, FACTORY, **changes)
    assert [line.key for line in found.differing] == ([key] if key else [])
    recipe_of(found)


def test_steps_that_are_known_turn_counts_into_fractions(tmp_path: Path) -> None:
    found = imported(
        tmp_path,
        AXOLOTL,
        max_steps=400,
        num_epochs=3,
        warmup_steps=10,
        val_set_size=0.1,
        eval_steps=0.25,
    )
    recipe = recipe_of(found)
    assert (recipe.steps, recipe.epochs, recipe.warmup) == (400, None, 0.025)
    assert recipe.eval.every == 100
    assert found.differing == ()
    constant = recipe_of(imported(tmp_path, AXOLOTL, lr_scheduler="constant", warmup_steps=10))
    assert (constant.scheduler, constant.warmup) == ("constant", 0)


def test_preferences_come_over_from_both(tmp_path: Path) -> None:
    rows = [{"path": "pairs.jsonl", "ds_type": "json", "type": "chat_template.default"}]
    recipe = recipe_of(imported(tmp_path, AXOLOTL, rl="dpo", rl_beta=0.3, datasets=rows))
    assert (recipe.objective, recipe.dpo.beta, recipe.data.format) == ("dpo", 0.3, "preference")
    found = imported(tmp_path, FACTORY, stage="dpo", pref_beta=0.2, pref_loss="sigmoid")
    recipe = recipe_of(found)
    assert (recipe.objective, recipe.dpo.beta, recipe.data.format) == ("dpo", 0.2, "preference")


def test_axolotls_data_are_found_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    sources = [
        {"path": "json", "data_files": ["a.jsonl", "b.jsonl"], "type": "chat_template"},
        {"path": "org/rows", "revision": "v2", "data_files": "part.parquet"},
        {"path": "folder"},
        {"path": "hf://datasets/org/more"},
    ]
    recipe = recipe_of(imported(tmp_path, AXOLOTL, datasets=sources))
    assert recipe.data.path == [
        "a.jsonl", "b.jsonl", "hf://datasets/org/rows@v2/part.parquet", "folder", "hf://datasets/org/more",
    ]  # fmt: skip
    assert recipe.data.format is None  # they differ, so each is told from its rows
    turns = {"role": "from", "content": "value"}
    chat = {"path": "o/d", "type": "chat_template", "field_messages": "conversations"}
    found = imported(tmp_path, AXOLOTL, datasets=[{**chat, "message_property_mappings": turns}])
    assert (recipe_of(found).data.format, found.differing) == ("sharegpt", ())


def test_names_of_data_are_looked_up_or_told_to_be_given_as_files(tmp_path: Path) -> None:
    information = {
        "pairs": {"file_name": "p.json", "ranking": True, "columns": {"prompt": "instruction"}},
        "talk": {
            "hf_hub_url": "org/talk", "formatting": "sharegpt", "columns": {"messages": "messages"},
            "tags": {"role_tag": "role", "content_tag": "content"},
        },
        "odd": {"file_name": "o.json", "columns": {"prompt": "question", "response": "output"}},
    }  # fmt: skip
    (tmp_path / "dataset_info.json").write_text(json.dumps(information))
    talk = recipe_of(imported(tmp_path, FACTORY, dataset="talk"))
    assert (talk.data.path, talk.data.format) == ("hf://datasets/org/talk", "messages")
    odd = imported(tmp_path, FACTORY, dataset="odd")
    assert [(line.key, line.why) for line in odd.differing] == [
        ("dataset odd.prompt", "the column has to be called instruction")
    ]
    found = imported(tmp_path, FACTORY, dataset="talk, lost", max_samples=10)
    assert [line.key for line in found.differing] == ["dataset lost", "max_samples"]
    assert recipe_of(found).data.path == ["hf://datasets/org/talk", "lost.json"]
    assert recipe_of(found).data.limit == 20


@pytest.mark.parametrize(
    ("given", "changes", "says"),
    [
        (AXOLOTL, {"adapter": None}, "trains all weights"),
        (AXOLOTL, {"adapter": "llama-adapter"}, "adapter: llama-adapter"),
        (AXOLOTL, {"rl": "kto"}, "rl: kto"),
        (AXOLOTL, {"reward_model": True}, "a reward model"),
        (AXOLOTL, {"datasets": None}, "names no data"),
        (FACTORY, {"finetuning_type": "full"}, "finetuning_type: full"),
        (FACTORY, {"stage": "ppo"}, "stage: ppo"),
        (FACTORY, {"stage": "dpo", "pref_loss": "orpo"}, "pref_loss: orpo"),
        (FACTORY, {"do_train": False}, "doesn't train"),
        (FACTORY, {"dataset": None}, "names no training data"),
        (FACTORY, {"model_name_or_path": None}, "no configuration of a trainer that is known"),
        (FACTORY, {"base_model": "x"}, "this one has both"),
    ],
)
def test_what_adapterhub_does_not_train_is_refused(
    tmp_path: Path, given: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        imported(tmp_path, given, **changes)
    assert says in str(caught.value)


def test_values_of_the_wrong_type_are_refused_in_our_own_words(
    tmp_path: Path, either: dict[str, Any]
) -> None:
    key = "lora_r" if either is AXOLOTL else "lora_rank"
    with pytest.raises(UsageError, match="rank is 'many'"):
        recipe_of(imported(tmp_path, either, **{key: "many"}))


def test_a_file_that_is_not_there_or_no_mapping_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.yml"):
        import_file(tmp_path / "absent.yml")
    (tmp_path / "list.yml").write_text("- a")
    with pytest.raises(UsageError, match="must hold keys and values"):
        import_file(tmp_path / "list.yml")
