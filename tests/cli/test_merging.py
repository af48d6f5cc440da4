"""`merge`, `export`, `rebuild` and `methods` as they are typed and read."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.errors import ExitCode
from adapterhub.merge.specs import SEMANTICS, methods
from tests.cli.calling import Said, call
from tests.cli.terminals import on_a_terminal
from tests.support.adapters import llama_modules

if TYPE_CHECKING:
    from pathlib import Path

    from adapterhub.store import Store
    from tests.support.adapters import AdapterMaker

RECIPE = """
steps:
  - {name: both, method: ties, adapters: [tone, {adapter: terms, weight: [{layers: 0, value: 0.5}]}]}
  - {method: linear, adapters: [{step: both, weight: 0.8}, {adapter: style, weight: 0.2}]}
rank: 4
name: desk/steps
"""


@pytest.fixture
def recipe(store: Store, make_adapter: AdapterMaker, tmp_path: Path) -> Path:
    """A recipe of steps, in a store that has its adapters."""
    for seed, name in enumerate(("tone", "terms", "style")):
        store.add_folder(make_adapter(name, seed=seed, modules=llama_modules("q_proj")), name=name)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


# methods


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_methods_fits_the_terminal(width: int) -> None:
    shown = on_a_terminal("methods", width=width).out
    lines = re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()
    assert max(map(len, lines)) <= width
    first = [line.split()[:2] for line in lines if re.match(r" ?\w", line)]
    assert first[0] == ["name", "family"]
    assert first[1:] == [[spec.name, spec.family] for spec in methods().values()]


def test_methods_piped_are_whole_lines() -> None:
    rows = [line.split("\t") for line in call("methods").out.splitlines()]
    assert rows == [["name", "family", "good_for"]] + [
        [spec.name, spec.family, spec.good_for] for spec in methods().values()
    ]


def test_methods_as_json_are_the_specs() -> None:
    rows = call("methods", "--json").json
    assert [row["name"] for row in rows] == list(methods())
    for row, spec in zip(rows, methods().values(), strict=True):
        assert set(row) == {
            "name", "title", "paper", "good_for", "family", "default_weights", "parameters", "semantics",
            "min_inputs", "max_inputs", "requires", "spaces", "default_rank", "laws",
        }  # fmt: skip
        for parameter in row["parameters"]:
            assert set(parameter) == {
                "name", "flag", "kind", "default", "minimum", "maximum", "above_minimum", "choices",
                "range", "varies", "help",
            }  # fmt: skip
        assert {p["name"]: p["default"] for p in row["parameters"]} == row["semantics"]["paper"]
        for whose, values in row["semantics"].items():
            assert values == spec.defaults(whose)
        assert call("methods", spec.name, "--json").json == row


@pytest.mark.parametrize("name", methods())
def test_a_method_is_explained_in_words(name: str) -> None:
    spec, said = methods()[name], call("methods", name.replace("_", "-"))
    words = " ".join(said.out.split())
    for part in (spec.title, spec.good_for, spec.paper):
        assert part in words
    for parameter in spec.parameters:
        assert f"{parameter.flag} default " in words
        assert parameter.range in words
        assert parameter.help in words
    assert ("--seed" in words) == ("seed" in spec.requires)
    assert max(map(len, said.out.splitlines())) <= 100
    differ = [
        p.flag
        for p in spec.parameters
        if len({str(spec.defaults(s)[p.name]) for s in SEMANTICS if s in ("paper", *spec.semantics)}) > 1
    ]  # fmt: skip
    table = said.out.partition("  --semantics       paper")[2].partition("Laws")[0]
    assert re.findall(r"^  (--[\w-]+)", table, re.MULTILINE) == differ


@pytest.mark.parametrize("name", methods())
@pytest.mark.usefixtures("recipe")
def test_the_example_of_a_method_can_be_typed(name: str) -> None:
    (example,) = re.findall(r"^  adapterhub (merge .*)$", call("methods", name).out, re.MULTILINE)
    for placeholder, known in {"A": "tone", "B": "terms", "C": "new"}.items():
        example = re.sub(rf"\b{placeholder}\b", known, example)
    said = call(*example.split(), "--dry-run", "--json")
    assert said.code == 0, said.err
    assert said.json["method"] == name
    defaults = methods()[name].defaults()
    assert said.json["parameters"] == defaults


# merge --help


@pytest.mark.parametrize("width", ["80", "120"])
def test_help_tells_every_parameter_once_with_its_methods(
    width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    said = call("merge", "--help").out
    assert max(map(len, said.splitlines())) <= int(width)
    assert "…" not in said
    words = re.sub(r"[│\s]+", " ", said)
    for spec in methods().values():
        for parameter in spec.parameters:
            assert len(re.findall(rf"│ {parameter.flag} ", said)) == 1
    assert "[magnitude_prune, ties: 0.2; dare*: 0.8; della*: 0.5; breadcrumbs*: 0.14]" in words
    assert "[linear: no; multislerp: yes]" in words


# merge


def merged(*words: str | Path) -> Said:
    said = call("merge", *words)
    assert said.code == 0, said.err
    return said


def test_a_merge_tells_what_it_did_and_what_that_cost(recipe: Path) -> None:
    said = merged("tone", "terms", "--method", "ties", "--rank", "2", "--name", "both")
    lines = said.out.splitlines()
    assert re.fullmatch("both  @[0-9a-f]{12}", lines[0])
    assert lines[1].startswith("method  ties of tone (1), terms (1); density 0.2, lambda 1")
    assert re.fullmatch(r"rank    2: keeps \d\d\.\d\d% of the energy \(error 0\.\d+\); least of model\S+: \d\d\.\d\d%", lines[2])  # fmt: skip
    assert lines[4].split() == ["retained", "subspace"]
    assert [line.split()[0] for line in lines[5:7]] == ["tone", "terms"]
    assert lines[8].startswith("retained  ")
    assert lines[9].startswith("subspace  ")
    assert call("merge", "tone", "terms", "--name", "whole").out.count("nothing is cut off") == 1


def test_its_words_fit_a_narrow_terminal(recipe: Path) -> None:
    shown = on_a_terminal("merge", str(recipe), width=60)
    assert shown.code == 0
    body = shown.out[shown.out.index("desk/steps  @") :].splitlines()
    assert max(map(len, body)) <= 60
    assert body[1].startswith("step both  ties of tone (1), terms (by module);")
    assert body[2].startswith(" " * 11)


def test_json_tells_every_module(recipe: Path) -> None:
    found = merged(recipe, "--json").json
    assert found["name"] == "desk/steps"
    assert [parent["name"] for parent in found["parents"]] == ["tone", "terms", "style"]
    assert found["recipe"]["steps"][0]["weights"][1] == [{"layers": [0, 0], "value": 0.5}, {"value": 1.0}]  # fmt: skip
    assert set(found["modules"]) == set(llama_modules("q_proj"))
    for row in found["modules"].values():
        assert row.keys() == {"rank", "energy_kept", "error", "retained", "subspace"}
        assert (len(row["retained"]), len(row["subspace"]), row["rank"]) == (3, 3, 4)
    assert merged(recipe, "-q").out == found["digest"] + "\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tone", "terms", "tone", "--weights", "1,-0.5,2"], "linear of tone (1), terms (-0.5), tone (2), normalize"),
        (["tone", "terms", "--method", "slerp"], "slerp of tone, terms, dot_threshold"),
        (["{recipe}", "--name", "made"], "linear in 2 steps of tone, terms, style; rank 4"),
    ],
)  # fmt: skip
def test_show_says_how_it_was_made(recipe: Path, words: list[str], told: str) -> None:
    merged(*(word.format(recipe=recipe) for word in words), "--name", "made")
    assert told in call("show", "made").out


def test_numbers_of_a_parent_are_its_own_also_when_another_recipe_gave_the_same(
    recipe: Path,
) -> None:
    """tone and terms the other way round: the same sum, told in the other order."""
    one = merged("tone", "terms", "--weights", "1,3", "--rank", "full", "--name", "one", "--json")
    other = merged("terms", "tone", "--weights", "3,1", "--rank", "full", "--name", "x", "--json")
    again = merged("tone", "terms", "--weights", "1,3", "--rank", "full", "--name", "y", "--json")
    numbers = [{p["name"]: p["retained"] for p in said.json["parents"]} for said in (one, other, again)]  # fmt: skip
    assert numbers[0] == numbers[2]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)


def test_a_dry_run_says_the_recipe_and_changes_nothing(recipe: Path, store: Store) -> None:
    before = store.refs.all()
    name, first, *rest = merged(recipe, "--dry-run").out.splitlines()
    assert name.split() == ["name", merged(recipe, "--dry-run", "--json").json["name"]]
    assert first.startswith("step both  ties of tone (1), terms (by module); density 0.2, lambda 1")
    assert rest == ["method  linear of step both (0.8), style (0.2); normalize no", "rank  4"]
    document = merged(recipe, "--dry-run", "--json").json
    assert document["parents"] == ["tone", "terms", "style"]
    assert len(document["steps"]) == 2
    assert store.refs.all() == before
    assert not store.runs_dir.exists()


def test_a_dry_run_refuses_what_the_merge_would_refuse(recipe: Path) -> None:
    said = call("merge", "tone", "terms", "--name", "tone", "--dry-run")
    assert said.code == ExitCode.FAILED
    assert "The name tone is taken by another adapter" in said.err
    assert "tone" in merged("tone", "terms", "--name", "tone", "--move", "--dry-run").out


def test_the_name_that_was_typed_comes_before_the_recipes(recipe: Path) -> None:
    assert merged(recipe, "--name", "mine", "--json").json["name"] == "mine"


@pytest.mark.parametrize(
    "words",
    [
        ("--method", "ties"),
        ("--weights", "1,2"),
        ("--rank", "4"),
        ("--dtype", "float32"),
        ("--semantics", "paper"),
        ("--seed", "0"),
        ("--dora", "approximate"),
        ("--saved-from", "tone"),
        ("--trim-scope", "module"),
        ("--no-normalize",),
        ("--density", "0"),
    ],
)
def test_what_a_recipe_decides_can_not_be_said_beside_it(
    recipe: Path, words: tuple[str, ...]
) -> None:
    said = call("merge", recipe, *words, "--json")
    assert said.code == ExitCode.USAGE
    flag = words[0].replace("--no-", "--")
    assert said.error["what"] == f"{flag} can't be given beside a recipe."
    assert str(recipe) in said.error["hint"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["{recipe}", "tone"], ExitCode.USAGE, "is a recipe, and stands alone"),
        (["absent.yaml"], ExitCode.NOT_FOUND, "There is no recipe absent.yaml"),
        (["tone", "nobody"], ExitCode.NOT_FOUND, "nobody"),
        (["tone", "other"], ExitCode.INCOMPATIBLE, "different base models"),
        (["tone", "--method", "slerp"], ExitCode.USAGE, "exactly 2 adapters; 1 was given"),
        (["tone", "terms", "-m", "slerp", "--weights", "1,2"], ExitCode.USAGE, "takes no weights"),
        (["tone", "terms", "-m", "ties", "--t", "0.3"], ExitCode.USAGE, "has no parameter t"),
        (["tone", "terms", "-m", "ties", "--vote", "x"], ExitCode.USAGE, "weighted or unweighted"),
        (["tone", "terms", "-m", "slerp", "--semantics", "peft"], ExitCode.USAGE, "paper, mergekit"),
        (["tone", "terms", "--semantics", "mine"], ExitCode.USAGE, "paper or peft or mergekit"),
        (["tone", "--saved-from", "terms"], ExitCode.USAGE, "none of the adapters"),
        (["tone", "--dora", "exact"], ExitCode.USAGE, "may be approximate"),
        (["tone", "terms", "--rank", "energy=2"], ExitCode.USAGE, "above 0 and up to 1"),
        (["tone", "terms", "--memory", "much"], ExitCode.USAGE, "is no size"),
        (["tone", "terms", "--device", "tpu"], ExitCode.USAGE, "cpu or cuda or auto"),
        (["tone", "terms", "--seed", "-1"], ExitCode.USAGE, "equal to 0"),
        (["tone", "terms", "-m", "della", "--epsilon", "0.5"], ExitCode.USAGE, "too large"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_said_with_its_exit_code(
    recipe: Path,
    store: Store,
    make_adapter: AdapterMaker,
    words: list[str],
    code: ExitCode,
    says: str,
) -> None:
    store.add_folder(make_adapter("other", base="org/else"), name="other")
    before = store.refs.all()
    said = call("merge", *(word.format(recipe=recipe) for word in words))
    assert (said.code, said.out) == (code, "")
    assert says in said.err
    assert store.refs.all() == before


def test_a_recipe_that_is_wrong_is_told_by_its_path(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("layers: 0", "layers: [1, 0]"))
    for command in (("merge", recipe), ("export", recipe, "-o", "out")):
        said = call(*command, "--json")
        assert said.code == ExitCode.USAGE
        assert said.error["what"].startswith(f"{recipe}: steps[0].adapters[1].weight[0].layers: [1, 0]")  # fmt: skip


# export


def test_a_recipe_is_exported(recipe: Path, tiny_llama: Path, tmp_path: Path) -> None:
    said = call("export", recipe, "-o", tmp_path / "model", "--base", tiny_llama, "--json")
    assert said.code == 0, said.err
    assert said.json["adapters"] == ["tone", "terms", "style"]
    record: dict[str, Any] = json.loads((tmp_path / "model" / "adapterhub.json").read_text())
    assert [step["method"] for step in record["recipe"]["steps"]] == ["ties", "linear"]
    again = call("export", recipe, "-o", tmp_path / "x", "--base", tiny_llama, "--density", "0.3")
    assert again.code == ExitCode.USAGE
    assert "--density can't be given beside a recipe" in again.err


def test_an_export_tells_what_it_checked(
    store: Store, make_adapter: AdapterMaker, tiny_llama: Path, tmp_path: Path
) -> None:
    store.add_folder(make_adapter(), name="tone")

    def export(*flags: str) -> Said:
        out = tmp_path / f"model{len(list(tmp_path.glob('model*')))}"
        return call("export", "tone", "-o", out, "--base", tiny_llama, *flags)

    said = export()
    assert said.code == 0, said.err
    assert re.search(r"weights +all 192 rows of 4 changed tensors are right", said.out)
    assert re.search(r"logits +against the adapter attached in float32, on \d+ tokens", said.out)
    assert "bake_loss  0.0% by rounding to float32" in said.out
    full = export("--verify-all", "--json").json["verified"]
    assert full["weights"]["rows"] == full["weights"]["of_rows"] == 192
    assert export("--no-verify", "--json").json["verified"] == {}
    assert "not checked" in export("--no-verify").out
    assert export("--no-verify", "--verify-all").code == ExitCode.USAGE
    shown = call("show", "tone").out
    assert "exported into" in shown
