# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations that training a model on some tokens needs, whatever is done besides.

A multiplication and an addition count as two. A matrix of N weights takes 2 N operations for each position in the
forward pass and twice as many in the backward pass, 6 N together (Kaplan et al. 2020, section 2.1; Chowdhery et al.
2022, "PaLM", appendix B, where the share of the peak rate is defined as MFU). Here only what is needed counts: padding,
recomputation, and norms do not; attention counts for the pairs of positions of which one may attend to the other,
inside each conversation of a pack, and not for the other half of the square; the output layer counts at targets, since
logits are computed nowhere else. So the share of the peak is never flattered, and is that of useful work.

With adapters the frozen matrices have no gradients of their own: 4 N instead of 6 N.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from primus.backends.megatron.planning.parameter_count import AdapterCount, HeadLayout, linear_layers
from primus.config.schema import ModelKeys

Num = TypeVar("Num", int, npt.NDArray[np.int64])

_MULTIPLY_AND_ADD = 2
# Forward; and backward to the inputs; and backward to the weights.
_FROZEN_PASSES = 2
_TRAINED_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class TrainingFlops:
    """Operations of the forward and the backward pass together."""

    per_position: int
    """For each position that is not padding: the linear layers."""
    per_pair: int
    """For each pair of a position and one that it attends to, itself included: attention."""
    per_target: int
    """For each position that is trained: the output layer."""

    def of(self, *, positions: int, pairs: int, targets: int) -> int:
        """Operations of some sequences.

        Args:
            positions: Their positions, padding not counted.
            pairs: Sum of n (n + 1) / 2 over their conversations of n positions; see `attention_pairs`.
            targets: Their positions that are trained.

        Returns:
            The operations.
        """
        return positions * self.per_position + pairs * self.per_pair + targets * self.per_target


def attention_pairs(num_positions: Num) -> Num:
    """Pairs of positions in a conversation, one of which may attend to the other.

    Args:
        num_positions: Positions of the conversation, or of each of several.

    Returns:
        Their number; a position attends to itself and to those before it.

    Examples:
        >>> attention_pairs(3)
        6
    """
    return num_positions * (num_positions + 1) // 2


def count_flops(model: ModelKeys, *, vocab_size: int, adapters: AdapterCount | None = None) -> TrainingFlops:
    """Count the operations of training.

    Args:
        model: The model's keys.
        vocab_size: Rows of the output layer that stand for a token.
        adapters: Weights of low-rank adapters, if these are trained and not the model.

    Returns:
        The operations, forward and backward.

    Examples:
        A layer with 4 * 8 * 8 weights in its attention and 3 * 8 * 16 in its MLP; the scores and the weighted values
        take 2 * 2 * 8 for each pair.

        >>> keys = ModelKeys(num_layers=1, hidden_size=8, ffn_hidden_size=16, num_attention_heads=2)
        >>> count_flops(keys, vocab_size=100)
        TrainingFlops(per_position=3840, per_pair=96, per_target=4800)
    """
    passes = _TRAINED_PASSES if adapters is None else _FROZEN_PASSES
    weights = model.num_layers * sum(layer.input * layer.output for layer in linear_layers(model).values())
    of_adapters = 0 if adapters is None else adapters.total
    per_pair = 2 * _MULTIPLY_AND_ADD * HeadLayout.of(model).query_width * model.num_layers
    return TrainingFlops(
        per_position=_MULTIPLY_AND_ADD * (passes * weights + _TRAINED_PASSES * of_adapters),
        # Both factors of both products have gradients, adapters or not.
        per_pair=_TRAINED_PASSES * per_pair,
        per_target=_MULTIPLY_AND_ADD * passes * model.hidden_size * vocab_size,
    )
