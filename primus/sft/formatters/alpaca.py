# SPDX-License-Identifier: Apache-2.0
"""The prompt of Stanford Alpaca: one instruction, one response, no chat tokens.

Source of the words: github.com/tatsu-lab/stanford_alpaca, `train.py`, PROMPT_DICT.
"""

from primus.chat.messages import Conversation
from primus.chat.parse import single_turn
from primus.errors import RenderError
from primus.sft.formatters.rendered import RenderedConversation, TextBuilder

_INTRODUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
_INTRODUCTION_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context."
    " Write a response that appropriately completes the request."
)
_RESPONSE_HEADER = "### Response:\n"


class AlpacaFormatter:
    """Renders a single-turn conversation as an Alpaca prompt and its response.

    The format has no marker of its own for the end of a turn: the tokenizer's EOS takes that place.

    Args:
        end_of_turn: Text of the tokenizer's EOS token; empty for none.
    """

    def __init__(self, *, end_of_turn: str = "") -> None:
        self._end_of_turn = end_of_turn
        self.control_markers = (end_of_turn,) if end_of_turn else ()
        self.writes_bos = False
        self.is_turn_by_turn = True

    def format_conversation(
        self, instruction: str, response: str, input_text: str | None = None, system_prompt: str | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """Render one instruction and its response.

        Args:
            instruction: What the user asks.
            response: What the assistant answers.
            input_text: Material for the instruction; not empty, it gets a section of its own.
            system_prompt: Replaces the introduction, unless None or empty.

        Returns:
            The text, and the characters `[start, end)` of the response in a list of one.

        Raises:
            ConversationError: If a text cannot be encoded.
        """
        rendered = self.render(single_turn(instruction, response, input_text=input_text, system_prompt=system_prompt))
        return rendered.text, [(span.start, span.end) for span in rendered.spans if span.kind == "content"]

    def render(self, conversation: Conversation) -> RenderedConversation:
        """Render a single-turn conversation.

        Args:
            conversation: The conversation.

        Returns:
            Its text, with the response as the only content span.

        Raises:
            RenderError: If it has more than one user or assistant turn, tools, tool calls or reasoning.
        """
        messages = conversation.messages
        has_system = messages[0].role == "system"
        system = messages[0].content if has_system else ""
        turns = messages[1:] if has_system else messages
        roles = [message.role for message in turns]
        if roles != ["user", "assistant"]:
            raise RenderError(
                f"{conversation.origin}: the alpaca format has one user and one assistant turn, but the row has"
                f" {', '.join(roles)}; use sft_conversation_format: openai",
                reason="not_single_turn",
            )
        user, assistant = turns
        if conversation.tools or assistant.tool_calls or assistant.reasoning:
            raise RenderError(
                f"{conversation.origin}: the alpaca format has no form for tools, tool calls or reasoning; use"
                " sft_conversation_format: openai",
                reason="no_form",
            )
        out = TextBuilder()
        instruction, introduction = f"{user.content}\n\n", _INTRODUCTION
        if user.input_start is not None:
            instruction = f"{user.content[: user.input_start]}### Input:\n{user.content[user.input_start :]}\n\n"
            introduction = _INTRODUCTION_WITH_INPUT
        turn = len(messages) - 1
        with out.turn(0 if system else None):
            out.text(f"{system or introduction}\n\n")
        with out.turn(turn - 1):
            out.text(f"### Instruction:\n{instruction}")
        with out.turn(turn):
            out.text(_RESPONSE_HEADER)
            weight = 1.0 if assistant.weight is None else assistant.weight
            out.span(out.text(assistant.content), kind="content", turn=turn, weight=weight)
            if self._end_of_turn:
                out.span(out.marker(self._end_of_turn), kind="end_of_turn", turn=turn, weight=weight)
        return out.build()

    def render_prompt(self, conversation: Conversation, turn: int) -> RenderedConversation:
        """Render everything up to the response, the only assistant turn."""
        whole = self.render(conversation)
        if turn != whole.turns[-1].turn:
            raise ValueError(f"turn {turn} is not the assistant's, which is {whole.turns[-1].turn}")

        return whole.before(whole.spans[0].start)
