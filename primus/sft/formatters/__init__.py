# SPDX-License-Identifier: Apache-2.0
"""From a conversation to text with spans: one module per format."""

import difflib

from primus.errors import ConfigError
from primus.sft.formatters.alpaca import AlpacaFormatter
from primus.sft.formatters.openai import IM_END, IM_START, OpenAIMessagesFormatter
from primus.sft.formatters.rendered import CharSpan, ConversationFormatter, RenderedConversation, SpanKind, TurnSpan

FORMATTER_NAMES = ("openai", "messages", "chatml", "alpaca")


def create_formatter(name: str, *, eos_token: str = "") -> OpenAIMessagesFormatter | AlpacaFormatter:
    """The formatter of a conversation format.

    Args:
        name: `openai`, `messages` and `chatml` are one format, ChatML; `alpaca` is the single-turn prompt.
        eos_token: Text of the tokenizer's EOS token, which ends a turn in formats without a marker for it.

    Returns:
        A formatter without state: it may be used for any number of conversations.

    Raises:
        ConfigError: If there is no such format.
    """
    if name == "alpaca":
        return AlpacaFormatter(end_of_turn=eos_token)
    if name in FORMATTER_NAMES:
        return OpenAIMessagesFormatter()
    near = difflib.get_close_matches(name, FORMATTER_NAMES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(FORMATTER_NAMES)}"
    raise ConfigError(f"sft_conversation_format: there is no format {name!r}; {hint}")


__all__ = [
    "FORMATTER_NAMES",
    "IM_END",
    "IM_START",
    "AlpacaFormatter",
    "CharSpan",
    "ConversationFormatter",
    "OpenAIMessagesFormatter",
    "RenderedConversation",
    "SpanKind",
    "TurnSpan",
    "create_formatter",
]
