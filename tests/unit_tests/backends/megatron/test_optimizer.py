# SPDX-License-Identifier: Apache-2.0
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from primus.backends.megatron.model.gpt import build_model
from primus.backends.megatron.optimizer import build_optimizer, build_scheduler

pytestmark = pytest.mark.usefixtures("joined")


def learning_rates(tiny: ModuleType, folder: Path, *, train_iters: int, **keys: Any) -> list[float]:
    trainer = tiny.tiny_config(folder, lr=1.0, **keys).trainer
    (model,) = build_model(trainer, padded_vocab_size=64, device=torch.device("cpu"))
    optimizer = build_optimizer(trainer, [model])
    scheduler = build_scheduler(trainer, optimizer, train_iters=train_iters)
    rates = []
    for _ in range(train_iters):
        scheduler.step(increment=1)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_the_first_step_learns_and_the_last_one_has_the_lowest_rate(tiny: ModuleType, tmp_path: Path) -> None:
    rates = learning_rates(tiny, tmp_path, train_iters=6, lr_warmup_iters=2, lr_decay_style="linear", min_lr=0.2)
    assert rates == pytest.approx([0.5, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_the_rate_stays_at_the_lowest_after_lr_decay_iters(tiny: ModuleType, tmp_path: Path) -> None:
    rates = learning_rates(tiny, tmp_path, train_iters=5, lr_warmup_iters=0, lr_decay_iters=3, lr_decay_style="cosine")
    assert rates == pytest.approx([0.75, 0.25, 0.0, 0.0, 0.0])


def test_wsd_decays_in_its_last_phase_only(tiny: ModuleType, tmp_path: Path) -> None:
    keys = {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 2, "lr_warmup_iters": 1}
    assert learning_rates(tiny, tmp_path, train_iters=5, **keys) == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0])


def test_a_warm_up_as_long_as_the_run_is_warned_about(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="primus"):
        rates = learning_rates(tiny, tmp_path, train_iters=2, lr_warmup_iters=4)
    assert rates == pytest.approx([0.25, 0.5])
    assert "lr_warmup_iters: the warm-up takes 4 steps and the run 2" in caplog.text


def test_biases_and_norms_are_not_decayed(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_config(tmp_path, weight_decay=0.1, add_qkv_bias=True).trainer
    (model,) = build_model(trainer, padded_vocab_size=64, device=torch.device("cpu"))
    optimizer = build_optimizer(trainer, [model])
    build_scheduler(trainer, optimizer, train_iters=5).step(increment=1)
    decay_of = {
        id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        is_spared = name.endswith(".bias") or "norm" in name
        assert decay_of[id(parameter)] == (0.0 if is_spared else 0.1), name
