# SPDX-License-Identifier: Apache-2.0
"""What the formats of model families have in common: plain chat, as the family's official chat template renders it.

Plain chat is text from system, user and assistant. What lies beyond it (tools, tool calls, reasoning) differs from
release to release of one family, so it is left to the chat template that comes with the model.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Literal

from primus.chat.messages import Conversation, Message, Role
from primus.errors import RenderError
from primus.sft.formatters.flat_texts import Frame, PlainFrames
from primus.sft.formatters.rendered import RenderedConversation, TextBatch, TextBuilder

_INSTEAD = "use sft_conversation_format: template"


class PlainChatFormatter(ABC):
    """Renders plain chat turn by turn; a subclass says what a turn looks like.

    The content span of an assistant turn begins where the prompt for it ends, so it holds what the model has to write:
    the content as rendered, behind whatever the template puts between prompt and content (Mistral's space). The end of
    the turn is the marker that stops the model; text behind the marker is context.

    Attributes:
        name: Value of `sft_conversation_format`.
        control_markers: The markers that ought to be single control tokens of the tokenizer.
        opening: The marker in front of everything; empty for none.
        end_of_turn: The marker that the model writes to stop.
        behind_end: Text behind the end of a turn, which a model that has stopped never writes.
        closing: The marker behind everything, where no prompt follows; empty for none.
        system_place: Where a system message stands: in turns of its own, or with a blank line behind it in front of the
            content of the first or the last user message. Without system turns, user and assistant have to speak in
            turn, after at most one system message.
        writes_bos: Always true: like a chat template, the text begins as the model expects, with BOS or without.
        is_turn_by_turn: Whether each message is written without a look at those behind it.
    """

    name: ClassVar[str]
    control_markers: ClassVar[tuple[str, ...]]
    opening: ClassVar[str] = ""
    end_of_turn: ClassVar[str]
    behind_end: ClassVar[str] = ""
    closing: ClassVar[str] = ""
    system_place: ClassVar[Literal["turn", "first_user", "last_user"]] = "turn"
    writes_bos: ClassVar[bool] = True
    is_turn_by_turn: ClassVar[bool] = True

    def render(self, conversation: Conversation) -> RenderedConversation:
        """Render a conversation of plain chat.

        Args:
            conversation: The conversation.

        Returns:
            The text of the official template, with the spans of the assistant turns.

        Raises:
            RenderError: If it has tools, tool calls, tool answers or reasoning, or if the format wants user and
                assistant in turn and they are not. The message begins with the origin.
        """
        self._check(conversation)
        out = TextBuilder()
        self._write(out, conversation.messages)
        if self.closing:
            out.marker(self.closing)
        return out.build()

    def render_into(self, conversation: Conversation, batch: TextBatch) -> None:
        """Render a conversation beside others."""
        messages = conversation.messages
        frames = self.plain_frames
        if frames is None or conversation.tools or any(m.tool_calls or m.reasoning for m in messages):
            batch.add(self.render(conversation))
            return
        if any(m.role == "tool" for m in messages):
            self._check(conversation)
        pieces = [self.opening]
        at, num_answers, num_markers = len(self.opening), 0, len(batch.markers)
        if self.opening:
            batch.markers.append(0)
            batch.words.append(self.opening)
        for turn, message in enumerate(messages):
            frame = frames.by_role[message.role]
            content = self._content(message.role, message.content)
            start = at + len(frame.header)
            end = start + len(content)
            batch.markers += (*(at + place for place, _ in frame.markers), end)
            batch.words += (*(word for _, word in frame.markers), self.end_of_turn)
            pieces += (frame.header, content, frame.end_of_turn, frame.behind_end)
            if message.role == "assistant":
                weight = 1.0 if message.weight is None else message.weight
                num_answers += 1
                batch.edges += (start, end, end, end + len(self.end_of_turn))
                batch.turns += (turn, turn)
                batch.is_end += (False, True)
                batch.weights += (weight, weight)
            at = end + len(frame.end_of_turn) + len(frame.behind_end)
        if self.closing:
            pieces.append(self.closing)
            batch.markers.append(at)
            batch.words.append(self.closing)
        batch.end_text("".join(pieces), num_markers=len(batch.markers) - num_markers, num_spans=2 * num_answers)

    @cached_property
    def plain_frames(self) -> PlainFrames | None:
        """What stands around the content of a turn of each role; None for a format where that is not all there is."""
        steps = ("_write", "_write_answer", "_write_context", "_end_context", "_turn_with_system")
        is_special = any(getattr(type(self), step) is not getattr(PlainChatFormatter, step) for step in steps)
        if is_special or self.system_place != "turn":
            return None
        frames: dict[Role, Frame] = {}
        roles: tuple[Role, ...] = ("system", "user", "assistant")
        for role in roles:
            out = TextBuilder()
            self._header(out, role)
            header = out.build()
            markers = tuple((start, header.text[start:end]) for start, end in header.markers)
            frames[role] = Frame(header.text, markers, self.end_of_turn, self.behind_end)
        return PlainFrames(frames, self.opening, self.closing, self._content)

    def render_prompt(self, conversation: Conversation, turn: int) -> RenderedConversation:
        """Render the messages before an assistant turn, as the official template does with its generation prompt.

        Args:
            conversation: The conversation.
            turn: Index of the assistant message.

        Returns:
            The text, without spans. In front of a first message it begins as the whole text does, though official
            templates leave BOS away there or fail, since no server is asked without a message.

        Raises:
            RenderError: If the whole conversation has no form. The message begins with the origin.
            ValueError: If the message is not the assistant's.
        """
        if conversation.messages[turn].role != "assistant":
            raise ValueError(f"turn {turn} is the {conversation.messages[turn].role}'s, not the assistant's")
        self._check(conversation)
        out = TextBuilder()
        self._write(out, conversation.messages[:turn])
        self._header(out, "assistant")
        return replace(out.build(), spans=())

    @abstractmethod
    def _header(self, out: TextBuilder, role: str) -> None:
        """Write what stands before the content of a turn; for the assistant, the generation prompt."""

    def _content(self, role: Role, content: str) -> str:  # noqa: ARG002
        """The content as the template renders it."""
        return content

    def _write(self, out: TextBuilder, messages: Sequence[Message]) -> None:
        if self.opening:
            out.marker(self.opening)
        system_turn = self._turn_with_system(messages)
        for turn, message in enumerate(messages):
            if message.role == "assistant":
                self._write_answer(out, message, turn)
            elif message.role == "user" or self.system_place == "turn":
                self._write_context(out, message, turn, system=messages[0].content if turn == system_turn else None)

    def _turn_with_system(self, messages: Sequence[Message]) -> int | None:
        """The user's turn that a system message is written into."""
        if self.system_place == "turn" or not messages or messages[0].role != "system":
            return None
        users = [turn for turn, message in enumerate(messages) if message.role == "user"]
        return users[0 if self.system_place == "first_user" else -1]

    def _write_answer(self, out: TextBuilder, message: Message, turn: int) -> None:
        weight = 1.0 if message.weight is None else message.weight
        with out.turn(turn):
            self._header(out, "assistant")
            out.span(out.text(self._content(message.role, message.content)), kind="content", turn=turn, weight=weight)
            out.span(out.marker(self.end_of_turn), kind="end_of_turn", turn=turn, weight=weight)
            out.text(self.behind_end)

    def _write_context(self, out: TextBuilder, message: Message, turn: int, *, system: str | None) -> None:
        with ExitStack() as piece:
            piece.enter_context(out.turn(turn))
            self._header(out, message.role)
            if system is not None:
                # The words of the system are a piece of its message between two of the user's.
                piece.close()
                with out.turn(0):
                    out.text(f"{system}\n\n")
                piece.enter_context(out.turn(turn))
            out.text(self._content(message.role, message.content))
            self._end_context(out)

    def _end_context(self, out: TextBuilder) -> None:
        """Write the end of a turn that is not the assistant's."""
        out.marker(self.end_of_turn)
        out.text(self.behind_end)

    def _check(self, conversation: Conversation) -> None:
        origin, name = conversation.origin, self.name
        if conversation.tools:
            raise RenderError(f"{origin}: the {name} format has no form for tools; {_INSTEAD}", reason="no_form")
        for turn, message in enumerate(conversation.messages):
            beyond = {
                "tool answers": message.role == "tool",
                "tool calls": bool(message.tool_calls),
                "reasoning": bool(message.reasoning),
            }
            for what, is_there in beyond.items():
                if is_there:
                    raise RenderError(
                        f"{origin}: turn {turn} ({message.role}): the {name} format has no form for {what}; {_INSTEAD}",
                        reason="no_form",
                    )
        if self.system_place != "turn":
            self._check_turns(conversation)

    def _check_turns(self, conversation: Conversation) -> None:
        messages = conversation.messages
        first = 1 if messages[0].role == "system" else 0
        for turn, message in enumerate(messages[first:], first):
            wanted = ("user", "assistant")[(turn - first) % 2]
            if message.role != wanted:
                raise RenderError(
                    f"{conversation.origin}: turn {turn} ({message.role}): the {self.name} format has user and"
                    f" assistant in turn after at most one system message, so this must be the {wanted}; merge or drop"
                    f" turns, or {_INSTEAD}",
                    reason="turn_order",
                )
