# SPDX-License-Identifier: Apache-2.0
"""From character spans to token masks, and from token masks to labels and loss mask: the only shift in the project.

T: tokens of a conversation. S: positions of a training sequence. B: training sequences of a batch, P = B * S their
positions one behind another. C: conversations in them. K: spans. N: targets.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from primus.errors import TokenizerError
from primus.sft.formatters import CharSpan

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class Targets(NamedTuple):
    """One training sequence, next-token aligned.

    Attributes:
        input_ids_S: What the model reads.
        labels_S: What it should say next at each position.
        loss_mask_S: Factor of the loss at each position, aligned with `labels_S`; 0 where there is no target.
    """

    input_ids_S: IntArray
    labels_S: IntArray
    loss_mask_S: FloatArray


class PackedTargets(NamedTuple):
    """Training sequences with conversations behind one another, next-token aligned.

    Attributes:
        input_ids_BS: What the model reads.
        labels_BS: What it should say next at each position.
        loss_mask_BS: Factor of the loss at each position, aligned with `labels_BS`; 0 where there is no target.
        position_ids_BS: Position in the conversation; each begins at 0, and padding goes on counting.
        segments_C2: Positions `[first, last)` of each conversation, in order; position `s` of sequence `b` is
            `b * S + s`. What no conversation covers is padding.
        groups_N: The group of each target, in the order of the targets' positions: `groups_N[n]` is that of the n-th
            position at which `loss_mask_BS` is not 0.
    """

    input_ids_BS: IntArray
    labels_BS: IntArray
    loss_mask_BS: FloatArray
    position_ids_BS: IntArray
    segments_C2: Int32Array
    groups_N: Int32Array


def token_spans(offsets_T2: IntArray, spans: Sequence[CharSpan]) -> IntArray:
    """The tokens of each span, found by binary search.

    A token belongs to a span if all of its characters do. A token without characters (a dummy prefix) belongs to the
    span that it stands in or in front of.

    Args:
        offsets_T2: Characters `[start, end)` of each token; starts and ends never decrease.
        spans: Disjoint spans over the same text, in order.

    Returns:
        Tokens `[first, last)` of each span, shape [K, 2]; an empty range for a span without tokens.

    Raises:
        TokenizerError: If a token crosses the edge of a span. `SFTTokenizer.encode` cuts such tokens.

    Examples:
        "Q: hi A: yes" with a token per word and the answer at characters 9 to 12:

        >>> offsets_T2 = np.array([[0, 2], [2, 5], [5, 8], [8, 9], [9, 12]])
        >>> token_spans(offsets_T2, [CharSpan(9, 12, kind="content", turn=1)]).tolist()
        [[4, 5]]
    """
    starts_T, ends_T = offsets_T2[:, 0], offsets_T2[:, 1]
    start_K = np.array([span.start for span in spans], dtype=np.int64)
    end_K = np.array([span.end for span in spans], dtype=np.int64)
    first_K = np.searchsorted(starts_T, start_K)
    last_K = np.maximum(np.searchsorted(starts_T, end_K), first_K)
    if len(starts_T):
        reach_K = np.where(last_K > first_K, ends_T[last_K - 1], 0)
        from_left_K = np.where(first_K > 0, ends_T[first_K - 1], 0)
        for k in np.flatnonzero((reach_K > end_K) | (from_left_K > start_K)).tolist():
            edge = int(start_K[k]) if from_left_K[k] > start_K[k] else int(end_K[k])
            raise TokenizerError(
                f"turn {spans[k].turn}: a token crosses the edge of a span at character {edge}; encode the text with"
                " its"
                " spans, so that tokens are cut there"
            )
    return np.stack([first_K, last_K], axis=1)


def assistant_mask(token_spans_K2: IntArray, num_tokens: int) -> BoolArray:
    """Mark the tokens that the assistant wrote.

    The mask is aligned with the tokens: entry `t` says that the assistant wrote token `t`. It is not a loss mask;
    `packed_targets` makes that.

    Args:
        token_spans_K2: Tokens `[first, last)` of each span.
        num_tokens: Tokens of the conversation, T.

    Returns:
        Shape [T].

    Examples:
        >>> assistant_mask(np.array([[1, 3]]), 4).tolist()
        [False, True, True, False]
    """
    return token_weights(token_spans_K2, np.ones(len(token_spans_K2), dtype=np.float32), num_tokens) > 0


def token_weights(token_spans_K2: IntArray, weights_K: FloatArray, num_tokens: int) -> FloatArray:
    """The loss weight of each token: that of its span, 0 outside of all spans.

    Args:
        token_spans_K2: Tokens `[first, last)` of each span, disjoint.
        weights_K: Weight of each span.
        num_tokens: Tokens of the conversation, T.

    Returns:
        Shape [T], aligned with the tokens.

    Examples:
        >>> token_weights(np.array([[1, 3], [4, 5]]), np.array([1.0, 0.5], dtype=np.float32), 6).tolist()
        [0.0, 1.0, 1.0, 0.0, 0.5, 0.0]
    """
    weights_T = np.zeros(num_tokens, dtype=np.float32)
    for (first, last), weight in zip(token_spans_K2.tolist(), weights_K.tolist(), strict=True):
        weights_T[first:last] = weight
    return weights_T


def next_token_targets(tokens_T: IntArray, weights_T: FloatArray, *, length: int, pad_id: int) -> Targets:
    """The targets of one conversation alone in a training sequence: `packed_targets` for a weight of each token.

    Args:
        tokens_T: The tokens of one conversation, at least one.
        weights_T: The loss weight of each token, aligned with the tokens.
        length: Positions of the sequence, S.
        pad_id: Fills the positions behind the conversation.

    Returns:
        Arrays of shape [S]. The last token of the conversation is a label and never an input.

    Raises:
        ValueError: If the conversation has more than `length + 1` tokens, or the arrays differ in length.

    Examples:
        Token 7 is trained; it is predicted from position 1, where token 6 is read.

        >>> targets = next_token_targets(np.array([5, 6, 7]), np.float32([0, 0, 1]), length=4, pad_id=0)
        >>> targets.input_ids_S.tolist(), targets.labels_S.tolist(), targets.loss_mask_S.tolist()
        ([5, 6, 0, 0], [6, 7, 0, 0], [0.0, 1.0, 0.0, 0.0])
    """
    if len(weights_T) != len(tokens_T) or not 0 < len(tokens_T) <= length + 1:
        raise ValueError(
            f"{len(tokens_T)} tokens and {len(weights_T)} weights do not fit a sequence of {length} positions"
        )
    trained_K = np.flatnonzero(weights_T)
    targets = packed_targets(
        [tokens_T],
        places=[0],
        token_spans_K2=np.stack([trained_K, trained_K + 1], axis=1),
        weights_K=np.asarray(weights_T, dtype=np.float32)[trained_K],
        num_spans=[len(trained_K)],
        num_rows=1,
        length=length,
        pad_id=pad_id,
    )
    return Targets(targets.input_ids_BS[0], targets.labels_BS[0], targets.loss_mask_BS[0])


def packed_targets(
    tokens: Sequence[npt.NDArray[np.signedinteger]],
    *,
    places: Sequence[int],
    token_spans_K2: npt.NDArray[np.signedinteger],
    weights_K: FloatArray,
    num_spans: Sequence[int],
    num_rows: int,
    length: int,
    pad_id: int,
    groups_K: npt.NDArray[np.signedinteger] | None = None,
) -> PackedTargets:
    """Shift tokens and weights together: `labels[s] = tokens[s + 1]`, `loss_mask[s] = weights[s + 1]`.

    Args:
        tokens: The tokens of each conversation, at least one. A conversation of T tokens takes T - 1 positions: its
            last token is a label and never an input.
        places: Where each conversation begins, ascending; position `s` of sequence `b` is `b * S + s`.
        token_spans_K2: Tokens `[first, last)` of the conversations' spans, one conversation behind another; each
            counts from its own first token, and its spans are disjoint and in order.
        weights_K: The loss weight of each span's tokens. The first token of a conversation is never a target, since
            nothing predicts it.
        num_spans: Spans of each conversation.
        num_rows: Training sequences, B.
        length: Positions of each, S.
        pad_id: Fills the positions that no conversation covers. They are masked because of where they are: a target
            that equals `pad_id` stays a target.
        groups_K: A number for each span, which its targets keep; None gives 0 to all.

    Returns:
        The training sequences.

    Raises:
        ValueError: If conversations overlap or do not fit in one sequence, or if spans overlap.

    Examples:
        Two conversations of three tokens; the last token of the first is trained, and both others of the second.

        >>> targets = packed_targets(
        ...     [np.array([5, 6, 7]), np.array([5, 8, 9])], places=[0, 2], num_spans=[1, 1],
        ...     token_spans_K2=np.array([[2, 3], [1, 3]]), weights_K=np.float32([1, 0.5]),
        ...     num_rows=1, length=5, pad_id=0, groups_K=np.array([7, 9]))
        >>> targets.input_ids_BS.tolist(), targets.labels_BS.tolist()
        ([[5, 6, 5, 8, 0]], [[6, 7, 8, 9, 0]])
        >>> targets.loss_mask_BS.tolist(), targets.position_ids_BS.tolist(), targets.segments_C2.tolist()
        ([[0.0, 1.0, 0.5, 0.5, 0.0]], [[0, 1, 0, 1, 2]], [[0, 2], [2, 4]])
        >>> targets.groups_N.tolist()
        [7, 9, 9]
    """
    num_places = num_rows * length
    input_ids_P, labels_P, position_ids_P = (np.empty(num_places, dtype=np.int64) for _ in range(3))
    counted = _counted(length)
    segments: list[tuple[int, int]] = []
    covered = start = 0
    # A few slices for each conversation: every position is written once, and nothing else as long as a batch is.
    for tokens_T, first in zip([*tokens, None], [*places, num_places], strict=True):
        while covered < first:
            # Padding, up to the conversation or the end of the sequence.
            padded = min((covered // length + 1) * length, first)
            input_ids_P[covered:padded] = labels_P[covered:padded] = pad_id
            position_ids_P[covered:padded] = counted[covered - start : padded - start]
            covered = padded
            start = start if padded % length else padded
        if tokens_T is None:
            break
        start, last = first, first + len(tokens_T) - 1
        if not covered <= first <= last <= min((first // max(length, 1) + 1) * length, num_places):
            raise ValueError(
                f"{last - first} positions from {first} on, behind {covered}, do not fit in {num_rows} x {length}"
            )
        input_ids_P[first:last] = tokens_T[:-1]
        labels_P[first:last] = tokens_T[1:]
        position_ids_P[first:last] = counted[: last - first]
        segments.append((first, last))
        covered = last
        start = start if last % max(length, 1) else last
    # A target stands one position before its token, and the first token of a conversation has none.
    edges_K2 = np.maximum(token_spans_K2, 1) + (np.repeat(np.array(places, dtype=np.int64), num_spans)[:, None] - 1)
    return PackedTargets(
        input_ids_BS=input_ids_P.reshape(num_rows, length),
        labels_BS=labels_P.reshape(num_rows, length),
        loss_mask_BS=_weights_of_runs(edges_K2, weights_K, num_places=num_places).reshape(num_rows, length),
        position_ids_BS=position_ids_P.reshape(num_rows, length),
        segments_C2=np.array(segments, dtype=np.int32).reshape(-1, 2),
        groups_N=_groups_of_targets(edges_K2, weights_K, groups_K),
    )


@lru_cache(maxsize=4)
def _counted(num: int) -> IntArray:
    """0, 1, 2, ... up to a number, made once."""
    return np.arange(num)


def _weights_of_runs(edges_K2: IntArray, weights_K: FloatArray, *, num_places: int) -> FloatArray:
    """Weights from runs `[first, last)`, and 0 between them; `np.repeat` refuses runs that overlap."""
    edges = np.zeros(edges_K2.size + 2, dtype=np.int64)
    edges[1:-1] = edges_K2.ravel()
    edges[-1] = num_places
    values = np.zeros(edges_K2.size + 1, dtype=np.float32)
    values[1::2] = weights_K
    return np.repeat(values, edges[1:] - edges[:-1])


def _groups_of_targets(
    edges_K2: IntArray, weights_K: FloatArray, groups_K: npt.NDArray[np.signedinteger] | None
) -> Int32Array:
    """The group of each position of the runs `[first, last)` that have a weight."""
    lengths_K = np.where(weights_K != 0, edges_K2[:, 1] - edges_K2[:, 0], 0)
    values_K = np.zeros(len(weights_K), dtype=np.int32) if groups_K is None else groups_K.astype(np.int32)
    return np.repeat(values_K, lengths_K)
