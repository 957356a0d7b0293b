# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path
from types import ModuleType

import pytest
import torch

from primus.backends.megatron.determinism import VARIABLES, deterministic
from primus.errors import ConfigError


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_mode_holds_inside_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    with deterministic(is_on=True):
        assert torch.are_deterministic_algorithms_enabled()
        assert (os.environ["CUBLAS_WORKSPACE_CONFIG"], os.environ["NCCL_ALGO"]) == (":4096:8", "Tree")
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with deterministic(is_on=False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_an_environment_that_is_not_deterministic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "NVLS")
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1")
    with pytest.raises(ConfigError) as caught, deterministic(is_on=True):
        pass
    advice = "is not deterministic, and deterministic_mode is on; leave it away, or set it to"
    assert list(caught.value.problems) == [
        f"environment: NCCL_ALGO=NVLS {advice} Ring or Tree or CollnetDirect or CollnetChain or ^NVLS",
        f"environment: NVTE_ALLOW_NONDETERMINISTIC_ALGO=1 {advice} 0",
    ]


def test_a_run_in_the_mode_is_the_run_without_it_on_a_cpu(tiny: ModuleType, tmp_path: Path) -> None:
    runs = [
        tiny.run_tiny(tiny.tiny_config(tmp_path / str(is_on), train_iters=3, deterministic_mode=is_on), validation=None)
        for is_on in (False, True)
    ]
    assert tiny.read_losses(runs[0]) == tiny.read_losses(runs[1])
