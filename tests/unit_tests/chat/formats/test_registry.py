# SPDX-License-Identifier: Apache-2.0
"""Every format is recognised by its shape, and a row that two could read is decided or refused."""

import pickle
from typing import Any

import pytest

from primus.chat import parse_conversation
from primus.chat.formats import FORMATS, SourceOptions, detect_formats, parse_row, recognise
from primus.chat.reading import Row
from primus.errors import ConversationError
from tests.unit_tests.chat import seed_rows as seeds


@pytest.mark.parametrize(
    ("name", "rows", "options"), seeds.SEEDS, ids=[f"{i}-{s[0]}" for i, s in enumerate(seeds.SEEDS)]
)
def test_every_format_is_recognised_by_its_shape(name: str, rows: list[Any], options: SourceOptions) -> None:
    for row in rows:
        assert recognise(row, options, origin="a.jsonl:1").name == name
    found = detect_formats([Row(f"a.jsonl:{i}", value=row) for i, row in enumerate(rows)], options)
    assert found == {name: len(rows)}


def test_every_format_has_a_row_here_and_they_stand_in_the_order_of_their_ranks() -> None:
    assert {name for name, _, _ in seeds.SEEDS} == set(FORMATS)
    ranks = [source.rank for source in FORMATS.values()]
    assert ranks == sorted(ranks)
    assert all(source.summary for source in FORMATS.values())


def test_reading_by_name_is_reading_as_recognised() -> None:
    for name, rows, options in seeds.SEEDS:
        if len(rows) == 1 and name not in ("columns", "questions"):
            named = SourceOptions(format=name, roles=options.roles, think=options.think, oasst=options.oasst)
            assert parse_row(rows[0], "a.jsonl:1", named) == parse_row(rows[0], "a.jsonl:1", options)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({**seeds.ALPACA, "messages": seeds.BARE}, "openai"),
        ({**seeds.ALPACA, **seeds.SHAREGPT}, "sharegpt"),
        ({"prompt": "Hi", "chosen": seeds.BARE, "rejected": [], "messages": seeds.BARE}, "openai"),
        ({**seeds.HH_CUT, "response": None}, "hh"),
        ({"prompt": "\n\nHuman: a\n\nAssistant:", "response": " b"}, "hh"),
        ({"messages": seeds.BARE, "text": seeds.HH["chosen"]}, "openai"),
        ({"question": "a", "answer": "b", "turns": ["a"]}, "alpaca"),
        ({"conversation_id": "x", "turn": 2, "conversation": seeds.BARE}, "sharegpt"),
        ({"messages": None, "conversations": seeds.SHAREGPT["conversations"]}, "sharegpt"),
    ],
)
def test_a_row_that_several_could_read_goes_by_rank(row: Any, name: str) -> None:
    assert recognise(row, SourceOptions(), origin="a.jsonl:1").name == name


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"messages": seeds.BARE, "conversations": seeds.SHAREGPT["conversations"]}, "openai and like sharegpt"),
        ({"messages": seeds.BARE, **seeds.TABLE[0]}, "openai and like turns"),
        ({"prompt": "a", "completion": "b", "response": "c"}, "alpaca and like prompt_completion"),
        ({"question": "a", "answer": "b", "chosen": "c"}, "alpaca and like prompt_completion"),
    ],
)
def test_a_row_that_is_truly_ambiguous_is_refused_with_both_names(row: Any, names: str) -> None:
    with pytest.raises(
        ConversationError, match=rf"^a\.jsonl:1: the row looks like {names}; name the format"
    ) as refused:
        parse_row(row, "a.jsonl:1", SourceOptions())
    assert refused.value.reason == "ambiguous"
    assert detect_formats([Row("a.jsonl:1", value=row)]) == {"unknown": 1}
    first = names.partition(" ")[0]
    if "turns" not in names:
        assert parse_row(row, "a.jsonl:1", SourceOptions(format=first))


def test_what_can_not_be_recognised_is_counted_as_unknown() -> None:
    rows = [
        Row("a:1", value={"x": 1}),
        Row("a:2", value=None),
        Row("a:3", error="not valid JSON"),
        Row("a:4", value=[]),
    ]
    assert detect_formats([*rows, Row("a:5", value=seeds.ALPACA)]) == {"unknown": 4, "alpaca": 1}


def test_one_row_gives_one_conversation_or_says_how_to_get_the_others() -> None:
    with pytest.raises(ConversationError, match=r"^t:1: the row holds 2 conversations; read the file with") as refused:
        parse_conversation(seeds.OASST, origin="t:1")
    assert refused.value.reason == "several_conversations"
    best = parse_conversation(seeds.OASST, origin="t:1", options=SourceOptions(oasst="best"))
    assert best.messages[-1].content == "C"
    assert parse_conversation({**seeds.ALPACA, "messages": seeds.BARE}, format="alpaca").messages[-1].content == "4"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"oasst": "first"}, "oasst is 'first', not one of all, best"),
        ({"think": "drop"}, "think is 'drop', not one of keep, split"),
        ({"roles": {"bot": "robot"}}, "roles: 'bot' is mapped to 'robot', not to one of system, user, assistant, tool"),
        ({"messages_field": ()}, "messages_field names no field"),
        ({"format": "columns"}, "the format columns needs a column_map"),
    ],
)
def test_options_that_do_not_exist_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceOptions(**options)


def test_a_format_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="format is 'sharegtp', not one of auto, columns, anthropic"):
        parse_row(seeds.ALPACA, "a.jsonl:1", SourceOptions(format="sharegtp"))


def test_options_go_to_other_processes() -> None:
    options = SourceOptions(roles={"client": "user"}, column_map=seeds.COLUMN_MAP)
    assert pickle.loads(pickle.dumps(options)) == options
    assert hash(options) == hash(pickle.loads(pickle.dumps(options)))
