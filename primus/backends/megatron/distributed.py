# SPDX-License-Identifier: Apache-2.0
"""This process's place in the run: rank, device, process groups, and a clean end.

A process learns its rank from the environment that torchrun sets. Without one it is the only process of the run.
"""

import itertools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from typing import TypeVar

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch.distributed import HashStore, PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

from primus.backends.megatron.cpu import megatron_on_cpu
from primus.backends.megatron.replacement import replaced
from primus.config.schema import TrainerConfig
from primus.errors import LayoutError
from primus.sft.order import random_keys

logger = logging.getLogger("primus")

T = TypeVar("T")

_run_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of the run."""

    rank: int
    """Its number, from 0."""
    world_size: int
    """How many processes there are."""
    local_rank: int
    """Its number on this machine."""
    device: torch.device
    """The GPU of that number, or the CPU where there is none."""


def place_in_run() -> Process:
    """Find out which process of the run this is, without a look at its devices.

    Returns:
        The process, on the CPU.

    Raises:
        LayoutError: If torchrun's variables are incomplete or no numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if given and (len(given) < len(names) or not all(value.isdecimal() for value in given.values())):
        found = ", ".join(f"{name}={given.get(name, '(not set)')}" for name in names)
        raise LayoutError(f"environment: {found} is no place in a run; start several processes with torchrun")
    rank, world_size, local_rank = (int(given.get(name, default)) for name, default in zip(names, "010", strict=True))
    return Process(rank=rank, world_size=world_size, local_rank=local_rank, device=torch.device("cpu"))


def this_process() -> Process:
    """Find out which process of the run this is, and its device.

    Returns:
        The process.

    Raises:
        LayoutError: As for `place_in_run`, or if this machine has fewer GPUs than processes.
    """
    place = place_in_run()
    if not torch.cuda.is_available():
        return place
    num_gpus = torch.cuda.device_count()
    if place.local_rank >= num_gpus:
        raise LayoutError(
            f"environment: process {place.local_rank} of this machine has no GPU, there are {num_gpus}; "
            f"start at most {num_gpus} processes on it"
        )
    return replace(place, device=torch.device("cuda", place.local_rank))


@contextmanager
def joined_processes(process: Process, trainer: TrainerConfig) -> Iterator[None]:
    """Connect the processes of the run for the length of the block, and let Megatron know the parallel layout.

    NCCL (RCCL on AMD) between GPUs, gloo between CPUs; on a CPU, Megatron's CUDA words mean the CPU inside the block.

    Args:
        process: This process.
        trainer: The trainer module of the run; the world size is a multiple of one model's ranks.
    """
    with ExitStack() as stack:
        stack.enter_context(_warnings_to_megatron_hidden())
        # PyTorch replaces it when the processes connect, and leaves it there.
        stack.enter_context(replaced(sys, "excepthook", sys.excepthook))
        if process.device.type == "cpu":
            stack.enter_context(megatron_on_cpu())
        else:
            if trainer.tensor_model_parallel_size > 1:
                # Before the GPU is used: its queue then keeps the order in which kernels were asked for, which
                # Megatron's overlap of tensor-parallel communication with computation relies on.
                os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
            torch.cuda.set_device(process.device)
        _connect(process, timeout=timedelta(minutes=trainer.distributed_timeout_minutes))
        stack.callback(torch.distributed.destroy_process_group)
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=trainer.tensor_model_parallel_size,
            pipeline_model_parallel_size=trainer.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=trainer.virtual_pipeline_model_parallel_size,
            context_parallel_size=trainer.context_parallel_size,
            distributed_timeout_minutes=trainer.distributed_timeout_minutes,
        )
        stack.callback(parallel_state.destroy_model_parallel)
        yield


@contextmanager
def _warnings_to_megatron_hidden() -> Iterator[None]:
    """Hide what Megatron says of itself, and what PyTorch and Python say to Megatron: a user can change none of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"megatron\.core")
        # Names of PyTorch that are to go.
        warnings.filterwarnings("ignore", message=".*deprecat", category=FutureWarning)
        # A setting of CUDA, which is made on a GPU.
        warnings.filterwarnings("ignore", message=".*set the environment variable CUDA_DEVICE_MAX_CONNECTIONS")
        # In float32 the distributed optimizer's shards are views of the parameters, and it sets their gradients itself.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        # Checkpoints are written by forked processes that take no lock of another thread.
        warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
        yield


@contextmanager
def briefly_connected(process: Process, trainer: TrainerConfig) -> Iterator[None]:
    """Connect the processes of the run for the length of the block, to agree on plain data before they read any.

    Always gloo, so that no GPU is touched; Megatron knows nothing of it.

    Args:
        process: This process.
        trainer: The trainer module of the run.
    """
    with ExitStack() as stack:
        stack.enter_context(replaced(sys, "excepthook", sys.excepthook))
        _connect(process, timeout=timedelta(minutes=trainer.distributed_timeout_minutes), backend="gloo")
        stack.callback(torch.distributed.destroy_process_group)
        yield


@lru_cache(maxsize=1)
def _common_store(timeout: timedelta) -> Store:
    """Where the processes of the run find each other. It stays, as the first one serves it to the others."""
    store: Store = next(rendezvous("env://", timeout=timeout))[0]
    return store


def _connect(process: Process, *, timeout: timedelta, backend: str | None = None) -> None:
    backend = backend or ("gloo" if process.device.type == "cpu" else "nccl")
    # A process of its own has no address to agree on, so that runs beside each other never meet; and a second group of
    # the same processes finds the keys of the first one in their store.
    store = HashStore() if process.world_size == 1 else PrefixStore(f"run_{next(_run_numbers)}", _common_store(timeout))
    torch.distributed.init_process_group(
        backend,
        store=store,
        rank=process.rank,
        world_size=process.world_size,
        timeout=timeout,
        device_id=None if backend == "gloo" else process.device,
    )


def seed_weights(seed: int) -> None:
    """Start all streams of random numbers anew; tensor-parallel ranks have one of their own, and one in common."""
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def seed_dropout(seed: int, *, iteration: int) -> None:
    """Start the streams anew for a step, so that its dropout does not depend on where the run was started.

    Args:
        seed: Seed of the run.
        iteration: Number of the step.
    """
    num_ranks = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    rank = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    num_stages, stage = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_rank(),
    )
    keys = random_keys(num_ranks * num_stages, seed=seed, stream=iteration)
    # Megatron adds small numbers for its streams, in 64 bits with a sign.
    seed_weights(int(keys[rank * num_stages + stage]) % 2**31)


def has_losses() -> bool:
    """Whether the losses of some sequences are known to this rank, and to this rank alone.

    They are known on the last pipeline stage, by each of its tensor-parallel ranks; the first of these speaks for them.
    """
    return bool(parallel_state.is_pipeline_last_stage()) and parallel_state.get_tensor_model_parallel_rank() == 0


def sum_over_losses(*values: float, device: torch.device) -> list[float]:
    """Add numbers up, in float64, over the ranks that have losses; all ranks call it, and all get the sums."""
    return sum_over_ranks(*(values if has_losses() else [0.0] * len(values)), device=device)


def sum_over_ranks(*values: float, device: torch.device) -> list[float]:
    """Add numbers up, in float64, over all ranks; all of them call it, and all get the sums."""
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def on_first_rank(work: Callable[[], T]) -> T:
    """Do something on the first rank only, and give its result to all of them.

    An `OSError` that the work raises is raised on every rank, so that none waits for one that has stopped.

    Args:
        work: Called without arguments; its result must be plain data.

    Returns:
        The result of the first rank.

    Raises:
        OSError: If the work raised one.
    """
    outcome: list[T | OSError | None] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome = [work()]
        except OSError as exc:
            outcome = [exc]
    torch.distributed.broadcast_object_list(outcome, src=0)
    (result,) = outcome
    if isinstance(result, OSError):
        raise result
    return result  # type: ignore[return-value]
