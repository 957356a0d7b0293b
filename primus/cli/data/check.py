# SPDX-License-Identifier: Apache-2.0
"""`primus data check`: a proof, row by row, that exactly what the assistant said is trained."""

import argparse
import difflib
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from primus.chat.conversations import read_batches
from primus.cli.data.request import add_request_arguments, build_recipe, num_workers
from primus.cli.logs import set_up_logging
from primus.cli.parsing import CommandParser
from primus.cli.progress import RowProgress
from primus.errors import ConfigError
from primus.sft.proof import CHECKS, BatchProof, Failure, ProofJob
from primus.sft.verdict import TokenizerVerdict
from primus.sft.workers import map_batches

WRONG = 1
_MOST_SHOWN = 5
_MARKERS = "markers"
_LEFT_OUT = {"reasoning": "thoughts of the assistant", "context": "a message that is no answer"}
_PERCENTILES = (50, 90, 99, 100)

_DESCRIPTION = """Prove that a data set trains exactly what its assistants said: each row is parsed, rendered and
tokenized as for training, and then checked from the finished tokens. Exits with 1 if anything is wrong. Uses all
cores."""
_EXAMPLES = """
primus data check examples/data/demo-heldout.jsonl --tokenizer examples/data/demo-tokenizer
primus data check tiny-multiturn-sft.yaml seq_length=512 --json report.json
"""


def run(arguments: Sequence[str]) -> int:
    """Run `primus data check`.

    Args:
        arguments: The words after `primus data check`.

    Returns:
        The exit code: 0 if nothing is wrong, else 1.
    """
    parser = CommandParser("data check", description=_DESCRIPTION, examples=_EXAMPLES)
    add_request_arguments(parser)
    parser.add_argument(
        "--allow",
        metavar="CHECK,...",
        default="",
        help=f"checks that may fail ({', '.join(CHECKS)}, {_MARKERS}); they are counted all the same",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report with every bad row")
    options = parser.parse(arguments)
    set_up_logging(verbose=False)
    allowed = _allowed(options)
    target = _writable(options.json) if options.json else None
    recipe = build_recipe(options)
    started_s = time.monotonic()
    batches = read_batches(recipe.files, recipe.source)
    proofs = map_batches(ProofJob(recipe), batches, num_workers=num_workers(options))
    report: _Report | None = None
    with RowProgress("checked") as progress:
        for proof in proofs:
            if report is None:
                print("\n".join(proof.verdict.lines()))
                report = _Report(verdict=proof.verdict, allowed=allowed)
            report.add(proof)
            progress.advance(proof.num_rows)
    assert report is not None, "a data file without rows is an error"
    print("\n".join(report.lines(duration_s=time.monotonic() - started_s)))
    if target is not None:
        _write_json(target, report.to_dict())
        print(f"report: {target}")
    return WRONG if report.is_wrong else 0


def _allowed(options: argparse.Namespace) -> frozenset[str]:
    names = [name for name in options.allow.split(",") if name]
    known = [*CHECKS, _MARKERS]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"--allow: there is no check {name!r}; {hint}")
    return frozenset(names)


class _Report:
    """The sum of the proofs of all batches."""

    def __init__(self, *, verdict: TokenizerVerdict, allowed: frozenset[str]) -> None:
        self._verdict = verdict
        self._allowed = allowed
        self._num_rows = self._num_bad_rows = self._num_conversations = 0
        self._num_targets = self._num_turns = self._num_splits = self._num_lossy = 0
        self._passed: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._failures: list[Failure] = []
        self._lengths: list[Any] = []
        self._engines: set[str] = set()

    def add(self, proof: BatchProof) -> None:
        """Add a batch."""
        self._num_rows += proof.num_rows
        self._num_bad_rows += proof.num_bad_rows
        self._num_conversations += proof.num_conversations
        self._num_lossy += proof.num_lossy
        self._failed.update(proof.failed)
        self._left_out.update(proof.left_out)
        self._num_targets += proof.num_targets
        self._num_turns += proof.num_turns
        self._num_splits += proof.num_splits
        self._passed.update(proof.passed)
        self._failures += proof.failures
        self._lengths.append(proof.lengths_N)
        self._engines.add(proof.engine)

    @property
    def is_wrong(self) -> bool:
        """Whether anything failed that may not."""
        is_marker_missing = bool(self._verdict.problems) and _MARKERS not in self._allowed
        is_anything_wrong = any(failure.check not in self._allowed for failure in self._failures)
        return is_marker_missing or is_anything_wrong or not len(self._lengths_N)

    def lines(self, *, duration_s: float) -> list[str]:
        """The report for people."""
        lengths_N, failed = self._lengths_N, self._failed
        rate = f"{self._num_rows / duration_s:,.0f} rows/s" if duration_s else ""
        gave = f"{self._num_bad_rows:,} bad, the others gave {_count(self._num_conversations, 'conversation')}"
        lines = [f"{_count(self._num_rows, 'row')} checked in {duration_s:.1f} s ({rate}); {gave}"]
        for check, meaning in CHECKS.items():
            if self._passed[check] or failed[check]:
                mark = "ok  " if not failed[check] else "    " if check in self._allowed else "FAIL"
                bad = f", {failed[check]:,} not" if failed[check] else ""
                lines.append(f"  {mark} {check:<9} {self._passed[check]:>9,} yes{bad}: {meaning}")
        if len(lengths_N):
            shown = ", ".join(
                f"{'max' if q == 100 else f'{q} %'} {int(np.percentile(lengths_N, q, method='higher')):,}"
                for q in _PERCENTILES
            )
            share = 100 * self._num_targets / int(lengths_N.sum())
            lines.append(
                f"  {_count(len(lengths_N), 'conversation')}, {_count(int(lengths_N.sum()), 'token')}, of which"
                f" {self._num_targets:,} are trained ({share:.1f} %) in {_count(self._num_turns, 'turn')}"
            )
            lines.append(f"  tokens of a conversation: {shown}")
        lines.append(f"  engine of the ids: {', then '.join(sorted(self._engines, reverse=True))}")
        if self._num_splits:
            lines.append(f"  {_count(self._num_splits, 'token')} cut at the edge of an assistant turn")
        if self._num_lossy:
            lines.append(
                f"  {_count(self._num_lossy, 'piece')} of turns decode to what the tokenizer keeps of them, and no more"
            )
        for what, number in sorted(self._left_out.items()):
            lines.append(f"  {_count(number, 'conversation')} of which the format leaves {_LEFT_OUT[what]} out")
        lines += [f"  {line}" for line in self._shown_problems()]
        lines.append(self._last_line())
        return lines

    def _last_line(self) -> str:
        if not len(self._lengths_N):
            return "WRONG: there is no conversation to train on"
        if self.is_wrong:
            return "WRONG: do not train on this yet"
        allowed = {check: self._failed[check] for check in CHECKS if self._failed[check]}
        if allowed:
            counts = ", ".join(f"{check} {number:,}" for check, number in allowed.items())
            return f"proven but for what is allowed to fail ({counts}): exactly what the assistants say is trained"
        if self._num_lossy:
            return "proven: exactly what the assistants say is trained, as far as the tokenizer keeps it"
        return "proven: exactly what the assistants say is trained"

    def _shown_problems(self) -> list[str]:
        """The first problems of each kind, and how many there are more."""
        shown = [] if _MARKERS in self._allowed else list(self._verdict.problems)
        for check in CHECKS:
            of_check = [failure.message for failure in self._failures if failure.check == check]
            if check in self._allowed or not of_check:
                continue
            shown += of_check[:_MOST_SHOWN]
            if len(of_check) > _MOST_SHOWN:
                shown.append(
                    f"... {len(of_check) - _MOST_SHOWN:,} more that fail {check!r}; --json FILE writes them all"
                )
        return shown

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        lengths_N = self._lengths_N
        return {
            "is_wrong": self.is_wrong,
            "num_rows": self._num_rows,
            "num_bad_rows": self._num_bad_rows,
            "num_conversations": self._num_conversations,
            "num_tokenized": len(lengths_N),
            "num_tokens": int(lengths_N.sum()),
            "num_targets": self._num_targets,
            "num_trained_turns": self._num_turns,
            "num_splits": self._num_splits,
            "num_lossy_pieces": self._num_lossy,
            "left_out": dict(sorted(self._left_out.items())),
            "max_tokens": int(lengths_N.max(initial=0)),
            "passed": {check: self._passed[check] for check in CHECKS},
            "failed": {check: self._failed[check] for check in CHECKS},
            "allowed": sorted(self._allowed),
            "tokenizer": self._verdict.to_dict(),
            "failures": [asdict(failure) for failure in self._failures],
        }

    @property
    def _lengths_N(self) -> Any:
        return np.concatenate(self._lengths) if self._lengths else np.zeros(0, dtype=np.int64)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _writable(path: Path) -> Path:
    """The path of the report, refused before the work if nothing can be written there."""
    if path.is_dir():
        raise ConfigError(f"--json: {path} is a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_json(path: Path, report: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
