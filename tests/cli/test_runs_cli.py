"""`ps`, `logs` and `stop`: what runs and has been, in words and as JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.errors import ExitCode, NotFoundError
from adapterhub.runs import Run, all_runs, running
from adapterhub.store import Store
from tests.cli.calling import call, run, start, wait_until
from tests.support.adapters import AdapterMaker

WIDE = {f"model.layers.{layer}.self_attn.q_proj": (1024, 1024) for layer in range(40)}


@pytest.fixture
def ended(store: Store) -> Run:
    """A merge that is over, with something on every line."""
    with running(store.runs_dir, "merge", {"name": "desk/both"}) as run:
        run.event("progress", what="Merging", done=3, total=9, unit="")
        run.event("stored", name="desk/both", digest="sha256:" + "ab" * 32, energy_kept=0.5)
    return run


def test_nothing_is_said_to_run_where_nothing_does(store: Store) -> None:
    assert call("ps").out == ""
    assert "Nothing is running" in call("ps").err
    assert call("ps", "--json").json == []
    assert not store.home.exists(), "looking makes nothing"


def test_ps_lists_what_runs_and_with_all_what_has_been(store: Store, ended: Run) -> None:
    assert "desk/both" not in call("ps").out
    with running(store.runs_dir, "train", {"name": "tone"}) as now:
        now.event("progress", what="training tone", done=5, total=20, unit="")
        said = call("ps").out
        assert [now.id, "running", "Train tone", "training tone: 5 of 20"] == (
            said.splitlines()[1].split("\t")[:4]
        )
        rows = call("ps", "--all", "--json").json
    assert [(row["id"], row["state"]) for row in rows] == [(now.id, "running"), (ended.id, "done")]
    assert rows[0]["progress"] == {"what": "training tone", "done": 5, "total": 20, "unit": ""}
    assert rows[1]["result"]["name"] == "desk/both"
    assert call("ps", "--all", "-q").out.split() == [now.id, ended.id]


def test_logs_tell_events_in_sentences_and_the_work_s_own_words(ended: Run) -> None:
    (ended.path / "log").write_text("\x1b[31mloud\n")
    said = call("logs", ended.id).out
    assert "stored as desk/both (@abababababab); keeps 50.00% of the energy" in said
    assert "Merging" not in said, "progress is for those who watch"
    assert call("logs", ended.id[:12]).out == call("logs", ended.id[-6:]).out == said
    assert "\\x1b[31mloud" in said
    record = call("logs", ended.id, "--json").json
    assert record["logs"] == {"log": ["\x1b[31mloud"]}
    assert [event["event"] for event in record["events"]][-1] == "done"


def test_a_run_that_is_not_known_is_refused_with_the_nearest(store: Store, ended: Run) -> None:
    said = call("logs", "merke-2", "--json")
    assert (said.code, said.error["exit_code"]) == (ExitCode.NOT_FOUND, ExitCode.NOT_FOUND)
    assert said.error["why"] == "Did you mean merge-2?"
    with running(store.runs_dir, "merge", {}) as other:
        pass
    said = call("logs", "merge", "--json")
    assert said.code == ExitCode.USAGE
    assert ended.id in said.error["why"]
    assert other.id in said.error["why"]


def test_logs_follow_a_run_to_its_end(store: Store, tmp_path: Path) -> None:
    with (
        running(store.runs_dir, "train", {}) as work,
        start("logs", work.id, "-f", stderr=tmp_path / "err") as follower,
    ):
        assert follower.stdout
        assert b"started: train" in follower.stdout.readline()
        (work.path / "log").write_text("a word of its own\n")
        heard = follower.stdout.readline()
        if heard.startswith(b"-- "):  # it was there when the logs were first looked for
            heard = follower.stdout.readline()
        assert heard == b"a word of its own\n"
        work.event("resumed", step=7)
        assert b"goes on after step 7" in follower.stdout.readline()
        assert follower.poll() is None
        work.finish("done")
        assert b"done" in follower.stdout.read()
        assert follower.wait(20) == 0


def test_stop_stops_a_command_typed_elsewhere(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    for seed, name in enumerate("ab"):
        store.add_folder(make_adapter(name, rank=16, modules=WIDE, seed=seed), name=name)
    words = ("merge", "a", "b", "--method", "ties", "--name", "both", "--workers", "1")
    with start(*words, stderr=tmp_path / "err") as merging:
        assert wait_until(lambda: [one.state for one in all_runs(store.runs_dir)] == ["running"])
        (found,) = all_runs(store.runs_dir)
        assert found.command == words
        said = run("stop", "merge", "--json")
        assert said.code == 0, said.err
        assert said.json == {"run": found.id, "state": "interrupted"}
        assert merging.wait(20) == ExitCode.INTERRUPTED
    with pytest.raises(NotFoundError):
        store.resolve("both")
    said = call("stop", "merge", "--json")
    assert said.code == ExitCode.FAILED
    assert "not running" in said.error["what"]


def test_a_stopped_run_is_called_so_and_programs_read_what_is_recorded(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), running(store.runs_dir, "merge", {}) as work:
        raise KeyboardInterrupt
    assert call("ps", "--all").out.splitlines()[1].split("\t")[1] == "stopped"
    assert call("logs", work.id, "--json").json["state"] == "interrupted"
