# SPDX-License-Identifier: Apache-2.0
"""Whether the ranks that share a model have read the same sequences, and the hash of what all of them have read.

Every rank adds six numbers to a sum that is made in each step anyway, so it costs no collective of its own. One rank
of each replica of the model speaks for it; and every rank's hash is added up too, times an odd number of its replica,
so that ranks which have read each other's sequences are found as well.
"""

from collections import defaultdict
from collections.abc import Sequence

from megatron.core import parallel_state

from primus.backends.megatron.agreement.ranks import RankName, answers_of_all, are_alike, dissenters, name_some
from primus.backends.megatron.data.batches import HASH_BITS, HASHES
from primus.backends.megatron.distributed import has_losses

# Sums of halves over many ranks are exact in float64.
_HALF = 1 << HASH_BITS // 2


def hash_summands(own: int) -> list[float]:
    """What this rank adds to a sum over all ranks.

    Args:
        own: Sum of the hashes of the micro-batches that it has read, below `HASHES`.

    Returns:
        Six whole numbers, whose sums `agreed_hash` takes.
    """
    speaks = has_losses() and parallel_state.get_context_parallel_rank() == 0
    marked = own * (2 * parallel_state.get_data_parallel_rank() + 1) % HASHES
    return [
        float(half)
        for number in (own if speaks else 0, marked if speaks else 0, marked)
        for half in divmod(number, _HALF)
    ]


def agreed_hash(sums: Sequence[float]) -> int | None:
    """The hash of the global batch.

    Args:
        sums: The sums of all ranks' `hash_summands`.

    Returns:
        The hash, the same however ranks and micro-batches divide the batch; None if ranks that share a model have
        read different sequences.
    """
    spoken, marked, marked_by_all = (
        (int(high) * _HALF + int(low)) % HASHES for high, low in zip(sums[::2], sums[1::2], strict=True)
    )
    return spoken if marked_by_all == marked * _ranks_of_a_model() % HASHES else None


def describe_dissent(own: int) -> str:
    """Which ranks have read other sequences than those they share a model with; all ranks call it together.

    Args:
        own: As for `hash_summands`.

    Returns:
        A clause of a message.
    """
    by_replica: dict[int, list[tuple[RankName, int]]] = defaultdict(list)
    for name, (replica, content_hash) in answers_of_all((parallel_state.get_data_parallel_rank(), own)):
        by_replica[replica].append((name, content_hash))
    split = [answers for answers in by_replica.values() if not are_alike(answers)]
    odd = [name for answers in split for name in dissenters(answers)]
    if len(odd) == sum(map(len, split)):
        return f"{name_some(odd)}, which share a model, read different sequences"
    return f"{name_some(odd)} read other sequences than the model's other ranks"


def _ranks_of_a_model() -> int:
    return int(
        parallel_state.get_tensor_model_parallel_world_size()
        * parallel_state.get_pipeline_model_parallel_world_size()
        * parallel_state.get_context_parallel_world_size()
    )
