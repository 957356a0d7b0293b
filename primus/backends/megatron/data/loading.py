# SPDX-License-Identifier: Apache-2.0
"""Micro-batches in the order in which they are trained, loaded by threads ahead of the step that needs them.

Loading is mostly copying memory, which threads do side by side without a copy of the data set in other processes; and
a thread ends with its process, however that ends. What is loaded depends on neither their number nor their speed.

Shapes: B sequences of a micro-batch.
"""

import ctypes
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from types import TracebackType

import torch
from typing_extensions import Self

from primus.backends.megatron.context_parallel import ContextRank, this_context_rank
from primus.backends.megatron.data.batches import BatchSource, IntArray, MicroBatch, on_device, read_micro_batch

# Micro-batches that each thread may be ahead: one that is being read, and one that waits to be trained.
AHEAD_PER_WORKER = 2

# glibc, malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _LARGEST_KEPT_BYTES = 256 << 20, 32 << 20

Request = tuple[IntArray, IntArray | None]


class MicroBatchLoader(Iterator[MicroBatch]):
    """Reads micro-batches, in order, and ahead of when they are asked for.

    Use it as a context manager: its threads end with the block. An error of a thread is raised where its micro-batch
    is asked for.

    Args:
        dataset: The data set.
        requests: Indices of the sequences of each micro-batch, and their places in the global batch or None. It is
            drawn from by the thread that asks for micro-batches.
        pad_to_multiple_of: A micro-batch is as long as its longest sequence, rounded up to this.
        device: Where the micro-batches go.
        num_workers: Threads; 0 reads each micro-batch when it is asked for.
    """

    def __init__(
        self,
        dataset: BatchSource,
        requests: Iterable[Request],
        *,
        pad_to_multiple_of: int,
        device: torch.device,
        num_workers: int = 0,
    ) -> None:
        keep_freed_memory()
        self._requests = iter(requests)
        self._device = device
        self._read = partial(
            _read,
            dataset=dataset,
            pad_to_multiple_of=pad_to_multiple_of,
            pin_memory=device.type == "cuda",
            context=this_context_rank(),
        )
        self._waiting: deque[Future[MicroBatch]] = deque()
        self._num_ahead = AHEAD_PER_WORKER * num_workers
        self._executor = None
        if num_workers:
            self._executor = ThreadPoolExecutor(num_workers, "batches", initializer=_use_device, initargs=(device,))

    def __next__(self) -> MicroBatch:
        if self._executor is None:
            return on_device(self._read(next(self._requests)), self._device)
        missing = self._num_ahead - len(self._waiting)
        self._waiting.extend(self._executor.submit(self._read, request) for request in islice(self._requests, missing))
        if not self._waiting:
            raise StopIteration
        batch = self._waiting.popleft().result()
        self._waiting.extend(self._executor.submit(self._read, request) for request in islice(self._requests, 1))
        return on_device(batch, self._device)

    def settle(self) -> None:
        """Wait until no thread is reading, so that a forked process finds no lock held by one."""
        wait(self._waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed batches for the next ones.

    By itself, glibc gives it back at once and asks for it again, and the kernel clears it page by page, which takes as
    long as loading does. Other C libraries are left as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _read(
    request: Request, *, dataset: BatchSource, pad_to_multiple_of: int, pin_memory: bool, context: ContextRank
) -> MicroBatch:
    batch_B, places_B = request
    return read_micro_batch(
        dataset,
        batch_B,
        pad_to_multiple_of=pad_to_multiple_of,
        pin_memory=pin_memory,
        places_B=places_B,
        context=context,
    )


def _use_device(device: torch.device) -> None:
    """Pinning memory wakes up the thread's GPU, which at first is that of the machine's first rank."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
