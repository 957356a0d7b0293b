# SPDX-License-Identifier: Apache-2.0
"""From the order of the sequences to the micro-batches of one data-parallel rank.

Shapes: S positions, B sequences of a micro-batch, G sequences of a global batch, N targets of a micro-batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]


class SequenceDataset(Protocol):
    """What the trainer needs of a data set; `SFTDataset` has it.

    Attributes:
        num_positions_N: Positions of each sequence that are not padding.
        num_targets_N: Positions of each sequence that are trained.
        max_seq_length: Length of the tensors of a sequence.
        fingerprint: Hash of everything that is trained.
    """

    num_positions_N: IntArray
    num_targets_N: IntArray
    max_seq_length: int
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Tensor]: ...

    def origin(self, index: int) -> str:
        """Where a sequence came from, as `file:line`."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one forward pass reads."""

    input_ids_BS: Tensor
    """Tokens, cropped to the longest sequence."""
    position_ids_BS: Tensor
    """Position of each token in its sequence."""
    target_positions_N: Tensor
    """Where the targets are: position `s` of sequence `b` is `s * B + b`."""
    labels_N: Tensor
    """The token to predict at each target."""
    weights_N: Tensor
    """How much each target's loss counts."""


def rank_micro_batches(
    batch_G: IntArray, *, micro_batch_size: int, data_parallel_rank: int, data_parallel_size: int
) -> list[IntArray]:
    """Take one rank's micro-batches out of a global batch.

    All ranks together take every sequence once. The micro-batches are the same for any number of ranks; only who
    computes them changes.

    Args:
        batch_G: Indices of the sequences; G is a multiple of `micro_batch_size * data_parallel_size`.
        micro_batch_size: Sequences of one forward pass.
        data_parallel_rank: This rank's number.
        data_parallel_size: How many ranks there are.

    Returns:
        Indices of the sequences of each micro-batch, shape [B].

    Examples:
        >>> batch = np.array([7, 3, 5, 1, 0, 2, 6, 4])
        >>> [b.tolist() for b in rank_micro_batches(
        ...     batch, micro_batch_size=2, data_parallel_rank=1, data_parallel_size=2)]
        [[5, 1], [6, 4]]
    """
    return list(batch_G.reshape(-1, micro_batch_size)[data_parallel_rank::data_parallel_size])


def load_micro_batches(
    dataset: SequenceDataset, batches: Sequence[IntArray], *, pad_to_multiple_of: int, device: torch.device
) -> Iterator[MicroBatch]:
    """Read micro-batches, one when it is asked for.

    Args:
        dataset: The data set.
        batches: Indices of the sequences of each micro-batch.
        pad_to_multiple_of: A micro-batch is as long as its longest sequence, rounded up to this, and never longer than
            the data set's sequences.
        device: Where the tensors go.

    Yields:
        The micro-batches, in order.
    """
    for batch_B in batches:
        yield load_micro_batch(dataset, batch_B, pad_to_multiple_of=pad_to_multiple_of, device=device)


def load_micro_batch(
    dataset: SequenceDataset, batch_B: IntArray, *, pad_to_multiple_of: int, device: torch.device
) -> MicroBatch:
    """Read one micro-batch; see `load_micro_batches`."""
    longest = int(dataset.num_positions_N[batch_B].max())
    length = min(-(-longest // pad_to_multiple_of) * pad_to_multiple_of, dataset.max_seq_length)
    rows = [dataset[int(index)] for index in batch_B]

    def stack(name: str) -> Tensor:
        return torch.stack([row[name][:length] for row in rows])

    weights_P = stack("loss_mask").t().flatten()
    target_positions_N = weights_P.nonzero().squeeze(1)
    tensors = {
        "input_ids_BS": stack("input_ids"),
        "position_ids_BS": stack("position_ids"),
        "target_positions_N": target_positions_N,
        "labels_N": stack("labels").t().flatten()[target_positions_N],
        "weights_N": weights_P[target_positions_N],
    }
    if device.type == "cuda":
        # From pinned memory the copies run beside the kernels of the previous micro-batch.
        tensors = {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
    return MicroBatch(**tensors)
