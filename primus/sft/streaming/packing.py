# SPDX-License-Identifier: Apache-2.0
"""Packs out of a stream, by any of the methods of packing."""

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

from primus.sft.packing import Method, OnlinePacker

Item = TypeVar("Item")

PACKING_BUFFER = 1024
"""Sequences that `best_fit` chooses from, if nothing else is said."""


class Packer(Protocol[Item]):
    """Takes sequences and gives packs, as `OnlinePacker` does."""

    def add(self, item: Item, length: int) -> list[list[Item]]:
        """Take a sequence; gives the packs that this finishes."""
        ...

    def flush(self) -> list[list[Item]]:
        """Pack all that wait."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All there is to know for going on; `waiting` has the sequences that wait, with their lengths."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another packer was."""
        ...


class SequentialPacker(Generic[Item]):
    """Packs of sequences that follow each other; a pack ends where the next one does not fit.

    Args:
        capacity: Positions of a pack; 0 gives each sequence a pack of its own.

    Examples:
        >>> packer = SequentialPacker[str](10)
        >>> [packer.add(name, length) for name, length in [("a", 6), ("b", 4), ("c", 5)]], packer.flush()
        ([[], [], [['a', 'b']]], [['c']])
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: list[tuple[Item, int]] = []
        self._filled = 0

    def add(self, item: Item, length: int) -> list[list[Item]]:
        """Take a sequence.

        Args:
            item: What the packs hold in its place.
            length: Its positions.

        Returns:
            The pack that this finishes, if it does.
        """
        packs = self.flush() if self._filled + length > self._capacity else []
        self._waiting.append((item, length))
        self._filled += length
        return packs if self._capacity else self.flush()

    def flush(self) -> list[list[Item]]:
        """The pack that is not full."""
        pack = [item for item, _ in self._waiting]
        self._waiting, self._filled = [], 0
        return [pack] if pack else []

    def state_dict(self) -> dict[str, Any]:
        """All there is to know for going on."""
        return {"capacity": self._capacity, "waiting": [[item, length] for item, length in self._waiting]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another packer was.

        Args:
            state: Its `state_dict`.
        """
        self._waiting = [(item, length) for item, length in state["waiting"]]
        self._filled = sum(length for _, length in self._waiting)


def packer_for(method: Method, *, capacity: int, buffer_size: int = PACKING_BUFFER) -> Packer[Any]:
    """The packer of a method.

    Args:
        method: `none` gives each sequence a pack of its own.
        capacity: Positions of a pack.
        buffer_size: Sequences that `best_fit` chooses from.

    Returns:
        A packer in which nothing waits.
    """
    if method == "best_fit":
        return OnlinePacker(capacity, buffer_size)
    return SequentialPacker(capacity if method == "sequential" else 0)
