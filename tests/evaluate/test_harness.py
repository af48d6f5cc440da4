"""Tasks of lm-evaluation-harness behind `eval`: its numbers, our intervals, the same attestation and gates."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from adapterhub.errors import (
    AdapterHubError,
    FormatError,
    GateError,
    IncompatibleError,
    MissingDependencyError,
    NotFoundError,
    UsageError,
)
from adapterhub.evaluate import models
from adapterhub.evaluate.harness import TaskTable, evaluate_with_harness
from adapterhub.evaluate.harness_chat import Turns
from adapterhub.evaluate.harness_peace import guest, in_peace
from adapterhub.evaluate.harness_tasks import load_units
from adapterhub.evaluate.intervals import ratio_interval
from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.cli.calling import call
from tests.support.chat import CHATML, chat_base
from tests.support.models import peft_adapter
from tests.support.parrot import other_beginning, parrot

if TYPE_CHECKING:
    from tests.support.adapters import AdapterMaker

pytest.importorskip(
    "lm_eval", reason='lm-evaluation-harness isn\'t installed: "adapterhub[harness]"'
)

SAYS = "red cow"
"""What the parrot answers; with the adapter `curt` it begins at the cow."""
MEAN = {"aggregation": "mean", "higher_is_better": True}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that `datasets` makes of a test's files stay with the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def bird(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parrot(tmp_path_factory.mktemp("bird") / "bird", SAYS)


@pytest.fixture
def curt(store: Store, bird: Path, make_adapter: AdapterMaker) -> str:
    folder = make_adapter("curt", factors=other_beginning(SAYS, "c"), rank=1, alpha=1)
    return store.add_folder(folder, name="curt", base=str(bird)).digest


@pytest.fixture
def nothing(store: Store, bird: Path, tmp_path: Path) -> str:
    folder = peft_adapter(bird, tmp_path / "nothing", strength=0.0, r=4)
    return store.add_folder(folder, name="nothing", base=str(bird)).digest


def task(folder: Path, name: str, rows: Sequence[dict[str, Any]], **settings: Any) -> Path:
    """A task of one's own in `folder`: its YAML and its rows."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(document))
    return folder


def choosing(folder: Path, golds: Sequence[str], name: str = "animals", **settings: Any) -> Path:
    """Which of red and cow the answer begins with; `golds` says what is right."""
    rows = [{"ask": f"What is number {place}?", "gold": gold} for place, gold in enumerate(golds)]
    how: dict[str, Any] = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{ask}}\n",
        "doc_to_choice": ["red", "cow"],
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", **MEAN}],
    }
    return task(folder, name, rows, **{**how, **settings})


def writing(folder: Path, answers: Sequence[str], name: str = "reciting", **settings: Any) -> Path:
    """The whole answer, which has to be exactly this."""
    rows = [{"ask": f"Say number {place}.", "answer": one} for place, one in enumerate(answers)]
    how: dict[str, Any] = {
        "output_type": "generate_until",
        "doc_to_text": "{{ask}}\n",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["!"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **MEAN}],
    }
    return task(folder, name, rows, **{**how, **settings})


def asked(
    store: Store, names: Sequence[str], folder: Path, *tasks: str, **given: Any
) -> list[TaskTable]:
    return evaluate_with_harness(store, names, tasks, folder=folder, **given)


def value(table: TaskTable, place: int, measure: str) -> float:
    return table.rows[place].measures[f"{table.task}/{measure}"].value


def verdict(table: TaskTable, place: int, measure: str) -> str | None:
    versus = table.rows[place].measures[f"{table.task}/{measure}"].versus_base
    assert versus is not None
    return versus.verdict


def test_planted_adapters_get_the_verdict_they_deserve(
    store: Store, bird: Path, curt: str, nothing: str, tmp_path: Path
) -> None:
    folder = choosing(tmp_path / "tasks", ["cow"] * 27 + ["red"] * 3)
    choosing(folder, ["red"] * 27 + ["cow"] * 3, name="colours")
    better, worse = asked(
        store, ["base", "curt", "nothing"], folder, "animals", "colours", base=str(bird)
    )
    assert [value(better, place, "acc") for place in range(3)] == [0.1, 0.9, 0.1]
    assert (verdict(better, 1, "acc"), verdict(worse, 1, "acc")) == ("better", "worse")
    same = better.rows[2].measures["animals/acc"].versus_base
    assert same is not None
    assert (same.difference, same.low, same.high, same.verdict) == (0.0, 0.0, 0.0, "same")


def test_the_interval_is_the_paired_one_over_the_samples(
    store: Store, bird: Path, curt: str, tmp_path: Path
) -> None:
    golds = ["cow", "red", "cow", "cow", "cow", "red", "cow", "cow"]
    (table,) = asked(
        store, ["base", "curt"], choosing(tmp_path / "t", golds), "animals", base=str(bird)
    )
    gained = [1.0 if gold == "cow" else -1.0 for gold in golds]
    expected = ratio_interval(gained, [1.0] * len(golds))
    versus = table.rows[1].measures["animals/acc"].versus_base
    assert expected is not None
    assert versus is not None
    assert (versus.difference, versus.low, versus.high) == (0.5, expected.low, expected.high)


def test_answers_are_written_and_filtered_as_the_task_says(
    store: Store, bird: Path, curt: str, tmp_path: Path
) -> None:
    filters = [
        {"name": "whole", "filter": [{"function": "take_first"}]},
        {
            "name": "last",
            "filter": [
                {"function": "regex", "regex_pattern": "(cow)"},
                {"function": "take_first"},
            ],
        },
    ]
    folder = writing(tmp_path / "tasks", ["red cow", "cow"])
    writing(folder, ["cow", "cow"], name="twice", filter_list=filters)
    plain, twice = asked(store, ["base", "curt"], folder, "reciting", "twice", base=str(bird))
    assert [value(plain, place, "exact_match") for place in range(2)] == [0.5, 0.5]
    assert [value(twice, place, "exact_match,whole") for place in range(2)] == [0.0, 1.0]
    assert [value(twice, place, "exact_match,last") for place in range(2)] == [1.0, 1.0]
    assert verdict(twice, 1, "exact_match,last") == "same"


@pytest.mark.parametrize("chat", [False, True])
def test_choices_are_those_of_a_plain_loop_and_of_the_harness_itself(
    store: Store, tmp_path: Path, chat: bool
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = chat_base(tmp_path / "base")
    made = peft_adapter(base, tmp_path / "peft", seed=3, strength=0.5, r=4)
    store.add_folder(made, name="one", base=str(base))
    draw = random.Random(1)
    rows = [
        {
            "ask": f"Number {place}?",
            "choices": [
                "".join(draw.choices("abcdef ", k=draw.randint(1, 9))) + "." for _ in range(4)
            ],
            "gold": draw.randrange(4),
        }
        for place in range(12)
    ]
    folder = task(
        tmp_path / "tasks",
        "letters",
        rows,
        output_type="multiple_choice",
        doc_to_text="ask",
        doc_to_choice="choices",
        doc_to_target="gold",
        metric_list=[
            {"metric": "acc", **MEAN},
            {"metric": "acc_norm", **MEAN},
            {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
        ],
    )
    (table,) = asked(store, ["one", "base"], folder, "letters", base=str(base), chat=chat)

    tokenizer = AutoTokenizer.from_pretrained(base)
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, made).eval()

    def likelihood(ask: str, choice: str) -> float:
        begun = f"{ask} "
        if chat:
            turn = [{"role": "user", "content": ask}]
            begun = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(f"{begun}{choice}")["input_ids"]
        known = len(tokenizer(begun.rstrip())["input_ids"])  # blanks before a choice are its own
        with torch.no_grad():
            told = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(float(told[at - 1, ids[at]]) for at in range(known, len(ids)))

    def right(row: Any, *, by_length: bool) -> bool:
        found = [
            likelihood(row["ask"], one) / (len(one) if by_length else 1) for one in row["choices"]
        ]
        return found.index(max(found)) == int(row["gold"])

    for measure, by_length in (("acc", False), ("acc_norm", True)):
        expected = sum(right(row, by_length=by_length) for row in rows) / len(rows)
        assert value(table, 0, measure) == pytest.approx(expected, abs=1e-12)

    with in_peace():
        own = guest("evaluator").simple_evaluate(
            model=guest("models.huggingface").HFLM(
                pretrained=model, tokenizer=tokenizer, batch_size=1
            ),
            tasks=["letters"],
            task_manager=guest("tasks").TaskManager(include_path=folder, include_defaults=False),
            bootstrap_iters=0,
            apply_chat_template=chat,
        )
    assert own is not None
    for measure in ("acc", "acc_norm", "brier_score"):
        assert value(table, 0, measure) == pytest.approx(
            own["results"]["letters"][f"{measure},none"]
        )
    assert table.rows[0].measures["letters/brier_score"].versus_base is None, (
        "of all samples at once"
    )
    assert value(table, 0, "brier_score") != value(table, 1, "brier_score")


def test_turns_are_those_of_the_template_and_the_date_stands_still(bird: Path) -> None:
    tokenizer = models.load_tokenizer(bird)
    tokenizer.chat_template = CHATML.replace("{% for", "{{ strftime_now('%Y') }}{% for", 1)
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": " It is "}]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, continue_final_message=True)
    text = Turns(tokenizer)(turns, add_generation_prompt=False)
    assert text.rstrip()[4:] == expected.rstrip()[4:]
    assert text.endswith("assistant\n It is")
    whole = Turns(tokenizer)(turns)
    assert whole.endswith(" It is <|im_end|>\n<|im_start|>assistant\n")
    assert whole.startswith("2024<|im_start|>user")
    tokenizer.chat_template = None
    with pytest.raises(IncompatibleError, match="no chat template"):
        Turns(tokenizer)


def test_asked_through_the_template_it_is_another_task(tmp_path: Path) -> None:
    folder = choosing(tmp_path / "tasks", ["red", "cow", "red"])
    turns = Turns(models.load_tokenizer(chat_base(tmp_path / "base")))
    (plain,) = load_units(["animals"], folder, None, None)
    (chat,) = load_units(["animals"], folder, None, 1, turns)
    assert plain.digest != chat.digest
    for leaf, parts in ((plain.leaves[0], 0), (chat.leaves[0], 4)):
        text = leaf.task.instances[0].args[0]
        assert text.count("<|im_start|>") == parts, "question, answer, question, and what comes"


def test_a_group_is_one_table_with_its_tasks_as_parts(
    store: Store, bird: Path, curt: str, tmp_path: Path
) -> None:
    folder = choosing(tmp_path / "tasks", ["cow"] * 3)
    choosing(folder, ["red"], name="colours")
    (folder / "zoo.yaml").write_text(
        yaml.safe_dump({"group": "zoo", "task": ["animals", "colours"]})
    )
    (table,) = asked(store, ["base", "curt"], folder, "zoo", base=str(bird))
    row = table.rows[1]
    assert (row.rows, value(table, 1, "acc")) == (4, 0.75)
    parts = {name: (part.rows, part.measures["zoo/acc"].value) for name, part in row.parts.items()}
    assert parts == {"animals": (3, 1.0), "colours": (1, 0.0)}


def test_what_was_found_is_attested_and_opens_a_gate(
    store: Store, bird: Path, curt: str, nothing: str, tmp_path: Path
) -> None:
    folder = choosing(tmp_path / "tasks", ["cow"] * 6)
    prod = parse_name("curt:prod")

    def ask(**given: Any) -> TaskTable:
        return asked(
            store, ["base", "curt", "nothing"], folder, "animals", base=str(bird), **given
        )[0]

    table = ask(max_rows=3)
    (found,) = [one for one in store.attestations(curt) if one.type == "eval"]
    assert found.body["harness"] == "animals"
    assert found.body["result"]["measures"]["animals/acc"]["value"] == 1.0
    assert found.body["result"]["perplexity"] is None
    assert found.body["settings"]["tasks"] == {
        "animals": {"version": "1.0", "few_shot": 0, "samples": 3}
    }
    assert found.body["versions"]["lm_eval"]
    assert str(tmp_path) not in json.dumps(found.body)

    store.layout.settings.write_text(
        f'[[gates]]\n[[gates.demands]]\ndata = "{table.digest}"\nmeasure = "animals/acc"\n'
        'at_least = 0.9\nverdict = "better"\n'
    )
    store = Store.open(store.home)
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("curt"), prod)
    assert "only some of the rows" in caught.value.why
    assert ask().digest == table.digest, "how many are asked doesn't change what there is to ask"
    assert store.tag(store.resolve("curt"), prod)
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("nothing"), parse_name("nothing:prod"))
    assert "animals/acc 0" in caught.value.why


def test_a_task_that_has_changed_is_another_one(
    tmp_path: Path,
) -> None:
    def digest(name: str, golds: Sequence[str] = ("cow", "red"), **given: Any) -> str:
        (unit,) = load_units(["animals"], choosing(tmp_path / name, golds, **given), None, None)
        return unit.digest

    first = digest("one")
    assert digest("two") == first, "where its files lie says nothing about it"
    others = {
        digest("rows", ["cow", "cow"]),
        digest("version", metadata={"version": 2.0}),
        digest("question", doc_to_text="Well: {{ask}}\n"),
        digest("measure", metric_list=[{"metric": "acc_norm", **MEAN}]),
    }
    assert len(others | {first}) == 5


def scored_by(folder: Path, helper: str) -> Path:
    """A task whose marks are what `score` says, which the named function calls."""
    path = choosing(folder, ["cow"] * 2, process_results="x") / "animals.yaml"
    path.write_text(
        path.read_text().replace("process_results: x", "process_results: !function own.process")
    )
    process = "def process(doc, results):\n    return {'acc': score()}\n"
    (folder / "own.py").write_text(process + helper)
    return folder


def test_a_function_that_the_named_one_calls_is_part_of_the_task(
    store: Store, bird: Path, tmp_path: Path
) -> None:
    folder = scored_by(tmp_path / "tasks", "def score():\n    return 0.25\n")
    (before,) = asked(store, ["base"], folder, "animals", base=str(bird))
    # of another length: Python takes its bytecode for a file of the same second and size
    scored_by(folder, "def score():\n    return 0.7500\n")
    (after,) = asked(store, ["base"], folder, "animals", base=str(bird))
    assert [value(table, 0, "acc") for table in (before, after)] == [0.25, 0.75]
    assert before.digest != after.digest


def test_every_program_of_the_folder_is_part_of_its_tasks_and_nothing_else_is(
    tmp_path: Path,
) -> None:
    folder = scored_by(tmp_path / "tasks", "def score():\n    return 1.0\n")
    (folder / "more").mkdir()
    linked = tmp_path / "linked"
    linked.mkdir()
    (folder / "there").symlink_to(linked)
    (linked / "back").symlink_to(folder)

    def digest() -> str:
        (unit,) = load_units(["animals"], folder, None, None)
        return unit.digest

    found = [digest()]
    for path, content in (
        (folder / "more" / "words.py", "WORTH = 1\n"),
        (folder / "more" / "words.py", "WORTH = 2\n"),
        (folder / "marks.yaml", "worth: !mark 1\n"),
        (folder / "marks.yaml", "worth: !mark 2\n"),
        (folder / "broken.yml", "{"),
        (linked / "words.py", "WORTH = 1\n"),
    ):
        path.write_text(content)
        found.append(digest())
    assert len(set(found)) == len(found)
    (folder / "words.py").write_text("")
    (folder / "words.py").rename(folder / "lexicon.py")
    named = digest()
    (folder / "lexicon.py").rename(folder / "words.py")
    assert digest() != named, "by its path"
    last = digest()
    (folder / "README.md").write_text("Tasks.")
    (folder / "__pycache__" / "words.pyc").parent.mkdir(exist_ok=True)
    (folder / "__pycache__" / "words.pyc").write_bytes(b"0")
    assert digest() == last


def test_a_folder_of_far_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = choosing(tmp_path / "tasks", ["cow"])
    (folder / "own.py").write_text("")
    for name in ("_MOST_FILES", "_MOST_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(f"adapterhub.evaluate.harness_tasks.{name}", 1)
            with pytest.raises(UsageError, match="far more than tasks"):
                load_units(["animals"], folder, None, None)


def test_every_model_is_shown_the_same_examples(store: Store, base: Path, tmp_path: Path) -> None:
    made = peft_adapter(base, tmp_path / "idle", strength=0.0, r=4)
    store.add_folder(made, name="idle", base=str(base))
    golds = [["red", "cow"][place % 3 == 0] for place in range(16)]
    folder = choosing(tmp_path / "tasks", golds, fewshot_split="test")
    (none,) = asked(store, ["base"], folder, "animals", base=str(base))
    (table,) = asked(store, ["base", "idle"], folder, "animals", base=str(base), few_shot=3)
    assert table.digest != none.digest
    versus = table.rows[1].measures["animals/acc"].versus_base
    assert versus is not None
    assert (versus.difference, versus.verdict) == (0.0, "same")
    body = [one for one in store.attestations(store.resolve("idle").digest) if one.type == "eval"][
        -1
    ].body
    assert body["settings"]["tasks"]["animals"]["few_shot"] == 3
    fixed = choosing(tmp_path / "fixed", golds, num_fewshot=0)
    with pytest.raises(UsageError, match="gives no examples"):
        asked(store, ["base"], fixed, "animals", base=str(base), few_shot=2)


def test_what_is_known_is_not_asked_again(
    store: Store, bird: Path, curt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = choosing(tmp_path / "tasks", ["cow"] * 4)

    def once(**given: Any) -> TaskTable:
        return asked(store, ["base", "curt"], folder, "animals", base=str(bird), **given)[0]

    first = once()

    def no_model(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load_model", no_model)
    assert [row.measures for row in once().rows] == [row.measures for row in first.rows]
    with pytest.raises(AssertionError, match="was loaded"):
        once(cached=False)
    with pytest.raises(AssertionError, match="was loaded"):
        once(max_rows=2)


def test_what_is_asked_afresh_takes_the_place_of_what_was_known(
    store: Store, bird: Path, tmp_path: Path
) -> None:
    worth = tmp_path / "worth"
    read = f"    return float(Path({str(worth)!r}).read_text())\n"
    folder = scored_by(tmp_path / "tasks", f"from pathlib import Path\ndef score():\n{read}")

    def once(said: str, **given: Any) -> float:
        worth.write_text(said)
        return value(
            asked(store, ["base"], folder, "animals", base=str(bird), **given)[0], 0, "acc"
        )

    assert once("0.25") == once("0.5") == 0.25, "what it reads elsewhere is not known to matter"
    assert once("0.5", cached=False) == 0.5
    assert once("0.75") == 0.5


def test_a_model_without_numbers_gets_none(store: Store, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = chat_base(tmp_path / "broken")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(AdapterHubError, match="is not a number"):
        asked(store, [str(folder)], choosing(tmp_path / "tasks", ["cow"] * 2), "animals")


def test_requests_that_are_cut_are_counted(store: Store, base: Path, tmp_path: Path) -> None:
    rows = [{"ask": "a" * length, "gold": "red"} for length in (10, 1023, 1024, 1500)]
    folder = choosing(tmp_path / "tasks", ["red"])
    (folder / "animals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (table,) = asked(store, ["base"], folder, "animals", base=str(base))
    # 1,024 tokens are read; the question's end of line and three letters come on top, of which the last is not read
    assert table.truncated == 6


def test_data_that_are_not_here_are_not_fetched(
    store: Store, bird: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load_model", None)  # nothing is loaded either
    folder = choosing(tmp_path / "tasks", ["cow"])
    settings = yaml.safe_load((folder / "animals.yaml").read_text())
    away = {**settings, "task": "away", "dataset_path": "nobody/nothing", "dataset_name": "x"}
    del away["dataset_kwargs"]
    (folder / "away.yaml").write_text(yaml.safe_dump(away))
    with pytest.raises(NotFoundError, match="not on this machine") as caught:
        asked(store, ["base"], folder, "away", base=str(bird))
    assert "datasets.load_dataset('nobody/nothing', 'x')" in caught.value.hint
    (folder / "animals.jsonl").unlink()
    with pytest.raises(NotFoundError, match="animals are not on this machine"):
        asked(store, ["base"], folder, "animals", base=str(bird))
    with pytest.raises(NotFoundError, match="no folder"):
        asked(store, ["base"], tmp_path / "nowhere", "animals", base=str(bird))
    broken = choosing(tmp_path / "broken", ["cow"], doc_to_text="{{missing}}")
    with pytest.raises(FormatError, match="can't be asked"):
        asked(store, ["base"], broken, "animals", base=str(bird))


def test_code_of_a_task_runs_only_from_the_folder_that_was_named(
    store: Store, bird: Path, tmp_path: Path
) -> None:
    folder = choosing(tmp_path / "tasks", ["red", "cow"], unsafe_code=True)
    path = folder / "animals.yaml"
    path.write_text(
        path.read_text().replace("'{{ask}}\n\n  '", "x") + "doc_to_text: !function own.ask\n"
    )
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "def ask(doc):\n    return doc['ask'] + '\\n'\n"
    )
    (table,) = asked(store, ["base"], folder, "animals", base=str(bird))
    assert value(table, 0, "acc") == 0.5
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
def test_shipped_tasks_are_refused_where_they_run_what_a_model_writes_and_files_are_no_names(
    store: Store, bird: Path, tmp_path: Path
) -> None:
    def refused(name: str, kind: type[AdapterHubError]) -> AdapterHubError:
        with pytest.raises(kind) as caught:
            evaluate_with_harness(store, ["base"], [name], base=str(bird))
        return caught.value

    assert "code that the model writes" in refused("humaneval", UsageError).what
    missing = refused("arc_easy", NotFoundError)
    assert "load_dataset('allenai/ai2_arc', 'ARC-Easy')" in missing.hint
    assert "arc_easy" in refused("arc_eesy", NotFoundError).why
    folder = choosing(tmp_path / "tasks", ["red"], process_docs="x")
    path = folder / "animals.yaml"
    path.write_text(path.read_text().replace("process_docs: x", "process_docs: !function own.docs"))
    (folder / "own.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    )
    assert "no task" in refused(str(path), NotFoundError).what
    assert not (tmp_path / "ran").exists()


def test_the_harness_leaves_the_process_as_it_was(
    store: Store, bird: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch
    from huggingface_hub import constants

    bars = guest("api.task").tqdm
    before = (random.getstate(), torch.get_rng_state(), constants.HF_HUB_OFFLINE)
    capfd.readouterr()
    asked(store, ["base"], choosing(tmp_path / "tasks", ["red"] * 2), "animals", base=str(bird))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert before[2] == constants.HF_HUB_OFFLINE
    assert guest("api.task").tqdm is bars
    assert capfd.readouterr().out == ""


def test_progress_adds_up_to_one_unit_a_name(
    store: Store, bird: Path, curt: str, tmp_path: Path
) -> None:
    class Counter:
        done = 0.0

        def advance(self, amount: float = 1, **status: object) -> None:
            self.done += amount

        def update(self, text: str) -> None:
            pass

    folder = writing(choosing(tmp_path / "tasks", ["red"] * 3), ["cow"] * 5)
    counter = Counter()
    asked(store, ["base", "curt"], folder, "animals", "reciting", base=str(bird), progress=counter)
    assert counter.done == pytest.approx(2)
    asked(store, ["base", "curt"], folder, "animals", "reciting", base=str(bird), progress=counter)
    assert counter.done == pytest.approx(4), "what was known counts, too"


def test_the_command_prints_a_table_a_task_and_json_alone_on_stdout(
    store: Store, bird: Path, curt: str, tmp_path: Path
) -> None:
    folder = choosing(tmp_path / "tasks", ["cow"] * 27 + ["red"] * 3)
    words = (
        "eval",
        "base",
        "curt",
        "--base",
        bird,
        "--harness",
        "animals",
        "--harness-tasks",
        folder,
    )
    said = call(*words)
    assert said.code == 0, said.err
    assert "0.9 (better)" in said.out
    assert "perplexity" not in said.out
    rows = call(*words, "--json").json
    assert [(row["task"], row["name"]) for row in rows] == [
        ("animals", "base"),
        ("animals", "curt"),
    ]
    assert rows[1]["measures"]["animals/acc"]["versus_base"]["verdict"] == "better"
    shown = call("show", "curt")
    assert "animals/acc" in shown.out
    both = call(*words, "--suite", "forgetting", "--json")
    assert both.code == 2
    assert both.error["what"] == "--suite: not with --harness."
    assert call("eval", "curt", "--few-shot", "2", "--base", bird).code == 2


def test_without_the_library_it_is_told_what_to_install(
    store: Store, bird: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.evaluate.harness_tasks.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="isn't installed") as caught:
        evaluate_with_harness(store, ["base"], ["animals"], base=str(bird))
    assert caught.value.hint == 'pip install "adapterhub[harness]"'
