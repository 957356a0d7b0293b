# SPDX-License-Identifier: Apache-2.0
"""Curves as TensorBoard events."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardCurves:
    """Writes events as they come.

    Args:
        writer: PyTorch's writer of events.
    """

    def __init__(self, writer: "SummaryWriter") -> None:
        self._writer = writer

    def add(self, points: Mapping[str, float], *, iteration: int) -> None:
        """Add a point to each of some curves."""
        for name, value in points.items():
            self._writer.add_scalar(name, value, iteration)


@contextmanager
def tensorboard_curves(folder: Path, *, start: int) -> Iterator[TensorBoardCurves]:
    """Open a folder of events.

    Args:
        folder: The folder.
        start: Steps that were made before; what it has of later ones is not shown any more.

    Yields:
        The curves.
    """
    # One rank writes; the others need not wait for the import.
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

    writer = SummaryWriter(str(folder), purge_step=start + 1)
    try:
        yield TensorBoardCurves(writer)
    finally:
        writer.close()
