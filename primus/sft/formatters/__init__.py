# SPDX-License-Identifier: Apache-2.0
"""From a conversation to text with spans: one module per format."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primus.errors import ConfigError
from primus.sft.formatters.alpaca import AlpacaFormatter
from primus.sft.formatters.gemma import GemmaFormatter
from primus.sft.formatters.llama3 import Llama3Formatter
from primus.sft.formatters.mistral import MistralFormatter
from primus.sft.formatters.openai import IM_END, IM_START, OpenAIMessagesFormatter
from primus.sft.formatters.phi import PhiFormatter
from primus.sft.formatters.plain_chat import PlainChatFormatter
from primus.sft.formatters.qwen import QwenFormatter
from primus.sft.formatters.rendered import CharSpan, ConversationFormatter, RenderedConversation, SpanKind, TurnSpan
from primus.sft.formatters.template import ChatTemplates, TemplateFormatter, read_templates

if TYPE_CHECKING:
    from primus.sft.tokenizer import SFTTokenizer

NAMED_FORMATTERS: Mapping[str, type[PlainChatFormatter]] = {
    "llama3": Llama3Formatter,
    "qwen": QwenFormatter,
    "mistral": MistralFormatter,
    "gemma": GemmaFormatter,
    "phi": PhiFormatter,
}
"""Formats of model families for plain chat."""
TEMPLATE = "template"
"""The format that is a chat template."""
FORMATTER_NAMES = ("openai", "messages", "chatml", "alpaca", TEMPLATE, *NAMED_FORMATTERS)


def create_formatter(
    name: str,
    *,
    eos_token: str = "",
    tokenizer: "SFTTokenizer | None" = None,
    template: str | Path | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> ConversationFormatter:
    """The formatter of a conversation format.

    Args:
        name: `openai`, `messages` and `chatml` are one format, ChatML; `alpaca` is the single-turn prompt; `template`
            is a Hugging Face chat template; the others are those of model families, for plain chat.
        eos_token: Text of the tokenizer's EOS token, which ends a turn in formats without a marker for it.
        tokenizer: The tokenizer, for `template`: its control tokens, and its chat template if no file is named.
        template: A file with the chat template.
        template_kwargs: What the template is given besides the messages, such as `enable_thinking`.

    Returns:
        A formatter: it may be used for any number of conversations.

    Raises:
        ConfigError: If there is no such format, no template, or a template that is no valid Jinja.
    """
    if name != TEMPLATE and (template is not None or template_kwargs):
        raise ConfigError(
            f"sft_chat_template: is for sft_conversation_format: template, and that is {name!r}; change one of them"
        )
    if name == TEMPLATE:
        return read_templates(tokenizer, file=template).formatter(tokenizer, template_kwargs or {})
    if name in NAMED_FORMATTERS:
        return NAMED_FORMATTERS[name]()
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
    "NAMED_FORMATTERS",
    "TEMPLATE",
    "AlpacaFormatter",
    "CharSpan",
    "ChatTemplates",
    "ConversationFormatter",
    "OpenAIMessagesFormatter",
    "PlainChatFormatter",
    "RenderedConversation",
    "SpanKind",
    "TemplateFormatter",
    "TurnSpan",
    "create_formatter",
    "read_templates",
]
