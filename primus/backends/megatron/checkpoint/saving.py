# SPDX-License-Identifier: Apache-2.0
"""Write checkpoints, in other processes and if wanted while training goes on.

Each rank forks a process that has the state of this moment, whatever the next steps make of it: on a GPU it is copied
to the host first, and on a CPU the system copies a page when one of the two processes writes to it. The process writes
this rank's files and hashes them. When all ranks' have ended, the folder gets its name.
"""

import ctypes
import logging
import os
import queue
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException
from typing_extensions import Self

from primus.backends.megatron.checkpoint.digests import FileDigest, leave_digest, take_digests
from primus.backends.megatron.checkpoint.folder import RunFacts, begin_folder, finish_folder, remove_older
from primus.backends.megatron.checkpoint.state import reason_of, sharded_state
from primus.backends.megatron.distributed import on_first_rank
from primus.backends.megatron.replacement import replaced
from primus.errors import CheckpointError

logger = logging.getLogger("primus")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# CheckpointException is no Exception; torch raises it on every rank when one of them fails.
_CANNOT_WRITE = (OSError, RuntimeError, CheckpointingException, CheckpointException)


class _Unfinished(NamedTuple):
    """A checkpoint that is being written."""

    partial: Path
    run: RunFacts
    data_state: str | None
    began_s: float


class CheckpointSaver:
    """Saves checkpoints, one at a time.

    Use it as a context manager: what is being written when the block ends with an error is given up, and the folder of
    a checkpoint never has its name before everything is in it.

    Args:
        save: Folder of the checkpoints.
        keep: How many are kept; older ones are deleted once a newer one is complete. None keeps all.
        in_background: Let training go on while they are written.
        on_saved: Is told each checkpoint's folder and step when it is complete, on every rank.
    """

    def __init__(
        self, save: Path, *, keep: int | None, in_background: bool, on_saved: Callable[[Path, int], None]
    ) -> None:
        self._save = save
        self._keep = keep
        self._in_background = in_background
        self._on_saved = on_saved
        self._calls = AsyncCallsQueue()
        self._unfinished: _Unfinished | None = None

    def save(
        self,
        model: Sequence[DistributedDataParallel],
        optimizer: MegatronOptimizer,
        *,
        run: RunFacts,
        data_state: str | None = None,
    ) -> None:
        """Save a checkpoint, or begin to; all ranks call it together.

        Where one is still being written, this waits for it first.

        Args:
            model: The model's chunks of this rank, with their parameters gathered.
            optimizer: Their optimizer.
            run: What the weights belong to.
            data_state: Where the data is, for data that is no function of the step; the first rank's counts.

        Raises:
            CheckpointError: If it cannot be written, or the one before it could not.
        """
        self.finish()
        with self._told(run.iteration):
            partial = on_first_rank(lambda: begin_folder(self._save, run.iteration))
            request = _request(sharded_state(model, optimizer, is_loading=False), partial)
            self._calls.schedule_async_request(request)
        self._unfinished = _Unfinished(partial, run, data_state, time.monotonic())
        if not self._in_background:
            self.finish()

    def poll(self) -> None:
        """Finish the checkpoint that is being written, if all ranks' files are; all ranks call it together.

        Raises:
            CheckpointError: If it cannot be written.
        """
        self._finalize(blocking=False)

    def finish(self) -> None:
        """Wait until nothing is being written; all ranks call it together.

        Raises:
            CheckpointError: If a checkpoint cannot be written.
        """
        self._finalize(blocking=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for call in self._calls.async_calls:
            if call.async_caller.process is not None:
                call.async_caller.process.kill()

    def _finalize(self, *, blocking: bool) -> None:
        if self._unfinished is None:
            return
        partial, run, data_state, began_s = self._unfinished
        with self._told(run.iteration):
            if not self._calls.maybe_finalize_async_calls(blocking=blocking):
                return
            self._unfinished = None
            digests = _all_digests(partial)
            folder = on_first_rank(
                lambda: finish_folder(partial, save=self._save, run=run, data_state=data_state, digests=digests)
            )
            if self._keep is not None:
                keep = self._keep
                removed = on_first_rank(lambda: remove_older(folder, keep=keep))
                for old in removed:
                    logger.info("%s: deleted, %d checkpoints are kept", old, keep)
        logger.debug("%s: written in %.1f s", folder, time.monotonic() - began_s)
        self._on_saved(folder, run.iteration)

    @contextmanager
    def _told(self, iteration: int) -> Iterator[None]:
        """Say of what fails inside the block that it was this checkpoint, and what to do."""
        try:
            yield
        except _CANNOT_WRITE as exc:
            raise CheckpointError(
                f"{self._save}: the checkpoint of step {iteration} cannot be written ({reason_of(exc)}); "
                f"check the free space and the permissions"
            ) from exc


def _request(state: dict[str, Any], partial: Path) -> AsyncRequest:
    """What this rank has to write, for its process."""
    with replaced(filesystem_async, "_results_queue", _Results()):
        request = dist_checkpointing.save(state, str(partial), async_sharded_save=True)
    assert request is not None
    if request.async_fn is None:
        return request
    return request._replace(async_fn=_writing_for(os.getpid(), request.async_fn))


def _writing_for(parent: int, write: Callable[..., None]) -> Callable[..., None]:
    """The same function, for the process that a rank forks: it and its writers end with their parents.

    A writer that outlived a killed run would write into the folder of the next attempt.
    """

    def run(*args: Any, **kwargs: Any) -> None:
        _end_with(parent)
        writer = filesystem_async.FileSystemWriterAsync
        one_file = _hashing_for(os.getpid(), writer.write_preloaded_data)
        with replaced(writer, "write_preloaded_data", one_file):
            write(*args, **kwargs)

    return run


def _hashing_for(parent: int, write: Callable[..., None]) -> Callable[..., None]:
    """The same function, for the process of one file, which leaves the file's digest beside it."""

    def run(*args: Any, results_queue: Any, write_bucket: tuple[str, str, object], **kwargs: Any) -> None:
        _end_with(parent)
        path = Path(write_bucket[0])
        write(*args, results_queue=_AfterDigest(results_queue, path), write_bucket=write_bucket, **kwargs)

    return run


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent has ended, however that ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before the line above
        os._exit(1)


class _AfterDigest:
    """Megatron's queue for a file's result, which is put when the file is closed, and before its writer is done."""

    def __init__(self, results: Any, path: Path) -> None:
        self._results = results
        self._path = path

    def put(self, result: tuple[int, object]) -> None:
        """Leave the digest, and pass the result on; an error of the one is the other's."""
        number, outcome = result
        if not isinstance(outcome, Exception):
            try:
                leave_digest(self._path)
            except OSError as exc:
                outcome = exc
        self._results.put((number, outcome))


class _Results:
    """A place for the result of a forked process, as Megatron's queue of results is used: one is put, then it is taken.

    Megatron's own queue is a server process, which takes seconds to start and imports the main program again; and a
    pipe holds too little for the results of a large model, which are taken when the process has ended.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it goes with this object

    def put(self, result: object) -> None:
        """Called in the forked process."""
        self._file.write(ForkingPickler.dumps(result))  # as multiprocessing sends it
        self._file.flush()

    def get_nowait(self) -> Any:
        """Called when it has ended.

        Returns:
            What it put.

        Raises:
            queue.Empty: If it has put nothing.
        """
        self._file.seek(0)
        content = self._file.read()
        self._file.close()
        if not content:
            raise queue.Empty
        return ForkingPickler.loads(content)


def _all_digests(partial: Path) -> dict[str, FileDigest]:
    """The digests of all ranks' files. Each rank reads its own, as its machine sees them first."""
    rank = torch.distributed.get_rank()
    own = dict(take_digests(partial, prefix=f"__{rank}_"))
    everyone: list[dict[str, FileDigest]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(everyone, own)
    return {name: digest for digests in everyone for name, digest in digests.items()}
