# SPDX-License-Identifier: Apache-2.0
"""What a training step keeps in the memory of one rank, estimated before anything is built.

Bytes of weights, gradients and optimizer state per parameter are those of Megatron's optimizers (the table in
megatron-core's documentation of the distributed optimizer; Rajbhandari et al. 2020, "ZeRO", section 3). The
activations are counted as in Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer
Models", section 4: every tensor that the backward pass needs, once. Their layer is GPT-3's; here it is the Llama
family's: RMSNorm, grouped key-value heads, a gated MLP, no biases. Not counted: the device's context, communication
buffers, the gradient of the one weight that is being computed, workspaces of kernels, fragmentation.

Legend: t, p, c tensor, pipeline and context parallel size; L layers, H hidden size, F MLP width; positions are those
of one micro-batch on one rank, micro_batch_size * seq_length / c.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from primus.backends.megatron.planning.parameter_count import HeadLayout, ParameterCount
from primus.config.schema import ModelKeys

_FLOAT32 = 4
_BFLOAT16 = 2
_ADAM_MOMENTS = 2 * _FLOAT32
_BOOL = 1


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
    logits: int
    """The output layer's result at the targets, and what the loss makes of it."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def estimate_memory(
    model: ModelKeys,
    *,
    parameters: ParameterCount,
    padded_vocab_size: int,
    sizes: ParallelSizes,
    micro_batch_size: int,
    num_micro_batches: int,
    seq_length: int,
    num_targets: int,
    bf16: bool,
    use_distributed_optimizer: bool,
    recompute: Recompute,
    is_packed: bool = False,
) -> MemoryEstimate:
    """Estimate what the fullest rank keeps.

    With pipeline parallelism that is the first stage, which has the most micro-batches under way, plus the logits of
    the last one: a rank is at most one of the two, so the estimate errs on the safe side.

    Args:
        model: The model's keys.
        parameters: Their counts.
        padded_vocab_size: Rows of the embedding.
        sizes: How many ranks share the model, and how.
        micro_batch_size: Sequences of one forward pass.
        num_micro_batches: Forward passes of one optimizer step.
        seq_length: Positions of the longest sequence, padding included.
        num_targets: Most positions of one sequence that are trained.
        bf16: Whether the weights are bfloat16, with float32 main weights.
        use_distributed_optimizer: Whether data- and context-parallel ranks share out the optimizer state.
        recompute: What is computed again.
        is_packed: Whether sequences hold several conversations.

    Returns:
        The estimate, in bytes.
    """
    num_parameters = parameters.on_one_rank(tensor_parallel=sizes.tensor, pipeline_parallel=sizes.pipeline)
    num_shards = sizes.data * sizes.context if use_distributed_optimizer else 1
    element_bytes = _BFLOAT16 if bf16 else _FLOAT32
    positions = micro_batch_size * seq_length // sizes.context
    layer_bytes = positions * _bytes_per_position(model, sizes=sizes, element_bytes=element_bytes, is_packed=is_packed)
    residual_bytes = positions * _residual_width(model, sizes=sizes) * element_bytes
    kept_bytes = _kept_bytes(
        num_layers=model.num_layers // sizes.pipeline,
        num_under_way=_passes_under_way(sizes, num_micro_batches=num_micro_batches),
        layer_bytes=layer_bytes,
        residual_bytes=residual_bytes,
        recompute=recompute,
    )
    # The loss has logits at targets only, and works in place on a float32 copy (in float32 on the logits themselves).
    logit_bytes = _FLOAT32 + (_BFLOAT16 if bf16 else 0)
    return MemoryEstimate(
        weights=num_parameters * element_bytes,
        gradients=num_parameters * _FLOAT32,
        optimizer=num_parameters * (_ADAM_MOMENTS + (_FLOAT32 if bf16 else 0)) // num_shards,
        # After the layers, the final norm keeps its input, and the output layer that of its own at the targets.
        activations=int(kept_bytes + 2 * residual_bytes),
        logits=micro_batch_size * num_targets * padded_vocab_size // sizes.tensor * logit_bytes,
    )


def without_recompute(recompute: Recompute) -> Recompute:
    """The same settings with nothing computed again, to show what recomputation saves."""
    return replace(recompute, granularity=None)


def _residual_width(model: ModelKeys, *, sizes: ParallelSizes) -> float:
    """Elements per position of a tensor between the parallel regions; sequence parallelism shares it out."""
    return model.hidden_size / (sizes.tensor if sizes.sequence_parallel else 1)


def _bytes_per_position(model: ModelKeys, *, sizes: ParallelSizes, element_bytes: int, is_packed: bool) -> float:
    """Bytes that one layer keeps for one position.

    Between the tensor-parallel regions, H each: the inputs of the two norms, and of the two linear layers after them.
    In the attention: the result of `linear_qkv`, which the values are a view of, queries and keys with their
    positions, and the context; and one float32 per head, which the fused attention keeps in place of the matrix of
    its weights (Dao et al. 2022, "FlashAttention"). In the gated MLP, 5 F: both halves of `linear_fc1`, the activation
    of the gate, the other half once more (megatron-core adds `glu_linear_offset` to it), and their product. Packed
    conversations have a context each, which is kept besides all of them together; and sines and cosines of their own
    positions, for queries and for keys.
    """
    heads = HeadLayout.of(model)
    between = 4 * _residual_width(model, sizes=sizes) * element_bytes
    if model.hidden_dropout > 0:
        between += 2 * _residual_width(model, sizes=sizes) * _BOOL
    inside = 3 * (heads.query_width + heads.key_width) * element_bytes + heads.num_attention_heads * _FLOAT32
    if model.qk_layernorm:
        inside += (heads.query_width + heads.key_width) * element_bytes
    inside += (5 if model.swiglu else 2) * model.ffn_hidden_size * element_bytes
    if is_packed:
        inside += heads.query_width * element_bytes
        between += 4 * heads.query_width // heads.num_attention_heads * element_bytes
    return between + inside / sizes.tensor


def _passes_under_way(sizes: ParallelSizes, *, num_micro_batches: int) -> float:
    """Micro-batches whose activations the first pipeline stage holds at once.

    One-forward-one-backward holds p of them; interleaving holds 1 + (p - 1) / (p * v) times as much
    (Korthikanti et al. 2022, section 4.2.3).
    """
    pipeline, chunks = sizes.pipeline, sizes.virtual_pipeline
    interleaving = 1 + (pipeline - 1) / (pipeline * chunks) if chunks > 1 else 1
    return min(num_micro_batches, pipeline) * interleaving


def _kept_bytes(
    *, num_layers: int, num_under_way: float, layer_bytes: float, residual_bytes: float, recompute: Recompute
) -> float:
    """Bytes of one stage's layers: what all micro-batches under way keep, and one block while it is computed again."""
    if recompute.granularity != "full":
        return num_under_way * num_layers * layer_bytes
    if recompute.method == "block":
        num_again = min(recompute.num_layers, num_layers)
        kept = num_again * residual_bytes + (num_layers - num_again) * layer_bytes
        return num_under_way * kept + (layer_bytes if num_again else 0)
    block = min(recompute.num_layers, num_layers)
    return num_under_way * math.ceil(num_layers / block) * residual_bytes + block * layer_bytes
