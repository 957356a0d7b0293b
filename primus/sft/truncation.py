# SPDX-License-Identifier: Apache-2.0
"""What happens to a conversation that is longer than a training sequence.

Whatever is kept, a turn is trained whole or not at all, and a sequence ends with a turn that is trained: a decoder
looks back only, so what stands behind the last target changes no loss.

T: tokens of a conversation. K: token spans of its assistant turns.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from primus.chat.messages import Conversation
from primus.errors import ConversationError
from primus.sft.encoding import EncodedConversation, TracedConversation
from primus.sft.masking import IntArray

Truncation = Literal["error", "drop", "right", "keep_last_turns", "window"]
"""Refuse the conversation, leave it out, keep its beginning, keep its end, or make several sequences of it."""


@dataclass(frozen=True, slots=True)
class TruncatedConversation:
    """What is kept of a conversation.

    Attributes:
        sequences: Training sequences in the order of their first targets, each with at least one. No turn has targets
            in two of them. `turns_K` counts the messages of the whole conversation.
        num_untrained_turns: Turns that have targets in the whole conversation, and in no sequence.
    """

    sequences: tuple[EncodedConversation, ...]
    num_untrained_turns: int = 0


def truncate(
    traced: TracedConversation,
    *,
    policy: Truncation,
    max_tokens: int,
    encode: Callable[[Conversation], TracedConversation],
) -> TruncatedConversation:
    """Make a conversation fit, and say how many turns that costs.

    `right` keeps the beginning of the text up to the end of the last turn that is trained.

    The other two drop whole messages and render what is left anew, so what is trained is what the format writes for
    that conversation. They keep the tools and the system messages in front, and then a run of messages that begins with
    the conversation or with an exchange: a user's message behind the assistant or a tool, with the system messages
    right in front of it. A run that leaves a tool's answer without its call is none.

    - `keep_last_turns` keeps the longest run that fits of those that end with the last turn that has targets.
    - `window` makes sequences until each turn with targets is trained in one of them. A sequence begins with the
      exchange of the first turn that is not trained yet and goes on as long as it fits; what room is then left is
      given to earlier exchanges. Turns that an earlier sequence trains are context.

    If the exchange of a turn is too long, a run may also begin with a later user's message in it, as where several
    stand in a row. A turn for which no run fits, or is accepted by the format, is untrained.

    Args:
        traced: The whole conversation.
        policy: `right`, `keep_last_turns` or `window`.
        max_tokens: Tokens that a sequence may have, at least 1.
        encode: Renders and tokenizes a conversation as the whole one was. A `ConversationError` says that the format
            has no form for it.

    Returns:
        The conversation itself if it is short enough, else what is kept of it. No sequence is longer than `max_tokens`.

    Raises:
        ValueError: If the policy is `error` or `drop`, which keep nothing.
    """
    whole = traced.encoded
    if policy in {"error", "drop"}:
        raise ValueError(f"policy is {policy!r}, which keeps nothing of a long conversation")
    trained = turns_with_targets(whole).tolist()
    if len(whole.tokens_T) <= max_tokens:
        return TruncatedConversation((whole,) if trained else ())
    if policy == "right":
        kept = truncate_right(whole, max_tokens=max_tokens)
        return TruncatedConversation((kept,) if kept.num_targets else (), kept.num_untrained_turns)
    runs = _Runs(traced, max_tokens=max_tokens, encode=encode)
    found = _windows(runs, trained) if policy == "window" else _last_run(runs, trained)
    sequences = tuple(runs.sequence(run, turns) for run, turns in found)
    num_trained = sum(len(turns_with_targets(sequence)) for sequence in sequences)
    return TruncatedConversation(sequences, len(trained) - num_trained)


def turns_with_targets(encoded: EncodedConversation) -> IntArray:
    """The messages of which at least one token is trained; the first token of a sequence never is.

    Args:
        encoded: A conversation.

    Returns:
        Their indices, ascending.
    """
    num_tokens_K = encoded.token_spans_K2[:, 1] - np.maximum(encoded.token_spans_K2[:, 0], 1)
    return np.unique(encoded.turns_K[(encoded.weights_K > 0) & (num_tokens_K > 0)])


def truncate_right(conversation: EncodedConversation, *, max_tokens: int) -> EncodedConversation:
    """Keep the beginning of a conversation, up to the end of the last turn with targets that is whole.

    A turn that lost part of its content or of its end of turn would teach the model to break off there, so it is not
    trained. Of what would stand behind the last trained turn nothing is kept, be it a header or half an answer.

    Args:
        conversation: The conversation.
        max_tokens: Tokens that may be kept, at least 1.

    Returns:
        The conversation itself if it is short enough. Otherwise one of at most `max_tokens` tokens, whose
        `num_untrained_turns` counts the turns that had targets before and have none now. The pieces of these have
        weight 0, and no tokens where nothing of them is kept. If nothing is trained, the first `max_tokens` are there.

    Examples:
        Tokens 1 to 2 and 4 to 6 are two turns; the second one does not fit, and with it goes token 3, its header.

        >>> whole = EncodedConversation(np.arange(7), np.array([[1, 3], [4, 6]]), turns_K=np.array([1, 3]),
        ...     is_end_K=np.array([False, False]), weights_K=np.float32([1, 1]), origin="a:1")
        >>> cut = truncate_right(whole, max_tokens=5)
        >>> cut.tokens_T.tolist(), cut.token_spans_K2.tolist(), cut.weights_K.tolist(), cut.num_untrained_turns
        ([0, 1, 2], [[1, 3], [3, 3]], [1.0, 0.0], 1)
    """
    if len(conversation.tokens_T) <= max_tokens:
        return conversation
    ends_K = conversation.token_spans_K2[:, 1]
    trained = turns_with_targets(conversation)
    whole = np.setdiff1d(trained, conversation.turns_K[ends_K > max_tokens])
    is_whole_K = np.isin(conversation.turns_K, whole)
    num_kept = int(ends_K[is_whole_K].max()) if len(whole) else max_tokens
    return replace(
        conversation,
        tokens_T=conversation.tokens_T[:num_kept],
        token_spans_K2=conversation.token_spans_K2.clip(max=num_kept),
        weights_K=np.where(is_whole_K, conversation.weights_K, np.float32(0)),
        is_truncated=True,
        num_untrained_turns=len(trained) - len(whole),
    )


Run = tuple[int, int]
"""Messages `[first, last)` behind the system messages in front."""


class _Runs:
    """Runs of a conversation's messages, each behind the system messages in front, and how long they get.

    A run is rendered only when it matters how long it is exactly; until then its length is estimated from the tokens
    that each message has in the whole conversation.
    """

    def __init__(
        self,
        traced: TracedConversation,
        *,
        max_tokens: int,
        encode: Callable[[Conversation], TracedConversation],
    ) -> None:
        self._conversation = traced.conversation
        self._max_tokens = max_tokens
        self._encode = encode
        self._encoded: dict[Run, EncodedConversation | None] = {}
        roles = [message.role for message in traced.conversation.messages]
        self.first = next(i for i, role in enumerate(roles) if role != "system")
        self.exchanges = [self.first, *_exchanges(roles, self.first)]
        self.questions = [i for i in range(self.first, len(roles)) if roles[i] == "user" and _is_start(roles, i)]
        tokens = _tokens_of_messages(traced)
        self._tokens_before: list[int] = np.concatenate([[0], np.cumsum(tokens)]).tolist()
        self._num_other = len(traced.encoded.tokens_T) - int(tokens[self.first :].sum())

    def longest(self, runs: Sequence[Run]) -> Run | None:
        """The last of runs that fits, of runs that get longer; None if none does.

        Runs of which the estimate, corrected by the last one that was rendered, says that they do not fit are not
        rendered, unless it says so of all. Where the format refuses a run, shorter ones are tried in growing steps.
        """
        best: int | None = None
        low, high, error, step = 0, len(runs), 0, 1
        guess: int | None = None
        while low < high:
            if guess is None:
                guess = bisect_right(runs, self._max_tokens - error, low, high, key=self._estimate) - 1
                if guess < low:
                    if best is not None:
                        break
                    guess = low
            encoded = self._render(runs[guess])
            if encoded is None:
                high = guess
                guess = max(low, guess - step) if high > low else None
                step *= 2
                continue
            error = len(encoded.tokens_T) - self._estimate(runs[guess])
            if len(encoded.tokens_T) <= self._max_tokens:
                best, low = guess, guess + 1
            else:
                high = guess
            guess, step = None, 1
        return None if best is None else runs[best]

    def is_refused(self, run: Run) -> bool:
        """Whether the format has no form for a run."""
        return self._render(run) is None

    def trained_in(self, run: Run, turns: Sequence[int]) -> list[int]:
        """Those of turns that have targets in a run that fits."""
        found: list[int] = turns_with_targets(self.sequence(run, turns)).tolist()
        return found

    def sequence(self, run: Run, turns: Sequence[int]) -> EncodedConversation:
        """A run that fits as a training sequence in which only some turns are trained."""
        encoded = self._render(run)
        assert encoded is not None, "a run that fits was rendered"
        turns_K = encoded.turns_K + (run[0] - self.first)
        weights_K = np.where(np.isin(turns_K, turns), encoded.weights_K, np.float32(0))
        return replace(encoded, turns_K=turns_K, weights_K=weights_K, is_truncated=True)

    def _render(self, run: Run) -> EncodedConversation | None:
        if run not in self._encoded:
            messages = self._conversation.messages
            kept = (*messages[: self.first], *messages[slice(*run)])
            try:
                self._encoded[run] = self._encode(replace(self._conversation, messages=kept)).encoded
            except ConversationError:
                self._encoded[run] = None
        return self._encoded[run]

    def _estimate(self, run: Run) -> int:
        return self._num_other + self._tokens_before[run[1]] - self._tokens_before[run[0]]


def _exchanges(roles: Sequence[str], first: int) -> list[int]:
    """Where exchanges begin, behind the first message of all: with a user's message, and system messages before it."""
    starts = []
    for i in range(first + 1, len(roles)):
        if roles[i - 1] in {"assistant", "tool"} and roles[i] in {"user", "system"} and _is_start(roles, i):
            block = next((k for k in range(i, len(roles)) if roles[k] in {"assistant", "tool"}), len(roles))
            if "user" in roles[i:block]:
                starts.append(i)
    return starts


def _is_start(roles: Sequence[str], start: int) -> bool:
    """Whether no tool's answer behind a place belongs to a call before it."""
    return next((role for role in roles[start:] if role in {"assistant", "tool"}), None) != "tool"


def _tokens_of_messages(traced: TracedConversation) -> IntArray:
    """About how many tokens stand for each message: those that begin in what the format wrote for it."""
    num_tokens = np.zeros(len(traced.conversation.messages), dtype=np.int64)
    pieces = traced.rendered.turns
    edges = np.array([(piece.start, piece.end) for piece in pieces], dtype=np.int64).reshape(-1, 2)
    places = np.searchsorted(traced.offsets_T2[:, 0], edges)
    np.add.at(num_tokens, [piece.turn for piece in pieces], places[:, 1] - places[:, 0])
    return num_tokens


def _last_run(runs: _Runs, trained: Sequence[int]) -> list[tuple[Run, list[int]]]:
    """The longest run that ends with the last trained turn, and what is trained in it."""
    if not trained:
        return []
    end = trained[-1] + 1
    starts = [start for start in runs.exchanges if start < end]
    run = runs.longest([(start, end) for start in reversed(starts)])
    if run is None:
        run = runs.longest([(start, end) for start in reversed(runs.questions) if starts[-1] < start < end])
    if run is None:
        return []
    kept = runs.trained_in(run, [turn for turn in trained if turn >= run[0]])
    return [(run, kept)] if kept else []


def _windows(runs: _Runs, trained: Sequence[int]) -> list[tuple[Run, list[int]]]:
    """Runs that train each turn once, and what is trained in each."""
    windows: list[tuple[Run, list[int]]] = []
    rest = list(trained)
    while rest:
        run = _window(runs, rest)
        if run is None:
            rest = rest[1:]
            continue
        kept = runs.trained_in(run, [turn for turn in rest if turn < run[1]])
        if kept:
            windows.append((run, kept))
        # What a template does not write in this run it need not write in others, so it is not asked for again.
        rest = [turn for turn in rest if turn >= run[1]]
    return windows


def _window(runs: _Runs, rest: Sequence[int]) -> Run | None:
    """The run for the first of the turns that are left."""
    ends = [turn + 1 for turn in rest]
    exchange = bisect_right(runs.exchanges, rest[0]) - 1
    start = runs.exchanges[exchange]
    run = runs.longest([(start, end) for end in ends])
    if run is None and runs.is_refused((start, ends[0])):
        # Formats that want a conversation to begin in a certain way may still take one that begins earlier.
        run = runs.longest([(earlier, ends[0]) for earlier in reversed(runs.exchanges[:exchange])])
    if run is None:
        later = [question for question in runs.questions if start < question <= rest[0]]
        if later:
            run = runs.longest([(later[-1], end) for end in ends])
            run = run and runs.longest([(question, run[1]) for question in reversed(later)])
        return run
    earlier = [before for before in reversed(runs.exchanges) if before <= run[0]]
    return runs.longest([(before, run[1]) for before in earlier])
