# SPDX-License-Identifier: Apache-2.0
"""From the order of the sequences to the micro-batches of one data-parallel rank.

Shapes: S positions, B sequences of a micro-batch, G sequences of a global batch, N targets of a micro-batch, C
conversations of a micro-batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from primus.sft.masking import PackedTargets
from primus.sft.order import SourceShare
from primus.sft.target_groups import GROUPS_PER_SOURCE

IntArray = npt.NDArray[np.int64]

# Hashes are added up in as many bits.
HASH_BITS = 64
HASHES = 1 << HASH_BITS


class BatchSource(Protocol):
    """What a step needs of the data that it is made with; `SFTDataset` and `IndexedStream` have it."""

    max_seq_length: int
    """Length of the tensors of a sequence."""
    fingerprint: str
    """Hash of everything that is trained."""

    @property
    def source_names(self) -> Sequence[str]:
        """What the loss of each source is told under; groups of targets are numbered in their order."""

    @property
    def is_packed(self) -> bool:
        """Whether a sequence may hold several conversations."""

    def num_positions_of(self, indices_B: IntArray) -> IntArray:
        """Positions of some sequences that are not padding."""

    def num_units_of(self, indices_B: IntArray) -> IntArray:
        """What some sequences add to the divisor of the loss."""

    def batch(self, indices_B: IntArray, *, length: int) -> PackedTargets:
        """Several sequences, each cropped or padded to a length; called by several threads at once."""

    def origin(self, index: int) -> str:
        """Where the conversations of a sequence came from, as `file:line`."""

    def origins(self, index: int) -> Sequence[str]:
        """Where each conversation of a sequence came from, in their order in it."""


class SequenceDataset(BatchSource, Protocol):
    """Data of which everything is there; `SFTDataset` has it."""

    @property
    def shares(self) -> Sequence[SourceShare] | None:
        """How many sequences each source has, and how often they come in an epoch; None if there is one source."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one forward pass reads."""

    input_ids_BS: Tensor
    """Tokens, cropped to the longest sequence."""
    position_ids_BS: Tensor
    """Position of each token in its conversation."""
    segments_C2: Tensor | None
    """Places `[first, last)` of each conversation, on the host, where the attention is divided by them; position `s` of
    sequence `b` is `b * S + s`. None if each sequence is one conversation."""
    target_positions_N: Tensor
    """Where the targets are: position `s` of sequence `b` is `s * B + b`."""
    labels_N: Tensor
    """The token to predict at each target."""
    weights_N: Tensor
    """How much each target's loss counts."""
    groups_N: Tensor
    """The group that each target's loss is told in, as `primus.sft.target_groups` numbers them."""
    num_groups: int
    """Groups of the data set, those of other micro-batches included."""
    num_units: int
    """What the micro-batch adds to the divisor of the loss."""
    content_hash: int
    """Sum of the hashes of its sequences with their places in the global batch; 0 if these are not known."""


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


def read_micro_batch(
    dataset: BatchSource,
    batch_B: IntArray,
    *,
    pad_to_multiple_of: int,
    pin_memory: bool = False,
    places_B: IntArray | None = None,
) -> MicroBatch:
    """Read one micro-batch into the host's memory.

    Args:
        dataset: The data set.
        batch_B: Indices of its sequences.
        pad_to_multiple_of: A micro-batch is as long as its longest sequence, rounded up to this, and never longer than
            the data set's sequences.
        pin_memory: Put the tensors where a GPU can fetch them beside its kernels.
        places_B: Places of the sequences in the global batch, for the hash.

    Returns:
        The micro-batch.
    """
    num_positions_B = dataset.num_positions_of(batch_B)
    longest = int(num_positions_B.max())
    length = min(-(-longest // pad_to_multiple_of) * pad_to_multiple_of, dataset.max_seq_length)
    targets = dataset.batch(batch_B, length=length)
    places_N = np.flatnonzero(targets.loss_mask_BS.ravel() != 0)
    row_starts = np.arange(len(batch_B) + 1) * length
    rows_N = np.repeat(np.arange(len(batch_B)), np.diff(np.searchsorted(places_N, row_starts)))
    tensors = {
        "input_ids_BS": torch.from_numpy(targets.input_ids_BS),
        "position_ids_BS": torch.from_numpy(targets.position_ids_BS),
        "target_positions_N": torch.from_numpy((places_N - row_starts[rows_N]) * len(batch_B) + rows_N),
        "labels_N": torch.from_numpy(targets.labels_BS.ravel()[places_N]),
        "weights_N": torch.from_numpy(targets.loss_mask_BS.ravel()[places_N]),
        "groups_N": torch.from_numpy(targets.groups_N),
    }
    if pin_memory:
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return MicroBatch(
        **tensors,
        segments_C2=torch.from_numpy(targets.segments_C2) if dataset.is_packed else None,
        num_groups=len(dataset.source_names) * GROUPS_PER_SOURCE,
        num_units=int(dataset.num_units_of(batch_B).sum()),
        content_hash=0 if places_B is None else hash_of(targets, num_positions_B, places_B),
    )


def hash_of(targets: PackedTargets, num_positions_B: IntArray, places_B: IntArray) -> int:
    """The part of some sequences in the hash of their global batch.

    The parts of all sequences add up to the hash, so it does not matter how ranks and micro-batches divide them; and
    each sequence is hashed with its place, so their order matters.

    Args:
        targets: The sequences.
        num_positions_B: Positions of each; padding is left out, since it depends on the other sequences.
        places_B: Place of each in the global batch.

    Returns:
        The sum of the sequences' hashes, below `HASHES`.
    """
    length = targets.input_ids_BS.shape[1]
    rows_C = targets.segments_C2[:, 0] // length
    total = 0
    for row, (num_positions, place) in enumerate(zip(num_positions_B.tolist(), places_B.tolist(), strict=True)):
        digest = hashlib.blake2b(digest_size=HASH_BITS // 8, salt=place.to_bytes(8, "little"))
        for tokens_BS in (targets.input_ids_BS, targets.labels_BS):
            # As they are stored; half as much to hash.
            digest.update(tokens_BS[row, :num_positions].astype(np.int32))
        digest.update(targets.loss_mask_BS[row, :num_positions])
        digest.update(targets.segments_C2[rows_C == row] - row * length)
        total += int.from_bytes(digest.digest(), "little")
    return total % HASHES


def on_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """Move a micro-batch to where the model is; from pinned memory it is not waited for."""
    if device.type == "cpu":
        return batch
    names = ("input_ids_BS", "position_ids_BS", "target_positions_N", "labels_N", "weights_N", "groups_N")
    return replace(batch, **{name: getattr(batch, name).to(device, non_blocking=True) for name in names})
