# SPDX-License-Identifier: Apache-2.0
"""Rows of files, with their origins; nothing that a file holds is lost without a word."""

import gzip
import itertools
import json
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard

from primus.chat import Row, read_rows
from primus.errors import DataError

ROWS: list[Any] = [{"a": 1}, {"a": "ü\u2028\u0085\x0b你好"}, [1, None], "text", {"a": {"b": [True, 1.5]}}]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def values(path: Path) -> list[Any]:
    rows = list(read_rows(path))
    assert [row.error for row in rows] == [None] * len(rows)
    return [row.value for row in rows]


def only_row(path: Path) -> Row:
    [row] = read_rows(path)
    return row


def gz(data: bytes) -> bytes:
    """Without the time in it: these bytes are in the names of tests."""
    return gzip.compress(data, mtime=0)


def zstd(data: bytes, *, frames: int = 1, checksum: bool = False) -> bytes:
    size = -(-len(data) // frames)
    compressor = zstandard.ZstdCompressor(write_checksum=checksum)
    return b"".join(compressor.compress(data[i : i + size]) for i in range(0, len(data), size))


# --- formats ---


def test_lines_become_rows_with_their_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINES)
    assert values(path) == ROWS
    assert [row.origin for row in read_rows(path)] == [f"{path}:{i}" for i in range(1, 6)]


def test_elements_of_a_list_become_rows_with_their_indices(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(ROWS, indent=1).encode())
    assert values(path) == ROWS
    assert [row.origin for row in read_rows(path)] == [f"{path}[{i}]" for i in range(5)]


def test_a_path_may_be_text(tmp_path: Path) -> None:
    assert [row.value for row in read_rows(str(write(tmp_path / "a.jsonl", LINES)))] == ROWS


@pytest.mark.parametrize("name", ["a.JSONL", "data.v2.jsonl", "a.b.JSON"])
def test_the_ending_tells_the_format(name: str, tmp_path: Path) -> None:
    data = LINES if name.lower().endswith("l") else json.dumps(ROWS).encode()
    assert values(write(tmp_path / name, data)) == ROWS


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".gz", gz(LINES)),
        (".GZ", gz(LINES)),
        (".gz", gz(LINES[:30]) + gz(LINES[30:])),
        (".zst", zstd(LINES)),
        (".zst", zstd(LINES, frames=3)),
        (".zst", zstd(LINES, frames=len(LINES), checksum=True)),
        (".zst", zstd(LINES[:30]) + zstandard.compress(b"") + zstd(LINES[30:])),
    ],
)
def test_compressed_lines_are_read_through_all_their_parts(suffix: str, data: bytes, tmp_path: Path) -> None:
    assert values(write(tmp_path / f"a.jsonl{suffix}", data)) == ROWS


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gz), (".zst", zstandard.compress)])
def test_a_compressed_list_is_read(suffix: str, compress: Any, tmp_path: Path) -> None:
    assert values(write(tmp_path / f"a.json{suffix}", compress(json.dumps(ROWS).encode()))) == ROWS


def test_parquet_rows_are_read(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": [{"role": "user", "content": f"{i}"}], "weight": None} for i in range(600)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    assert values(path) == rows
    assert [row.origin for row in read_rows(path)][-1] == f"{path}[599]"


@pytest.mark.parametrize("data", [LINES.replace(b"\n", b"\r\n"), LINES.rstrip(b"\n"), b"\xef\xbb\xbf" + LINES])
def test_line_ends_of_windows_a_missing_last_one_and_a_byte_order_mark_make_no_difference(
    data: bytes, tmp_path: Path
) -> None:
    assert values(write(tmp_path / "a.jsonl", data)) == ROWS


def test_a_byte_order_mark_in_front_of_a_list_makes_no_difference(tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode())) == ROWS


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\n  \t\r\n{"a": 1}\n\n\x0c\n{"a": 2}\n\n')
    assert [(row.origin, row.value) for row in read_rows(path)] == [(f"{path}:3", {"a": 1}), (f"{path}:6", {"a": 2})]


def test_a_very_long_line_is_one_row(tmp_path: Path) -> None:
    text = "x" * 20_000_000
    assert values(write(tmp_path / "a.jsonl", json.dumps({"a": text}).encode() + b"\n{}")) == [{"a": text}, {}]


# --- rows that can't be decoded ---


def test_broken_json_on_line_17_is_a_row_with_an_error_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = [b'{"a": %d}' % i for i in range(1, 31)]
    lines[16] = b'{"a": 17,}'
    path = write(tmp_path / "train.jsonl", b"\n".join(lines))
    rows = list(read_rows(path))
    assert [row.value for row in rows if row.error is None] == [{"a": i} for i in range(1, 31) if i != 17]
    bad = rows[16]
    assert (bad.origin, bad.raw, bad.value) == (f"{path}:17", '{"a": 17,}', None)
    assert bad.error is not None
    assert re.fullmatch(
        re.escape(f"{path}:17: not valid JSON: ") + ".* at column 10; write one JSON object per line", bad.error
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": "b\xff"}', "not UTF-8 at byte 8 (0xff); save the file as UTF-8"),
        ('{"a": "é"}'.encode("latin-1"), "not UTF-8 at byte 7 (0xe9); save the file as UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 0 (0xff); save the file as UTF-8"),
        (b'{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}', "not valid JSON: the key 'c' stands twice in one object; write"),
        (b'{"a": NaN}', "not valid JSON: NaN is not a JSON number; write one JSON object per line"),
        (b'{"a": -Infinity}', "not valid JSON: -Infinity is not a JSON number; write one JSON object per line"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON: Exceeds the limit (4300 digits) for integer string"),
        (b"[" * 100_000, "not valid JSON: brackets are nested too deeply; write one JSON object per line"),
        (b'{"a":' * 100_000, "not valid JSON: brackets are nested too deeply; write one JSON object per line"),
        (b'{"a": 1}{"a": 2}', "not valid JSON: Extra data at column 9; write one JSON object per line"),
        (b'{"a": 1}\r{"a": 2}', "not valid JSON: Extra data at column 10; write one JSON object per line"),
        (b"{'a': 1}", "not valid JSON: Expecting property name enclosed in double quotes at column 2; write one"),
        (b'{"a": "b', "not valid JSON: Invalid control character at"),
        (b"\x00\x00", "not valid JSON: Expecting value at column 1; write one JSON object per line"),
    ],
)  # fmt: skip
def test_a_line_that_can_not_be_decoded_is_a_row_with_a_reason(line: bytes, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"{}\n" + line + b"\r\n{}\n")
    first, bad, last = read_rows(path)
    assert (first.value, last.value) == ({}, {})
    assert bad.error is not None
    assert bad.error.startswith(f"{path}:2: {message}")
    assert "\n" not in bad.error
    assert bad.raw == line.decode(errors="backslashreplace")


# --- files that can't be read ---


def refusal(path: Path) -> str:
    with pytest.raises(DataError, match="^" + re.escape(str(path))) as refused:
        list(read_rows(path))
    message = str(refused.value).removeprefix(str(path))
    assert "\n" not in message
    return message


def test_a_missing_file_is_refused_with_where_relative_paths_start(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no" / "a.jsonl") == (
        f": no such file; check the path (relative paths start at {Path.cwd()})"
    )


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    assert refusal(tmp_path / "a.jsonl") == ": is not a file; name a .jsonl, .json, .parquet file"


@pytest.mark.parametrize("name", ["a", "a.csv", "a.txt", "a.jsonl.bak", "a.gz", ".jsonl", "a.tar.gz"])
def test_an_unknown_ending_is_refused_with_the_known_ones(name: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path / name, LINES))
    assert message.startswith(": the ending of the name tells no known format; use .jsonl, .json, .parquet (the first")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.jsonl.gz", "a.jsonl.zst"])
def test_an_empty_file_is_refused(name: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / name, b"")) == ": the file is empty; a data file needs at least one row"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b"\n \n\r\n"),
        ("a.jsonl", b"\xef\xbb\xbf"),
        ("a.json", b" [] "),
        ("a.jsonl.gz", gz(b"")),
        ("a.jsonl.zst", zstandard.compress(b"\n")),
    ],
)
def test_a_file_without_a_row_is_refused(name: str, data: bytes, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / name, data)) == ": the file has no rows; a data file needs at least one"


def test_a_parquet_file_without_a_row_is_refused(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet") == ": the file has no rows; a data file needs at least one"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1}', ": holds a JSON object, not a list of rows; write [row, row, ...] or JSONL"),
        (b'"a"', ": holds a JSON string, not a list of rows"),
        (b"null", ": holds a JSON null, not a list of rows"),
        (b"1", ": holds a JSON number, not a list of rows"),
        (LINES, ":2: not valid JSON: Extra data at column 1; one object per line is JSONL: name it .jsonl"),
        (b'[{"a": 1},\n {"a": }]', ":2: not valid JSON: Expecting value at column 8; repair the file"),
        (b" \n", ":2: not valid JSON: Expecting value at column 1; repair the file"),
        (b'[{"a": 1, "a": 2}]', ": not valid JSON: the key 'a' stands twice in one object; repair the file"),
        (b"[NaN]", ": not valid JSON: NaN is not a JSON number; repair the file"),
        (b"[" * 100_000, ": not valid JSON: brackets are nested too deeply; repair the file"),
        (b'["\xff"]', ": not UTF-8 at byte 2; save the file as UTF-8"),
    ],
)
def test_a_list_that_can_not_be_decoded_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "a.json", data)).startswith(message)


PLENTY = b"".join(b'{"a": "%032x"}\n' % (i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128) for i in range(2000))
GZ, ZST, SUMMED = gz(PLENTY), zstd(PLENTY), zstd(PLENTY, checksum=True)


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position:][1:]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.gz", b"no gz data"),
        ("a.jsonl.gz", GZ[:5]),
        ("a.jsonl.gz", GZ[: len(GZ) // 2]),
        ("a.jsonl.gz", GZ[:-1]),
        ("a.jsonl.gz", flipped(GZ, 12)),
        ("a.jsonl.gz", flipped(GZ, len(GZ) // 2)),
        ("a.jsonl.gz", flipped(GZ, len(GZ) - 6)),
        ("a.jsonl.gz", GZ + b"and more"),
        ("a.json.gz", gz(b"[]")[:-3]),
        ("a.jsonl.zst", b"no zst data"),
        ("a.jsonl.zst", ZST[:6]),
        ("a.jsonl.zst", ZST[: len(ZST) // 2]),
        ("a.jsonl.zst", ZST[:-1]),
        ("a.jsonl.zst", ZST + ZST[:-1]),
        ("a.jsonl.zst", SUMMED[:-1]),
        ("a.jsonl.zst", flipped(SUMMED, len(SUMMED) // 2)),
        ("a.jsonl.zst", flipped(SUMMED, len(SUMMED) - 1)),
        ("a.jsonl.zst", ZST + b"and more"),
        ("a.json.zst", zstandard.compress(b"[]")[:-1]),
    ],
)
def test_a_damaged_or_truncated_compressed_file_is_refused(name: str, data: bytes, tmp_path: Path) -> None:
    kind = name.rpartition(".")[2]
    message = refusal(write(tmp_path / name, data))
    assert message.startswith(f": the {kind} data is damaged (")
    assert message.endswith("); make or copy the file again")


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_damaged_parquet_file_is_refused(kept: float, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": list(range(1000))}), path)
    data = path.read_bytes()
    message = refusal(write(path, data[: int(kept * len(data))] or b"PAR1"))
    assert message.startswith(": not a readable Parquet file (")


def test_parquet_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    bounds, data = pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe")
    pq.write_table(pa.table({"a": pa.StringArray.from_buffers(2, bounds, data)}), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet").startswith(": not a readable Parquet file ('utf-8' codec can't decode byte")


# --- memory ---


@pytest.mark.parametrize(("suffix", "num_lines"), [("", 5000), (".gz", 1000), (".zst", 5000)])
def test_lines_are_read_in_constant_memory(suffix: str, num_lines: int, tmp_path: Path) -> None:
    letters = random.Random(0)
    line_ends = itertools.cycle([b"\n", b"\r\n"])
    lines = (b'{"question": "%s"}' % letters.randbytes(5000).hex().encode() + next(line_ends) for _ in range(num_lines))
    data = b"".join(lines)
    assert len(data) > 10_000 * num_lines  # 50 MB in most cases
    if suffix == ".gz":
        data = gzip.compress(data, 1)
    elif suffix == ".zst":
        data = zstd(data, frames=3)
    path = write(tmp_path / f"a.jsonl{suffix}", data)
    del data
    tracemalloc.start()
    try:
        count = sum(1 for row in read_rows(path) if row.error is None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == num_lines
    assert peak < 2_000_000


def test_tool_arguments_as_a_struct_are_refused_because_parquet_merges_their_keys(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    calls = [{"function": {"name": "f", "arguments": {"a": 1}}}, {"function": {"name": "g", "arguments": {"b": "z"}}}]
    rows = [{"messages": [{"role": "assistant", "tool_calls": [call]}]} for call in calls]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(
        DataError, match="'arguments' is a struct, in which Parquet gives each row the keys of all rows"
    ):
        list(read_rows(path))
