"""When the Hub refuses, breaks off or sends something else: nothing is stored, and the error says what, why and what to type."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import pytest

from adapterhub.remote.refusals import asked_to_wait
from tests.remote.conftest import TOKEN, Machine
from tests.remote.hub_server import SIGNATURE, Fault, HubServer, git_id, sha256
from tests.store.watching import problems, unchanged

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LOOK_UP, HEAD, SMALL, LARGE = (
    "GET /api/models/*",
    "HEAD */resolve/*",
    "GET */resolve/*",
    "GET */storage/*",
)


@dataclass(frozen=True)
class Case:
    """What goes wrong for good, and what is then said."""

    where: str
    fault: Fault
    code: int
    words: tuple[str, ...]


HOUR = {"Retry-After": "3600"}
CASES = {
    "no repository": Case(
        LOOK_UP,
        Fault(404, "RepoNotFound", "Repository not found"),
        4,
        ("no repository org/tone", "your token may not see it", "hf auth login"),
    ),
    "private": Case(
        LOOK_UP, Fault(401, "RepoNotFound"), 4, ("no repository org/tone", "hf auth login")
    ),
    "no revision": Case(
        LOOK_UP,
        Fault(404, "RevisionNotFound"),
        4,
        ("org/tone has no revision v9", "adapterhub add hf://org/tone"),
    ),
    "bad token": Case(
        LOOK_UP,
        Fault(401, message=f"Invalid credentials in Authorization header: {TOKEN}"),
        1,
        ("doesn't accept your token", "<token>", "hf auth login"),
    ),
    "forbidden": Case(
        HEAD, Fault(403, message="no read right"), 1, ("doesn't let you read", "hf auth login")
    ),
    "gated": Case(
        HEAD, Fault(403, "GatedRepo"), 1, ("org/tone is gated", "not on the list", "/org/tone,")
    ),
    "disabled": Case(
        HEAD, Fault(403, message="Access to this resource is disabled."), 1, ("has disabled",)
    ),
    "busy for an hour at the look-up": Case(
        LOOK_UP, Fault(429, headers=HOUR), 1, ("too many requests", "wait 3600 seconds")
    ),
    "busy for an hour at the file": Case(
        HEAD, Fault(429, headers=HOUR), 1, ("too many requests", "wait 3600 seconds")
    ),
    "busy for an hour at the storage": Case(
        LARGE, Fault(429, headers=HOUR), 1, ("too many requests", "wait 3600 seconds")
    ),
    "busy in the Hub's own words": Case(
        LOOK_UP,
        Fault(429, headers={"RateLimit": '"api";r=0;t=240', "Retry-After": "1"}),
        1,
        ("wait 240 seconds",),
    ),
    "broken at the look-up": Case(
        LOOK_UP, Fault(500, message="oh dear"), 1, ("can't answer now (500)", "oh dear")
    ),
    "broken at the storage": Case(
        LARGE,
        Fault(503),
        1,
        ("can't answer now (503)", WEIGHTS, "same command again", "are kept"),
    ),
    "listed but not there": Case(SMALL, Fault(404, "EntryNotFound"), 1, ("refuses (404)", CONFIG)),
    "not a Hub": Case(
        LOOK_UP, Fault(other=b"<html>Welcome</html>"), 1, ("as the Hub does", "HF_ENDPOINT")
    ),
    "half a Hub": Case(
        LOOK_UP,
        Fault(other=b'{"id": "org/tone", "siblings": []}'),
        1,
        ("as the Hub does", "HF_ENDPOINT"),
    ),
    "a Hub of other kinds": Case(
        LOOK_UP,
        Fault(other=b'{"id": "org/tone", "siblings": [{"name": 3}]}'),
        1,
        ("as the Hub does", "HF_ENDPOINT"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_refusal_stores_nothing_and_says_what_to_do(
    case: Case, machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    hub.push("org/tone", adapter, "v9")
    hub.fault(case.where, case.fault)
    with unchanged(machine.home):
        said = machine.add("hf://org/tone@v9", "--json")
    assert said.code == case.code
    error = said.error
    assert all(error[part] for part in ("what", "why", "hint")), error
    whole = f"{error['what']} {error['why']} {error['hint']}"
    assert [words for words in case.words if words not in whole] == []
    assert TOKEN not in said.out + said.err
    assert SIGNATURE not in said.out + said.err
    assert len(hub.requests()) < 20

    hub.heal()  # and the same command works once the fault is gone
    assert machine.add("hf://org/tone@v9").code == 0


def test_without_a_token_the_words_are_others(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    hub.repos["org/tone"].gated = True
    with unchanged(machine.home):
        assert "You are not logged in" in machine.add("hf://org/tone", HF_TOKEN="").err
        assert "you are not logged in" in machine.add("hf://org/none", HF_TOKEN="").err


def test_no_token_is_in_a_traceback(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    hub.fault(HEAD, Fault(401, message=f"Bearer {TOKEN} is not valid"))
    said = machine.add("hf://org/tone", "--debug")
    assert "Traceback" in said.err
    assert TOKEN not in said.out + said.err


@pytest.mark.parametrize("where", [LOOK_UP, HEAD, LARGE])
def test_a_busy_hub_is_waited_for(
    where: str, machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    hub.fault(where, Fault(429, headers={"Retry-After": "1"}), times=2)
    said = machine.add("hf://org/tone")
    assert said.code == 0
    assert "the Hub asks to wait 1 seconds" in said.err
    assert machine.stored("org/tone") == adapter


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "12"}, 12),
        ({"ratelimit": '"api";r=0;t=55', "retry-after": "12"}, 55),
        ({"ratelimit": '"api";r=3;t=55', "retry-after": "12"}, 12),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_how_long_a_busy_hub_asks_to_wait(headers: dict[str, str], seconds: int | None) -> None:
    assert asked_to_wait(headers) == seconds


def test_a_hub_that_stays_busy_is_given_up(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    hub.fault(LOOK_UP, Fault(429, headers={"Retry-After": "0"}))
    with unchanged(machine.home):
        said = machine.add("hf://org/tone")
    assert said.code == 1
    assert "too many requests" in said.err
    assert 2 <= len(hub.requests(LOOK_UP)) <= 6


@pytest.mark.parametrize("where", [LOOK_UP, HEAD, SMALL, LARGE])
def test_a_fault_that_passes_is_not_even_noticed(
    where: str, machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    hub.fault(where, Fault(502), times=1)
    assert machine.add("hf://org/tone").code == 0
    assert machine.stored("org/tone") == adapter


@pytest.mark.slow
def test_a_hub_that_is_down_for_every_file_is_given_up(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    hub.fault(HEAD, Fault(503))
    with unchanged(machine.home):
        said = machine.add("hf://org/tone")
    assert said.code == 1
    assert "can't answer now (503)" in said.err
    assert len(hub.requests(HEAD)) < 20


@pytest.mark.parametrize(
    ("endpoint", "code", "words"),
    [
        ("http://127.0.0.1:9", 1, "can't be reached"),
        ("http://someone:secret@127.0.0.1:9", 1, "127.0.0.1:9 can't be reached"),
        ("no-scheme.example", 2, "no address of a server"),
    ],
)
def test_a_hub_that_is_not_there_is_said_to_be_so(
    endpoint: str, code: int, words: str, machine: Machine
) -> None:
    with unchanged(machine.home):
        said = machine.add("hf://org/tone", HF_ENDPOINT=endpoint)
    assert said.code == code
    assert words in said.err
    assert "secret" not in said.err


def test_a_cache_that_cannot_be_written_is_named(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    with unchanged(machine.home):
        said = machine.add("hf://org/tone", HF_HUB_CACHE="/dev/null/cache")
    assert said.code == 1
    assert "/dev/null" in said.err
    assert "not a directory" in said.err


# Other bytes than stated


def spoiled(data: bytes) -> bytes:
    """Other bytes of the same length, which a check of the size lets through."""
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(("path", "where"), [(WEIGHTS, LARGE), (CONFIG, SMALL)])
def test_wrong_bytes_are_fetched_again_once(
    path: str, where: str, machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    hub.fault(where, Fault(other=spoiled(adapter[path])), times=1)
    said = machine.add("hf://org/tone")
    assert said.code == 0
    assert f"{path} in the cache isn't what the Hub states; it is fetched again" in said.err
    assert machine.stored("org/tone") == adapter
    assert problems(machine.home) == []


@pytest.mark.parametrize(("path", "where"), [(WEIGHTS, LARGE), (CONFIG, SMALL)])
def test_wrong_bytes_twice_are_refused_and_nothing_is_stored(
    path: str, where: str, machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    wrong = spoiled(adapter[path])
    hub.fault(where, Fault(other=wrong))
    name = sha256 if path == WEIGHTS else git_id
    with unchanged(machine.home):
        said = machine.add("hf://org/tone")
    assert said.code == 1
    assert path in said.err
    assert name(adapter[path]) in said.err
    assert name(wrong) in said.err
    assert "/org/tone/discussions" in said.err
    assert len(hub.requests(where)) == 2


def test_bytes_that_went_bad_in_the_cache_are_fetched_again(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    machine.added("hf://org/tone")
    blob = machine.cache / "models--org--tone/blobs" / sha256(adapter[WEIGHTS])
    blob.write_bytes(spoiled(adapter[WEIGHTS]))
    with unchanged(machine.home):
        assert machine.added("hf://org/tone")["created"] is False
    assert blob.read_bytes() == adapter[WEIGHTS]
    assert len(hub.requests(LARGE)) == 2


def test_more_or_less_than_announced_is_given_up(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    hub.fault(SMALL, Fault(other=adapter[CONFIG] + b" "))
    with unchanged(machine.home):
        said = machine.add("hf://org/tone")
    assert said.code == 1
    assert "shorter or longer than announced" in said.err
    assert len(hub.requests(SMALL)) < 10


# A connection that is cut


def test_a_cut_connection_goes_on_where_it_stopped(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    """Half of a file that comes in several pieces is kept: the rest is asked for with Range."""
    large = bytes(range(256)) * 4096 * 24
    hub.push("org/tone", {**adapter, "extra.safetensors": large})
    hub.fault("GET */storage/*/extra.safetensors", Fault(cut=0.5), times=1)
    assert machine.add("hf://org/tone").code == 0
    assert machine.stored("org/tone")["extra.safetensors"] == large
    first, second = hub.requests("GET */storage/*/extra.safetensors")
    assert "range" not in {key.lower() for key in first.headers}
    (wanted,) = [value for key, value in second.headers.items() if key.lower() == "range"]
    assert 0 < int(wanted.removeprefix("bytes=").removesuffix("-")) <= len(large) // 2


def test_a_connection_that_is_reset_is_made_again(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    hub.fault(LARGE, Fault(cut=0.5, reset=True), times=2)
    assert machine.add("hf://org/tone").code == 0
    assert machine.stored("org/tone") == adapter
    assert len(hub.requests(LARGE)) == 3


@pytest.mark.slow
def test_a_connection_that_is_always_cut_is_given_up_and_the_same_command_goes_on(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    hub.push("org/tone", adapter)
    hub.fault(LARGE, Fault(cut=0.5))
    with unchanged(machine.home):
        said = machine.add("hf://org/tone")
    assert said.code == 1
    assert "broke again and again" in said.err
    assert "Run the same command again" in said.err
    assert len(hub.requests(LARGE)) < 20
    assert list(machine.cache.rglob("*.incomplete")) == []
    hub.heal()
    assert machine.add("hf://org/tone").code == 0
    assert machine.stored("org/tone") == adapter
    assert len(hub.requests(SMALL)) == 1  # the configuration was kept


# A repository without what was asked for


def test_the_adapters_elsewhere_in_the_repository_are_commands_to_type(
    machine: Machine, hub: HubServer, adapter: dict[str, bytes]
) -> None:
    folders = ("checkpoint-9", "checkpoint-10", "a b")
    hub.push(
        "org/tone",
        {f"{folder}/{path}": data for folder in folders for path, data in adapter.items()},
        "main",
        "v1",
    )
    with unchanged(machine.home):
        said = machine.add("hf://org/tone@v1")
        missing = machine.add("hf://org/tone@v1/nowhere")
    assert (said.code, missing.code) == (4, 4)
    assert "org/tone has no folder nowhere" in missing.err
    commands = [line.strip() for line in said.err.splitlines() if "adapterhub add" in line]
    assert commands == [
        "adapterhub add 'hf://org/tone@v1/a b'",
        "adapterhub add hf://org/tone@v1/checkpoint-9",
        "adapterhub add hf://org/tone@v1/checkpoint-10",
    ]
    for command in commands:
        assert machine.add(*shlex.split(command)[2:]).code == 0
    assert hub.requests(LARGE)


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({}, 4, "is empty"),
        ({"config.json": b"{}", "model.safetensors": b""}, 4, "looks like a whole model"),
        ({"README.md": b"soon"}, 4, "Nor is there an adapter elsewhere"),
        ({CONFIG: b"{}"}, 4, f"no {WEIGHTS}"),
        ({CONFIG: b"{}", "adapter_model.bin": b"\x80"}, 1, "adapterhub convert org-tone --name"),
        ({CONFIG: b"{}", WEIGHTS: b"", "../evil": b""}, 1, "can't be kept on every system"),
    ],
    ids=["empty", "a model", "a card", "half", "a pickle", "hostile"],
)
def test_a_repository_without_a_usable_adapter_is_refused_before_anything_is_fetched(
    files: dict[str, bytes], code: int, words: str, machine: Machine, hub: HubServer
) -> None:
    hub.push("org/tone", files)
    with unchanged(machine.home):
        said = machine.add("hf://org/tone")
    assert said.code == code
    assert words in said.err
    assert hub.requests("* */resolve/*") == []
