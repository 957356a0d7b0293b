# SPDX-License-Identifier: Apache-2.0
"""How long a step takes in a layout: a small model of work, exchanges and waiting, for putting layouts in order.

It knows the rate of matrix products, the bandwidth of memory and links, and what is exchanged when. It does not know
kernels: launches, small matrices, and how far an exchange slows down a computation beside it. So its times are good for
comparing layouts of one model on one kind of machine, and rough as times.

What is exchanged (Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters Using
Megatron-LM", sections 2 and 3; Korthikanti et al. 2022, section 4.2.2):

| group | what | how often |
|---|---|---|
| tensor | residual-wide tensors, gathered and reduced | 8 times per layer, 10 with sequence parallelism |
| context | keys and values, gathered; their gradients, reduced | once per layer each way |
| pipeline | a residual-wide tensor to the next stage and its gradient back | once per micro-batch and chunk |
| data | float32 gradients, reduced; weights, gathered | once per step |

Tensor, context and pipeline exchanges are waited for. Those of data parallelism run beside the computation if the
overlap is switched on: the reduction beside the last backward pass, the gathering beside the first forward pass.

Legend: t, p, c, d tensor, pipeline, context and data parallel size, v chunks per stage, m micro-batches.
"""

from dataclasses import dataclass

from primus.backends.megatron.planning.devices import GPUS_PER_NODE, NETWORK_BYTES_PER_S, Gpu
from primus.backends.megatron.planning.flops import count_flops
from primus.backends.megatron.planning.memory import (
    FLOAT32_BYTES,
    ModelShape,
    ParallelSizes,
    Recompute,
    kept_bytes_per_position,
)
from primus.backends.megatron.planning.parameter_count import HeadLayout
from primus.backends.megatron.planning.workload import StepWork

ATTENTION_SHARE = 0.6
"""Rate of fused attention, forward and backward, as a share of that of large matrix products."""
LINK_SHARE = 0.75
"""Share of a link's bandwidth that large exchanges reach."""
_TOUCHES = 4
"""How often norms, activations and sums read or write each byte that a layer keeps, forward and backward together."""
_READS_OF_WEIGHT = 2
"""How often matrix products read each weight in a pass, forward and backward together."""
_TOUCHES_OF_GRADIENT, _TOUCHES_OF_SUM = 2, 2
"""How often a pass writes or reads a weight's gradient, and the float32 sum that it is added to."""
_BYTES_OF_UPDATE = 30
"""What Adam reads and writes for each weight: gradient, main weight and two moments, and all but the gradient back."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step, by what they are spent on."""

    compute: float
    """Matrix products and attention, and what is between them, of the slowest rank and stage."""
    recompute: float
    """The part of the forward pass that is done twice."""
    tensor: float
    """Exchanges of tensor-parallel ranks."""
    context: float
    """Exchanges of context-parallel ranks."""
    pipeline: float
    """Exchanges between stages."""
    bubble: float
    """Waiting for the pipeline to fill and to drain."""
    data: float
    """Exchanges of gradients and weights that nothing hides."""
    optimizer: float
    """The update of the weights."""

    @property
    def total(self) -> float:
        """All of them."""
        return (
            self.compute
            + self.recompute
            + self.tensor
            + self.context
            + self.pipeline
            + self.bubble
            + self.data
            + self.optimizer
        )


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What runs beside the computation."""

    grad_reduce: bool
    """The reduction of gradients."""
    param_gather: bool
    """The gathering of weights."""


def estimate_step_time(
    model: ModelShape,
    *,
    vocab_size: int,
    sizes: ParallelSizes,
    work: StepWork,
    recompute: Recompute,
    use_distributed_optimizer: bool,
    overlap: Overlap,
    gpu: Gpu,
) -> StepTime:
    """Estimate the time of a step.

    Args:
        model: The model.
        vocab_size: Rows of the output layer that stand for a token.
        sizes: How many ranks share it, and how.
        work: What a step computes.
        recompute: What is computed again.
        use_distributed_optimizer: Whether data- and context-parallel ranks share out the update.
        overlap: What runs beside the computation.
        gpu: The kind of GPU of all ranks.

    Returns:
        The time, by parts.
    """
    passes = work.num_micro_batches
    # Frozen matrices have no gradients of their own, and so half the backward pass.
    forward_share = 1 / 3 if model.adapters is None else 1 / 2
    layers, output = _compute_of_rank(model, vocab_size=vocab_size, sizes=sizes, work=work, gpu=gpu)
    # The last stage has the output layer, and the others wait for it.
    compute = layers + output
    share_again = _share_computed_again(
        recompute, num_layers=model.keys.num_layers // (sizes.pipeline * sizes.virtual_pipeline)
    )
    again = layers * forward_share * share_again
    tensor = _tensor_exchanges(model, sizes=sizes, work=work, gpu=gpu, share_again=share_again)
    context = _context_exchanges(model, sizes=sizes, work=work, gpu=gpu, share_again=share_again)
    pipeline = _pipeline_exchanges(model, sizes=sizes, work=work, gpu=gpu)
    per_pass = (layers + again + tensor + context + pipeline) / passes
    reduce, gather = _data_exchanges(model, sizes=sizes, gpu=gpu, use_distributed_optimizer=use_distributed_optimizer)
    hidden_reduce = per_pass * (1 - forward_share) if overlap.grad_reduce else 0.0
    hidden_gather = per_pass * forward_share if overlap.param_gather else 0.0
    return StepTime(
        compute=compute,
        recompute=again,
        tensor=tensor,
        context=context,
        pipeline=pipeline,
        bubble=per_pass * (sizes.pipeline - 1) / sizes.virtual_pipeline,
        data=max(0.0, reduce - hidden_reduce) + max(0.0, gather - hidden_gather),
        optimizer=_trained_on_rank(model, sizes)
        * _BYTES_OF_UPDATE
        / (sizes.data * sizes.context if use_distributed_optimizer else 1)
        / gpu.memory_bytes_per_s,
    )


def useful_flops(model: ModelShape, work: StepWork, *, vocab_size: int) -> float:
    """Operations that a step needs: no padding, and nothing twice.

    Args:
        model: The model.
        work: What a step computes.
        vocab_size: Rows of the output layer that stand for a token.

    Returns:
        The operations of all ranks.
    """
    flops = count_flops(model.keys, vocab_size=vocab_size, adapters=model.adapters)
    return (
        work.useful_positions * flops.per_position
        + work.useful_pairs * flops.per_pair
        + work.targets * flops.per_target
    )


def _compute_of_rank(
    model: ModelShape, *, vocab_size: int, sizes: ParallelSizes, work: StepWork, gpu: Gpu
) -> tuple[float, float]:
    """Seconds of a rank's layers, and of the output layer if it has it."""
    flops = count_flops(model.keys, vocab_size=vocab_size, adapters=model.adapters)
    rate = gpu.peak_tflops * 1e12 * gpu.matmul_share
    ranks_of_sequence, ranks_of_model = sizes.tensor * sizes.context, sizes.tensor * sizes.pipeline
    parameters, passes = model.parameters, work.num_micro_batches
    weight_bytes = parameters.num_layers * parameters.cut_per_layer / ranks_of_model * model.element_bytes
    matmuls = max(
        work.slowest_positions * flops.per_position / rate / ranks_of_sequence / sizes.pipeline,
        # A pass of few positions waits for the weights.
        passes * _READS_OF_WEIGHT * weight_bytes / gpu.memory_bytes_per_s,
    )
    attention = work.slowest_pairs * flops.per_pair / (rate * ATTENTION_SHARE) / ranks_of_sequence / sizes.pipeline
    kept = kept_bytes_per_position(model, sizes=sizes, is_packed=False) * parameters.num_layers / sizes.pipeline
    moved = _TOUCHES * work.slowest_positions / sizes.context * kept
    moved += (
        passes
        * _trained_on_rank(model, sizes)
        * (_TOUCHES_OF_GRADIENT * model.element_bytes + _TOUCHES_OF_SUM * FLOAT32_BYTES)
    )
    output = work.targets / sizes.data * flops.per_target / rate / ranks_of_sequence
    return matmuls + attention + moved / gpu.memory_bytes_per_s, output


def _share_computed_again(recompute: Recompute, *, num_layers: int) -> float:
    if recompute.granularity != "full":
        return 0.0
    return min(recompute.num_layers, num_layers) / num_layers if recompute.method == "block" else 1.0


def _bytes_per_s(gpu: Gpu, *, num_ranks: int, neighbours: int) -> float:
    """Bandwidth of an exchange among `num_ranks` ranks that are `neighbours` apart in the order of ranks.

    In a node it is the links'. Beyond it, each of the group's ranks in a node brings its own network card.
    """
    if num_ranks * neighbours <= GPUS_PER_NODE:
        return gpu.link_bytes_per_s * LINK_SHARE
    in_node = max(1, GPUS_PER_NODE // neighbours)
    return min(gpu.link_bytes_per_s, in_node * NETWORK_BYTES_PER_S) * LINK_SHARE


def _tensor_exchanges(
    model: ModelShape, *, sizes: ParallelSizes, work: StepWork, gpu: Gpu, share_again: float
) -> float:
    if sizes.tensor == 1:
        return 0.0
    num = 4 + 4 + (2 if sizes.sequence_parallel and model.adapters is None else 0) + 4 * share_again
    num_bytes = work.slowest_positions / sizes.context * model.keys.hidden_size * model.element_bytes
    num_layers = model.keys.num_layers / sizes.pipeline
    moved = num * num_layers * num_bytes * (sizes.tensor - 1) / sizes.tensor
    return moved / _bytes_per_s(gpu, num_ranks=sizes.tensor, neighbours=1)


def _context_exchanges(
    model: ModelShape, *, sizes: ParallelSizes, work: StepWork, gpu: Gpu, share_again: float
) -> float:
    if sizes.context == 1:
        return 0.0
    width = 2 * HeadLayout.of(model.keys).key_width / sizes.tensor
    num_bytes = work.slowest_positions / sizes.context * width * model.element_bytes * (sizes.context - 1)
    moved = (2 + share_again) * model.keys.num_layers / sizes.pipeline * num_bytes
    return moved / _bytes_per_s(gpu, num_ranks=sizes.context, neighbours=sizes.tensor)


def _pipeline_exchanges(model: ModelShape, *, sizes: ParallelSizes, work: StepWork, gpu: Gpu) -> float:
    if sizes.pipeline == 1:
        return 0.0
    width = model.keys.hidden_size / (sizes.tensor if sizes.sequence_parallel else 1)
    num_bytes = work.slowest_positions / sizes.context * width * model.element_bytes
    apart = sizes.tensor * sizes.context * sizes.data
    return 2 * sizes.virtual_pipeline * num_bytes / _bytes_per_s(gpu, num_ranks=2, neighbours=apart)


def _data_exchanges(
    model: ModelShape, *, sizes: ParallelSizes, gpu: Gpu, use_distributed_optimizer: bool
) -> tuple[float, float]:
    """Seconds to reduce the gradients, and to gather the weights."""
    num_ranks = sizes.data * sizes.context
    trained = _trained_on_rank(model, sizes)
    rate = _bytes_per_s(gpu, num_ranks=num_ranks, neighbours=sizes.tensor)
    once = trained * (num_ranks - 1) / num_ranks / rate
    if not use_distributed_optimizer:
        return 2 * once * FLOAT32_BYTES, 0.0
    return once * FLOAT32_BYTES, once * model.element_bytes


def _trained_on_rank(model: ModelShape, sizes: ParallelSizes) -> int:
    counts = model.parameters if model.adapters is None else model.adapters
    return counts.on_one_rank(tensor_parallel=sizes.tensor, pipeline_parallel=sizes.pipeline)
