"""The worked example: its tickets, and every command of its README from the first to the last, in small."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from adapterhub.evaluate.measures import parse_measure
from adapterhub.evaluate.suite import PASSED, load_suite
from adapterhub.settings import read_settings
from tests.docs import test_commands
from tests.serve.live import make_base
from tests.support.chat import chat_base

EXAMPLE = Path(__file__).parents[2] / "examples" / "harbor-support"
DESKS = ("eu", "us")
shell = test_commands.shell


def module(name: str) -> Any:
    """A file of the example, whose folder is no package."""
    spec = spec_from_file_location(f"harbor_{name}", EXAMPLE / f"{name}.py")
    assert spec
    assert spec.loader
    found = module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look for their module
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that tickets.py writes."""
    folder = tmp_path_factory.mktemp("tickets")
    module("tickets").main([str(folder)])
    return folder


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((folder / name).read_text(encoding="utf-8"))
    return found


def facts(row: dict[str, str]) -> dict[str, str]:
    """What a ticket says, read back from its text."""
    found = re.match(
        r"Order (?P<order>\d{5}), (?P<date>[\d./]{10}): (?P<product>[a-z ]+), (?P<amount>\S+(?: €)?)\. .* (?P<name>\w+)$",
        row["instruction"],
    )
    assert found, row["instruction"]
    return found.groupdict()


def test_the_same_seed_writes_the_same_bytes_and_another_others(
    written: Path, tmp_path: Path
) -> None:
    tickets = module("tickets")
    tickets.main([str(tmp_path / "again")])
    tickets.main([str(tmp_path / "other"), "--seed", "2"])
    for file in written.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    assert rows(written, "eu.json") != rows(tmp_path / "other", "eu.json")


@pytest.mark.parametrize("desk", DESKS)
def test_every_kind_is_asked_as_often(written: Path, desk: str) -> None:
    for name, each in ((f"{desk}.json", 100), (f"{desk}-held-out.json", 4)):
        found = rows(written, name)
        assert set(Counter(row["kind"] for row in found).values()) == {each}
        assert len({row["kind"] for row in found}) == 5
        assert {row["locale"] for row in found} == {desk}


@pytest.mark.parametrize("desk", DESKS)
def test_no_two_tickets_differ_in_their_numbers_alone(written: Path, desk: str) -> None:
    every = rows(written, f"{desk}.json") + rows(written, f"{desk}-held-out.json")
    plain = Counter(re.sub(r"\d+", "0", row["instruction"]) for row in every)
    assert max(plain.values()) == 1


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    counts = module("tickets").write_all(tmp_path, 300, 4, 1)
    assert all(count["rows"] == (20 if "held" in count["file"] else 1500) for count in counts)
    assert (
        counts[0]["duplicates dropped"] > 100
    )  # 300 of 16 products x 20 names x 4 wordings, five times


def test_more_tickets_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not 2000 different tickets"):
        module("tickets").write_all(tmp_path, 2000, 4, 1)


@pytest.mark.parametrize("desk", DESKS)
def test_nothing_held_out_was_asked_about_the_same_product_in_training(
    written: Path, desk: str
) -> None:
    def pairs(name: str) -> set[tuple[str, str]]:
        return {(row["kind"], facts(row)["product"]) for row in rows(written, name)}

    trained, held_out = pairs(f"{desk}.json"), pairs(f"{desk}-held-out.json")
    assert not trained & held_out
    assert {kind for kind, _ in held_out} <= {kind for kind, _ in trained}
    assert {product for _, product in held_out} <= {product for _, product in trained}
    orders = [
        facts(row)["order"]
        for other in DESKS
        for name in (f"{other}.json", f"{other}-held-out.json")
        for row in rows(written, name)
    ]
    assert len(orders) == len(set(orders))


@pytest.mark.parametrize("desk", DESKS)
def test_answers_copy_the_facts_meet_the_schema_and_keep_the_tone(written: Path, desk: str) -> None:
    from jsonschema import Draft202012Validator

    schema = json.loads((written / "ticket.schema.json").read_text())
    for row in rows(written, f"{desk}.json") + rows(written, f"{desk}-held-out.json"):
        asked, answer = facts(row), json.loads(row["output"])
        Draft202012Validator(schema).validate(answer)
        assert answer["order"] == asked["order"]
        assert answer["kind"] == row["kind"]
        assert answer["refund"] == (asked["amount"] if row["kind"] == "refund" else None)
        assert asked["product"] in answer["reply"]
        assert asked["date"] in answer["reply"]
        if desk == "eu":
            assert re.fullmatch(r"\d\d\.\d\d\.2026", asked["date"])
            assert re.fullmatch(r"\d+,\d\d €", asked["amount"])
            assert re.match(r"Dear customer,.*Kind regards, Harbor Support$", answer["reply"])
            assert "!" not in answer["reply"]
        else:
            assert re.fullmatch(r"\d\d/\d\d/2026", asked["date"])
            assert re.fullmatch(r"\$\d+\.\d\d", asked["amount"])
            assert re.match(rf"Hi {asked['name']},.*Thanks,", answer["reply"])


@pytest.mark.parametrize("desk", DESKS)
def test_a_check_passes_its_own_answer_and_none_with_another_fact(written: Path, desk: str) -> None:
    suite = load_suite(str(written / f"{desk}-facts.yaml"))
    for place, (row, check) in enumerate(zip(suite.rows, suite.checks, strict=True)):
        right = row.answers[0]
        assert PASSED.judge(right, check) == 1
        assert PASSED.judge(json.dumps(json.loads(right), indent=2, ensure_ascii=False), check) == 1
        assert PASSED.judge(suite.rows[place - 1].answers[0], check) == 0
        answer = json.loads(right)
        changed = {
            "order": "00000",
            "kind": "other",
            "refund": "1 €",
            "reply": re.sub(r"2026", "2025", answer["reply"]),
        }
        for key, value in changed.items():
            assert PASSED.judge(json.dumps({**answer, key: value}), check) == 0, key


@pytest.mark.parametrize("desk", DESKS)
def test_the_facts_are_asked_in_the_order_of_the_data_told_by_kind(
    written: Path, desk: str
) -> None:
    """So that what was answered for the one is known for the other."""
    from adapterhub.evaluate.task import Settings, choose

    settings = Settings("all", 0.0, 0, None, None, 1024, "float32")
    chosen = choose(written / f"{desk}-held-out.json", None, settings, "kind")
    suite = load_suite(str(written / f"{desk}-facts.yaml"))
    assert [row.messages for row in chosen.rows] == [row.messages for row in suite.rows]
    assert chosen.parts == suite.parts


def test_the_gates_are_about_these_suites(written: Path) -> None:
    (written / "home").mkdir(exist_ok=True)
    config = shutil.copy(written / "gates.toml", written / "home" / "config.toml")
    (gate,) = read_settings(Path(config)).gates
    assert gate.tag == "prod"
    for demand in gate.demands:
        assert load_suite(str(demand.suite)).rows
    measured = {demand.measure for demand in gate.demands} - {"passed", "perplexity"}
    assert {parse_measure(measure).name for measure in measured} == {"schema=ticket.schema.json"}


def test_a_readme_is_read_as_a_reader_would() -> None:
    runner = module("run")
    text = (
        "```console\n$ adapterhub tag a a:prod  # exit 1\nno: never evaluated\n$ adapterhub serve a &\n```\n"
        "    $ adapterhub ls\n```console\n$ python x.py .\n```\n"
    )
    refused, served, made = runner.commands(text)
    assert refused == runner.Command(("adapterhub", "tag", "a", "a:prod"), exit_code=1)
    assert served == runner.Command(("adapterhub", "serve", "a"), stays=True)
    assert served.serving
    assert made == runner.Command(("python", "x.py", "."))


def test_the_readme_is_whole_and_its_links_lead_somewhere() -> None:
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert "@@" not in text
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [target for target in targets if not (EXAMPLE / target).exists()] == []
    every = module("run").commands(text)
    assert {one.words[0] for one in every} == {"adapterhub", "python", "cp"}
    assert [one.words[1] for one in every if one.exit_code] == ["tag", "tag"], (
        "never evaluated, then forgetful"
    )
    assert sum(one.stays for one in every) == 1, "one server is started"
    assert text.count("```console") >= 8


class Pretended:
    """Runs nothing; `codes` are the exit codes of commands by their last word, 0 where nothing is said."""

    def __init__(self, **codes: int) -> None:
        self.codes = codes
        self.ran: list[str] = []

    def __call__(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> tuple[int, str]:
        self.ran.append(words[-1])
        return self.codes.get(words[-1], 0), f"said {words[-1]}"


def tutorial(folder: Path, pretended: Pretended) -> tuple[Any, list[str]]:
    runner = module("run")
    runner.prepare(folder, folder)
    said: list[str] = []
    return runner.Tutorial(folder, {}, said.append, pretended, serves=False), said


def test_what_is_done_is_told_again_and_not_done_again(tmp_path: Path) -> None:
    runner = module("run")
    every = [runner.Command(("adapterhub", word)) for word in ("one", "two", "three")]
    first = Pretended(two=1)
    following, said = tutorial(tmp_path, first)
    assert following.follow(every) == 1
    assert first.ran == ["one", "two"]
    assert "README says 0" in said[-1]

    second = Pretended()
    following, said = tutorial(tmp_path, second)
    assert following.follow(every) == 0
    assert second.ran == ["two", "three"]
    assert "said one" in said

    (changed := list(every))[0] = runner.Command(("adapterhub", "another"))
    third = Pretended()
    assert tutorial(tmp_path, third)[0].follow(changed) == 0
    assert third.ran == ["another", "two", "three"], "what follows a change is done again"


def test_without_vllm_the_server_is_passed_over_and_the_rest_done(tmp_path: Path) -> None:
    runner = module("run")
    every = [
        runner.Command(("adapterhub", "serve", "a"), stays=True),
        runner.Command(("adapterhub", "rollback", "b")),
        runner.Command(("adapterhub", "server", "stop")),
    ]
    pretended = Pretended()
    following, said = tutorial(tmp_path, pretended)
    assert following.follow(every) == 0
    assert pretended.ran == ["b"]
    assert sum("vLLM isn't installed" in line for line in said) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_readme_does_what_it_says(
    tmp_path: Path, shell: test_commands.Shell
) -> None:
    """Up to the server, and with one where vLLM is: tickets, trainings, evaluations, merges, gates, a release and back."""
    runner = module("run")
    tiny = chat_base(tmp_path / "tiny")
    base = make_base(tmp_path / "base", tiny)
    shutil.copy(tiny / "chat_template.jinja", base)
    folder = tmp_path / "desk"
    environment = runner.prepare(folder, base)

    def execute(
        words: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> tuple[int, str]:
        if words[0] != "adapterhub":
            return runner.execute(words, folder, environment)  # type: ignore[no-any-return]
        done = shell.run(shlex.join(words), folder, dict(environment))
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    every = runner.commands((EXAMPLE / "README.md").read_text(encoding="utf-8"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    small = [
        replace(one, words=tuple(port if word == "8016" else word for word in one.words))
        for one in runner.rehearsed(every)
    ]
    said: list[str] = []
    assert runner.Tutorial(folder, environment, said.append, execute).follow(small) == 0, "\n".join(
        said
    )
    record = json.loads((folder / "done.json").read_text())
    done = [one["command"] for one in record.values()]
    serves = find_spec("vllm") is not None
    assert done == [str(one) for one in small if serves or not one.serving]
    refused = next(
        one["said"]
        for one in record.values()
        if one["command"].endswith("tag harbor/both harbor/both:prod")
    )
    assert "never evaluated on that" in refused
    if not serves:
        pytest.skip("all but the server was run: vLLM isn't installed")
