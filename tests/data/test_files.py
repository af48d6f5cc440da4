"""Whatever kind of file rows come in, in folders or a list, they are the same rows, known by file and number."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.data import read_data, read_rows, scan_rows
from adapterhub.data.records import ENDINGS
from adapterhub.errors import FormatError, MissingDependencyError, NotFoundError
from tests.support.chat import chat_rows, write_rows


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_the_same_rows_come_out_of_every_kind_of_file(tmp_path: Path) -> None:
    rows = chat_rows(6)
    rows[2]["output"] = 'Two lines,\nand a "quote" – ' + "long " * 40_000
    files = [
        write_rows(tmp_path / "a.json", rows),
        write_lines(tmp_path / "b.jsonl", rows),
        write_lines(tmp_path / "c.json", rows),  # so many on the Hub are called
        write_csv(tmp_path / "d.csv", rows),
        write_parquet(tmp_path / "e.parquet", rows),
    ]
    found = [read_rows(path) for path in files]
    assert all(one == found[0] for one in found)
    assert len(found[0]) == 6
    numbers = [[row.number for row in one] for one in found]
    assert numbers == [[1, 2, 3, 4, 5, 6]] * 3 + [[2, 3, 4, 5, 6, 7]] + [[1, 2, 3, 4, 5, 6]]


def test_conversations_in_tables_are_turns(tmp_path: Path) -> None:
    """In a cell they are JSON; in Parquet they are structures, in which absent keys came to be nulls."""
    calls = [{"function": {"name": "now", "arguments": {"zone": "utc"}}}, {"function": {"name": "add", "arguments": {"a": 1}}}]  # fmt: skip
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "Now?", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]
    plain = [{key: value for key, value in turn.items() if value} for turn in said]
    rows = [
        read_rows(write_rows(tmp_path / "a.json", [{"messages": plain}])),
        read_rows(write_parquet(tmp_path / "b.parquet", [{"messages": said}])),
        read_rows(write_csv(tmp_path / "c.csv", [{"messages": json.dumps(plain)}])),
    ]
    assert rows[0] == rows[1] == rows[2]
    assert '"arguments": {"zone": "utc"}' in rows[0][0].messages[1].content


def test_a_folder_is_all_its_data_as_people_sort_it(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for place in ("data", ".cache", "data/.hidden"):
        (folder / place).mkdir(parents=True)
    for name in ("data/part-10.json", "data/part-9.json", ".cache/x.json", "data/.hidden/x.json"):
        write_rows(folder / name, [{"text": name}])
    (folder / "README.md").write_text("about")
    write_rows(folder / "dataset_infos.json", [{"text": "about"}])
    rows = read_data([str(folder), write_rows(tmp_path / "more.json", [{"text": "more"}])])
    assert [row.text for row in rows] == ["data/part-9.json", "data/part-10.json", "more"]
    assert [row.where for row in rows] == ["data/part-9.json:1", "data/part-10.json:1", "more.json:1"]  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="holds no file of data"):
        read_data(str(tmp_path / "empty"))


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        paths.append(write_rows(tmp_path / place / "train.json", [{"instruction": "x"}]))
    with pytest.raises(FormatError, match=r"2 files have 2 faulty row\(s\) of 2") as caught:
        read_data(paths)
    assert f"{paths[1]}, row 1: 'output' must be text" in caught.value.why


def test_a_missing_part_of_a_sharded_file_is_noticed(tmp_path: Path) -> None:
    for part in (0, 2):
        write_rows(tmp_path / f"train-{part:05}-of-00003.json", [{"text": str(part)}])
    with pytest.raises(FormatError, match="train has 3 parts, and 2 of them") as caught:
        read_data(tmp_path)
    assert "train-00001-of-00003.json" in caught.value.why
    assert len(read_data(tmp_path / "train-00002-of-00003.json")) == 1  # one by one is a choice


def test_columns_that_are_not_used_are_known(tmp_path: Path) -> None:
    row = {"instruction": "x", "output": "y", "score": 3, "source": "z"}
    (file,) = scan_rows(write_rows(tmp_path / "d.json", [row])).files
    assert (file.format, file.unused) == ("alpaca", ("score", "source"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.csv", "instruction;output\nx;y\n", "not separated by commas"),
        ("d.csv", "instruction,output\nx,y,z\n", "Row 2 of d.csv has 3 cells, and the header has 2"),
        ("d.csv", "instruction,output\nx,y\nx\n", "Row 3 of d.csv has 1 cells"),
        ("d.csv", 'instruction,output\nx,"y\n', "not a sound CSV file"),
        ("d.csv", "text,text\nx,y\n", "Two columns of d.csv have the same name"),
        ("d.csv", "", "has no rows"),
        ("d.parquet", "x", "can't be read as Parquet"),
        ("d.json", '{"a": 1}', "must hold a list"),
        ("d.json", '{"text": "a"}\n{', "d.json, line 2 is not valid JSON"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_it_is_called_is_refused(
    tmp_path: Path, name: str, content: str, says: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(FormatError, match=says):
        read_rows(path)


def test_the_longest_cell_that_others_read_is_left_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    read_rows(write_csv(tmp_path / "d.csv", chat_rows(3)))
    assert csv.field_size_limit() == before


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError) as caught:
        read_rows(write_lines(tmp_path / "d.parquet", [1]))
    assert "pip install" in caught.value.hint
    assert ".parquet" in ENDINGS
