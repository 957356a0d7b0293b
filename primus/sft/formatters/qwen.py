# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5: ChatML, with a system turn of its own where a conversation does not begin with one."""

from collections.abc import Sequence

from primus.chat.messages import Message
from primus.sft.formatters.openai import IM_END, IM_START
from primus.sft.formatters.plain_chat import PlainChatFormatter
from primus.sft.formatters.rendered import TextBuilder

DEFAULT_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


class QwenFormatter(PlainChatFormatter):
    """Renders as the chat template of the Qwen2.5 Instruct models does; nothing is trimmed.

    Qwen3 has no system turn of its own and writes an empty `<think>` element into the last answer; for that there is
    the template that comes with the model.
    """

    name = "qwen"
    control_markers = (IM_START, IM_END)
    end_of_turn = IM_END
    behind_end = "\n"

    def _write(self, out: TextBuilder, messages: Sequence[Message]) -> None:
        if not messages or messages[0].role != "system":
            self._header(out, "system")
            out.text(DEFAULT_SYSTEM)
            self._end_context(out)
        super()._write(out, messages)

    def _header(self, out: TextBuilder, role: str) -> None:
        out.marker(IM_START)
        out.text(f"{role}\n")
