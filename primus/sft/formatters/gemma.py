# SPDX-License-Identifier: Apache-2.0
r"""Gemma: every message as `<start_of_turn>role\ncontent<end_of_turn>\n`, trimmed, the assistant called `model`."""

from primus.chat.messages import Role
from primus.sft.formatters.plain_chat import PlainChatFormatter
from primus.sft.formatters.rendered import TextBuilder


class GemmaFormatter(PlainChatFormatter):
    """Renders as the chat template of Gemma 3 does, which writes a system message into the first user turn.

    The templates of Gemma 1 and 2 render the same text, but refuse a conversation with a system message. As in the
    official template the system message alone is not trimmed, and a blank line follows it.
    """

    name = "gemma"
    control_markers = ("<bos>", "<start_of_turn>", "<end_of_turn>")
    opening = "<bos>"
    end_of_turn = "<end_of_turn>"
    behind_end = "\n"
    system_place = "first_user"

    def _header(self, out: TextBuilder, role: str) -> None:
        out.marker("<start_of_turn>")
        out.text("model\n" if role == "assistant" else f"{role}\n")

    def _content(self, role: Role, content: str) -> str:  # noqa: ARG002
        return content.strip()
