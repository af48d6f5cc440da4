"""From the Hub into the store: the bytes that were pushed, at one commit, and what is attested of them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from adapterhub.store import Store
from tests.cli.terminals import on_a_terminal
from tests.remote.conftest import TOKEN, Machine, files_of
from tests.remote.hub_server import SIGNATURE, Fault, HubServer, git_id, sha256
from tests.store.watching import journal, listing, problems, unchanged
from tests.support.adapters import AdapterMaker
from tests.support.models import ModelMaker

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DOWNLOADS = ("HEAD */resolve/*", "GET */resolve/*", "GET */storage/*")


def test_what_is_stored_is_what_was_pushed(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    pushed = {**adapter, "README.md": b"# Tone\n", "extra/notes.txt": b"read me"}
    commit = hub.push("org/tone", {**pushed, ".gitattributes": b"*.safetensors filter=lfs"})
    said = machine.added("hf://org/tone")
    assert (said["name"], said["created"], said["notes"]) == ("org/tone", True, [])
    assert machine.stored("org/tone") == pushed
    assert problems(machine.home) == []
    (line,) = [line for line in journal(machine.home) if line["op"] == "add"]
    assert line["why"] == f"add hf://org/tone@{commit}"


def test_the_digest_is_that_of_the_same_folder_added_from_disk(
    machine: Machine, hub: HubServer, make_adapter: AdapterMaker, store: Store
) -> None:
    folder = make_adapter("tone")
    hub.push("org/tone", {**files_of(folder), ".gitattributes": b"x"})
    assert machine.added("hf://org/tone")["digest"] == store.add_folder(folder).digest


def test_where_it_came_from_is_attested(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    repo = {f"tones/warm/{path}": data for path, data in adapter.items()}
    commit = hub.push("org/tone", {**repo, "tones/warm/optimizer.pt": b"state"}, "main", "v1")
    said = machine.added("hf://org/tone@v1/tones/warm")
    assert said["name"] == "org/tone-tones-warm"
    assert machine.attested(said["digest"]) == [
        {
            "event": "imported",
            "from": "hf",
            "source": f"hf://org/tone@{commit}/tones/warm",
            "repo": "org/tone",
            "revision": commit,
            "subfolder": "tones/warm",
            "claimed_base": "org/tiny",
            "notes": ["left out as the training's state: optimizer.pt"],
            "files": {
                CONFIG: f"git-sha1:{git_id(adapter[CONFIG])}",
                WEIGHTS: f"sha256:{sha256(adapter[WEIGHTS])}",
            },
        }
    ]


def test_the_commit_stays_the_same_though_the_branch_moves_on_meanwhile(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes], make_adapter: AdapterMaker
) -> None:
    newer = files_of(make_adapter("newer", seed=1))
    commit = hub.push("org/tone", adapter)
    hub.fault(
        "HEAD */resolve/*", Fault(before=lambda: hub.push("org/tone", newer)), times=1
    )  # between the look-up and the first file
    said = machine.added("hf://org/tone")
    assert machine.stored("org/tone") == adapter
    assert machine.attested(said["digest"])[0]["revision"] == commit
    downloads = [one.what for pattern in DOWNLOADS for one in hub.requests(pattern)]
    assert downloads
    assert all(commit in what for what in downloads)
    assert len(hub.requests("GET /api/models/*")) == 1

    refused = machine.add("hf://org/tone")  # the branch is another adapter now
    assert refused.code == 1
    assert "--move" in refused.err
    assert machine.added("hf://org/tone", "--move")["created"]
    assert machine.stored("org/tone") == newer


def test_the_second_time_nothing_is_fetched_and_nothing_changes(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    first = machine.added("hf://org/tone")
    before = [len(hub.requests(pattern)) for pattern in DOWNLOADS]
    assert before == [2, 1, 1]
    with unchanged(machine.home):
        again = machine.added("hf://org/tone")
    assert again == {**first, "created": False}
    assert [len(hub.requests(pattern)) for pattern in DOWNLOADS] == before


def test_another_store_takes_it_from_the_cache(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    first = machine.added("hf://org/tone")
    other = machine.added("hf://org/tone", ADAPTERHUB_HOME=str(machine.root / "other"))
    assert other == first
    assert len(hub.requests("GET */storage/*")) == 1


def test_only_the_adapter_is_fetched(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    beside = {
        "optimizer.pt": b"state",
        "checkpoint-10/trainer_state.json": b"{}",
        **{f"checkpoint-10/{path}": data for path, data in adapter.items()},
        **{f"other/{path}": data for path, data in adapter.items()},
        "model-00001-of-00002.safetensors": b"a whole model",
    }
    hub.push("org/tone", {**adapter, **beside})
    said = machine.added("hf://org/tone")
    assert machine.stored("org/tone") == adapter
    assert said["notes"] == [
        "left out as adapters of their own: checkpoint-10/, other/",
        "left out as weights of a whole model: model-00001-of-00002.safetensors",
        "left out as the training's state: optimizer.pt",
    ]
    fetched = {
        one.what.rpartition("/")[2] for pattern in DOWNLOADS for one in hub.requests(pattern)
    }
    assert fetched == {CONFIG, WEIGHTS}
    assert machine.added("hf://org/tone/checkpoint-10")["digest"] != said["digest"]
    assert machine.added("hf://org/tone/other")["digest"] == said["digest"]


def test_an_old_bare_name_works(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("tone", {f"a/{path}": data for path, data in adapter.items()})
    said = machine.add("hf://tone")
    assert said.code == 4
    assert "adapterhub add hf://tone@main/a" in said.err
    assert machine.added("hf://tone@main/a")["name"] == "tone-a"


def test_the_name_can_be_chosen_and_is_judged_before_anybody_is_asked(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    assert machine.added("hf://org/tone", "--name", "support/tone:v2")["name"] == "support/tone:v2"
    asked = len(hub.requests())
    with unchanged(machine.home):
        assert machine.add("hf://org/tone", "--name", "a b").code == 2
        assert machine.add("hf://org/to ne").code == 2
    assert len(hub.requests()) == asked


def test_a_private_repository_opens_to_its_token_and_nobody_else_sees_that(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    hub.repos["org/tone"].needs = TOKEN
    said = machine.add("hf://org/tone")
    assert said.code == 0
    assert {
        value
        for one in hub.requests("GET */storage/*")
        for key, value in one.headers.items()
        if key.lower() == "authorization"
    } == set()
    assert hub.requests("GET */storage/*")
    kept = [path.read_bytes() for path in machine.root.rglob("*") if path.is_file()]
    for secret in (TOKEN, SIGNATURE):
        assert secret not in said.out + said.err
        assert not any(secret.encode() in data for data in kept)


def test_nothing_but_our_own_words_is_on_stderr(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    """No progress bar and no log of huggingface_hub where there is no terminal, also when something had to be tried again."""
    hub.push("org/tone", adapter)
    hub.fault("HEAD *", Fault(status=503), times=1)
    hub.fault("GET */storage/*", Fault(status=500), times=1)
    said = machine.add("hf://org/tone")
    assert said.code == 0
    assert said.err == ""


def test_a_terminal_sees_how_far_each_file_is(
    machine: Machine,
    hub: HubServer,
    adapter: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, value in machine.settings.items():
        monkeypatch.setenv(key, value)
    hub.push("org/tone", {**adapter, "\x1b[2J.txt": b"commands for a terminal"})
    shown = on_a_terminal("add", "hf://org/tone")
    assert shown.code == 0
    assert f"{CONFIG}: 100%" in shown.out
    assert f"{WEIGHTS}: 100%" in shown.out
    assert "\x1b[2J" not in shown.out
    assert SIGNATURE[-10:] not in shown.out


def test_one_that_does_not_fit_is_refused_in_words_of_its_address(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes], tiny: ModelMaker
) -> None:
    hub.push("org/tone", adapter)
    with unchanged(machine.home):
        said = machine.add("hf://org/tone", "--base", tiny.gpt2())
    assert said.code == 5
    assert "hf://org/tone doesn't fit the base" in said.err
    assert "--allow-mismatch" in said.err
    assert "snapshots" not in said.err


def test_one_that_is_broken_is_refused_though_the_hub_states_its_digest(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", {**adapter, WEIGHTS: adapter[WEIGHTS][:-1]})
    with unchanged(machine.home):
        said = machine.add("hf://org/tone")
    assert said.code == 1
    assert "snapshots" not in said.err
    assert len(hub.requests("GET */storage/*")) == 1


def test_a_cache_without_links_serves_too(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    commit = hub.push("org/tone", adapter)
    machine.added("hf://org/tone", HF_HUB_DISABLE_SYMLINKS="1")
    assert machine.stored("org/tone") == adapter
    config = machine.cache / f"models--org--tone/snapshots/{commit}/{CONFIG}"
    assert not config.is_symlink()
    config.write_bytes(b"changed on this disk")
    fresh = {"ADAPTERHUB_HOME": str(machine.root / "other"), "HF_HUB_DISABLE_SYMLINKS": "1"}
    assert machine.add("hf://org/tone", **fresh).code == 0
    assert config.read_bytes() == adapter[CONFIG]
    assert listing(machine.root / "other").keys() >= {
        name for name in listing(machine.home) if name.startswith("blobs/")
    }


def test_asking_whether_it_is_an_address_loads_no_library_of_the_hub() -> None:
    code = "import sys; from adapterhub.remote.hub import is_hub; is_hub('hf://a/b'); print('huggingface_hub' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "False\n"
