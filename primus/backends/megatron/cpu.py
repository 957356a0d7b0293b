# SPDX-License-Identifier: Apache-2.0
"""Run megatron-core on a CPU with gloo.

megatron-core has no CPU device: it writes `device="cuda"`, asks for `torch.cuda.current_device()`, compares
`tensor.type()` with `torch.cuda.FloatTensor` and keeps CUDA random states for recomputation. Where no accelerator is
used, `megatron_on_cpu` gives these words a meaning for the length of a block. On an accelerator it is not entered, and
nothing is changed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from megatron.core.tensor_parallel import random as megatron_random
from torch.overrides import TorchFunctionMode

from primus.backends.megatron.replacement import replaced

_CPU = torch.device("cpu")
_DEFAULT_STREAM = megatron_random._MODEL_PARALLEL_RNG_TRACKER_NAME  # noqa: SLF001 - it has no public name


def _names_cuda(device: object) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


class CudaMeansCpu(TorchFunctionMode):
    """While it is entered, torch functions that are told to use CUDA use the CPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if _names_cuda(options.get("device")):
            options["device"] = _CPU
        if options.get("pin_memory"):
            options["pin_memory"] = False
        if func is torch.Tensor.cuda:
            return args[0]
        result = func(*args, **options)
        if func is torch.Tensor.type and len(args) == 1 and not options:
            # "torch.FloatTensor" -> "torch.cuda.FloatTensor", which Megatron compares with
            return result.replace("torch.", "torch.cuda.", 1)
        return result


class CpuRNGStatesTracker(megatron_random.CudaRNGStatesTracker):  # type: ignore[misc]
    """Megatron's named random states, kept for the CPU's generator.

    Recomputation saves and restores these states as it does on a GPU, so dropout falls on the same elements again.
    """

    def add(self, name: str, seed: int) -> None:
        """Start the stream `name` at `seed`; the generator itself stays where it is."""
        self._is_initialized = True
        self.states_[name] = torch.Generator().manual_seed(seed).get_state()

    @contextmanager
    def fork(self, name: str = _DEFAULT_STREAM) -> Iterator[None]:
        """Draw from the stream `name` inside the block, and from the default one again after it."""
        default_state = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(default_state)


def untranslated() -> AbstractContextManager[None]:
    """Let torch functions skip `CudaMeansCpu` inside the block.

    The translation costs two microseconds for every torch call made from Python. The forward pass makes hundreds of
    calls and names no device, so it goes without.
    """
    return torch._C.DisableTorchFunction()  # noqa: SLF001 - the documented way


@contextmanager
def megatron_on_cpu() -> Iterator[None]:
    """Let megatron-core build, train, save and load on the CPU inside the block."""
    replacements = (
        (torch.cuda, "current_device", _current_device),
        (torch.cuda, "synchronize", _synchronize),
        (megatron_random, "_CUDA_RNG_STATE_TRACKER", CpuRNGStatesTracker()),
        (megatron_random, "_CUDA_RNG_STATE_TRACKER_INITIALIZED", True),
        (megatron_random, "_get_cuda_rng_state", _no_rng_state),
        (megatron_random, "_set_cuda_rng_state", _no_rng_state),
    )
    with ExitStack() as stack:
        for owner, name, value in replacements:
            stack.enter_context(replaced(owner, name, value))
        stack.enter_context(CudaMeansCpu())
        yield


def _current_device() -> torch.device:
    return _CPU


def _synchronize(_: object = None) -> None:
    """Wait for nothing."""


def _no_rng_state(*_: object, **__: object) -> None:
    """Stand for the random state of a GPU; Megatron saves and restores that of the CPU beside it."""
