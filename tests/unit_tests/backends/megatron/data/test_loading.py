# SPDX-License-Identifier: Apache-2.0
"""Batches loaded ahead, and the hash that says which they were."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from primus.backends.megatron.data.batches import (
    HASHES,
    IntArray,
    MicroBatch,
    SequenceDataset,
    rank_micro_batches,
    read_micro_batch,
)
from primus.backends.megatron.data.loading import AHEAD_PER_WORKER, MicroBatchLoader
from primus.errors import DataError
from primus.sft.masking import PackedTargets

CPU = torch.device("cpu")


def loader_of(data: SequenceDataset, requests: Iterator[Any], *, num_workers: int) -> MicroBatchLoader:
    return MicroBatchLoader(data, requests, pad_to_multiple_of=8, device=CPU, num_workers=num_workers)


def content(batch: MicroBatch) -> list[Any]:
    return [value.tolist() if isinstance(value, torch.Tensor) else value for value in vars(batch).values()]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_threads_load_the_same_batches_in_the_same_order(tiny: ModuleType, num_workers: int, packing: str) -> None:
    data = tiny.dataset_of(tiny.conversations(200), packing=packing)
    rng = np.random.default_rng(0)
    requests = [(rng.integers(0, len(data), 3), rng.integers(0, 9, 3)) for _ in range(40)]
    expected = [content(batch) for batch in loader_of(data, iter(requests), num_workers=0)]
    assert len(expected) == 40
    with loader_of(data, iter(requests), num_workers=num_workers) as loader:
        assert [content(batch) for batch in loader] == expected
        assert list(loader) == []


class Slow:
    """A data set that counts, and fails where it is told to."""

    def __init__(self, data: Any, *, broken: int | None = None) -> None:
        self.data = data
        self.num_read = 0
        self.broken = broken
        self.max_seq_length, self.fingerprint, self.is_packed = data.max_seq_length, data.fingerprint, data.is_packed
        self.shares = None
        self.source_names = data.source_names
        self.num_positions_of, self.num_units_of = data.num_positions_of, data.num_units_of
        self.num_pairs_of = data.num_pairs_of
        self.origin, self.origins = data.origin, data.origins

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices_B: IntArray, *, length: int) -> PackedTargets:
        time.sleep(0.002 * int(indices_B[0] % 3))
        self.num_read += 1
        if self.broken in indices_B:
            raise DataError(f"train.jsonl:{self.broken}: is damaged; prepare it again")
        targets: PackedTargets = self.data.batch(indices_B, length=length)
        return targets


def test_only_a_few_batches_are_loaded_ahead(tiny: ModuleType) -> None:
    data = Slow(tiny.TinySequences(40))
    drawn: list[int] = []

    def requests() -> Iterator[tuple[IntArray, None]]:
        for number in range(40):
            drawn.append(number)
            yield np.array([number]), None

    with loader_of(data, requests(), num_workers=2) as loader:
        for number in range(1, 31):
            next(loader)
            assert len(drawn) == min(40, number + 2 * AHEAD_PER_WORKER)
        loader.settle()
        assert data.num_read == len(drawn)
        assert not any(thread.name.startswith("batches") and thread.daemon for thread in threading.enumerate())
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_an_error_is_raised_where_its_batch_is_asked_for(tiny: ModuleType, num_workers: int) -> None:
    data = Slow(tiny.TinySequences(40), broken=5)
    requests = iter([(np.array([number]), None) for number in range(40)])
    with loader_of(data, requests, num_workers=num_workers) as loader:
        for _ in range(5):
            next(loader)
        with pytest.raises(DataError, match=r"^train.jsonl:5: is damaged; prepare it again$"):
            next(loader)
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


@settings(max_examples=25)
@given(
    packing=st.sampled_from(["none", "sequential", "best_fit"]),
    micro=st.sampled_from([1, 2, 4]),
    ranks=st.sampled_from([1, 2, 4, 8]),
    seed=st.integers(0, 5),
)
def test_the_hash_is_the_same_however_ranks_and_micro_batches_divide_the_batch(
    tiny: ModuleType, packing: str, micro: int, ranks: int, seed: int
) -> None:
    data = tiny.dataset_of(tiny.conversations(80), packing=packing)
    batch_G = np.random.default_rng(seed).integers(0, len(data), 32)
    everything = read_micro_batch(data, batch_G, pad_to_multiple_of=8, places_B=np.arange(32))
    parts = [
        read_micro_batch(data, batch_G[places_B], pad_to_multiple_of=8, places_B=places_B)
        for rank in range(ranks)
        for places_B in rank_micro_batches(
            np.arange(32), micro_batch_size=micro, data_parallel_rank=rank, data_parallel_size=ranks
        )
    ]
    assert sum(part.content_hash for part in parts) % HASHES == everything.content_hash
    assert sum(part.num_units for part in parts) == everything.num_units == data.num_units_N[batch_G].sum()


def test_the_hash_tells_other_tokens_other_weights_other_bounds_and_another_order(tiny: ModuleType) -> None:
    def hash_of(made: list[Any], *, packing: str = "sequential", order: tuple[int, ...] = (0, 1)) -> int:
        data = tiny.dataset_of(made, packing=packing, max_seq_length=40)
        batch = read_micro_batch(data, np.array(order), pad_to_multiple_of=8, places_B=np.arange(len(order)))
        return batch.content_hash

    made = tiny.conversations(12)

    def changed(**values: Any) -> list[Any]:
        fields = {name: getattr(made[0], name) for name in made[0].__dataclass_fields__}
        return [type(made[0])(**{**fields, **values}), *made[1:]]

    hashes = [
        hash_of(made),
        hash_of(made, order=(1, 0)),
        hash_of(made, packing="best_fit"),
        hash_of(changed(tokens_T=made[0].tokens_T + np.eye(1, len(made[0].tokens_T), 0, dtype=np.int64)[0])),
        hash_of(changed(weights_K=np.array([0.5, 2.0], dtype=np.float32))),
    ]
    assert len(set(hashes)) == len(hashes)
    assert hash_of(made) == hashes[0]


def test_every_step_of_a_run_has_the_hash_of_its_batch(tiny: ModuleType, tmp_path: Path) -> None:
    hashes = []
    for number, (num_workers, micro_batch_size) in enumerate([(0, 1), (1, 2), (4, 4)]):
        config = tiny.tiny_config(
            tmp_path / str(number),
            num_workers=num_workers,
            micro_batch_size=micro_batch_size,
            sft_packing="best_fit",
            save_interval=3,
        )
        result = tiny.run_tiny(config)
        hashes.append(tiny.read_losses(result, "batch_hash"))
        fills = tiny.read_losses(result, "fill")
        assert all(0.5 < fill <= 1 for fill in fills)
    assert len(set(hashes[0])) == 8
    assert hashes[1] == hashes[2] == hashes[0]
