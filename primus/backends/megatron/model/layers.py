# SPDX-License-Identifier: Apache-2.0
"""The modules that the layers of the model are built from, and why these.

With Transformer Engine on a GPU the layers are Transformer Engine's. Everywhere else they are Megatron's own, with
parts of this project in them: attention by PyTorch's kernels, an RMSNorm that works with sequence parallelism, and what
else `pointwise` has. Both sets of layers have the same parameters under the same names in a checkpoint.
"""

import importlib.util
from dataclasses import dataclass
from functools import partial

import torch
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.functional import silu

from primus.backends.megatron.model.attention import FusedDotProductAttention
from primus.backends.megatron.model.attention_kernels import (
    AttendAtOnce,
    AttendPieces,
    attend_one_by_one,
    find_varlen_attention,
    why_not_at_once,
)
from primus.backends.megatron.model.pointwise import RMSNorm, TurnedSelfAttention, swiglu


@dataclass(frozen=True, kw_only=True)
class LayerModules:
    """What the layers are built from, and why, for the log."""

    submodules: TransformerBlockSubmodules
    """The specification of the decoder."""
    reason: str
    """Which modules run, and why, in one line."""
    is_transformer_engine: bool
    """Whether they are Transformer Engine's; then they share sequences over context-parallel ranks by themselves, and
    see all sequences of a micro-batch of packs as one."""
    padding_attends: bool
    """Whether the attention of packs must have no gaps between conversations."""


def build_layer_modules(
    config: TransformerConfig, *, device: torch.device, is_packed: bool, has_adapters: bool = False
) -> LayerModules:
    """Choose what the layers are built from.

    Args:
        config: Megatron's model configuration; it is told which fused kernels there are.
        device: Where the model will run.
        is_packed: Whether sequences hold several conversations.
        has_adapters: Whether adapters will stand beside the linear layers.

    Returns:
        Transformer Engine's layers if it is installed, the device is a GPU, no context-parallel ranks share packs, and
        there are no adapters; else Megatron's own.
    """
    if device.type != "cuda":
        why = "the device is a CPU"
    elif importlib.util.find_spec("transformer_engine") is None:
        why = "transformer_engine is not installed"
    elif not gpt_layer_specs.HAVE_TE:
        why = "transformer_engine is installed, but Megatron cannot import it"
    elif is_packed and config.context_parallel_size > 1:
        why = "Transformer Engine would cut each conversation of a pack over the context ranks, and they cut packs"
    elif has_adapters:
        why = "Transformer Engine normalises inside its linear layers, and adapters need what they are given"
    else:
        return _transformer_engine_modules(config, is_packed=is_packed)
    return _local_modules(config, device=device, is_packed=is_packed, why=why)


def _transformer_engine_modules(config: TransformerConfig, *, is_packed: bool) -> LayerModules:
    from megatron.core.extensions.transformer_engine import TENorm  # noqa: PLC0415 - an optional package

    # Its other way asks the GPU, in every layer, where the conversations are.
    config.apply_rope_fusion = rope_utils.fused_apply_rotary_pos_emb_thd is not None
    config.bias_activation_fusion = _can_compile_activation(config)
    layer = gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    packs = ", conversations of a pack apart (thd)" if is_packed else ""
    return LayerModules(
        submodules=_decoder(layer, TENorm, num_layers=config.num_layers),
        reason=f"attention and layers of Transformer Engine{packs}",
        is_transformer_engine=True,
        padding_attends=True,
    )


def _local_modules(config: TransformerConfig, *, device: torch.device, is_packed: bool, why: str) -> LayerModules:
    attention, attend, num_ranks = "torch scaled_dot_product_attention", attend_one_by_one, config.context_parallel_size
    has_pieces = is_packed or num_ranks > 1
    if has_pieces and device.type == "cuda":
        attend, why_not = _attention_of_pieces(config, device=device)
        attention = "torch varlen_attn" if why_not is None else attention
        why = why if why_not is None else f"{why}; {why_not}"
    attention += ", each conversation of a pack by itself" if is_packed else ""
    attention += f", over the keys of {num_ranks} context ranks" if num_ranks > 1 else ""
    layer = _local_layer(config, attend=attend)
    if device.type == "cuda" and _can_compile_activation(config):
        config.bias_activation_fusion = True
    elif _is_swiglu(config):
        # Megatron's switch for an activation that is given gate and values at once, whoever wrote it.
        config.use_te_activation_func = True
        layer.submodules.mlp.submodules.activation_func = swiglu
    return LayerModules(
        submodules=_decoder(layer, RMSNorm, num_layers=config.num_layers),
        reason=f"attention by {attention}; Megatron's local layers ({why})",
        is_transformer_engine=False,
        padding_attends=isinstance(attend, AttendAtOnce),
    )


def _is_swiglu(config: TransformerConfig) -> bool:
    return bool(config.gated_linear_unit and config.activation_func is silu)


def _can_compile_activation(config: TransformerConfig) -> bool:
    """Whether Megatron's fused activation runs on a GPU: it is compiled by torch, to kernels in Triton."""
    return _is_swiglu(config) and importlib.util.find_spec("triton") is not None


def _attention_of_pieces(config: TransformerConfig, *, device: torch.device) -> tuple[AttendPieces, str | None]:
    """The fastest way that works, and what is wrong with a faster one."""
    kernel = find_varlen_attention()
    if isinstance(kernel, str):
        return attend_one_by_one, kernel
    if config.attention_dropout:
        return attend_one_by_one, f"varlen_attn has no attention_dropout, which is {config.attention_dropout}"
    num_ranks = config.tensor_model_parallel_size
    why_not = why_not_at_once(
        kernel,
        num_heads=config.num_attention_heads // num_ranks,
        num_groups=max(config.num_query_groups // num_ranks, 1),
        head_width=config.kv_channels,
        dtype=config.params_dtype,
        device=device,
    )
    return (attend_one_by_one, why_not) if why_not else (AttendAtOnce(kernel), None)


def _local_layer(config: TransformerConfig, *, attend: AttendPieces) -> ModuleSpec:
    layer = gpt_layer_specs.get_gpt_layer_local_spec(
        normalization=config.normalization, qk_layernorm=config.qk_layernorm
    )
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.self_attention.module = TurnedSelfAttention
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = partial(FusedDotProductAttention, attend_pieces=attend)
    if config.qk_layernorm:
        attention.q_layernorm = RMSNorm
        attention.k_layernorm = RMSNorm
    return layer


def _decoder(layer: ModuleSpec, norm: type, *, num_layers: int) -> TransformerBlockSubmodules:
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=norm)
