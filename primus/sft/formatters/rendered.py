# SPDX-License-Identifier: Apache-2.0
"""What a formatter gives: the training text, and what in it is what."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from primus.chat.messages import Conversation
from primus.sft.formatters.flat_texts import FlatTexts, PlainFrames, byte_places

SpanKind = Literal["content", "end_of_turn"]


@dataclass(frozen=True, slots=True)
class CharSpan:
    """A piece of an assistant turn, in characters of the rendered text.

    Attributes:
        start: First character.
        end: One past the last character; equal to `start` for an empty turn.
        kind: What the assistant said, or the marker that ends its turn.
        turn: Index of the message in the conversation.
        weight: Factor of the loss; 0 keeps the piece as context only.
    """

    start: int
    end: int
    kind: SpanKind
    turn: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TurnSpan:
    """Everything that the format wrote for one message, in characters of the rendered text.

    Attributes:
        start: First character of the header.
        end: One past the last character of the message's end.
        turn: Index of the message in the conversation.
    """

    start: int
    end: int
    turn: int


@dataclass(frozen=True, slots=True)
class RenderedConversation:
    """The text of one training sequence.

    Attributes:
        text: What is tokenized. BOS and EOS are in it only where the format writes them itself.
        spans: Disjoint pieces of the assistant's turns, in order.
        markers: `[start, end)` of every place where the format itself put a marker such as `<|im_end|>`. Only there may
            the tokenizer produce a control token; the same characters inside a message are plain text.
        turns: Disjoint pieces of text, in order, with the message that each was written for. What was written for none
            (BOS, a system turn of the format's own) is in no piece.
    """

    text: str
    spans: tuple[CharSpan, ...]
    markers: tuple[tuple[int, int], ...]
    turns: tuple[TurnSpan, ...] = ()

    def markers_before(self, end: int) -> tuple[tuple[int, int], ...]:
        """The markers in front of a character."""
        return self.markers[: bisect_left(self.markers, (end, end))]

    def before(self, end: int) -> "RenderedConversation":
        """The text in front of a character, with its markers and turns, and no spans.

        Args:
            end: The character.

        Returns:
            The beginning of this text.
        """
        turns = self.turns[: bisect_left(self.turns, end, key=lambda piece: piece.start)]
        if turns and turns[-1].end > end:
            turns = (*turns[:-1], replace(turns[-1], end=end))
        return RenderedConversation(self.text[:end], spans=(), markers=self.markers_before(end), turns=turns)


class ConversationFormatter(Protocol):
    """Turns conversations into text, and says which characters the assistant wrote."""

    @property
    def control_markers(self) -> Sequence[str]:
        """The markers that ought to be single control tokens of the tokenizer."""
        ...

    @property
    def writes_bos(self) -> bool:
        """Whether the text begins as the model expects, so that no BOS is put in front (chat templates)."""
        ...

    @property
    def is_turn_by_turn(self) -> bool:
        """Whether each message is written without a look at those behind it, so that a prompt is the text before."""
        ...

    def render(self, conversation: Conversation) -> RenderedConversation:
        """Render one conversation.

        Args:
            conversation: The conversation.

        Returns:
            Its text, the spans of its assistant turns, and the places of its markers.

        Raises:
            RenderError: If the format has no form for it. The message begins with the origin.
        """
        ...

    def render_prompt(self, conversation: Conversation, turn: int) -> RenderedConversation:
        """Render what a server gives the model to write an assistant turn: the messages before it, and a header.

        Args:
            conversation: The conversation.
            turn: Index of the assistant message.

        Returns:
            The text with its markers and turns, and no spans.

        Raises:
            RenderError: If the format has no form for it. The message begins with the origin.
        """
        ...


class TextBatch:
    """The texts of many conversations, with everything that has a place in them as plain numbers.

    Attributes:
        texts: The texts.
        markers: First character of each marker of all texts, one text's behind another's.
        words: The marker that stands there.
        num_markers: How many markers each text has.
        edges: First character and one past the last of each piece of an assistant turn, in turn.
        turns: Index of the message that a piece belongs to.
        is_end: Whether a piece is the end of its turn.
        weights: Factor of a piece's loss.
        num_spans: How many pieces each text has.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.markers: list[int] = []
        self.words: list[str] = []
        self.num_markers: list[int] = []
        self.edges: list[int] = []
        self.turns: list[int] = []
        self.is_end: list[bool] = []
        self.weights: list[float] = []
        self.num_spans: list[int] = []

    def add(self, rendered: RenderedConversation) -> None:
        """Take in a text that is rendered by itself."""
        text = rendered.text
        self.markers += [start for start, _ in rendered.markers]
        self.words += [text[start:end] for start, end in rendered.markers]
        for span in rendered.spans:
            self.edges += (span.start, span.end)
            self.turns.append(span.turn)
            self.is_end.append(span.kind == "end_of_turn")
            self.weights.append(span.weight)
        self.end_text(text, num_markers=len(rendered.markers), num_spans=len(rendered.spans))

    def end_text(self, text: str, *, num_markers: int, num_spans: int) -> None:
        """Add a text whose markers and spans are there already."""
        self.texts.append(text)
        self.num_markers.append(num_markers)
        self.num_spans.append(num_spans)

    def flat(self) -> FlatTexts:
        """The same as flat arrays."""
        data = [text.encode() for text in self.texts]
        markers, edges = list(self.markers), list(self.edges)
        marker = edge = 0
        for text, its_bytes, num_markers, num_spans in zip(
            self.texts, data, self.num_markers, self.num_spans, strict=True
        ):
            last_marker, last_edge = marker + num_markers, edge + 2 * num_spans
            if len(its_bytes) != len(text):
                markers[marker:last_marker] = byte_places(its_bytes, markers[marker:last_marker])
                edges[edge:last_edge] = byte_places(its_bytes, edges[edge:last_edge])
            marker, edge = last_marker, last_edge
        words = {word: index for index, word in enumerate(dict.fromkeys(self.words))}
        return FlatTexts(
            texts=self.texts,
            data=data,
            markers_M=np.array(markers, dtype=np.int64),
            words=tuple(words),
            words_M=np.array([words[word] for word in self.words], dtype=np.int64),
            num_markers_N=np.array(self.num_markers, dtype=np.int64),
            edges_E=np.array(edges, dtype=np.int64),
            turns_K=np.array(self.turns, dtype=np.int32),
            is_end_K=np.array(self.is_end, dtype=np.bool_),
            weights_K=np.array(self.weights, dtype=np.float32),
            num_spans_N=np.array(self.num_spans, dtype=np.int64),
        )


@runtime_checkable
class BatchFormatter(Protocol):
    """A formatter that writes many conversations in less time than one by one."""

    def render_into(self, conversation: Conversation, batch: TextBatch) -> None:
        """Do what `render` does, and add the text to others.

        Args:
            conversation: The conversation.
            batch: Gets the text; stays as it is if the conversation can't be rendered.

        Raises:
            RenderError: If the format has no form for it. The message begins with the origin.
        """
        ...

    @property
    def plain_frames(self) -> PlainFrames | None:
        """What stands around contents, if that is all that the format does with messages of a role and a text."""
        ...


class TextBuilder:
    """Collects text while keeping the positions of what matters."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._spans: list[CharSpan] = []
        self._markers: list[tuple[int, int]] = []
        self._turns: list[TurnSpan] = []

    def text(self, text: str) -> tuple[int, int]:
        """Append text; gives the characters `[start, end)` that it takes."""
        start = self._length
        self._parts.append(text)
        self._length += len(text)
        return start, self._length

    def marker(self, text: str) -> tuple[int, int]:
        """Append a marker of the format."""
        place = self.text(text)
        self._markers.append(place)
        return place

    def span(self, place: tuple[int, int], *, kind: SpanKind, turn: int, weight: float) -> None:
        """Note that a place is a piece of an assistant turn."""
        self._spans.append(CharSpan(*place, kind=kind, turn=turn, weight=weight))

    @property
    def length(self) -> int:
        """Characters so far."""
        return self._length

    def end_turn(self, start: int, turn: int) -> None:
        """Note that everything since a character was written for a message."""
        self._turns.append(TurnSpan(start, self._length, turn))

    @contextmanager
    def turn(self, turn: int | None) -> Iterator[None]:
        """Note that what is appended meanwhile is written for a message; None for no message."""
        start = self._length
        yield
        if turn is not None:
            self.end_turn(start, turn)

    def build(self) -> RenderedConversation:
        """What was collected."""
        return RenderedConversation("".join(self._parts), tuple(self._spans), tuple(self._markers), tuple(self._turns))
