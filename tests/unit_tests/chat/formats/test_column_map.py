# SPDX-License-Identifier: Apache-2.0
"""A declared column map reads any row, and says everything that is wrong with itself at once."""

import json
from typing import Any

import pytest

from primus.chat.conversations import ConversationBatch, SourceOptions
from primus.chat.formats import ColumnMap, parse_row
from primus.chat.messages import Conversation
from primus.chat.reading import Row, RowBatch
from primus.errors import ConfigError, ConversationError
from tests.unit_tests.chat import seed_rows as seeds


def read(row: Any, mapping: dict[str, Any], **options: Any) -> Conversation:
    column_map = ColumnMap.from_mapping(mapping)
    [conversation] = parse_row(row, "a.jsonl:1", SourceOptions(column_map=column_map, **options))
    return conversation


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def test_messages_stand_where_the_map_says() -> None:
    [conversation] = parse_row(seeds.MAPPED, "a.jsonl:1", SourceOptions(column_map=seeds.COLUMN_MAP))
    assert said(conversation) == [("system", "s"), ("user", "a"), ("assistant", "b")]
    assert conversation.messages[2].weight == 1
    assert conversation.ignored_fields == ("meta.lang",)


def test_what_is_not_mapped_in_a_message_keeps_its_name() -> None:
    row = {"turns": [{"who": "gpt", "text": "x", "name": "bot", "train": False, "role": "y", "extra": 1}]}
    conversation = read(row, {"messages": "turns", "role": "who", "content": "text"})
    assert (conversation.messages[0].name, conversation.messages[0].weight) == ("bot", 0.0)
    assert conversation.ignored_fields == ("extra", "role")


def test_a_field_with_a_dot_in_its_name_is_found_too() -> None:
    row = {"chat.turns": [{"role": "assistant", "content": "x"}], "chat": {"turns": 5}}
    assert said(read(row, {"messages": "chat.turns"})) == [("assistant", "x")]


def test_roles_of_the_options_go_before_those_of_the_map() -> None:
    row = {"m": [{"role": 0, "content": "a"}, {"role": "x", "content": "b"}]}
    mapping = {"messages": "m", "roles": {"0": "user", "x": "user"}}
    assert said(read(row, mapping, roles={"x": "assistant"})) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"q": "a", "a": "b"}, [("user", "a"), ("assistant", "b")]),
        ({"q": "a", "ctx": "c", "a": "b", "h": [["1", "2"]], "s": "s"},
         [("system", "s"), ("user", "1"), ("assistant", "2"), ("user", "a\n\nc"), ("assistant", "b")]),
        ({"q": seeds.BARE[:1], "a": "b"}, [("user", "Hi"), ("assistant", "b")]),
        ({"q": "a", "a": seeds.BARE[1:], "t": [seeds.WEATHER]}, [("user", "a"), ("assistant", "Hello")]),
    ],
)  # fmt: skip
def test_a_prompt_and_its_response_stand_where_the_map_says(row: Any, expected: list[tuple[str, str]]) -> None:
    mapping = {"prompt": "q", "response": "a", "input": "ctx", "history": "h", "system": "s", "tools": "t"}
    assert said(read({**row, "z": 1}, mapping)) == expected
    assert read({**row, "z": 1}, mapping).ignored_fields == ("z",)


def test_rows_are_turns_where_the_map_names_the_conversation() -> None:
    rows = [
        {"thread": {"id": 4, "at": "x"}, "no": i, "who": who, "says": who, "top": "s"}
        for i, who in enumerate(["client", "bot", "client", "bot"])
    ]
    mapping = {"conversation": "thread.id", "turn": "no", "role": "who", "content": "says", "system": "top",
               "roles": {"client": "user"}}  # fmt: skip
    options = SourceOptions(column_map=ColumnMap.from_mapping(mapping))
    batch = RowBatch("a.jsonl", decoded=tuple(Row(f"a.jsonl:{i}", value=row) for i, row in enumerate(rows, start=1)))
    [reading] = ConversationBatch(batch, options).readings()
    [conversation] = reading.conversations
    assert said(conversation) == [
        ("system", "s"), ("user", "client"), ("assistant", "bot"), ("user", "client"), ("assistant", "bot"),
    ]  # fmt: skip
    assert conversation.ignored_fields == ("thread.at",)
    with pytest.raises(ConversationError, match="the row is one turn of a conversation; read the file with"):
        parse_row(rows[0], "a.jsonl:1", options)


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_prompt_and_tools_that_the_map_does_not_name_are_used(name: str) -> None:
    rows = [{"id": 4, "role": role, "content": "x", name: "s", "tools": [seeds.WEATHER]} for role in ("user", "bot")]

    def read_turns(mapping: dict[str, Any]) -> Conversation:
        options = SourceOptions(column_map=ColumnMap.from_mapping({"conversation": "id", **mapping}))
        batch = RowBatch("a.jsonl", decoded=tuple(Row(f"a.jsonl:{i}", value=row) for i, row in enumerate(rows)))
        [reading] = ConversationBatch(batch, options).readings()
        assert reading.error is None
        return reading.conversations[0]

    conversation = read_turns({})
    assert said(conversation) == [("system", "s"), ("user", "x"), ("assistant", "x")]
    assert (len(conversation.tools), conversation.ignored_fields) == (1, ())
    rows[0]["top"] = "t"
    mapped = {"system": "top", "tools": "schemas"}
    if name == "system":
        assert said(read_turns(mapped))[0] == ("system", "t")
        assert read_turns(mapped).ignored_fields == ("system", "tools")


@pytest.mark.parametrize(
    ("row", "mapping", "message"),
    [
        ({"x": 1}, {"messages": "m"}, "'m' is missing or null, where the column map has the messages; repair the row"),
        ({"m": 5}, {"messages": "m"}, "'m' is a number, not a list of messages; repair the row"),
        ({"m": [{"role": "user"}]}, {"messages": "m"}, r"turn 0 \(user\): content is null, and there are no"),
        ({"q": "a"}, {"prompt": "q", "response": "a"}, "'a' is missing or null, where the column map has the response"),
        ({"q": 5, "a": "b"}, {"prompt": "q", "response": "a"}, "'q' is a number, not a string or a list of messages"),
        ({"q": seeds.BARE, "a": "b", "i": "c"}, {"prompt": "q", "response": "a", "input": "i"},
         "has an input or a history beside messages or tools; write it as messages"),
        ({"q": "a", "a": "b", "ok": False}, {"prompt": "q", "response": "a", "label": "ok"}, "ok is false, so the"),
        ({"x": 1}, {"conversation": "id"}, "'id' is missing; the column says which conversation a turn belongs to"),
        ({"id": [1]}, {"conversation": "id"}, "id is a list, not a text or a number; repair the row"),
        ([1], {"messages": "m"}, "the row is a list, not an object; write one object per row"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_the_map_is_refused(row: Any, mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversationError, match=rf"^a\.jsonl:1: {message}"):
        read(row, mapping)


def test_all_problems_of_a_map_are_listed_at_once() -> None:
    mapping = {
        "message": "m",
        "prompt": "q",
        "conversation": "id",
        "role": ["who"],
        "content": "a..b",
        "roles": {"client": "usr", 5: "user"},
    }
    with pytest.raises(ConfigError) as refused:
        ColumnMap.from_mapping(mapping, origin="map.yaml")
    assert list(refused.value.problems) == [
        "map.yaml: 'message' is not a part of a conversation; did you mean 'messages'?",
        "map.yaml: role is ['who'], not the name of a field; write a name, or a path such as a.b",
        "map.yaml: content is 'a..b', not the name of a field; write a name, or a path such as a.b",
        "map.yaml: roles: 'client' is 'usr', not one of system, user, assistant, tool, function_call; choose one",
        "map.yaml: roles: 5 is 'user', but a name is a text; put it in quotes",
        "map.yaml: needs exactly one of messages, prompt and conversation, but has prompt and conversation; drop one",
    ]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (None, "is not a mapping; write a line such as `messages: dialog`"),
        ({}, "needs exactly one of messages, prompt and conversation, but has none of them"),
        ({"prompt": "q"}, "has prompt but no response; name the answer"),
        ({"prompt": "q", "response": "a", "role": "r"}, "role has no meaning beside prompt; drop it"),
        ({"messages": "m", "turn": "t", "input": "i"}, "input has no meaning beside messages; drop it"),
        ({"conversation": "c", "history": "h"}, "history has no meaning beside conversation; drop it"),
        ({"messages": "m", "roles": "client"}, "roles is 'client', not a mapping; write a line such as `client: user`"),
        ({"messages": "m", "roles": None}, "roles is empty; drop it, or write a line such as `client: user`"),
        ({"formatting": "chatml"}, "formatting is 'chatml', not alpaca, sharegpt or openai"),
        ({"columns": {"images": "i"}}, "columns has images, but only text can be trained here; drop the column"),
        ({"columns": ["m"]}, r"columns is \['m'\], not a mapping of names"),
        ({"formatting": "sharegpt", "ranking": True}, "ranking with sharegpt has the answers beside the messages"),
    ],
)
def test_a_map_that_can_not_be_used_is_refused(mapping: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^map\.yaml: {message}"):
        ColumnMap.from_mapping(mapping, origin="map.yaml")


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        ({"file_name": "x.json"}, {"instruction": "a", "input": "", "output": "b"}),
        ({"columns": {"prompt": "q", "query": "i", "response": "r"}}, {"q": "a", "i": "", "r": "b"}),
        ({"formatting": "sharegpt"},
         {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
        ({"formatting": "sharegpt", "columns": {"messages": "m"}, "tags": {"role_tag": "r", "content_tag": "c",
          "user_tag": "U", "assistant_tag": "A"}}, {"m": [{"r": "U", "c": "a"}, {"r": "A", "c": "b"}]}),
        ({"formatting": "openai"},
         {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        ({"ranking": True}, {"instruction": "a", "chosen": "b", "rejected": "c"}),
    ],
)  # fmt: skip
def test_entries_of_llama_factorys_dataset_info_are_maps(entry: dict[str, Any], row: Any) -> None:
    assert said(read(row, json.loads(json.dumps(entry)))) == [("user", "a"), ("assistant", "b")]
