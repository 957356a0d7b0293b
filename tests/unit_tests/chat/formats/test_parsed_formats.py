# SPDX-License-Identifier: Apache-2.0
"""What a row of each format becomes, message by message."""

import json
from pathlib import Path
from typing import Any

import pytest

from primus.chat import Conversation, Message, parse_conversation
from primus.chat.conversations import read_conversations
from primus.chat.formats import SourceOptions, parse_row
from tests.unit_tests.chat import seed_rows as seeds


def shown(message: Message) -> str:
    """A message in a line: role, content in quotes, and everything else that it has."""
    parts = [f"{message.role} {message.content!r}"]
    parts += [f"thinks {message.reasoning!r}"] if message.reasoning is not None else []
    parts += [f"calls {call.name} {call.arguments}{f' as {call.id}' if call.id else ''}" for call in message.tool_calls]
    parts += [f"for {message.tool_call_id}"] if message.tool_call_id is not None else []
    parts += [f"named {message.name}"] if message.name is not None else []
    parts += [f"weight {message.weight:g}"] if message.weight is not None else []
    return ", ".join(parts)


def lines(conversation: Conversation) -> list[str]:
    return [shown(message) for message in conversation.messages]


def read(row: Any, **options: Any) -> Conversation:
    [conversation] = parse_row(row, "a.jsonl:1", SourceOptions(**options))
    return conversation


EXPECTED: list[tuple[Any, list[str]]] = [
    (seeds.OPENAI, [
        "system 'Be brief.'", "user 'Rain in Zürich?', named ann",
        "assistant '', thinks 'Look.', calls weather {\"city\": \"Zürich\"} as c1, weight 0",
        "tool 'no', for c1, named weather", "assistant '<think>\\nDry.\\n</think>\\n\\nNo.', weight 1"]),
    (seeds.BARE, ["user 'Hi'", "assistant 'Hello'"]),
    (seeds.SHAREGPT, [
        "system 'Be brief.'", "user 'Rain?'", "assistant '', calls weather {\"city\": \"Bern\"}", "tool 'no'",
        "assistant 'No.', weight 1"]),
    (seeds.PAIRS, ["system 's'", "user 'a'", "assistant 'b'"]),
    (seeds.ANTHROPIC, [
        "system 'Be brief.'", "user 'Rain?'",
        "assistant 'One moment.', thinks 'Look.', calls weather {\"city\": \"Bern\"} as t1", "tool 'no', for t1",
        "user 'Well?'", "assistant 'No.'"]),
    (seeds.LLAMAFACTORY, [
        "user 'Rain?', weight 0", "assistant '', thinks 'Look.', calls weather {}, weight 0.5", "tool 'no'",
        "assistant 'No.', weight 1"]),
    (seeds.XTUNER, ["system 'Be brief.'", "user 'a'", "assistant 'b', weight 0", "user 'c'", "assistant 'd'"]),
    (seeds.TOOLTALK, [
        "user 'Log in.'", "assistant '', calls Login {\"user\": \"ann\"}",
        "tool '{\"response\": {\"ok\": true}, \"exception\": null}', named Login", "assistant 'Done.'"]),
    (seeds.SWE_AGENT, [
        "system 's'", "assistant 'demo', weight 0", "user 'go'", "assistant 'I look.\\n```\\nls\\n```'",
        "tool 'a.txt', for c1", "assistant 'done'"]),
    (seeds.HH, ["user 'a'", "assistant 'b'", "user 'c'", "assistant ' d '"]),
    (seeds.HH_CUT, ["user 'a'", "assistant 'b'"]),
    (seeds.ALPACA, ["system 's'", "user 'a'", "assistant 'b'", "user 'Add.\\n\\n2 2'", "assistant '4'"]),
    (seeds.COMPLETION, ["user 'a'", "assistant 'b', weight 0", "user 'c'", "assistant 'd'"]),
    (seeds.CHOSEN, ["system 's'", "user 'q'", "assistant 'good'"]),
    # Dialects.
    ([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], ["user 'a'", "assistant 'b'"]),
    ({"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, ["user 'a'", "assistant 'b'"]),
    ({"conversation": [{"role": "User", "content": "a"}, {"role": "ChatGPT", "text": "b"}]},
     ["user 'a'", "assistant 'b'"]),
    ({"conversations": [{"from": "bing", "value": "a"}, {"from": "tool_response", "value": {"t": 1}},
                        {"from": "bard", "content": "b"}]}, ["assistant 'a'", "tool '{\"t\": 1}'", "assistant 'b'"]),
    ({"conversations": [{"from": "function_call", "value": '[{"name":"f"},{"name":"g","arguments":"{\\"a\\":1}"}]'}]},
     ["assistant '', calls f {}, calls g {\"a\": 1}"]),
    ({"input": "Write.", "output": "Text\n", "source": "C4"}, ["user 'Write.'", "assistant 'Text\\n'"]),
    ({"instruction": "a", "context": "b", "response": "c"}, ["user 'a\\n\\nb'", "assistant 'c'"]),
    ({"query": "a", "response": "b", "system_prompt": "s"}, ["system 's'", "user 'a'", "assistant 'b'"]),
    ({"prompt": " a ", "completion": " b"}, ["user ' a '", "assistant ' b'"]),
    ({"prompt": seeds.BARE[:1], "response": "x"}, ["user 'Hi'", "assistant 'x'"]),
    ({"chosen": seeds.BARE, "rejected": seeds.BARE}, ["user 'Hi'", "assistant 'Hello'"]),
    ({"prompt": "Hi", "chosen": seeds.BARE}, ["user 'Hi'", "assistant 'Hello'"]),
    ({"prompt": "Summarize", "input": "TEXT", "completion": "a"}, ["user 'Summarize\\n\\nTEXT'", "assistant 'a'"]),
    ({"instruction": "a", "context": "b", "completion": "c"}, ["user 'a\\n\\nb'", "assistant 'c'"]),
    ({"instruction": "a", "input": "b", "history": [["1", "2"]], "system": "s", "chosen": "c", "rejected": "d"},
     ["system 's'", "user '1'", "assistant '2', weight 0", "user 'a\\n\\nb'", "assistant 'c'"]),
    ({"prompt": "a", "input": "", "history": [], "completion": [{"role": "assistant", "content": "b"}]},
     ["user 'a'", "assistant 'b'"]),
    ({"prompt": "a", "input": "b", "chosen": [{"role": "user", "content": "a\n\nb"}, *seeds.BARE[1:]]},
     ["user 'a\\n\\nb'", "assistant 'Hello'"]),
    ({"system_prompt": "s", "messages": seeds.BARE}, ["system 's'", "user 'Hi'", "assistant 'Hello'"]),
    ({**seeds.PAIRS, "system": None, "system_prompt": "t"}, ["system 't'", "user 'a'", "assistant 'b'"]),
    ({"system_prompt": "s", "conversations": [{"from": "gpt", "value": "a"}]}, ["system 's'", "assistant 'a'"]),
    ({"system_prompt": "s", "messages": [{"role": "assistant", "content": [{"type": "text", "value": "x"}]}]},
     ["system 's'", "assistant 'x'"]),
    ({"system_prompt": [{"type": "text", "text": "s"}], "system": None, "messages": [
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}, *seeds.BARE[1:]]},
     ["system 's'", "tool '', for t", "assistant 'Hello'"]),
    ({"prompt": "Hi", "completion": "x", "label": True}, ["user 'Hi'", "assistant 'x'"]),
    ({"system": "s", "messages": seeds.BARE}, ["system 's'", "user 'Hi'", "assistant 'Hello'"]),
    ({"system": "s", "messages": [{"role": "system", "content": "s"}, *seeds.BARE]},
     ["system 's'", "user 'Hi'", "assistant 'Hello'"]),
    ({"text": "Human: a\n\nAssistant:\n\nHuman:b\n\nAssistant: Human: c\nAssistant: d\n"},
     ["user 'a'", "assistant ''", "user 'b'", "assistant 'Human: c\\nAssistant: d\\n'"]),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}, *seeds.BARE]},
     ["tool '', for t", "user 'Hi'", "assistant 'Hello'"]),
    ({"conversation": [{"input": "", "output": "b", "need_eos_token": True}]}, ["user ''", "assistant 'b'"]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), EXPECTED, ids=range(len(EXPECTED)))
def test_a_row_becomes_these_messages(row: Any, expected: list[str]) -> None:
    assert lines(read(row)) == expected
    assert lines(parse_conversation(row)) == expected


@pytest.mark.parametrize(
    ("row", "names"),
    [
        (seeds.OPENAI, ["id", "parallel_tool_calls"]),
        (seeds.ANTHROPIC, ["content.cache_control", "content.is_error", "content.signature"]),
        (seeds.TOOLTALK, ["name"]),
        (seeds.SWE_AGENT, ["action", "agent", "environment", "thought", "trajectory"]),
        (seeds.HH, ["rejected"]),
        (seeds.ALPACA, ["category"]),
        (seeds.CHOSEN, ["rejected"]),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"name": "f", "index": 0}]}]},
         ["tool_calls.index"]),
    ],
)  # fmt: skip
def test_what_has_no_place_is_named(row: Any, names: list[str]) -> None:
    assert list(read(row).ignored_fields) == names


def test_tools_become_openai_functions() -> None:
    wrapped = json.dumps({"type": "function", "function": seeds.WEATHER})
    assert read(seeds.OPENAI).tools == (wrapped,)
    assert read({**seeds.SHAREGPT, "tools": json.dumps([seeds.WEATHER])}).tools == (wrapped,)
    assert read({**seeds.LLAMAFACTORY, "tools": json.dumps([seeds.WEATHER])}).tools == (wrapped,)
    function = {"name": "weather", "description": "d", "parameters": seeds.WEATHER["parameters"]}
    as_openai = json.dumps({"type": "function", "function": function})
    assert read(seeds.ANTHROPIC).tools == (as_openai,)
    assert read({"messages": seeds.BARE, "tools": seeds.ANTHROPIC["tools"]}, format="openai").tools == (as_openai,)


def test_a_tree_becomes_all_its_branches_or_the_best() -> None:
    branches = parse_row(seeds.OASST, "a.jsonl:1", SourceOptions())
    assert [(c.origin, lines(c)) for c in branches] == [
        ("a.jsonl:1#0", ["user 'Hi'", "assistant 'A'"]),
        ("a.jsonl:1#1", ["user 'Hi'", "assistant 'B'", "user 'Go on'", "assistant 'C'"]),
    ]
    assert branches[0].ignored_fields == ("lang", "message_tree_id", "unanswered prompts")
    best = read(seeds.OASST, oasst="best")
    assert (best.origin, lines(best)) == ("a.jsonl:1", lines(branches[1]))


@pytest.mark.parametrize("why", [{"deleted": True}, {"review_result": False}])
def test_deleted_and_refused_messages_of_a_tree_are_left_out_with_their_replies(why: dict[str, Any]) -> None:
    row = json.loads(json.dumps(seeds.OASST))
    row["prompt"]["replies"][1] |= why
    assert lines(read(row)) == ["user 'Hi'", "assistant 'A'"]
    left_out = "deleted messages" if "deleted" in why else "messages that reviewers refused"
    assert left_out in read(row).ignored_fields


def test_the_same_conversation_is_read_from_every_format() -> None:
    texts = ["s", "a", "b", "c", "d"]
    roles = ["system", "user", "assistant", "user", "assistant"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    rows: list[Any] = [
        messages,
        {"messages": messages},
        {"messages": messages[1:], "system": "s"},
        {"messages": messages[1:], "system": [{"type": "text", "text": "s"}]},
        {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in messages]},
        {"system": "s", "conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]},
        {"conversation": [{"system": "s", "input": "a", "output": "b"}, {"input": "c", "output": "d"}]},
        {"messages": [{"role": m["role"], "content": [{"type": "text", "value": m["content"]}]} for m in messages]},
        {"system": "s", "history": [["a", "b"]], "instruction": "c", "input": "", "output": "d"},
        {"history": messages, "trajectory": []},
        {"conversation": [{"role": m["role"], "text": m["content"], "apis": []} for m in messages]},
    ]
    assert len({read(row).content_hash for row in rows}) == 1


def test_the_input_of_a_completion_is_remembered_as_that_of_an_instruction() -> None:
    fields = {"instruction": "Summarize", "input": "THE TEXT"}
    assert read({**fields, "completion": "a"}).messages == read({**fields, "output": "a"}).messages


def test_a_prompt_of_a_table_keeps_its_context(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('prompt,context,history,completion\na,b,"[[""1"", ""2""]]",c\n', encoding="utf-8")
    [reading] = read_conversations([path], SourceOptions())
    assert lines(reading.conversations[0]) == [
        "user '1'",
        "assistant '2', weight 0",
        "user 'a\\n\\nb'",
        "assistant 'c'",
    ]


def test_a_flat_tree_says_that_its_answers_were_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{**row, "review_result": row["role"] == "prompter"} for row in seeds.FLAT_TREE]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    [reading] = read_conversations([path], SourceOptions())
    assert "every answer of the tree is left out (messages that reviewers refused, with what" in str(reading.error)
