# SPDX-License-Identifier: Apache-2.0
"""What a run will be, from its configuration and its data, without a model and without a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.planning.devices import Machine
from primus.backends.megatron.planning.layout import Layout, build_layout, num_steps, width_multiple
from primus.backends.megatron.planning.memory import MemoryEstimate, ModelShape, Recompute
from primus.backends.megatron.planning.parameter_count import Vocabulary, build_vocabulary
from primus.backends.megatron.planning.search import (
    USABLE_SHARE,
    Candidate,
    RunShape,
    estimate,
    memory_of,
    model_shape,
    recompute_of,
    widest_of,
)
from primus.backends.megatron.planning.workload import Workload
from primus.config.schema import TrainConfig, TrainerConfig


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
    model: ModelShape
    """Weights of the model and of its adapters."""
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
    run: RunShape
    """What it has in common with other layouts of the run."""
    memory: MemoryEstimate
    """What the fullest rank keeps."""
    activations_kept: int
    """Bytes of the activations if nothing is recomputed."""
    activations_recomputed: int
    """Bytes of the activations if every layer is recomputed by itself."""
    machine: Machine | None = None
    """The GPUs it is planned for; None if none are known."""
    candidate: Candidate | None = None
    """Its time, on a known kind of GPU."""

    @property
    def widest(self) -> int:
        """Positions of the widest micro-batch there can be."""
        return widest_of(self.trainer, self.run.longest)

    @property
    def num_epochs(self) -> float:
        """Passes over the training data."""
        return self.num_steps * self.trainer.global_batch_size / self.sequences_per_epoch

    @property
    def fits(self) -> bool | None:
        """Whether the GPUs have room for it; None if they are not known."""
        return None if self.candidate is None or self.machine is None else self.candidate.fits(self.machine.memory_gib)

    def lines(self) -> list[str]:
        """The plan for people: at most 100 columns, one number per line."""
        return [*_model_lines(self), *_layout_lines(self), *_data_lines(self), *_memory_lines(self)]


def build_run_shape(
    config: TrainConfig, *, train: SFTDataset, validation: SFTDataset | None
) -> tuple[RunShape, int, int]:
    """Work out what all layouts of a run have in common.

    Args:
        config: The run.
        train: Its training data.
        validation: Its validation data, if it has any.

    Returns:
        That; the optimizer steps of the run; and the training sequences of an epoch.

    Raises:
        ConfigError: If the vocabulary does not fit the tokenizer.
    """
    trainer, tokenizer = config.trainer, train.tokenizer
    order = train.order(global_batch_size=trainer.global_batch_size, length_bucket=trainer.sft_length_bucket)
    steps = num_steps(trainer, num_sequences=order.sequences_per_epoch)
    run = RunShape(
        trainer=trainer,
        used_vocab_size=build_vocabulary(trainer, tokenizer=tokenizer.name, num_ids=tokenizer.vocab_size).used,
        workload=Workload.of(train, order, num_steps=steps),
        longest=max(int(data.num_positions_N.max()) for data in (train, validation) if data is not None),
        most_targets=int(train.num_targets_N.max()),
    )
    return run, steps, order.sequences_per_epoch


def build_plan(
    config: TrainConfig,
    *,
    train: SFTDataset,
    validation: SFTDataset | None,
    world_size: int,
    machine: Machine | None = None,
) -> Plan:
    """Work out what a run will be.

    Args:
        config: The run.
        train: Its training data.
        validation: Its validation data, if it has any.
        world_size: Ranks to plan for.
        machine: The GPUs to plan for, if they are known.

    Returns:
        The plan.

    Raises:
        ConfigError: If the vocabulary does not fit the tokenizer.
        LayoutError: If that many ranks cannot share the run.
    """
    trainer = config.trainer
    layout = build_layout(trainer, world_size=world_size)
    vocabulary = build_vocabulary(trainer, tokenizer=train.tokenizer.name, num_ids=train.tokenizer.vocab_size)
    run, steps, sequences_per_epoch = build_run_shape(config, train=train, validation=validation)
    recompute = recompute_of(trainer)
    every_layer = Recompute(granularity="full", method="uniform", num_layers=1)
    return Plan(
        trainer=trainer,
        layout=layout,
        vocabulary=vocabulary,
        model=model_shape(trainer, used_vocab_size=vocabulary.used),
        train=DataPlan.of(train),
        validation=None if validation is None else DataPlan.of(validation),
        num_steps=steps,
        sequences_per_epoch=sequences_per_epoch,
        padding_share=run.workload.padding_share(
            micro_batch_size=trainer.micro_batch_size, multiple=width_multiple(trainer)
        ),
        run=run,
        memory=memory_of(trainer, layout, run, recompute=recompute),
        activations_kept=memory_of(trainer, layout, run, recompute=replace(recompute, granularity=None)).activations,
        activations_recomputed=memory_of(trainer, layout, run, recompute=every_layer).activations,
        machine=machine,
        candidate=None if machine is None else estimate(trainer, layout, run, gpu=machine.gpu),
    )


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
    trainer, parameters = plan.trainer, plan.model.parameters
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
        *_adapter_lines(plan),
        _row("vocabulary", f"{plan.vocabulary.used:,}", f"padded to {plan.vocabulary.padded:,} rows"),
    ]


def _adapter_lines(plan: Plan) -> list[str]:
    adapters = plan.model.adapters
    if adapters is None:
        return []
    share = 100 * adapters.total / plan.model.parameters.total
    return [_row("trained", f"{adapters.total:,}", f"adapters of rank {plan.trainer.lora.dim}; {share:.2g} % as many")]


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
    num_shards = plan.layout.data_parallel_size * trainer.context_parallel_size
    shared = f"; shared by {num_shards} ranks" if trainer.use_distributed_optimizer and num_shards > 1 else ""
    size = f"{trainer.micro_batch_size} x {plan.widest:,} positions"
    recomputed = f"{_gib(plan.activations_recomputed)} with full recomputation"
    kept = f"{_gib(plan.activations_kept)} without recomputation"
    of_adapters = ", of the adapters only" if plan.model.adapters is not None else ""
    logits = f"{trainer.micro_batch_size} x {plan.run.most_targets:,} targets x {plan.vocabulary.padded:,} logits"
    stages = trainer.pipeline_model_parallel_size
    where = f"of pipeline stage {memory.stage + 1} of {stages}; " if stages > 1 else ""
    rows: Sequence[tuple[str, int, str]] = (
        ("weights", memory.weights, dtype),
        ("gradients", memory.gradients, f"float32{of_adapters}"),
        ("optimizer", memory.optimizer, f"{state}{shared}"),
        ("activations", memory.activations, f"{size}; {kept if trainer.recompute_granularity else recomputed}"),
        ("at work", memory.temporary, logits if memory.temporary_is_logits else "the backward pass of a layer"),
        ("together", memory.total, f"{where}leave a tenth for what is not estimated"),
    )
    return [
        "memory of a rank, GiB",
        *(_row(name, _gib(num_bytes), remark) for name, num_bytes, remark in rows),
        *_machine_lines(plan),
    ]


def _machine_lines(plan: Plan) -> list[str]:
    """Whether it fits, and how long a step takes; nothing if it is not known on what."""
    machine, candidate = plan.machine, plan.candidate
    if machine is None or candidate is None:
        return []
    verdict = "fits" if plan.fits else "does NOT fit"
    limit = USABLE_SHARE * machine.memory_gib
    return [
        f"on {plan.layout.world_size} x {machine.name}, {machine.memory_gib:g} GiB each",
        _row(verdict, f"{plan.memory.total / 2**30 / limit:.0%}", f"of {limit:.0f} GiB, nine tenths of the memory"),
        _row("step time, s", f"{candidate.time.total:.3g}", "estimated, for comparing layouts"),
        _row("tokens per second", f"{candidate.tokens_per_second:,.0f}", "of all ranks, padding not counted"),
        _row("MFU", f"{100 * candidate.mfu:.0f} %", f"useful work, of {machine.gpu.peak_tflops:,g} TFLOP/s per GPU"),
    ]
