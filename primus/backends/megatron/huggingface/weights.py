# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of one model's weights, as Megatron and as Hugging Face keep them.

Megatron fuses what Hugging Face keeps apart: the rows of `linear_qkv` are, for each key-value group in turn, its
queries, its key and its value; the rows of `linear_fc1` are the gate, then the up projection. So every weight of
Megatron is a row of row ranges of Hugging Face's, which `rows_of` lists, and both directions go by that list. No number
is computed, so weights are bit for bit the same on both sides.

Legend: G key-value groups, Q query heads per group, D width of a head, H hidden size, F MLP width, V vocabulary.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from primus.backends.megatron.planning.parameter_count import HeadLayout
from primus.config.schema import ModelKeys
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
_HEAD_NORMS = ("self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight")
_UNKNOWN = (
    "{name}: no Hugging Face model of the Llama family has such a weight; use a checkpoint that this version of primus"
    " trained"
)
_IN_LAYER = re.compile(r"decoder\.layers\.(?P<layer>\d+)\.(?P<name>.+)")


@dataclass(frozen=True)
class Rows:
    """Neighbouring rows of one of Hugging Face's weights."""

    name: str
    """The weight."""
    start: int
    """The first row."""
    stop: int
    """The row after the last one."""

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What decides the rows of a model's weights."""

    heads: HeadLayout
    """The heads."""
    hidden_size: int
    """H."""
    ffn_hidden_size: int
    """F."""
    vocab_size: int
    """V, rows of the embedding that stand for a token; the rows after them are Megatron's padding."""

    @classmethod
    def of(cls, model: ModelKeys, *, vocab_size: int) -> "ModelShape":
        """The shape of a model."""
        return cls(
            heads=HeadLayout.of(model),
            hidden_size=model.hidden_size,
            ffn_hidden_size=model.ffn_hidden_size,
            vocab_size=vocab_size,
        )


def rows_of(name: str, *, shape: ModelShape) -> Sequence[Rows]:
    """List what the rows of one of GPTModel's weights are under Hugging Face's names.

    Args:
        name: The weight's name in GPTModel's state dict, or in a checkpoint of it, with the layer's number.
        shape: The model's shape.

    Returns:
        Row ranges that give the weight when they are put one below the other; without the padding of the vocabulary.

    Raises:
        CheckpointError: If the name is none of the Llama family's.

    Examples:
        >>> heads = HeadLayout(num_attention_heads=4, num_query_groups=2, kv_channels=8)
        >>> shape = ModelShape(heads=heads, hidden_size=32, ffn_hidden_size=80, vocab_size=100)
        >>> rows_of("decoder.layers.3.mlp.linear_fc1.weight", shape=shape)[1]
        Rows(name='model.layers.3.mlp.up_proj.weight', start=0, stop=80)
    """
    if name in _RENAMED:
        is_vocabulary = name != "decoder.final_layernorm.weight"
        return [Rows(_RENAMED[name], 0, shape.vocab_size if is_vocabulary else shape.hidden_size)]
    match = _IN_LAYER.fullmatch(name)
    if match is None:
        raise CheckpointError(_UNKNOWN.format(name=name))
    prefix, name_in_layer = f"model.layers.{match['layer']}.", match["name"]
    if name_in_layer in _RENAMED_IN_LAYER:
        width = shape.heads.kv_channels if name_in_layer in _HEAD_NORMS else shape.hidden_size
        return [Rows(prefix + _RENAMED_IN_LAYER[name_in_layer], 0, width)]
    module, _, kind = name_in_layer.rpartition(".")
    if name_in_layer == "mlp.linear_fc1.weight":
        return [Rows(f"{prefix}mlp.{part}_proj.weight", 0, shape.ffn_hidden_size) for part in ("gate", "up")]
    if module == "self_attention.linear_qkv" and kind in {"weight", "bias"}:
        heads = shape.heads
        width = heads.kv_channels
        queries = heads.num_attention_heads // heads.num_query_groups * width
        return [
            Rows(f"{prefix}self_attn.{part}_proj.{kind}", group * rows, (group + 1) * rows)
            for group in range(heads.num_query_groups)
            for part, rows in (("q", queries), ("k", width), ("v", width))
        ]
    raise CheckpointError(_UNKNOWN.format(name=name))


def to_hugging_face(name: str, weight: Tensor, *, shape: ModelShape, tied: bool) -> dict[str, Tensor]:
    """Give one of GPTModel's weights the names and shapes that Llama, Qwen2 and Qwen3 have in `transformers`.

    Args:
        name: The weight's name in GPTModel's state dict, or in a checkpoint of it, with the layer's number.
        weight: The whole weight, of all tensor-parallel ranks together.
        shape: The model's shape.
        tied: Whether one matrix is both embedding and output layer; `transformers` then keeps it once.

    Returns:
        Hugging Face's names and their tensors, views of `weight` where the rows lie together. Empty for the second
        copy of a tied embedding.

    Raises:
        CheckpointError: If the name is none of the Llama family's.
    """
    if tied and name == "output_layer.weight":
        return {}
    parts: dict[str, list[Tensor]] = {}
    position = 0
    for rows in rows_of(name, shape=shape):
        parts.setdefault(rows.name, []).append(weight[position : position + len(rows)])
        position += len(rows)
    return {name: pieces[0] if len(pieces) == 1 else torch.cat(pieces) for name, pieces in parts.items()}


def overlapping(rows: Sequence[Rows], start: int, stop: int) -> Iterator[Rows]:
    """Cut a list of row ranges to the places `[start, stop)` of what they make together.

    Args:
        rows: Row ranges that are put one below the other.
        start: The first place.
        stop: The place after the last one; places behind the last range are left out.

    Yields:
        What is left of the ranges, in order.

    Examples:
        >>> [(rows.start, rows.stop) for rows in overlapping([Rows("a", 0, 4), Rows("b", 10, 14)], 3, 6)]
        [(3, 4), (10, 12)]
    """
    position = 0
    for part in rows:
        first, last = max(start - position, 0), min(stop - position, len(part))
        if first < last:
            yield Rows(part.name, part.start + first, part.start + last)
        position += len(part)
