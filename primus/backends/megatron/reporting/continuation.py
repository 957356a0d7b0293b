# SPDX-License-Identifier: Apache-2.0
"""The metrics file of a run that goes on: the lines of steps that are made again give way, and none is lost."""

import json
import os
from pathlib import Path

SET_ASIDE_FILE = "metrics.superseded.jsonl"
MEASURED_FIELDS = frozenset({"tokens_per_second", "step_time_s", "tflops_per_device", "mfu", "peak_memory_bytes"})
"""Fields of a line that are measured of the machine; all others are the same again in a run that is made again."""


def set_aside_later_lines(path: Path, *, start: int, is_evaluated_again: bool = False) -> int:
    """Leave a metrics file with the lines up to a step; those after it are moved to `metrics.superseded.jsonl`.

    A line that was cut off when the run was killed goes there, too. The file has its name at every moment, with the
    lines of before or with those of after.

    Args:
        path: The metrics file, which need not exist.
        start: Steps that were made before. Lines of these are left as they are, evaluations after the step included.
        is_evaluated_again: Whether the evaluation after that step is made now; a run that was killed may have made it.

    Returns:
        How many lines were moved.
    """
    if not path.is_file():
        return 0
    kept: list[bytes] = []
    later: list[bytes] = []
    for line in path.read_bytes().splitlines(keepends=True):
        is_kept = not later and line.endswith(b"\n") and _place(line) <= (start, not is_evaluated_again)
        (kept if is_kept else later).append(line)
    if not later:
        return 0
    with path.with_name(SET_ASIDE_FILE).open("ab") as file:
        file.writelines(line if line.endswith(b"\n") else line + b"\n" for line in later)
        file.flush()
        os.fsync(file.fileno())
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return len(later)


def _place(line: bytes) -> tuple[float, bool]:
    """The step of a line, and whether it is an evaluation, which comes behind the step."""
    try:
        metrics = json.loads(line)
        return int(metrics["iteration"]), "validation_loss" in metrics
    except (ValueError, LookupError, TypeError):
        return float("inf"), False  # what a loss of power has left
