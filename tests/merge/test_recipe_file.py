"""Recipe files: they say everything that the flags say and more, and a wrong key is told by its path."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from adapterhub.errors import FormatError, NotFoundError, UsageError
from adapterhub.merge.recipe import Recipe, StepInput, make_recipe, parse_recipe
from adapterhub.merge.recipe_file import RecipeFile, read_recipe
from adapterhub.merge.schedule import Rule, Schedule
from adapterhub.merge.specs import SEMANTICS, methods

DIGESTS = {name: f"sha256:{number:064x}" for number, name in enumerate("abc")}
MODULE = "model.layers.0.self_attn.q_proj"


def read(tmp_path: Path, text: str) -> RecipeFile:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return read_recipe(path)


def recipe(tmp_path: Path, text: str) -> Recipe:
    return read(tmp_path, text).recipe(DIGESTS)


def refused(tmp_path: Path, text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    return caught.value


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("name", methods())
def test_a_file_says_what_the_flags_say(tmp_path: Path, name: str, semantics: str) -> None:
    """Every method, every parameter, all else that a recipe decides."""
    spec = methods()[name]
    if semantics not in ("paper", *spec.semantics):
        return
    parents = list("abc")[: min(3, spec.max_inputs or 3)]
    parameters = {p.name: p.choices[-1] if p.choices else p.default for p in spec.parameters[::2]}
    weights = [0.5, -1, 2e-3][: len(parents)] if spec.default_weights != "none" else None
    document = {
        "method": name.replace("_", "-"),
        "semantics": semantics,
        "adapters": parents,
        "parameters": parameters,
        "rank": "energy=0.9",
        "dtype": "bfloat16",
        "seed": 7,
    }
    if weights is not None:
        document["weights"] = weights
    assert recipe(tmp_path, yaml.safe_dump(document)) == make_recipe(
        name,
        [DIGESTS[parent] for parent in parents],
        weights=weights,
        parameters=parameters,
        semantics=semantics,
        rank="energy=0.9",
        dtype="bfloat16",
        seed=7,
    )


def test_what_a_file_leaves_out_is_what_the_flags_leave_out(tmp_path: Path) -> None:
    file = read(tmp_path, "method: linear\nadapters: [a, b]")
    assert (file.adapters, file.name, file.base) == (("a", "b"), None, None)
    assert file.recipe(DIGESTS) == make_recipe("linear", [DIGESTS["a"], DIGESTS["b"]])
    assert recipe(tmp_path, "method: cat\nadapters: [a, b]").rank == "full"


def test_the_rest_of_what_a_file_says(tmp_path: Path) -> None:
    (tmp_path / "my-base").mkdir()
    text = "method: linear\nadapters: [b, {adapter: a}, b]\nname: desk/x:v2\nsaved_from: a\ndora: approximate\n"
    file = read(tmp_path, text + "base: my-base")
    assert (file.adapters, file.name) == (("b", "a"), "desk/x:v2")
    assert file.base == str(tmp_path / "my-base"), "a folder beside the recipe"
    assert read(tmp_path, text + "base: org/base").base == "org/base"
    made = file.recipe(DIGESTS)
    assert (made.saved_from, made.dora) == (DIGESTS["a"], "approximate")
    assert [one.digest for one in made.steps[0].inputs] == [DIGESTS[name] for name in "bab"]
    assert made.parents == (DIGESTS["b"], DIGESTS["a"])


def test_a_weight_that_is_left_out_is_the_methods_own(tmp_path: Path) -> None:
    some = "adapters: [a, {adapter: b, weight: 3}, {adapter: c, weight: [{layers: 1, value: 2}]}]"
    for name, rest in (("linear", 1 / 3), ("ties", 1.0)):
        first, second, third = recipe(tmp_path, f"method: {name}\n{some}").steps[0].weights
        assert (first, second) == (rest, 3.0)
        assert third == Schedule((Rule((2.0,), layers=(1, 1)),), otherwise=rest)


def test_a_parameter_outside_its_rules_is_that_of_the_semantics(tmp_path: Path) -> None:
    text = "method: dare_ties\nadapters: [a, b]\nparameters: {trim: [{layers: 1, value: 0.5}]}\n"
    for semantics, rest in (("paper", 0.2), ("peft", 1.0)):
        trim = recipe(tmp_path, f"{text}semantics: {semantics}").steps[0].parameters["trim"]
        assert trim.otherwise == rest


STEPS = """
steps:
  - {name: inner, method: ties, adapters: [a, b], parameters: {density: 0.5}}
  - {name: cut, method: linear, adapters: [{step: inner, weight: 2}, c], rank: 3}
  - {method: dare_linear, adapters: [{step: cut}, {step: inner}, a]}
seed: 5
"""


def test_steps_take_earlier_ones_by_their_names(tmp_path: Path) -> None:
    made = recipe(tmp_path, STEPS)
    inner, cut, last = made.steps
    assert [step.rank for step in made.steps] == [None, 3, None]
    assert [one.digest for one in inner.inputs] == [DIGESTS["a"], DIGESTS["b"]]
    assert cut.inputs == (StepInput(step="inner"), StepInput(digest=DIGESTS["c"]))
    assert cut.weights == (2.0, 0.5)
    assert last.inputs[:2] == (StepInput(step="cut"), StepInput(step="inner"))
    assert (made.method, made.seed) == ("dare_linear", 5)
    assert made.parents == tuple(DIGESTS.values())


@pytest.mark.parametrize(
    "text",
    [
        STEPS,
        "method: ties\nadapters: [a, {adapter: b, weight: [0, 1]}]\nparameters: {lambda: [{modules: q_proj, value: 2}]}",
        "steps: [{method: linear, adapters: [a, b], rank: 3}]",
        "method: slerp\nadapters: [a, b]\nparameters: {t: [{layers: [0, 1], value: [0, 1]}, {value: 0.25}]}",
        "method: negate\nadapters: [a]\nsaved_from: a\ndora: approximate",
    ],
)
def test_a_recipe_read_from_its_attestation_is_the_same(tmp_path: Path, text: str) -> None:
    made = recipe(tmp_path, text)
    document = json.loads(json.dumps(made.document()))
    assert document["method"] == made.method
    assert parse_recipe(document) == made
    assert parse_recipe(document).document() == made.document()


def test_recipes_that_differ_in_anything_differ_in_what_is_attested(tmp_path: Path) -> None:
    texts = [
        STEPS,
        STEPS.replace("seed: 5", "seed: 6"),
        STEPS.replace("rank: 3", "rank: 4"),
        STEPS.replace("{step: inner}, a]", "a, {step: inner}]"),
        STEPS.replace("0.5", "[0.5, 0.6]"),
        "steps: [{method: linear, adapters: [a, b]}]",
        "steps: [{method: linear, adapters: [a, b], rank: 3}]",
        "method: linear\nadapters: [a, b]\nrank: 3",
        "method: linear\nadapters: [a, b]\ndtype: float32",
    ]
    documents = [json.dumps(recipe(tmp_path, text).document()) for text in texts]
    assert len(set(documents)) == len(texts)


def test_an_attested_recipe_of_an_earlier_version_gets_the_papers_defaults() -> None:
    document = make_recipe("ties", list(DIGESTS.values())).document()
    document["parameters"] = {"density": 0.3, "lambda": 1.0, "trim_scope": "model"}
    assert parse_recipe(document).steps[0].parameters == {
        "density": 0.3, "lambda": 1.0, "trim_scope": "model", "vote": "weighted", "tie": "none", "divisor": "count"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "of_the_future"}, "no merge method 'of_the_future'"),
        ({"parameters": {"of_the_future": 1}}, "no parameter of_the_future"),
        ({"parameters": {"density": 7}}, "density must be above 0"),
        ({"weights": [1.0]}, "1 weight was given"),
        ({"weights": None}, "lacks something"),
        ({"parents": [7]}, "lacks something"),
    ],
)
def test_an_attested_recipe_that_makes_no_sense_here_is_refused_in_words(
    change: dict[str, object], says: str
) -> None:
    document = {**make_recipe("ties", list(DIGESTS.values())).document(), **change}
    with pytest.raises(FormatError) as caught:
        parse_recipe(document)
    assert says in str(caught.value)


TIES = "method: ties\nadapters: [a, b]\n"
STEP_X = "steps:\n  - {name: x, method: linear, adapters: [a]}\n"
OUTER = "  - {method: linear, adapters: [{step: x}, c]}\n"


@pytest.mark.parametrize(
    ("text", "path", "why"),
    [
        # keys
        ("metod: ties\nadapters: [a]", "metod", "method"),
        ("adapters: [a]", "method is missing", "method and adapters, or steps"),
        ("method: ties", "adapters is missing", ""),
        ("- a", "the recipe", ""),
        ("", "the recipe", ""),
        ("1: a", "the recipe: the key 1", ""),
        (TIES + "steps: []", "method", "There are: steps"),
        ("steps: 3", "steps", ""),
        ("steps: ~", "steps", ""),
        ("steps: [a]", "steps[0]", ""),
        ("steps:\n  - {method: ties, adapters: [a], rnk: 3}", "steps[0].rnk", "rank"),
        ("steps:\n  - {method: ties, adapters: [a], seed: 3}", "steps[0].seed", "There are"),
        # methods, semantics, parameters
        ("method: tis\nadapters: [a]", "method", "ties"),
        ("method: [ties]\nadapters: [a]", "method", ""),
        (TIES + "semantics: mergkit", "semantics: 'mergkit'", "mergekit"),
        ("method: slerp\nsemantics: peft\nadapters: [a, b]", "semantics", "It has: paper, mergekit"),
        (TIES + "parameters: {densty: 0.3}", "parameters.densty", "density"),
        (TIES + "parameters: {density: 7}", "parameters.density: 7", "above 0 up to 1"),
        (TIES + "parameters: {density: yes}", "parameters.density: True", "above 0 up to 1"),
        (TIES + "parameters: {vote: nobody}", "parameters.vote: 'nobody'", "weighted or"),
        (TIES + "parameters: {vote: [weighted]}", "parameters.vote", "weighted or"),
        (TIES + "parameters: [0.3]", "parameters", ""),
        (TIES + "parameters: {density: [0.5, 7]}", "parameters.density[1]: 7", "above 0 up to 1"),
        (
            TIES + "parameters: {density: [{layers: 1, value: [0.5, 7]}]}",
            "parameters.density[0].value[1]: 7",
            "above 0 up to 1",
        ),
        # adapters and weights
        ("method: ties\nadapters: a", "adapters", ""),
        ("method: ties\nadapters: []", "adapters", "at least 1"),
        ("method: slerp\nadapters: [a]", "adapters", "exactly 2"),
        ("method: ties\nadapters: [7]", "adapters[0]", ""),
        ("method: ties\nadapters: [{adapter: 7}]", "adapters[0].adapter: 7", ""),
        ("method: ties\nadapters: [{adapter: ~}]", "adapters[0]", ""),
        ("method: ties\nadapters: [{adaptor: a}]", "adapters[0].adaptor", "adapter"),
        ("method: ties\nadapters: [{weight: 1}]", "adapters[0]", ""),
        ("method: ties\nadapters: [{adapter: a, step: a}]", "adapters[0]", ""),
        ("method: ties\nadapters: [{adapter: a, weight: x}]", "adapters[0].weight: 'x'", "a number"),
        ("method: ties\nadapters: [{adapter: a, weight: .nan}]", "adapters[0].weight: nan", ""),
        ("method: ties\nadapters: [{adapter: a, weight: {value: 1}}]", "adapters[0].weight", "list"),
        ("method: ties\nadapters: [{adapter: a, weight: []}]", "adapters[0].weight", "empty"),
        (TIES + "weights: [1]", "weights", "1 for 2"),
        (TIES + "weights: 1", "weights", ""),
        (TIES + "weights: [1, [0.5, x]]", "weights[1][1]: 'x'", "gradient"),
        ("method: ties\nadapters: [{adapter: a, weight: 1}]\nweights: [1]", "weights", ""),
        ("method: slerp\nadapters: [a, {adapter: b, weight: 1}]", "adapters[1].weight", "no weights"),
        ("method: slerp\nadapters: [a, b]\nweights: [1, 2]", "weights[0]", "no weights"),
        # rules
        (
            STEP_X + "  - {method: linear, adapters: [{step: x, weight: [{value: 1}, {value: 1}, {layers: [2, 1], value: 1}]}]}",
            "steps[1].adapters[0].weight[2].layers",
            "[first, last]",
        ),
        (TIES + "weights: [1, [{layer: 1, value: 1}]]", "weights[1][0].layer", "layers"),
        (TIES + "weights: [1, [{layers: 1}]]", "weights[1][0].value", "missing"),
        (TIES + "weights: [1, [{value: 1}, 2]]", "weights[1][1]: 2", "A rule is like"),
        (TIES + "weights: [1, [{value: []}]]", "weights[1][0].value", ""),
        (TIES + "weights: [1, [{layers: [1, 2, 3], value: 1}]]", "weights[1][0].layers", ""),
        (TIES + "weights: [1, [{layers: -1, value: 1}]]", "weights[1][0].layers: -1", ""),
        (TIES + "weights: [1, [{layers: [0, 1.5], value: 1}]]", "weights[1][0].layers", ""),
        (TIES + "weights: [1, [{modules: '(', value: 1}]]", "weights[1][0].modules: '('", "missing )"),
        (TIES + "weights: [1, [{modules: [q_proj], value: 1}]]", "weights[1][0].modules", "text"),
        # the whole
        (TIES + "rank: 0", "rank: 0", "energy=SHARE"),
        (TIES + "rank: energy=2", "rank: 'energy=2'", "up to 1"),
        (TIES + "rank: [1]", "rank: [1]", ""),
        (TIES + "dtype: float8", "dtype: 'float8'", "float32"),
        (TIES + "seed: -1", "seed: -1", ""),
        (TIES + "seed: 1.5", "seed: 1.5", ""),
        (TIES + "name: a/b/c", "name", "at most two"),
        (TIES + "name: 7", "name: 7", ""),
        (TIES + "dora: exact", "dora: 'exact'", "approximate"),
        (TIES + "saved_from: c", "saved_from: 'c'", "a, b"),
        (TIES + "saved_from: [a]", "saved_from", ""),
        # steps
        ("steps:\n  - {method: linear, adapters: [a]}\n" + OUTER, "steps[0].name is missing", ""),
        (
            "steps:\n  - {name: y, method: linear, adapters: [a]}\n" + OUTER,
            "steps[1].adapters[0].step",
            "Before it: y",
        ),
        ("steps:\n  - {name: x, method: linear, adapters: [{step: x}]}", "steps[0].adapters[0].step", "none"),
        ("method: linear\nadapters: [{step: x}]", "adapters[0].step", "none"),
        (
            "steps:\n  - {name: x, method: linear, adapters: [a]}\n  - {name: z, method: linear, adapters: [a]}\n" + OUTER,
            "steps[1].name",
            "The last step alone",
        ),
        (
            STEP_X + "  - {name: x, method: linear, adapters: [{step: x}]}",
            "steps[1].name: 'x'",
            "another step",
        ),
        ("steps:\n  - {name: X, method: linear, adapters: [a]}", "steps[0].name: 'X'", "small letters"),
        ("steps:\n  - {method: linear, adapters: [a], rank: auto}", "steps[0].rank: 'auto'", "whole number"),
        ("steps:\n  - {method: linear, adapters: [a], rank: 0}", "steps[0].rank: 0", "whole number"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_path(
    tmp_path: Path, text: str, path: str, why: str
) -> None:
    error = refused(tmp_path, text)
    assert error.what.startswith(f"{tmp_path / 'recipe.yaml'}: {path}")
    assert why in f"{error.what} {error.why}"
    assert not re.search(r"(?<!\w)--\w", str(error)), "a file has keys, not flags"


@pytest.mark.parametrize(
    "text",
    ["method: [", "a: 1\na: 2", "!!python/object/apply:os.system ['true']", "\x00", '!!int ""', "a: &x [*x]\n[]: 1"],
)  # fmt: skip
def test_what_is_no_yaml_is_refused(tmp_path: Path, text: str) -> None:
    assert "no" in refused(tmp_path, text).what


def test_a_key_given_twice_is_refused_however_deep(tmp_path: Path) -> None:
    assert "appears twice" in refused(tmp_path, TIES + "parameters: {density: 1, density: 2}").why


def test_numbers_may_be_written_as_people_write_them(tmp_path: Path) -> None:
    text = "method: karcher\nadapters: [a, b]\nparameters: {tolerance: 1e-5}\nweights: [1e0, +2E-1]"
    step = recipe(tmp_path, text).steps[0]
    assert (step.parameters["tolerance"], step.weights) == (1e-5, (1.0, 0.2))


BOMB = (
    "{a: &a [1], "
    + ", ".join(f"{n}: &{n} [{', '.join([f'*{m}'] * 99)}]" for m, n in pairwise("abcdef"))
    + "}"
)
"""A hundred million times 1, in 2 kB."""


@pytest.mark.parametrize(
    "value",
    ["1" + "0" * 400, "0x" + "f" * 6000, "'" + "x" * 10**5 + "'", BOMB, f"[{BOMB}]", f"[{{modules: {BOMB}, value: 1}}]"],
    ids=["huge", "hexadecimal", "long", "bomb", "bomb in a list", "bomb in a rule"],
)  # fmt: skip
def test_a_hostile_value_costs_neither_memory_nor_a_screenful(tmp_path: Path, value: str) -> None:
    error = refused(tmp_path, f"method: ties\nadapters: [{{adapter: a, weight: {value}}}]")
    assert "adapters[0].weight" in error.what
    assert len(str(error)) < 1000


def test_a_file_too_large_to_be_a_recipe_is_not_read(tmp_path: Path) -> None:
    assert "more than" in refused(tmp_path, "# " + "x" * 2**20).why


def test_a_recipe_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(NotFoundError, match="no recipe"):
            read_recipe(path)
