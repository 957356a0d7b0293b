# SPDX-License-Identifier: Apache-2.0
"""Chat templates of real models with the texts that other projects have for them, rendered here.

Twice: the messages as the case has them, and as a conversation that was parsed and handed to the template again. Every
difference is in a table with its reason, and the reason is proven: with it taken away, the texts are equal.
docs/ORACLES.md has the figures.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from primus.chat import Conversation, parse_conversation
from primus.errors import ConversationError, RenderError
from primus.sft.formatters.template import TemplateFormatter, render_template, template_messages, template_tools
from tests.unit_tests.oracles.comparing import read_lines
from tests.unit_tests.sft.formatters.plain_chats import FORMATTERS, say

NUM_CASES = {"hf-jinja-e2e": 27, "llamacpp": 18, "axolotl": 7, "onnxruntime_extensions": 4}


@dataclass
class Case:
    """A template with what it is given, and the text that another project has for it."""

    name: str
    template: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    variables: dict[str, Any]
    expected: str
    now: datetime | None = None

    @property
    def prompt(self) -> bool:
        return bool(self.variables.get("add_generation_prompt"))


def case_of(raw: Mapping[str, Any]) -> Case:
    given = dict(raw.get("kwargs", {}))
    for name in ("messages", "tools", "bos_token", "eos_token", "add_generation_prompt"):
        if name in raw:
            given[name] = raw[name]
    return Case(
        name=raw.get("name") or raw.get("id") or raw["test"],
        template=raw["template"],
        messages=given.pop("messages"),
        tools=given.pop("tools", None),
        variables=given,
        expected=raw["expected"] if "expected" in raw else raw["expected_jinja"],
    )


def cases_of(oracles_dir: Path) -> dict[str, Case]:
    files = {
        "hf-jinja-e2e": "cases.jsonl",
        "llamacpp": "chat_template_cases.jsonl",
        "axolotl": "snapshot_cases.jsonl",
        "onnxruntime_extensions": "chat_cases.jsonl",
    }
    found = {
        oracle: [case_of(raw) for raw in read_lines(oracles_dir / oracle / file)] for oracle, file in files.items()
    }
    assert {oracle: len(cases) for oracle, cases in found.items()} == NUM_CASES
    return {f"{oracle}: {case.name}": case for oracle, cases in found.items() for case in cases}


@pytest.fixture(scope="module")
def cases(oracles_dir: Path) -> dict[str, Case]:
    return cases_of(oracles_dir)


def rendered(case: Case) -> str:
    return render_template(
        case.template, case.messages, tools=case.tools, special_tokens={}, now=case.now, **case.variables
    )


def through_formatter(case: Case) -> str:
    """The text of the messages once they were parsed; a prompt is that for an answer behind them."""
    given = {name: value for name, value in case.variables.items() if name != "add_generation_prompt"}
    special_tokens: dict[str, str] = {
        name: given.pop(name) or "" for name in ("bos_token", "eos_token") if name in given
    }
    formatter = TemplateFormatter(case.template, special_tokens=special_tokens, variables=given, now=case.now)
    if case.prompt:
        return formatter.render_prompt(asked(case), len(case.messages)).text
    return formatter.render(parse_conversation({"messages": case.messages, "tools": case.tools})).text


def asked(case: Case) -> Conversation:
    """The messages with an answer behind them, which makes a conversation of any prompt."""
    return parse_conversation({"messages": [*case.messages, say("assistant", "")], "tools": case.tools})


# --- the messages as they are ---


def system_in_the_first_user_message(case: Case) -> Case:
    system, first, *rest = case.messages
    return replace(case, messages=[say("user", f"{system['content']}\n{first['content']}"), *rest])


def tools_as_python_prints_them(case: Case) -> Case:
    written = json.dumps(case.tools)
    assert case.expected.count(written) == 1
    return replace(case, expected=case.expected.replace(written, str(case.tools)))


OTHER_RENDERERS: dict[str, tuple[str, Callable[[Case], Case]]] = {
    "hf-jinja-e2e: MadeAgents/Hammer2.1": (
        "the template prints a list as it is: JSON in huggingface.js, Python's repr in Jinja",
        tools_as_python_prints_them,
    ),
    "hf-jinja-e2e: HuggingFaceTB/SmolLM3-3B": (
        "the template prints the day on which it is rendered",
        lambda case: replace(case, now=datetime.fromisoformat("2025-07-10")),
    ),
    "llamacpp: OrionStarAI/Orion-14B-Chat": (
        "llama.cpp puts the system message into the first user message where a template has no system role",
        system_in_the_first_user_message,
    ),
    "llamacpp: yandex/YandexGPT-5-Lite-8B-instruct": (
        "llama.cpp puts the system message into the first user message where a template has no system role",
        system_in_the_first_user_message,
    ),
}


def test_every_case_renders_as_the_other_project_has_it_but_for_what_is_listed(cases: dict[str, Case]) -> None:
    different = {name for name, case in cases.items() if rendered(case) != case.expected}
    assert different == set(OTHER_RENDERERS)


@pytest.mark.parametrize("name", OTHER_RENDERERS)
def test_with_its_reason_taken_away_a_listed_case_is_equal(name: str, cases: dict[str, Case]) -> None:
    _, without = OTHER_RENDERERS[name]
    case = without(cases[name])
    assert rendered(case) == case.expected


def test_every_case_renders_as_transformers_does(cases: dict[str, Case]) -> None:
    for name, case in cases.items():
        theirs, _ = render_jinja_template(
            [case.messages], tools=case.tools, chat_template=case.template, **case.variables
        )
        assert rendered(case) == theirs[0], name


# --- the messages as a conversation ---

REFUSED = {
    "hf-jinja-e2e: fireworks-ai/firefunction-v1": "turn 0: unknown role 'functions'",
    "hf-jinja-e2e: Qwen/Qwen2.5-VL-7B-Instruct": "content[0]: is a part of type 'image'",
    "hf-jinja-e2e: meta-llama/Llama-3.2-11B-Vision-Instruct": "content[0]: is a part of type 'image'",
    "hf-jinja-e2e: zai-org/GLM-5.1": "content[0]: is a part of type 'tool_reference'",
    "hf-jinja-e2e: MadeAgents/Hammer2.1": "none of the 1 messages is the assistant's",
    "llamacpp: ibm-granite/granite-4.0 (tool call)": "turn 7: unknown role 'assistant_tool_call'",
    "axolotl: deepseek_v3_null_close": "turn 2 (assistant): content is null, and there are no tool_calls",
    "axolotl: qwen3_multimodal_user": "content[1]: is a part of type 'image'",
    # The template takes tools without the wrapper of OpenAI's format, which they get here.
    "hf-jinja-e2e: CohereForAI/c4ai-command-r-v01": "the chat template refuses the conversation (UndefinedError: 'dict"
    " object' has no attribute 'name')",
    # It counts through the messages, so that nothing tells which of them it is writing.
    "hf-jinja-e2e: abacusai/Smaug-34B-v0.1": "turn 1: what the assistant wrote can't be told from the template's words",
}


def without_thoughts(case: Case) -> Case:
    """The field `thought` is MiniCPM's own; a conversation has no place for it, and says so."""
    assert asked(case).ignored_fields == ("thought",)
    messages = [{key: value for key, value in message.items() if key != "thought"} for message in case.messages]
    without = replace(case, messages=messages)
    return replace(without, expected=rendered(without))


CHANGED_BY_PARSING: dict[str, Callable[[Case], Case]] = {"hf-jinja-e2e: openbmb/MiniCPM3-4B": without_thoughts}


def test_every_case_that_is_a_conversation_renders_the_same_once_it_is_parsed(cases: dict[str, Case]) -> None:
    equal, refused = set(), {}
    for name, given in cases.items():
        case = OTHER_RENDERERS[name][1](given) if name in OTHER_RENDERERS else given
        case = CHANGED_BY_PARSING[name](case) if name in CHANGED_BY_PARSING else case
        try:
            if through_formatter(case) == case.expected:
                equal.add(name)
        except ConversationError as exc:
            refused[name] = str(exc)
    assert refused.keys() == REFUSED.keys()
    assert [name for name, message in REFUSED.items() if message not in refused[name]] == []
    assert equal == cases.keys() - refused.keys()
    assert len(equal) == 46


def test_without_its_own_field_minicpm_is_another_text(cases: dict[str, Case]) -> None:
    [(name, without)] = CHANGED_BY_PARSING.items()
    assert without(cases[name]).expected != cases[name].expected


# --- the named formats ---

NAMED = {
    "llamacpp: Llama-3": ("llama3", ""),
    "onnxruntime_extensions: Phi3MiniChatTemplate": ("phi", ""),
    "onnxruntime_extensions: Phi3VisionChatTemplate": ("phi", "<|assistant|>\n"),
    "llamacpp: Phi-3-small": ("phi", ""),
    "llamacpp: Phi-3-vision": ("phi", ""),
    "llamacpp: Mistral-Large-Instruct-2407 (mistralai 'v3' template; modified to have system prompt at start)": (
        "mistral", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_a_named_format_has_the_prompt_of_its_family(name: str, cases: dict[str, Case]) -> None:
    """The cases have no BOS. The template of Phi-3-vision writes no header behind an answer, the named format does."""
    formatter = FORMATTERS[NAMED[name][0]]
    case = cases[name]
    assert case.prompt
    prompt = formatter.render_prompt(asked(case), len(case.messages)).text
    assert prompt.removeprefix(formatter.opening) == case.expected + NAMED[name][1]


@pytest.mark.parametrize(("name", "format_name"), [("llama3", "llama3"), ("qwen2.5", "qwen")])
def test_llama_factory_has_the_same_prompts_and_answers(name: str, format_name: str, oracles_dir: Path) -> None:
    cases = read_lines(oracles_dir / "llama_factory/prompt_answer_cases.jsonl")
    [case] = [case for case in cases if case["name"] == name]
    conversation = parse_conversation(case)
    text = FORMATTERS[format_name].render(conversation).text
    last = len(conversation.messages) - 1
    assert FORMATTERS[format_name].render_prompt(conversation, last).text == case["expected_prompt"]
    assert text == case["expected_prompt"] + case["expected_answer"]


# --- mistral-common ---


def mistral_common(oracles_dir: Path, sample: str, version: int) -> tuple[dict[str, Any], str]:
    folder = oracles_dir / "mistral_common/samples" / sample
    text = (folder / f"text_v{version}.txt").read_text(encoding="utf-8")
    return json.loads((folder / "sample.json").read_text()), text.replace("▁", " ").replace("<0x0A>", "\n")


@pytest.fixture(scope="module")
def mistral_v3_template(shared_dir: Path) -> str:
    config = json.loads((shared_dir / "tokenizers/mistral-v3/tokenizer_config.json").read_text())
    return str(config["chat_template"])


TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("version", [2, 3])
def test_mistral_common_has_the_text_of_the_mistral_format_and_of_its_template(
    version: int, oracles_dir: Path, mistral_v3_template: str
) -> None:
    sample, expected = mistral_common(oracles_dir, "no_tools", version)
    conversation = parse_conversation(sample)
    assert FORMATTERS["mistral"].render(conversation).text == expected
    messages = template_messages(conversation.messages)
    assert render_template(mistral_v3_template, messages, special_tokens=TOKENS) == expected


def test_mistral_common_version_1_has_the_text_of_axolotls_template(cases: dict[str, Case], oracles_dir: Path) -> None:
    sample, expected = mistral_common(oracles_dir, "no_tools", 1)
    messages = template_messages(parse_conversation(sample).messages)
    assert render_template(cases["axolotl: mistral_v1_sys"].template, messages, special_tokens=TOKENS) == expected


def test_mistral_common_with_tools_differs_from_the_template_in_three_things(
    oracles_dir: Path, mistral_v3_template: str
) -> None:
    """Two system messages are one; it stands in the last user message, also where a tool has the last word; and
    answers of tools that are JSON are written anew.
    """
    sample, expected = mistral_common(oracles_dir, "get_weather_full", 3)
    conversation = parse_conversation(sample)
    messages = template_messages(conversation.messages)
    tools = template_tools(conversation)
    with pytest.raises(RenderError, match="conversation roles must alternate"):
        render_template(mistral_v3_template, messages, tools=tools, special_tokens=TOKENS)
    system = "\n\n".join(message["content"] for message in messages[:2])
    for message in messages:
        if message["role"] == "tool":
            message["content"] = json.dumps(json.loads(message["content"]))
    text = render_template(
        mistral_v3_template, [say("system", system), *messages[2:]], tools=tools, special_tokens=TOKENS
    )
    assert text.replace("[INST] 5 days", f"[INST] {system}\n\n5 days") == expected
