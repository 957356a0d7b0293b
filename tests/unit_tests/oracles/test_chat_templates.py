# SPDX-License-Identifier: Apache-2.0
"""ChatML as the chat templates of real models write it, compared with the text of the formatter."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from primus.chat import parse_conversation
from primus.sft.formatters import OpenAIMessagesFormatter
from tests.unit_tests.oracles.comparing import read_lines
from tests.unit_tests.oracles.conftest import RenderWithSpans

FORMATTER = OpenAIMessagesFormatter()
HEADER = "<|im_start|>assistant\n"


def chatml(messages: list[Any], tools: list[Any] | None = None) -> str:
    """The formatter's text of messages, of which the last one need not be the assistant's."""
    row = {"messages": [*messages, {"role": "assistant", "content": ""}], "tools": tools}
    return FORMATTER.render(parse_conversation(row)).text.removesuffix(f"{HEADER}<|im_end|>\n")


@pytest.mark.parametrize(
    ("file", "name", "front"),
    [
        ("hf-jinja-e2e/cases.jsonl", "_base", ""),
        ("hf-jinja-e2e/cases.jsonl", "HuggingFaceH4/zephyr-7b-gemma-v0.1", "<bos>"),
        ("llamacpp/chat_template_cases.jsonl", "teknium/OpenHermes-2.5-Mistral-7B", ""),
    ],
)  # fmt: skip
def test_templates_of_plain_chatml_write_the_same_text(file: str, name: str, front: str, oracles_dir: Path) -> None:
    [case] = [case for case in read_lines(oracles_dir / file) if case["name"] == name]
    variables = case.get("kwargs", case)
    prompt = HEADER if variables["add_generation_prompt"] else ""
    expected = case.get("expected") or case["expected_jinja"]
    assert front + chatml(variables["messages"]) + prompt == expected


def test_qwen1_5_adds_a_system_message_and_leaves_a_last_message_open(oracles_dir: Path) -> None:
    """It leaves the last end away where no prompt follows, so that the message can be continued."""
    [case] = [c for c in read_lines(oracles_dir / "hf-jinja-e2e/cases.jsonl") if c["name"] == "Qwen/Qwen1.5-72B-Chat"]
    messages = [{"role": "system", "content": "You are a helpful assistant"}, *case["kwargs"]["messages"]]
    assert chatml(messages) == case["expected"] + "<|im_end|>\n"


def qwen_template(shared_dir: Path) -> str:
    config = json.loads((shared_dir / "tokenizers/qwen2/tokenizer_config.qwen2.5.json").read_text())
    return str(config["chat_template"])


def qwen(template: str, messages: list[Any], **variables: Any) -> str:
    rendered, _ = render_jinja_template([messages], chat_template=template, **variables)
    return str(rendered[0])


TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Say \"a\" & <b> 'c'", "parameters": {"x": 1}}},
    {"type": "function", "function": {"name": "wetter", "description": "für Köln"}},
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [1.5, None, True], "c": "ä\n\"'<"}}}


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("content", ["One moment.", ""])
@pytest.mark.parametrize("num_calls", [0, 1, 2])
def test_qwen2_5_writes_the_same_system_turn_tools_and_tool_calls(
    tools: list[Any] | None, content: str, num_calls: int, shared_dir: Path
) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add.\n"},
        {"role": "assistant", "content": content, "tool_calls": [CALL] * num_calls},
        {"role": "user", "content": "Thanks"},
    ]
    assert chatml(messages, tools) == qwen(qwen_template(shared_dir), messages, tools=tools)


def test_tool_answers_have_a_role_of_their_own_here_and_are_the_users_in_qwen2_5(shared_dir: Path) -> None:
    """A known difference: the format is role and content for each message. Only context differs, no target does."""
    messages: list[Any] = [
        {"role": "system", "content": ""},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]
    ours, theirs = chatml(messages), qwen(qwen_template(shared_dir), messages)
    assert "<|im_start|>tool\n3<|im_end|>\n" in ours
    assert theirs == ours.replace(
        "<|im_start|>tool\n3<|im_end|>\n", "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"
    )


def test_qwen2_5_writes_the_same_assistant_turns_in_98_real_conversations(
    oracles_dir: Path, render_trl_template: RenderWithSpans
) -> None:
    count: Counter[str] = Counter()
    for row in read_lines(oracles_dir / "hf_generation_masks/conversations.jsonl"):
        text, spans = render_trl_template("qwen2_5_training", row["messages"])
        theirs = [text[start:end].removeprefix("\n").removesuffix("<|im_end|>\n") for start, end in spans]
        rendered = FORMATTER.render(parse_conversation(row))
        ours = [rendered.text[s.start : s.end] for s in rendered.spans if s.kind == "content"]
        assert ours == theirs, row["id"]
        count.update(turns=len(ours), calls=sum("<tool_call>" in turn for turn in ours))
    assert count == {"turns": 519, "calls": 114}
