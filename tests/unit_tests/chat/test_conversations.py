# SPDX-License-Identifier: Apache-2.0
"""Readings: every row is in exactly one, and rows of one conversation are together however a file is cut."""

import gzip
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from primus.chat.conversations import Reading, SourceOptions, read_batches, read_conversations
from primus.chat.reading import read_rows
from primus.errors import DataError
from tests.unit_tests.chat import seed_rows as seeds

BROKEN = '{"conversation_id": 9, "ro'
AUTO = SourceOptions()


def turn(identifier: Any, content: str, role: str = "assistant") -> dict[str, Any]:
    return {"dialog_id": identifier, "role": role, "content": content}


def write(path: Path, rows: list[Any]) -> Path:
    """A file of lines; a string is a line as it stands."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def facts(readings: list[Reading]) -> list[Any]:
    return [([row.origin for row in r.rows], r.conversations, r.error and str(r.error)) for r in readings]


def read(path: Path, options: SourceOptions = AUTO, **arguments: Any) -> list[Reading]:
    return [reading for batch in read_batches([path], options, **arguments) for reading in batch.readings()]


def strange_rows(rng: random.Random) -> list[Any]:
    """Tables, trees, single rows and broken lines in any order; identifiers do not come back."""
    rows: list[Any] = []
    for identifier in range(30):
        kind = rng.random()
        if kind < 0.45:
            rows += [turn(identifier, f"{identifier}.{i}") for i in range(rng.randrange(1, 6))]
            if rng.random() < 0.2:
                rows.insert(-1, BROKEN)
        elif kind < 0.6:
            rows += [{**row, "message_tree_id": f"t{identifier}"} for row in seeds.FLAT_TREE]
        elif kind < 0.75:
            rows += [rng.choice([BROKEN, '{"no name of a column'])] * rng.randrange(1, 3)
        else:
            rows.append(rng.choice([seeds.ALPACA, seeds.OASST, {"x": 1}, {"messages": seeds.BARE}, ""]))
    return rows


@pytest.mark.parametrize("seed", range(6))
def test_how_a_file_is_cut_into_batches_changes_nothing(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path = write(tmp_path / "a.jsonl", strange_rows(rng))
    whole = read(path, batch_bytes=1 << 20)
    assert [row for reading in whole for row in reading.rows] == list(read_rows(path))
    assert any(len(reading.rows) > 1 for reading in whole)
    assert any(reading.error and reading.error.reason == "torn" for reading in whole) or seed
    for batch_bytes in (1, 50, 200, 1000, 5000):
        assert facts(read(path, batch_bytes=batch_bytes)) == facts(whole)


def test_a_broken_line_at_the_end_of_a_batch_is_remembered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": seeds.BARE}, '{"no name of a column', turn(1, "a")])
    reasons = [reading.error and reading.error.reason for reading in read(path, batch_bytes=1)]
    assert reasons == [None, "not_json", "torn"]


def test_batches_of_a_table_hold_whole_conversations_and_go_to_other_processes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [turn(i // 7, str(i)) for i in range(700)])
    batches = list(read_batches([path], AUTO, batch_bytes=500))
    assert len(batches) > 50
    sent = [reading for batch in pickle.loads(pickle.dumps(batches)) for reading in batch.readings()]
    assert [len(reading.rows) for reading in sent] == [7] * 100
    assert [m.content for c in sent[99].conversations for m in c.messages] == [str(i) for i in range(693, 700)]
    assert batches[-1].rows.bytes_read == path.stat().st_size


def test_files_without_turns_are_passed_on_as_they_stand(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": seeds.BARE}] * 50)
    assert all(batch.rows.lines for batch in read_batches([path], AUTO, batch_bytes=500))
    path = write(tmp_path / "b.jsonl", [seeds.TOOLTALK | {"conversation_id": i} for i in range(50)])
    assert all(batch.rows.lines for batch in read_batches([path], AUTO, batch_bytes=500))


def test_a_conversation_that_comes_back_is_an_error_of_the_file(tmp_path: Path) -> None:
    rows = [turn("a", "1"), turn("a", "2"), turn("b", "3"), turn("a", "4")]
    path = write(tmp_path / "a.jsonl", rows)
    message = (
        r"a\.jsonl:4: the rows of one conversation \(turns dialog_id='a'\) stand apart, the others further up in the"
    )
    for batch_bytes in (1, 1000):
        with pytest.raises(DataError, match=message):
            read(path, batch_bytes=batch_bytes)
    with pytest.raises(DataError, match=message):
        list(read_conversations([write(path, [*rows[:2], seeds.ALPACA, {"x": 1}, rows[0]][1:])], AUTO))


def test_a_conversation_that_goes_on_in_the_next_file_is_an_error(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [turn(1, "x"), turn(2, "y")])
    second = write(tmp_path / "b.jsonl", [turn(2, "z")])
    with pytest.raises(
        DataError, match=r"b\.jsonl:1: the rows of one conversation .* the others in the file before; sort"
    ):
        list(read_conversations([first, second], AUTO))
    second = write(tmp_path / "b.jsonl", [turn(1, "z")])  # another data set may count from 1 as well
    assert len(list(read_conversations([first, second], AUTO))) == 3


def test_a_line_that_is_broken_spoils_the_conversation_it_may_belong_to(tmp_path: Path) -> None:
    rows = [turn(1, "a"), BROKEN, turn(1, "b"), turn(2, "c"), turn(3, "d"), BROKEN, turn(4, "e"), seeds.ALPACA, BROKEN]
    path = write(tmp_path / "a.jsonl", rows)
    found = [([int(row.origin.rsplit(":")[-1]) for row in r.rows], r.error and r.error.reason) for r in read(path)]
    assert found == [
        ([1, 2, 3], "not_json"), ([4], None), ([5], "torn"), ([6], "not_json"), ([7], "torn"), ([8], None),
        ([9], "not_json"),
    ]  # fmt: skip
    errors = [str(reading.error) for reading in read(path) if reading.error]
    assert errors[0].startswith(f"{path}:1: a turn of the conversation can't be decoded: {path}:2: not valid JSON")
    assert errors[1] == (
        f"{path}:5: the row behind the conversation, {path}:6, can't be decoded and may be a part of it; repair that"
        " row"
    )
    assert errors[3].startswith(f"{path}:7: the row before the conversation, {path}:6, can't be decoded")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.json"])
def test_a_table_is_read_from_every_kind_of_file(name: str, tmp_path: Path) -> None:
    rows = [{"session_id": str(i // 2), "role": ["user", "assistant"][i % 2], "content": f"{i}"} for i in range(6)]
    path = tmp_path / name
    lines = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    if name.endswith(".csv"):
        path.write_text("session_id,role,content\n" + "".join(f"{','.join(row.values())}\n" for row in rows))
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    assert [[m.content for c in r.conversations for m in c.messages] for r in read(path)] == [
        ["0", "1"], ["2", "3"], ["4", "5"],
    ]  # fmt: skip


def test_the_column_that_joins_rows_may_have_any_name(tmp_path: Path) -> None:
    rows = [{"case": i // 2, "speaker": ["human", "Bot"][i % 2], "utterance": str(i)} for i in range(4)]
    readings = read(write(tmp_path / "a.jsonl", rows), SourceOptions(conversation_id="case"))
    assert [len(reading.conversations) for reading in readings] == [1, 1]
    assert [len(r.rows) for r in read(tmp_path / "a.jsonl", SourceOptions(conversation_id="case", format="turns"))] == [
        2,
        2,
    ]
    assert {r.error.reason for r in read(tmp_path / "a.jsonl") if r.error} == {"fields"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turn": 0}, "turn 2 at f:3: turn is 0 behind 1.0, so the turns are out of order; sort the file"),
        ({"turn": None}, "turn 2 at f:3: turn is None behind 1.0, so the turns are out of order"),
        ({"system": "t"}, "system of the conversation is another one at f:3; write it once, or the same on every row"),
        ({"role": "narrator"}, "turn 2 at f:3: unknown role 'narrator'; use one of"),
        ({"weight": "much"}, r"turn 2 at f:3 \(user\): weight is 'much', not a number"),
    ],
)
def test_turns_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = [dict(row) for row in seeds.TABLE]
    rows[0]["system"] = "s"
    rows[2] |= changes
    path = write(tmp_path / "f", rows).rename(tmp_path / "f.jsonl")
    [reading] = read(path)
    assert len(reading.rows) == 4
    assert reading.error is not None
    expected = message.replace("f:3", f"{path}:3")
    assert str(reading.error).startswith(f"{path}:1: {expected}".replace("\\", ""))


def test_a_table_of_text_has_numbers_as_text(tmp_path: Path) -> None:
    rows = [
        turn(1, "a"),
        {**turn(1, "b"), "weight": "0"},
        {**turn(1, "c"), "train": "true"},
        {**turn(1, "d"), "weight": ".5"},
    ]
    [reading] = read(write(tmp_path / "a.jsonl", rows))
    assert [m.weight for m in reading.conversations[0].messages] == [None, 0.0, 1.0, 0.5]


def test_messages_of_a_tree_are_joined_and_branch(tmp_path: Path) -> None:
    [reading] = read(write(tmp_path / "a.jsonl", seeds.FLAT_TREE))
    assert [[m.content for m in c.messages] for c in reading.conversations] == [["Hi", "A"], ["Hi", "B"]]
    best = read(tmp_path / "a.jsonl", SourceOptions(oasst="best"))
    assert [[m.content for m in c.messages] for r in best for c in r.conversations] == [["Hi", "B"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parent_id": "m9"},
            "answers 'm9', which does not stand before it; sort the rows, or convert the file of whole",
        ),
        ({"parent_id": None}, "is a second root of its tree; repair the file"),
        ({"message_id": "m1"}, "message_id is 'm1', not a name of its own; repair the file"),
    ],
)
def test_messages_that_are_no_tree_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*seeds.FLAT_TREE[:2], {**seeds.FLAT_TREE[2], **changes}])
    [reading] = read(path)
    assert str(reading.error).startswith(f"{path}:1: message at {path}:3: {message}")
