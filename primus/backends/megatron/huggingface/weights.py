# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of one model's weights, as Megatron and as Hugging Face keep them.

Megatron fuses what Hugging Face keeps apart: the rows of `linear_qkv` are, for each key-value group in turn, its
queries, its key and its value; the rows of `linear_fc1` are the gate, then the up projection. Splitting copies no
number, so a weight in Hugging Face's folder is bit for bit the trained one.

Legend: G key-value groups, Q query heads per group, D width of a head, H hidden size, F MLP width, V vocabulary.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from primus.backends.megatron.planning.parameter_count import HeadLayout
from primus.errors import CheckpointError

MODEL_PREFIXES = ("embedding.", "decoder.", "output_layer.")
"""How the names of a GPTModel's weights begin; everything else in a checkpoint is optimizer state."""

_RENAMED = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
# The two norms have a second name: dist_checkpointing and Transformer Engine file them under the layer that follows.
_RENAMED_IN_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
_IN_LAYER = re.compile(r"decoder\.layers\.(?P<layer>\d+)\.(?P<name>.+)")
_ALL_LAYERS = re.compile(r"decoder\.layers\.(?P<name>\D.*)")


def split_layers(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Give a checkpoint's tensor one layer at a time.

    `dist_checkpointing` keeps a weight that every layer has as one tensor with the layers in front, named without
    a number.

    Args:
        name: A name from a checkpoint or from a model's state dict.
        weight: Its tensor; shape [L, ...] if the name stands for all layers.

    Yields:
        Names with the layer's number and that layer's tensor, a view; or the arguments, if the weight is of one
        layer or of none.

    Examples:
        >>> [name for name, _ in split_layers("decoder.layers.mlp.linear_fc2.weight", torch.zeros(2, 8, 16))]
        ['decoder.layers.0.mlp.linear_fc2.weight', 'decoder.layers.1.mlp.linear_fc2.weight']
    """
    match = _ALL_LAYERS.fullmatch(name)
    if match is None:
        yield name, weight
    else:
        for layer, weight_of_layer in enumerate(weight.unbind(0)):
            yield f"decoder.layers.{layer}.{match['name']}", weight_of_layer


def to_hugging_face(name: str, weight: Tensor, *, heads: HeadLayout, vocab_size: int, tied: bool) -> dict[str, Tensor]:
    """Give one of GPTModel's weights the names and shapes that Llama, Qwen2 and Qwen3 have in `transformers`.

    Args:
        name: The weight's name in GPTModel's state dict, or in a checkpoint of it, with the layer's number.
        weight: The whole weight, of all tensor-parallel ranks together.
        heads: The heads of the model.
        vocab_size: V, rows of the embedding that stand for a token; the rows after them are Megatron's padding.
        tied: Whether one matrix is both embedding and output layer; `transformers` then keeps it once.

    Returns:
        Hugging Face's names and their tensors, views of `weight` where the rows lie together. Empty for the second
        copy of a tied embedding.

    Raises:
        CheckpointError: If the name is none of the Llama family's.
    """
    if name in _RENAMED:
        if tied and name == "output_layer.weight":
            return {}
        is_vocabulary = name != "decoder.final_layernorm.weight"
        return {_RENAMED[name]: weight[:vocab_size] if is_vocabulary else weight}
    match = _IN_LAYER.fullmatch(name)
    if match is not None:
        prefix, name_in_layer = f"model.layers.{match['layer']}.", match["name"]
        if name_in_layer in _RENAMED_IN_LAYER:
            return {prefix + _RENAMED_IN_LAYER[name_in_layer]: weight}
        if name_in_layer == "mlp.linear_fc1.weight":
            gate, up = weight.chunk(2)
            return {prefix + "mlp.gate_proj.weight": gate, prefix + "mlp.up_proj.weight": up}
        if name_in_layer in ("self_attention.linear_qkv.weight", "self_attention.linear_qkv.bias"):
            kind = name_in_layer.rpartition(".")[2]
            parts = zip("qkv", _split_qkv(weight, heads=heads), strict=True)
            return {f"{prefix}self_attn.{part}_proj.{kind}": rows for part, rows in parts}
    raise CheckpointError(
        f"{name}: a weight of shape {tuple(weight.shape)} that no Hugging Face model of the Llama family has; "
        "export a checkpoint that this version of primus trained"
    )


def _split_qkv(weight: Tensor, *, heads: HeadLayout) -> tuple[Tensor, Tensor, Tensor]:
    """Take Megatron's query, key and value rows apart.

    With G = 2, Q = 2, D = 1 the six rows and two times two are q0 q1 k0 v0 | q2 q3 k1 v1, and the result is
    (q0 q1 q2 q3), (k0 k1), (v0 v1).
    """
    groups, width = heads.num_query_groups, heads.kv_channels
    query_rows = heads.num_attention_heads // groups * width
    rows_of_group = weight.reshape(groups, query_rows + 2 * width, *weight.shape[1:])
    query, key, value = torch.split(rows_of_group, [query_rows, width, width], dim=1)
    return tuple(part.reshape(-1, *weight.shape[1:]) for part in (query, key, value))  # type: ignore[return-value]
