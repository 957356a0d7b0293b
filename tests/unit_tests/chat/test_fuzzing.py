# SPDX-License-Identifier: Apache-2.0
"""A hundred thousand broken rows through every parser: valid conversations or clear errors, and no row is lost."""

import json
import math
import pickle
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from primus.chat import parse_conversation
from primus.chat.conversations import ConversationBatch, SourceOptions
from primus.chat.formats import FORMATS
from primus.chat.reading import Row, RowBatch
from primus.chat.writing import to_row
from tests.unit_tests.chat.seed_rows import SEEDS

NUM_ROWS = 100_000
KEYS = sorted(
    {
        *(key for _, rows, _ in SEEDS for row in rows if isinstance(row, dict) for key in row),
        *("role", "content", "from", "value", "text", "type", "name", "arguments", "tool_calls", "function_call"),
        *(
            "tool_call_id",
            "weight",
            "loss",
            "mask",
            "train",
            "reasoning",
            "thinking",
            "refusal",
            "input_start",
            "label",
        ),
        *("kto_tag", "rank", "deleted", "replies", "apis", "request", "is_demo"),
    }
)
TEXTS = [
    *("", " ", "\n\n", "a", "a\nb", "user", "assistant", "tool", "function_call", "gpt", "null", "NaN", "{}", "[]"),
    *("<think>", "<think>x</think>y", "<|im_end|>", "\n\nHuman: x\n\nAssistant: y", "\n\nAssistant:"),
    *('{"name": "f", "arguments": {}}', "{'name': 'f'}", '{"a": 1, "a": 2}', "9" * 400, "[" * 3000),
    *("\ud800", "e\u0301\u200d👍🏽", "\x00\u2028", "\u202e"),
]
NUMBERS = [0, 1, -1, 0.5, -0.0, 2**63, 10**400, 1e308, math.nan, math.inf, True, False]


def deep(rng: random.Random) -> Any:
    value: Any = rng.choice([{}, [], "x", None])
    for _ in range(rng.choice([3, 60, 3000])):
        value = [value] if rng.random() < 0.5 else {rng.choice(KEYS): value}
    return value


def strange_value(rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(TEXTS)
    if kind < 0.6:
        return rng.choice(NUMBERS)
    if kind < 0.7:
        return None
    if kind < 0.8:
        return [rng.choice(TEXTS) for _ in range(rng.randrange(3))]
    if kind < 0.99:
        return {rng.choice(KEYS): rng.choice([*TEXTS, *NUMBERS, None, [], {}]) for _ in range(rng.randrange(4))}
    return deep(rng)


def containers(value: Any) -> Iterator[Any]:
    """The objects and lists in a value, which may be deeper than Python can recurse."""
    rest = [value]
    while rest:
        found = rest.pop()
        if isinstance(found, dict | list):
            yield found
            rest += found.values() if isinstance(found, dict) else found


def mutate(row: Any, rng: random.Random, others: list[bytes]) -> Any:
    """One change anywhere in a row; the row itself may become something else."""
    if rng.random() < 0.02:
        return strange_value(rng)
    if rng.random() < 0.03 and isinstance(row, dict):
        other = pickle.loads(rng.choice(others))
        return {**row, **other} if isinstance(other, dict) else other
    target = rng.choice(list(containers(row)) or [row])
    change = rng.random()
    if isinstance(target, dict):
        _mutate_object(target, change, rng)
    elif isinstance(target, list):
        _mutate_list(target, change, rng)
    return row


def _mutate_object(target: dict[str, Any], change: float, rng: random.Random) -> None:
    key = rng.choice(list(target)) if target else rng.choice(KEYS)
    if change < 0.2:
        target.pop(key, None)
    elif change < 0.55:
        target[key] = strange_value(rng)
    elif change < 0.7:
        target[rng.choice(KEYS)] = strange_value(rng)
    elif change < 0.8:
        target[rng.choice(KEYS)] = target.pop(key, None)
    elif change < 0.9 and isinstance(target.get(key), str):
        text = target[key]
        cut = rng.randrange(len(text) + 1)
        target[key] = text[:cut] + rng.choice(TEXTS) + text[cut:]
    else:
        target[key] = [target.get(key)] if change < 0.95 else {rng.choice(KEYS): target.get(key)}


def _mutate_list(target: list[Any], change: float, rng: random.Random) -> None:
    index = rng.randrange(len(target) + 1)
    if change < 0.3 and target:
        del target[index - 1]
    elif change < 0.5 and target:
        target.insert(index, target[index - 1])
    elif change < 0.7 and len(target) > 1:
        rng.shuffle(target)
    else:
        target.insert(index, strange_value(rng))


def check(rows: list[Any], options: SourceOptions, counts: Counter[str]) -> None:
    """Every law of reading, on rows that stand together."""
    read = tuple(Row(f"f.jsonl:{line}", value=value) for line, value in enumerate(rows, start=1))
    readings = list(ConversationBatch(RowBatch("f.jsonl", decoded=read), options).readings())
    assert [row for reading in readings for row in reading.rows] == list(read)
    for reading in readings:
        assert bool(reading.conversations) != (reading.error is not None)
        if reading.error is not None:
            text = str(reading.error)
            assert text.startswith(f"{reading.origin}: "), text
            assert "\n" not in text
            assert len(text) < 1000
            text.encode()
            counts[reading.error.reason] += len(reading.rows)
        for conversation in reading.conversations:
            assert conversation.origin.partition("#")[0] == reading.origin
            line = json.dumps(to_row(conversation), ensure_ascii=False)
            line.encode()
            back = parse_conversation(json.loads(line), origin=conversation.origin)
            assert back == conversation, line
            assert json.dumps(to_row(back), ensure_ascii=False) == line
            counts["conversations"] += 1


@pytest.mark.parametrize("share", range(4))
def test_broken_rows_are_conversations_or_clear_errors(share: int) -> None:
    rng = random.Random(share)
    packed = [(name, pickle.dumps(rows), options) for name, rows, options in SEEDS]
    others = [pickle.dumps(row) for _, rows, _ in SEEDS for row in rows]
    counts: Counter[str] = Counter()
    num_rows = 0
    while num_rows < NUM_ROWS / 4:
        name, data, options = rng.choice(packed)
        rows = pickle.loads(data)
        for _ in range(rng.choice([1, 1, 2, 4])):
            index = rng.randrange(len(rows))
            rows[index] = mutate(rows[index], rng, others)
        if options.column_map is None:
            # Also a parser that did not recognise the row has to say what is wrong with it.
            named = rng.choice(["auto", name, rng.choice([other for other in FORMATS if other != "columns"])])
            options = replace(options, format=named)
        check(rows, options, counts)
        num_rows += len(rows)
    assert counts["conversations"] > num_rows / 8
    assert len(counts) > 30  # that many different rules were broken


@pytest.mark.parametrize(("name", "rows", "options"), SEEDS, ids=[f"{i}-{s[0]}" for i, s in enumerate(SEEDS)])
def test_the_rows_that_are_broken_are_whole_before(name: str, rows: list[Any], options: SourceOptions) -> None:
    counts: Counter[str] = Counter()
    check(pickle.loads(pickle.dumps(rows)), options, counts)
    assert list(counts) == (["conversations"] if name != "questions" else ["no_answers"])
