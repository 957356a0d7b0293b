# SPDX-License-Identifier: Apache-2.0
"""The named formats against the official templates of their families, rendered by transformers.

Over the real conversations that are plain chat, and over generated ones: text, prompts, what is refused, and the spans
that the format `template` finds in the official template. The differences (Mistral's system message, Gemma's turn of a
role that it does not have) are proven. docs/ORACLES.md has the figures.
"""

import importlib.util
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from primus.chat import Conversation, parse_conversation
from primus.errors import RenderError
from primus.sft.formatters.template import TemplateFormatter
from tests.unit_tests.oracles.comparing import read_lines
from tests.unit_tests.sft.formatters.plain_chats import ALTERNATING, ANY_ORDER, FORMATTERS, chats

# Format, where its official template is, and the texts of BOS and EOS there.
TEMPLATES = [
    ("llama3", "trl/llama3.jinja", "<|begin_of_text|>", "<|eot_id|>"),
    ("llama3", "tokenizers/llama3/tokenizer_config.json", "<|begin_of_text|>", "<|eot_id|>"),
    ("qwen", "trl/qwen2_5.jinja", None, "<|im_end|>"),
    ("qwen", "tokenizers/qwen2/tokenizer_config.qwen2.5.json", None, "<|im_end|>"),
    ("mistral", "tokenizers/mistral-v3/tokenizer_config.json", "<s>", "</s>"),
    ("gemma", "trl/gemma3.jinja", "<bos>", "<eos>"),
    ("gemma", "trl/gemma.jinja", "<bos>", "<eos>"),
    ("phi", "trl/phi3.jinja", "<s>", "<|endoftext|>"),
    ("phi", "tokenizers/phi3/tokenizer_config.json", "<s>", "<|endoftext|>"),
    ("phi", "trl/phi3_5.jinja", "<s>", "<|endoftext|>"),
]
EACH = pytest.mark.parametrize(
    ("name", "place", "bos", "eos"), TEMPLATES, ids=[f"{name}-{place}" for name, place, *_ in TEMPLATES]
)
Messages = list[dict[str, Any]]


class Official:
    """A template, and what is known to be different about it."""

    def __init__(self, place: str, source: str, bos: str | None, eos: str) -> None:
        self.place = place
        self.source = source
        self.tokens = {"eos_token": eos} | ({} if bos is None else {"bos_token": bos})

    def render(self, messages: Messages, *, prompt: bool = False) -> str:
        # No messages at all are an error in most of them: `messages[0]`.
        rendered, _ = render_jinja_template(
            [messages], chat_template=self.source, add_generation_prompt=prompt, **self.tokens
        )
        return str(rendered[0])

    def training_text(self, messages: Messages) -> str:
        """The text that the named format ought to have."""
        has_system_and_answer = messages[0]["role"] == "system" and messages[-1]["role"] == "assistant"
        if self.place.startswith("tokenizers/mistral-v3") and has_system_and_answer:
            # The template drops the system message here; it does not in the prompt for the last answer.
            return f"{self.render(messages[:-1])} {messages[-1]['content'].strip()}</s>"
        return self.render(messages)

    def has_other_rules(self, messages: Messages) -> bool:
        """Whether the template is known to treat these messages in another way; tests below say in which."""
        system = [turn for turn, message in enumerate(messages) if message["role"] == "system"]
        if self.place == "trl/phi3_5.jinja":
            return any(not messages[turn]["content"] for turn in system)
        if self.place == "trl/gemma.jinja":
            return bool(system)
        return self.place == "trl/gemma3.jinja" and any(system)


@pytest.fixture(scope="module")
def official(shared_dir: Path) -> Any:
    """Gives the template at a place, once."""
    spec = importlib.util.find_spec("trl")

    @cache
    def load(place: str, bos: str | None, eos: str) -> Official:
        if place.startswith("trl/"):
            if spec is None or not spec.submodule_search_locations:
                pytest.skip("needs the chat templates of trl: pip install --no-deps 'trl==1.16.0'")
            folder = Path(spec.submodule_search_locations[0]) / "chat_templates"
            return Official(place, (folder / place.removeprefix("trl/")).read_text(encoding="utf-8"), bos, eos)
        return Official(place, json.loads((shared_dir / place).read_text())["chat_template"], bos, eos)

    return load


def is_plain(conversation: Conversation) -> bool:
    beyond = any(m.role == "tool" or m.tool_calls or m.reasoning for m in conversation.messages)
    return not (beyond or conversation.tools)


@pytest.fixture(scope="module")
def real_chats(oracles_dir: Path) -> list[Messages]:
    rows = read_lines(oracles_dir / "hf_generation_masks/conversations.jsonl")
    conversations = [parse_conversation(row) for row in rows]
    assert len(conversations) == 98
    return [[{"role": m.role, "content": m.content} for m in c.messages] for c in conversations if is_plain(c)]


def compare(name: str, official: Official, messages: Messages) -> Counter[str]:
    """Assert that text and prompts are equal, and count them."""
    formatter = FORMATTERS[name]
    conversation = parse_conversation({"messages": messages})
    assert formatter.render(conversation).text == official.training_text(messages)
    count = Counter(texts=1)
    for turn, message in enumerate(messages):
        # No server is asked without a message; the templates have no rule for it.
        if message["role"] == "assistant" and turn:
            assert formatter.render_prompt(conversation, turn).text == official.render(messages[:turn], prompt=True)
            count["prompts"] += 1
    return count


@EACH
def test_real_chats_have_the_text_and_the_prompts_of_the_official_template(
    name: str, place: str, bos: str | None, eos: str, official: Any, real_chats: list[Messages]
) -> None:
    template: Official = official(place, bos, eos)
    count: Counter[str] = Counter()
    for messages in real_chats:
        if template.has_other_rules(messages):
            count["other rules"] += 1
        else:
            count += compare(name, template, messages)
    if place == "trl/gemma.jinja":
        assert count == {"texts": 49, "prompts": 157, "other rules": 29}
    else:
        assert count == {"texts": 78, "prompts": 278}


@EACH
@given(st.data())
def test_generated_chats_have_the_text_and_the_prompts_of_the_official_template(
    name: str, place: str, bos: str | None, eos: str, official: Any, data: st.DataObject
) -> None:
    template: Official = official(place, bos, eos)
    messages = data.draw(ANY_ORDER | ALTERNATING)
    if template.has_other_rules(messages):
        return
    try:
        FORMATTERS[name].render(parse_conversation({"messages": messages}))
    except RenderError:
        # What is refused here is refused there, and nothing else is.
        with pytest.raises(jinja2.TemplateError, match=r"roles must alternate|Only user and assistant roles"):
            template.render(messages)
    else:
        compare(name, template, messages)


def compare_spans(name: str, official: Official, formatter: TemplateFormatter, messages: Messages) -> bool:
    """Assert that the format `template` has the same spans and markers; where the texts are equal."""
    conversation = parse_conversation({"messages": messages})
    if official.has_other_rules(messages) or official.render(messages) != official.training_text(messages):
        return False
    found, ours = formatter.render(conversation), FORMATTERS[name].render(conversation)
    assert (found.text, found.spans, found.markers) == (ours.text, ours.spans, ours.markers)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant" and turn:
            prompt, our_prompt = (f.render_prompt(conversation, turn) for f in (formatter, FORMATTERS[name]))
            assert (prompt.text, prompt.markers) == (our_prompt.text, our_prompt.markers)
    return True


def template_formatter(name: str, official: Official) -> TemplateFormatter:
    return TemplateFormatter(
        official.source, special_tokens=official.tokens, control_tokens=FORMATTERS[name].control_markers
    )


@EACH
def test_the_format_template_finds_the_same_spans_in_real_chats(
    name: str, place: str, bos: str | None, eos: str, official: Any, real_chats: list[Messages]
) -> None:
    template: Official = official(place, bos, eos)
    formatter = template_formatter(name, template)
    compared = [compare_spans(name, template, formatter, messages) for messages in real_chats]
    has_system_turns = name != "mistral" and place != "trl/gemma.jinja"
    assert sum(compared) == (78 if has_system_turns else 49)


@EACH
def test_the_format_template_finds_the_same_spans_in_generated_chats(
    name: str, place: str, bos: str | None, eos: str, official: Any
) -> None:
    template: Official = official(place, bos, eos)
    formatter = template_formatter(name, template)

    @given(chats(FORMATTERS[name]))
    def compare_generated(messages: Messages) -> None:
        compare_spans(name, template, formatter, messages)

    compare_generated()


def test_the_template_of_mistral_drops_a_system_message_that_its_own_prompt_has(official: Any) -> None:
    template: Official = official("tokenizers/mistral-v3/tokenizer_config.json", "<s>", "</s>")
    chat = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    assert template.render(chat) == template.render(chat[1:]) == "<s>[INST] user[/INST] assistant</s>"
    assert template.render(chat[:2], prompt=True) == "<s>[INST] system\n\nuser[/INST]"
    assert template.training_text(chat) == "<s>[INST] system\n\nuser[/INST] assistant</s>"


def test_gemma_writes_a_turn_of_an_unknown_role_for_a_later_system_message_and_here_it_is_refused(
    official: Any,
) -> None:
    chat = [{"role": role, "content": role} for role in ("user", "system", "user", "assistant")]
    text = official("trl/gemma3.jinja", "<bos>", "<eos>").render(chat)
    assert "<start_of_turn>system\nsystem<end_of_turn>\n" in text
    with pytest.raises(RenderError, match=r"turn 1 \(system\): the gemma format has user and assistant in turn"):
        FORMATTERS["gemma"].render(parse_conversation({"messages": chat}))


def test_relatives_with_other_rules_refuse_or_drop_a_system_message(official: Any) -> None:
    chat = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    with pytest.raises(jinja2.TemplateError, match="System role not supported"):
        official("trl/gemma.jinja", "<bos>", "<eos>").render(chat)
    chat[0]["content"] = ""
    phi_3_5: Official = official("trl/phi3_5.jinja", "<s>", "<|endoftext|>")
    assert phi_3_5.render(chat) == phi_3_5.render(chat[1:])
