"""What people have on disk: of a trainer's output only the adapter is taken, and everything else is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.errors import (
    AdapterHubError,
    ConflictError,
    FormatError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from adapterhub.formats.folders import find_source, find_tree, why_left_out
from adapterhub.store import Store
from adapterhub.store.adding import manifest_of
from tests.support.adapters import AdapterMaker
from tests.support.outputs import OUTPUTS, STATE, axolotl

REASONS = {
    "optimizer.pt": "the training's state",
    "optimizer.bin": "the training's state",
    "scheduler.pt": "the training's state",
    "rng_state_3.pth": "the training's state",
    "training_args.bin": "the training's state",
    "global_step100/zero_pp_rank_0_mp_rank_00_optim_states.pt": "the training's state",
    "checkpoint-100/README.md": "other checkpoints",
    "pytorch_model-00001-of-00003.bin": "weights of a whole model",
    "model.safetensors": "weights of a whole model",
    "consolidated.00.pth": "weights of a whole model",
    "unsloth.F16.gguf": "weights of a whole model",
    "merged/tokenizer.json": "weights of a whole model",
    "runs/Jan01_host/anything": "the training's logs",
    "sub/wandb/run-1/x": "the training's logs",
    "events.out.tfevents.1.h.2.0": "the training's logs",
    ".cache/huggingface/download/x.lock": "version control or a cache",
    "adapter_model.bin": "pickled weights",
}
KEPT = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "README.md",
    "tokenizer.model",
    "chat_template.jinja",
    "trainer_state.json",
    "trainer_log.jsonl",
    "all_results.json",
    "training_loss.png",
    "value_head.safetensors",
    "value_head.bin",
    "config.json",
    "vocab.json",
    "notes/merged.md",
    "modelling.md",
)


@pytest.mark.parametrize("path", REASONS)
def test_what_is_no_part_of_the_adapter_has_a_reason(path: str) -> None:
    assert why_left_out(path) == REASONS[path]


@pytest.mark.parametrize("path", KEPT)
def test_everything_else_is_kept(path: str) -> None:
    assert why_left_out(path) is None


@pytest.mark.parametrize("trainer", OUTPUTS)
def test_of_a_trainers_output_the_adapter_comes_in_and_the_rest_is_named(
    trainer: str, store: Store, make_adapter: AdapterMaker
) -> None:
    output = OUTPUTS[trainer](make_adapter(trainer))
    notes: list[str] = []
    added = store.add_folder(output.folder, note=notes.append)
    assert {entry.path for entry in added.manifest.files} == output.kept
    assert sorted(notes) == sorted(output.said)


def test_every_file_of_an_output_is_kept_or_has_a_reason_in_its_notes(
    make_adapter: AdapterMaker,
) -> None:
    """No third way: what isn't in the adapter is named itself, or its folder is."""
    output = axolotl(make_adapter("run"))
    source = find_source(output.folder)
    named = {name for note in source.notes for name in note.partition(": ")[2].split(", ")}
    for path in output.folder.rglob("*"):
        relative = path.relative_to(output.folder).as_posix()
        if path.is_file() and relative not in source.files:
            assert relative in named or any(
                relative.startswith(name) for name in named if name.endswith("/")
            )


def test_an_adapter_in_a_folder_of_any_name_is_an_adapter_of_its_own(
    make_adapter: AdapterMaker,
) -> None:
    folder = make_adapter("run")
    shutil.copytree(folder, folder / "best")
    (folder / "plots").mkdir()
    (folder / "plots" / "loss.png").write_bytes(b"x")
    source = find_source(folder)
    assert set(source.files) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "plots/loss.png",
    }
    assert source.notes == ("left out as adapters of their own: best/",)


def test_an_output_without_its_final_adapter_leads_to_its_checkpoints(
    make_adapter: AdapterMaker,
) -> None:
    """Axolotl writes the configuration before it trains, so a run that was stopped has that and checkpoints."""
    folder = axolotl(make_adapter("run")).folder
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(NotFoundError) as caught:
        find_source(folder)
    assert f"adapterhub add {folder} --recursive" in caught.value.hint
    assert f"adapterhub add {folder}/checkpoint-10" in caught.value.hint


def test_a_link_out_of_the_folder_is_refused_even_beside_links_of_the_hubs_cache(
    tmp_path: Path, make_adapter: AdapterMaker
) -> None:
    real = make_adapter("real")
    repository = tmp_path / "models--org--tone"
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(real.iterdir())):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(repository / "blobs" / str(number))
    source = find_source(snapshot)
    assert set(source.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert source.name == "org/tone"
    (snapshot / "passwords").symlink_to("/etc/passwd")
    with pytest.raises(FormatError, match="passwords is a link that leads out"):
        find_source(snapshot)


# Single files


def header_only(folder: Path, name: str = "tone.safetensors", **metadata: Any) -> Path:
    """The weights of `folder` in a folder of their own, with this metadata in the header."""
    target = folder.with_name(f"{folder.name}-alone")
    target.mkdir()
    save_file(
        load_file(folder / "adapter_model.safetensors"), target / name, metadata=metadata or None
    )
    return target / name


def test_a_file_with_its_configuration_beside_it_is_an_adapter(
    store: Store, make_adapter: AdapterMaker
) -> None:
    folder = make_adapter("tone")
    whole = store.add_folder(folder)
    renamed = make_adapter("other") / "my-lora.safetensors"
    (renamed.parent / "adapter_model.safetensors").rename(renamed)
    added = store.add_folder(renamed)
    assert added.digest == whole.digest
    assert str(added.name) == "my-lora"


def test_the_adapters_own_weights_file_takes_the_configuration_beside_and_the_folders_name(
    store: Store, make_adapter: AdapterMaker
) -> None:
    folder = make_adapter("tone")
    (folder / "README.md").write_text("not asked for")
    added = store.add_folder(folder / "adapter_model.safetensors")
    assert str(added.name) == "tone"
    assert {entry.path for entry in added.manifest.files} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_configuration_in_the_header_is_used_as_diffusers_writes_it(
    store: Store, make_adapter: AdapterMaker
) -> None:
    folder = make_adapter("tone", rank=2, alpha=3)
    document = json.loads((folder / "adapter_config.json").read_text())
    file = header_only(folder, lora_adapter_metadata=json.dumps(document, indent=2, sort_keys=True))
    whole, alone = store.add_folder(folder, name="whole"), store.add_folder(file)
    assert alone.manifest.lora == whole.manifest.lora
    assert alone.manifest.content == whole.manifest.content
    assert manifest_of(file).digest == alone.digest
    store.checkout(store.resolve(str(alone.name)), folder.with_name("out"))
    out = folder.with_name("out")
    assert json.loads((out / "adapter_config.json").read_text()) == document
    assert (out / "adapter_model.safetensors").read_bytes() == file.read_bytes()


def in_a_pipeline(folder: Path, *components: str) -> Path:
    """The tensors and the configuration of `folder`, prefixed for each component, as a pipeline saves them."""
    tensors = load_file(folder / "adapter_model.safetensors")
    document = json.loads((folder / "adapter_config.json").read_text())
    target = folder.with_name("pipeline")
    target.mkdir()
    save_file(
        {
            f"{component}.{name.removeprefix('base_model.model.')}": tensor.clone()
            for component in components
            for name, tensor in tensors.items()
        },
        target / "pytorch_lora_weights.safetensors",
        metadata={
            "format": "pt",
            "lora_adapter_metadata": json.dumps(
                {
                    f"{component}.{key}": value
                    for component in components
                    for key, value in document.items()
                }
            ),
        },
    )
    return target / "pytorch_lora_weights.safetensors"


def test_one_component_of_a_pipeline_has_its_configuration_under_plain_names(
    store: Store, make_adapter: AdapterMaker
) -> None:
    notes: list[str] = []
    added = store.add_folder(
        in_a_pipeline(make_adapter("tone", rank=2, alpha=3), "transformer"), note=notes.append
    )
    assert added.manifest.lora is not None
    assert (added.manifest.lora.rank, added.manifest.lora.alpha) == (2, 3)
    assert str(added.name) == "pipeline"
    assert "its tensors are named for the transformer of a diffusion pipeline" in notes


def test_several_components_in_one_file_are_refused_by_name(make_adapter: AdapterMaker) -> None:
    file = in_a_pipeline(make_adapter(), "transformer", "text_encoder")
    with pytest.raises(UnsupportedError, match="text_encoder, transformer") as caught:
        find_source(file)
    assert "save_lora_adapter" in caught.value.hint


def test_a_file_without_a_configuration_says_what_is_missing(make_adapter: AdapterMaker) -> None:
    with pytest.raises(NotFoundError, match="has no configuration") as caught:
        find_source(header_only(make_adapter()))
    assert "no lora_adapter_metadata in its header" in caught.value.why
    assert "Put the adapter_config.json it was trained with beside it" in caught.value.hint


def test_a_file_of_kohya_is_recognised(tmp_path: Path) -> None:
    save_file({"lora_unet_down.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(NotFoundError) as caught:
        find_source(tmp_path / "a.safetensors")
    assert "kohya" in caught.value.why


def test_a_configuration_beside_two_files_belongs_to_neither_for_sure(
    make_adapter: AdapterMaker,
) -> None:
    folder = make_adapter()
    (folder / "adapter_model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    with pytest.raises(FormatError, match="could belong to another file") as caught:
        find_source(folder / "a.safetensors")
    assert "a.safetensors, b.safetensors" in caught.value.why


@pytest.mark.parametrize("metadata", ["{", "[]", '{"r": NaN}', '{"r": 1, "r": 2}'])
def test_a_header_that_holds_no_configuration_is_refused(
    metadata: str, make_adapter: AdapterMaker
) -> None:
    with pytest.raises(FormatError, match=r"lora_adapter_metadata in tone\.safetensors"):
        find_source(header_only(make_adapter(), lora_adapter_metadata=metadata))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapter_model.bin", "pickle"),
        ("weights.pt", "pickle"),
        ("adapter.gguf", "no adapter"),
        ("x.safetensors", "not a sound safetensors"),
    ],
)
def test_another_file_is_no_adapter(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"GGUF and so on")
    with pytest.raises(AdapterHubError, match=words) as caught:
        find_source(tmp_path / name)
    assert caught.value.why
    assert caught.value.hint


def test_a_folder_with_weights_of_another_name_leads_to_them(make_adapter: AdapterMaker) -> None:
    folder = make_adapter("my lora")
    file = folder / "pytorch_lora_weights.safetensors"
    (folder / "adapter_model.safetensors").rename(file)
    with pytest.raises(NotFoundError) as caught:
        find_source(folder)
    assert caught.value.hint.endswith(f"adapterhub add '{file}'")
    assert set(find_source(file).files) == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_folder_with_weights_and_no_configuration_asks_for_it(make_adapter: AdapterMaker) -> None:
    folder = make_adapter()
    (folder / "adapter_config.json").unlink()
    with pytest.raises(NotFoundError) as caught:
        find_source(folder)
    assert "Put the adapter_config.json" in caught.value.hint


# Trees


@pytest.fixture
def runs(make_adapter: AdapterMaker) -> Path:
    """runs/{a,a/checkpoint-9,a/checkpoint-10,deeper/b,deeper/b/checkpoint-5} and what trainers leave between them."""
    names = ("a", "a/checkpoint-10", "a/checkpoint-9", "deeper/b", "deeper/b/checkpoint-5")
    for seed, name in enumerate((*names, ".cache/hidden")):
        make_adapter(f"runs/{name}", seed=seed)
    root = make_adapter.root / "runs"
    for name in STATE:
        (root / "a" / "checkpoint-9" / name).touch()
    return root


def test_a_tree_gives_every_adapter_a_name_in_the_order_people_count(runs: Path) -> None:
    assert [(found.path.relative_to(runs).as_posix(), found.name) for found in find_tree(runs)] == [
        ("a", "runs/a"),
        ("a/checkpoint-9", "runs/a:checkpoint-9"),
        ("a/checkpoint-10", "runs/a:checkpoint-10"),
        ("deeper/b", "runs/deeper-b"),
        ("deeper/b/checkpoint-5", "runs/deeper-b:checkpoint-5"),
    ]
    assert [found.name for found in find_tree(runs / "a")] == [
        "a",
        "a:checkpoint-9",
        "a:checkpoint-10",
    ]
    assert [found.name for found in find_tree(runs / "a", name="support/tone")] == [
        "support/tone",
        "support/tone:checkpoint-9",
        "support/tone:checkpoint-10",
    ]
    assert [found.name for found in find_tree(runs, name="support/x")][-1] == (
        "support/x-deeper-b:checkpoint-5"
    )


def test_links_between_folders_are_named_and_not_followed(runs: Path) -> None:
    before = find_tree(runs)
    (runs / "a" / "loop").symlink_to(runs)
    (runs / "best").symlink_to(runs / "a")
    notes: list[str] = []
    assert find_tree(runs, note=notes.append) == before
    assert [note.partition(" is a link")[0] for note in notes] == [
        str(runs / "a" / "loop"),
        str(runs / "best"),
    ]


def test_two_folders_that_would_get_one_name_are_a_conflict(runs: Path) -> None:
    shutil.copytree(runs / "a", runs / "Deeper-B")
    with pytest.raises(ConflictError, match=r"would both be called runs/deeper-b") as caught:
        find_tree(runs)
    assert str(runs / "Deeper-B") in caught.value.what


def test_a_prefix_with_a_tag_is_refused(runs: Path) -> None:
    with pytest.raises(UsageError, match="has a tag"):
        find_tree(runs, name="tone:v1")


def test_a_tree_without_adapters_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("empty", "file", "nowhere"):
        with pytest.raises(NotFoundError, match="no adapter"):
            find_tree(tmp_path / name)


def test_a_pipe_among_the_files_is_left_out_and_named(make_adapter: AdapterMaker) -> None:
    folder = make_adapter()
    os.mkfifo(folder / "pipe")
    assert find_source(folder).notes == ("pipe is no regular file and was left out",)
