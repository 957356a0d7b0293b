# SPDX-License-Identifier: Apache-2.0
"""From the order of the sequences to the micro-batches of one data-parallel rank, and to a context rank's part of them.

Shapes: S positions of a sequence, or of its part on a context rank, W positions of the whole sequence, B sequences of a
micro-batch, G sequences of a global batch, N targets of a micro-batch, C conversations of a micro-batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from primus.backends.megatron.context_parallel import WHOLE_SEQUENCES, ContextRank
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

    def num_pairs_of(self, indices_B: IntArray) -> IntArray:
        """Pairs of positions of some sequences of which one attends to the other: n (n + 1) / 2 in a conversation."""

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
    """Tokens, cropped to the longest sequence; with context parallelism those of this rank's positions."""
    position_ids_BS: Tensor
    """Position of each token in its conversation."""
    segments_C2: Tensor | None
    """Places `[first, last)` of each conversation in the whole sequences, on the host, where the attention is divided
    by them; position `w` of sequence `b` is `b * W + w`. None if each sequence is one conversation."""
    target_positions_N: Tensor
    """Where the targets are: position `s` of sequence `b` is `s * B + b`. A context rank may have none."""
    labels_N: Tensor
    """The token to predict at each target."""
    weights_N: Tensor
    """How much each target's loss counts."""
    groups_N: Tensor
    """The group that each target's loss is told in, as `primus.sft.target_groups` numbers them."""
    num_groups: int
    """Groups of the data set, those of other micro-batches included."""
    num_units: int
    """What the micro-batch adds to the divisor of the loss; 0 on all context ranks but the first."""
    content_hash: int
    """Sum of the hashes of its whole sequences with their places in the global batch, on every rank that reads it;
    0 if the places are not known."""


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
    context: ContextRank = WHOLE_SEQUENCES,
) -> MicroBatch:
    """Read one micro-batch, or a context rank's part of it, into the host's memory.

    Args:
        dataset: The data set.
        batch_B: Indices of its sequences.
        pad_to_multiple_of: A micro-batch is as long as its longest sequence, rounded up to this, and never longer than
            the data set's sequences.
        pin_memory: Put the tensors where a GPU can fetch them beside its kernels.
        places_B: Places of the sequences in the global batch, for the hash.
        context: Whose part is read; the ranks can share the width that comes of `pad_to_multiple_of`.

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
    batch = MicroBatch(
        input_ids_BS=torch.from_numpy(targets.input_ids_BS),
        position_ids_BS=torch.from_numpy(targets.position_ids_BS),
        target_positions_N=torch.from_numpy((places_N - row_starts[rows_N]) * len(batch_B) + rows_N),
        labels_N=torch.from_numpy(targets.labels_BS.ravel()[places_N]),
        weights_N=torch.from_numpy(targets.loss_mask_BS.ravel()[places_N]),
        groups_N=torch.from_numpy(targets.groups_N),
        segments_C2=torch.from_numpy(targets.segments_C2) if dataset.is_packed else None,
        num_groups=len(dataset.source_names) * GROUPS_PER_SOURCE,
        num_units=int(dataset.num_units_of(batch_B).sum()),
        content_hash=0 if places_B is None else hash_of(targets, num_positions_B, places_B),
    )
    if context.size > 1:
        batch = part_of_context_rank(batch, context)
    if pin_memory:
        batch = replace(batch, **{name: getattr(batch, name).pin_memory() for name in _names_on_device()})
    return batch


def part_of_context_rank(batch: MicroBatch, context: ContextRank) -> MicroBatch:
    """Take a context rank's part out of a micro-batch; all parts together have each position and target once.

    Args:
        batch: A micro-batch of whole sequences.
        context: Whose part.

    Returns:
        Its positions of each sequence and the targets there. What is counted once is counted by the first rank.
    """
    num_sequences, width = batch.input_ids_BS.shape
    positions_S = context.positions(width)
    part_W = np.full(width, -1)
    part_W[positions_S] = np.arange(len(positions_S))
    positions_N, rows_N = np.divmod(batch.target_positions_N.numpy(), num_sequences)
    own_positions_N = part_W[positions_N]
    is_own_N = own_positions_N >= 0
    own_N = torch.from_numpy(np.flatnonzero(is_own_N))
    of_targets = {name: getattr(batch, name)[own_N] for name in _names_on_device() if name.endswith("_N")}
    of_targets["target_positions_N"] = torch.from_numpy((own_positions_N * num_sequences + rows_N)[is_own_N])
    return replace(
        batch,
        input_ids_BS=batch.input_ids_BS[:, positions_S],
        position_ids_BS=batch.position_ids_BS[:, positions_S],
        **of_targets,
        num_units=0 if context.rank else batch.num_units,
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
    return replace(batch, **{name: getattr(batch, name).to(device, non_blocking=True) for name in _names_on_device()})


def _names_on_device() -> list[str]:
    """The tensors that the model reads; where conversations are is read on the host."""
    return [field.name for field in fields(MicroBatch) if field.name.endswith(("_BS", "_N"))]
