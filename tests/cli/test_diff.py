"""`diff` as it is typed: for people, for pipes, for programs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.cli.heatmap import heatmap
from adapterhub.compare.grid import Grid
from adapterhub.store import Store
from tests.cli.calling import call
from tests.cli.terminals import on_a_terminal
from tests.support.adapters import EMBEDDING, AdapterMaker, llama_modules

LAYERS = 32
SHAPES = {**llama_modules(layers=range(LAYERS)), **EMBEDDING}
ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@pytest.fixture
def two(store: Store, make_adapter: AdapterMaker) -> None:
    """Two adapters of 32 layers, seven kinds of modules and the embedding."""
    for seed, name in enumerate(("tone", "terms")):
        folder = make_adapter(name, seed=seed, rank=2 + seed, modules=SHAPES)
        store.add_folder(folder, name=f"demo/{name}")


def test_json_has_everything_under_stable_keys(two: None) -> None:
    found = call("diff", "demo/tone", "demo/terms", "--json").json
    assert set(found) == {
        "adapters", "settings", "pairs", "cosines", "conflicts", "signs", "modules", "verdict", "findings", "command", "reason",
    }  # fmt: skip
    assert [one["name"] for one in found["adapters"]] == ["demo/tone", "demo/terms"]
    assert found["settings"]["rank"] == [2, 3]
    (pair,) = found["pairs"]
    assert set(pair) == {
        "a", "b", "cosine", "inner", "norm_ratio", "conflict", "conflict_error", "top_conflict", "a_inside_b", "b_inside_a",
        "shared_modules",
    }  # fmt: skip
    assert found["cosines"] == [[1, pair["cosine"]], [pair["cosine"], 1]]
    assert found["conflicts"] == [[0, pair["conflict"]], [pair["conflict"], 0]]
    assert [module["layer"] for module in found["modules"][1::7]] == list(range(LAYERS))
    module = found["modules"][1]
    assert set(module) == {
        "module", "layer", "part", "shape", "norms", "ranks", "effective_ranks", "stable_ranks", "leading_ranks", "pairs",
        "worst_pair",
    }  # fmt: skip
    assert len(module["pairs"][0]["angles_out"]) == len(module["pairs"][0]["angles_in"]) == 2
    assert found["verdict"] == " ".join(finding["text"] for finding in found["findings"])
    assert found["signs"]["exact"] is False


def test_the_command_it_recommends_runs(two: None) -> None:
    line = call("diff", "demo/tone", "demo/terms", "--json").json["command"]
    assert line in call("diff", "demo/tone", "demo/terms").out
    program, *words = shlex.split(line)
    assert program == "adapterhub"
    assert call(*words, "--dry-run").code == 0


def test_quiet_prints_a_cosine_a_pair(two: None, store: Store, make_adapter: AdapterMaker) -> None:
    store.add_folder(make_adapter("third", seed=5), name="third")
    every = call("diff", "demo/tone", "demo/terms", "third", "--json").json
    said = call("diff", "demo/tone", "demo/terms", "third", "-q")
    assert [float(line) for line in said.out.split()] == [pair["cosine"] for pair in every["pairs"]]
    assert said.err == ""
    assert [(pair["a"], pair["b"]) for pair in every["pairs"]] == [
        ("demo/tone", "demo/terms"), ("demo/tone", "third"), ("demo/terms", "third"),
    ]  # fmt: skip


def test_a_pipe_gets_plain_numbers_in_tab_separated_tables(two: None) -> None:
    said = call("diff", "demo/tone", "demo/terms")
    assert "\x1b" not in said.out
    lines = said.out.splitlines()
    head = lines.index("layer\tq_proj\tk_proj\tv_proj\to_proj\tgate_proj\tup_proj\tdown_proj")
    rows = [line.split("\t") for line in lines[head + 1 : head + LAYERS + 2]]
    assert [row[0] for row in rows] == [*map(str, range(LAYERS)), "all"]
    modules = call("diff", "demo/tone", "demo/terms", "--json").json["modules"]
    expected = next(m for m in modules if m["module"] == "model.layers.31.self_attn.v_proj")
    assert float(rows[31][3]) == pytest.approx(expected["pairs"][0]["cosine"], rel=1e-3)
    assert "model.embed_tokens\t" in said.out
    assert "sampled: 64 rows of each module" in said.err


@pytest.mark.parametrize("measure", ["cosine", "conflict", "norm-ratio", "overlap"])
def test_each_measure_fills_the_heatmap(two: None, measure: str) -> None:
    said = call("diff", "demo/tone", "demo/terms", "--measure", measure)
    (row,) = [line.split("\t") for line in said.out.splitlines() if line.startswith("31\t")]
    assert all(re.fullmatch(r"-?[0-9.e-]+", cell) for cell in row)


def test_a_row_of_a_module_is_one_line_also_on_a_narrow_terminal(two: None) -> None:
    shown = ESCAPE.sub(
        "", on_a_terminal("diff", "demo/tone", "demo/terms", "--modules", width=80).out
    )
    rows = [line for line in shown.splitlines() if line.strip().startswith("model.layers")]
    assert len(rows) == 7 * LAYERS
    assert all(len(row.split()) == 5 for row in rows)


def test_modules_are_a_row_each_in_natural_order(two: None) -> None:
    lines = call("diff", "demo/tone", "demo/terms", "--modules").out.splitlines()
    names = [line.split("\t")[0] for line in lines if line.startswith("model.")]
    assert len(names) == len(SHAPES)
    assert names.index("model.layers.9.mlp.up_proj") < names.index("model.layers.10.mlp.up_proj")


def test_of_three_there_are_matrices_and_the_worst_pair_of_each_module(
    store: Store, make_adapter: AdapterMaker
) -> None:
    one = make_adapter("one")
    for name, seed in (("one", 0), ("two", 1), ("three", 2)):
        store.add_folder(one if name == "one" else make_adapter(name, seed=seed), name=name)
    lines = call("diff", "one", "two", "three").out.splitlines()
    assert "cosine\tone\ttwo\tthree" in lines
    assert "sign conflict\tone\ttwo\tthree" in lines
    found = call("diff", "one", "two", "three", "--json").json
    for module in found["modules"]:
        worst = min(module["pairs"], key=lambda pair: pair["cosine"])
        assert module["worst_pair"] == [worst["a"], worst["b"]]


def test_exact_counts_every_row(store: Store, make_adapter: AdapterMaker) -> None:
    tall = {"model.layers.0.mlp.up_proj": (500, 30)}
    for seed, name in enumerate(("one", "two")):
        store.add_folder(make_adapter(name, seed=seed, modules=tall), name=name)
    sampled = call("diff", "one", "two", "--json").json
    exact = call("diff", "one", "two", "--exact", "--json").json
    assert sampled["signs"] == {
        "exact": False,
        "rows_a_module": 64,
        "elements": 64 * 30,
        "of_elements": 500 * 30,
    }
    assert exact["signs"]["elements"] == 500 * 30
    assert exact["modules"][0]["pairs"][0]["rows"] == 500
    assert exact["pairs"][0]["conflict_error"] == 0 < sampled["pairs"][0]["conflict_error"]


def test_adapters_of_different_bases_are_compared_with_a_warning_and_no_command(
    store: Store, make_adapter: AdapterMaker
) -> None:
    store.add_folder(make_adapter("one", base="org/one"), name="one")
    store.add_folder(make_adapter("two", base="org/two", seed=1), name="two")
    said = call("diff", "one", "two")
    assert said.code == 0
    assert "different base models" in said.err
    assert "No merge to recommend: adapters of different base models" in said.out
    assert call("diff", "one", "two", "--json").json["command"] is None


def test_dora_is_compared_and_what_is_left_out_is_told(
    store: Store, make_adapter: AdapterMaker
) -> None:
    store.add_folder(make_adapter("plain"), name="plain")
    store.add_folder(make_adapter("dora", seed=1, use_dora=True), name="dora")
    said = call("diff", "plain", "dora")
    assert said.code == 0
    assert "Only the low-rank part of dora is compared; left out: DoRA" in said.out
    assert "No merge to recommend" in said.out


@pytest.mark.parametrize("width", [80, 120])
def test_32_layers_fit_a_terminal_of_24_lines(two: None, width: int) -> None:
    shown = on_a_terminal("diff", "demo/tone", "demo/terms", width=width).out
    lines = [line.rstrip("\r") for line in shown.split("\n")]
    first = next(n for n, line in enumerate(lines) if ESCAPE.sub("", line).startswith("cosine  -1"))
    last = next(n for n, line in enumerate(lines) if ESCAPE.sub("", line).startswith("model.embed"))
    assert last - first < 23
    assert all(len(ESCAPE.sub("", line)) <= width for line in lines[first : last + 1])
    cells = "\n".join(ESCAPE.sub("", line) for line in lines[first + 3 : last])
    layers = re.findall(r"(?<![\d.])\d+(?![\d.])", cells)
    assert sorted(map(int, layers)) == list(range(LAYERS))
    legend = lines[first + 1]
    assert "opposed" in legend
    assert "48;5;" in legend


def test_no_color_leaves_the_numbers(two: None) -> None:
    plain = on_a_terminal("diff", "demo/tone", "demo/terms", NO_COLOR="1").out
    assert not re.search(r"\x1b\[[0-9;]*[34]8;", plain)
    assert "opposed  " not in plain
    coloured = on_a_terminal("diff", "demo/tone", "demo/terms").out
    table = [re.findall(r"-?\.\d\d", ESCAPE.sub("", text)) for text in (plain, coloured)]
    assert len(table[0]) >= 7 * LAYERS
    assert set(table[0]) <= set(table[1])


def test_a_cell_has_the_colour_of_its_value_and_what_is_not_there_a_point() -> None:
    cells = (-0.7, -0.3, 0.0, 0.3, 1.0, None)
    names = tuple("abcdef")
    lines = heatmap(Grid(names, (("0", cells),), cells, ()), "cosine", 80)
    shown = {text.strip(): style for text, style in lines[1]}
    assert [shown[text] for text in ("-.70", "-.30", ".00", ".30", "1.0")] == [
        "white on color(160)", "white on color(124)", "dim", "white on color(25)", "white on color(33)",
    ]  # fmt: skip
    assert shown["·"] == ""


def test_columns_that_do_not_fit_go_below() -> None:
    names = tuple(f"projection_{n}" for n in range(12))
    cells = tuple(n / 12 for n in range(12))
    lines = heatmap(Grid(names, (("0", cells), ("1", cells)), cells, ()), "conflict", 60)
    texts = ["".join(text for text, _ in line) for line in lines]
    assert max(map(len, texts)) <= 60
    assert all(any(name in text for text in texts) for name in names)


def test_it_needs_neither_torch_nor_the_merge_extra(two: None, tmp_path: Path) -> None:
    code = (
        "import sys\nfor name in ('torch', 'safetensors'): sys.modules[name] = None\n"
        "from adapterhub.cli.main import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "diff", "demo/tone", "demo/terms", "--json"],
        env={**os.environ, "ADAPTERHUB_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"].startswith("adapterhub merge demo/tone demo/terms")
