# SPDX-License-Identifier: Apache-2.0
r"""Phi-3: every message as `<|role|>\ncontent<|end|>\n`, and `<|endoftext|>` behind the last one."""

from primus.sft.formatters.plain_chat import PlainChatFormatter
from primus.sft.formatters.rendered import TextBuilder


class PhiFormatter(PlainChatFormatter):
    """Renders as the chat template of Phi-3-mini-4k-instruct does: no BOS, nothing trimmed.

    `<|end|>` ends a turn; the `<|endoftext|>` behind the whole conversation is not the assistant's. Phi-3.5 renders the
    same, but leaves an empty system message away.
    """

    name = "phi"
    control_markers = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>")
    end_of_turn = "<|end|>"
    behind_end = "\n"
    closing = "<|endoftext|>"

    def _header(self, out: TextBuilder, role: str) -> None:
        out.marker(f"<|{role}|>")
        out.text("\n")
