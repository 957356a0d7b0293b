# SPDX-License-Identifier: Apache-2.0
"""A file of the rows that are not valid conversations, each with what is wrong with it."""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from typing_extensions import Self

from primus.chat.reading import Row


def quarantine_line(row: Row, *, reason: str, error: str) -> str:
    """One bad row as a line of JSON.

    Args:
        row: The row, or what could be read of it.
        reason: Name of the rule that it breaks.
        error: What is wrong with it.

    Returns:
        The line, with its end; in ASCII.
    """
    facts: Mapping[str, Any] = {"origin": row.origin, "reason": reason, "error": error}
    content = {"row": row.value} if row.error is None else {"raw": row.raw}
    return json.dumps({**facts, **content}, default=str) + "\n"


class Quarantine:
    """Writes bad rows with their reasons, beside the final name until all are there; a context manager.

    A file of an earlier run is removed if there is no bad row: its rows have been repaired.

    Args:
        path: The file; None writes nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stack = ExitStack()
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, row: Row, *, reason: str, error: str) -> None:
        """Write one row as a line of JSON.

        Args:
            row: The row, or what could be read of it.
            reason: Name of the rule that it breaks.
            error: What is wrong with it.
        """
        if self._path is None:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._stack.enter_context(self._part.open("w", encoding="utf-8"))
        self._file.write(quarantine_line(row, reason=reason, error=error))

    @property
    def _part(self) -> Path:
        assert self._path is not None
        return self._path.with_name(f"{self._path.name}.{os.getpid()}.part")

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if self._path is None:
            return
        try:
            self._stack.close()
            if exc_type is None and self._file is not None:
                self._part.replace(self._path)
            elif exc_type is None:
                self._path.unlink(missing_ok=True)
        finally:
            self._part.unlink(missing_ok=True)
