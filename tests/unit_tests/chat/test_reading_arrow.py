# SPDX-License-Identifier: Apache-2.0
"""Parquet, Arrow and Feather files, and data sets of the hub."""

import sys
from pathlib import Path
from typing import Any

import pytest

from primus.chat import read_rows
from primus.chat.reading import read_row_batches
from primus.errors import DataError
from tests.unit_tests.chat.rows_of_files import refusal, values, write

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")

ROWS = [{"messages": [{"role": "user", "content": f"{i}"}], "weight": None} for i in range(600)]
KINDS = ["a.parquet", "file.arrow", "stream.arrow", "a.feather"]


def write_table(folder: Path, kind: str, table: Any) -> Path:
    path = folder / kind
    if kind == "a.parquet":
        pq.write_table(table, path, row_group_size=100)
    elif kind == "a.feather":
        feather.write_feather(table, str(path), chunksize=300)
    else:
        writer = pa.ipc.new_file if kind == "file.arrow" else pa.ipc.new_stream
        with writer(str(path), table.schema) as sink:
            sink.write_table(table, max_chunksize=300)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_read_with_their_indices(kind: str, tmp_path: Path) -> None:
    path = write_table(tmp_path, kind, pa.Table.from_pylist(ROWS))
    assert values(path) == ROWS
    assert [row.origin for row in read_rows(path)] == [f"{path}[{i}]" for i in range(600)]
    progress = [batch.bytes_read for batch in read_row_batches(path, batch_bytes=1)]
    assert progress == sorted(progress)
    assert 0 < progress[-1] <= path.stat().st_size


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_is_an_object(kind: str, tmp_path: Path) -> None:
    column = pa.array([[("a", 1), ("b", 2)], [("c", 3)], None], pa.map_(pa.string(), pa.int64()))
    path = write_table(tmp_path, kind, pa.table({"arguments": column}))
    assert values(path) == [{"arguments": {"a": 1, "b": 2}}, {"arguments": {"c": 3}}, {"arguments": None}]


def test_a_map_that_has_a_key_twice_is_refused(tmp_path: Path) -> None:
    column = pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64()))
    path = write_table(tmp_path, "a.parquet", pa.table({"arguments": column}))
    assert refusal(path).startswith(": not a readable Parquet file (")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_without_a_row_is_refused(kind: str, tmp_path: Path) -> None:
    path = write_table(tmp_path, kind, pa.table({"a": pa.array([], pa.string())}))
    assert refusal(path) == ": the file has no rows; a data file needs at least one"


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused(kept: float, kind: str, tmp_path: Path) -> None:
    path = write_table(tmp_path, kind, pa.table({"a": list(range(1000))}))
    data = path.read_bytes()
    written = write(path, data[: int(kept * len(data))] or b"PAR1")
    if kind == "stream.arrow" and kept == 0.99:
        pytest.skip("a stream without its mark of the end is whole")
    assert refusal(written).startswith(f": not a readable {'Parquet' if kind == 'a.parquet' else 'Arrow'} file (")


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_is_no_utf8_is_refused(kind: str, tmp_path: Path) -> None:
    bounds, data = pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe")
    path = write_table(tmp_path, kind, pa.table({"a": pa.StringArray.from_buffers(2, bounds, data)}))
    kind_name = "Parquet" if kind == "a.parquet" else "Arrow"
    assert refusal(path).startswith(f": not a readable {kind_name} file ('utf-8' codec can't decode byte")


@pytest.mark.parametrize("name", ["arguments", "parameters", "properties", "input", "input_schema"])
@pytest.mark.parametrize("kind", KINDS)
def test_tool_arguments_as_a_struct_are_refused_because_their_keys_are_merged(
    name: str, kind: str, tmp_path: Path
) -> None:
    calls = [{"function": {"name": "f", name: {"a": 1}}}, {"function": {"name": "g", name: {"b": "z"}}}]
    rows = [{"messages": [{"role": "assistant", "tool_calls": [call]}]} for call in calls]
    path = write_table(tmp_path, kind, pa.Table.from_pylist(rows))
    assert refusal(path) == (
        f": {name!r} is a struct, in which Arrow and Parquet give each row the keys of all rows, so calls would be"
        " trained with arguments that nobody wrote; store it as a JSON string"
    )


# --- the hub ---


@pytest.mark.parametrize(
    "name",
    ["hf://a/b/c", "hf://", "hf://a/", "hf://a/b?spilt=x", "hf://a/b?split=", "hf://a/b?split=x&split=y"],
)
def test_what_names_no_data_set_is_refused(name: str) -> None:
    pattern = r"^hf://.*: is not the name of a data set; write hf://owner/name, and behind it \?config=\.\.\.,"
    with pytest.raises(DataError, match=pattern):
        list(read_rows(name))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"^hf://owner/name: data sets of the hub need .* pip install 'primus\[hub\]'$"):
        list(read_rows("hf://owner/name"))


@pytest.fixture
def data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the library finds `owner/name` before it asks the hub."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    return folder


def test_a_split_of_a_data_set_is_streamed(data_sets: Path) -> None:
    for split in ("train", "test"):
        lines = [f'{{"question": "{split} {i}", "answer": "{i}"}}' for i in range(600)]
        (data_sets / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    train, test = list(read_rows("hf://owner/name")), list(read_rows(Path("hf://owner/name?split=test")))
    assert (len(train), train[-1].origin) == (600, "hf://owner/name[599]")
    assert train[-1].value == {"question": "train 599", "answer": "599"}
    assert (len(test), test[0].origin) == (600, "hf://owner/name?split=test[0]")
    assert test[0].value == {"question": "test 0", "answer": "0"}
    with pytest.raises(DataError, match=r"^hf://owner/name\?split=dev: can't be read from the hub \(Bad split: dev"):
        list(read_rows("hf://owner/name?split=dev"))


def test_arguments_of_a_data_set_keep_the_keys_that_each_row_has(data_sets: Path) -> None:
    calls = ['{"a": 1}', '{"b": "z"}', '{"a": "x"}']
    lines = [f'{{"messages": [{{"role": "assistant", "arguments": {call}}}]}}' for call in calls]
    (data_sets / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = [row.value["messages"][0]["arguments"] for row in read_rows("hf://owner/name")]
    assert [text.replace(" ", "") for text in found] == [call.replace(" ", "") for call in calls]
