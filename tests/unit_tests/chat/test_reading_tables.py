# SPDX-License-Identifier: Apache-2.0
"""Tables as text: cells as they stand, records over several lines, and what is no table."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat import Row, read_rows
from tests.unit_tests.chat.rows_of_files import gz, refusal, values, write, zstd


def test_records_become_rows_with_the_line_that_they_begin_on(tmp_path: Path) -> None:
    text = 'question,answer\nHi,Hello\n\n"two\nlines","say ""so"", \r\nplease"\r\nlast,one'
    path = write(tmp_path / "a.csv", text.encode())
    assert list(read_rows(path)) == [
        Row(f"{path}:2", {"question": "Hi", "answer": "Hello"}),
        Row(f"{path}:4", {"question": "two\nlines", "answer": 'say "so", \r\nplease'}),
        Row(f"{path}:7", {"question": "last", "answer": "one"}),
    ]


def test_cells_stay_strings_and_an_empty_cell_is_null(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'a,b,c,d\n007,, true,""\n')
    assert values(path) == [{"a": "007", "b": None, "c": " true", "d": None}]


@pytest.mark.parametrize("column", ["messages", "conversations", "history", "tools"])
def test_json_in_columns_of_lists_is_decoded_and_elsewhere_is_text(column: str, tmp_path: Path) -> None:
    value = [{"role": "user", "content": 'a, "b"\n'}]
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[column, "prompt"], [json.dumps(value)] * 2, ["[1, 2", "[1]"], ["plain", "{}"]])
    assert values(path) == [
        {column: value, "prompt": json.dumps(value)},
        {column: "[1, 2", "prompt": "[1]"},
        {column: "plain", "prompt": "{}"},
    ]


def test_tabs_separate_the_cells_of_a_tsv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b'question\tanswer\nHi, you\t"a\tb"\n')
    assert values(path) == [{"question": "Hi, you", "answer": "a\tb"}]


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        ("", b"\xef\xbb\xbfa,b\n\xc3\xa4,2\n"),
        ("", b"a,b\r\xc3\xa4,2\r"),
        ("", b"a,b\r\n\xc3\xa4,2"),
        (".gz", gz(b"a,b\n\xc3\xa4,2\n")),
        (".zst", zstd(b"a,b\n\xc3\xa4,2\n")),
    ],
)
def test_byte_order_marks_line_ends_and_compression_make_no_difference(
    suffix: str, data: bytes, tmp_path: Path
) -> None:
    assert values(write(tmp_path / f"a.csv{suffix}", data)) == [{"a": "ä", "b": "2"}]


@given(
    rows=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=2, max_size=2),
        max_size=5,
    ),
    delimiter=st.sampled_from([",", "\t"]),
)
def test_what_a_csv_writer_writes_is_read_back(
    rows: list[list[str]], delimiter: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([["a", "b"], *rows, ["x", "y"]])
    name = "a.csv" if delimiter == "," else "a.tsv"
    path = write(tmp_path_factory.mktemp("table") / name, text.getvalue().encode())
    expected: list[Any] = [{"a": a or None, "b": b or None} for a, b in [*rows, ["x", "y"]]]
    assert values(path) == expected


def test_a_cell_of_many_megabytes_is_read(tmp_path: Path) -> None:
    long = "x\n" * 5_000_000
    assert values(write(tmp_path / "a.csv", f'a,b\n"{long}",1\n'.encode())) == [{"a": long, "b": "1"}]


# --- rows that can't be decoded ---


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"1", "the row has 1 cells, but the header names 2 columns; put quotes around cells with separators or line"),
        (b"1,2,3", "the row has 3 cells, but the header names 2 columns; put quotes around cells with separators"),
        (b"1,b\xff", "not UTF-8 (0xff); save the file as UTF-8"),
        (b'1,"b" x', "not a valid record (',' expected after '\"'); double the quotes inside a quoted cell"),
    ],
)
def test_a_broken_record_is_a_row_with_an_error_and_the_rest_is_read(
    record: bytes, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.csv", b"a,b\n1,2\n" + record + b"\r\n3,4\n")
    first, bad, last = read_rows(path)
    assert (first.value, last.value, last.origin) == ({"a": "1", "b": "2"}, {"a": "3", "b": "4"}, f"{path}:4")
    assert bad.error is not None
    assert bad.error.startswith(f"{path}:3: {message}")
    assert (bad.value, bad.raw) == (None, record.decode(errors="backslashreplace"))


def test_a_quote_that_is_never_closed_is_a_row_with_an_error_that_holds_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'a,b\n1,2\n3,"4\n5,6\n7,8\n')
    first, bad = read_rows(path)
    assert first.value == {"a": "1", "b": "2"}
    assert bad.error == f"{path}:3: a quoted cell of this row is never closed; end it with a quote"
    assert bad.raw == '3,"4\n5,6\n7,8'


# --- files that can't be read ---


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"a,b,a\n1,2,3\n", ":1: the header names the column 'a' twice; rename one"),
        ("a.csv", b"a;b\n1;2\n", ":1: the header is one column, 'a;b', with ';' in it; separate the columns with ','"),
        ("a.csv", b"a\tb\n1\t2\n", ":1: the header is one column, 'a\\tb', with '\\t' in it; separate the"),
        ("a.tsv", b"a,b\n1,2\n", ":1: the header is one column, 'a,b', with ',' in it; separate the columns"),
        ("a.csv", b"a,\xff\n1,2\n", ":1: not UTF-8 (0xff); save the file as UTF-8"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), ":1: not UTF-8 (0xff); save the file as UTF-8"),
        ("a.csv", b'a,"b\n1,2\n', ":1: a quoted cell of this row is never closed; end it with a quote"),
        ("a.csv", b"a,b\n", ": the file has no rows; a data file needs at least one"),
        ("a.csv", b"\n\n", ": the file has no rows; a data file needs at least one"),
        ("a.csv", b"", ": the file is empty; a data file needs at least one row"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / name, data)).startswith(message)
