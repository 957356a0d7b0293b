# SPDX-License-Identifier: Apache-2.0
"""How the processes of a run share its work: integers only, checked before anything starts."""

import math
from dataclasses import dataclass

from primus.config.schema import TrainerConfig
from primus.errors import LayoutError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The processes of a run and what each of them does in one step."""

    world_size: int
    """Processes."""
    data_parallel_size: int
    """Groups of processes that see different sequences."""
    num_micro_batches: int
    """Forward passes of one data-parallel rank in one step."""


def build_layout(trainer: TrainerConfig, *, world_size: int) -> Layout:
    """Divide the processes and the global batch.

    Args:
        trainer: The trainer module of the run.
        world_size: Processes that were started.

    Returns:
        The layout; `micro_batch_size * num_micro_batches * data_parallel_size == global_batch_size`.

    Raises:
        LayoutError: If the processes are no multiple of one model's ranks, or the global batch is no multiple of what
            one forward pass of all data-parallel ranks takes, or of what virtual pipeline stages take in turn.

    Examples:
        Two processes, 12 sequences per step, 3 per forward pass: each process makes 2 forward passes.

        >>> from primus.config.schema import TrainerConfig
        >>> tiny = dict(num_layers=1, hidden_size=8, ffn_hidden_size=8, num_attention_heads=1, seq_length=8, lr=0.1)
        >>> trainer = TrainerConfig(**tiny, global_batch_size=12, micro_batch_size=3)
        >>> build_layout(trainer, world_size=2)
        Layout(world_size=2, data_parallel_size=2, num_micro_batches=2)
    """
    ranks_of_model = (
        trainer.tensor_model_parallel_size * trainer.pipeline_model_parallel_size * trainer.context_parallel_size
    )
    if world_size % ranks_of_model:
        raise LayoutError(
            f"layout: {world_size} processes are not a multiple of tensor x pipeline x context parallel size = "
            f"{ranks_of_model}; start {_nearest_multiples(world_size, ranks_of_model)} processes"
        )
    data_parallel_size = world_size // ranks_of_model
    at_once = trainer.micro_batch_size * data_parallel_size
    if trainer.global_batch_size % at_once:
        raise LayoutError(
            f"global_batch_size: {trainer.global_batch_size} is not a multiple of micro_batch_size "
            f"{trainer.micro_batch_size} x {data_parallel_size} data-parallel ranks = {at_once}; "
            f"set it to {_nearest_multiples(trainer.global_batch_size, at_once)}, or change micro_batch_size"
        )
    num_micro_batches = trainer.global_batch_size // at_once
    num_stages = trainer.pipeline_model_parallel_size
    if trainer.virtual_pipeline_model_parallel_size is not None and num_micro_batches % num_stages:
        raise LayoutError(
            f"global_batch_size: {trainer.global_batch_size} makes {num_micro_batches} forward passes on each rank, "
            f"and virtual pipeline stages take turns after {num_stages} of them; set it to "
            f"{_nearest_multiples(trainer.global_batch_size, at_once * num_stages)}, or "
            "virtual_pipeline_model_parallel_size to null"
        )
    return Layout(world_size=world_size, data_parallel_size=data_parallel_size, num_micro_batches=num_micro_batches)


def num_steps(trainer: TrainerConfig, *, num_sequences: int) -> int:
    """Count the optimizer steps of the run: `train_iters`, or `sft_num_epochs` passes rounded up to whole steps.

    Args:
        trainer: The trainer module of the run.
        num_sequences: Sequences of the training data.

    Returns:
        The number of steps.

    Examples:
        >>> from primus.config.schema import TrainerConfig
        >>> tiny = dict(num_layers=1, hidden_size=8, ffn_hidden_size=8, num_attention_heads=1, seq_length=8, lr=0.1)
        >>> num_steps(TrainerConfig(**tiny, global_batch_size=4, sft_num_epochs=1.5), num_sequences=10)
        4
    """
    if trainer.train_iters is not None:
        return trainer.train_iters
    return math.ceil((trainer.sft_num_epochs or 1.0) * num_sequences / trainer.global_batch_size)


def shared_positions(trainer: TrainerConfig) -> int:
    """Positions of which all ranks that share a sequence get the same whole number.

    Context parallelism gives each rank two chunks; tensor-parallel ranks share those under sequence parallelism.

    Args:
        trainer: The trainer module of the run.

    Returns:
        What the length of every sequence is a multiple of.

    Examples:
        >>> from primus.config.schema import TrainerConfig
        >>> tiny = dict(num_layers=1, hidden_size=8, ffn_hidden_size=8, num_attention_heads=1, seq_length=8, lr=0.1)
        >>> shared_positions(TrainerConfig(**tiny, global_batch_size=1, context_parallel_size=3))
        6
    """
    chunks = 2 * trainer.context_parallel_size if trainer.context_parallel_size > 1 else 1
    return chunks * (trainer.tensor_model_parallel_size if trainer.sequence_parallel else 1)


def width_multiple(trainer: TrainerConfig) -> int:
    """What the width of a micro-batch is rounded up to.

    Args:
        trainer: The trainer module of the run.

    Returns:
        `sft_pad_to_multiple_of`, or the next multiple of it that the ranks can share; where pipeline stages expect one
        width (see `has_variable_widths`), `seq_length`.

    Examples:
        >>> from primus.config.schema import TrainerConfig
        >>> tiny = dict(num_layers=1, hidden_size=8, ffn_hidden_size=8, num_attention_heads=1, seq_length=8, lr=0.1)
        >>> width_multiple(TrainerConfig(**tiny, global_batch_size=1, context_parallel_size=3))
        24
    """
    if trainer.pipeline_model_parallel_size > 1 and not has_variable_widths(trainer):
        return trainer.seq_length
    return math.lcm(trainer.sft_pad_to_multiple_of, shared_positions(trainer))


def has_variable_widths(trainer: TrainerConfig) -> bool:
    """Whether pipeline stages tell each other the width of every micro-batch before they send it.

    That costs a small message, and on a GPU the wait for it. Unpacked conversations are of such different lengths that
    padding all of them to `seq_length` would cost far more; packs fill it anyway.

    Args:
        trainer: The trainer module of the run.

    Returns:
        True with pipeline parallelism and unpacked conversations.
    """
    return trainer.pipeline_model_parallel_size > 1 and trainer.packing == "none"


def _nearest_multiples(value: int, divisor: int) -> str:
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else f"{divisor}"
