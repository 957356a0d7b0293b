# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are written while training goes on, and how many are kept."""

import os
import time
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from primus.backends.megatron.checkpoint.digests import damages, read_digests
from primus.errors import CheckpointError, TrainingError

DISTRIBUTED = {"use_distributed_optimizer": True}


def save_of(workspace: Path) -> Path:
    return workspace / "primus" / "user" / "tiny" / "checkpoints"


@pytest.mark.parametrize("keys", [{}, {**DISTRIBUTED, "bf16": True}], ids=["whole", "distributed, bf16"])
def test_what_is_written_in_the_background_is_the_state_of_its_step(
    tiny: ModuleType, tmp_path: Path, keys: dict[str, bool]
) -> None:
    """Not of a later one: the next steps change the weights while they are written."""
    whole = tiny.run_tiny(tiny.tiny_config(tmp_path / "whole", save_interval=1, async_save=True, lr=0.1, **keys))
    for step in (1, 6):
        load = save_of(tmp_path / "whole") / f"iter_000000{step}"
        assert damages(load, read_digests(load), digests=read_digests(load)) == []
        resumed = tiny.run_tiny(tiny.tiny_config(tmp_path / f"from{step}", load=load, lr=0.1, **keys))
        assert tiny.read_losses(resumed) == tiny.read_losses(whole)[step:]


def test_the_newest_checkpoints_are_kept(tiny: ModuleType, tmp_path: Path) -> None:
    for name, in_background in (("waiting", False), ("background", True)):
        keys = {"save_interval": 2, "most_recent_k": 2, "async_save": in_background, "eval_interval": 0}
        config = tiny.tiny_config(tmp_path / name, **keys)
        tiny.run_tiny(config, validation=None)
        names = sorted(path.name for path in save_of(tmp_path / name).iterdir())
        assert names == ["iter_0000006", "iter_0000008", "latest_checkpointed_iteration.txt"]


def test_no_process_is_left(tiny: ModuleType, tmp_path: Path) -> None:
    before = psutil.Process(os.getpid()).children()
    keys = {"save_interval": 1, "async_save": True, "eval_interval": 0, "train_iters": 2}
    tiny.run_tiny(tiny.tiny_config(tmp_path, **keys), validation=None)
    assert psutil.Process(os.getpid()).children() == before


def test_a_writer_that_fails_is_said_so(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    # Called in the forked process, where its writing ends.
    monkeypatch.setattr("primus.backends.megatron.checkpoint.saving.leave_digest", full)
    for keys in ({}, {"async_save": True}):
        message = r"checkpoints: the checkpoint of step 2 cannot be written \(.*No space left.*\); check the free space"
        with pytest.raises(CheckpointError, match=message) as caught:
            tiny.run_tiny(tiny.tiny_config(tmp_path, save_interval=2, **keys))
        assert "\n" not in str(caught.value)
        assert not list(save_of(tmp_path).glob("iter_*"))


def test_a_writer_that_is_killed_is_said_so(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: Path) -> None:
        os.kill(os.getppid(), 9)
        time.sleep(60)

    monkeypatch.setattr("primus.backends.megatron.checkpoint.saving.leave_digest", gone)
    before = psutil.Process(os.getpid()).children(recursive=True)
    with pytest.raises(CheckpointError, match="the checkpoint of step 2 cannot be written"):
        tiny.run_tiny(tiny.tiny_config(tmp_path, save_interval=2))
    # What it had started has ended with it.
    assert psutil.Process(os.getpid()).children(recursive=True) == before


def test_a_run_that_breaks_finishes_the_checkpoint_before(tiny: ModuleType, tmp_path: Path) -> None:
    config = tiny.tiny_config(tmp_path, save_interval=1, async_save=True, lr=1e30, lr_warmup_iters=0, clip_grad=0)
    with pytest.raises(TrainingError):
        tiny.run_tiny(config, validation=None)
    names = sorted(path.name for path in save_of(tmp_path).iterdir())
    assert names == ["iter_0000001", "latest_checkpointed_iteration.txt"]
