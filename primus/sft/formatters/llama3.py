# SPDX-License-Identifier: Apache-2.0
r"""Llama 3: every message as `<|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>`, trimmed."""

from primus.chat.messages import Role
from primus.sft.formatters.plain_chat import PlainChatFormatter
from primus.sft.formatters.rendered import TextBuilder


class Llama3Formatter(PlainChatFormatter):
    """Renders as the chat template of Meta-Llama-3-8B-Instruct does: BOS once, each content trimmed.

    Llama 3.1 to 3.3 put a system turn with knowledge and today's date in front of every conversation; for that there
    is the template that comes with the model.
    """

    name = "llama3"
    control_markers = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    opening = "<|begin_of_text|>"
    end_of_turn = "<|eot_id|>"

    def _header(self, out: TextBuilder, role: str) -> None:
        out.marker("<|start_header_id|>")
        out.text(role)
        out.marker("<|end_header_id|>")
        out.text("\n\n")

    def _content(self, role: Role, content: str) -> str:  # noqa: ARG002
        return content.strip()
