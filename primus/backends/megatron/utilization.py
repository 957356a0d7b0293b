# SPDX-License-Identifier: Apache-2.0
"""How well a run uses its devices: useful operations per second, their share of the peak rate, peak memory.

Useful are the operations that the tokens need: no padding, and nothing that is computed again; `planning/flops.py`
counts them. On a CPU there is no peak rate to compare with: what a matrix product reaches there depends on the cores
that other ranks and other programs leave free. The share is then left out, unless `sft_peak_tflops` says what to
compare with.
"""

import logging
import resource
import sys
from dataclasses import dataclass

import torch

from primus.backends.megatron.data.batches import BatchSource, IntArray
from primus.backends.megatron.planning.devices import GIB, gpu_of_device
from primus.backends.megatron.planning.flops import count_flops
from primus.backends.megatron.planning.layout import build_layout
from primus.backends.megatron.planning.memory import BatchShape, estimate_memory
from primus.backends.megatron.planning.parameter_count import count_adapters
from primus.backends.megatron.planning.search import model_shape, recompute_of, sizes_of
from primus.config.schema import TrainerConfig

logger = logging.getLogger("primus")


@dataclass(frozen=True, kw_only=True)
class Utilization:
    """What was made of the devices in some steps."""

    tflops_per_device: float
    """Useful operations per second and device, in 10^12."""
    mfu: float | None
    """That as a share of a device's peak rate; None if that is not known."""
    peak_memory_bytes: int
    """Most memory since the process began that tensors took, of the rank that took most; on a CPU, all memory of the
    process."""


class UtilizationMeter:
    """Counts the useful operations of steps.

    Args:
        trainer: The trainer module of the run.
        vocab_size: Rows of the output layer that stand for a token.
        device: Where this rank computes.
        world_size: How many devices there are.
    """

    def __init__(self, trainer: TrainerConfig, *, vocab_size: int, device: torch.device, world_size: int) -> None:
        adapters = count_adapters(trainer, trainer.lora) if trainer.lora.enabled else None
        self._flops = count_flops(trainer, vocab_size=vocab_size, adapters=adapters)
        self._device = device
        self._world_size = world_size
        self._peak_tflops = trainer.sft_peak_tflops or _peak_tflops(device, bf16=trainer.bf16)

    def flops_of(self, source: BatchSource, batch_G: IntArray, *, num_targets: int) -> int:
        """Useful operations of a global batch, of all devices.

        Args:
            source: The training data.
            batch_G: Indices of its sequences.
            num_targets: Their positions that are trained.

        Returns:
            The operations.
        """
        return self._flops.of(
            positions=int(source.num_positions_of(batch_G).sum()),
            pairs=int(source.num_pairs_of(batch_G).sum()),
            targets=num_targets,
        )

    def utilization(self, *, flops: int, seconds: float) -> Utilization:
        """Tell what was made of the devices; all ranks call it together.

        Args:
            flops: Useful operations of all devices.
            seconds: Time that they took.

        Returns:
            The figures.
        """
        tflops = flops / seconds / self._world_size / 1e12
        return Utilization(
            tflops_per_device=tflops,
            mfu=None if self._peak_tflops is None else tflops / self._peak_tflops,
            peak_memory_bytes=self._peak_memory_bytes(),
        )

    def _peak_memory_bytes(self) -> int:
        if self._device.type == "cuda":
            own = torch.cuda.max_memory_allocated(self._device)
        else:
            # Linux counts in kibibytes, macOS in bytes.
            own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        most = torch.tensor(own, dtype=torch.int64, device=self._device)
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        return int(most)


def _peak_tflops(device: torch.device, *, bf16: bool) -> float | None:
    """The peak rate of a known GPU, where the run computes in bfloat16; float32 has another, which depends on TF32."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    gpu = gpu_of_device(name)
    if gpu is None or not bf16:
        why = "in float32" if gpu is not None else f"of {name}"
        logger.info("mfu: the peak rate %s is not known, so it is not written; sft_peak_tflops gives it", why)
        return None
    return gpu.peak_tflops


def log_memory_estimate(trainer: TrainerConfig, *, vocab_size: int, device: torch.device, world_size: int) -> None:
    """Say what the fullest rank will take at most, before the first step; warn if its GPU has less.

    Args:
        trainer: The trainer module of the run.
        vocab_size: Rows of the embedding that stand for a token.
        device: Where this rank computes.
        world_size: How many ranks there are.
    """
    layout = build_layout(trainer, world_size=world_size)
    estimate = estimate_memory(
        model_shape(trainer, used_vocab_size=vocab_size),
        sizes=sizes_of(trainer, layout),
        batch=BatchShape(
            micro_batch_size=trainer.micro_batch_size,
            num_micro_batches=layout.num_micro_batches,
            seq_length=trainer.seq_length,
            num_targets=trainer.seq_length,
            is_packed=trainer.packing != "none",
        ),
        use_distributed_optimizer=trainer.use_distributed_optimizer,
        recompute=recompute_of(trainer),
    )
    logger.info(
        "memory: at most %.3g GiB on a rank, as estimated for full sequences in which every position is trained",
        estimate.total / GIB,
    )
    gpu = local_gpu() if device.type == "cuda" else None
    if gpu is not None and estimate.total > gpu[1] * GIB:
        logger.warning(
            "memory: full sequences would take %.0f GiB, and the GPU has %.0f; --dry-run tells what this data takes,"
            " and which layouts fit",
            estimate.total / GIB,
            gpu[1],
        )


def local_gpu() -> tuple[str, float] | None:
    """Name and memory in GiB of this machine's first GPU; None if it has none."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return properties.name, properties.total_memory / GIB
