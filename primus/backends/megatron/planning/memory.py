# SPDX-License-Identifier: Apache-2.0
"""What a training step keeps in the memory of one rank, estimated before anything is built.

Bytes of weights, gradients and optimizer state per parameter are those of Megatron's optimizers (the table in
megatron-core's documentation of the distributed optimizer; Rajbhandari et al. 2020, "ZeRO", section 3). The
activations are counted as in Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer
Models", section 4: every tensor that the backward pass needs, once. Their layer is GPT-3's; here it is the Llama
family's: RMSNorm, grouped key-value heads, a gated MLP, no biases. Besides, a backward pass has gradients of
activations and of one matrix at a time; the most that it has of them is counted too. Not counted: the device's context,
communication buffers, workspaces of kernels, fragmentation.

Legend: t, p, c tensor, pipeline and context parallel size; H hidden size, F MLP width; positions are those of one
micro-batch on one rank, micro_batch_size * seq_length / c.
"""

import math
from dataclasses import dataclass
from typing import Literal

from primus.backends.megatron.planning.parameter_count import (
    AdapterCount,
    HeadLayout,
    ParameterCount,
    count_adapters,
    count_parameters,
    linear_layers,
)
from primus.config.schema import LoraConfig, ModelKeys

FLOAT32_BYTES = 4
BFLOAT16_BYTES = 2
_ADAM_MOMENTS = 2 * FLOAT32_BYTES
_BOOL = 1
# PyTorch's cross entropy has, at the start of its backward pass, the logarithms of the probabilities, the gradient
# with respect to them, and that with respect to the logits. Megatron's, which tensor-parallel ranks take, works in
# place.
_LOGITS_OF_TORCH = 3 * FLOAT32_BYTES


@dataclass(frozen=True, kw_only=True)
class ParallelSizes:
    """How many ranks share the model, and how."""

    tensor: int = 1
    """Ranks that share each layer's matrices, t."""
    pipeline: int = 1
    """Ranks that share the layers, p."""
    virtual_pipeline: int = 1
    """Model chunks per pipeline rank."""
    context: int = 1
    """Ranks that share each sequence, c."""
    data: int = 1
    """Copies of the model."""
    sequence_parallel: bool = False
    """Whether norms and residuals are shared by the tensor-parallel ranks too."""


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """What the backward pass computes again instead of keeping it, in Megatron's words."""

    granularity: Literal["full", "selective"] | None = None
    """None keeps everything; `full` computes whole layers again; `selective` only the attention's matrix of weights,
    which the fused attention does not keep anyway, so it saves nothing here."""
    method: Literal["uniform", "block"] | None = None
    """Whether `full` cuts all layers into blocks, or computes the first layers of a stage again and keeps the rest."""
    num_layers: int = 1
    """Layers of a block with `uniform`, layers that are computed again with `block`."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What is trained, and how wide its numbers are."""

    keys: ModelKeys
    """The model's keys."""
    parameters: ParameterCount
    """Its weights."""
    adapters: AdapterCount | None
    """Weights of its adapters; None if the model itself is trained."""
    lora: LoraConfig
    """Where the adapters are."""
    padded_vocab_size: int
    """Rows of the embedding."""
    bf16: bool
    """Whether weights and activations are bfloat16, with float32 main weights."""

    @classmethod
    def of(cls, keys: ModelKeys, *, lora: LoraConfig, padded_vocab_size: int, bf16: bool) -> "ModelShape":
        """Count the weights of a model."""
        return cls(
            keys=keys,
            parameters=count_parameters(keys, padded_vocab_size=padded_vocab_size),
            adapters=count_adapters(keys, lora) if lora.enabled else None,
            lora=lora,
            padded_vocab_size=padded_vocab_size,
            bf16=bf16,
        )

    @property
    def element_bytes(self) -> int:
        """Bytes of a weight, and of an element of an activation."""
        return BFLOAT16_BYTES if self.bf16 else FLOAT32_BYTES


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """What one rank gets in a step, at most."""

    micro_batch_size: int
    """Sequences of one forward pass."""
    num_micro_batches: int
    """Forward passes of one optimizer step."""
    seq_length: int
    """Positions of the longest sequence, padding included."""
    num_targets: int
    """Most positions of one sequence that are trained."""
    is_packed: bool = False
    """Whether sequences hold several conversations."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on the fullest rank."""

    weights: int
    """The parameters."""
    gradients: int
    """The buffer that gradients are added up and reduced in."""
    optimizer: int
    """Adam's moments, and the float32 weights if the model's are bfloat16."""
    activations: int
    """What the layers keep for the backward pass."""
    temporary: int
    """The most that is there besides for a moment: the logits and what the loss makes of them, or a layer's backward
    pass and what it computes again."""
    temporary_is_logits: bool
    """Whether that is the logits."""
    stage: int
    """The pipeline stage of the fullest rank."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.temporary


def estimate_memory(
    model: ModelShape,
    *,
    sizes: ParallelSizes,
    batch: BatchShape,
    use_distributed_optimizer: bool,
    recompute: Recompute,
) -> MemoryEstimate:
    """Estimate what the fullest rank keeps.

    The first pipeline stage has the most micro-batches under way, the last one the logits; those between them have less
    of the one and none of the other.

    Args:
        model: The model.
        sizes: How many ranks share it, and how.
        batch: What one rank gets in a step.
        use_distributed_optimizer: Whether data- and context-parallel ranks share out the optimizer state.
        recompute: What is computed again.

    Returns:
        The estimate, in bytes.
    """
    stages = (
        estimate_stage(
            stage,
            model,
            sizes=sizes,
            batch=batch,
            num_shards=sizes.data * sizes.context if use_distributed_optimizer else 1,
            recompute=recompute,
        )
        for stage in sorted({0, sizes.pipeline - 1})
    )
    return max(stages, key=lambda estimate: estimate.total)


def estimate_stage(
    stage: int, model: ModelShape, *, sizes: ParallelSizes, batch: BatchShape, num_shards: int, recompute: Recompute
) -> MemoryEstimate:
    """Estimate what a rank of a pipeline stage keeps.

    Args:
        stage: The stage, from 0.
        model: The model.
        sizes: How many ranks share it, and how.
        batch: What one rank gets in a step.
        num_shards: Ranks that share out the optimizer state.
        recompute: What is computed again.

    Returns:
        The estimate, in bytes.
    """
    element_bytes, is_last = model.element_bytes, stage == sizes.pipeline - 1
    num_weights = model.parameters.on_stage(stage, tensor_parallel=sizes.tensor, pipeline_parallel=sizes.pipeline)
    num_trained = num_weights
    if model.adapters is not None:
        num_trained = model.adapters.on_one_rank(tensor_parallel=sizes.tensor, pipeline_parallel=sizes.pipeline)
        num_weights += num_trained
    positions = batch.micro_batch_size * batch.seq_length // sizes.context
    targets = min(batch.micro_batch_size * batch.num_targets, positions)
    layer_bytes = positions * kept_bytes_per_position(model, sizes=sizes, is_packed=batch.is_packed)
    residual_bytes = positions * _residual_width(model.keys, sizes=sizes) * element_bytes
    kept_per_pass, again_bytes = _kept_of_chunk(
        num_layers=model.keys.num_layers // (sizes.pipeline * sizes.virtual_pipeline),
        layer_bytes=layer_bytes,
        residual_bytes=residual_bytes,
        recompute=recompute,
    )
    # What a stage has sent is emptied on a GPU (Megatron's deallocate_pipeline_outputs).
    kept = passes_under_way(stage, sizes, num_micro_batches=batch.num_micro_batches) * kept_per_pass
    if is_last:
        # The final norm keeps its input, and the output layer that of its own at the targets.
        kept += residual_bytes + targets * model.keys.hidden_size * element_bytes
    logits = _logits_at_work(model, targets=targets, tensor=sizes.tensor) if is_last else 0
    layer = again_bytes + _layer_at_work(model, positions=positions, sizes=sizes)
    return MemoryEstimate(
        weights=num_weights * element_bytes,
        gradients=num_trained * FLOAT32_BYTES,
        optimizer=num_trained * (_ADAM_MOMENTS + (FLOAT32_BYTES if model.bf16 else 0)) // num_shards,
        activations=int(kept),
        temporary=int(max(logits, layer)),
        temporary_is_logits=logits > layer,
        stage=stage,
    )


def _residual_width(model: ModelKeys, *, sizes: ParallelSizes) -> float:
    """Elements per position of a tensor between the parallel regions; sequence parallelism shares it out."""
    return model.hidden_size / (sizes.tensor if sizes.sequence_parallel else 1)


def kept_bytes_per_position(model: ModelShape, *, sizes: ParallelSizes, is_packed: bool) -> float:
    """Bytes that one layer keeps for one position.

    Between the tensor-parallel regions, H each: the inputs of the two norms, and of the two linear layers after them.
    In the attention: the result of `linear_qkv`, which the values are a view of, queries and keys with their
    positions, and the context; and one float32 per head, which the fused attention keeps in place of the matrix of
    its weights (Dao et al. 2022, "FlashAttention"). (That is Transformer Engine's layer; ours copies the values and
    keeps less.) In the gated MLP, 3 F: both halves of `linear_fc1`, and their product. Packed conversations, and the
    chunks of context-parallel ranks, have a context each, which is kept besides all of them together; packs have sines
    and cosines of their own positions, and context-parallel ranks the keys and values of the whole sequence.
    """
    keys, heads, element_bytes = model.keys, HeadLayout.of(model.keys), model.element_bytes
    between = 4 * _residual_width(keys, sizes=sizes) * element_bytes
    if keys.hidden_dropout > 0:
        between += 2 * _residual_width(keys, sizes=sizes) * _BOOL
    inside = 3 * (heads.query_width + heads.key_width) * element_bytes + heads.num_attention_heads * FLOAT32_BYTES
    if keys.qk_layernorm:
        inside += (heads.query_width + heads.key_width) * element_bytes
    if sizes.context > 1:
        inside += 2 * sizes.context * heads.key_width * element_bytes
    inside += (3 if keys.swiglu else 2) * keys.ffn_hidden_size * element_bytes
    if is_packed or sizes.context > 1:
        inside += heads.query_width * element_bytes
    if is_packed:
        between += (4 if keys.qk_layernorm else 1) * heads.kv_channels * element_bytes
    if model.adapters is None:
        return between + inside / sizes.tensor
    own_between, own_inside = _bytes_of_adapters(model, sizes=sizes)
    return between + own_between + (inside + own_inside) / sizes.tensor


def _bytes_of_adapters(model: ModelShape, *, sizes: ParallelSizes) -> tuple[float, float]:
    """What adapters add between the tensor-parallel regions and inside them, and what they leave out.

    A frozen linear layer does not keep its input, so what is kept of it is the adapter's: the input of its first matrix
    and, `dim` wide, that of its second. With dropout the first of them is another tensor, and dropout keeps a mask. The
    context, which is the input of `linear_proj`, is kept by the attention in any case.
    """
    lora, element_bytes, layers = model.lora, model.element_bytes, linear_layers(model.keys)
    between = inside = 0.0
    for name, layer in layers.items():
        is_trained = name in lora.target_modules
        extra = 0.0
        if not is_trained and name != "linear_proj":
            extra -= layer.input * element_bytes
        if is_trained and lora.dropout > 0:
            is_before = lora.dropout_position == "pre"
            extra += layer.input * (_BOOL + element_bytes) if is_before else layer.output * _BOOL
        if is_trained:
            between += lora.dim * element_bytes
        if layer.is_cut_along_output:
            between += extra * _residual_width(model.keys, sizes=sizes) / model.keys.hidden_size
        else:
            inside += extra
    return between, inside


def _logits_at_work(model: ModelShape, *, targets: int, tensor: int) -> float:
    """The most that the output layer and the loss have at once, in their forward or at the start of their backward."""
    own_logits = targets * model.padded_vocab_size / tensor
    if tensor > 1:
        # A float32 copy of the logits; in float32 the logits themselves.
        return own_logits * (FLOAT32_BYTES + (BFLOAT16_BYTES if model.bf16 else 0))
    return own_logits * _LOGITS_OF_TORCH


def _layer_at_work(model: ModelShape, *, positions: int, sizes: ParallelSizes) -> float:
    """The most that a layer's backward pass has at once, besides what was kept for it.

    That is in the MLP, and counted in its width F: three, the gradients of both halves of `linear_fc1` and what they
    are made of less what has been let go of, and the gradient of the matrix of `linear_fc2`, before it is added to the
    others'; or two, and the gradient of `linear_fc1`. Besides there is one gradient of width H, and with sequence
    parallelism the same one of all tensor-parallel ranks.
    """
    keys = model.keys
    ffn = keys.ffn_hidden_size / sizes.tensor
    matrix = 0 if model.adapters is not None else keys.hidden_size
    # Without a gate both matrices are as large as each other.
    halves = 2 if keys.swiglu else 1
    in_ffn = ffn * max((halves + 1) * positions + matrix, halves * (positions + matrix))
    in_hidden = positions * _residual_width(keys, sizes=sizes)
    if sizes.sequence_parallel:
        in_hidden += positions * keys.hidden_size
    return (in_ffn + in_hidden) * model.element_bytes


def passes_under_way(stage: int, sizes: ParallelSizes, *, num_micro_batches: int) -> int:
    """Forward passes of model chunks whose activations a pipeline stage holds at once.

    One-forward-one-backward: as many as there are stages from this one to the last. Interleaved: `p * (v - 1)` passes
    to reach the last chunk, two for each later stage, and the one that goes back first (megatron-core,
    pipeline_parallel/schedules.py, `get_pp_rank_microbatches`). On the first stage that is 1 + (p - 1) / (p * v) times
    what it would be without interleaving (Korthikanti et al. 2022, section 4.2.3).

    Args:
        stage: The stage, from 0.
        sizes: How many ranks share the model, and how.
        num_micro_batches: Forward passes of the whole model in a step.

    Returns:
        Their number, each of `1 / virtual_pipeline` of the stage's layers.

    Examples:
        >>> sizes = ParallelSizes(pipeline=4, virtual_pipeline=2)
        >>> [passes_under_way(stage, sizes, num_micro_batches=8) for stage in range(4)]
        [11, 9, 7, 5]
    """
    later, chunks = sizes.pipeline - stage - 1, sizes.virtual_pipeline
    under_way = later + 1 if chunks == 1 else 2 * later + (chunks - 1) * sizes.pipeline + 1
    return min(num_micro_batches * chunks, under_way)


def _kept_of_chunk(
    *, num_layers: int, layer_bytes: float, residual_bytes: float, recompute: Recompute
) -> tuple[float, float]:
    """Bytes that the layers of a model chunk keep for one pass, and those of the block that is computed again."""
    if recompute.granularity != "full":
        return num_layers * layer_bytes, 0
    block = min(recompute.num_layers, num_layers)
    if recompute.method == "block":
        return block * residual_bytes + (num_layers - block) * layer_bytes, layer_bytes
    return math.ceil(num_layers / block) * residual_bytes, block * layer_bytes
