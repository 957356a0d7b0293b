# SPDX-License-Identifier: Apache-2.0
"""The weights of a Hugging Face folder, into the parts of a model that this rank has."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from primus.backends.megatron.huggingface.model_folder import ModelFolder
from primus.backends.megatron.huggingface.pretrained_weights import LAYERS, PretrainedWeights
from primus.backends.megatron.lora.adapter import MARK
from primus.config.schema import ModelKeys
from primus.errors import CheckpointError

logger = logging.getLogger("primus")


def load_pretrained(
    folder: Path,
    *,
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    keys: ModelKeys,
    vocab_size: int,
) -> None:
    """Load the weights of a Hugging Face folder; each rank reads the rows and columns that it has, and nothing else.

    Args:
        folder: The folder.
        model: The chunks of the model on this rank.
        optimizer: Its optimizer, whose copies of the weights are made anew.
        keys: The model's keys.
        vocab_size: Rows of the embedding that stand for a token; those behind them become zero.

    Raises:
        CheckpointError: If the weights are missing, damaged, or not those of the model.
    """
    if keys.vocab_size is not None and keys.vocab_size != vocab_size:
        raise CheckpointError(
            f"{folder}: has {keys.vocab_size} rows of the embedding, and the run {vocab_size}; leave vocab_size out"
        )
    weights = PretrainedWeights(ModelFolder(folder), keys, vocab_size=vocab_size)
    with torch.no_grad():
        for chunk in model:
            for share in _shares(chunk):
                if share.key in weights.shapes:
                    _fill(share, weights)
                elif MARK not in share.key:
                    raise CheckpointError(
                        f"{folder}: has no {share.key}, which the model has; change what the configuration adds to it"
                    )
    # The float32 copies of bfloat16 weights, and the shards of the distributed optimizer, were made before.
    optimizer.reload_model_params()
    logger.info("%s: loaded the weights", folder)


def _shares(chunk: DistributedDataParallel) -> Iterator[ShardedTensor]:
    """What this rank has of each weight, with its place in the whole; the data is the parameter's own."""
    for value in nested_values(chunk.module.sharded_state_dict()):
        built = value.build() if isinstance(value, ShardedTensorFactory) else value
        for share in nested_values(built) if isinstance(built, dict | list) else [built]:
            if isinstance(share, ShardedTensor):
                yield share


def _fill(share: ShardedTensor, weights: PretrainedWeights) -> None:
    offsets = share.global_offset
    layer = None
    if share.key.startswith(LAYERS):
        layer, offsets = offsets[0], offsets[1:]
    num_rows, *width = share.local_shape
    columns = slice(offsets[1], offsets[1] + width[0]) if width else slice(None)
    share.data.copy_(
        weights.read(share.key, layer=layer, start=offsets[0], stop=offsets[0] + num_rows, columns=columns)
    )
