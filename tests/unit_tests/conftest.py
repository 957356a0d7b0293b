# SPDX-License-Identifier: Apache-2.0
"""What the tests of every room share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

CHECKOUT = Path(__file__).parents[2]

# How long an example takes says nothing on a machine that other tests share; the timeout of a test stands.
settings.register_profile("primus", deadline=None)
settings.load_profile("primus")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real tokenizers, conversations and other projects' results, which is not in the repository."""
    folder = Path(os.environ.get("PRIMUS_SHARED", CHECKOUT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the shared folder, looked for at {folder} (PRIMUS_SHARED)")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch  # noqa: PLC0415 - tests of the rooms above it run without it

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
