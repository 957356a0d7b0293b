# SPDX-License-Identifier: Apache-2.0
"""Who attends to whom in a micro-batch, worked out once for all layers.

The positions that a rank computes are cut into pieces, each of one conversation. The queries of a piece attend to the
keys of their conversation from its beginning to the piece's end, causally: the last query sees all of these keys, the
one before it all but the last. So a piece that is a whole conversation has as many keys as queries, and one that
begins in the middle of a conversation, as context parallelism makes them, has more.

Megatron hands `packed_seq_params` to its layers as it is given, also when a layer is recomputed, so that is what a plan
is for Megatron.

Shapes: S positions of a sequence on this rank, W positions of the whole sequence, B sequences, C conversations, K keys
that this rank's queries attend to, those of several pieces repeated.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from primus.backends.megatron.context_parallel import ContextRank, IntArray


@dataclass(kw_only=True, eq=False)
class AttentionPlan(PackedSeqParams):  # type: ignore[misc]
    """The pieces of a micro-batch, in the order of their queries: sequence by sequence, position by position."""

    query_lengths: list[int]
    """Queries of each piece, none of them 0."""
    key_lengths: list[int]
    """Keys of each piece; 0 for padding, which attends to nothing."""
    key_places_K: Tensor | None
    """Where the keys of all pieces stand among those of all context ranks joined, of which place `w * B + b` is that of
    position `w` of sequence `b` in the ranks' order; on the device. None if each piece's keys are those of its queries.
    """
    query_bounds: Tensor
    """Where the queries of each piece begin, and the last end: int32 on the device, one more than there are pieces."""
    key_bounds: Tensor
    """The same of the keys."""
    longest_query: int
    """Queries of the largest piece."""
    longest_key: int
    """Keys of the largest piece."""


def build_attention_plan(
    segments_C2: Tensor | None,
    *,
    num_sequences: int,
    width: int,
    context: ContextRank,
    device: torch.device,
    padding_attends: bool = False,
) -> AttentionPlan:
    """Cut a micro-batch into pieces.

    Args:
        segments_C2: Positions `[first, last)` of each conversation, in order; position `w` of sequence `b` is
            `b * W + w`. None if each sequence is one conversation.
        num_sequences: Sequences of the micro-batch.
        width: Positions of each whole sequence, W.
        context: Which of them this rank computes.
        device: Where the layers run.
        padding_attends: Treat what no conversation covers as conversations, for kernels that know no gaps.

    Returns:
        The plan.

    Raises:
        ValueError: If conversations overlap, or one leaves its sequence.

    Examples:
        A sequence of 8 positions: conversations of 5 and 2, and padding. Of two ranks the first has positions 0, 1, 6
        and 7.

        >>> cpu = torch.device("cpu")
        >>> segments_C2 = torch.tensor([[0, 5], [5, 7]])
        >>> first = ContextRank(rank=0, size=2)
        >>> plan = build_attention_plan(segments_C2, num_sequences=1, width=8, context=first, device=cpu)
        >>> plan.query_lengths, plan.key_lengths
        ([2, 1, 1], [2, 2, 0])
    """
    starts, is_padding = _spans(segments_C2, num_sequences=num_sequences, width=width)
    row_starts = np.arange(num_sequences) * width
    own_starts, own_ends = (
        np.add.outer(row_starts, edges).ravel() for edges in zip(*context.chunks(width), strict=True)
    )
    edges = np.unique(np.concatenate([starts, own_starts, own_ends, [num_sequences * width]]))
    firsts, lasts = edges[:-1], edges[1:]
    is_own = firsts < own_ends[np.searchsorted(own_starts, firsts, side="right") - 1]
    is_own &= firsts >= own_starts[0]
    firsts, lasts = firsts[is_own], lasts[is_own]
    spans = np.searchsorted(starts, firsts, side="right") - 1
    attends = np.full(len(spans), fill_value=True) if padding_attends else ~is_padding[spans]
    key_lengths = np.where(attends, lasts - starts[spans], 0)
    key_places_K = None
    if context.size > 1:
        key_places_K = _gathered_places(starts[spans], key_lengths, num_sequences, width=width, context=context)
    return AttentionPlan(
        qkv_format="sbhd",
        max_seqlen_q=width,
        max_seqlen_kv=width,
        query_lengths=(lasts - firsts).tolist(),
        key_lengths=key_lengths.tolist(),
        key_places_K=None if key_places_K is None else torch.from_numpy(key_places_K).to(device),
        query_bounds=_bounds(lasts - firsts, device),
        key_bounds=_bounds(key_lengths, device),
        longest_query=int((lasts - firsts).max()),
        longest_key=int(key_lengths.max()),
    )


def thd_params(plan: AttentionPlan) -> PackedSeqParams:
    """Say the plan in Transformer Engine's words, for layers that see all sequences of a micro-batch as one.

    Args:
        plan: A plan of whole sequences in which padding attends, since the lengths must add up to all positions.

    Returns:
        What Megatron's layers hand to Transformer Engine.
    """
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=plan.query_bounds,
        cu_seqlens_kv=plan.key_bounds,
        max_seqlen_q=plan.longest_query,
        max_seqlen_kv=plan.longest_key,
    )


def _spans(segments_C2: Tensor | None, *, num_sequences: int, width: int) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Where conversations and the padding between them begin, and which of them are padding; each in one sequence."""
    row_starts = np.arange(num_sequences, dtype=np.int64) * width
    if segments_C2 is None:
        return row_starts, np.zeros(num_sequences, dtype=np.bool_)
    firsts, lasts = segments_C2.numpy().astype(np.int64).T
    before = np.concatenate([[0], lasts[:-1]])
    is_wrong = (firsts < before) | (lasts < firsts) | (lasts > num_sequences * width)
    is_wrong |= (lasts > firsts) & (firsts // width != (lasts - 1) // width)
    if is_wrong.any():
        index = int(is_wrong.argmax())
        raise ValueError(
            f"a conversation from {firsts[index]} to {lasts[index]}, behind {before[index]}, of "
            f"{num_sequences} sequences of {width} positions"
        )
    is_used = lasts > firsts
    firsts, lasts = firsts[is_used], lasts[is_used]
    starts = np.unique(np.concatenate([firsts, lasts, row_starts]))
    starts = starts[starts < num_sequences * width]
    return starts, ~np.isin(starts, firsts)


def _gathered_places(
    firsts: IntArray, lengths: IntArray, num_sequences: int, *, width: int, context: ContextRank
) -> IntArray:
    skipped = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    places_K = np.arange(lengths.sum()) + np.repeat(firsts - skipped, lengths)
    rows_K, positions_K = np.divmod(places_K, width)
    gathered_K: IntArray = context.gathered_place_of(positions_K, width=width) * num_sequences + rows_K
    return gathered_K


def _bounds(lengths: IntArray, device: torch.device) -> Tensor:
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return torch.from_numpy(bounds).to(device)
