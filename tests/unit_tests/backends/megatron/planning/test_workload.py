# SPDX-License-Identifier: Apache-2.0
"""What each rank gets of a run's steps, against a count by hand."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from primus.backends.megatron.data.batches import rank_micro_batches
from primus.backends.megatron.planning.workload import Workload


def workload_of(positions_KG: npt.NDArray[np.int64], *, is_packed: bool = False, seq_length: int = 64) -> Workload:
    return Workload(
        positions_KG=positions_KG,
        pairs_KG=positions_KG * (positions_KG + 1) // 2,
        targets_KG=positions_KG // 2,
        is_packed=is_packed,
        seq_length=seq_length,
    )


def test_the_others_wait_for_the_rank_that_has_most() -> None:
    # Two ranks, micro-batches of one: the first has 8 and 8 positions, the second 24 and 4, rounded up to 4.
    work = workload_of(np.array([[5, 21, 8, 4]])).work(micro_batch_size=1, multiple=4, data_parallel_size=2)
    assert (work.slowest_positions, work.num_micro_batches) == (28, 2)
    assert work.slowest_pairs == 24 * 25 / 2 + 4 * 5 / 2
    assert (work.useful_positions, work.targets) == (38, 2 + 10 + 4 + 2)


def test_packs_have_attention_inside_conversations_only() -> None:
    work = workload_of(np.array([[64, 64]]), is_packed=True).work(micro_batch_size=1, multiple=4, data_parallel_size=2)
    assert work.slowest_pairs == 64 * 65 // 2


@given(
    micro_batch_size=st.sampled_from([1, 2, 4]),
    data_parallel_size=st.sampled_from([1, 2, 3]),
    multiple=st.sampled_from([1, 8]),
    seed=st.integers(0, 1000),
)
def test_the_slowest_rank_is_that_of_the_micro_batches_of_a_run(
    micro_batch_size: int, data_parallel_size: int, multiple: int, seed: int
) -> None:
    positions_G = np.random.default_rng(seed).integers(1, 65, 24)
    work = workload_of(positions_G[None]).work(
        micro_batch_size=micro_batch_size, multiple=multiple, data_parallel_size=data_parallel_size
    )
    places = []
    for rank in range(data_parallel_size):
        batches = rank_micro_batches(
            np.arange(24),
            micro_batch_size=micro_batch_size,
            data_parallel_rank=rank,
            data_parallel_size=data_parallel_size,
        )
        widths = [min(64, -(-int(positions_G[batch].max()) // multiple) * multiple) for batch in batches]
        places.append(micro_batch_size * sum(widths))
        assert len(batches) == work.num_micro_batches
    assert work.slowest_positions == max(places)
    padding = workload_of(positions_G[None]).padding_share(micro_batch_size=micro_batch_size, multiple=multiple)
    assert padding == 1 - positions_G.sum() / sum(places)
