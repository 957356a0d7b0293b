# SPDX-License-Identifier: Apache-2.0
"""The tokens of a conversation against what a server sends for each of its answers."""

from collections.abc import Iterator, Sequence

import numpy as np

from primus.chat.messages import Message
from primus.errors import ConversationError, RenderError
from primus.sft.encoding import TracedConversation, special_ids
from primus.sft.formatters import CharSpan
from primus.sft.proof.report import shortened
from primus.sft.recipe import Encoder

# Different ends of prompts that are remembered: a format has one, or a few.
_MOST_TAILS = 4096

Markers = Sequence[tuple[int, int]]


class PromptCheck:
    """Compares training sequences with prompts.

    Args:
        encoder: What encodes conversations.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._tokenizer = encoder.tokenizer
        self._formatter = encoder.formatter
        self._front, _ = special_ids(encoder.tokenizer, add_bos=encoder.add_bos, add_eos=False)
        self._tails: dict[tuple[str, int], list[int]] = {}

    def compare(self, trace: TracedConversation) -> Iterator[str]:
        """Compare the prompt of each trained turn with the beginning of the training sequence.

        Args:
            trace: The conversation.

        Yields:
            The turns whose prompt is another one, or can't be asked for.
        """
        asked: set[int] = set()
        encoded, rendered = trace.encoded, trace.rendered
        pieces = zip(rendered.spans, encoded.token_spans_K2.tolist(), encoded.weights_K.tolist(), strict=True)
        for span, (first, _), weight in pieces:
            if not weight > 0 or span.turn in asked:
                continue
            asked.add(span.turn)
            try:
                text, markers = self._prompt(trace, span)
            except RenderError as exc:
                yield f"turn {span.turn}: a server can't ask for this turn ({exc}); give it weight 0, or another format"
                continue
            if rendered.text[: span.start] != text:
                same = _common_prefix(rendered.text, text)
                yield (
                    f"turn {span.turn}: a server's prompt reads {shortened(text[same:])} where the training sequence"
                    f" reads {shortened(rendered.text[same : span.start])} (character {same}); the format writes what"
                    " comes before another way once more follows, so set sft_supervise_turns: last, or use another"
                    " format"
                )
                continue
            yield from self._compare_tokens(trace, span.turn, text, markers, first)

    def _prompt(self, trace: TracedConversation, span: CharSpan) -> tuple[str, Markers]:
        # A plain answer is known to be what its message says, so where it begins is known, and the text before it is
        # the prompt. Of other answers the beginning is compared with a prompt that is made for itself.
        if self._formatter.is_turn_by_turn and _is_plain(trace.conversation.messages[span.turn]):
            return trace.rendered.text[: span.start], trace.rendered.markers_before(span.start)
        prompt = self._formatter.render_prompt(trace.conversation, span.turn)
        return prompt.text, prompt.markers

    def _compare_tokens(
        self, trace: TracedConversation, turn: int, text: str, markers: Markers, first: int
    ) -> Iterator[str]:
        try:
            where = self._first_difference(trace, text, markers, first)
        except ConversationError as exc:
            yield f"turn {turn}: a server can't encode its prompt ({exc}); use another tokenizer"
            return
        if where is None:
            return
        word = text[slice(*markers[-1])] if markers else ""
        if word in self._tokenizer.control_tokens:
            why = "the edge of an earlier answer merges with its header or its end, so strip it"
        else:
            why = "the format's markers are no single tokens and merge with what they touch, so use another tokenizer"
        yield (
            f"turn {turn}: the tokens of a server's prompt differ from the training sequence from token {where} on;"
            f" {why}"
        )

    def _first_difference(
        self,
        trace: TracedConversation,
        text: str,
        markers: Markers,
        first: int,
    ) -> int | None:
        """The first token in which a prompt differs from the tokens before `first`, or None."""
        tokens_T = trace.encoded.tokens_T
        marker = markers[-1] if markers else None
        word = text[slice(*marker)] if marker else ""
        if marker and trace.encoded.num_splits == 0 and self._tokenizer.cuts_cleanly(word):
            # Up to its last control token a prompt has the tokens of every text that goes on from there.
            at = int(np.searchsorted(trace.offsets_T2[:first, 0], marker[0], "right")) - 1
            tail = self._tail(text[marker[0] :], len(word))
            actual = tokens_T[at + 1 : first].tolist()
            return None if actual == tail else at + 1 + _common_prefix(actual, tail)
        ids = [*self._front, *self._tokenizer.encode(text, markers=markers).ids_T.tolist()]
        actual = tokens_T[:first].tolist()
        return None if actual == ids else _common_prefix(actual, ids)

    def _tail(self, text: str, length: int) -> list[int]:
        """The ids of a text behind the control token of so many characters that it begins with."""
        if (text, length) not in self._tails:
            if len(self._tails) >= _MOST_TAILS:
                self._tails.clear()
            self._tails[text, length] = self._tokenizer.encode(text, markers=[(0, length)]).ids_T[1:].tolist()
        return self._tails[text, length]


def _is_plain(message: Message) -> bool:
    return not (message.tool_calls or message.reasoning or "</think>" in message.content)


def _common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """Items that two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
