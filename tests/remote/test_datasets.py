"""Data at `hf://datasets/...`: one commit, only files of data, every byte as stated, and without the Hub from the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.errors import UsageError
from adapterhub.remote.address import HubAddress, parse_address
from tests.cli.calling import Said, run
from tests.remote.conftest import Machine
from tests.remote.hub_server import Fault, HubServer

REPO = "datasets/org/talk"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
NOBODY = {"HF_ENDPOINT": "http://127.0.0.1:9"}


def lines(*numbers: int) -> bytes:
    rows = [{"instruction": f"Question {n}?", "output": f"Answer {n}."} for n in numbers]
    return "\n".join(map(json.dumps, rows)).encode()


FILES = {
    "README.md": b"# Talk",
    ".gitattributes": b"",
    "data/train-00000-of-00002.jsonl": lines(*range(20)),
    "data/train-00001-of-00002.jsonl": lines(*range(20, 40)),
    "more/extra.jsonl": lines(*range(40, 50)),
}


def report(machine: Machine, address: str, **environment: str) -> Said:
    return run(
        "data", "report", address, "--json", timeout=120, **{**machine.settings, **environment}
    )


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hf://datasets/org/talk", HubAddress("org/talk", kind="dataset")),
        ("hf://datasets/org/talk@v1/data/a.json", HubAddress("org/talk", "v1", "data/a.json", "dataset")),
        ("hf://datasets/squad", HubAddress("squad", kind="dataset")),
    ],
)  # fmt: skip
def test_an_address_of_data_means_one_place(text: str, meant: HubAddress) -> None:
    assert parse_address(text, "dataset") == meant
    assert str(meant) == text
    assert meant.command == f"adapterhub data report {text}"


@pytest.mark.parametrize("text", ["hf://org/talk", "hf://datasets", "hf://datasets/org/talk/../x"])
def test_what_is_no_address_of_data_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text, "dataset")
    assert "hf://datasets/org/name@revision/path" in caught.value.hint


def test_the_data_of_one_commit_are_read_and_nothing_else_is_fetched(
    machine: Machine, hub: HubServer
) -> None:
    commit = hub.push(REPO, FILES)
    found = report(machine, "hf://datasets/org/talk")
    assert found.code == 0, found.err
    assert found.json["rows"] == 50
    assert [file["source"] for file in found.json["files"]] == [
        f"hf://datasets/org/talk@{commit}/{name}" for name in FILES if name.endswith(".jsonl")
    ]
    fetched = {asked.what.rpartition("/")[2] for asked in hub.requests("GET */resolve/*")}
    assert fetched == {Path(name).name for name in FILES if name.endswith(".jsonl")}


def test_a_path_in_the_repository_is_a_folder_or_a_file(machine: Machine, hub: HubServer) -> None:
    hub.push(REPO, FILES, "main", "v1")
    assert report(machine, "hf://datasets/org/talk@v1/more").json["rows"] == 10
    one = report(machine, "hf://datasets/org/talk/data/train-00001-of-00002.jsonl")
    assert one.json["rows"] == 20
    absent = report(machine, "hf://datasets/org/talk/absent")
    assert absent.code == 4
    assert "hf://datasets/org/talk/absent is not there" in absent.error["what"]
    unknown = report(machine, "hf://datasets/org/talk@v2")
    assert "adapterhub data report hf://datasets/org/talk" in unknown.error["hint"]


@pytest.mark.parametrize("without", [OFFLINE, NOBODY], ids=["offline", "unreachable"])
def test_without_the_hub_the_cache_has_the_same_rows(
    machine: Machine, hub: HubServer, without: dict[str, str]
) -> None:
    hub.push(REPO, FILES)
    first = report(machine, "hf://datasets/org/talk")
    again = report(machine, "hf://datasets/org/talk", **without)
    assert again.json == first.json
    assert "taken from the Hugging Face cache" in again.err
    never = report(machine, "hf://datasets/org/never", **OFFLINE)
    assert never.code == 4
    assert "HF_HUB_OFFLINE=0 adapterhub data report" in never.error["hint"]


def test_wrong_bytes_in_the_cache_are_fetched_again_and_never_read(
    machine: Machine, hub: HubServer
) -> None:
    commit = hub.push(REPO, FILES)
    assert report(machine, "hf://datasets/org/talk/more").code == 0
    place = machine.cache / "datasets--org--talk" / "snapshots" / commit / "more" / "extra.jsonl"
    place.resolve().write_bytes(lines(1))
    offline = report(machine, "hf://datasets/org/talk/more", **OFFLINE)
    assert "not what its digest says" in offline.error["what"]
    mended = report(machine, "hf://datasets/org/talk/more")
    assert mended.json["rows"] == 10
    assert "it is fetched again" in mended.err
    hub.push(REPO, {"x.jsonl": lines(1, 2, 3)})
    hub.fault("GET */x.jsonl", Fault(other=lines(1, 2, 4)))
    lied = report(machine, "hf://datasets/org/talk")
    assert "not what its digest says" in lied.error["what"]
