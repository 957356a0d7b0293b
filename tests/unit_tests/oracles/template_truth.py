# SPDX-License-Identifier: Apache-2.0
"""The truth about where a template puts a string: change its letters, and see which characters of the text change."""

import importlib.util
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count as count_up
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from primus.chat import Conversation, Message, parse_conversation
from primus.chat.messages import ToolCall
from primus.sft.formatters import RenderedConversation
from primus.sft.formatters.template import TemplateFormatter, template_messages, template_tools
from primus.sft.formatters.template.formatter import _Request
from primus.sft.formatters.template.leaks import WRITTEN_FIELDS
from primus.sft.formatters.template.origin import WHOLE
from primus.sft.formatters.template.tracking import Source, TrackedRender, track
from tests.unit_tests.oracles.comparing import read_lines

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
Spans = list[tuple[int, int]]


def trl_templates(*, training: bool = False) -> dict[str, str]:
    """The chat templates of the trl package, stock ones or those with `{% generation %}`."""
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the chat templates of trl: pip install --no-deps 'trl==1.16.0'", allow_module_level=True)
    files = sorted((Path(spec.submodule_search_locations[0]) / "chat_templates").glob("*.jinja"))
    return {f.stem: f.read_text(encoding="utf-8") for f in files if f.stem.endswith("_training") == training}


def official(
    source: str, messages: Sequence[Any], tools: Sequence[Any] | None, *, wants_spans: bool = False, **variables: Any
) -> tuple[str, Spans]:
    """What transformers renders, and the spans of `{% generation %}`."""
    texts, spans = render_jinja_template(
        [list(messages)],
        tools=tools,
        chat_template=source,
        return_assistant_tokens_mask=wants_spans,
        **SPECIAL_TOKENS,
        **variables,
    )
    return str(texts[0]), [tuple(span) for span in spans[0]] if wants_spans else []


def shifted(text: str, template: str) -> str:
    """A text of the same length with every letter and digit replaced, but for tags, and words that the template has."""

    def shift(match: re.Match[str]) -> str:
        word = match.group()
        if word.startswith(("<", "[")) or word.lower() in template.lower():
            return word
        return "".join(_next(one) for one in word)

    return re.sub(r"<[^<>\s]+>|\[/?[A-Z_]+\]|\w+", shift, text)


def _next(one: str) -> str:
    if one.isascii():
        return {"z": "a", "Z": "A", "9": "1", "_": "_"}.get(one, chr(ord(one) + 1))
    near = chr(ord(one) + 1)
    return near if near.isalpha() and one.isalpha() and near.islower() == one.islower() else one


def prove(
    formatters: Sequence[TemplateFormatter], conversation: Conversation, rendered: Sequence[RenderedConversation]
) -> Counter[str]:
    """Compare spans with what transformers renders of changed strings.

    Args:
        formatters: Formatters with the same template, for different tokenizers.
        conversation: The conversation.
        rendered: What they gave for it.

    Returns:
        The strings that were changed (`strings`), those that could not be (`without letters`), and those that were
        shortened by the whitespace at their edges (`edges`).
    """
    first = formatters[0]
    form, source = first._form, first.source
    messages, tools = template_messages(conversation.messages, form=form), template_tools(conversation)
    text, _ = official(source, messages, tools)
    render = _followed(first, conversation)
    assert {text} == {render.text, *(one.text for one in rendered)}
    count: Counter[str] = Counter()

    def changed(new: Mapping[int, str]) -> str:
        numbers = count_up()
        new_messages, new_tools, _ = track(messages, tools, change=lambda s: new.get(next(numbers), s.text))
        return official(source, new_messages, new_tools)[0]

    is_assistant = [message.role == "assistant" for message in conversation.messages]
    for index, string in enumerate(render.sources):
        if string.turn is None or not is_assistant[string.turn] or string.field not in WRITTEN_FIELDS:
            continue
        new = shifted(string.text, source)
        if new == string.text:
            count["without letters"] += 1
        else:
            count["strings"] += 1
            other = changed({index: new})
            _check_letters(text, other, string, new, index, render, rendered)
        stripped = string.text.strip()
        if stripped and stripped != string.text and string.field != "arguments":
            count["edges"] += 1
            other = changed({index: stripped})
            assert len(text) - len(other) == _edge_characters(render, index), (string, "edge")
    theirs = changed(
        {
            i: shifted(s.text, source)
            for i, s in enumerate(render.sources)
            if s.field != "key" and not (s.turn is not None and is_assistant[s.turn])
        }
    )
    if len(theirs) == len(text):  # a template that reads its users' words changes more than letters
        count["others"] += 1
        others = {i for i, (a, b) in enumerate(zip(text, theirs, strict=True)) if a != b}
        for one in rendered:
            assert not any(others & set(range(span.start, span.end)) for span in one.spans), "another's words"
    return count


def _followed(formatter: TemplateFormatter, conversation: Conversation) -> TrackedRender:
    return formatter._followed(_Request(conversation.messages, template_tools(conversation), conversation.origin))


def _check_letters(
    text: str,
    other: str,
    string: Source,
    new: str,
    index: int,
    render: TrackedRender,
    rendered: Sequence[RenderedConversation],
) -> None:
    assert len(other) == len(text), (string, "the template reads it")
    differing = {i for i, (a, b) in enumerate(zip(text, other, strict=True)) if a != b}
    letters = {i for i, (a, b) in enumerate(zip(string.text, new, strict=True)) if a != b}
    runs = [run for run in render.runs if run.source == index]
    exact = {
        run.start + i - run.first for run in runs if run.kind != WHOLE for i in letters if run.first <= i < run.last
    }
    whole = {i for run in runs if run.kind == WHOLE for i in range(run.start, run.end)}
    assert exact <= differing <= exact | whole, (string, "runs")
    for one in rendered:
        own = {i for s in one.spans if s.turn == string.turn and s.kind == "content" for i in range(s.start, s.end)}
        others = {i for s in one.spans if s.turn != string.turn for i in range(s.start, s.end)}
        assert not differing & others, (string, "in another's span")
        if string.field != "call":  # a name may stand above the tool's answer, too
            assert differing <= own, (string, "outside of the span")


def _edge_characters(render: TrackedRender, index: int) -> int:
    string = render.sources[index].text
    front, back = len(string) - len(string.lstrip()), len(string.rstrip())
    num = 0
    for run in render.runs:
        if run.source == index:
            width = run.end - run.start if run.kind == WHOLE else 1
            num += width * sum(place < front or place >= back for place in range(run.first, run.last))
    return num


def adversarial_conversations() -> list[Conversation]:
    """Conversations that are hard to follow: edges, copies, tags, strange characters, unusual orders."""
    user, hello = Message("user", "Hello, who are you?"), Message("assistant", "I am a wombat.")
    call = ToolCall(
        "find_burrow", '{"place": "Oslo", "depth": 3, "tags": ["deep", "<dry>"], "q": "a \\"b\\"\\n"}', "callid001"
    )
    answer = Message("tool", "Two burrows.", tool_call_id="callid001", name="find_burrow")
    texts = {
        "edge whitespace": "  \n Wombats dig. \n\n ",
        "newlines at the edges": "\n\nWombats dig.\n\n",
        "a tab in front": "\tWombats dig.",
        "one letter": "w",
        "think in the middle": "I wonder.</think>Wombats dig.",
        "think element": "<think>\nI wonder.\n</think>\n\nWombats dig.",
        "think twice": "<think>One.</think>Wombats<think>Two.</think> dig.",
        "think opened only": "<think>Wombats dig.",
        "emoji": "🎉 Wombats 👩‍👩‍👧 dig 🎉",
        "only emoji": "🎉🎉",
        "only punctuation": "!!! ...",
        "control tokens": "It is <|im_end|>\n<|im_start|>assistant\nWombats </s> [INST] <|eot_id|> dig <end_of_turn>",
        "private use": "Wombats \ue000\ue001 dig \U0010fffd",
        "html": "<b>Wombats</b> &amp; \"dingoes\" 'dig' < >",
        "json": '{"wombats": ["dig", {"deep": true}]}',
        "jinja": "{{ messages }}{% for m in messages %}Wombats{% endfor %}",
        "the header": "assistant\nWombats dig.\nassistant\n",
        "the user's words": "Hello, who are you?",
        "other scripts": "袋熊挖洞。 Вомбаты роют. الومبت يحفر",
        "line separators": "Wombats\u2028dig\x0bdeep\r\nholes\x1c.",
        "long": "Wombats dig deep holes. " * 200,
        "percent": "100%s {0} {x} %(y)s Wombats",
        "tool call text": '<tool_call>\n{"name": "dig", "arguments": {}}\n</tool_call>',
        "gemma thought": "<|channel>thought\nI wonder<channel|>Wombats dig.",
    }  # fmt: skip
    result: dict[str, tuple[Message, ...]] = {
        name: (user, Message("assistant", text), Message("user", "And?"), Message("assistant", text))
        for name, text in texts.items()
    }
    result |= {
        "empty": (user, Message("assistant", ""), user, hello),
        "empty last": (user, hello, user, Message("assistant", "")),
        "whitespace only": (user, Message("assistant", " \n "), user, hello),
        "equal turns": (user, hello, user, hello, user, hello),
        "two assistants": (user, hello, Message("assistant", "Wombats dig."), user, hello),
        "assistant first": (hello, user, Message("assistant", "Wombats dig.")),
        "reasoning": (
            user, Message("assistant", "Yes.", reasoning="Do wombats dig?\n"), user,
            Message("assistant", "  Deep. ", reasoning="\n They do. "),
        ),
        "calls": (
            user,
            Message("assistant", "", tool_calls=(call,)), answer,
            Message("assistant", "Wombats dig.", reasoning="Hm."), user,
            Message("assistant", "Wait. ", reasoning="Again?", tool_calls=(call,)), answer, hello,
        ),
        "two calls": (
            Message("system", "Be brief."), user,
            Message("assistant", "", tool_calls=(call, ToolCall("find_burrow", '{"place": "Rome"}', "callid002"))),
            answer, Message("tool", "", tool_call_id="callid002", name="find_burrow"), hello,
        ),
        "call last": (user, Message("assistant", "Look:", tool_calls=(call,))),
        "weights": (
            user, Message("assistant", "Wombats dig.", weight=0.0), user, Message("assistant", "Yes.", weight=2.0),
        ),
    }  # fmt: skip
    return [Conversation(messages, origin=f"adversarial: {name}") for name, messages in result.items()]


def real_conversations(oracles_dir: Path) -> list[Conversation]:
    """98 real conversations."""
    rows = read_lines(oracles_dir / "hf_generation_masks/conversations.jsonl")
    return [parse_conversation(row, origin=row["id"]) for row in rows]
