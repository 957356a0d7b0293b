# SPDX-License-Identifier: Apache-2.0
"""What a run will be, from its configuration and its data, without a model and without a GPU.

Legend: N sequences of the data set, B sequences of a micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.planning.layout import Layout, build_layout, num_steps
from primus.backends.megatron.planning.memory import MemoryEstimate, ParallelSizes, Recompute, estimate_memory
from primus.backends.megatron.planning.parameter_count import (
    ParameterCount,
    Vocabulary,
    build_vocabulary,
    count_parameters,
)
from primus.config.schema import TrainConfig, TrainerConfig
from primus.sft.order import SequenceOrder

IntArray = npt.NDArray[np.int64]

_MOST_STEPS_LOOKED_AT = 2000


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """A data set in numbers; a token that is predicted is counted once, as a target or as context."""

    num_sequences: int
    """Training sequences."""
    num_conversations: int
    """Conversations in them; as many, if they are not packed."""
    packing: str
    """How conversations share sequences, in words; empty if they do not."""
    num_positions: int
    """Predicted tokens, padding not counted."""
    num_targets: int
    """Those that are trained."""
    longest: int
    """Positions of the longest training sequence."""

    @classmethod
    def of(cls, data: SFTDataset) -> "DataPlan":
        """The numbers of a data set."""
        return cls(
            num_sequences=len(data),
            num_conversations=len(data.data),
            packing=data.packing_in_words,
            num_positions=int(data.num_positions_N.sum()),
            num_targets=int(data.num_targets_N.sum()),
            longest=int(data.num_positions_N.max()),
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training run in numbers."""

    trainer: TrainerConfig
    """The settings."""
    layout: Layout
    """Ranks and micro-batches."""
    vocabulary: Vocabulary
    """Rows of the embedding."""
    parameters: ParameterCount
    """Weights of the model."""
    train: DataPlan
    """The training data."""
    validation: DataPlan | None
    """The validation data."""
    num_steps: int
    """Optimizer steps."""
    sequences_per_epoch: int
    """Training sequences of an epoch; of a mixture, as its sources have shares in it."""
    padding_share: float
    """Share of the positions of all micro-batches that hold padding."""
    widest: int
    """Positions of the widest micro-batch there can be."""
    most_targets: int
    """Most targets of one training sequence."""
    memory: MemoryEstimate
    """What the fullest rank keeps."""
    activations_kept: int
    """Bytes of the activations if nothing is recomputed."""
    activations_recomputed: int
    """Bytes of the activations if every layer is recomputed by itself."""

    @property
    def num_epochs(self) -> float:
        """Passes over the training data."""
        return self.num_steps * self.trainer.global_batch_size / self.sequences_per_epoch

    def lines(self) -> list[str]:
        """The plan for people: at most 100 columns, one number per line."""
        return [*_model_lines(self), *_layout_lines(self), *_data_lines(self), *_memory_lines(self)]


def build_plan(config: TrainConfig, *, train: SFTDataset, validation: SFTDataset | None, world_size: int) -> Plan:
    """Work out what a run will be.

    Args:
        config: The run.
        train: Its training data.
        validation: Its validation data, if it has any.
        world_size: Ranks to plan for.

    Returns:
        The plan.

    Raises:
        ConfigError: If the vocabulary does not fit the tokenizer.
        LayoutError: If that many ranks cannot share the run.
    """
    trainer = config.trainer
    layout = build_layout(trainer, world_size=world_size)
    tokenizer = train.tokenizer
    vocabulary = build_vocabulary(trainer, tokenizer=tokenizer.name, num_ids=tokenizer.vocab_size)
    parameters = count_parameters(trainer, padded_vocab_size=vocabulary.padded)
    order = train.order(global_batch_size=trainer.global_batch_size, length_bucket=trainer.sft_length_bucket)
    steps = num_steps(trainer, num_sequences=order.sequences_per_epoch)
    longest = max(int(data.num_positions_N.max()) for data in (train, validation) if data is not None)
    most_targets = int(train.num_targets_N.max())
    widest = _width(longest, multiple=trainer.sft_pad_to_multiple_of, limit=trainer.seq_length)
    recompute = Recompute(
        granularity=trainer.recompute_granularity,
        method=trainer.recompute_method,
        num_layers=trainer.recompute_num_layers or 1,
    )

    def memory(recompute: Recompute) -> MemoryEstimate:
        return estimate_memory(
            trainer,
            parameters=parameters,
            padded_vocab_size=vocabulary.padded,
            sizes=ParallelSizes(
                tensor=trainer.tensor_model_parallel_size,
                pipeline=trainer.pipeline_model_parallel_size,
                virtual_pipeline=trainer.virtual_pipeline_model_parallel_size or 1,
                context=trainer.context_parallel_size,
                data=layout.data_parallel_size,
                sequence_parallel=trainer.sequence_parallel,
            ),
            micro_batch_size=trainer.micro_batch_size,
            num_micro_batches=layout.num_micro_batches,
            seq_length=widest,
            num_targets=most_targets,
            bf16=trainer.bf16,
            use_distributed_optimizer=trainer.use_distributed_optimizer,
            recompute=recompute,
            is_packed=train.is_packed,
        )

    return Plan(
        trainer=trainer,
        layout=layout,
        vocabulary=vocabulary,
        parameters=parameters,
        train=DataPlan.of(train),
        validation=None if validation is None else DataPlan.of(validation),
        num_steps=steps,
        sequences_per_epoch=order.sequences_per_epoch,
        padding_share=_padding_share(train, order, trainer=trainer, num_steps=steps),
        widest=widest,
        most_targets=most_targets,
        memory=memory(recompute),
        activations_kept=memory(replace(recompute, granularity=None)).activations,
        activations_recomputed=memory(Recompute(granularity="full", method="uniform", num_layers=1)).activations,
    )


def _width(num_positions: int, *, multiple: int, limit: int) -> int:
    """Positions of a micro-batch whose longest sequence has so many."""
    return min(limit, -(-num_positions // multiple) * multiple)


def _padding_share(train: SFTDataset, order: SequenceOrder, *, trainer: TrainerConfig, num_steps: int) -> float:
    """Share of padding in the micro-batches of the run, of its first 2000 steps if it is longer."""
    num_positions = num_places = 0
    for step in range(min(num_steps, _MOST_STEPS_LOOKED_AT)):
        lengths_B = train.num_positions_N[order.global_batch(step)].reshape(-1, trainer.micro_batch_size)
        for longest in lengths_B.max(axis=1):
            width = _width(int(longest), multiple=trainer.sft_pad_to_multiple_of, limit=trainer.seq_length)
            num_places += width * trainer.micro_batch_size
        num_positions += int(lengths_B.sum())
    return 1 - num_positions / num_places


def _of_mixture(plan: Plan) -> str:
    """How long an epoch is where sources are mixed; nothing where it is all sequences once."""
    if plan.sequences_per_epoch == plan.train.num_sequences:
        return ""
    return f" of {plan.sequences_per_epoch:,} sequences, as the sources' shares say"


def _row(label: str, value: str, remark: str = "") -> str:
    return f"  {label:<22}{value:>16}  {remark}".rstrip()


def _gib(num_bytes: int) -> str:
    """Gibibytes with digits enough for a tiny model."""
    gib = num_bytes / 2**30
    return f"{gib:,.2f}" if gib >= 1 else f"{gib:.4f}"


def _model_lines(plan: Plan) -> list[str]:
    trainer, parameters = plan.trainer, plan.parameters
    groups = trainer.num_query_groups or trainer.num_attention_heads
    output = f"output layer {parameters.output_layer:,}" if parameters.output_layer else "the output layer is the same"
    return [
        "model",
        _row(
            "layers",
            f"{trainer.num_layers:,}",
            f"hidden {trainer.hidden_size:,}, MLP {trainer.ffn_hidden_size:,}, "
            f"{trainer.num_attention_heads} heads, {groups} key-value heads",
        ),
        _row("parameters", f"{parameters.total:,}", f"embedding {parameters.embedding:,}, {output}"),
        _row("vocabulary", f"{plan.vocabulary.used:,}", f"padded to {plan.vocabulary.padded:,} rows"),
    ]


def _layout_lines(plan: Plan) -> list[str]:
    trainer, layout = plan.trainer, plan.layout
    return [
        "ranks",
        _row(
            "ranks",
            f"{layout.world_size:,}",
            f"data parallel {layout.data_parallel_size} x tensor {trainer.tensor_model_parallel_size} x pipeline "
            f"{trainer.pipeline_model_parallel_size} x context {trainer.context_parallel_size}",
        ),
        _row(
            "sequences per step",
            f"{trainer.global_batch_size:,}",
            f"micro-batches of {trainer.micro_batch_size} x {layout.num_micro_batches} passes x "
            f"{layout.data_parallel_size} data-parallel ranks",
        ),
        _row("steps", f"{plan.num_steps:,}", f"{plan.num_epochs:.3g} epochs{_of_mixture(plan)}"),
    ]


def _data_lines(plan: Plan) -> list[str]:
    lines = ["data"]
    for name, data in (("training", plan.train), ("validation", plan.validation)):
        if data is not None:
            share = 100 * data.num_targets / data.num_positions
            lines += [
                _row(
                    f"{name} sequences", f"{data.num_sequences:,}", data.packing or f"longest {data.longest:,} tokens"
                ),
                _row(f"{name} tokens", f"{data.num_positions:,}", f"{data.num_targets:,} supervised ({share:.1f} %)"),
            ]
    return [
        *lines,
        _row(
            "padding",
            f"{100 * plan.padding_share:.1f} %",
            "a micro-batch is as wide as its longest sequence",
        ),
    ]


def _memory_lines(plan: Plan) -> list[str]:
    trainer, memory = plan.trainer, plan.memory
    dtype = "bfloat16" if trainer.bf16 else "float32"
    state = "Adam's moments, float32 weights" if trainer.bf16 else "Adam's moments"
    shared = f"; shared by {plan.layout.data_parallel_size} ranks" if trainer.use_distributed_optimizer else ""
    size = f"{trainer.micro_batch_size} x {plan.widest:,} positions"
    recomputed = f"{_gib(plan.activations_recomputed)} with full recomputation"
    kept = f"{_gib(plan.activations_kept)} without recomputation"
    rows: Sequence[tuple[str, int, str]] = (
        ("weights", memory.weights, dtype),
        ("gradients", memory.gradients, "float32"),
        ("optimizer", memory.optimizer, f"{state}{shared}"),
        ("activations", memory.activations, f"{size}; {kept if trainer.recompute_granularity else recomputed}"),
        (
            "logits",
            memory.logits,
            f"{trainer.micro_batch_size} x {plan.most_targets:,} targets x {plan.vocabulary.padded:,}",
        ),
        ("together", memory.total, "leave a tenth for what is not estimated"),
    )
    return [
        "memory of a rank, GiB",
        *(_row(name, _gib(num_bytes), remark) for name, num_bytes, remark in rows),
    ]
