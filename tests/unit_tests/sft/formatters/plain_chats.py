# SPDX-License-Identifier: Apache-2.0
"""The formats of model families, and generated chats of system, user and assistant for them."""

from typing import Any

from hypothesis import strategies as st

from primus.chat import parse_conversation
from primus.sft.formatters.gemma import GemmaFormatter
from primus.sft.formatters.llama3 import Llama3Formatter
from primus.sft.formatters.mistral import MistralFormatter
from primus.sft.formatters.phi import PhiFormatter
from primus.sft.formatters.plain_chat import PlainChatFormatter
from primus.sft.formatters.qwen import QwenFormatter
from tests.unit_tests.sft.formatters.generated import TEXTS

FORMATTERS: dict[str, PlainChatFormatter] = {
    formatter.name: formatter
    for formatter in (Llama3Formatter(), QwenFormatter(), MistralFormatter(), GemmaFormatter(), PhiFormatter())
}

# What Python's `strip` takes away and other languages do not, or the other way round, and every format's markers.
_EDGES = ["\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\ufeff", "\u200b", "\x0b", "\r"]
MARKERS = sorted({marker for formatter in FORMATTERS.values() for marker in formatter.control_markers})
CONTENTS = TEXTS | st.lists(
    st.sampled_from([*_EDGES, *MARKERS, "", " ", "\n", "Hello", "<|system|>\n"]) | TEXTS, max_size=5
).map("".join)


def say(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _alternating(contents: list[str], system: str | None) -> list[dict[str, Any]]:
    front = [] if system is None else [say("system", system)]
    return front + [say(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]


# A system message or none, then user and assistant in turn, with either's last word.
ALTERNATING = st.builds(_alternating, st.lists(CONTENTS, min_size=2, max_size=7), st.none() | CONTENTS)
# Any order of the three roles, with at least one answer.
ANY_ORDER = st.lists(st.builds(say, st.sampled_from(["system", "user", "assistant"]), CONTENTS), max_size=6).flatmap(
    lambda messages: st.builds(
        lambda at, content: [*messages[:at], say("assistant", content), *messages[at:]],
        st.integers(0, len(messages)),
        CONTENTS,
    )
)


def chats(formatter: PlainChatFormatter) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Chats that the format has a form for."""
    return ANY_ORDER | ALTERNATING if formatter.system_place == "turn" else ALTERNATING


def text_of(formatter: PlainChatFormatter, messages: list[dict[str, Any]]) -> str:
    return formatter.render(parse_conversation({"messages": messages})).text
