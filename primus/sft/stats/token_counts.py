# SPDX-License-Identifier: Apache-2.0
"""Which of a conversation's tokens belong to whom, and where its trained turns end.

T: tokens of the conversation, BOS and EOS included. K: token spans of its assistant turns.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from primus.chat.messages import Message
from primus.sft.encoding import EncodedConversation, TracedConversation
from primus.sft.formatters import RenderedConversation, TurnSpan
from primus.sft.masking import IntArray


@dataclass(frozen=True, slots=True)
class TurnTokens:
    """The tokens that were written for one message.

    Attributes:
        turn: Index of the message.
        role: Who speaks.
        num_content: Tokens of what is said. For the assistant all that it writes itself: reasoning, content, calls.
        num_overhead: Tokens around it: header, markers, line ends, tool definitions in a system turn.
        is_located: Whether the content stands in the text as it is, or stripped. Where a format rewrites it, all tokens
            but the markers count as content.
    """

    turn: int
    role: str
    num_content: int
    num_overhead: int
    is_located: bool = True


@dataclass(frozen=True, slots=True)
class TrainedTurn:
    """An assistant turn with targets.

    Attributes:
        end: One past the last token of its content and end of turn. Truncation to fewer tokens untrains all of it.
        num_targets: Its trained tokens.
    """

    end: int
    num_targets: int


@dataclass(frozen=True, slots=True)
class ConversationTokens:
    """Where the tokens of a conversation are.

    Attributes:
        num_tokens: All of them.
        num_targets: Those that are trained.
        num_outside: Those that belong to no message: BOS, EOS, a system turn that the format writes by itself.
        turns: Those of each message that the format wrote.
        trained_turns: The assistant turns with targets.
    """

    num_tokens: int
    num_targets: int
    num_outside: int
    turns: tuple[TurnTokens, ...]
    trained_turns: tuple[TrainedTurn, ...]


def count_tokens(traced: TracedConversation, *, num_front: int, num_back: int) -> ConversationTokens:
    """Count the tokens of a conversation by message.

    A token belongs to the message that its first character was written for; it is content if all of its characters are.

    Args:
        traced: The conversation with its text and offsets.
        num_front: Ids that stand in front of the text's tokens (BOS).
        num_back: Ids that stand behind them (EOS).

    Returns:
        The counts; those of the turns and those outside sum to all tokens.
    """
    encoded, rendered = traced.encoded, traced.rendered
    starts_T, ends_T = traced.offsets_T2[num_front : len(traced.offsets_T2) - num_back].T
    spoken = _assistant_content(encoded)
    pieces: dict[int, list[TurnSpan]] = {}
    for span in rendered.turns:
        pieces.setdefault(span.turn, []).append(span)
    turns = []
    for turn, spans in sorted(pieces.items()):
        bounds = np.searchsorted(starts_T, [(span.start, span.end) for span in spans])
        num_tokens = int((bounds[:, 1] - bounds[:, 0]).sum())
        message = traced.conversation.messages[turn]
        place = None if turn in spoken else _find_content(rendered, message, spans)
        if turn in spoken:
            num_content = spoken[turn]
        elif place is not None:
            num_content = _tokens_at([place], starts_T, ends_T)
        else:
            num_content = num_tokens - _tokens_at(_markers_in(rendered, spans), starts_T, ends_T)
        is_located = turn in spoken or place is not None
        turns.append(TurnTokens(turn, message.role, num_content, num_tokens - num_content, is_located=is_located))
    return ConversationTokens(
        num_tokens=len(encoded.tokens_T),
        num_targets=encoded.num_targets,
        num_outside=len(encoded.tokens_T) - sum(turn.num_content + turn.num_overhead for turn in turns),
        turns=tuple(turns),
        trained_turns=trained_turns(encoded),
    )


def trained_turns(encoded: EncodedConversation) -> tuple[TrainedTurn, ...]:
    """The assistant turns that have targets, with the token that each ends before.

    Args:
        encoded: The conversation.

    Returns:
        The turns, in order.

    Examples:
        >>> encoded = EncodedConversation(np.arange(7), np.array([[1, 3], [4, 6]]), turns_K=np.array([1, 3]),
        ...     is_end_K=np.array([False, False]), weights_K=np.float32([1, 1]), origin="a:1")
        >>> trained_turns(encoded)
        (TrainedTurn(end=3, num_targets=2), TrainedTurn(end=6, num_targets=2))
    """
    lengths_K = (encoded.token_spans_K2[:, 1] - np.maximum(encoded.token_spans_K2[:, 0], 1)).clip(min=0)
    targets_K = np.where(encoded.weights_K > 0, lengths_K, 0)
    ends: dict[int, int] = {}
    targets: dict[int, int] = {}
    rows = zip(encoded.turns_K.tolist(), encoded.token_spans_K2[:, 1].tolist(), targets_K.tolist(), strict=True)
    for turn, end, num_targets in rows:
        ends[turn] = max(end, ends.get(turn, 0))
        targets[turn] = targets.get(turn, 0) + num_targets
    return tuple(TrainedTurn(ends[turn], num) for turn, num in targets.items() if num)


def _assistant_content(encoded: EncodedConversation) -> dict[int, int]:
    """Content tokens of each assistant turn."""
    counts: dict[int, int] = {}
    lengths_K = encoded.token_spans_K2[:, 1] - encoded.token_spans_K2[:, 0]
    rows = zip(encoded.turns_K.tolist(), encoded.is_end_K.tolist(), lengths_K.tolist(), strict=True)
    for turn, is_end, length in rows:
        counts[turn] = counts.get(turn, 0) + (0 if is_end else length)
    return counts


def _find_content(
    rendered: RenderedConversation, message: Message, spans: Sequence[TurnSpan]
) -> tuple[int, int] | None:
    """Where the content of a message stands in what was written for it: before the last marker, else anywhere."""
    last_marker = max((start for start, _ in _markers_in(rendered, spans)), default=len(rendered.text))
    for content in (message.content, message.content.strip()):
        for limit in (last_marker, len(rendered.text)):
            for span in reversed(spans):
                start = rendered.text.rfind(content, span.start, min(span.end, limit))
                if start >= 0:
                    return start, start + len(content)
    return None


def _markers_in(rendered: RenderedConversation, spans: Sequence[TurnSpan]) -> list[tuple[int, int]]:
    """The markers that were written for a message."""
    markers = rendered.markers
    found: list[tuple[int, int]] = []
    for span in spans:
        first, last = bisect_left(markers, (span.start, 0)), bisect_left(markers, (span.end, 0))
        found += markers[first:last]
    return found


def _tokens_at(places: Sequence[tuple[int, int]], starts_T: IntArray, ends_T: IntArray) -> int:
    """Tokens all of whose characters lie in one of the places."""
    total = 0
    for start, end in places:
        first, last = np.searchsorted(starts_T, start), np.searchsorted(ends_T, end, side="right")
        total += max(int(last - first), 0)
    return total
