# SPDX-License-Identifier: Apache-2.0
"""Every kind of row that is read as a conversation, and every reason why a row is not."""

import re
import sys
from typing import Any

import pytest

from primus.chat import Conversation, Message, ToolCall, parse_conversation
from primus.errors import ConversationError

ORIGIN = "rows.jsonl:7"
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


def parse(row: object, **options: Any) -> Conversation:
    return parse_conversation(row, origin=ORIGIN, **options)


def with_assistant(**fields: Any) -> dict[str, Any]:
    return {"messages": [USER, {**ASSISTANT, **fields}]}


def assistant(**fields: Any) -> Message:
    return parse(with_assistant(**fields)).messages[1]


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


# --- messages ---


def test_messages_keep_their_order_and_every_character() -> None:
    contents = [" a\n", "\n\nb  ", "", "\t", "<|im_end|>", "e\u0301\u200d👍🏽", "\x00\u2028"]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    assert [m.content for m in parse({"messages": messages}).messages] == contents


def test_the_origin_goes_along() -> None:
    assert parse({"messages": [ASSISTANT]}).origin == ORIGIN


def test_names_of_roles_from_other_vendors_and_versions_are_read() -> None:
    row: dict[str, Any] = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            USER,
            {"role": "assistant", "content": None, "function_call": {"name": "now", "arguments": "{}"}},
            {"role": "function", "name": "now", "content": "12:00"},
            ASSISTANT,
        ]
    }
    messages = parse(row).messages
    assert [m.role for m in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[2].tool_calls == (ToolCall("now", "{}"),)
    assert messages[3].name == "now"


@pytest.mark.parametrize(
    ("arguments", "canonical"),
    [
        ({"b": 1, "a": "ü"}, '{"b": 1, "a": "ü"}'),
        ('{"b":1,"a":"\\u00fc"}', '{"b": 1, "a": "ü"}'),
        (' {\n  "a": [1, 2.50, true, null]\n} ', '{"a": [1, 2.5, true, null]}'),
        ("", "{}"),
        ("{}", "{}"),
        ({}, "{}"),
        (None, "{}"),
        ("null", "{}"),
    ],
)
def test_tool_call_arguments_as_text_or_as_an_object_are_the_same_canonical_json(
    arguments: object, canonical: str
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    assert assistant(content=None, tool_calls=[call]).tool_calls == (ToolCall("f", canonical, id="c1"),)


def test_a_tool_call_may_be_written_without_its_function_wrapper() -> None:
    assert assistant(tool_calls=[{"name": "f", "arguments": {"a": 1}}]).tool_calls == (ToolCall("f", '{"a": 1}'),)


def test_an_identifier_that_is_a_number_is_text() -> None:
    assert assistant(tool_calls=[{"id": 3, "function": {"name": "f"}}]).tool_calls[0].id == "3"


def test_content_may_be_null_or_missing_beside_tool_calls_only() -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    assert assistant(content=None, tool_calls=[call]).content == ""
    bare = {"messages": [USER, {"role": "assistant", "tool_calls": [call, call]}]}
    assert parse(bare).messages[1].content == ""
    assert len(parse(bare).messages[1].tool_calls) == 2


@pytest.mark.parametrize("nothing", [None, []])
def test_no_tool_calls_may_be_written_out(nothing: object) -> None:
    assert assistant(tool_calls=nothing) == assistant()


def test_content_may_be_a_list_of_text_parts() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": ""}, {"text": "lo\n"}]
    assert assistant(content=parts).content == "Hello\n"
    assert assistant(content=[]).content == ""


@pytest.mark.parametrize(("weight", "read"), [(0, 0.0), (1, 1.0), (0.25, 0.25), (None, None)])
def test_a_message_may_have_a_weight(weight: float | None, read: float | None) -> None:
    assert assistant(weight=weight).weight == read


def test_reasoning_and_names_are_read() -> None:
    message = assistant(reasoning_content="hm\n", name="bot")
    assert (message.reasoning, message.name) == ("hm\n", "bot")
    tool = {"role": "tool", "content": "22", "tool_call_id": "c1", "name": "f"}
    assert parse({"messages": [tool, ASSISTANT]}).messages[0] == Message("tool", "22", tool_call_id="c1", name="f")


@pytest.mark.parametrize(
    ("tools", "read"),
    [
        ([{"type": "function", "function": {"name": "ü"}}], ('{"type": "function", "function": {"name": "ü"}}',)),
        ('[{"name":"f"},{"name":"g"}]', ('{"name": "f"}', '{"name": "g"}')),
        ([], ()),
        ("", ()),
        (" \n", ()),
        ("[]", ()),
        ("null", ()),
        (None, ()),
    ],
)
def test_tools_may_be_a_list_or_its_json(tools: object, read: tuple[str, ...]) -> None:
    assert parse({"messages": [ASSISTANT], "tools": tools}).tools == read


@pytest.mark.parametrize("functions", [[{"name": "f"}], '[{"name": "f"}]'])
def test_functions_are_tools_without_their_wrapper(functions: object) -> None:
    assert parse({"messages": [ASSISTANT], "functions": functions}).tools == (
        '{"type": "function", "function": {"name": "f"}}',
    )


def test_fields_without_a_meaning_here_are_named() -> None:
    row: dict[str, Any] = {
        "messages": [{**USER, "zeta": 1, "audio": None}, {**ASSISTANT, "logprobs": [1], "refusal": None}]
    }
    assert parse(row).ignored_fields == ("logprobs", "zeta")


def test_the_messages_may_stand_in_a_field_of_another_name() -> None:
    assert parse({"traj": [ASSISTANT]}, messages_field="traj") == parse({"messages": [ASSISTANT]})
    both = {"traj": [ASSISTANT], "messages": [USER, ASSISTANT]}
    assert parse(both, messages_field=("messages", "traj")) == parse({"messages": [USER, ASSISTANT]})
    assert parse(both, messages_field=("traj", "messages")) == parse({"messages": [ASSISTANT]})


# --- single-turn rows ---


@pytest.mark.parametrize("instruction", ["instruction", "prompt", "question"])
@pytest.mark.parametrize("response", ["response", "output", "answer"])
def test_single_turn_rows_are_recognised_by_any_of_their_names(instruction: str, response: str) -> None:
    conversation = parse({instruction: "2 + 2?", response: "4"})
    assert conversation.messages == (Message("user", "2 + 2?"), Message("assistant", "4"))
    assert conversation.origin == ORIGIN


@pytest.mark.parametrize("name", ["input", "context"])
def test_the_input_follows_the_instruction_after_a_blank_line(name: str) -> None:
    user = parse({"instruction": "Add.", name: "2 2", "output": "4"}).messages[0]
    assert user == Message("user", "Add.\n\n2 2", input_start=6)
    assert user.content[6:] == "2 2"


@pytest.mark.parametrize("empty", ["", None])
def test_empty_optional_fields_are_absent(empty: str | None) -> None:
    row: dict[str, Any] = {
        "instruction": "a",
        "input": empty,
        "system": empty,
        "history": [] if empty == "" else None,
        "output": "b",
    }
    assert parse(row) == parse({"instruction": "a", "output": "b"})


def test_system_and_history_come_first() -> None:
    row: dict[str, Any] = {"system": "s", "instruction": "c", "output": "d", "history": [["a", "b"], ("a2", "b2")]}
    assert [(m.role, m.content) for m in parse(row).messages] == [
        ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "a2"), ("assistant", "b2"),
        ("user", "c"), ("assistant", "d"),
    ]  # fmt: skip


def test_both_kinds_of_rows_mix_and_messages_win() -> None:
    rows = [
        {"messages": [USER, ASSISTANT]},
        {"instruction": "Hi", "output": "Hello"},
        {"messages": None, "prompt": "Hi", "response": "Hello"},
        {"prompt": "a summary", "prompt_id": 3, "messages": [USER, ASSISTANT]},
    ]
    assert len({parse(row).content_hash for row in rows}) == 1


# --- what is refused ---

CALL_FORM = 'turn 1 (assistant): tool_calls[0]: is not {"function": {"name": ..., "arguments": ...}}; repair the row'
NEEDS = "but a conversation needs 'messages', or instruction|prompt|question|query with response|output|answer; rename"
PART = 'not {"type": "text", "text": ...}; only text can be trained here'
TOO_DEEP = "(brackets are nested too deeply)"

REFUSED: list[tuple[object, str, str]] = [
    # the row
    (None, "not_an_object", "the row is a null, not an object; write one object per row"),
    (["Hi"], "not_an_object", "the row is a list, not an object; write one object per row"),
    ("text", "not_an_object", "the row is a string, not an object"),
    (3.5, "not_an_object", "the row is a number, not an object"),
    (True, "not_an_object", "the row is a boolean, not an object"),
    ({}, "fields", f"the row has the fields (none), {NEEDS}"),
    ({"conversations": []}, "empty", "there are no messages; drop the row"),
    ({"dialog": []}, "fields", f"the row has the fields 'dialog', {NEEDS}"),
    ({"prompt": "a"}, "fields", f"the row has the fields 'prompt', {NEEDS}"),
    ({"output": "a", "id": 1}, "fields", f"the row has the fields 'output', 'id', {NEEDS}"),
    # messages
    ({"messages": '[{"role": "user"}]'}, "messages_type",
     "'messages' is a string, not a list of messages; if it holds JSON, decode it when the file is made"),
    ({"messages": {"role": "user"}}, "messages_type", "'messages' is a object, not a list of messages; repair the row"),
    ({"messages": 5}, "messages_type", "'messages' is a number, not a list of messages"),
    ({"messages": []}, "empty", "there are no messages; drop the row"),
    ({"messages": [USER]}, "no_assistant", "none of the 1 messages is the assistant's, so there is nothing to train"),
    # a message
    ({"messages": ["Hi"]}, "not_an_object", "turn 0: is a string, not an object with role and content; repair the row"),
    ({"messages": [USER, None]}, "not_an_object", "turn 1: is a null, not an object with role and content"),
    ({"messages": [{"content": "Hi"}]}, "role", "turn 0: role is null, not a string; name the role"),
    ({"messages": [{"role": ["user"], "content": "Hi"}]}, "role", "turn 0: role is list, not a string; name the role"),
    ({"messages": [{"role": "human", "content": "Hi"}]}, "role",
     "turn 0: unknown role 'human'; use one of system, user, assistant, tool"),
    ({"messages": [{"role": "a\nb", "content": "Hi"}]}, "role", "turn 0: unknown role 'a\\nb'; use one of"),
    ({"messages": [{"role": "\ud800", "content": "Hi"}]}, "role", "turn 0: unknown role '\\ud800'; use one of"),
    # content
    (with_assistant(content=None), "content",
     "turn 1 (assistant): content is null, and there are no tool_calls; write a text, empty if you mean it"),
    ({"messages": [USER, {"role": "assistant"}]}, "content", "turn 1 (assistant): content is missing, and there"),
    ({"messages": [{"role": "tool", "content": None}]}, "content", "turn 0 (tool): content is null, and there are no"),
    (with_assistant(content=5), "content",
     "turn 1 (assistant): content is a number, not a string or a list of text parts; repair the row"),
    (with_assistant(content={"text": "x"}), "content", "turn 1 (assistant): content is a object, not a string or"),
    (with_assistant(content=["x"]), "content_part", f"turn 1 (assistant): content[0]: is a string, {PART}"),
    (with_assistant(content=[{"text": "x"}, {"type": "image_url", "image_url": {}}]), "content_part",
     f"turn 1 (assistant): content[1]: is a part of type 'image_url', {PART}"),
    (with_assistant(content=[{"type": "text", "text": 5}]), "content_part",
     f"turn 1 (assistant): content[0]: is a part of type 'text', {PART}"),
    (with_assistant(content="a\ud800"), "encoding",
     "turn 1 (assistant): content has the lone surrogate U+D800 at character 1, which is no text; repair the source's"),
    (with_assistant(refusal="I can't."), "refusal",
     "turn 1 (assistant): has a refusal beside its content; move the text you want to train into content"),
    # other fields
    (with_assistant(reasoning_content=["hm"]), "reasoning_content",
     "turn 1 (assistant): reasoning_content is a list, not a string; repair the row"),
    (with_assistant(reasoning_content="\udfff"), "encoding", "turn 1 (assistant): reasoning has the lone surrogate"),
    (with_assistant(name=5), "name", "turn 1 (assistant): name is a number, not a string; repair the row"),
    ({"messages": [{"role": "tool", "content": "1", "tool_call_id": 5}, ASSISTANT]}, "tool_call_id",
     "turn 0 (tool): tool_call_id is a number, not a string; repair the row"),
    (with_assistant(weight="1"), "weight", "turn 1 (assistant): weight is '1', not a number; write 0 or 1"),
    (with_assistant(weight=True), "weight", "turn 1 (assistant): weight is True, not a number; write 0 or 1"),
    (with_assistant(weight=float("nan")), "weight", "turn 1 (assistant): weight is nan, not a number; write 0 or 1"),
    (with_assistant(weight=float("inf")), "weight", "turn 1 (assistant): weight is inf, not a number; write 0 or 1"),
    (with_assistant(weight=10**400), "weight", "turn 1 (assistant): weight is 1000000000"),
    (with_assistant(weight=1e39), "weight", "turn 1 (assistant): weight is 1e+39, not a number; write 0 or 1"),
    (with_assistant(weight=-1), "weight", "turn 1 (assistant): weight -1.0 is not a finite number of at least 0;"),
    ({"messages": [{**USER, "weight": 1}, ASSISTANT]}, "weight",
     "turn 0 (user): a user message has weight 1.0; only assistant messages are trained, so drop the weight or set it"),
    ({"messages": [{**USER, "reasoning_content": "x"}, ASSISTANT]}, "reasoning",
     "turn 0 (user): a user message has reasoning; only the assistant reasons"),
    # tool calls
    ({"messages": [{**USER, "tool_calls": [{"name": "f"}]}, ASSISTANT]}, "tool_calls",
     "turn 0 (user): a user message has tool_calls; only the assistant calls tools"),
    (with_assistant(tool_calls="f()"), "tool_calls",
     "turn 1 (assistant): tool_calls is a string, not a list; repair the row"),
    (with_assistant(tool_calls={"name": "f"}), "tool_calls", "turn 1 (assistant): tool_calls is a object, not a list"),
    (with_assistant(tool_calls=[None]), "tool_calls", CALL_FORM),
    (with_assistant(tool_calls=[{}]), "tool_calls", CALL_FORM),
    (with_assistant(tool_calls=[{"function": "f"}]), "tool_calls", CALL_FORM),
    (with_assistant(tool_calls=[{"function": {"name": 5}}]), "tool_calls", CALL_FORM),
    (with_assistant(function_call="auto"), "tool_calls", CALL_FORM),
    (with_assistant(function_call={"name": "f"}, tool_calls=[{"name": "f"}]), "tool_calls",
     "turn 1 (assistant): has both function_call and tool_calls; keep tool_calls"),
    (with_assistant(tool_calls=[{"name": "f"}, {"name": "g", "arguments": "{'a': 1}"}]), "tool_arguments",
     "turn 1 (assistant): tool_calls[1]: arguments of 'g' are not valid JSON (Expecting property name enclosed in"),
    (with_assistant(tool_calls=[{"name": "f", "arguments": '{"a": 1, "a": 2}'}]), "tool_arguments",
     "turn 1 (assistant): tool_calls[0]: arguments of 'f' are not valid JSON (the key 'a' stands twice in one object)"),
    (with_assistant(tool_calls=[{"name": "f", "arguments": '{"a": NaN}'}]), "tool_arguments",
     "turn 1 (assistant): tool_calls[0]: arguments of 'f' are not valid JSON (NaN is not a JSON number)"),
    (with_assistant(tool_calls=[{"name": "f", "arguments": "[" * 100_000}]), "tool_arguments",
     f"turn 1 (assistant): tool_calls[0]: arguments of 'f' are not valid JSON {TOO_DEEP}"),
    (with_assistant(tool_calls=[{"name": "f", "arguments": [1]}]), "tool_arguments",
     "turn 1 (assistant): tool_calls[0]: arguments of 'f' are a JSON list, not an object; repair the row"),
    (with_assistant(tool_calls=[{"name": "f", "arguments": '"a"'}]), "tool_arguments",
     "turn 1 (assistant): tool_calls[0]: arguments of 'f' are a JSON string, not an object; repair the row"),
    (with_assistant(tool_calls=[{"name": "f", "arguments": {"a": {1, 2}}}]), "not_json",
     "turn 1 (assistant): tool_calls[0]: is not JSON (Object of type set is not JSON serializable); repair the row"),
    (with_assistant(tool_calls=[{"name": "f", "arguments": {"a": float("inf")}}]), "not_json",
     "turn 1 (assistant): tool_calls[0]: is not JSON (Out of range float values are not JSON compliant"),
    (with_assistant(tool_calls=[{"name": "f", "arguments": nested(100_000)}]), "not_json",
     "turn 1 (assistant): tool_calls[0]: is not JSON (maximum recursion depth exceeded"),
    (with_assistant(tool_calls=[{"name": "f", "arguments": {"a": "\ud800"}}]), "encoding",
     "turn 1 (assistant): tool call 'f' has the lone surrogate U+D800"),
    # tools
    ({"messages": [ASSISTANT], "tools": "[{]"}, "tools",
     "tools is not valid JSON (Expecting property name enclosed in double quotes: line 1 column 3 (char 2)); repair"),
    ({"messages": [ASSISTANT], "tools": "[" * 100_000}, "tools", f"tools is not valid JSON {TOO_DEEP}"),
    ({"messages": [ASSISTANT], "tools": '{"name": "f"}'}, "tools",
     "tools is not a list of tool definitions (objects); repair the row"),
    ({"messages": [ASSISTANT], "tools": {"name": "f"}}, "tools", "tools is not a list of tool definitions (objects)"),
    ({"messages": [ASSISTANT], "tools": ["f"]}, "tools", "tools is not a list of tool definitions (objects)"),
    ({"messages": [ASSISTANT], "functions": {"name": "f"}}, "tools", "functions is not a list of tool definitions"),
    ({"messages": [ASSISTANT], "functions": ["f"]}, "tools", "functions is not a list of tool definitions (objects)"),
    # single-turn rows
    ({"instruction": "a", "prompt": "b", "output": "c"}, "ambiguous",
     "'instruction' and 'prompt' mean the same, and the row has both; keep one"),
    ({"prompt": "a", "response": "b", "output": "c", "answer": "d"}, "ambiguous",
     "'response' and 'output' and 'answer' mean the same, and the row has both; keep one"),
    ({"prompt": "a", "input": "b", "context": "c", "output": "d"}, "ambiguous", "'input' and 'context' mean the same"),
    ({"prompt": ["a"], "output": "b"}, "field_type", "'prompt' is a list, not a string; repair the row"),
    ({"prompt": "a", "output": 4}, "field_type", "'output' is a number, not a string; repair the row"),
    ({"prompt": "a", "context": {}, "output": "b"}, "field_type", "'context' is a object, not a string; repair"),
    ({"prompt": "a", "system": False, "output": "b"}, "field_type", "'system' is a boolean, not a string"),
    ({"prompt": "a", "output": "b", "history": 5}, "history",
     "history is a number, not a list of pairs [user, assistant]; repair the row"),
    ({"prompt": "a", "output": "b", "history": {"a": "b"}}, "history", "history is a object, not a list of pairs"),
    ({"prompt": "a", "output": "b", "history": [["a", "b"], ["c"]]}, "history",
     "history[1] is not a pair of strings [user, assistant]; repair the row"),
    ({"prompt": "a", "output": "b", "history": [["a", None]]}, "history", "history[0] is not a pair of strings"),
    ({"prompt": "a\ud800", "output": "b"}, "encoding", "content has the lone surrogate U+D800 at character 1"),
    ({"prompt": "a", "output": "b", "history": [["\udc00", "x"]]}, "encoding", "content has the lone surrogate U+DC00"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "message"), REFUSED, ids=[f"{i}-{r[1]}" for i, r in enumerate(REFUSED)])
def test_a_row_that_is_no_conversation_is_refused_with_its_place(row: object, reason: str, message: str) -> None:
    with pytest.raises(ConversationError, match="^" + re.escape(f"{ORIGIN}: {message}")) as refused:
        parse(row)
    assert refused.value.reason == reason
    text = str(refused.value)
    assert "\n" not in text
    text.encode()  # it can be printed


def test_every_problem_has_a_remedy() -> None:
    for row, _, _ in REFUSED:
        with pytest.raises(ConversationError, match=r"; |; use one of"):
            parse(row)


def test_the_name_of_the_messages_field_is_used_in_messages() -> None:
    with pytest.raises(ConversationError, match=r"needs 'traj' or 'dialog', or instruction"):
        parse({"x": 1}, messages_field=("traj", "dialog"))
    with pytest.raises(ConversationError, match=r"rows\.jsonl:7: 'traj' is a string, not a list of messages"):
        parse({"traj": "[]"}, messages_field="traj")


def test_deep_but_readable_arguments_are_kept() -> None:
    depth = min(200, sys.getrecursionlimit() // 4)
    call = assistant(tool_calls=[{"name": "f", "arguments": nested(depth)}]).tool_calls[0]
    assert call.arguments == '{"a": ' * depth + "{}" + "}" * depth
