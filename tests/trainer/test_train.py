"""A training ends in the store, says where it came from, gives the same bytes twice, and disturbs nobody."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from adapterhub.data import read_rows, split_rows
from adapterhub.errors import ConflictError, ExitCode, FormatError, IncompatibleError, NotFoundError
from adapterhub.evaluate import evaluate
from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.cli.calling import call, run
from tests.support.chat import CHATML, chat_base, chat_rows, chat_tokenizer, write_rows
from tests.support.models import peft_adapter
from tests.trainer.conftest import events

if TYPE_CHECKING:
    from adapterhub.trainer.train import Trained

Training = Callable[..., "Trained"]


def provenance(store: Store, digest: str) -> dict[str, Any]:
    (found,) = [a for a in store.attestations(digest) if a.type == "provenance"]
    return dict(found.body)


def test_training_teaches_what_it_was_given(train_tiny: Training, store: Store) -> None:
    trained = train_tiny()
    assert trained.steps == 12
    assert trained.metrics["last_loss"] < trained.metrics["first_loss"] - 1
    held_out = trained.metrics["held_out"]
    assert held_out["perplexity_after"] < held_out["perplexity_before"] / 2
    assert store.resolve("paint").digest == trained.digest


def test_the_adapter_loads_with_peft_and_scores_as_attested(
    train_tiny: Training, store: Store, base: Path, tmp_path: Path
) -> None:
    trained = train_tiny()
    (row,) = evaluate(
        store, ["paint"], base=str(base), data=tmp_path / "data.json", held_out=0.2, max_rows=6,
        max_length=256,
    )  # fmt: skip
    held_out = trained.metrics["held_out"]
    assert (row.rows, row.tokens) == (held_out["rows"], held_out["tokens"])
    assert row.loss == pytest.approx(held_out["loss_after"], abs=1e-5)


def test_everything_needed_to_train_it_again_is_attested(
    train_tiny: Training, store: Store, base: Path, tmp_path: Path
) -> None:
    body = provenance(store, train_tiny().digest)
    split = split_rows(read_rows(tmp_path / "data.json"), 0.2)
    assert body["event"] == "trained"
    assert body["seed"] == body["recipe"]["seed"] == 3
    assert body["recipe"]["learning_rate"] == 5e-3
    assert body["data"]["train_rows"] == len(split.train)
    assert body["data"]["held_out_rows"] == len(split.held_out)
    assert body["base"]["fingerprint"] == store.bases.open(str(base)).fingerprint
    assert {"torch", "transformers", "peft", "trl", "adapterhub"} <= set(body["versions"])
    assert body["steps"] == 12
    assert str(tmp_path) not in json.dumps(body)
    kinds = {a.type for a in store.attestations(store.resolve("paint").digest)}
    assert kinds == {"provenance", "base", "template"}


def test_the_configuration_names_the_repository_and_revision_and_no_path(
    train_tiny: Training, store: Store, base: Path
) -> None:
    revision = "a" * 40
    found = store.bases.open(str(base), repo="org/tiny", revision=revision)
    store.bases.remember(found)
    trained = train_tiny(base="org/tiny", steps=1)
    config = json.loads((store.view(trained.digest) / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", revision)
    claim = store.resolve("paint").manifest.base
    assert (claim.repo, claim.revision) == ("org/tiny", revision)


def test_a_base_known_only_as_a_folder_leaves_no_path_and_is_found_again(
    train_tiny: Training, store: Store, base: Path
) -> None:
    trained = train_tiny(steps=1)
    folder = store.view(trained.digest)
    assert (
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert store.base_for(store.resolve("paint")).path == base.resolve()


def test_the_same_recipe_gives_the_same_adapter_to_the_byte(
    train_tiny: Training, tmp_path: Path
) -> None:
    """Whatever the order of the rows in the file."""
    first = train_tiny(dropout=0.1)
    rows = json.loads((tmp_path / "data.json").read_text())
    write_rows(tmp_path / "data.json", rows[::-1])
    again = train_tiny(dropout=0.1, to=Store.open(tmp_path / "other"))
    assert (again.reused, again.digest) == (False, first.digest)


@pytest.mark.slow
def test_a_process_with_another_hash_seed_gives_the_same_adapter(
    train_tiny: Training, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    here = train_tiny()
    home = {"ADAPTERHUB_HOME": str(tmp_path / "other"), "PYTHONHASHSEED": "7"}
    said = run("train", write_recipe(), "-q", timeout=200, **home)
    assert (said.code, said.out) == (0, here.digest + "\n")


def test_another_seed_gives_another_adapter(train_tiny: Training) -> None:
    assert train_tiny(steps=1).digest != train_tiny(steps=1, seed=4, name="other").digest


def test_qlora_ends_in_the_store_as_lora_does(train_tiny: Training, store: Store) -> None:
    trained = train_tiny(method="qlora", target_modules=["q_proj", "v_proj"], steps=20)
    held_out = trained.metrics["held_out"]
    assert held_out["perplexity_after"] < held_out["perplexity_before"]
    weights = load_file(store.view(trained.digest) / "adapter_model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32}
    quantization = provenance(store, trained.digest)["base"]["quantization"]
    assert (quantization["type"], quantization["double_quantization"]) == ("nf4", True)


def test_the_run_tells_what_happened(train_tiny: Training, store: Store) -> None:
    trained = train_tiny()
    told = events(store)
    assert [e["step"] for e in told if e["event"] == "step"] == list(range(1, 13))
    assert [e["event"] for e in told if e["event"] not in ("step", "progress")] == [
        "started", "prepared", "loaded", "evaluated", "training", "saved", "evaluated", "best", "added", "done",
    ]  # fmt: skip
    step = [e for e in told if e["event"] == "step"][1]  # the first one warms up from nothing
    assert set(step["grad_norms"]) == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    squares = sum(norm**2 for norm in step["grad_norms"].values())
    assert squares == pytest.approx(step["grad_norm"] ** 2, rel=1e-3)
    assert min(step[key] for key in ("tokens_per_second", "memory", "eta", "learning_rate")) > 0
    (run,) = store.runs_dir.iterdir()
    assert json.loads((run / "result.json").read_text())["digest"] == trained.digest
    assert not (run / "checkpoints").exists()
    assert not (run / "scratch").exists()


def test_training_prints_nothing_to_stdout_and_calls_nobody(
    train_tiny: Training, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"the network was asked for {arguments}")

    for name in ("HF_HUB_OFFLINE", "CI", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    train_tiny(steps=2)
    assert capfd.readouterr().out == ""


def test_the_same_training_again_is_found_in_the_store(train_tiny: Training, store: Store) -> None:
    first = train_tiny()
    again = train_tiny(eval={"rows": 6, "samples": 2})  # what is shown doesn't change what is kept
    assert (again.reused, again.digest, again.metrics) == (True, first.digest, first.metrics)
    assert len(list(store.runs_dir.iterdir())) == 1
    redone = train_tiny(redo=True)
    assert (redone.reused, redone.digest) == (False, first.digest)


def test_a_taken_name_is_refused_before_any_training(train_tiny: Training, store: Store) -> None:
    first = train_tiny(steps=1)
    with pytest.raises(ConflictError, match="The name paint is taken") as caught:
        train_tiny(steps=2)
    assert "--move" in caught.value.hint
    assert len(list(store.runs_dir.iterdir())) == 1
    moved = train_tiny(steps=2, move=True)
    assert store.resolve("paint").digest == moved.digest != first.digest


def test_a_name_taken_during_the_training_costs_no_work(
    train_tiny: Training, store: Store, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub.trainer import saving

    save = saving.save_adapter

    def save_and_lose_the_name(*arguments: Any) -> None:
        save(*arguments)
        store.add_folder(peft_adapter(base, tmp_path / "rival"), name="paint", base=str(base))

    monkeypatch.setattr(saving, "save_adapter", save_and_lose_the_name)
    with pytest.raises(ConflictError, match="is kept in") as caught:
        train_tiny(steps=1)
    kept = Path(caught.value.hint.split()[2])
    assert kept.is_dir()
    assert store.add_folder(kept, name="saved", base=str(base)).created


def test_an_interrupt_after_the_last_step_keeps_the_adapter(
    train_tiny: Training, store: Store, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub.trainer.watch import Examiner

    examine = Examiner.examine

    def interrupted(self: Examiner, step: int, *rest: Any) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return examine(self, step, *rest)

    monkeypatch.setattr(Examiner, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt, match="take the adapter as it is") as caught:
        train_tiny(steps=2)
    assert store.entries() == []
    kept = Path(str(caught.value).split()[-5])
    assert store.add_folder(kept, name="saved", base=str(base)).created


def test_redo_replaces_only_a_result_of_the_same_training(train_tiny: Training) -> None:
    train_tiny(steps=1)
    with pytest.raises(ConflictError):
        train_tiny(steps=2, redo=True)


def test_without_held_out_rows_nothing_is_measured(train_tiny: Training, tmp_path: Path) -> None:
    trained = train_tiny(steps=1, data={"path": "data.json", "held_out": 0})
    assert trained.metrics["held_out"] is None


def test_faults_in_data_template_and_base_stop_it_before_the_base_is_loaded(
    train_tiny: Training, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="no/model"):
        train_tiny(base="no/model")
    rows = chat_rows(20)
    rows[4]["output"] = ""
    write_rows(tmp_path / "data.json", rows)
    with pytest.raises(FormatError) as caught:
        train_tiny()
    assert "row 5: an assistant's answer is empty" in caught.value.why
    assert store.entries() == []


def test_a_base_whose_template_never_trains_the_stop_token_is_refused(
    train_tiny: Training, store: Store, tmp_path: Path
) -> None:
    base = chat_base(tmp_path / "stopless")
    template = CHATML.replace("+ '<|im_end|>' + '\n'", "+ '\n'")
    chat_tokenizer(template).save_pretrained(base)
    with pytest.raises(IncompatibleError, match="stop token would not be trained"):
        train_tiny(base=str(base))
    assert store.entries() == []
    assert events(store)[-1]["event"] == "failed"


def test_a_dry_run_prints_exact_counts_and_changes_nothing(
    write_recipe: Callable[..., Path], store: Store
) -> None:
    plan = call("train", write_recipe(), "--dry-run", "--steps", "3", "--json").json
    assert plan["steps"] == 3
    assert plan["train_rows"] + plan["held_out_rows"] == 60
    per_block = 8 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))  # r(in+out): q,o; k,v; MLP
    assert plan["trainable_parameters"] == 2 * per_block
    assert not store.home.exists()


def test_the_command_trains_and_says_so_once(
    write_recipe: Callable[..., Path], store: Store
) -> None:
    path = write_recipe()
    said = call("train", path, "--name", "mine", "--steps", "2", "--seed", "5", "--json")
    assert (said.code, said.json["name"], said.json["steps"]) == (0, "mine", 2)
    assert provenance(store, said.json["digest"])["seed"] == 5
    again = call("train", path, "--name", "mine", "--steps", "2", "--seed", "5")
    assert "--redo trains again" in again.err


def test_a_wrong_recipe_is_a_usage_error(write_recipe: Callable[..., Path]) -> None:
    said = call("train", write_recipe(rnak=3), "--json")
    assert (said.code, said.out) == (ExitCode.USAGE, "")
    assert said.error["what"] == "The recipe has an unknown key: rnak."


@pytest.mark.parametrize(
    "file", ["chat_template.jinja", "tokenizer.json", "generation_config.json"]
)
def test_what_decides_the_tokens_belongs_to_the_training(
    file: str, train_tiny: Training, tmp_path: Path
) -> None:
    own = chat_base(tmp_path / "own")
    train_tiny(base=str(own), steps=1)
    path = own / file
    path.write_text(path.read_text().replace("assistant", "assistent") + " ")
    with pytest.raises(ConflictError):
        train_tiny(base=str(own), steps=1)


def test_a_checkpoint_that_took_the_name_is_not_the_result(
    train_tiny: Training, store: Store
) -> None:
    changes = {"steps": 8, "eval": {"rows": 4, "every": 4}}
    trained = train_tiny(**changes)
    (body,) = [a.body for a in store.attestations(trained.digest) if a.type == "provenance"]
    other = body["checkpoints"][0]["digest"]
    store.tag(store.resolve("@" + other.removeprefix("sha256:")), parse_name("paint"), move=True)
    with pytest.raises(ConflictError):
        train_tiny(**changes)


def test_a_checkpoint_known_already_keeps_its_own_provenance(
    train_tiny: Training, store: Store
) -> None:
    short = train_tiny(
        name="short", steps=4, scheduler="constant", warmup=0, eval={"rows": 4, "every": 4}
    )
    train_tiny(name="long", steps=8, scheduler="constant", warmup=0, eval={"rows": 4, "every": 4})
    assert [a.type for a in store.attestations(short.digest)].count("provenance") == 1
