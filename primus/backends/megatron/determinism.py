# SPDX-License-Identifier: Apache-2.0
"""`deterministic_mode`: the same bits every time, also on a GPU.

There a sum may be taken in another order each time: by kernels that add atomically, by the matrix library in memory
that several streams share, by reductions between GPUs whose algorithm is chosen by the moment. On a CPU all sums of a
run are taken in one order, whether the mode is on or off.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch

from primus.backends.megatron.replacement import replaced
from primus.errors import ConfigError

VARIABLES: Mapping[str, Collection[str]] = MappingProxyType(
    {
        # docs.nvidia.com/cuda/cublas, "Results reproducibility"
        "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
        # Megatron-LM, megatron/training/arguments.py: the algorithms that it allows beside deterministic_mode
        "NCCL_ALGO": ("Ring", "Tree", "CollnetDirect", "CollnetChain", "^NVLS"),
        # Transformer Engine's attention
        "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
    }
)
"""Environment variables with the values that are deterministic; the first is set where the variable is not."""


@contextmanager
def deterministic(*, is_on: bool) -> Iterator[None]:
    """Have torch and what is below it take only deterministic kernels inside the block; enter it before using a GPU.

    Args:
        is_on: The key `deterministic_mode`; false changes nothing.

    Raises:
        ConfigError: If an environment variable asks for what is not deterministic.
    """
    if not is_on:
        yield
        return
    given = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    wrong = {name: value for name, value in given.items() if value not in VARIABLES[name]}
    if wrong:
        raise ConfigError(
            *(
                f"environment: {name}={value} is not deterministic, and deterministic_mode is on; leave it away, or set"
                f" it to {' or '.join(VARIABLES[name])}"
                for name, value in wrong.items()
            )
        )
    missing = {name: next(iter(values)) for name, values in VARIABLES.items() if name not in given}
    os.environ.update(missing)
    was_on = torch.are_deterministic_algorithms_enabled()
    # An operation without a deterministic kernel is an error, not a warning.
    torch.use_deterministic_algorithms(mode=True)
    try:
        # By itself the mode fills memory that is not initialised, to show who reads it.
        with replaced(torch.utils.deterministic, "fill_uninitialized_memory", value=False):
            yield
    finally:
        torch.use_deterministic_algorithms(was_on)
        for name in missing:
            os.environ.pop(name, None)
