# SPDX-License-Identifier: Apache-2.0
"""How far work on rows has come: a moving line on a terminal, now and then a plain line in a log."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from typing_extensions import Self

SECONDS_BETWEEN_LINES = 10.0


class RowProgress:
    """Shows how many rows are done, on stderr; a context manager.

    Args:
        done: What has happened to the rows, such as `converted`.
    """

    def __init__(self, done: str) -> None:
        self._done = done
        self._num_rows = 0
        self._last_line_s = self._started_s = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(self._text())
            self._bar.start()
        return self

    def advance(self, num_rows: int) -> None:
        """Count rows that are done.

        Args:
            num_rows: How many more.
        """
        self._num_rows += num_rows
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=self._text())
        elif now - self._last_line_s >= SECONDS_BETWEEN_LINES:
            self._last_line_s = now
            print(self._text(), file=sys.stderr, flush=True)

    def _text(self) -> str:
        elapsed_s = time.monotonic() - self._started_s
        rate = f", {self._num_rows / elapsed_s:,.0f} rows/s" if elapsed_s > 1 else ""
        return f"{self._num_rows:,} rows {self._done}{rate}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
