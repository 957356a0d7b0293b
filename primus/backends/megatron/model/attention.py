# SPDX-License-Identifier: Apache-2.0
"""The modules that the layers of the model are built from.

With Transformer Engine on a GPU the layers are Transformer Engine's. Everywhere else they are Megatron's own, with two
modules of this project in them: attention by PyTorch's fused kernel and an RMSNorm that works with sequence
parallelism. Both sets of layers have the same parameters under the same names in a checkpoint.

Packed conversations always take the latter. Where each begins and ends reaches the attention through Megatron's layers
in the place of the mask, as a table of int32, which is never a mask's type. It is a tensor as the mask is, so it is
there again when a layer is recomputed; and it stays on the host, which starts a kernel for each conversation.

Shapes: S positions, B sequences, P = B * S positions of all of them, C conversations, N query heads, G key-value heads,
D width of a head.
"""

import importlib.util
import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class RMSNorm(torch.nn.RMSNorm):
    """Root-mean-square normalisation (Zhang and Sennrich, 2019, arXiv:1910.07467).

    Its weight carries the flag by which Megatron sums its gradient over the tensor-parallel ranks when each of them
    sees a part of the sequence.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class FusedDotProductAttention(MegatronModule):  # type: ignore[misc]
    """Causal attention by PyTorch's `scaled_dot_product_attention`, with grouped key-value heads.

    It never builds the scores of a whole sequence in memory, and picks the best kernel of the device by itself.
    """

    def __init__(
        self,
        config: TransformerConfig,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: object,
    ) -> None:
        super().__init__(config=config)
        if attn_mask_type is not AttnMaskType.causal or attention_type != "self":
            raise ValueError(f"attention is causal self-attention, not {attn_mask_type} {attention_type}")
        if config.context_parallel_size > 1:
            raise ValueError(f"context_parallel_size is {config.context_parallel_size}, not 1")
        self.dropout = config.attention_dropout
        self.softmax_scale = 1 / math.sqrt(config.kv_channels) if softmax_scale is None else softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        attention_bias: Tensor | None = None,
        packed_seq_params: object = None,
        **_: object,
    ) -> Tensor:
        """Attend to the positions before each position and to itself.

        Args:
            query: Shape [S, B, N, D].
            key: Shape [S, B, G, D].
            value: Shape [S, B, G, D].
            attention_mask: None for causal attention. A bool tensor of shape [B or 1, 1, S, S] is True where a position
                may **not** be attended to, as Megatron has it; it must then exclude the positions that follow as well.
                An int32 tensor of shape [C, 2] on the host has the positions `[first, last)` of each conversation:
                attention is causal inside each and does not leave it. Position `s` of sequence `b` is `b * S + s`, and
                what no conversation covers gets zeros.
            attention_bias: Must be None.
            packed_seq_params: Must be None.

        Returns:
            Shape [S, B, N * D].

        Raises:
            ValueError: If `attention_bias` or `packed_seq_params` is given.
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise ValueError("attention_bias and packed_seq_params are not supported")
        dropout = self.dropout if self.training else 0.0
        # Sequence-parallel layers have entered the stream of random numbers already.
        forked = dropout > 0 and not self.config.sequence_parallel
        with get_cuda_rng_tracker().fork() if forked else nullcontext():
            if attention_mask is not None and are_segments(attention_mask):
                return self._attend_in_segments(query, key, value, attention_mask, dropout=dropout)
            context_BNSD = self._attend(
                query.permute(1, 2, 0, 3), key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3), attention_mask, dropout
            )
        return context_BNSD.permute(2, 0, 1, 3).flatten(2)

    def _attend(
        self, query_BNSD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, mask: Tensor | None, dropout: float
    ) -> Tensor:
        return scaled_dot_product_attention(
            query_BNSD,
            key_BGSD,
            value_BGSD,
            attn_mask=None if mask is None else ~mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=self.softmax_scale,
            enable_gqa=query_BNSD.size(1) != key_BGSD.size(1),
        )

    def _attend_in_segments(
        self, query: Tensor, key: Tensor, value: Tensor, segments_C2: Tensor, *, dropout: float
    ) -> Tensor:
        """One causal attention per conversation, which costs the sum of the squares of their lengths."""
        num_positions, num_sequences = query.shape[:2]
        lengths, is_padding = _pieces(segments_C2, num_positions * num_sequences)
        # Splitting once, and joining once, keeps the backward pass from writing a whole sequence per conversation.
        query_pieces, key_pieces, value_pieces = (
            torch.split(tensor.transpose(0, 1).flatten(0, 1), lengths) for tensor in (query, key, value)
        )
        contexts: list[Tensor] = []
        for index, is_empty in enumerate(is_padding):
            if is_empty:
                contexts.append(torch.zeros_like(query_pieces[index]))
                continue
            query_BNSD, key_BGSD, value_BGSD = (
                pieces[index].transpose(0, 1).unsqueeze(0) for pieces in (query_pieces, key_pieces, value_pieces)
            )
            context_BNSD = self._attend(query_BNSD, key_BGSD, value_BGSD, None, dropout)
            contexts.append(context_BNSD.squeeze(0).transpose(0, 1))
        context_BSND = torch.cat(contexts).reshape(num_sequences, num_positions, *query.shape[2:])
        return context_BSND.transpose(0, 1).flatten(2).contiguous()


def are_segments(attention_mask: Tensor) -> bool:
    """Whether what stands in the place of the mask says where conversations begin and end; see the module."""
    is_table: bool = attention_mask.dtype == torch.int32
    return is_table


def _pieces(segments_C2: Tensor, num_places: int) -> tuple[list[int], list[bool]]:
    """Lengths of conversations and of the padding between them, and which of them are padding."""
    lengths: list[int] = []
    is_padding: list[bool] = []
    covered = 0
    for first, last in segments_C2.tolist():
        if not covered <= first <= last <= num_places:
            raise ValueError(f"a conversation from {first} to {last}, behind {covered}, of {num_places} positions")
        for length, is_empty in ((first - covered, True), (last - first, False)):
            if length:
                lengths.append(length)
                is_padding.append(is_empty)
        covered = last
    if covered < num_places:
        lengths.append(num_places - covered)
        is_padding.append(True)
    return lengths, is_padding


@dataclass(frozen=True, kw_only=True)
class LayerModules:
    """What the layers are built from, and why, for the log."""

    submodules: TransformerBlockSubmodules
    """The specification of the decoder."""
    reason: str
    """Which modules run, and why, in one line."""


def _local_layer(config: TransformerConfig) -> ModuleSpec:
    layer = get_gpt_layer_local_spec(normalization=config.normalization, qk_layernorm=config.qk_layernorm)
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = FusedDotProductAttention
    if config.qk_layernorm:
        attention.q_layernorm = RMSNorm
        attention.k_layernorm = RMSNorm
    return layer


def build_layer_modules(config: TransformerConfig, *, device: torch.device, is_packed: bool) -> LayerModules:
    """Choose what the layers are built from.

    Args:
        config: Megatron's model configuration.
        device: Where the model will run.
        is_packed: Whether sequences hold several conversations.

    Returns:
        Transformer Engine's layers if it is installed, the device is a GPU, and each sequence is one conversation; else
        Megatron's own.
    """
    if device.type != "cuda":
        why = "the device is a CPU"
    elif importlib.util.find_spec("transformer_engine") is None:
        why = "transformer_engine is not installed"
    elif is_packed:
        why = "Transformer Engine's layers do not keep packed conversations apart here"
    else:
        from megatron.core.extensions.transformer_engine import TENorm  # noqa: PLC0415 - an optional package

        layer, norm = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm), TENorm
        reason = "attention and layers of Transformer Engine"
        return LayerModules(submodules=_decoder(layer, norm, num_layers=config.num_layers), reason=reason)
    reason = f"attention by torch scaled_dot_product_attention, Megatron's local layers ({why})"
    return LayerModules(submodules=_decoder(_local_layer(config), RMSNorm, num_layers=config.num_layers), reason=reason)


def _decoder(layer: ModuleSpec, norm: type, *, num_layers: int) -> TransformerBlockSubmodules:
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=norm)
