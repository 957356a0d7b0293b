# SPDX-License-Identifier: Apache-2.0
"""Mistral, version 3: `<s>[INST] user[/INST] assistant</s>`, the answers trimmed."""

from primus.chat.messages import Role
from primus.sft.formatters.plain_chat import PlainChatFormatter
from primus.sft.formatters.rendered import TextBuilder


class MistralFormatter(PlainChatFormatter):
    """Renders as the chat template of Mistral-7B-Instruct-v0.3 and mistral-common (version 3) do.

    The prompt ends with `[/INST]`, so the space in front of an answer is the model's, and part of the content span.

    A system message stands in front of the last user message, with a blank line between them, as mistral-common has it
    (`InstructTokenizerV2.encode_user_message`). The chat template does so only where the user has the last word, and
    drops the system message from every conversation that ends with an answer; then a model would be trained without
    the words that its server puts into the prompt, so that is not followed. In a conversation of several turns only the
    last answer is trained behind the prompt that a server sees: the system message moves on with each user message.
    """

    name = "mistral"
    control_markers = ("<s>", "[INST]", "[/INST]", "</s>")
    opening = "<s>"
    end_of_turn = "</s>"
    system_place = "last_user"
    is_turn_by_turn = False

    def _header(self, out: TextBuilder, role: str) -> None:
        if role == "user":
            out.marker("[INST]")
            out.text(" ")

    def _content(self, role: Role, content: str) -> str:
        return f" {content.strip()}" if role == "assistant" else content

    def _end_context(self, out: TextBuilder) -> None:
        out.marker("[/INST]")
