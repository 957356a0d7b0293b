# SPDX-License-Identifier: Apache-2.0
"""Packs by number: the same as those of the batches, for any order of asking and any number of threads."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from primus.errors import DataError
from primus.sft.streaming import IndexedStream, StreamedBatch
from tests.unit_tests.sft.streaming.conftest import SEQ_LENGTH, Stream, first


def indexed(stream: Stream, *, num_kept: int = 8, **options: object) -> IndexedStream:
    return IndexedStream(stream(**options), pad_id=7, num_kept=num_kept)


def check_step(packs: IndexedStream, step: int, batch: StreamedBatch) -> None:
    indices = packs.global_batch(step)
    found = packs.batch(indices, length=SEQ_LENGTH)
    wanted = batch.targets(range(len(batch)), length=SEQ_LENGTH, pad_id=7)
    for name in wanted._fields:
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
    assert packs.num_positions_of(indices).tolist() == batch.num_positions_P.tolist()
    assert packs.num_units_of(indices).tolist() == batch.num_units_P.tolist()
    assert packs.origin(int(indices[1])) == " + ".join(batch.origins(1))


def test_packs_by_number_are_those_of_the_batches(stream: Stream) -> None:
    batches = first(stream(), 12)
    packs = indexed(stream)
    for step in (3, 0, 5, 11, 9, 4):
        check_step(packs, step, batches[step])
    with pytest.raises(ValueError, match="step 3 is not among the 8 that are kept, up to 11"):
        packs.batch(packs.global_batch(3), length=SEQ_LENGTH)
    with pytest.raises(ValueError, match="packs of 2 steps; those of a batch are of one"):
        packs.batch(np.array([14, 15]), length=SEQ_LENGTH)


def test_a_checkpoint_of_any_kept_step_goes_on_with_the_next(stream: Stream) -> None:
    batches = first(stream(), 14)
    packs = indexed(stream)
    assert json.loads(json.dumps(packs.state(0))) == json.loads(json.dumps(stream().state().to_dict()))
    packs.batch(packs.global_batch(9), length=SEQ_LENGTH)  # loaded ahead
    for num_steps in (4, 7):
        state = json.loads(json.dumps(packs.state(num_steps)))
        again = indexed(stream, state=state)
        assert again.first_step == num_steps
        assert json.loads(json.dumps(again.state(num_steps))) == state
        for step in range(num_steps, num_steps + 4):
            check_step(again, step, batches[step])
        with pytest.raises(ValueError, match=f"step {num_steps - 1} is not among"):
            again.batch(again.global_batch(num_steps - 1), length=SEQ_LENGTH)


def test_threads_get_the_same_packs(stream: Stream) -> None:
    batches = first(stream(), 24)
    packs = indexed(stream, num_kept=24)
    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(check_step, packs, step, batches[step]) for step in range(23, -1, -1)]:
            done.result()


def test_an_error_is_told_to_every_thread(stream: Stream, files: list[Path]) -> None:
    with files[0].open("a") as file:
        file.write("{not json\n")
    packs = indexed(stream, of=files[:1])
    for _ in range(2):
        with pytest.raises(DataError, match=r"lines\.jsonl:41: not valid JSON"):
            packs.batch(packs.global_batch(90), length=SEQ_LENGTH)


def test_another_stream_has_another_fingerprint(stream: Stream) -> None:
    prints = {
        indexed(stream, **options).fingerprint
        for options in ({}, {"seed": 4}, {"shuffle_buffer": 21}, {"packing": "none"}, {"identity": {"x": "b"}})
    }
    assert len(prints) == 5
    assert indexed(stream, global_batch_size=5).fingerprint in prints
    assert [indexed(stream, packing=packing).is_packed for packing in ("none", "best_fit")] == [False, True]
    with pytest.raises(ValueError, match="num_kept is 0, not at least 1"):
        indexed(stream, num_kept=0)
