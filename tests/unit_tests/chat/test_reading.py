# SPDX-License-Identifier: Apache-2.0
"""Rows of files, with their origins; nothing that a file holds is lost without a word."""

import gzip
import itertools
import json
import pickle
import random
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard

from primus.chat import read_rows
from primus.chat.reading import read_row_batches
from primus.chat.reading.lines import read_lines
from tests.unit_tests.chat.rows_of_files import gz, refusal, values, write, zstd

ROWS: list[Any] = [{"a": 1}, {"a": "ü\u2028\u0085\x0b你好"}, [1, None], "text", {"a": {"b": [True, 1.5]}}]
KNOWN = ".jsonl, .ndjson, .json, .traj, .csv, .tsv, .parquet, .arrow, .feather"
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)


# --- formats ---


def test_lines_become_rows_with_their_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINES)
    assert values(path) == ROWS
    assert [row.origin for row in read_rows(path)] == [f"{path}:{i}" for i in range(1, 6)]


def test_a_path_may_be_text(tmp_path: Path) -> None:
    assert [row.value for row in read_rows(str(write(tmp_path / "a.jsonl", LINES)))] == ROWS


@pytest.mark.parametrize("name", ["a.JSONL", "data.v2.jsonl", "a.b.JSON", "a.ndjson", "a.traj"])
def test_the_ending_tells_the_format(name: str, tmp_path: Path) -> None:
    data = LINES if name.lower().endswith(("jsonl", "ndjson")) else json.dumps(ROWS).encode()
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


@pytest.mark.parametrize("data", [LINES.replace(b"\n", b"\r\n"), LINES.rstrip(b"\n"), b"\xef\xbb\xbf" + LINES])
def test_line_ends_of_windows_a_missing_last_one_and_a_byte_order_mark_make_no_difference(
    data: bytes, tmp_path: Path
) -> None:
    assert values(write(tmp_path / "a.jsonl", data)) == ROWS


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\n  \t\r\n{"a": 1}\n\n\x0c\n{"a": 2}\n\n')
    assert [(row.origin, row.value) for row in read_rows(path)] == [(f"{path}:3", {"a": 1}), (f"{path}:6", {"a": 2})]


def test_a_very_long_line_is_one_row(tmp_path: Path) -> None:
    text = "x" * 20_000_000
    assert values(write(tmp_path / "a.jsonl", json.dumps({"a": text}).encode() + b"\n{}")) == [{"a": text}, {}]


# --- rows that can't be decoded ---


def test_broken_json_on_line_17_is_a_row_with_an_error_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = [b'{"a": %d}' % i for i in range(1, 31)]
    lines[16] = b'{"a": 17 x}'
    path = write(tmp_path / "train.jsonl", b"\n".join(lines))
    rows = list(read_rows(path))
    assert [row.value for row in rows if row.error is None] == [{"a": i} for i in range(1, 31) if i != 17]
    bad = rows[16]
    assert (bad.origin, bad.raw, bad.value) == (f"{path}:17", '{"a": 17 x}', None)
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
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON: Exceeds the limit (4300"),
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


def test_a_missing_file_is_refused_with_where_relative_paths_start(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no" / "a.jsonl") == (
        f": no such file; check the path (relative paths start at {Path.cwd()})"
    )


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    assert refusal(tmp_path / "a.jsonl") == f": is not a file; name a {KNOWN} file"


@pytest.mark.parametrize("name", ["a", "a.xlsx", "a.txt", "a.jsonl.bak", "a.gz", ".jsonl", "a.tar.gz", "a.parquet.gz"])
def test_an_unknown_ending_is_refused_with_the_known_ones(name: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path / name, LINES))
    assert message == (
        f": the ending of the name tells no known format; use {KNOWN} (those of text also with .gz or .zst)"
    )


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


# --- lines that are too long ---


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("batch_bytes", [1, 7, 64, 10_000])
def test_a_line_longer_than_a_row_may_be_is_a_row_with_an_error_and_the_rest_is_read(
    end: bytes, batch_bytes: int, tmp_path: Path
) -> None:
    path = str(write(tmp_path / "a.jsonl", b'{"a": 1}\n\n"' + b"x" * 30_000 + b'"' + end))
    rows = [row for batch in read_lines(path, batch_bytes=batch_bytes, max_row_bytes=1000) for row in batch]
    first, long = rows
    assert (first.origin, first.value) == (f"{path}:1", {"a": 1})
    assert long.origin == f"{path}:3"
    assert long.error == (
        f"{path}:3: the line is longer than 1,000 bytes, the most that a row may have; split the file into lines, or"
        " drop the row"
    )
    assert long.raw == '"' + "x" * 999


def test_lines_behind_one_that_is_too_long_keep_their_numbers(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", b"[" + b"1," * 9000 + b"1]\n{}\n" + b" " * 9000 + b'\n{"b": 2}'))
    rows = [row for batch in read_lines(path, batch_bytes=16, max_row_bytes=1000) for row in batch]
    assert [(row.origin, row.value, row.error is None) for row in rows] == [
        (f"{path}:1", None, False),
        (f"{path}:2", {}, True),
        (f"{path}:3", None, False),
        (f"{path}:4", {"b": 2}, True),
    ]


# --- batches ---


@pytest.mark.parametrize("batch_bytes", [1, 2, 10, 33, 1000])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_batches_of_any_size_hold_the_same_rows_and_can_be_sent_to_another_process(
    batch_bytes: int, mark: bytes, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", mark + LINES.replace(b"\n", b"\r\n\n") + b'{"broken": ')
    batches = list(read_row_batches(path, batch_bytes=batch_bytes))
    sent = pickle.loads(pickle.dumps(batches))
    assert [row for batch in sent for row in batch] == list(read_rows(path))
    assert len(batches) == 1 or batch_bytes < 1000
    assert batches[-1].bytes_read == path.stat().st_size
    assert all(batch.lines for batch in batches)


def test_a_batch_of_lines_is_as_large_as_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"{}\n" * 100_000)
    sizes = [len(batch.lines) for batch in read_row_batches(path, batch_bytes=10_000)]
    assert max(sizes) <= 10_005
    assert min(sizes[:-1]) >= 10_000


# --- standard input ---


def test_standard_input_is_read_as_lines() -> None:
    code = "from primus.chat import read_rows; print([(row.origin, row.value) for row in read_rows('-')])"
    done = subprocess.run([sys.executable, "-c", code], input=b'{"a": 1}\n\n{"a": 2}', capture_output=True, check=True)
    assert done.stdout.decode() == "[('<stdin>:1', {'a': 1}), ('<stdin>:3', {'a': 2})]\n"


def test_empty_standard_input_is_refused() -> None:
    code = "from primus.chat import read_rows; list(read_rows('-'))"
    done = subprocess.run([sys.executable, "-c", code], input=b"", capture_output=True, check=False)
    assert done.stderr.endswith(b"DataError: <stdin>: the file has no rows; a data file needs at least one\n")
