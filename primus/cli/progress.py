# SPDX-License-Identifier: Apache-2.0
"""How far work on rows has come: a moving line or a bar on a terminal, now and then a plain line in a log."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typing_extensions import Self

SECONDS_BETWEEN_LINES = 10.0


class RowProgress:
    """Shows how many rows are done, on stderr; a context manager.

    Args:
        done: What has happened to the rows, such as `converted`.
        total_bytes: Bytes that all the rows have on disk, for a bar with the time that is left; None if not known.
    """

    def __init__(self, done: str, *, total_bytes: int | None = None) -> None:
        self._done = done
        self._total_bytes = total_bytes
        self._bytes_done = 0
        self._num_rows = 0
        self._last_line_s = self._started_s = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
            if self._total_bytes is not None:
                columns = [BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn(), *columns[1:]]
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(self._text(), total=self._total_bytes)
            self._bar.start()
        return self

    def advance(self, num_rows: int, *, bytes_done: int = 0) -> None:
        """Count rows that are done.

        Args:
            num_rows: How many more.
            bytes_done: Bytes on disk of all the rows that are done.
        """
        self._num_rows += num_rows
        self._bytes_done = bytes_done
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=bytes_done, description=self._text())
        elif now - self._last_line_s >= SECONDS_BETWEEN_LINES:
            self._last_line_s = now
            print(self._text(), file=sys.stderr, flush=True)

    def _text(self) -> str:
        elapsed_s = time.monotonic() - self._started_s
        rate = f", {self._num_rows / elapsed_s:,.0f} rows/s" if elapsed_s > 1 else ""
        share = f" ({100 * self._bytes_done // self._total_bytes} %)" if self._total_bytes and self._bar is None else ""
        return f"{self._num_rows:,} rows {self._done}{share}{rate}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
