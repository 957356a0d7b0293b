# SPDX-License-Identifier: Apache-2.0
"""What is done with batches, as an object that can be sent to another process."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

Batch = TypeVar("Batch")
Result = TypeVar("Result")


class Job(ABC, Generic[Batch, Result]):
    """What is done with each batch.

    A subclass is a small picklable object whose `start` gives the function, with everything loaded that it needs.
    """

    @abstractmethod
    def start(self) -> Callable[[Batch], Result]:
        """Load what the function needs, in a process of which others are forked: no thread may be left behind.

        Returns:
            The function that handles one batch.
        """
