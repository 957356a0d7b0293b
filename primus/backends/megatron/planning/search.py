# SPDX-License-Identifier: Apache-2.0
"""All layouts of a run on a number of GPUs: which of them are possible, which fit, and which are fast."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from primus.backends.megatron.planning.devices import GIB, GPUS_PER_NODE, Gpu
from primus.backends.megatron.planning.layout import Layout, build_layout, width_multiple
from primus.backends.megatron.planning.memory import (
    BatchShape,
    MemoryEstimate,
    ModelShape,
    ParallelSizes,
    Recompute,
    estimate_memory,
)
from primus.backends.megatron.planning.parameter_count import padded_vocab_size
from primus.backends.megatron.planning.step_time import Overlap, StepTime, estimate_step_time, useful_flops
from primus.backends.megatron.planning.workload import Workload
from primus.config.rules import broken_rules
from primus.config.schema import TrainerConfig
from primus.config.unavailable import asked_for
from primus.errors import LayoutError

USABLE_SHARE = 0.9
"""Share of a GPU's memory that an estimate may fill; the rest is for what is not estimated."""

_LAYOUT_KEYS = (
    "tensor_model_parallel_size",
    "sequence_parallel",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "micro_batch_size",
    "use_distributed_optimizer",
    "overlap_grad_reduce",
    "overlap_param_gather",
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
)
_MOST_STAGES = 16
_MOST_CHUNKS = 8
_MOST_CONTEXT_RANKS = 8
_MOST_SEQUENCES_PER_PASS = 8


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A possible layout, with its estimates."""

    overrides: Mapping[str, Any]
    """The keys of the configuration that make it."""
    layout: Layout
    """Ranks and micro-batches."""
    sizes: ParallelSizes
    """How many ranks share the model, and how."""
    recompute: Recompute
    """What is computed again."""
    micro_batch_size: int
    """Sequences of one forward pass."""
    memory: MemoryEstimate
    """What the fullest rank keeps."""
    time: StepTime
    """How long a step takes."""
    tokens_per_second: float
    """Tokens of all ranks per second, padding not counted."""
    mfu: float
    """Useful operations per second, as a share of what the GPUs could do at their peak rate."""

    def fits(self, memory_gib: float) -> bool:
        """Whether a GPU with so much memory has room for it."""
        return self.memory.total <= USABLE_SHARE * memory_gib * GIB


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """All that layouts of a run have in common."""

    trainer: TrainerConfig
    """The settings; those of the layout are replaced."""
    used_vocab_size: int
    """Rows of the embedding that stand for a token."""
    workload: Workload
    """The sequences of its steps."""
    longest: int
    """Positions of the longest sequence of training and validation data."""
    most_targets: int
    """Most targets of one training sequence."""


def sizes_of(trainer: TrainerConfig, layout: Layout) -> ParallelSizes:
    """How many ranks share the model of a run, and how."""
    return ParallelSizes(
        tensor=trainer.tensor_model_parallel_size,
        pipeline=trainer.pipeline_model_parallel_size,
        virtual_pipeline=trainer.virtual_pipeline_model_parallel_size or 1,
        context=trainer.context_parallel_size,
        data=layout.data_parallel_size,
        sequence_parallel=trainer.sequence_parallel,
    )


def recompute_of(trainer: TrainerConfig) -> Recompute:
    """What a run computes again."""
    return Recompute(
        granularity=trainer.recompute_granularity,
        method=trainer.recompute_method,
        num_layers=trainer.recompute_num_layers or 1,
    )


def widest_of(trainer: TrainerConfig, longest: int) -> int:
    """Positions of the widest micro-batch there can be."""
    multiple = width_multiple(trainer)
    return min(trainer.seq_length, -(-longest // multiple) * multiple)


def model_shape(trainer: TrainerConfig, *, used_vocab_size: int) -> ModelShape:
    """Count the weights of a run's model, its embedding padded as the layout needs it."""
    rows = padded_vocab_size(
        used_vocab_size,
        divisible_by=trainer.make_vocab_size_divisible_by,
        tensor_parallel=trainer.tensor_model_parallel_size,
    )
    return ModelShape.of(trainer, lora=trainer.lora, padded_vocab_size=rows, bf16=trainer.bf16)


def memory_of(trainer: TrainerConfig, layout: Layout, run: RunShape, *, recompute: Recompute) -> MemoryEstimate:
    """Estimate the memory of a run in a layout.

    Args:
        trainer: The settings, those of the layout included.
        layout: Ranks and micro-batches.
        run: The rest of the run.
        recompute: What is computed again, in place of what the settings say.

    Returns:
        What the fullest rank keeps.
    """
    return estimate_memory(
        model_shape(trainer, used_vocab_size=run.used_vocab_size),
        sizes=sizes_of(trainer, layout),
        batch=BatchShape(
            micro_batch_size=trainer.micro_batch_size,
            num_micro_batches=layout.num_micro_batches,
            seq_length=widest_of(trainer, run.longest),
            num_targets=run.most_targets,
            is_packed=trainer.packing != "none",
        ),
        use_distributed_optimizer=trainer.use_distributed_optimizer,
        recompute=recompute,
    )


def estimate(trainer: TrainerConfig, layout: Layout, run: RunShape, *, gpu: Gpu) -> Candidate:
    """Estimate memory and time of a run in the layout of its settings.

    Args:
        trainer: The settings.
        layout: Ranks and micro-batches.
        run: The rest of the run.
        gpu: The kind of GPU of all ranks.

    Returns:
        The layout with its estimates.
    """
    sizes, recompute = sizes_of(trainer, layout), recompute_of(trainer)
    model = model_shape(trainer, used_vocab_size=run.used_vocab_size)
    work = run.workload.work(
        micro_batch_size=trainer.micro_batch_size,
        multiple=width_multiple(trainer),
        data_parallel_size=layout.data_parallel_size,
    )
    time = estimate_step_time(
        model,
        vocab_size=run.used_vocab_size,
        sizes=sizes,
        work=work,
        recompute=recompute,
        use_distributed_optimizer=trainer.use_distributed_optimizer,
        overlap=Overlap(grad_reduce=trainer.overlap_grad_reduce, param_gather=trainer.overlap_param_gather),
        gpu=gpu,
    )
    return Candidate(
        overrides={name: getattr(trainer, name) for name in _LAYOUT_KEYS},
        layout=layout,
        sizes=sizes,
        recompute=recompute,
        micro_batch_size=trainer.micro_batch_size,
        memory=memory_of(trainer, layout, run, recompute=recompute),
        time=time,
        tokens_per_second=work.useful_positions / time.total,
        mfu=useful_flops(model, work, vocab_size=run.used_vocab_size)
        / time.total
        / (gpu.peak_tflops * 1e12 * layout.world_size),
    )


def search_layouts(run: RunShape, *, world_size: int, gpu: Gpu, memory_gib: float) -> list[Candidate]:
    """Find the possible layouts of a run, the fastest that fits first.

    Which layouts are possible is not decided here, but where a run decides it: by the rules of the configuration and
    `build_layout`. Each is tried with nothing computed again; if that does not fit, with as few layers as make it fit;
    and with all of them.

    Args:
        run: The run.
        world_size: GPUs.
        gpu: Their kind.
        memory_gib: Memory of each.

    Returns:
        Those that fit, ordered by the time of a step, and behind them those that do not, ordered by their memory.
    """
    found: list[Candidate] = []
    for trainer in _arrangements(run.trainer, world_size=world_size):
        try:
            layout = build_layout(trainer, world_size=world_size)
        except LayoutError:
            continue
        found += _with_recompute(trainer, layout, run, gpu=gpu, memory_gib=memory_gib)
    fitting = [candidate for candidate in found if candidate.fits(memory_gib)]
    others = [candidate for candidate in found if not candidate.fits(memory_gib)]
    return sorted(fitting, key=lambda candidate: candidate.time.total) + sorted(
        others, key=lambda candidate: candidate.memory.total
    )


def _arrangements(trainer: TrainerConfig, *, world_size: int) -> Iterator[TrainerConfig]:
    """The settings with every layout that the rules of the configuration allow, nothing computed again."""
    for tensor, pipeline, context in itertools.product(
        _powers_of_two(GPUS_PER_NODE), _divisors(trainer.num_layers, _MOST_STAGES), _powers_of_two(_MOST_CONTEXT_RANKS)
    ):
        ranks_of_model = tensor * pipeline * context
        if world_size % ranks_of_model:
            continue
        num_shards = world_size // (tensor * pipeline)
        chunks = _divisors(trainer.num_layers // pipeline, _MOST_CHUNKS) if pipeline > 1 else [1]
        for virtual, micro_batch_size in itertools.product(chunks, _powers_of_two(_MOST_SEQUENCES_PER_PASS)):
            overrides = {
                "tensor_model_parallel_size": tensor,
                "sequence_parallel": tensor > 1,
                "pipeline_model_parallel_size": pipeline,
                "virtual_pipeline_model_parallel_size": virtual if virtual > 1 else None,
                "context_parallel_size": context,
                "micro_batch_size": micro_batch_size,
                "use_distributed_optimizer": num_shards > 1,
                "overlap_grad_reduce": num_shards > 1,
                "overlap_param_gather": num_shards > 1,
                "recompute_granularity": None,
                "recompute_method": None,
                "recompute_num_layers": None,
            }
            arranged = trainer.model_copy(update=overrides)
            if not asked_for(arranged) and not broken_rules(arranged, wrong=frozenset()):
                yield arranged


def _with_recompute(
    trainer: TrainerConfig, layout: Layout, run: RunShape, *, gpu: Gpu, memory_gib: float
) -> Iterator[Candidate]:
    keeps_all = estimate(trainer, layout, run, gpu=gpu)
    yield keeps_all
    if keeps_all.fits(memory_gib):
        return
    num_layers = trainer.num_layers // (keeps_all.sizes.pipeline * keeps_all.sizes.virtual_pipeline)

    def again(method: str, num: int) -> Candidate:
        keys = {"recompute_granularity": "full", "recompute_method": method, "recompute_num_layers": num}
        return estimate(trainer.model_copy(update=keys), layout, run, gpu=gpu)

    # The more layers are computed again, the less is kept: the first number that fits, by halving.
    too_few, enough = 0, num_layers
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if again("block", middle).fits(memory_gib) else (middle, enough)
    if enough < num_layers:
        yield again("block", enough)
    yield again("uniform", 1)


def _powers_of_two(most: int) -> list[int]:
    return [1 << exponent for exponent in range(most.bit_length()) if 1 << exponent <= most]


def _divisors(number: int, most: int) -> list[int]:
    return [divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0]
