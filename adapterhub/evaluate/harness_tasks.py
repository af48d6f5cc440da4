"""Tasks of lm-evaluation-harness: found by name, loaded without a model and without the network, and asked of one model.

A task is known by a digest of all that it asks, so that a changed one is another one.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.errors import (
    FormatError,
    MissingDependencyError,
    NotFoundError,
    UsageError,
)
from adapterhub.evaluate.harness_chat import Turns
from adapterhub.evaluate.harness_peace import SEED, drawn_alike, guest, in_peace, stumbling
from adapterhub.evaluate.scoring import not_finite
from adapterhub.words import did_you_mean

_PLACES = ("dataset_kwargs", "metadata")
"""Keys of a task's settings that say where its files lie on this machine, and nothing of what it asks."""
_MOST_FILES, _MOST_BYTES = 20_000, 256 * 2**20
"""Of a folder of tasks. The harness's own has fourteen thousand files."""


@dataclass(frozen=True)
class Marks:
    """What one task says about one model."""

    values: Mapping[str, Sequence[float | None]]
    """Of each measure whose total is a mean: a number a sample, None where the task gives none."""
    totals: Mapping[str, float]
    """Of each other measure: the one number there is."""
    truncated: int
    """Requests that were cut on the left to what the model can read."""
    seconds: float


@dataclass(frozen=True)
class Leaf:
    """One task of the harness."""

    task: Any
    """lm_eval's own."""
    name: str
    """As the harness calls it."""
    samples: int
    """That are asked, after max_rows."""
    requests: int
    """What those samples ask of a model."""
    digest: str
    """Of everything that the task asks."""
    rows_digest: str
    """Of what is asked after max_rows."""
    chat: Turns | None
    """Questions are turns of a conversation, and this makes the text of it."""


@dataclass(frozen=True)
class Unit:
    """What one name means: a task, or the tasks of a group or a tag."""

    name: str
    leaves: tuple[Leaf, ...]

    @property
    def digest(self) -> str:
        """Of the names, versions, settings, documents and questions of all its tasks: what a gate can ask for."""
        return _together(self.name, [leaf.digest for leaf in self.leaves])

    @property
    def rows_digest(self) -> str:
        """Of what is asked after max_rows."""
        return _together(self.name, [leaf.rows_digest for leaf in self.leaves])


def require_harness() -> None:
    """MissingDependencyError, with what to install, where lm_eval is missing."""
    if find_spec("lm_eval") is None:
        raise MissingDependencyError(
            "--harness needs lm-evaluation-harness, which isn't installed.",
            hint='pip install "adapterhub[harness]"',
        )


def load_units(
    names: Sequence[str],
    folder: Path | None,
    max_rows: int | None,
    few_shot: int | None,
    chat: Turns | None = None,
) -> list[Unit]:
    """Each name with its tasks and their questions. Nothing is fetched.

    Args:
        folder: of tasks of one's own. They are programs: their functions and templates run with the rights of this process.
        max_rows: ask so many samples of each task.
        few_shot: give each question so many answered ones first; None leaves it to the tasks.
        chat: ask through a chat template, examples as turns before; None asks in plain text.

    Raises NotFoundError (no such task, folder or data set on this machine), UsageError (a task that runs what a model
    writes, that shows pictures, or that fixes its own examples; a folder of far too much) and FormatError (a task that
    stumbles, a file that can't be read).
    """
    require_harness()
    if folder is not None and not folder.is_dir():
        raise NotFoundError(
            f"There is no folder {folder}.", hint="--harness-tasks takes a folder of YAML files."
        )
    with in_peace():
        manager = _manager(names, folder)
        loaded = {name: _load(manager, name, folder) for name in dict.fromkeys(names)}
        files = {} if folder is None else _files_in(folder)

        def around(name: str, task: Any) -> Mapping[str, str]:
            index = manager.task_index
            own = index.get(_name_of(task), index[name])
            return files if _lies_in(folder, own) or _lies_in(folder, index[name]) else {}

        return [
            Unit(
                name,
                tuple(_leaf(one, max_rows, few_shot, chat, around(name, one)) for one in tasks),
            )
            for name, tasks in loaded.items()
        ]


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """An index of the folder's tasks; with the shipped ones (many seconds) only where they are needed."""
    if folder is None:
        manager = _shipped()
    else:
        manager = _index(include_path=folder, include_defaults=False)
        if not all(_is_whole(manager.task_index, name) for name in names):
            manager = _index(include_path=folder)
    for name in names:
        if name not in manager.task_index:
            raise NotFoundError(
                f"The harness has no task '{name}'.",
                why=did_you_mean(name, manager.all_tasks)
                or f"It has {len(manager.all_tasks)} tasks and groups, "
                + (f"those in {folder} among them." if folder else "all of them shipped with it."),
                hint="Tasks of your own: --harness-tasks FOLDER, and their names with --harness",
            )
    return manager


@cache
def _shipped() -> Any:
    """An index of the harness's own tasks, more than ten thousand files."""
    return _index()


def _index(**given: Any) -> Any:
    return guest("tasks").TaskManager(**given)


def _is_whole(index: Mapping[str, Any], name: str) -> bool:
    """Whether an index has `name` and, where that is a group, everything it names."""
    if name not in index:
        return False
    members = (index[name].cfg or {}).get("task")
    if not isinstance(members, list):
        return True
    return all(not isinstance(one, str) or _is_whole(index, one) for one in members)


def _load(manager: Any, name: str, folder: Path | None) -> list[Any]:
    entry = manager.task_index[name]
    if (entry.cfg or {}).get("unsafe_code"):  # before its files, which may load what runs code
        _require_allowed(name, entry, folder)
    with drawn_alike(), stumbling(name, entry):
        tasks = list(manager.load([name])["tasks"].values())
    for task in tasks:
        own = _name_of(task)
        if getattr(task, "UNSAFE_CODE", False):
            _require_allowed(own, manager.task_index.get(own, entry), folder)
        if getattr(task, "MULTIMODAL", False):
            raise UsageError(
                f"The task {own} shows pictures or sounds.",
                why="Models are asked in text alone.",
                hint="Leave it out.",
            )
    return tasks


def _name_of(task: Any) -> str:
    """As the harness calls it; where it has no name, one is drawn."""
    with drawn_alike():
        return str(task.task_name)


def _require_allowed(name: str, entry: Any, folder: Path | None) -> None:
    """Code that a model wrote is run only for tasks that lie in the folder that was named."""
    path = entry.yaml_path
    if folder is None or path is None or not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"The task {name} runs code that the model writes, with all your rights.",
            why="The harness doesn't confine it, so shipped tasks of that kind are refused.",
            hint="--suite forgetting asks for code, too, and runs it in a sandbox."
            f" Or copy the task into a folder, and say that you trust it: --harness-tasks FOLDER --harness {name}",
        )


def _lies_in(folder: Path | None, entry: Any) -> bool:
    """Whether a task or group is one of the folder's, be its file a link to elsewhere."""
    path = entry.yaml_path
    if folder is None or path is None:
        return False
    return bool(path.resolve().is_relative_to(folder.resolve()) or path.is_relative_to(folder))


def _files_in(folder: Path) -> dict[str, str]:
    """Digests of all Python and YAML below a folder of tasks, by their paths in it.

    A function of a task may call any other, of the same file or of another: its own source says too little.
    UsageError where there is far too much, FormatError where a file can't be read.
    """
    found: dict[str, str] = {}
    left = _MOST_BYTES
    try:
        for path in _programs_in(folder):
            left -= path.stat().st_size
            if len(found) == _MOST_FILES or left < 0:
                raise UsageError(
                    f"The folder {folder} holds far more than tasks.",
                    why=f"All its Python and YAML is read: {_MOST_FILES:,} files, {_MOST_BYTES >> 20} MiB at most.",
                    hint="--harness-tasks takes a folder of its own, with the tasks and what they import.",
                )
            content = path.read_bytes()
            told = content if path.suffix == ".py" else _without_places(content)
            found[path.relative_to(folder).as_posix()] = digest_of(told)
    except OSError as error:
        raise FormatError(f"The folder {folder} can't be read whole.", why=f"{error}") from error
    return dict(sorted(found.items()))


def _programs_in(folder: Path) -> Iterator[Path]:
    """All Python and YAML, that of linked folders, too, each folder once. OSError where one can't be listed."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for where, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(files):
            path = Path(where, name)
            if path.suffix in (".py", ".yaml", ".yml") and path.is_file():
                yield path


def _without_places(content: bytes) -> bytes:
    """A YAML file less what says where files lie on this machine; as it is where it is no YAML."""
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)  # runs nothing: tags stay words
    except (yaml.YAMLError, ValueError, RecursionError):
        return content
    if not isinstance(root, yaml.MappingNode):
        return content
    root.value = [pair for pair in root.value if pair[0].value not in _PLACES]
    return str(yaml.serialize(root)).encode(errors="surrogatepass")


def _leaf(
    task: Any,
    max_rows: int | None,
    few_shot: int | None,
    chat: Turns | None,
    files: Mapping[str, str],
) -> Leaf:
    """The task with its examples settled, and digests of everything it asks.

    `files`: digests of the programs that may be part of it.
    """
    name, fixed = _name_of(task), task.get_config("num_fewshot")
    if few_shot is not None and fixed == 0 and few_shot != 0:
        raise UsageError(
            f"The task {name} gives no examples, whatever is asked.",
            hint="Leave out --few-shot for it.",
        )
    if few_shot is not None or fixed is None:
        task.set_config(key="num_fewshot", value=few_shot or 0)
    with stumbling(name):
        told = task.config.to_dict(keep_callable=True)
        settings = {key: one for key, one in told.items() if key not in _PLACES}
        fixed_facts = {
            "task": name,
            "version": str(task.VERSION),
            "settings": settings,
            "files": files,
        }
        questions = _questions(task, chat)
        some = questions if max_rows is None else questions[:max_rows]
        requests = sum(len(asked) for _, asked in some)
    return Leaf(
        task,
        name,
        len(some),
        requests,
        _digest({**fixed_facts, "questions": questions}),
        _digest({**fixed_facts, "questions": some}),
        chat,
    )


def _questions(task: Any, chat: Turns | None) -> list[tuple[Any, list[Any]]]:
    """Each document, and what is asked of a model for it."""
    task.set_fewshot_seed(SEED)
    with drawn_alike():
        task.build_all_requests(chat_template=chat, rank=0, world_size=1, **_as_turns(chat))
    found: dict[int, tuple[Any, list[Any]]] = {}
    for one in task.instances:
        found.setdefault(one.doc_id, (one.doc, []))[1].append([one.request_type, *one.args])
    return list(found.values())


def _as_turns(chat: Turns | None) -> dict[str, bool]:
    """Options of the harness."""
    return dict.fromkeys(("apply_chat_template", "fewshot_as_multiturn"), chat is not None)


def ask_task(
    leaf: Leaf, lm: Any, max_rows: int | None, on_requests: Callable[[int], None]
) -> Marks:
    """What one task says about one model.

    Args:
        lm: an lm_eval model around it.
        on_requests: called with how many more of its requests were answered.

    Raises FormatError where the task stumbles and AdapterHubError where the model's likelihoods are no numbers.
    """
    began = time.monotonic()
    task = leaf.task
    task.set_fewshot_seed(SEED)  # or the next model is shown other examples
    left = leaf.requests

    def advance(done: int) -> None:
        nonlocal left  # a long text is asked in several windows: never more than there are
        done = min(done, left)
        left -= done
        on_requests(done)

    lm.apply_chat_template = leaf.chat  # the harness would render the date of today
    with in_peace(advance), drawn_alike(), stumbling(leaf.name):
        found = guest("evaluator").evaluate(
            lm,
            {"tasks": {leaf.name: task}},
            limit=max_rows,
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,  # refused when it was loaded, unless it was allowed
            **_as_turns(leaf.chat),
        )
        if any(_is_nan(answer) for one in task.instances for answer in one.resps):
            raise not_finite()
        truncated = sum(_is_cut(lm, one) for one in task.instances)
        values, totals = _told(task, found["samples"][leaf.name], found["results"][leaf.name])
    on_requests(left)
    return Marks(values, totals, truncated, round(time.monotonic() - began, 3))


def _told(
    task: Any, samples: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
) -> tuple[dict[str, list[float | None]], dict[str, float]]:
    """The harness's samples, one for each document and filter, as `Marks` has them: the values, and the totals."""
    mean = guest("api.metrics").mean
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    values: dict[str, list[float | None]] = {}
    totals: dict[str, float] = {}
    for name in filters:
        of_this = [sample for sample in samples if sample["filter"] == name]
        for metric in dict.fromkeys(one for sample in of_this for one in sample["metrics"]):
            measure = metric if len(filters) == 1 else f"{metric},{name}"
            found = [sample.get(metric) for sample in of_this]
            if task.aggregation().get(metric, mean) is mean and all(map(_is_number, found)):
                values[measure] = [_finite(one) for one in found]
            elif (total := _finite(results.get(f"{metric},{name}"))) is not None:
                totals[measure] = total
    return values, totals


def is_better(task: Any, measure: str) -> bool | None:
    """Whether more of a measure is better; None where the task doesn't say."""
    found = task.higher_is_better().get(measure.partition(",")[0])
    return found if isinstance(found, bool) else None


def _is_number(value: object) -> bool:
    return value is None or (hasattr(value, "__float__") and not isinstance(value, str))


def _finite(value: Any) -> float | None:
    number = float(value) if value is not None and _is_number(value) else math.nan
    return number if math.isfinite(number) else None


def _is_nan(answer: Any) -> bool:
    """Of a likelihood, alone or with whether it is the greedy one; an answer in words is none."""
    number = answer[0] if isinstance(answer, tuple) else answer
    return isinstance(number, float) and math.isnan(number)


def _is_cut(lm: Any, one: Any) -> bool:
    """Whether a request is longer than what the model reads. Long texts are asked in windows, and lose nothing."""
    if one.request_type == "generate_until":
        length = int(one.args[1].get("max_gen_toks", lm.max_gen_toks))
        return bool(len(lm.tok_encode(one.args[0])) > lm.max_length - length)
    if one.request_type == "loglikelihood":
        return bool(len(lm.tok_encode("".join(one.args[:2]))) > lm.max_length + 1)
    return False


def _together(name: str, digests: Sequence[str]) -> str:
    return digest_of(canonical_bytes({"harness": name, "tasks": list(digests)}))


def _digest(facts: Mapping[str, Any]) -> str:
    return digest_of(json.dumps(facts, sort_keys=True, default=_plain).encode())


def _plain(value: Any) -> Any:
    """What JSON doesn't know: a function by its source, numpy's numbers as numbers, all else as text."""
    if callable(value):
        try:
            return inspect.getsource(value)
        except (TypeError, OSError):
            return getattr(value, "__qualname__", type(value).__qualname__)
    return value.item() if hasattr(value, "item") else str(value)
