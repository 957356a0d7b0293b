# SPDX-License-Identifier: Apache-2.0
"""What a run says of its use of the device is what its tokens need, its time and its memory."""

import json
import logging
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from primus.backends.megatron.planning.flops import count_flops
from primus.backends.megatron.planning.parameter_count import count_parameters
from primus.backends.megatron.utilization import UtilizationMeter, log_memory_estimate


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_the_figures_of_a_run_are_those_of_its_tokens(tiny: ModuleType, tmp_path: Path, packing: str) -> None:
    config = tiny.tiny_config(tmp_path, sft_packing=packing, train_iters=3, sft_peak_tflops=0.5)
    train = tiny.dataset_of(tiny.conversations(120), packing=packing)
    result = tiny.run_tiny(config, train=train, validation=None)
    lines = [json.loads(line) for line in result.metrics_path.read_text().splitlines()]
    flops = count_flops(config.trainer, vocab_size=tiny.VOCAB_SIZE)
    order = train.order(global_batch_size=8)
    for index, line in enumerate(lines):
        conversations = [
            item
            for sequence in order.global_batch(index)
            for item in ([sequence] if train.plan is None else train.plan.pack(int(sequence)))
        ]
        lengths = [int(train.data.num_tokens_N[item]) - 1 for item in conversations]
        useful = flops.of(
            positions=sum(lengths),
            pairs=sum(sum(range(1, length + 1)) for length in lengths),
            targets=line["supervised_tokens"],
        )
        assert line["tokens"] == sum(lengths)
        assert line["tflops_per_device"] == pytest.approx(useful / line["step_time_s"] / 1e12)
        assert line["mfu"] == pytest.approx(line["tflops_per_device"] / 0.5)
        assert 50e6 < line["peak_memory_bytes"] < 50e9


def test_a_cpu_has_no_peak_rate_unless_one_is_given(tiny: ModuleType, tmp_path: Path) -> None:
    result = tiny.run_tiny(tiny.tiny_config(tmp_path, train_iters=1), validation=None)
    (line,) = map(json.loads, result.metrics_path.read_text().splitlines())
    assert line["mfu"] is None
    assert line["tflops_per_device"] > 0


def test_a_run_says_before_its_first_step_what_it_will_take(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="primus")
    trainer = tiny.tiny_config(tmp_path, num_layers=32, hidden_size=4096, ffn_hidden_size=16384).trainer
    log_memory_estimate(trainer, vocab_size=128256, device=torch.device("cpu"), world_size=1)
    (message,) = caplog.messages
    weights = count_parameters(trainer, padded_vocab_size=128256).total
    said = re.match(r"memory: at most ([\d.]+) GiB on a rank", message)
    assert said is not None
    # In float32 there are 16 bytes for each weight, and next to nothing for sequences of 32 positions.
    assert float(said[1]) == pytest.approx(16 * weights / 2**30, rel=0.02)


def test_adapters_count_with_what_they_need(tiny: ModuleType, tmp_path: Path) -> None:
    data = tiny.TinySequences(8)

    def flops(**keys: object) -> int:
        meter = UtilizationMeter(
            tiny.tiny_config(tmp_path, **keys).trainer, vocab_size=61, device=torch.device("cpu"), world_size=1
        )
        return meter.flops_of(data, np.arange(8), num_targets=10)

    frozen, whole = flops(lora={"enabled": True, "dim": 1}), flops()
    assert 2 / 3 < frozen / whole < 0.8
