# SPDX-License-Identifier: Apache-2.0
"""A conversation token by token: which characters each stands for, whose they are, and what of them is trained.

T: tokens of a conversation, BOS and EOS included, also those that truncation drops. K: token spans of its assistant
turns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from primus.sft.encoding import EncodedConversation, TracedConversation
from primus.sft.formatters import RenderedConversation, TurnSpan
from primus.sft.masking import FloatArray, IntArray, next_token_targets
from primus.sft.tokenizer import SFTTokenizer
from primus.sft.truncation import truncate_right
from primus.sft.views.shared_characters import token_bytes

TokenKind = Literal["text", "control", "marker", "unknown"]

FORMAT_ROLE = "format"
"""Stands for a role where the format wrote something that belongs to no message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenView:
    """One token.

    Attributes:
        index: Its place in the sequence; as an input it stands at this position.
        id: Its id.
        kind: `control` for a control token of the tokenizer, `marker` for a piece of a marker that is none, `unknown`
            for the tokenizer's stand-in for characters that it does not know.
        start: First character that it stands for.
        end: One past the last one; equal to `start` for a BOS or EOS that the text does not hold.
        text: The characters that it stands for; for a BOS or EOS that the text does not hold, its name.
        own_text: Of these, the ones that no token before it stands for; empty for the later bytes of a character.
        lost: Characters in front of it that no token stands for.
        bytes: The token's bytes if it holds only a part of some character, as far as that can be known.
        section: Index of its section.
        weight: Factor of its loss as a target; 0 if it is none.
        predicted_at: The position whose label it is; None for the first token, which nothing predicts, and for one that
            is cut off.
        is_cut: Whether truncation drops it.
    """

    index: int
    id: int
    kind: TokenKind
    start: int
    end: int
    text: str
    own_text: str
    lost: str
    bytes: bytes | None
    section: int
    weight: float
    predicted_at: int | None
    is_cut: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SectionView:
    """Tokens that stand together and were written for one message, or for none.

    Attributes:
        turn: Index of the message; None where the format wrote something of its own.
        role: The message's role, or `format`.
        first: The first token.
        last: One past the last token.
        num_trained: Tokens that are targets.
        weights: The different weights above 0 of its targets, ascending.
        notes: Why it is not trained as one might expect.
    """

    turn: int | None
    role: str
    first: int
    last: int
    num_trained: int
    weights: tuple[float, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversationView:
    """A conversation token by token.

    Attributes:
        origin: Where it came from.
        text: The rendered text.
        ids_T: Token ids.
        offsets_T2: Characters `[start, end)` of each token.
        kinds: What each token is.
        weights_T: Factor of each token's loss as a target, as the trainer sees it: 0 where it is none.
        sections: All tokens, in order, by message.
        bytes: The bytes of the tokens that hold only a part of a character, by token.
        special_names: Text of the control tokens that the rendered text does not hold, by id.
        cut: Tokens that fit the training sequence; None if all do.
        notes: What else there is to know about the row.
    """

    origin: str
    text: str
    ids_T: IntArray
    offsets_T2: IntArray
    kinds: tuple[TokenKind, ...]
    weights_T: FloatArray
    sections: tuple[SectionView, ...]
    bytes: Mapping[int, bytes]
    special_names: Mapping[int, str]
    cut: int | None
    notes: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens, also those that are cut off."""
        return len(self.ids_T)

    @property
    def num_trained(self) -> int:
        """Tokens that are targets."""
        return int(np.count_nonzero(self.weights_T))

    @property
    def lost_at_end(self) -> str:
        """Characters behind the last token."""
        return self.text[int(self.offsets_T2[-1, 1]) if self.num_tokens else 0 :]

    def tokens(self, first: int = 0, last: int | None = None) -> Iterator[TokenView]:
        """The tokens `[first, last)`, in order.

        Args:
            first: The first token.
            last: One past the last token; None takes all.

        Yields:
            The tokens.
        """
        section_T = np.repeat(np.arange(len(self.sections)), [s.last - s.first for s in self.sections])
        for t in range(first, self.num_tokens if last is None else last):
            start, end = (int(place) for place in self.offsets_T2[t])
            reached = int(self.offsets_T2[t - 1, 1]) if t else 0
            token_id = int(self.ids_T[t])
            is_cut = self.cut is not None and t >= self.cut
            yield TokenView(
                index=t,
                id=token_id,
                kind=self.kinds[t],
                start=start,
                end=end,
                text=self.text[start:end] if end > start else self.special_names.get(token_id, ""),
                own_text=self.text[max(start, reached) : end],
                lost=self.text[reached:start],
                bytes=self.bytes.get(t),
                section=int(section_T[t]),
                weight=float(self.weights_T[t]),
                predicted_at=None if t == 0 or is_cut else t - 1,
                is_cut=is_cut,
            )


def view_conversation(
    traced: TracedConversation, *, tokenizer: SFTTokenizer, max_seq_length: int | None = None
) -> ConversationView:
    """Look at a traced conversation token by token.

    Args:
        traced: The conversation.
        tokenizer: The tokenizer that it was traced with.
        max_seq_length: Positions of a training sequence. Of a longer conversation the tokens behind the last turn
            that can be trained are marked as cut, and trained is what `truncate_right` leaves; None takes any length.

    Returns:
        The view. What is trained in it is what `next_token_targets` says.

    Examples:
        >>> from primus.chat import Conversation, Message
        >>> from primus.sft.encoding import trace_conversation
        >>> from primus.sft.formatters import OpenAIMessagesFormatter
        >>> from primus.sft.tokenizer.testing import WordTokenizer
        >>> traced = trace_conversation(Conversation((Message("user", "hi"), Message("assistant", "hello you"))),
        ...     formatter=OpenAIMessagesFormatter(), tokenizer=WordTokenizer(), supervise_end_of_turn=False)
        >>> view = view_conversation(traced, tokenizer=WordTokenizer())
        >>> [token.text for token in view.tokens() if token.weight]
        ['hello ', 'you']
    """
    whole = traced.encoded
    num_tokens = len(whole.tokens_T)
    kept = whole if max_seq_length is None else truncate_right(whole, max_tokens=max_seq_length + 1)
    num_kept = len(kept.tokens_T)
    targets = next_token_targets(kept.tokens_T, kept.weights_T, length=max(num_kept - 1, 0), pad_id=0)
    weights_T = np.zeros(num_tokens, dtype=np.float32)
    weights_T[1:num_kept] = targets.loss_mask_S
    kinds = _kinds(traced, tokenizer)
    sections = tuple(
        SectionView(
            turn=turn,
            role=FORMAT_ROLE if turn is None else traced.conversation.messages[turn].role,
            first=first,
            last=last,
            num_trained=int(np.count_nonzero(weights_T[first:last])),
            weights=tuple(float(w) for w in np.unique(weights_T[first:last]) if w),
            notes=() if turn is None else _turn_notes(traced, kept, turn),
        )
        for turn, first, last in _sections(traced, kinds)
    )
    names = {token_id: text for text, token_id in tokenizer.control_tokens.items()}
    no_width = np.flatnonzero(traced.offsets_T2[:, 0] == traced.offsets_T2[:, 1]).tolist()
    return ConversationView(
        origin=traced.conversation.origin,
        text=traced.rendered.text,
        ids_T=whole.tokens_T,
        offsets_T2=traced.offsets_T2,
        kinds=kinds,
        weights_T=weights_T,
        sections=sections,
        bytes=token_bytes(traced.rendered.text, whole.tokens_T, traced.offsets_T2, decode=tokenizer.decode),
        special_names={i: names[i] for t in no_width if (i := int(whole.tokens_T[t])) in names},
        cut=num_kept if num_kept < num_tokens else None,
        notes=_row_notes(traced, kept, kinds, sections, max_seq_length),
    )


def _kinds(traced: TracedConversation, tokenizer: SFTTokenizer) -> tuple[TokenKind, ...]:
    """What each token is. By the law of content, a control token stands at its marker or has no characters."""
    starts_T, ends_T = traced.offsets_T2[:, 0], traced.offsets_T2[:, 1]
    markers = np.array(traced.rendered.markers, dtype=np.int64).reshape(-1, 2)
    marker_T = np.searchsorted(markers[:, 0], starts_T, "right") - 1
    # A place in front of all markers, so that -1 is one, too.
    marker_ends = np.append(markers[:, 1], 0)
    kinds: list[TokenKind] = ["marker" if inside else "text" for inside in (starts_T < marker_ends[marker_T]).tolist()]
    meant = {
        (start, end, tokenizer.control_tokens.get(traced.rendered.text[start:end]))
        for start, end in traced.rendered.markers
    }
    is_control_T = np.isin(traced.encoded.tokens_T, list(tokenizer.control_tokens.values()))
    for t in np.flatnonzero(is_control_T).tolist():
        place = int(starts_T[t]), int(ends_T[t]), int(traced.encoded.tokens_T[t])
        kinds[t] = "control" if place in meant or place[0] == place[1] else "unknown"
    return tuple(kinds)


def _sections(traced: TracedConversation, kinds: Sequence[TokenKind]) -> Iterator[tuple[int | None, int, int]]:
    """The turn and the tokens `[first, last)` of each section, in order; every token is in one."""
    offsets_T2 = traced.offsets_T2
    turns = traced.rendered.turns or _turns_of(traced.rendered)
    starts = np.array([turn.start for turn in turns], dtype=np.int64)
    piece_T = np.searchsorted(starts, offsets_T2[:, 0], "right") - 1
    turn_T = [
        turns[piece].turn
        if piece >= 0 and start < turns[piece].end and not (start == end and kind == "control")
        else None
        for piece, (start, end), kind in zip(piece_T.tolist(), offsets_T2.tolist(), kinds, strict=True)
    ]
    first = 0
    for turn, run in groupby(turn_T):
        last = first + len(list(run))
        yield turn, first, last
        first = last


def _turns_of(rendered: RenderedConversation) -> tuple[TurnSpan, ...]:
    """What is known of the turns where a format tells only which pieces the assistant wrote."""
    return tuple(TurnSpan(span.start, span.end, span.turn) for span in rendered.spans if span.end > span.start)


def _turn_notes(traced: TracedConversation, kept: EncodedConversation, turn: int) -> tuple[str, ...]:
    """Why an assistant turn is not trained, or not all of it."""
    if traced.conversation.messages[turn].role != "assistant":
        return ()
    pieces = np.flatnonzero(traced.encoded.turns_K == turn).tolist()
    spans = [span for span in traced.rendered.spans if span.turn == turn]
    if not pieces:
        return ("the format marks nothing of it as the assistant's",)
    if not any(span.weight for span in spans):
        return ("its weight is 0 in the data",)
    asked = {traced.encoded.is_end_K[k]: float(traced.encoded.weights_K[k]) for k in pieces}
    if not any(asked.values()):
        return ("only the last turn is trained (sft_supervise_turns: last)",)
    notes = []
    if asked.get(True) == 0:
        notes.append("its end is not trained (sft_supervise_end_of_turn: false)")
    if not kept.weights_K[pieces].any():
        notes.append("cut off, so nothing of it is trained")
    elif not any(span.end > span.start for span in spans if span.kind == "content"):
        notes.append("empty")
    return tuple(notes)


def _row_notes(
    traced: TracedConversation,
    kept: EncodedConversation,
    kinds: Sequence[TokenKind],
    sections: Sequence[SectionView],
    max_seq_length: int | None,
) -> tuple[str, ...]:
    """What there is to know about the row beside its tokens."""
    notes = []
    num_cut = len(traced.encoded.tokens_T) - len(kept.tokens_T)
    if num_cut and max_seq_length is not None:
        notes.append(
            f"longer than seq_length {max_seq_length:,}, which holds {max_seq_length + 1:,} tokens: {num_cut:,} are cut"
            " off here, as with sft_truncation: right (error stops at such a row, drop leaves it out)"
        )
    present = {section.turn for section in sections}
    absent = [turn for turn in range(len(traced.conversation.messages)) if turn not in present]
    if absent and traced.rendered.turns:
        notes.append(f"the format wrote nothing for {_count(len(absent), 'message')}: {_listed(absent)}")
    if not any(section.num_trained for section in sections):
        notes.append("nothing is trained, so the row is left out")
    if traced.encoded.num_splits:
        notes.append(f"cut at the edge of an assistant turn: {_count(traced.encoded.num_splits, 'token')}")
    if unknown := sum(kind == "unknown" for kind in kinds):
        notes.append(f"the tokenizer does not know the characters of {_count(unknown, 'token')}")
    reached_T = np.append(0, traced.offsets_T2[:, 1])
    starts_T = np.append(traced.offsets_T2[:, 0], len(traced.rendered.text))
    if lost := int((starts_T - reached_T).clip(min=0).sum()):
        notes.append(f"the tokenizer loses {_count(lost, 'character')}, which no token stands for")
    return tuple(notes)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _listed(turns: Sequence[int]) -> str:
    shown = ", ".join(str(turn) for turn in turns[:5])
    return f"turn {shown}" if len(turns) == 1 else f"turns {shown}{', ...' if len(turns) > 5 else ''}"
