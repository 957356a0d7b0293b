# SPDX-License-Identifier: Apache-2.0
"""The weights of a Hugging Face folder in Megatron's names and shapes, read part by part.

Legend as in `weights.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from primus.backends.megatron.huggingface.model_folder import ModelFolder
from primus.backends.megatron.huggingface.weights import ModelShape, Rows, overlapping, rows_of
from primus.backends.megatron.planning.parameter_count import HeadLayout
from primus.config.hugging_face import read_generation
from primus.config.schema import ModelKeys, TrainerConfig
from primus.errors import CheckpointError

LAYERS = "decoder.layers."
_EMBEDDING, _LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
_MOST_NAMED = 5
_ROWS_AT_ONCE = 8192


def checkpoint_shapes(model: ModelKeys, *, padded_vocab_size: int) -> Mapping[str, tuple[int, ...]]:
    """List the weights of a GPTModel as `dist_checkpointing` names them.

    Args:
        model: The model's keys.
        padded_vocab_size: Rows of the embedding.

    Returns:
        Shapes by name. A name that begins with `decoder.layers.` stands for a weight of every layer, and the shape is
        that of one layer.
    """
    heads = HeadLayout.of(model)
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    qkv_rows = heads.query_width + 2 * heads.key_width
    of_layer = {
        "self_attention.linear_qkv.layer_norm_weight": (hidden,),
        "self_attention.linear_qkv.weight": (qkv_rows, hidden),
        **({"self_attention.linear_qkv.bias": (qkv_rows,)} if model.add_qkv_bias else {}),
        **(
            {f"self_attention.{part}_layernorm.weight": (heads.kv_channels,) for part in "qk"}
            if model.qk_layernorm
            else {}
        ),
        "self_attention.linear_proj.weight": (hidden, heads.query_width),
        "mlp.linear_fc1.layer_norm_weight": (hidden,),
        "mlp.linear_fc1.weight": (2 * ffn, hidden),
        "mlp.linear_fc2.weight": (hidden, ffn),
    }
    output = {"output_layer.weight": (padded_vocab_size, hidden)} if model.untie_embeddings_and_output_weights else {}
    return {
        "embedding.word_embeddings.weight": (padded_vocab_size, hidden),
        **{LAYERS + name: shape for name, shape in of_layer.items()},
        "decoder.final_layernorm.weight": (hidden,),
        **output,
    }


class PretrainedWeights:
    """A model's weights, to be read in any cut.

    Attributes:
        shapes: The weights of the model, as `checkpoint_shapes` lists them, without padding.
        num_layers: Layers of the model.
    """

    def __init__(self, folder: ModelFolder, model: ModelKeys, *, vocab_size: int) -> None:
        """Compare what the folder has with what the model needs; no weight is read yet.

        Args:
            folder: The folder.
            model: The model's keys.
            vocab_size: V.

        Raises:
            CheckpointError: If a weight is missing, has another shape, or has no place in the model.
        """
        self.shapes = checkpoint_shapes(model, padded_vocab_size=vocab_size)
        self.num_layers = model.num_layers
        self._folder = folder
        self._shape = ModelShape.of(model, vocab_size=vocab_size)
        tied = not model.untie_embeddings_and_output_weights
        # The one matrix of a tied model may have either name.
        has_other_name = tied and _EMBEDDING not in folder.weights and _LM_HEAD in folder.weights
        self._embedding = _LM_HEAD if has_other_name else _EMBEDDING
        self._check(tied=tied)

    def dtype_of(self, name: str) -> torch.dtype:
        """The type that holds a weight exactly, in all layers.

        Args:
            name: A name of `shapes`.

        Returns:
            The type in the folder; the wider one where layers, or parts that Megatron fuses, differ.
        """
        dtypes = {self._folder.weights[rows.name].dtype for rows in self._all_rows(name)}
        first, *others = dtypes
        for other in others:
            first = torch.promote_types(first, other)
        return first

    def dtypes(self) -> set[torch.dtype]:
        """The types of all weights."""
        return {self.dtype_of(name) for name in self.shapes}

    def read(self, name: str, *, layer: int | None, start: int, stop: int, columns: slice = slice(None)) -> Tensor:
        """Read a part of a weight as Megatron keeps it.

        Args:
            name: A name of `shapes`.
            layer: The layer; None for what is in none.
            start: The first row.
            stop: The row after the last one. Rows behind the vocabulary are padding, which is zero.
            columns: The columns, of a matrix.

        Returns:
            The part, not shared with anything.

        Raises:
            CheckpointError: If the file is damaged, or one of the numbers is NaN or infinite.
        """
        rows = self._rows(name, layer)
        dtype = self.dtype_of(name)
        parts = [self._finite(part, columns).to(dtype) for part in overlapping(rows, start, stop)]
        num_found = sum(len(part) for part in parts)
        if num_found < stop - start:
            width = self.shapes[name][1:]
            padding = torch.zeros(stop - start - num_found, *width, dtype=dtype)
            parts.append(padding[:, columns] if width else padding)
        return torch.cat(parts)

    def _all_rows(self, name: str) -> Sequence[Rows]:
        layers = range(self.num_layers) if name.startswith(LAYERS) else [None]
        return [rows for layer in layers for rows in self._rows(name, layer)]

    def _rows(self, name: str, layer: int | None) -> list[Rows]:
        """Where a weight is in the folder."""
        rows = rows_of(_with_layer(name, layer), shape=self._shape)
        return [replace(part, name=self._embedding) if part.name == _EMBEDDING else part for part in rows]

    def _finite(self, rows: Rows, columns: slice) -> Tensor:
        part = self._folder.read(rows, columns)
        if part.numel() and not all(bound.isfinite() for bound in part.aminmax()):
            raise CheckpointError(
                f"{self._folder.weights[rows.name].path}: {rows.name} has numbers that are NaN or infinite; download"
                " the file again, or take another model"
            )
        return part

    def _check(self, *, tied: bool) -> None:
        expected: dict[str, tuple[int, ...]] = {}
        for name, shape in self.shapes.items():
            for rows in self._all_rows(name):
                num_rows = max(rows.stop, expected.get(rows.name, (0,))[0])
                expected[rows.name] = (num_rows, *shape[1:])
        found = self._folder.weights
        problems = []
        missing = sorted(expected.keys() - found.keys())
        if missing:
            problems.append(f"lacks {_some(missing)}; download the model again, or name the folder of the whole model")
        differing = [
            f"{name} has shape {found[name].shape}, and config.json means {shape}"
            for name, shape in expected.items()
            if name in found and found[name].shape != shape
        ]
        if differing:
            problems.append(f"{_some(differing, separator='; ')}; weights and config.json must be of one model")
        if not problems:
            unknown = sorted(name for name in found.keys() - expected.keys() if not self._says_nothing(name, tied=tied))
            if unknown:
                problems.append(f"has {_some(unknown)}, for which GPTModel has no place; take another model")
        if problems:
            raise CheckpointError(*(f"{self._folder.path}: {problem}" for problem in problems))

    def _says_nothing(self, name: str, *, tied: bool) -> bool:
        """Whether a weight that GPTModel lacks is the same as none at all."""
        if name.endswith(".rotary_emb.inv_freq"):  # computed from config.json
            return True
        found = self._folder.weights
        if name.endswith(".self_attn.o_proj.bias"):
            return not self._folder.read(Rows(name, 0, found[name].shape[0])).any()
        if name != _LM_HEAD or not tied or found[name].shape != found[_EMBEDDING].shape:
            return False
        num_rows = found[name].shape[0]
        for start in range(0, num_rows, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, num_rows)
            head, embedding = (self._folder.read(Rows(each, start, stop)) for each in (name, _EMBEDDING))
            if not _same_bits(head, embedding):
                raise CheckpointError(
                    f"{self._folder.path}: config.json ties the embedding and the output layer, and {_LM_HEAD} is not"
                    " the embedding; set tie_word_embeddings to false there, if that is what was trained"
                )
        return True


def check_pretrained(trainer: TrainerConfig) -> None:
    """Compare the weights that a run starts from with its model, before anything heavy begins; none is read.

    Args:
        trainer: The trainer module of the run.

    Raises:
        CheckpointError: If the folder that `hf_path` names lacks weights, or has others.
        ConfigError: If its generation configuration is damaged, which an export would need.
    """
    if trainer.hf_path is not None and trainer.vocab_size is not None:
        read_generation(Path(trainer.hf_path))
        PretrainedWeights(ModelFolder(Path(trainer.hf_path)), trainer, vocab_size=trainer.vocab_size)


def rows_at_once(shape: Sequence[int], *, itemsize: int, most_bytes: int) -> int:
    """How many rows of a weight are at most so many bytes; one at least.

    Args:
        shape: The weight's shape.
        itemsize: Bytes of a number.
        most_bytes: The limit.

    Returns:
        Rows.

    Examples:
        >>> rows_at_once((100, 8), itemsize=4, most_bytes=64)
        2
    """
    return max(1, most_bytes // max(1, math.prod(shape[1:]) * itemsize))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same numbers, NaN included, in whatever type."""
    dtype = torch.promote_types(one.dtype, other.dtype)
    return torch.equal(*(each.to(dtype).contiguous().view(torch.uint8) for each in (one, other)))


def _with_layer(name: str, layer: int | None) -> str:
    return name if layer is None else f"{LAYERS}{layer}.{name.removeprefix(LAYERS)}"


def _some(names: Sequence[str], *, separator: str = ", ") -> str:
    rest = len(names) - _MOST_NAMED
    return separator.join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
