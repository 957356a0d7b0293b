# SPDX-License-Identifier: Apache-2.0
"""The tiny run that most tests of this room make, and a process group of one."""

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

# Imported here, for all tests of this room, since pytest takes megatron-core's warnings about itself for errors.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
    from primus.backends.megatron.trainer import train_on  # noqa: F401

TINY_RUN = Path(__file__).with_name("tiny_run.py")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tiny_run`."""
    spec = importlib.util.spec_from_file_location("tiny_run", TINY_RUN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def joined(tiny: ModuleType, tmp_path: Path) -> Iterator[None]:
    """This process as the only one of a run."""
    with joined_processes(this_process(), tiny.tiny_config(tmp_path).trainer):
        seed_weights(0)
        yield
