# SPDX-License-Identifier: Apache-2.0
"""Where a run starts, for what its folder holds and what is asked for."""

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from primus.backends.megatron.checkpoint import start as start_module
from primus.backends.megatron.checkpoint.folder import LATEST_FILE
from primus.backends.megatron.checkpoint.lock import folder_held
from primus.backends.megatron.checkpoint.start import Resume, Start, find_start, started
from primus.backends.megatron.distributed import this_process
from primus.errors import CheckpointError


@pytest.fixture(scope="module")
def trained(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of a run with checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("trained")
    tiny.run_tiny(tiny.tiny_config(folder, train_iters=6, save_interval=2, eval_interval=0), validation=None)
    return folder


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def save_of(workspace: Path) -> Path:
    return workspace / "primus" / "user" / "tiny" / "checkpoints"


@pytest.fixture
def find(tiny: ModuleType, joined: None) -> Callable[..., Start]:
    def find(workspace: Path, *, resume: Resume = "auto", **keys: Any) -> Start:
        return find_start(tiny.tiny_config(workspace, **keys), resume=resume)

    return find


def damage(folder: Path, name: str, how: str) -> None:
    path = folder / name
    if how == "missing":
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content[:-1] if how == "cut" else content)


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_a_run_goes_on_from_the_newest_checkpoint_of_its_own_folder(
    find: Callable[..., Start], workspace: Path, resume: Resume
) -> None:
    start = find(workspace, resume=resume, load=Path("elsewhere"))
    assert start == Start(folder=save_of(workspace) / "iter_0000006", weights_only=False)
    assert start.continues == start.folder


def test_a_run_begins_where_there_is_no_checkpoint(find: Callable[..., Start], tmp_path: Path) -> None:
    for resume in ("auto", "never"):
        assert find(tmp_path, resume=resume) == Start(folder=None, weights_only=False)
    with pytest.raises(CheckpointError, match="checkpoints: holds no checkpoint to go on from; start the run with"):
        find(tmp_path, resume="must")


def test_a_run_begins_with_what_load_names(find: Callable[..., Start], workspace: Path, tmp_path: Path) -> None:
    newest, older = save_of(workspace) / "iter_0000006", save_of(workspace) / "iter_0000004"
    fresh = tmp_path / "fresh"
    assert find(fresh, load=save_of(workspace)) == Start(folder=newest, weights_only=False)
    start = find(fresh, load=older, finetune=True)
    assert start == Start(folder=older, weights_only=True)
    assert start.continues is None
    # As Megatron's recipes have it: load and save are one folder, and at first nothing is in it.
    assert find(fresh, load=save_of(fresh)).folder is None
    with pytest.raises(CheckpointError, match="holds neither"):
        find(fresh, load=tmp_path / "nothing")
    damage(newest, "common.pt", "changed")
    with pytest.raises(
        CheckpointError, match=r"iter_0000006: is damaged \(common\.pt does not hold what was written\)"
    ):
        find(fresh, load=save_of(workspace))


@pytest.mark.parametrize("how", ["missing", "cut", "changed"])
@pytest.mark.parametrize("name", ["__0_0.distcp", "common.pt", ".metadata", "metadata.json", "run.json", "files.json"])
def test_a_damaged_checkpoint_is_passed_over_aloud(
    find: Callable[..., Start], workspace: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    save = save_of(workspace)
    damage(save / "iter_0000006", name, how)
    with caplog.at_level(logging.WARNING, logger="primus"):
        assert find(workspace).folder == save / "iter_0000004"
    (warning,) = caplog.messages
    assert warning.startswith(f"{save}/iter_0000006: is damaged (")
    assert warning.endswith(f"; GOING ON FROM {save}/iter_0000004, WHICH CAME BEFORE")
    # So that an export takes the one that can be read.
    assert (save / LATEST_FILE).read_text() == "4\n"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(
    find: Callable[..., Start], workspace: Path
) -> None:
    for number in (2, 4, 6):
        damage(save_of(workspace) / f"iter_000000{number}", "__0_1.distcp", "cut")
    with pytest.raises(CheckpointError, match=r"000006: is .*; .*000004: is .*; .*000002: is .*; no other checkpoint"):
        find(workspace)


def test_a_run_does_not_go_back_in_its_own_folder(find: Callable[..., Start], workspace: Path) -> None:
    save = save_of(workspace)
    assert find(workspace, load=save / "iter_0000006").folder == save / "iter_0000006"
    assert find(workspace, load=save).folder == save / "iter_0000006"
    with pytest.raises(CheckpointError, match=r"iter_0000004: is not the newest .* which is iter_0000006; to go back"):
        find(workspace, load=save / "iter_0000004")
    with pytest.raises(CheckpointError, match="is a checkpoint of this run itself, and finetune begins another one"):
        find(workspace, load=save, finetune=True)


def test_never_refuses_a_folder_that_a_run_has_written_to(find: Callable[..., Start], workspace: Path) -> None:
    with pytest.raises(CheckpointError, match="iter_0000006: is of a run that was started before, and --resume never"):
        find(workspace, resume="never")
    shutil.rmtree(save_of(workspace))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: is of a run that was started before"):
        find(workspace, resume="never")


def test_what_an_interrupted_save_left_is_cleared_away(
    find: Callable[..., Start], workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save = save_of(workspace)
    (save / ".iter_0000008.partial").mkdir()
    (save / ".iter_0000001.removed").mkdir()
    # Killed between the two renamings that replace a checkpoint.
    (save / "iter_0000006").rename(save / ".iter_0000006.replaced")
    with caplog.at_level(logging.INFO, logger="primus"):
        assert find(workspace).folder == save / "iter_0000006"
    assert "iter_0000008: was not written to its end, and is cleared away" in caplog.text
    assert not list(save.glob(".*"))


def test_a_second_run_is_kept_out_of_the_folder(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.tiny_config(tmp_path)
    with started(config, process=this_process(), resume="auto") as start:
        assert start.folder is None
        with pytest.raises(BlockingIOError, match=r"process \d+ on "), folder_held(config.exp_dir, wait_s=0):
            pass
        monkeypatch.setattr(start_module, "folder_held", partial(folder_held, wait_s=0))
        message = r"tiny: process \d+ on .* trains in this folder; wait for its end, or choose another exp_name"
        with pytest.raises(CheckpointError, match=message), started(config, process=this_process(), resume="auto"):
            pass
    with started(config, process=this_process(), resume="auto"):
        pass
