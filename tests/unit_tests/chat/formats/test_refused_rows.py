# SPDX-License-Identifier: Apache-2.0
"""Why a row of each format is refused, with its place and a remedy."""

import re
from typing import Any

import pytest

from primus.chat.formats import FORMATS, SourceOptions, parse_row
from primus.errors import ConversationError
from tests.unit_tests.chat import seed_rows as seeds

USER, ASSISTANT = seeds.BARE
IMAGE = {"type": "image", "source": {"type": "base64", "data": "x"}}


def blocks(role: str, *content: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": role, "content": list(content)}, ASSISTANT]}


THINKING = {"type": "thinking", "thinking": "x"}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "r"}
TEXT = {"type": "text", "text": "x"}


def left_out(why: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": {"role": "prompter", "text": "a", "replies": [{"role": "assistant", "text": "b", **why}]}}


REFUSED: list[tuple[Any, str, str]] = [
    # openai
    ({"system": "s", "messages": [{"role": "system", "content": "t"}, ASSISTANT]}, "system",
     "has one system prompt beside its messages and another one in them; keep one"),
    *(({**row, "system": "s", "system_prompt": "t"}, "ambiguous", "'system' and 'system_prompt' mean the same, and the")
      for row in ({"messages": seeds.BARE}, seeds.PAIRS, {"conversations": seeds.SHAREGPT["conversations"]},
                  seeds.LLAMAFACTORY, {**seeds.ANTHROPIC, "system": None})),
    ({"messages": [USER, ASSISTANT], "label": False}, "rejected_answer",
     "label is false, so the answer is an example of a bad one; drop the row, or label to train it"),
    ({"messages": [USER, {**ASSISTANT, "content": [{"type": "image_url"}]}]}, "content_part",
     "turn 1 (assistant): content[0]: is a part of type 'image_url', not {\"type\": \"text\""),
    # sharegpt
    ({"conversations": [{"from": "narrator", "value": "x"}]}, "role", "turn 0: unknown role 'narrator'; use one of"),
    ({"conversations": [{"value": "x"}]}, "role", "turn 0: from is null, not a string; name the role"),
    ({"conversations": [{"from": "gpt", "role": "user", "value": "x"}]}, "ambiguous",
     "turn 0: 'from' and 'role' mean the same, and the row has both; keep one"),
    ({"conversations": [{"from": "gpt"}]}, "content", "turn 0 (gpt): value is missing, and there are no tool_calls"),
    ({"conversations": [{"from": "function_call", "value": "{'name': 'f', 'arguments': {}}"}]}, "function_call",
     "turn 0 (function_call): the function call is not valid JSON (Expecting property name enclosed in double quotes"),
    ({"conversations": [{"from": "function_call", "value": "[]"}]}, "function_call",
     "turn 0 (function_call): the function call is an empty list; repair the row"),
    ({"conversations": [{"from": "function_call", "value": '{"arguments": {}}'}]}, "tool_calls",
     'turn 0 (function_call): call 0: is not {"function"'),
    ({"conversations": [{"from": "gpt", "value": "x"}], "mask": "Assistant"}, "mask",
     "mask is 'Assistant', so the turns of the assistant are not trained; drop the row, or swap the roles"),
    ({"conversation": [{"human": "a", "assistant": None}]}, "content", "pair 0: assistant is missing; write a text"),
    ({"conversation": [{"human": "a", "assistant": "b"}, 5]}, "not_an_object", "pair 1: is a number, not an object"),
    ({"conversation": [{"human": "a", "assistant": "\ud800"}]}, "encoding", "pair 0: content has the lone surrogate"),
    # anthropic
    (blocks("assistant", USE, TEXT), "part_order", "turn 1 (assistant): has text behind call, but a message has"),
    (blocks("assistant", TEXT, THINKING), "part_order", "turn 1 (assistant): has reasoning behind text, but a message"),
    (blocks("assistant", {"type": "redacted_thinking", "data": "x"}), "redacted_thinking",
     "turn 1 (assistant): content[0]: is redacted_thinking, whose text nobody has; drop the row, or the block"),
    (blocks("user", TEXT, RESULT), "part_order", "turn 1 (user): content[1]: a tool_result stands behind the user's"),
    (blocks("assistant", RESULT), "content_part", "turn 1 (assistant): has a tool_result, which only a message of the"),
    (blocks("user", USE), "tool_calls", "turn 1 (user): a user message has tool_calls; only the assistant calls tools"),
    (blocks("user", THINKING), "reasoning", "turn 1 (user): a user message has reasoning; only the assistant reasons"),
    (blocks("user", RESULT, IMAGE), "content_part", "turn 1 (user): content[1]: is a part of type 'image', not"),
    (blocks("user", {**RESULT, "content": [IMAGE]}), "content_part", "turn 1 (user): content[0]: content[0]: is a"),
    (blocks("user", {**RESULT, "content": 5}), "content", "turn 1 (user): content[0]: content is a number, not"),
    (blocks("assistant", {**USE, "name": None}), "tool_calls", "turn 1 (assistant): content[0]: tool_use has no name"),
    (blocks("assistant", {**USE, "input": []}), "tool_arguments",
     "turn 1 (assistant): content[0]: arguments of 'f' are a JSON list, not an object; repair the row"),
    ({**seeds.ANTHROPIC, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools",
     "tools[0]: has no input_schema, as a tool of the server has none; drop the row, or write the tool's schema"),
    ({**seeds.ANTHROPIC, "tools": [{"input_schema": {}}]}, "tools", "tools[0]: has an input_schema and no name"),
    ({**seeds.ANTHROPIC, "system": [5]}, "content_part", "system[0]: is a number, not {"),
    ({"messages": [USER, {**ASSISTANT, "content": [USE], "tool_calls": []}]}, "tool_calls",
     "turn 1 (assistant): has tool_calls, which OpenAI messages have, beside blocks of Anthropic; write one or"),
    # llamafactory
    ({"messages": [{"role": "user", "content": [{"type": "text", "value": "x"}, {"type": "image_url", "value": "u"}]}]},
     "content_part", "turn 0 (user): content[1]: is a part of type 'image_url', not {\"type\": reasoning|"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "value": None}]}]}, "content",
     "turn 0 (user): content[0]: has no value; write a text, empty if you mean it"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "value": "x"}], "loss_weight": 1.0}, ASSISTANT]},
     "weight", "turn 0 (user): a user message has weight 1.0; only assistant messages are trained"),
    # xtuner, tooltalk, swe_agent
    ({"conversation": [{"output": "b"}]}, "content", "entry 0: input is missing; write a text, empty if you mean it"),
    ({"conversation": [{"input": "a", "output": "b", "output_with_loss": 1}]}, "weight",
     "entry 0: output_with_loss is a number, not a boolean; repair the row"),
    ({"conversation": [{"input": "a", "output": 5}]}, "output", "entry 0: output is a number, not a string"),
    ({"conversation": [{"role": "user", "text": "a", "apis": [{}]}]}, "tool_calls",
     "turn 0: apis are a list of the user, not a list of the assistant's calls; repair the row"),
    ({"conversation": [{"role": "assistant", "text": "a", "apis": [{"request": {}}]}]}, "tool_calls",
     "turn 0: apis[0]: has no request with an api_name; repair the row"),
    ({"info": {}, "history": [{"role": "user", "content": "a", "agent": x} for x in "pq"]}, "several_agents",
     "history has the turns of several agents ('p, q'), so it is not one conversation; write one row per agent"),
    ({"info": {}, "history": [{"role": "tool", "content": "a", "tool_call_ids": ["c", "d"]}]}, "tool_call_id",
     "turn 0: answers several calls at once (tool_call_ids); write one message per call"),
    # oasst
    ({"prompt": {"role": "prompter", "text": "a", "replies": []}}, "no_assistant",
     "no message of the tree is an assistant's answer, so there is nothing to train; drop the row"),
    (left_out({"review_result": False}), "no_assistant",
     "every answer of the tree is left out (messages that reviewers refused, with what stands behind them), so there"),
    (left_out({"deleted": True}), "no_assistant", "every answer of the tree is left out (deleted messages, with what"),
    ({"prompt": {**left_out({})["prompt"], "review_result": False}}, "no_assistant", "every answer of the tree is"),
    ({"prompt": {"role": "prompter", "text": "a", "deleted": True, "replies": []}}, "no_assistant",
     "no message of the tree is an assistant's answer, so there is nothing to train; drop the row"),
    ({"prompt": {"role": "prompter", "text": "a", "replies": {}}}, "messages_type", "prompt: replies is a object, not"),
    ({"prompt": {"role": "prompter", "text": "a", "replies": [{"role": "bot", "text": "b"}]}}, "role",
     "prompt.replies[0]: unknown role 'bot'; use one of"),
    ({"prompt": {"role": "prompter", "text": "a", "replies": [{"role": "assistant", "text": "b", "rank": "1"}]}},
     "rank", "prompt.replies[0]: rank is a string, not a number; repair the row"),
    ({"message_id": "m", "parent_id": None, "role": "prompter", "text": "a"}, "part_of_a_conversation",
     "the row is one message of a tree and does not say of which (message_tree_id); convert the file of whole trees"),
    # hh
    ({"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "chosen": " d"}, "transcript",
     "the prompt does not end with '\\n\\nAssistant:', so the answer is no turn of its own; repair the row"),
    ({"chosen": seeds.HH["chosen"], "text": seeds.HH["chosen"]}, "ambiguous", "'chosen' and 'text' mean the same, and"),
    # alpaca, prompt_completion
    ({"instruction": "a", "output": "b", "kto_tag": False}, "rejected_answer", "kto_tag is false, so the answer is an"),
    ({"prompt": "a", "completion": "b", "label": False}, "rejected_answer", "label is false, so the answer is an"),
    ({"prompt": "a", "completion": 5}, "field_type", "'completion' is a number, not a string or a list of messages"),
    ({"prompt": "a", "chosen": [{"role": "user", "content": "b"}, ASSISTANT]}, "ambiguous",
     "chosen begins with a message of the user that is not the prompt; keep one of them"),
    ({"prompt": seeds.BARE[:1], "completion": "a", "input": "x"}, "ambiguous",
     "has 'input' beside messages or a transcript, where it has no place; write it as one of their turns, or drop it"),
    ({"prompt": seeds.BARE[:1], "chosen": "a", "history": [["x", "y"]]}, "ambiguous", "has 'history' beside messages"),
    ({"chosen": seeds.BARE, "context": "x"}, "ambiguous", "has 'context' beside messages or a transcript, where it"),
    ({**seeds.HH_CUT, "input": "x"}, "ambiguous", "has 'input' beside messages or a transcript, where it has no"),
    ({"prompt": "Hi", "chosen": seeds.BARE, "input": "x"}, "ambiguous", "chosen begins with a message of the user"),
    ({"prompt": "a", "completion": "b", "input": "x", "context": "y"}, "ambiguous", "'input' and 'context' mean the"),
    ({"prompt": "a", "completion": "b", "input": 5}, "field_type", "'input' is a number, not a string; repair the row"),
    ({"prompt": "a", "completion": "b", "history": "x"}, "history", "history is a string, not a list of pairs"),
    ({"prompt": "a\ud800", "completion": "b"}, "encoding", "prompt: content has the lone surrogate U+D800"),
    # turns, questions
    (seeds.TABLE[0], "part_of_a_conversation",
     "the row is one turn of a conversation; read the file with read_conversations, which joins the rows"),
    ({**seeds.TABLE[0], "conversation_id": [1]}, "field_type", "conversation_id is a list, not a text or a number"),
    (seeds.QUESTIONS, "no_answers", "the row has 2 turns of the user and no answers of an assistant, so there is"),
    ({"question": [[USER], [USER], [USER]], "id": "x"}, "no_answers", "the row has 3 turns of the user and no answers"),
    ({"ground_truth": [["f()"]]}, "no_questions", "the row has the calls that a benchmark expects, and not the"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "message"), REFUSED, ids=[f"{i}-{r[1]}" for i, r in enumerate(REFUSED)])
def test_a_row_is_refused_with_its_place_and_a_remedy(row: Any, reason: str, message: str) -> None:
    with pytest.raises(ConversationError, match="^" + re.escape(f"a.jsonl:1: {message}")) as refused:
        parse_row(row, "a.jsonl:1", SourceOptions())
    assert refused.value.reason == reason
    assert re.search(r"; |use one of", str(refused.value))


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "columns"])
@pytest.mark.parametrize("row", [None, 5, "text", [], {}, [5], {"x": None}])
def test_a_format_that_is_named_says_what_a_row_lacks(name: str, row: Any) -> None:
    with pytest.raises(ConversationError, match=r"^a\.jsonl:1: .*(; |use one of)"):
        parse_row(row, "a.jsonl:1", SourceOptions(format=name))


def test_a_field_that_looks_like_messages_is_named() -> None:
    row = {"id": 1, "steps": [{"n": 1}], "traj": [{"role": "user", "content": "q"}]}
    with pytest.raises(ConversationError, match=r"; if 'traj' holds the messages, set sft_messages_field .* to it$"):
        parse_row(row, "a.jsonl:1", SourceOptions())


@pytest.mark.parametrize(
    "row",
    [USER, {**ASSISTANT, "content": None, "tool_calls": []}, {"from": "human", "value": "x", "id": 5}],
)
def test_a_row_that_is_one_message_is_told_to_be_wrapped(row: Any) -> None:
    hint = 'it looks like one message: if the file is one conversation, wrap its messages in a list as {"messages": ['
    with pytest.raises(ConversationError, match=re.escape(hint)) as refused:
        parse_row(row, "a.json[0]", SourceOptions())
    assert str(refused.value).endswith("name the column that tells them apart with --conversation-id")
