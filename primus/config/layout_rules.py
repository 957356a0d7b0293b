# SPDX-License-Identifier: Apache-2.0
"""What must hold between a model's sizes and the ranks that share it; `rules` asks them with the others."""

import math
from collections.abc import Sequence

from primus.config.schema import TrainerConfig


def tensor_ranks_share_the_layers(t: TrainerConfig) -> str | None:
    """Whole heads, and as many columns of the MLP, on each tensor-parallel rank."""
    sizes = {"num_attention_heads": t.num_attention_heads, "ffn_hidden_size": t.ffn_hidden_size}
    if t.num_query_groups is not None:
        sizes["num_query_groups"] = t.num_query_groups
    ranks = t.tensor_model_parallel_size
    uneven = [f"{name}, {size}," for name, size in sizes.items() if size % ranks]
    if not uneven:
        return None
    nearest = _nearest(ranks, _divisors(math.gcd(*sizes.values())))
    return f"{ranks} does not divide {' and '.join(uneven)} of which each rank has a part; set it to {nearest}"


def pipeline_ranks_share_the_layers(t: TrainerConfig) -> str | None:
    """As many layers on each pipeline rank."""
    ranks = t.pipeline_model_parallel_size
    if t.num_layers % ranks == 0:
        return None
    nearest = _nearest(ranks, _divisors(t.num_layers))
    return f"{ranks} does not divide num_layers, {t.num_layers}, of which each rank has a part; set it to {nearest}"


def virtual_stages_share_the_layers(t: TrainerConfig) -> str | None:
    """As many layers in each of several chunks of each of several pipeline ranks."""
    chunks, ranks = t.virtual_pipeline_model_parallel_size, t.pipeline_model_parallel_size
    if chunks is None or t.num_layers % ranks:
        return None
    if ranks == 1:
        return f"{chunks} needs pipeline_model_parallel_size of 2 or more; raise that, or set this to null"
    if chunks == 1:
        return "1 is one chunk on each pipeline rank, which null means; set it to null"
    layers = t.num_layers // ranks
    if layers % chunks == 0:
        return None
    possible = [size for size in _divisors(layers) if size > 1]
    instead = f"{_nearest(chunks, possible)}, or to null" if possible else "null"
    return f"{chunks} does not divide the layers of a pipeline rank, {layers}; set it to {instead}"


def recomputed_blocks_fill_a_chunk(t: TrainerConfig) -> str | None:
    """Whole blocks of layers in each chunk, where all blocks are recomputed."""
    chunks = t.pipeline_model_parallel_size * (t.virtual_pipeline_model_parallel_size or 1)
    layers, block = t.num_layers // chunks, t.recompute_num_layers
    if t.num_layers % chunks or block is None or t.recompute_granularity != "full" or t.recompute_method == "block":
        return None
    if layers % block == 0:
        return None
    return (
        f"{block} does not divide the {layers} layers that a rank has in one piece, which recompute_method uniform cuts"
        f" into blocks; set it to {_nearest(block, _divisors(layers))}"
    )


def _divisors(number: int) -> Sequence[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _nearest(value: int, possible: Sequence[int]) -> str:
    """The nearest possible values on both sides, where there are any."""
    below, above = [size for size in possible if size < value], [size for size in possible if size > value]
    return " or ".join(str(size) for size in (*below[-1:], *above[:1]))
