# SPDX-License-Identifier: Apache-2.0
"""Ways to compute the attention of a plan's pieces with PyTorch's own kernels, and which of them works here.

Shapes: P queries of all pieces, K keys of all pieces, N query heads, G key-value heads, D width of a head.
"""

from collections.abc import Callable
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from primus.backends.megatron.context_parallel import ContextRank
from primus.backends.megatron.model.attention_plan import AttentionPlan, build_attention_plan

# Entries of a mask, which are written for queries that do not begin with their keys. A longer piece is cut.
_MASK_ENTRIES = 1 << 22
# Of the norm of what float32 gives; bfloat16 rounds off 0.4 % of a number at most.
_LARGEST_ERROR = 0.02

VarlenAttention = Callable[..., Tensor]


class AttendPieces(Protocol):
    """A way to compute the attention of all pieces."""

    def __call__(
        self,
        query_PND: Tensor,
        key_KGD: Tensor,
        value_KGD: Tensor,
        plan: AttentionPlan,
        *,
        scale: float,
        dropout: float,
    ) -> Tensor:
        """Attend in each piece.

        Args:
            query_PND: Queries of all pieces.
            key_KGD: Keys of all pieces; those of padding are left out unless the plan has queries of padding attend,
                or says no places, in which case they are aligned with the queries.
            value_KGD: Aligned with the keys.
            plan: The pieces.
            scale: Factor of the scores.
            dropout: Probability with which a weight is dropped.

        Returns:
            Shape [P, N, D].
        """


def attend_one_by_one(
    query_PND: Tensor, key_KGD: Tensor, value_KGD: Tensor, plan: AttentionPlan, *, scale: float, dropout: float
) -> Tensor:
    """One `scaled_dot_product_attention` for each piece, on any device; see `AttendPieces`.

    It costs the sum of the squares of the lengths, and a call for each piece.
    """
    # Splitting once, and joining once, keeps the backward pass from writing a whole sequence per piece.
    key_lengths = plan.query_lengths if plan.key_places_K is None else plan.key_lengths
    queries, keys, values = (
        torch.split(tensor, lengths)
        for tensor, lengths in (
            (query_PND, plan.query_lengths),
            (key_KGD, key_lengths),
            (value_KGD, key_lengths),
        )
    )
    contexts = [
        _attend(query, key, value, scale=scale, dropout=dropout) if num_keys else torch.zeros_like(query)
        for query, key, value, num_keys in zip(queries, keys, values, plan.key_lengths, strict=True)
    ]
    if not any(plan.key_lengths):
        # Other ranks wait for the gradients of their keys, also where they are zero.
        contexts.append(query_PND[:0] + key_KGD[:0, :1] + value_KGD[:0, :1])
    return torch.cat(contexts)


def _attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float) -> Tensor:
    """The attention of one piece; the last query sees all keys."""
    query_1NSD, key_1GSD, value_1GSD = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
    num_before = key.size(0) - query.size(0)
    if num_before == 0 or query.size(0) == 1:
        return _fused(query_1NSD, key_1GSD, value_1GSD, None, is_causal=num_before == 0, scale=scale, dropout=dropout)
    num_at_once = max(1, _MASK_ENTRIES // key.size(0))
    parts = []
    for first in range(0, query.size(0), num_at_once):
        last = min(first + num_at_once, query.size(0))
        num_seen = num_before + last
        mask = torch.ones(last - first, num_seen, dtype=torch.bool, device=query.device).tril(num_before + first)
        parts.append(
            _fused(
                query_1NSD[:, :, first:last],
                key_1GSD[:, :, :num_seen],
                value_1GSD[:, :, :num_seen],
                mask,
                is_causal=False,
                scale=scale,
                dropout=dropout,
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _fused(
    query_1NSD: Tensor,
    key_1GSD: Tensor,
    value_1GSD: Tensor,
    mask: Tensor | None,
    *,
    is_causal: bool,
    scale: float,
    dropout: float,
) -> Tensor:
    context_1NSD = scaled_dot_product_attention(
        query_1NSD,
        key_1GSD,
        value_1GSD,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=query_1NSD.size(1) != key_1GSD.size(1),
    )
    return context_1NSD.squeeze(0).transpose(0, 1)


class AttendAtOnce:
    """One call of PyTorch's `varlen_attn` for all pieces, on a GPU; see `AttendPieces`.

    It has no dropout, and padding must attend.

    Args:
        kernel: What has the arguments of `torch.nn.attention.varlen.varlen_attn`.
    """

    def __init__(self, kernel: VarlenAttention) -> None:
        self._kernel = kernel

    def __call__(
        self,
        query_PND: Tensor,
        key_KGD: Tensor,
        value_KGD: Tensor,
        plan: AttentionPlan,
        *,
        scale: float,
        dropout: float,
    ) -> Tensor:
        """Attend in all pieces; see `AttendPieces`."""
        if dropout or not all(plan.key_lengths):
            raise ValueError(f"dropout is {dropout}, and {plan.key_lengths.count(0)} pieces attend to nothing, not 0")
        return self._kernel(
            query_PND,
            key_KGD,
            value_KGD,
            plan.query_bounds,
            plan.key_bounds,
            plan.longest_query,
            plan.longest_key,
            scale=scale,
            # Causal; where a piece has more keys than queries, the last query sees the last key.
            window_size=(-1, 0),
            enable_gqa=query_PND.size(1) != key_KGD.size(1),
        )


def find_varlen_attention() -> VarlenAttention | str:
    """PyTorch's `varlen_attn`, or why it is not there."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - new in PyTorch 2.10
    except ImportError:
        return f"PyTorch {torch.__version__} has no varlen_attn"
    return cast(VarlenAttention, varlen_attn)


def why_not_at_once(
    kernel: VarlenAttention,
    *,
    num_heads: int,
    num_groups: int,
    head_width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    """Try the kernel on heads like those of the model, and compare it and its gradients with the other way.

    Which devices, types and widths it can do depends on how PyTorch was built, and on the GPU.

    Args:
        kernel: As for `AttendAtOnce`.
        num_heads: Query heads.
        num_groups: Key-value heads.
        head_width: Width of a head.
        dtype: Of the activations.
        device: Where the layers run.

    Returns:
        None if it works, else what is wrong with it.
    """
    context = ContextRank(rank=0, size=2)
    segments_C2 = torch.tensor([[0, 10], [10, 16]])
    plan = build_attention_plan(
        segments_C2, num_sequences=1, width=16, context=context, device=device, padding_attends=True
    )
    rng = np.random.default_rng(0)
    shapes = [(sum(plan.query_lengths), num_heads), *[(sum(plan.key_lengths), num_groups)] * 2]
    heads = [torch.from_numpy(rng.standard_normal((*shape, head_width))).to(device, dtype) for shape in shapes]
    weights = torch.from_numpy(rng.standard_normal(heads[0].shape)).to(device, dtype)
    try:
        found = _outcome(AttendAtOnce(kernel), heads, weights, plan)
    except (RuntimeError, TypeError, ValueError) as exc:
        return f"varlen_attn fails here: {str(exc).splitlines()[0]}"
    expected = _outcome(attend_one_by_one, [tensor.float() for tensor in heads], weights.float(), plan)
    errors = [
        float((ours.float() - theirs).norm() / theirs.norm()) for ours, theirs in zip(found, expected, strict=True)
    ]
    if not max(errors) < _LARGEST_ERROR:
        return f"varlen_attn is off by {max(errors):.0%} here"
    return None


def _outcome(attend: AttendPieces, heads: list[Tensor], weights: Tensor, plan: AttentionPlan) -> list[Tensor]:
    """What comes out, and the gradients."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in heads]
    query_PND, key_KGD, value_KGD = leaves
    output = attend(query_PND, key_KGD, value_KGD, plan, scale=0.3, dropout=0.0)
    return [output.detach(), *torch.autograd.grad(output, leaves, weights)]
