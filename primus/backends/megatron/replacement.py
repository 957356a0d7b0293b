# SPDX-License-Identifier: Apache-2.0
"""Replace something in another package for the length of a block.

Kept for what megatron-core offers no option for; every use says which.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Inside the block, the attribute `name` of a module or class is `value`."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
