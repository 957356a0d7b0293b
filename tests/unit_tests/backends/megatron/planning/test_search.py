# SPDX-License-Identifier: Apache-2.0
"""The layouts that are found are possible, fit if they are said to, and include those that people choose."""

from dataclasses import replace

import numpy as np
import pytest

from primus.backends.megatron.planning.devices import GIB, gpu_by_name
from primus.backends.megatron.planning.layout import build_layout
from primus.backends.megatron.planning.memory import Recompute
from primus.backends.megatron.planning.search import USABLE_SHARE, Candidate, RunShape, memory_of, search_layouts
from primus.backends.megatron.planning.workload import Workload
from primus.config import load_config
from primus.config.rules import broken_rules
from primus.config.schema import TrainerConfig

H100 = gpu_by_name("H100")


def run_of(config: str, *overrides: str) -> RunShape:
    """A run on full packs of four conversations, half of whose tokens are targets."""
    keys = ["tokenizer_model=any", "sft_dataset_name=any.jsonl", *overrides]
    trainer = load_config(config, overrides=keys).trainer
    assert trainer.vocab_size is not None
    shape = (4, trainer.global_batch_size)
    quarter = trainer.seq_length // 4
    return RunShape(
        trainer=trainer,
        used_vocab_size=trainer.vocab_size,
        workload=Workload(
            positions_KG=np.full(shape, trainer.seq_length),
            pairs_KG=np.full(shape, 4 * quarter * (quarter + 1) // 2),
            targets_KG=np.full(shape, trainer.seq_length // 2),
            is_packed=True,
            seq_length=trainer.seq_length,
        ),
        longest=trainer.seq_length,
        most_targets=trainer.seq_length // 2,
    )


def with_layout(run: RunShape, candidate: Candidate) -> TrainerConfig:
    return run.trainer.model_copy(update=dict(candidate.overrides))


@pytest.fixture(scope="module")
def run() -> RunShape:
    return run_of("llama3_8B-multiturn-sft.yaml")


@pytest.fixture(scope="module")
def found(run: RunShape) -> list[Candidate]:
    return search_layouts(run, world_size=8, gpu=H100, memory_gib=H100.memory_gib)


def test_every_layout_is_possible_and_uses_all_gpus(run: RunShape, found: list[Candidate]) -> None:
    assert len(found) > 50
    for candidate in found:
        trainer = with_layout(run, candidate)
        assert not broken_rules(trainer, wrong=frozenset())
        assert build_layout(trainer, world_size=8) == candidate.layout
        sizes = candidate.sizes
        assert sizes.tensor * sizes.pipeline * sizes.context * sizes.data == 8


def test_those_that_fit_come_first_and_the_fastest_of_them_before_all(found: list[Candidate]) -> None:
    fits = [candidate.fits(H100.memory_gib) for candidate in found]
    assert fits == sorted(fits, reverse=True)
    assert True in fits
    assert False in fits
    times = [candidate.time.total for candidate in found if candidate.fits(H100.memory_gib)]
    assert times == sorted(times)
    limit = USABLE_SHARE * H100.memory_gib * GIB
    assert fits == [candidate.memory.total <= limit for candidate in found]


def test_no_more_layers_are_computed_again_than_needed(run: RunShape, found: list[Candidate]) -> None:
    partly = [candidate for candidate in found if candidate.recompute.method == "block"]
    assert partly
    for candidate in partly:
        assert candidate.fits(H100.memory_gib)
        fewer = replace(candidate.recompute, num_layers=candidate.recompute.num_layers - 1)
        if fewer.num_layers == 0:
            fewer = Recompute()
        memory = memory_of(with_layout(run, candidate), candidate.layout, run, recompute=fewer)
        assert memory.total > USABLE_SHARE * H100.memory_gib * GIB


def test_where_it_fits_copies_of_the_model_win(run: RunShape) -> None:
    h200 = gpu_by_name("H200")
    best = search_layouts(run, world_size=8, gpu=h200, memory_gib=h200.memory_gib)[0]
    assert (best.sizes.data, best.recompute.granularity) == (8, None)
    assert best.overrides["use_distributed_optimizer"]


def test_a_model_that_no_gpu_holds_is_shared_out(run: RunShape) -> None:
    large = run_of("llama3_70B-multiturn-sft.yaml")
    found = search_layouts(large, world_size=32, gpu=H100, memory_gib=H100.memory_gib)
    assert found[0].fits(H100.memory_gib)
    assert found[0].sizes.tensor * found[0].sizes.pipeline >= 8
    # Matrices are shared out inside a node only.
    assert max(candidate.sizes.tensor for candidate in found) == 8
    too_few = search_layouts(large, world_size=8, gpu=H100, memory_gib=H100.memory_gib)
    assert not any(candidate.fits(H100.memory_gib) for candidate in too_few)


def test_more_gpus_make_a_step_shorter(run: RunShape) -> None:
    times = [
        search_layouts(run, world_size=num, gpu=H100, memory_gib=H100.memory_gib)[0].time.total for num in (8, 16, 32)
    ]
    assert times[0] > 1.6 * times[1] > 1.6**2 * times[2]
