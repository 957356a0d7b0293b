# SPDX-License-Identifier: Apache-2.0
"""How many weights a model has, from its keys alone; no torch is needed.

The counts are those of megatron-core's GPTModel, to the last weight; `memory.py` turns them into bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from primus.config.schema import LoraConfig, ModelKeys, TrainerConfig
from primus.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class HeadLayout:
    """How many heads there are and how wide one is, with what the keys leave to their defaults filled in."""

    num_attention_heads: int
    """Query heads."""
    num_query_groups: int
    """Key-value heads."""
    kv_channels: int
    """Width of one head."""

    @classmethod
    def of(cls, model: ModelKeys) -> "HeadLayout":
        """The heads of a model."""
        return cls(
            num_attention_heads=model.num_attention_heads,
            num_query_groups=model.num_query_groups or model.num_attention_heads,
            kv_channels=model.kv_channels or model.hidden_size // model.num_attention_heads,
        )

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.kv_channels

    @property
    def key_width(self) -> int:
        """Width of all key heads together, which is also that of all value heads."""
        return self.num_query_groups * self.kv_channels


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Weights of a model, by where they are and by whether tensor parallelism cuts them."""

    num_layers: int
    """Transformer layers."""
    cut_per_layer: int
    """Weights of one layer that tensor-parallel ranks share out: the linear layers."""
    whole_per_layer: int
    """Weights of one layer that every tensor-parallel rank keeps: the norms."""
    final_norm: int
    """Weights of the norm after the last layer."""
    embedding: int
    """Weights of the embedding, padding rows included."""
    output_layer: int
    """Weights of the output layer; 0 if it is the embedding."""

    @property
    def total(self) -> int:
        """All weights of the model."""
        per_layer = self.cut_per_layer + self.whole_per_layer
        return self.num_layers * per_layer + self.final_norm + self.embedding + self.output_layer

    def on_stage(self, stage: int, *, tensor_parallel: int, pipeline_parallel: int) -> int:
        """Weights of one rank of a pipeline stage.

        The first stage has the embedding, the last one the final norm and the output layer, which is a second copy of
        the embedding if the two are tied and the stages are not the same one.

        Args:
            stage: The stage, from 0.
            tensor_parallel: Ranks that share each layer's matrices.
            pipeline_parallel: Stages, which have as many layers each.

        Returns:
            Their number.
        """
        layers = self.num_layers // pipeline_parallel * (self.cut_per_layer // tensor_parallel + self.whole_per_layer)
        is_first, is_last = stage == 0, stage == pipeline_parallel - 1
        ends = self.embedding // tensor_parallel if is_first else 0
        if is_last:
            output = self.output_layer or (0 if is_first else self.embedding)
            ends += output // tensor_parallel + self.final_norm
        return layers + ends

    def on_one_rank(self, *, tensor_parallel: int, pipeline_parallel: int) -> int:
        """Weights of the rank that has the most of them; see `on_stage`."""
        return max(
            self.on_stage(stage, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)
            for stage in {0, pipeline_parallel - 1}
        )


@dataclass(frozen=True, kw_only=True)
class AdapterCount:
    """Weights of low-rank adapters: of each layer, since the embedding and the output layer have none."""

    num_layers: int
    """Transformer layers."""
    cut_per_layer: int
    """Weights of one layer that tensor-parallel ranks share out: on the side where its linear layer is cut."""
    whole_per_layer: int
    """Weights of one layer that every tensor-parallel rank keeps: on the other side."""

    @property
    def total(self) -> int:
        """All weights of the adapters."""
        return self.num_layers * (self.cut_per_layer + self.whole_per_layer)

    def on_one_rank(self, *, tensor_parallel: int, pipeline_parallel: int) -> int:
        """Weights of any rank."""
        per_layer = self.cut_per_layer // tensor_parallel + self.whole_per_layer
        return self.num_layers // pipeline_parallel * per_layer


def padded_vocab_size(vocab_size: int, *, divisible_by: int, tensor_parallel: int) -> int:
    """Rows of the embedding: the vocabulary rounded up as Megatron does, so that every rank has as many.

    Args:
        vocab_size: Rows that stand for a token.
        divisible_by: `make_vocab_size_divisible_by`.
        tensor_parallel: Ranks that share the embedding.

    Returns:
        All rows, of all ranks together.

    Examples:
        >>> padded_vocab_size(151665, divisible_by=128, tensor_parallel=2)
        151808
    """
    multiple = divisible_by * tensor_parallel
    return math.ceil(vocab_size / multiple) * multiple


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Rows of the embedding."""

    used: int
    """Rows that stand for a token."""
    padded: int
    """All rows; those behind the used ones make the tensor-parallel shares equal."""


def build_vocabulary(trainer: TrainerConfig, *, tokenizer: str, num_ids: int) -> Vocabulary:
    """Choose the rows of the embedding.

    Args:
        trainer: The trainer module of the run.
        tokenizer: The tokenizer's name, for messages.
        num_ids: The tokenizer's largest id + 1.

    Returns:
        Used and padded rows.

    Raises:
        ConfigError: If `vocab_size` is set to less than the tokenizer needs.
    """
    used = trainer.vocab_size or num_ids
    if used < num_ids:
        raise ConfigError(
            f"vocab_size: {used} is less than the {num_ids} ids of the tokenizer {tokenizer}; "
            f"set it to at least {num_ids}, or to null"
        )
    padded = padded_vocab_size(
        used, divisible_by=trainer.make_vocab_size_divisible_by, tensor_parallel=trainer.tensor_model_parallel_size
    )
    return Vocabulary(used=used, padded=padded)


def count_parameters(model: ModelKeys, *, padded_vocab_size: int) -> ParameterCount:
    """Count the weights of GPTModel.

    Args:
        model: The model's keys.
        padded_vocab_size: Rows of the embedding.

    Returns:
        The counts of the whole model, before any rank takes its share.
    """
    heads, hidden = HeadLayout.of(model), model.hidden_size
    linear = linear_layers(model)
    qkv_bias = linear["linear_qkv"].output if model.add_qkv_bias else 0
    return ParameterCount(
        num_layers=model.num_layers,
        cut_per_layer=sum(layer.input * layer.output for layer in linear.values()) + qkv_bias,
        whole_per_layer=2 * hidden + (2 * heads.kv_channels if model.qk_layernorm else 0),
        final_norm=hidden,
        embedding=padded_vocab_size * hidden,
        output_layer=padded_vocab_size * hidden if model.untie_embeddings_and_output_weights else 0,
    )


def count_adapters(model: ModelKeys, lora: LoraConfig) -> AdapterCount:
    """Count the weights of low-rank adapters, two matrices for each linear layer that has one.

    Args:
        model: The model's keys.
        lora: Rank, and the layers that get an adapter.

    Returns:
        The counts of the whole model.

    Examples:
        A linear layer of 8 x 8 and one of 8 x 32 with adapters of rank 2: 2 * (8 + 8) and 2 * (8 + 32) weights.
        `linear_proj` is cut along its input, `linear_fc1` along its output.

        >>> keys = ModelKeys(num_layers=3, hidden_size=8, ffn_hidden_size=16, num_attention_heads=2)
        >>> lora = LoraConfig(enabled=True, dim=2, target_modules=("linear_proj", "linear_fc1"))
        >>> count_adapters(keys, lora)
        AdapterCount(num_layers=3, cut_per_layer=80, whole_per_layer=32)
    """
    layers = [layer for name, layer in linear_layers(model).items() if name in lora.target_modules]
    return AdapterCount(
        num_layers=model.num_layers,
        cut_per_layer=lora.dim * sum(layer.output if layer.is_cut_along_output else layer.input for layer in layers),
        whole_per_layer=lora.dim * sum(layer.input if layer.is_cut_along_output else layer.output for layer in layers),
    )


class LinearLayer(NamedTuple):
    """A linear layer of a transformer layer."""

    input: int
    """Width of what goes in."""
    output: int
    """Width of what comes out."""
    is_cut_along_output: bool
    """Whether tensor-parallel ranks share out its output; else they share out its input."""


def linear_layers(model: ModelKeys) -> Mapping[str, LinearLayer]:
    """The linear layers of a transformer layer, by Megatron's names."""
    heads = HeadLayout.of(model)
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    return {
        "linear_qkv": LinearLayer(hidden, heads.query_width + 2 * heads.key_width, is_cut_along_output=True),
        "linear_proj": LinearLayer(heads.query_width, hidden, is_cut_along_output=False),
        "linear_fc1": LinearLayer(hidden, (2 if model.swiglu else 1) * ffn, is_cut_along_output=True),
        "linear_fc2": LinearLayer(ffn, hidden, is_cut_along_output=False),
    }
