# SPDX-License-Identifier: Apache-2.0
"""The model of a step's time, against formulas and against what must hold in any such model."""

from dataclasses import replace
from typing import Any

import pytest

from primus.backends.megatron.planning.devices import gpu_by_name
from primus.backends.megatron.planning.flops import count_flops
from primus.backends.megatron.planning.memory import ModelShape, ParallelSizes, Recompute
from primus.backends.megatron.planning.step_time import Overlap, StepTime, estimate_step_time, useful_flops
from primus.backends.megatron.planning.workload import StepWork
from primus.config.schema import LoraConfig, ModelKeys

LLAMA = ModelKeys(num_layers=32, hidden_size=4096, ffn_hidden_size=14336, num_attention_heads=32, num_query_groups=8)
SHAPE = ModelShape.of(LLAMA, lora=LoraConfig(), padded_vocab_size=128256, bf16=True)
H200 = gpu_by_name("H200")
FULL = Recompute(granularity="full", method="uniform", num_layers=1)


def work_of(num_micro_batches: int, *, data: int = 1) -> StepWork:
    """Full sequences of 8192 positions of one conversation each."""
    positions, pairs = 8192 * num_micro_batches, 8192 * 8193 // 2 * num_micro_batches
    return StepWork(
        useful_positions=positions * data,
        useful_pairs=pairs * data,
        targets=positions * data / 2,
        num_micro_batches=num_micro_batches,
        slowest_positions=positions,
        slowest_pairs=pairs,
    )


def time_of(num_micro_batches: int = 8, **keys: Any) -> StepTime:
    sizes = keys.pop("sizes", ParallelSizes())
    given: dict[str, Any] = {
        "recompute": Recompute(),
        "use_distributed_optimizer": True,
        "overlap": Overlap(grad_reduce=False, param_gather=False),
        "gpu": H200,
        **keys,
    }
    work = work_of(num_micro_batches, data=sizes.data)
    work = replace(work, targets=given.pop("targets", work.targets))
    return estimate_step_time(SHAPE, vocab_size=128256, sizes=sizes, work=work, **given)


def test_one_gpu_computes_and_waits_for_nobody() -> None:
    time = time_of()
    assert (time.tensor, time.context, time.pipeline, time.bubble, time.data, time.recompute) == (0, 0, 0, 0, 0, 0)
    rate = H200.peak_tflops * 1e12 * H200.matmul_share
    useful = useful_flops(SHAPE, work_of(8), vocab_size=128256)
    assert useful == count_flops(LLAMA, vocab_size=128256).of(
        positions=8 * 8192, pairs=8 * 8192 * 8193 // 2, targets=4 * 8192
    )
    # Attention is slower than matrix products, and norms wait for memory.
    assert useful / rate < time.compute < 1.5 * useful / rate


def test_recomputation_is_a_third_more_and_half_the_layers_a_sixth() -> None:
    assert time_of(recompute=FULL).recompute == pytest.approx(time_of().compute / 3, rel=0.05)
    half = Recompute(granularity="full", method="block", num_layers=16)
    assert time_of(recompute=half).recompute == pytest.approx(time_of(recompute=FULL).recompute / 2)


def test_the_bubble_is_that_of_narayanan_and_virtual_stages_divide_it() -> None:
    """Section 2.2: the bubble is (p - 1) / m of the ideal time, and 1 / v of that with v chunks."""
    # Without targets there is no output layer, which only one stage has.
    four = time_of(16, sizes=ParallelSizes(pipeline=4), targets=0)
    assert four.bubble == pytest.approx((four.compute + four.pipeline) * 3 / 16)
    chunked = time_of(16, sizes=ParallelSizes(pipeline=4, virtual_pipeline=4), targets=0)
    assert chunked.bubble < four.bubble / 3.9
    assert chunked.pipeline == pytest.approx(4 * four.pipeline)


def test_exchanges_over_the_network_take_longer_than_over_links() -> None:
    inside, beyond = (time_of(sizes=ParallelSizes(tensor=size, sequence_parallel=True)).tensor for size in (8, 16))
    assert beyond > inside
    assert time_of(sizes=ParallelSizes(context=4)).context < time_of(sizes=ParallelSizes(context=16)).context
    assert time_of(sizes=ParallelSizes(data=8)).data < time_of(sizes=ParallelSizes(data=16)).data
    # Each of eight data-parallel neighbours brings its own card, so eight times as many GPUs cost little more.
    assert time_of(sizes=ParallelSizes(data=64)).data < 1.2 * time_of(sizes=ParallelSizes(data=16)).data


def test_overlap_hides_exchanges_of_gradients_and_weights() -> None:
    sizes = ParallelSizes(data=8)
    shown = time_of(sizes=sizes)
    hidden = time_of(sizes=sizes, overlap=Overlap(grad_reduce=True, param_gather=True))
    assert hidden.data == 0 < shown.data
    assert replace(hidden, data=shown.data) == shown
    whole = time_of(sizes=sizes, use_distributed_optimizer=False)
    # Reducing for all takes twice as long as reducing for one each; gathering weights takes half of the latter.
    assert whole.data == pytest.approx(shown.data * 4 / 3)
    assert whole.optimizer == pytest.approx(8 * shown.optimizer)


def test_frozen_matrices_take_two_thirds_of_the_time() -> None:
    adapted = ModelShape.of(LLAMA, lora=LoraConfig(enabled=True, dim=16), padded_vocab_size=128256, bf16=True)
    time = estimate_step_time(
        adapted,
        vocab_size=128256,
        sizes=ParallelSizes(),
        work=work_of(8),
        recompute=Recompute(),
        use_distributed_optimizer=True,
        overlap=Overlap(grad_reduce=True, param_gather=True),
        gpu=H200,
    )
    assert 0.6 < time.compute / time_of().compute < 0.8
    assert time.optimizer < 0.01 * time_of().optimizer
