# SPDX-License-Identifier: Apache-2.0
"""From character spans to token masks, and from token masks to labels and loss mask: the only shift in the project.

T: tokens of a conversation. S: positions of a training sequence. K: spans.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from primus.errors import TokenizerError
from primus.sft.formatters import CharSpan

IntArray = npt.NDArray[np.int64]
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
    `next_token_targets` makes that.

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
    """Shift tokens and weights together: `labels[s] = tokens[s + 1]`, `loss_mask[s] = weights[s + 1]`.

    Args:
        tokens_T: The tokens of one conversation, at least one.
        weights_T: The loss weight of each token, aligned with the tokens.
        length: Positions of the sequence, S.
        pad_id: Fills the positions behind the conversation. They are masked because of where they are: a target that
            equals `pad_id` stays a target.

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
    num_positions = len(tokens_T) - 1
    if len(weights_T) != len(tokens_T) or not 0 <= num_positions <= length:
        raise ValueError(
            f"{len(tokens_T)} tokens and {len(weights_T)} weights do not fit a sequence of {length} positions"
        )
    input_ids_S = np.full(length, pad_id, dtype=np.int64)
    labels_S = np.full(length, pad_id, dtype=np.int64)
    loss_mask_S = np.zeros(length, dtype=np.float32)
    input_ids_S[:num_positions] = tokens_T[:-1]
    labels_S[:num_positions] = tokens_T[1:]
    loss_mask_S[:num_positions] = weights_T[1:]
    return Targets(input_ids_S, labels_S, loss_mask_S)
