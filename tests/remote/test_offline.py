"""Without the Hub: the cache's copy of that revision, if it is whole and every byte is what its name says."""

from __future__ import annotations

import pytest

from tests.remote.conftest import Machine
from tests.remote.hub_server import Fault, HubServer, sha256
from tests.store.watching import unchanged

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
NOBODY = {"HF_ENDPOINT": "http://127.0.0.1:9"}
OFFLINE = {"HF_HUB_OFFLINE": "1", **NOBODY}


@pytest.fixture
def fresh(machine: Machine) -> dict[str, str]:
    """A second, empty store on the same machine."""
    return {"ADAPTERHUB_HOME": str(machine.root / "fresh")}


@pytest.mark.parametrize("without", [OFFLINE, NOBODY], ids=["offline", "unreachable"])
@pytest.mark.parametrize("revision", ["", "@v1", "@COMMIT"])
def test_what_was_added_once_is_added_again_without_the_hub(
    without: dict[str, str],
    revision: str,
    machine: Machine,
    hub: HubServer,
    adapter: dict[str, bytes],
    fresh: dict[str, str],
) -> None:
    files = {f"warm/{path}": data for path, data in adapter.items()}
    commit = hub.push("org/tone", files, "main", "v1")
    address = f"hf://org/tone{revision.replace('COMMIT', commit)}/warm"
    first = machine.added(address)
    asked = len(hub.requests())
    said = machine.add(address, "--json", **fresh, **without)
    assert said.code == 0, said.err
    assert said.json == first
    assert ("can't be reached" in said.err) == (without is NOBODY)
    assert ("may have a newer one" in said.err) == (revision != "@COMMIT")
    assert len(hub.requests()) == asked
    assert machine.attested(first["digest"])[0]["revision"] == commit


def test_a_hub_that_is_broken_is_as_good_as_none(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes], fresh: dict[str, str]
) -> None:
    hub.push("org/tone", adapter)
    first = machine.added("hf://org/tone")
    hub.fault("GET /api/models/*", Fault(status=503))
    said = machine.add("hf://org/tone", "--json", **fresh)
    assert said.json == first
    assert "can't answer now (503)" in said.err
    assert "taken from the Hugging Face cache" in said.err


def test_adding_again_offline_changes_nothing(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    machine.added("hf://org/tone")
    with unchanged(machine.home):
        assert machine.added("hf://org/tone", **OFFLINE)["created"] is False


def test_without_a_connection_the_commit_seen_last_is_taken(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes], fresh: dict[str, str]
) -> None:
    hub.push("org/tone", adapter)
    machine.added("hf://org/tone")
    second = hub.push("org/tone", {**adapter, "README.md": b"better"})
    newer = machine.added("hf://org/tone", "--move")
    assert machine.added("hf://org/tone", **fresh, **OFFLINE) == {**newer, "created": True}
    assert machine.attested(newer["digest"])[0]["revision"] == second


def test_what_was_never_fetched_is_refused(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    with unchanged(machine.home):
        said = machine.add("hf://org/tone", **OFFLINE)
    assert said.code == 4
    assert "hf://org/tone is not in the Hugging Face cache" in said.err
    assert "HF_HUB_OFFLINE=0 adapterhub add hf://org/tone" in said.err


@pytest.mark.parametrize("missing", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("what", ["link", "blob"])
def test_a_copy_that_is_not_whole_is_refused(
    missing: str,
    what: str,
    machine: Machine,
    hub: HubServer,
    adapter: dict[str, bytes],
    fresh: dict[str, str],
) -> None:
    commit = hub.push("org/tone", adapter)
    machine.added("hf://org/tone")
    link = machine.cache / "models--org--tone/snapshots" / commit / missing
    (link if what == "link" else link.resolve()).unlink()
    said = machine.add("hf://org/tone", **fresh, **OFFLINE)
    assert said.code == 4
    assert missing in said.err
    assert "it may not be whole" in said.err
    assert "With a connection" in said.err
    assert not (machine.root / "fresh" / "store" / "refs").exists()


@pytest.mark.parametrize("path", [WEIGHTS, CONFIG])
def test_bytes_that_went_bad_in_the_cache_are_refused(
    path: str,
    machine: Machine,
    hub: HubServer,
    adapter: dict[str, bytes],
    fresh: dict[str, str],
) -> None:
    commit = hub.push("org/tone", adapter)
    machine.added("hf://org/tone")
    blob = (machine.cache / "models--org--tone/snapshots" / commit / path).resolve()
    blob.write_bytes(adapter[path].replace(b"o", b"0"))
    said = machine.add("hf://org/tone", **fresh, **OFFLINE)
    assert said.code == 1
    assert f"{path} of hf://org/tone@{commit} has changed in the Hugging Face cache" in said.err
    assert blob.name in said.err
    assert f"rm {blob}" in said.err
    if path == WEIGHTS:
        assert sha256(blob.read_bytes()) in said.err
    assert not (machine.root / "fresh" / "store" / "refs").exists()


def test_a_blob_that_repositories_share_is_judged_by_the_name_its_repository_gives_it(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes], fresh: dict[str, str]
) -> None:
    """huggingface_hub moves some blobs to a place for the whole cache, under a digest of another kind, and links to them."""
    hub.push("org/tone", adapter)
    first = machine.added("hf://org/tone")
    blob = machine.cache / "models--org--tone/blobs" / sha256(adapter[WEIGHTS])
    shared = machine.cache / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(f"../../blobs/ab/{shared.name}")
    assert machine.added("hf://org/tone", **fresh, **OFFLINE)["digest"] == first["digest"]
    assert machine.added("hf://org/tone")["created"] is False


def test_a_cache_without_links_is_used_and_said_to_be_unchecked(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes], fresh: dict[str, str]
) -> None:
    hub.push("org/tone", adapter)
    first = machine.added("hf://org/tone", HF_HUB_DISABLE_SYMLINKS="1")
    said = machine.add("hf://org/tone", "--json", **fresh, **OFFLINE)
    assert said.json["digest"] == first["digest"]
    assert f"{WEIGHTS} couldn't be checked" in said.err
