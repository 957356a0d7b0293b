# SPDX-License-Identifier: Apache-2.0
"""Where a run starts: at its own newest checkpoint that is whole, at what `load` names, or at random weights."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from primus.backends.megatron.agreement.facts import require_same_settings
from primus.backends.megatron.agreement.failures import on_all_ranks
from primus.backends.megatron.agreement.folders import require_shared_folder
from primus.backends.megatron.checkpoint.digests import damages, read_digests
from primus.backends.megatron.checkpoint.folder import (
    LATEST_FILE,
    clear_unfinished,
    complete_folders,
    find_checkpoint,
    name_newest,
    read_run,
)
from primus.backends.megatron.checkpoint.lock import folder_held
from primus.backends.megatron.distributed import Process, briefly_connected, on_first_rank
from primus.config.schema import TrainConfig
from primus.errors import CheckpointError

logger = logging.getLogger("primus")

Resume = Literal["never", "auto", "must"]
RESUME_CHOICES: Sequence[Resume] = ("never", "auto", "must")

_MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run starts."""

    folder: Path | None
    """The checkpoint; None starts with other weights."""
    weights_only: bool = False
    """Take its weights, and begin at step 0."""

    @property
    def continues(self) -> Path | None:
        """The checkpoint of the run that goes on, or None if one begins."""
        return None if self.weights_only else self.folder


@contextmanager
def started(config: TrainConfig, *, process: Process, resume: Resume) -> Iterator[Start]:
    """Decide where a run starts, and keep every other run out of its folder for the length of the block.

    Args:
        config: The run.
        process: This process.
        resume: As for `find_start`.

    Yields:
        Where it starts.

    Raises:
        LayoutError: If the ranks differ in what they are to do, or do not see the same folders.
        CheckpointError: As for `find_start`, or if another run is in the folder.
    """
    with ExitStack() as held:
        with briefly_connected(process, config.trainer):
            require_same_settings(config, process=process, resume=resume)
            try:
                on_first_rank(lambda: held.enter_context(folder_held(config.exp_dir)))
            except BlockingIOError as exc:
                raise CheckpointError(
                    f"{config.exp_dir}: {exc.strerror} trains in this folder; wait for its end, or choose another"
                    " exp_name"
                ) from exc
            require_shared_folder(config.exp_dir, key="workspace")
            if config.trainer.save is not None:
                require_shared_folder(config.trainer.save, key="save")
            start = find_start(config, resume=resume)
        yield start


def find_start(config: TrainConfig, *, resume: Resume) -> Start:
    """Decide where a run starts; all ranks call it together, connected, before they read any data.

    What an interrupted save has left in the run's folder is cleared away, and every file of the checkpoint is compared
    with its digest.

    Args:
        config: The run.
        resume: `auto` goes on from the newest checkpoint of the run's own folder, and begins where there is none;
            `must` refuses to begin; `never` refuses a folder that a run has written to.

    Returns:
        Where it starts. A damaged checkpoint of the run's own folder is passed over, with a warning.

    Raises:
        CheckpointError: If `resume` and what the folder holds contradict each other, or no checkpoint is whole.
    """
    save = config.trainer.save or config.exp_dir / "checkpoints"
    if resume == "never":
        _refuse_used_folders(config, save=save)
    for name in on_first_rank(lambda: clear_unfinished(save)):
        logger.info("%s: was not written to its end, and is cleared away", save / name)
    own = on_first_rank(lambda: complete_folders(save))
    _check_load(config, save=save, own=own)
    if own:
        return Start(folder=_newest_whole(own))
    if resume == "must":
        raise CheckpointError(f"{save}: holds no checkpoint to go on from; start the run with --resume auto")
    load = config.trainer.load
    if load is None or (not load.exists() and _is_inside(load, save)):
        return Start(folder=None)
    folder = on_all_ranks(lambda: _read_checkpoint(load))
    damaged = _damages(folder)
    if damaged:
        raise CheckpointError(f"{folder}: is damaged ({_named(damaged)}); load another checkpoint")
    return Start(folder=folder, weights_only=config.trainer.finetune)


def _read_checkpoint(load: Path) -> Path:
    folder = find_checkpoint(load)
    read_run(folder)
    return folder


def _refuse_used_folders(config: TrainConfig, *, save: Path) -> None:
    """Refuse to begin a run where one has been.

    Raises:
        CheckpointError: If the folder has its checkpoints or metrics.
    """
    metrics = config.exp_dir / "logs" / "metrics.jsonl"
    used = on_first_rank(
        lambda: [*complete_folders(save)[:1], *([metrics] if metrics.is_file() and metrics.stat().st_size else [])]
    )
    if used:
        raise CheckpointError(
            f"{used[0]}: is of a run that was started before, and --resume never begins one; choose another exp_name,"
            " go on with --resume auto, or move the folder away"
        )


def _check_load(config: TrainConfig, *, save: Path, own: Sequence[Path]) -> None:
    """Refuse to go back inside of a run's own folder: what comes after would be of two runs.

    Raises:
        CheckpointError: If `load` asks for that.
    """
    load = config.trainer.load
    if load is None or not own:
        return
    if not _is_inside(load, save):
        logger.info("%s: the run goes on from its own checkpoint; load was for its start", own[0].parent)
    elif config.trainer.finetune:
        raise CheckpointError(
            f"{load}: is a checkpoint of this run itself, and finetune begins another one; choose another exp_name"
        )
    elif load.resolve() not in (save.resolve(), own[0].resolve()):
        raise CheckpointError(
            f"{load}: is not the newest checkpoint of this run, which is {own[0].name}; to go back, choose another"
            " exp_name, or move the later checkpoints away"
        )


def _is_inside(load: Path, save: Path) -> bool:
    return load.resolve().is_relative_to(save.resolve())


def _newest_whole(folders: Sequence[Path]) -> Path:
    """The first of some checkpoints that is as it was written.

    Raises:
        CheckpointError: If none is.
    """
    problems: list[str] = []
    for folder in folders:
        damaged = _damages(folder)
        if not damaged:
            if problems:
                logger.warning("%s; GOING ON FROM %s, WHICH CAME BEFORE", "; ".join(problems), folder)
            on_first_rank(lambda: _mend_newest(folder))  # noqa: B023 - called at once
            return folder
        problems.append(f"{folder}: is damaged ({_named(damaged)})")
    raise CheckpointError(
        f"{'; '.join(problems)}; no other checkpoint is there to go on from, so put one back, or begin anew with"
        " another exp_name"
    )


def _mend_newest(folder: Path) -> None:
    """Name the checkpoint that a run goes on from, where another one or none is named."""
    latest = folder.with_name(LATEST_FILE)
    if not latest.is_file() or latest.read_text(encoding="utf-8").strip() != str(int(folder.name.split("_")[1])):
        name_newest(folder)


def _damages(folder: Path) -> Sequence[str]:
    """What is wrong with a checkpoint, the same on every rank; each reads a part of the files."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        digests = read_digests(folder)
        found = list(damages(folder, sorted(digests)[rank::world_size], digests=digests))
    except CheckpointError as exc:
        found = [problem.partition("; ")[0] for problem in exc.problems]
    everyone: list[list[str]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(everyone, found)
    return sorted({damage for part in everyone for damage in part})


def _named(damaged: Sequence[str]) -> str:
    more = len(damaged) - _MAX_NAMED
    return ", ".join(damaged[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
