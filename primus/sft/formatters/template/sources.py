# SPDX-License-Identifier: Apache-2.0
"""Where a chat template comes from: a file or the tokenizer, which may have another for conversations with tools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primus.chat.messages import Conversation
from primus.errors import ConfigError
from primus.sft.formatters.rendered import ConversationFormatter, RenderedConversation
from primus.sft.formatters.template.formatter import TemplateFormatter

if TYPE_CHECKING:
    from primus.sft.tokenizer import SFTTokenizer


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """The chat templates that conversations are rendered with.

    Attributes:
        default: The template.
        tool_use: The one for conversations with tools; None if that is the same.
        origin: Where they came from, for messages.
    """

    default: str
    tool_use: str | None
    origin: str

    @property
    def by_name(self) -> dict[str, str]:
        """The templates by the names that they have in a tokenizer's folder."""
        return {"default": self.default, **({} if self.tool_use is None else {"tool_use": self.tool_use})}

    def formatter(self, tokenizer: "SFTTokenizer | None", variables: Mapping[str, Any]) -> ConversationFormatter:
        """The formatter that renders with them.

        Args:
            tokenizer: Gives control tokens and the texts of special ones; None takes what looks like a control token.
            variables: What else templates are given.

        Returns:
            The formatter.

        Raises:
            ConfigError: If a template is no valid Jinja.
        """

        def make(source: str, origin: str) -> TemplateFormatter:
            return TemplateFormatter(
                source,
                origin=origin,
                control_tokens=None if tokenizer is None else tokenizer.control_tokens,
                special_tokens=None if tokenizer is None else tokenizer.special_tokens,
                variables=variables,
            )

        default = make(self.default, self.origin)
        if self.tool_use is None:
            return default
        return _ToolAwareFormatter(default, make(self.tool_use, f"{self.origin} (tool_use)"))


class _ToolAwareFormatter:
    """One template for conversations with tools, and one for the others, as transformers chooses them."""

    writes_bos = True
    is_turn_by_turn = False

    def __init__(self, default: TemplateFormatter, tool_use: TemplateFormatter) -> None:
        self._default = default
        self._tool_use = tool_use
        self.control_markers: Sequence[str] = tuple(
            dict.fromkeys([*default.control_markers, *tool_use.control_markers])
        )

    def render(self, conversation: Conversation) -> RenderedConversation:
        return self._chosen(conversation).render(conversation)

    def render_prompt(self, conversation: Conversation, turn: int) -> RenderedConversation:
        return self._chosen(conversation).render_prompt(conversation, turn)

    def _chosen(self, conversation: Conversation) -> TemplateFormatter:
        return self._tool_use if conversation.tools else self._default


def read_templates(tokenizer: "SFTTokenizer | None", *, file: str | Path | None = None) -> ChatTemplates:
    """Find the chat template to use.

    Args:
        tokenizer: The tokenizer, which may have brought templates along.
        file: A file with the template, which goes first.

    Returns:
        The templates.

    Raises:
        ConfigError: If there is none, or the file can't be read.
    """
    if file is not None:
        try:
            return ChatTemplates(Path(file).read_text(encoding="utf-8"), None, str(file))
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(
                f"sft_chat_template: {file} can't be read ({exc}); name a file with a chat template"
            ) from exc
    if tokenizer is None:
        raise ConfigError("sft_chat_template: is not set, and there is no tokenizer that has one; name a file")
    found = tokenizer.chat_templates
    if "default" in found:
        return ChatTemplates(found["default"], found.get("tool_use"), f"chat template of {tokenizer.name}")
    looked = "its tokenizer_config.json, chat_template.jinja and chat_template.json"
    others = f"; of its templates {', '.join(sorted(found))} none is the default" if found else ""
    raise ConfigError(
        f"{tokenizer.name}: has no chat template (looked in {looked}{others}); name a file with sft_chat_template, or"
        " use another sft_conversation_format"
    )
