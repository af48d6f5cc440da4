"""Runs are read from their events, whatever was left of them, and jobs are runs in processes of their own."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapterhub import handover
from adapterhub.alive import worker
from adapterhub.errors import AdapterHubError, ConflictError, NotFoundError, StoreLockedError
from adapterhub.jobs import Job, start, stop
from adapterhub.process import HERE
from adapterhub.progress import Told
from adapterhub.runs import (
    EVENTS,
    OUTPUT,
    Follower,
    Run,
    RunRecord,
    all_runs,
    find_run,
    read_run,
    running,
    runs_stamp,
)
from adapterhub.store import Store
from adapterhub.telling import sentence
from tests.cli.calling import run as run_program
from tests.cli.calling import wait_until
from tests.store.watching import left_over, listing
from tests.support.adapters import AdapterMaker

WIDE = {f"model.layers.{layer}.self_attn.q_proj": (1024, 1024) for layer in range(40)}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "home" / "runs"


@pytest.fixture
def pair(store: Store, make_adapter: AdapterMaker) -> Store:
    """A store with two adapters that take seconds to merge element by element."""
    for seed, name in enumerate("ab"):
        store.add_folder(make_adapter(name, rank=16, modules=WIDE, seed=seed), name=name)
    return store


def told(path: Path) -> list[dict[str, Any]]:
    return Follower(path).new()


def begin(store: Store, *words: str, title: str = "Work") -> Job:
    return start(store.runs_dir, words, kind=words[0], title=title, home=store.home)


def ended(job: Job, seconds: float = 60) -> RunRecord:
    job.process.wait(seconds)
    return read_run(job.run.path)


SLOW = ("merge", "a", "b", "--method", "ties", "--name", "both", "--workers", "1")


# What is recorded, and read


def test_a_run_tells_what_it_is_while_it_runs_and_how_it_ended(runs: Path) -> None:
    with running(runs, "merge", {"name": "both"}) as run:
        found = read_run(run.path)
        assert (found.state, found.kind, found.pid) == ("running", "merge", os.getpid())
        assert found.title == "Merge both"
        run.event("stored", name="both", digest="sha256:1")
    (found,) = all_runs(runs)
    assert (found.state, found.pid, found.error) == ("done", None, None)
    assert found.result == {"name": "both", "digest": "sha256:1"}
    assert found.began <= str(found.ended)


def test_an_error_keeps_its_parts_and_an_interrupt_is_none(runs: Path) -> None:
    with pytest.raises(NotFoundError), running(runs, "merge", {}):
        raise NotFoundError("There is no a.", why="Did you mean b?", hint="adapterhub ls")
    with pytest.raises(KeyboardInterrupt), running(runs, "merge", {}):
        raise KeyboardInterrupt
    states = {run.state: run.error for run in all_runs(runs)}
    assert states["interrupted"] is None
    assert states["failed"] == {
        "what": "There is no a.",
        "why": "Did you mean b?",
        "hint": "adapterhub ls",
    }


def test_a_run_of_before_pids_and_words_is_still_read(runs: Path) -> None:
    folder = runs / "export-20260101-120000-abcdef"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"folder": "out", "recipe": {}}))
    lines = (
        {"time": "2026-01-01T12:00:00.000+00:00", "event": "started", "kind": "export"},
        {"time": "2026-01-01T12:01:00.000+00:00", "event": "failed", "error": "No.\nWhy.\nHint."},
    )
    (folder / EVENTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = all_runs(runs)
    assert (found.title, found.command, found.result) == ("Export out", (), {"folder": "out"})
    assert found.error == {"what": "No.", "why": "Why.\nHint.", "hint": ""}
    assert found.ended == "2026-01-01T12:01:00.000+00:00"


def test_a_run_that_nobody_works_on_and_that_has_no_outcome_has_died(runs: Path) -> None:
    run = Run.create(runs, "train", {})
    assert read_run(run.path).state == "died"


@pytest.mark.parametrize("rest", [b'{"time": "2026', b"\n", b"\xff\xfe\n", b"[1]\n", b"nothing"])
def test_a_torn_line_is_no_error_and_hides_nothing_before_it(runs: Path, rest: bytes) -> None:
    with running(runs, "merge", {}) as run:
        run.event("stored", name="a")
    with (run.path / EVENTS).open("ab") as file:
        file.write(rest)
    assert read_run(run.path).state == "done"
    assert [event["event"] for event in told(run.path)] == ["started", "stored", "done"]


def test_what_is_no_run_is_left_out(runs: Path) -> None:
    with running(runs, "merge", {}) as run:
        pass
    (runs / "notes.txt").write_text("mine")
    (runs / "empty").mkdir()
    (runs / "folder" / EVENTS).mkdir(parents=True)
    (runs / "pipe").mkdir()
    os.mkfifo(runs / "pipe" / EVENTS)  # opening it would wait for ever
    (runs / "strange").mkdir()
    (runs / "strange" / EVENTS).write_text('{"event": ["?"], "time": 3}\n{"event": "progress"}\n')
    assert [found.id for found in all_runs(runs)] == [run.id, "strange"]
    with pytest.raises(NotFoundError, match=r"no run empty"):
        read_run(runs / "empty")
    assert all_runs(runs / "nowhere") == []


def test_only_the_ends_of_ten_thousand_events_are_read(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0

    def counted(descriptor: int, count: int, at: int) -> bytes:
        nonlocal read
        data = original(descriptor, count, at)
        read += len(data)
        return data

    original = os.pread
    monkeypatch.setattr("os.pread", counted)
    run = Run.create(runs, "train", {"name": "tone"})
    line = json.dumps({"event": "step", "step": 1, "loss": 1.5, "filling": "x" * 100}) + "\n"
    with (run.path / EVENTS).open("a") as file:
        file.write(line * 10_000)
    Told(_Nothing(), "training", 50)  # nobody listens: no run is being worked on
    with HERE.working_on(run):
        Told(_Nothing(), "training", 50).advance(7)
    run.finish("done", result={"name": "tone"})
    found = read_run(run.path)
    assert (found.state, found.kind, found.result) == ("done", "train", {"name": "tone"})
    assert found.progress is not None
    assert found.progress.total == 50
    assert read < 100_000 < (run.path / EVENTS).stat().st_size


def test_an_event_longer_than_what_is_read_at_first_is_found(runs: Path) -> None:
    with running(runs, "serve", {}) as run:
        run.event("verified", report="x" * 300_000)
    with (run.path / EVENTS).open("ab") as file:
        file.write(b'{"event": "verified", "report": "' + b"y" * 100_000)  # and one that was cut
    assert read_run(run.path).state == "done"


class _Nothing:
    def advance(self, amount: float = 1, **status: object) -> None: ...
    def update(self, text: str) -> None: ...


def test_two_hundred_runs_are_read_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        with running(runs, "merge", {"name": f"n{number}"}) as run:
            run.event("stored", name=f"n{number}")
    assert len(all_runs(runs)) == 200
    stamp = runs_stamp(runs)
    monkeypatch.setattr("os.pread", None)  # whatever is read from here on would fail
    assert len({found.title for found in all_runs(runs)}) == 200
    assert runs_stamp(runs) == stamp


def test_the_stamp_changes_when_a_run_begins_writes_ends_and_dies(runs: Path) -> None:
    seen = [runs_stamp(runs)]
    with running(runs, "merge", {}) as run:
        seen.append(runs_stamp(runs))
        run.event("stored")
        seen.append(runs_stamp(runs))
    seen.append(runs_stamp(runs))
    dying = Run.create(runs, "train", {})
    with _held(dying):
        seen.append(runs_stamp(runs))
    seen.append(runs_stamp(runs))
    assert len(set(map(str, seen))) == len(seen)


@contextmanager
def _held(run: Run) -> Iterator[None]:
    descriptor = os.open(run.path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def test_a_follower_gets_whole_lines_once_and_starts_again_in_a_new_file(runs: Path) -> None:
    run = Run.create(runs, "train", {})
    follower = Follower(run.path)
    assert [event["event"] for event in follower.new()] == ["started"]
    assert follower.new() == []
    with (run.path / EVENTS).open("ab") as file:
        file.write(b'{"event": "st')
        file.flush()
        assert follower.new() == []
        file.write(b'ep"}\n')
    assert follower.new() == [{"event": "step"}]
    (run.path / EVENTS).write_text('{"event": "anew"}\n')
    assert follower.new() == [{"event": "anew"}]
    (run.path / EVENTS).unlink()
    assert follower.new() == []


def test_readers_never_keep_anybody_from_going_on_with_a_run(runs: Path) -> None:
    run = Run.create(runs, "train", {})
    reader = os.open(run.path, os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)  # as long as a look takes
    try:
        with (
            pytest.raises(StoreLockedError, match="worked on"),
            running(runs, "train", {}, again=run),
        ):
            pass
    finally:
        os.close(reader)
    code = (
        "import fcntl, os, sys, time; f = os.open(sys.argv[1], 0); fcntl.flock(f, fcntl.LOCK_SH);"
        "print(flush=True); time.sleep(0.05)"
    )
    looking = subprocess.Popen([sys.executable, "-c", code, run.path], stdout=subprocess.PIPE)
    with looking:
        assert looking.stdout
        looking.stdout.readline()
        with running(runs, "train", {}, again=run):
            pass
    assert read_run(run.path).state == "done"


def test_a_run_that_is_gone_on_with_runs_again(runs: Path) -> None:
    with pytest.raises(KeyboardInterrupt), running(runs, "train", {}) as run:
        raise KeyboardInterrupt
    with running(runs, "train", {}, again=run):
        found = read_run(run.path)
        assert (found.state, found.pid) == ("running", os.getpid())
    assert [found.state for found in all_runs(runs)] == ["done"]


# Jobs


def test_a_job_is_a_run_with_its_words_its_progress_and_its_result(pair: Store) -> None:
    job = begin(pair, *SLOW, title="Merge a and b")
    assert wait_until(lambda: read_run(job.run.path).progress is not None)
    found = read_run(job.run.path)
    assert (found.state, found.pid) == ("running", job.process.pid)
    found = ended(job)
    both = pair.resolve("both")
    assert (found.state, found.title, found.command) == ("done", "Merge a and b", SLOW)
    assert (found.result["name"], found.result["digest"]) == ("both", both.digest)
    whole = json.loads((job.run.path / handover.RESULT).read_text())
    assert whole["digest"] == both.digest
    assert "parents" in whole, "the record is whole, the event has only what is short"
    events = told(job.run.path)
    bars = [event for event in events if event["event"] == "progress"]
    merging = [event for event in bars if event["what"] == "Merging (ties)"]
    assert {event["total"] for event in merging} == {len(WIDE)}
    assert merging[-1]["done"] == len(WIDE)
    assert len(events) < 60, "it tells often enough, and no more"
    assert len(all_runs(pair.runs_dir)) == 1
    assert [event["event"] for event in events].count("done") == 1


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("merge", "a", "nobody"), "no adapter named nobody"),
        (("merge", "a", "--no-such"), "No such option"),
        (("nothing", "at", "all"), "No such command"),
    ],
    ids=["a refusal", "a wrong option", "an unknown command"],
)
def test_a_refusal_before_any_work_is_told(
    store: Store, make_adapter: AdapterMaker, words: tuple[str, ...], what: str
) -> None:
    store.add_folder(make_adapter("a"), name="a")
    found = ended(begin(store, *words))
    assert found.state == "failed"
    assert found.error is not None
    assert what in found.error["what"]
    assert found.error["hint"]
    assert found.error["what"] in (found.path / OUTPUT).read_text(), "and its output says so, too"


def test_a_command_that_records_no_run_by_itself_is_a_job_too(
    store: Store, make_adapter: AdapterMaker
) -> None:
    store.add_folder(make_adapter("a"), name="a")
    found = ended(begin(store, "tag", "a", "a:prod"))
    assert (found.state, found.kind, found.result["name"]) == ("done", "tag", "a:prod")
    assert str(store.resolve("a:prod").label) == "a:prod"


def test_a_job_that_is_stopped_leaves_the_store_as_it_was(pair: Store) -> None:
    before = listing(pair.home / "store")
    job = begin(pair, *SLOW)
    assert wait_until(lambda: read_run(job.run.path).progress is not None)
    stop(read_run(job.run.path))
    found = ended(job)
    assert found.state == "interrupted"
    assert found.error is not None
    assert "store is as it was" in found.error["why"]
    assert listing(pair.home / "store") == before
    assert not left_over(pair.home)
    with pytest.raises(ConflictError, match="not running"):
        stop(found)


def test_a_job_that_is_stopped_before_it_has_begun_was_interrupted(store: Store) -> None:
    job = begin(store, "merge", "a", "b")
    stop(read_run(job.run.path))
    assert ended(job).state == "interrupted"


def test_a_job_that_is_killed_has_died(pair: Store) -> None:
    job = begin(pair, *SLOW)
    assert wait_until(lambda: read_run(job.run.path).progress is not None)
    stamp = runs_stamp(pair.runs_dir)
    job.process.kill()
    found = ended(job)
    assert (found.state, found.pid, found.error) == ("died", None, None)
    assert found.progress is not None, "how far it had come is still known"
    assert runs_stamp(pair.runs_dir) != stamp


def test_a_job_goes_on_when_whoever_started_it_is_gone(pair: Store) -> None:
    code = (
        "import sys; from pathlib import Path; from adapterhub.jobs import start;"
        "print(start(Path(sys.argv[1]), sys.argv[2:], kind='merge', title='').run.path)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, pair.runs_dir, *SLOW], capture_output=True, check=True
    )
    path = Path(done.stdout.decode().strip())
    assert read_run(path).state == "running"
    assert wait_until(lambda: read_run(path).state != "running")
    assert read_run(path).state == "done"


def test_a_home_that_cannot_be_written_refuses_in_words(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("adapterhub.runs.make_directory", refuse)
    with pytest.raises(AdapterHubError, match="read-only"):
        start(runs, ["gc"], kind="gc", title="")


def test_what_the_process_starts_does_not_hold_the_run(runs: Path, tmp_path: Path) -> None:
    run = Run.folder(runs, "test")
    lock = os.open(run.path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    code = (
        "import subprocess, sys; from adapterhub.handover import taken_over\n"
        "with taken_over():\n"
        "  child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'],"
        " close_fds=False, stdin=subprocess.PIPE, start_new_session=True)\n"
        "  print(child.pid, flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, handover.VARIABLE: f"{run.path}:{lock}"},
        pass_fds=[lock],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        os.close(lock)
        assert process.stdout
        grandchild = int(process.stdout.readline())
        assert Path(f"/proc/{grandchild}").exists()
        run.event("started", kind="test")
        assert read_run(run.path).state == "running"
        process.kill()
        process.wait()
        assert read_run(run.path).state == "died"


def test_a_variable_that_names_another_folder_is_not_believed(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.folder(runs, "test")
    for said in (f"{run.path}:0", f"{run.path}:x", str(run.path), f"{run.path}:9999999999999"):
        monkeypatch.setenv(handover.VARIABLE, said)
        with handover.taken_over() as given:
            assert given is None
    assert not (run.path / EVENTS).exists()


def test_a_process_of_another_machine_is_not_stopped(runs: Path) -> None:
    run = Run.folder(runs, "train")
    run.event("started", kind="train", pid=os.getpid(), host=f"not-{socket.gethostname()}")
    with _held(run):
        found = read_run(run.path)
        assert (found.state, found.pid) == ("running", None)
        with pytest.raises(ConflictError, match="can't be stopped from here"):
            stop(found)


def test_a_job_that_goes_on_with_an_older_run_is_that_run(runs: Path) -> None:
    with pytest.raises(KeyboardInterrupt), running(runs, "train", {}) as old:
        raise KeyboardInterrupt
    given = Run.folder(runs, "train")
    given.event("started", kind="train", pid=os.getpid(), host=socket.gethostname())
    HERE.given = given
    try:
        with running(runs, "train", {}, again=old):
            assert read_run(given.path).id == old.id
            assert [(one.id, one.state) for one in all_runs(runs)] == [(old.id, "running")]
    finally:
        HERE.given = None
    assert [event["event"] for event in told(given.path)] == ["started", "continued"]


def test_two_pieces_of_work_of_one_command_are_one_run(runs: Path) -> None:
    HERE.given = given = Run.folder(runs, "export")
    try:
        for kind in ("export", "quantize"):
            with running(runs, kind, {"kind": kind}) as run:
                assert run.id == given.id
    finally:
        HERE.given = None
    assert json.loads((given.path / "recipe.json").read_text()) == {"kind": "export"}
    (part,) = told(given.path)
    assert (part["event"], part["kind"]) == ("part", "quantize")


# What hostile or broken events, a full disk and other people's processes do


def written(runs: Path, name: str, *lines: dict[str, Any]) -> Path:
    """A run of somebody else's making."""
    (runs / name).mkdir(parents=True)
    (runs / name / EVENTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return runs / name


@pytest.mark.parametrize("id_", ["a/b", "..", ".", "", "a\0b", "/etc", "x" * 5000, 3, "\ud800"])
def test_an_id_that_leads_elsewhere_is_not_followed(runs: Path, id_: Any) -> None:
    with running(runs, "merge", {}) as good:
        pass
    begun = {"event": "started", "kind": "train", "pid": 1}
    job = written(runs, "train-1", begun, {"event": "continued", "pid": 1, "job": id_})
    written(runs, "train-2", begun, {"event": "continued", "run": id_})
    written(runs.parent, "outside", {"event": "started"})
    (runs.parent / EVENTS).write_text('{"event": "started"}\n')
    found = {run.id: run for run in all_runs(runs)}
    assert set(found) == {good.id, "train-1", "train-2"}
    assert found["train-1"].output == job / OUTPUT
    assert read_run(runs / "train-2").id == "train-2"
    assert runs_stamp(runs) == runs_stamp(runs)
    with pytest.raises(NotFoundError):
        find_run(runs, str(id_))


def test_numbers_and_strings_of_events_have_bounds(runs: Path) -> None:
    path = written(
        runs,
        "export-1",
        {"event": "started", "kind": "export", "title": "t" * 10**4},
        {"event": "progress", "what": "w" * 10**4, "done": 7, "total": float("inf")},
        {"event": "progress", "what": "huge", "done": 10**400, "total": 3},
        {"event": "ready", "name": "n" * 10**4, "deep": {"a": ["x" * 10**4]}, "rate": float("nan")},
        {"event": "failed", "what": "e" * 10**4, "result": {"bytes": 10**400, "left": 2**62}},
    )
    found = read_run(path)
    assert found.progress is not None
    assert (found.progress.done, found.progress.total) == (7, None)
    assert (found.result["bytes"], found.result["left"]) == (None, 2**62)
    assert (found.result["deep"], found.result["rate"]) == (None, None)
    assert found.error is not None
    texts = (found.title, found.progress.what, found.result["name"])
    assert [len(text) for text in texts] == [500] * 3
    assert len(found.error["what"]) == 2000
    for event in told(path):
        sentence(event)
    assert sentence({"event": "ready", "seconds": float("inf")}).startswith("ready")


@pytest.mark.parametrize("which", ["started", "working"])
def test_a_disk_that_takes_no_event_starts_nothing(
    store: Store, make_adapter: AdapterMaker, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    store.add_folder(make_adapter("a"), name="a")
    processes, write = list[subprocess.Popen[bytes]](), Run.event

    def full(run: Run, what: str, /, **fields: object) -> None:
        if what == which:
            raise OSError(28, "No space left on device")
        write(run, what, **fields)

    def popen(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        made: subprocess.Popen[bytes] = original(*words, **options)
        processes.append(made)
        return made

    original: Any = subprocess.Popen
    monkeypatch.setattr(Run, "event", full)
    monkeypatch.setattr("adapterhub.jobs.subprocess.Popen", popen)
    with pytest.raises(AdapterHubError, match="could not be started") as refused:
        begin(store, "rm", "a", "--yes")
    assert "No space left" in refused.value.why
    assert [one.returncode for one in processes] == ([] if which == "started" else [-9])
    assert [str(name) for name, _ in store.refs.all()] == ["a"]
    assert list(store.runs_dir.iterdir()) == []


def test_a_command_whose_run_is_gone_is_refused(store: Store, make_adapter: AdapterMaker) -> None:
    store.add_folder(make_adapter("a"), name="a")
    said = run_program("rm", "a", "--yes", ADAPTERHUB_RUN=f"{store.runs_dir}/rm-1:0")
    assert said.code == 1
    assert "is gone" in said.err
    assert [str(name) for name, _ in store.refs.all()] == ["a"]


def test_a_number_that_another_process_has_now_is_not_stopped(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: int) -> None:
        raise AssertionError(f"{pid} is a stranger")

    one = Run.folder(runs, "train")
    one.event("started", kind="train", **{**worker(os.getpid()), "since": 2})
    monkeypatch.setattr("adapterhub.jobs.os.kill", kill)
    with _held(one):  # what the dead worker had started holds it yet
        found = read_run(one.path)
        assert (found.state, found.pid) == ("died", None)
        with pytest.raises(ConflictError, match="not running"):
            stop(found)
        one.event("continued", **worker(os.getpid()))
        assert read_run(one.path).state == "running"
        with (one.path / EVENTS).open("a") as file:
            file.write('{"event": "step"}\n' * 10_000)
        assert read_run(one.path).state == "running", "the middle of a long file says who goes on"


def test_a_result_that_cannot_be_written_fails_no_command(runs: Path) -> None:
    given = handover.Given(Run.folder(runs, "tag"))
    (given.run.path / handover.RESULT).mkdir()
    given.tell({"name": "a"}, "{}")
    given.finish(0)
    found = read_run(given.run.path)
    assert (found.state, found.result) == ("done", {"name": "a"})
