# SPDX-License-Identifier: Apache-2.0
"""One optimizer step, and what to say when its loss is no number.

Shapes: G sequences of a global batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func

from primus.backends.megatron.agreement.batches import agreed_hash, describe_dissent, hash_summands
from primus.backends.megatron.blame import describe_broken_loss, name_some
from primus.backends.megatron.data.batches import (
    HASH_BITS,
    HASHES,
    BatchSource,
    IntArray,
    MicroBatch,
    rank_micro_batches,
)
from primus.backends.megatron.distributed import has_losses, sum_over_ranks
from primus.backends.megatron.evaluation import for_each_chunk, sum_of_losses
from primus.backends.megatron.loss import Breakdown, LossReport, break_down, forward_step, sums_of_groups
from primus.errors import TrainingError
from primus.sft.target_groups import GROUPS_PER_SOURCE


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What a step did."""

    lm_loss: float
    """Sum of the weighted losses of the global batch's targets, divided by its units."""
    num_targets: int
    """Targets of the global batch."""
    num_places: int
    """Positions that were computed for it, padding included."""
    batch_hash: str
    """Hash of its content in its order, the same however ranks and micro-batches divide it."""
    breakdown: Breakdown
    """The losses of its turns, roles and sources."""
    grad_norm: float | None
    """Norm of the gradient before it was clipped; None if the step changed no weight."""
    learning_rate: float
    """Learning rate of the step."""


class _StepSums(NamedTuple):
    """Of the global batch."""

    loss: float
    num_targets: int
    num_units: int
    num_places: int
    batch_hash: str | None
    """None if ranks that share a model have read different sequences."""
    groups: list[float]


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """Everything that a step needs; `run` makes one."""

    model: Sequence[DistributedDataParallel]
    """The chunks of the model on this rank."""
    optimizer: MegatronOptimizer
    """Its optimizer."""
    scheduler: OptimizerParamScheduler
    """Its learning-rate schedule, at the step before."""
    dataset: BatchSource
    """The training split."""
    micro_batch_size: int
    """Sequences of one forward pass."""
    pad_to_multiple_of: int
    """A micro-batch is padded to its longest sequence, rounded up to this."""
    device: torch.device
    """Where the model is."""

    def run(self, batch_G: IntArray, micro_batches: Iterator[MicroBatch], *, iteration: int) -> StepOutcome:
        """Train on a global batch; all ranks call it together.

        Args:
            batch_G: Indices of the sequences, the same on every rank.
            micro_batches: Gives this rank's micro-batches of it; others may follow.
            iteration: Number of the step, counted from 1, for messages.

        Returns:
            What the step did.

        Raises:
            TrainingError: If the loss or the norm of the gradient is not finite, the batch has no units to divide by,
                or ranks that share a model have read different sequences. But for the norm, the weights are still
                those of the step before.
        """
        for chunk in self.model:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports, content_hash = self._forward_and_backward(micro_batches, num_sequences=len(batch_G))
        sums = self._sum_over_ranks(reports, content_hash=content_hash)
        if sums.batch_hash is None:
            raise TrainingError(
                f"step {iteration}: {describe_dissent(content_hash)}, so the step is not made; see whether the data"
                " files of the machines differ or have changed, and go on with --resume auto; sequences:"
                f" {self._name(batch_G)}"
            )
        if not math.isfinite(sums.loss):
            places = self._own_places(len(batch_G), micro_batch_size=1)
            blame = describe_broken_loss(
                self.model,
                self.dataset,
                batch_G,
                own_places=np.concatenate(places).tolist(),
                pad_to_multiple_of=self.pad_to_multiple_of,
                device=self.device,
            )
            raise TrainingError(f"step {iteration}: the loss is {sums.loss}{blame} (batch {sums.batch_hash})")
        if not sums.num_units:
            raise TrainingError(
                f"step {iteration}: the global batch has targets, but nothing to divide their loss by, as all its "
                f"sequences are later parts of conversations; raise global_batch_size; sequences: {self._name(batch_G)}"
            )
        lm_loss = sums.loss / sums.num_units
        self.scheduler.step(increment=1)
        is_updated, grad_norm, _ = self.optimizer.step()
        if is_updated and not math.isfinite(grad_norm):
            raise TrainingError(
                f"step {iteration}: the norm of the gradient is {grad_norm}, though the loss is "
                f"{lm_loss:.4f}; lower lr or init_method_std; sequences: {self._name(batch_G)}"
            )
        return StepOutcome(
            lm_loss=lm_loss,
            num_targets=sums.num_targets,
            num_places=sums.num_places,
            batch_hash=sums.batch_hash,
            breakdown=break_down(sums.groups, source_names=self.dataset.source_names),
            grad_norm=float(grad_norm) if is_updated else None,
            learning_rate=self.optimizer.param_groups[0]["lr"],
        )

    def _forward_and_backward(
        self, micro_batches: Iterator[MicroBatch], *, num_sequences: int
    ) -> tuple[list[LossReport], int]:
        """The losses that this rank comes to know, and the hash of the micro-batches that it has read."""
        at_once = self.micro_batch_size * parallel_state.get_data_parallel_world_size()
        num_micro_batches = num_sequences // at_once
        hashes: list[int] = []
        reports: list[LossReport] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=for_each_chunk(_noting(islice(micro_batches, num_micro_batches), hashes), self.model),
            model=list(self.model),
            num_microbatches=num_micro_batches,
            seq_length=self.dataset.max_seq_length,
            micro_batch_size=self.micro_batch_size,
            forward_only=False,
        )
        return reports, sum(hashes) % HASHES

    def _sum_over_ranks(self, reports: list[LossReport], *, content_hash: int) -> "_StepSums":
        of_losses = [
            sum_of_losses(reports),
            sum(report.num_targets for report in reports),
            sum(report.num_units for report in reports),
            sum(report.num_places for report in reports),
            *sums_of_groups(reports, num_groups=len(self.dataset.source_names) * GROUPS_PER_SOURCE),
        ]
        if not has_losses():
            of_losses = [0.0] * len(of_losses)
        summands = hash_summands(content_hash)
        sums = sum_over_ranks(*summands, *of_losses, device=self.device)
        agreed = agreed_hash(sums[: len(summands)])
        batch_hash = None if agreed is None else f"{agreed:0{HASH_BITS // 4}x}"
        loss, num_targets, num_units, num_places, *groups = sums[len(summands) :]
        return _StepSums(loss, int(num_targets), int(num_units), int(num_places), batch_hash, groups)

    def own_micro_batches(self, batch_G: IntArray) -> list[tuple[IntArray, IntArray]]:
        """This rank's micro-batches of a global batch: indices of the sequences, and their places in it."""
        places = self._own_places(len(batch_G), micro_batch_size=self.micro_batch_size)
        return [(batch_G[places_B], places_B) for places_B in places]

    def _own_places(self, num_sequences: int, *, micro_batch_size: int) -> list[IntArray]:
        return rank_micro_batches(
            np.arange(num_sequences),
            micro_batch_size=micro_batch_size,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
        )

    def _name(self, batch_G: IntArray) -> str:
        return name_some([origin for index in batch_G.tolist() for origin in self.dataset.origins(index)])


def _noting(micro_batches: Iterator[MicroBatch], hashes: list[int]) -> Iterator[MicroBatch]:
    """The same micro-batches; the hash of each is appended to a list when it is read."""
    for batch in micro_batches:
        hashes.append(batch.content_hash)
        yield batch
