# SPDX-License-Identifier: Apache-2.0
"""A clean stop: SIGTERM and SIGUSR1 are noted, and all ranks stop after the same step.

Slurm and Kubernetes send SIGTERM some time before they kill, and Slurm also any signal that is asked for with
`--signal`. It reaches the ranks at different moments, and some of them perhaps not at all. So after each step the ranks
ask each other.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Which signal came, if one did."""

    def __init__(self) -> None:
        self._number = 0

    def note(self, number: int, _: FrameType | None = None) -> None:
        """Remember the first signal; serves as a handler. Launchers send several, one after the other."""
        self._number = self._number or number

    def agreed(self, device: torch.device) -> signal.Signals | None:
        """Ask all ranks; all call it together.

        Args:
            device: Where this rank's messages to the others are.

        Returns:
            The signal that any of them was sent, the same on every rank, or None.
        """
        highest = torch.tensor([self._number], dtype=torch.int32, device=device)
        torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
        number = int(highest.item())
        return signal.Signals(number) if number else None


@contextmanager
def stop_signals_noted() -> Iterator[StopRequest]:
    """Note the signals that ask for a stop inside the block, instead of ending at once.

    Python lets the main thread alone handle signals; in another one nothing is noted, and they end the process.

    Yields:
        What is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
