# SPDX-License-Identifier: Apache-2.0
"""JSON files: lists, mappings, single rows, and lines under the wrong name."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat import read_rows
from primus.chat.reading import json_documents, read_row_batches
from primus.chat.reading.json_documents import read_json
from primus.errors import DataError
from tests.unit_tests.chat.rows_of_files import gz, refusal, values, write, zstd

ROWS: list[Any] = [
    {"a": 1},
    {"a": "ü\u2028\u0085\x0b你好"},
    [1, None],
    "t]ex,t",
    {"a": {"b": [True, 1.5e3]}},
    -12,
    None,
]


# --- lists ---


@pytest.mark.parametrize("indent", [None, 1])
def test_elements_of_a_list_become_rows_with_their_indices(indent: int | None, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(ROWS, indent=indent).encode())
    assert values(path) == ROWS
    assert [row.origin for row in read_rows(path)] == [f"{path}[{i}]" for i in range(len(ROWS))]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gz), (".zst", zstd)])
def test_a_compressed_list_is_read(suffix: str, compress: Any, tmp_path: Path) -> None:
    assert values(write(tmp_path / f"a.json{suffix}", compress(json.dumps(ROWS).encode()))) == ROWS


def test_a_byte_order_mark_in_front_of_a_list_makes_no_difference(tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode())) == ROWS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(rows=st.lists(JSON, min_size=1, max_size=6), indent=st.sampled_from([None, 2]), size=st.integers(1, 40))
def test_a_list_gives_the_same_rows_in_pieces_of_any_size_as_at_once(
    rows: list[Any], indent: int | None, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("list") / "a.json"
    write(path, json.dumps(rows, indent=indent, ensure_ascii=False).encode(errors="surrogatepass"))
    batches = read_json(str(path), batch_bytes=1, read_bytes=size)
    assert [row.value for batch in batches for row in batch] == rows


@given(text=st.text(alphabet='[]{},: \t"0ea1.-\\ru', max_size=12), size=st.integers(1, 5))
def test_what_is_no_list_is_refused_in_pieces_of_any_size(
    text: str, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("list") / "a.traj", b"[" + text.encode())
    try:
        rows = json.loads("[" + text)
    except ValueError:
        rows = None
    if rows is None:
        with pytest.raises(DataError, match="not valid JSON"):
            list(read_json(str(path), batch_bytes=1, read_bytes=size))
    else:
        batches = read_json(str(path), batch_bytes=1, read_bytes=size)
        assert [row.value for batch in batches for row in batch] == rows


def test_a_list_is_read_in_constant_memory(tmp_path: Path) -> None:
    letters = random.Random(0)
    rows = b",\n".join(b'{"question": "%s"}' % letters.randbytes(500).hex().encode() for _ in range(50_000))
    path = write(tmp_path / "a.json", b"[" + rows + b"]")
    del rows
    assert path.stat().st_size > 50_000_000
    tracemalloc.start()
    try:
        count = sum(len(batch.decoded) for batch in read_row_batches(path, batch_bytes=1 << 20))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 50_000
    assert peak < 5_000_000


def test_an_element_longer_than_a_row_may_be_is_refused(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.json", json.dumps([1, "x" * 5000, 2]).encode()))
    with pytest.raises(DataError, match=r"a\.json\[1\]: the row is longer than 1,000 characters"):
        list(read_json(path, batch_bytes=1, max_row_bytes=1000, read_bytes=100))


def test_an_error_early_in_a_long_list_is_found_without_reading_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b'[{"a": 1},\n {"a" 1},' + b" " * 20_000_000 + b"]")
    tracemalloc.start()
    try:
        assert refusal(path) == ":2: not valid JSON: Expecting ':' delimiter at column 7; repair the file"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


# --- objects ---


def test_an_object_with_texts_and_lists_is_one_row(tmp_path: Path) -> None:
    row = {"environment": "swe_main", "history": [{"role": "user", "content": "Hi"}], "info": {}}
    path = write(tmp_path / "a.traj", json.dumps(row, indent=2).encode())
    assert [(r.origin, r.value) for r in read_rows(path)] == [(str(path), row)]
    one_line = write(tmp_path / "a.json", json.dumps(row).encode() + b"\n\n")
    assert [(r.origin, r.value) for r in read_rows(one_line)] == [(str(one_line), row)]


def test_an_empty_object_is_one_row(tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.json", b"{}")) == [{}]


def test_an_object_of_objects_is_a_mapping_of_rows_with_their_keys(tmp_path: Path) -> None:
    rows = {"23": {"messages": []}, 'a "b"': {"id": 7, "messages": []}, "": {"id": None}}
    path = write(tmp_path / "a.json", json.dumps(rows).encode())
    assert [(row.origin, row.value) for row in read_rows(path)] == [
        (f'{path}["23"]', {"id": "23", "messages": []}),
        (f'{path}["a \\"b\\""]', {"id": 7, "messages": []}),
        (f'{path}[""]', {"id": None}),
    ]


# --- lines under the wrong name ---


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n \n"])
def test_a_json_file_of_lines_is_read_as_lines(suffix: str, start: bytes, tmp_path: Path) -> None:
    data = start + b'{"a": 1}\r\n\n[{"a": 2}]\n{"a": 3\n{"a": 4}'
    path = write(tmp_path / f"a.json{suffix}", gz(data) if suffix else data)
    rows = list(read_rows(path))
    blank = start.count(b"\n")
    assert [(row.origin, row.value) for row in rows] == [
        (f"{path}:{blank + 1}", {"a": 1}),
        (f"{path}:{blank + 3}", [{"a": 2}]),
        (f"{path}:{blank + 4}", None),
        (f"{path}:{blank + 5}", {"a": 4}),
    ]
    assert all(batch.lines for batch in read_row_batches(path, batch_bytes=10))


def test_a_list_whose_first_line_is_json_by_itself_but_for_the_comma_is_a_list(tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.json", b'[{"a": 1},\n{"a": 2}\n]\n')) == [{"a": 1}, {"a": 2}]


# --- what is neither ---


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'"a"', ": holds a JSON string, not rows; write [row, row, ...] or JSONL"),
        (b"null", ": holds a JSON null, not rows"),
        (b"1.5", ": holds a JSON number, not rows"),
        (b"true", ": holds a JSON boolean, not rows"),
        (b'{"a":\n1}\n{"a":\n2}', ":3: not valid JSON: Extra data at column 1; write a list of rows, or one row per"),
        (b'{"a":\n1', ":2: not valid JSON: Expecting ',' delimiter at column 2; repair the file"),
        (b'{"a" 1}\n{"a": 2}', ":1: not valid JSON: Expecting ':' delimiter at column 6; repair the file"),
        (b'[{"a": 1},\n {"a": }]', ":2: not valid JSON: Expecting value at column 8; repair the file"),
        (b'[\n{"a": 1}\n {"a": 2}]', ":3: not valid JSON: Expecting ',' delimiter at column 2; repair the file"),
        (b'[{"a": 1},]', ":1: not valid JSON: Expecting value at column 11; repair the file"),
        (b'[{"a": 1}', ":1: not valid JSON: Expecting ',' delimiter at column 10; repair the file"),
        (b'[{"a": "b', ":1: not valid JSON: Unterminated string starting at at column 8; repair the file"),
        (b'[{"a": "b\n"}]', ":1: not valid JSON: Invalid control character at at column 10; repair the file"),
        (b"[1, 2]\n]", ":2: not valid JSON: Extra data at column 1; write a list of rows, or one row per line"),
        (b"[1,\n2]\n]", ":3: not valid JSON: Extra data at column 1; write a list of rows, or one row per line"),
        (b"[", ":1: not valid JSON: Expecting value at column 2; repair the file"),
        (b" \n", ":2: not valid JSON: Expecting value at column 1; repair the file"),
        (b'[{"a": 1, "a": 2}]', ": not valid JSON: the key 'a' stands twice in one object; repair the file"),
        (b"[NaN]", ": not valid JSON: NaN is not a JSON number; repair the file"),
        (b"[" * 100_000, ": not valid JSON: brackets are nested too deeply; repair the file"),
        (b'["\xff"]', ": not UTF-8 at byte 2; save the file as UTF-8"),
        (b'{"a": "\xc3', ": not UTF-8 at byte 7; save the file as UTF-8"),
    ],
)  # fmt: skip
def test_a_document_that_can_not_be_decoded_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "a.json", data)).startswith(message)


@pytest.mark.parametrize("distance", range(-12, 13))
def test_places_in_a_long_list_are_told_right(distance: int, tmp_path: Path) -> None:
    """However the text is cut into the pieces that are read."""
    good = b'{"a": "b"},\n'
    count = (json_documents.READ_BYTES + distance) // len(good)
    pad = b" " * ((json_documents.READ_BYTES + distance) % len(good))
    path = write(tmp_path / "a.json", b"[" + good * count + pad + b'{"a": x}]')
    column = len(pad) + 7 + (count == 0)
    assert refusal(path) == f":{count + 1}: not valid JSON: Expecting value at column {column}; repair the file"
    bad_byte = write(tmp_path / "b.json", b"[" + good * count + pad + b'"\xc3\xa4\xff"]')
    assert refusal(bad_byte) == f": not UTF-8 at byte {len(good) * count + len(pad) + 4}; save the file as UTF-8"
