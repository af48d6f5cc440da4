"""An export that was cut short: its finished shards are kept, known again, and the rest is done, to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.base import read_base
from adapterhub.errors import AdapterHubError, ConflictError, FormatError, OutOfSpaceError
from adapterhub.merge.run import Resources
from tests.export.conftest import Bar
from tests.export.test_whole_or_nothing import Usage, breaking, listing

if TYPE_CHECKING:
    from pathlib import Path

    from adapterhub.store import Resolved
    from tests.export.conftest import Exporter
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "out" / "model"


@pytest.fixture
def partial(into: Path) -> Path:
    return into.parent / ".model.partial"


@pytest.fixture
def base(tiny: ModelMaker) -> Path:
    return tiny.llama(sharded=True)


@pytest.fixture
def adapter(exporter: Exporter, make_adapter: AdapterMaker) -> Resolved:
    return exporter.add(make_adapter())


@pytest.fixture
def expected(exporter: Exporter, adapter: Resolved, base: Path) -> dict[str, bytes]:
    """What an export that nothing disturbs writes."""
    return listing(exporter([adapter], base).folder)


def events(exporter: Exporter) -> list[dict[str, Any]]:
    """Of the latest run."""
    latest = max(exporter.store.runs_dir.iterdir(), key=lambda run: run.stat().st_mtime_ns)
    return [json.loads(line) for line in (latest / "events.jsonl").read_text().splitlines()]


def cut_short(
    exporter: Exporter, adapter: Resolved, base: Path, into: Path, error: Any = KeyboardInterrupt
) -> str:
    """Leaves an export with finished shards; returns what it said."""
    said: list[str] = []
    with pytest.raises(error if isinstance(error, type) else type(error)) as caught:
        exporter([adapter], base, into=into, progress=breaking(error, 0.7), warn=said.append)
    assert not into.exists()
    return str(caught.value) + " ".join(said)


@pytest.mark.parametrize("error", [KeyboardInterrupt, AdapterHubError("no"), MemoryError])
def test_finished_shards_are_kept_and_gone_on_with(
    exporter: Exporter,
    adapter: Resolved,
    base: Path,
    into: Path,
    partial: Path,
    expected: dict[str, bytes],
    error: Any,
) -> None:
    said = cut_short(exporter, adapter, base, into, error)
    kept = {path.name: path.stat().st_ino for path in (partial / "model").iterdir()}
    assert kept
    assert kept.keys() < {path.name for path in base.glob("*.safetensors")}
    assert f"{len(kept)} of {len(list(base.glob('*.safetensors')))} shards are kept" in said
    assert str(partial) in said
    assert "--resume" in said
    noted = json.loads((partial / "state.json").read_text())["shards"]
    assert {name: entry["size"] for name, entry in noted.items()} == {
        name: (partial / "model" / name).stat().st_size for name in kept
    }

    notes: list[str] = []
    exporter([adapter], base, into=into, resume=True, note=notes.append)
    assert notes[0].startswith(f"{len(kept)} of ")
    assert listing(into) == expected
    assert {name: (into / name).stat().st_ino for name in kept} == kept
    told = {e["name"]: e["kept"] for e in events(exporter) if e["event"] == "shard"}
    assert {name for name, there in told.items() if there} == kept.keys()
    assert told.keys() == {path.name for path in base.glob("*.safetensors")}
    assert list(into.parent.iterdir()) == [into]


def test_progress_counts_what_was_kept(
    exporter: Exporter, adapter: Resolved, base: Path, into: Path
) -> None:
    cut_short(exporter, adapter, base, into)
    bars: list[tuple[float | None, Bar]] = []

    @contextmanager
    def watched(_: str, total: float | None) -> Iterator[Bar]:
        bars.append((total, Bar(lambda _: None)))
        yield bars[-1][1]

    done = exporter([adapter], base, into=into, resume=True, progress=watched)
    assert [(total, bar.done) for total, bar in bars] == [(done.size, done.size)]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_kept_shard_that_changed_since_is_written_again(
    exporter: Exporter,
    adapter: Resolved,
    base: Path,
    into: Path,
    partial: Path,
    expected: dict[str, bytes],
    damage: str,
) -> None:
    cut_short(exporter, adapter, base, into)
    victim = min((partial / "model").iterdir())
    data = bytearray(victim.read_bytes())
    data[-5] ^= 1
    victim.unlink()
    if damage != "gone":
        victim.write_bytes(data if damage == "flipped" else data[:-1])
    said: list[str] = []
    exporter([adapter], base, into=into, resume=True, warn=said.append)
    assert victim.name in " ".join(said)
    assert listing(into) == expected


def test_what_another_export_left_is_not_gone_on_with(
    exporter: Exporter,
    adapter: Resolved,
    make_adapter: AdapterMaker,
    base: Path,
    into: Path,
    partial: Path,
) -> None:
    cut_short(exporter, adapter, base, into)
    before = listing(partial)
    other = exporter.add(make_adapter("other", seed=1))
    for adapters, weights, named in (([other], None, "adapters"), ([adapter], [0.5], "recipe")):
        with pytest.raises(ConflictError, match=named) as caught:
            exporter(adapters, base, into=into, weights=weights, resume=True)
        assert "rm -r" in caught.value.hint
    assert listing(partial) == before
    said: list[str] = []
    exporter([other], base, into=into, warn=said.append)
    assert "replaced" in " ".join(said)
    assert list(into.parent.iterdir()) == [into]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "adapterhub.partial-export/1"}'])
def test_a_state_that_says_nothing_is_no_state(
    exporter: Exporter,
    adapter: Resolved,
    base: Path,
    into: Path,
    partial: Path,
    expected: dict[str, bytes],
    text: str,
) -> None:
    cut_short(exporter, adapter, base, into)
    (partial / "state.json").write_text(text)
    said: list[str] = []
    exporter([adapter], base, into=into, resume=True, warn=said.append)
    assert "starts at the beginning" in " ".join(said)
    assert listing(into) == expected


def test_two_exports_into_one_folder(
    exporter: Exporter, adapter: Resolved, base: Path, into: Path, expected: dict[str, bytes]
) -> None:
    refused: list[ConflictError] = []

    @contextmanager
    def meanwhile(_: str, __: float | None) -> Iterator[Bar]:
        def on_advance(_: float) -> None:
            if not refused:
                for resume in (False, True):
                    with pytest.raises(ConflictError, match="Another export is writing") as caught:
                        exporter([adapter], base, into=into, resume=resume)
                    refused.append(caught.value)

        yield Bar(on_advance)

    exporter([adapter], base, into=into, progress=meanwhile)
    assert len(refused) == 2
    assert listing(into) == expected
    assert list(into.parent.iterdir()) == [into]


def test_a_folder_to_be_replaced_stays_until_the_resumed_one_is_whole(
    exporter: Exporter, adapter: Resolved, base: Path, into: Path, expected: dict[str, bytes]
) -> None:
    into.mkdir(parents=True)
    (into / "mine.txt").write_text("precious")
    with pytest.raises(KeyboardInterrupt):
        exporter(
            [adapter], base, into=into, overwrite=True, progress=breaking(KeyboardInterrupt, 0.7)
        )
    assert listing(into) == {"mine.txt": b"precious"}
    exporter([adapter], base, into=into, overwrite=True, resume=True)
    assert listing(into) == expected


# The disk


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """mount(options) -> a file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()

    def make(options: str) -> Path:
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(words, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        return place

    yield make
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_really_fills_up_keeps_what_is_whole(
    exporter: Exporter,
    adapter: Resolved,
    base: Path,
    expected: dict[str, bytes],
    mount: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = sum(info.end - info.start for info in read_base(base).tensors.values())
    into = mount(f"size={size * 3 // 4 // 4096 * 4096}") / "model"
    with monkeypatch.context() as lying:
        lying.setattr("shutil.disk_usage", lambda _: Usage(10**9, 0, 10**9))
        with pytest.raises(OutOfSpaceError, match="no space") as caught:
            exporter([adapter], base, into=into, resources=Resources(1, 1))  # shard after shard
    assert "are kept in" in caught.value.why
    assert "--resume" in caught.value.hint
    assert not into.exists()
    subprocess.run(["mount", "-o", "remount,size=16m", str(into.parent)], check=True)
    exporter([adapter], base, into=into, resume=True)
    assert listing(into) == expected


def test_what_is_there_already_needs_no_more_space(
    exporter: Exporter,
    adapter: Resolved,
    base: Path,
    into: Path,
    partial: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_short(exporter, adapter, base, into)
    there = sum(p.stat().st_blocks * 512 for p in partial.rglob("*") if p.is_file())
    needed = sum(path.stat().st_size for path in base.iterdir() if "index" not in path.name)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**9, 0, needed - there - 1))
    with pytest.raises(OutOfSpaceError, match="There is no space"):
        exporter([adapter], base, into=into, resume=True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**9, 0, needed - there))
    exporter([adapter], base, into=into, resume=True)


def test_a_target_on_a_read_only_disk(
    exporter: Exporter, adapter: Resolved, base: Path, mount: Callable[[str], Path]
) -> None:
    place = mount("ro")
    with pytest.raises(AdapterHubError, match="read-only") as caught:
        exporter([adapter], base, into=place / "model")
    assert "-o DIR" in caught.value.hint


# The base


@pytest.fixture
def own_base(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "base")


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_base_that_is_cut_short_meanwhile(
    exporter: Exporter,
    adapter: Resolved,
    own_base: Path,
    into: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_kernel: bool,
) -> None:
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range")
    last = max(own_base.glob("*.safetensors"))

    @contextmanager
    def cutting(what: str, _: float | None) -> Iterator[Bar]:
        os.truncate(last, last.stat().st_size // 2)
        yield Bar(lambda _: None)

    with pytest.raises(FormatError, match=rf"{last.name} ends at byte"):
        exporter([adapter], own_base, into=into, progress=cutting)
    assert not into.exists()


def test_a_base_that_is_cut_short_before(
    exporter: Exporter, adapter: Resolved, own_base: Path, into: Path
) -> None:
    last = max(own_base.glob("*.safetensors"))
    os.truncate(last, last.stat().st_size - 1)
    with pytest.raises(FormatError, match="truncated"):
        exporter([adapter], own_base, into=into)
    assert not into.parent.exists()


def test_a_base_whose_index_leads_astray(
    exporter: Exporter, adapter: Resolved, own_base: Path, into: Path
) -> None:
    path = own_base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = sorted(index["weight_map"])
    other = next(n for n in names if index["weight_map"][n] != index["weight_map"][names[0]])
    index["weight_map"][names[0]] = index["weight_map"][other]
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match="index"):
        exporter([adapter], own_base, into=into)
    assert not into.parent.exists()
