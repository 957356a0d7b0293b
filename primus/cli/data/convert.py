# SPDX-License-Identifier: Apache-2.0
"""`primus data convert`: conversations of any source format as OpenAI messages."""

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

from primus.chat.conversations import read_batches
from primus.chat.fixups import FixUps
from primus.cli.data.source_options import add_source_arguments, build_source_options
from primus.cli.data.target import STDOUT, check_target, open_beside, open_target
from primus.cli.parsing import HELP_WIDTH, CommandParser, positive_int
from primus.cli.progress import RowProgress
from primus.errors import ConfigError, DataError
from primus.sft.conversion import ConversionCounts, ConversionJob, ConvertedBatch, Tools
from primus.sft.quarantine import Quarantine
from primus.sft.sources import TRAIN_SPLIT, resolve_files
from primus.sft.workers import map_batches, num_cores

# Problems that an error message lists; the rest is counted.
_MAX_LISTED = 10
# Below this, starting processes takes longer than the work.
_BYTES_FOR_WORKERS = 16 << 20

_DESCRIPTION = """Write conversations of any format as OpenAI messages, one JSON object per line, with nothing lost:
every row that was read is written, or listed in TARGET.ledger.json with the reason. What is written converts to itself,
byte for byte."""
_EXAMPLES = """
primus data convert examples/data/demo-alpaca.jsonl output/demo-alpaca.jsonl --force
primus data convert 'examples/data/demo-*.jsonl' output/all.jsonl.gz --bad-rows quarantine --force
primus data convert examples/data/demo-heldout.jsonl - --strip --merge-consecutive
"""
_FIX_UPS = {
    "strip": "remove white space around contents",
    "drop_empty_turns": "drop messages that are empty and call no tools; the question before an empty answer stays",
    "drop_leading_assistant": "drop what the assistant says before the first user message",
    "merge_consecutive": "join neighbouring messages of one role by a blank line",
}

# What the command can do about a rule that rows break.
_HINTS = {
    "role": "other names of roles are given with --roles, such as --roles client=user,counselor=assistant",
    "fields": "fields with other names are given with --messages-field, or with --column-map",
}


def run(arguments: Sequence[str]) -> int:
    """Run `primus data convert`.

    Args:
        arguments: The words after `primus data convert`.

    Returns:
        The exit code.
    """
    options = _parser().parse(arguments)
    conversion = _Conversion(options)
    counts = conversion.run()
    lines = [*_format_lines(counts), *counts.lines(), *conversion.written_lines()]
    print("\n".join(_wrapped(lines)), file=sys.stderr if options.target == STDOUT else sys.stdout)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser("data convert", description=_DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="files, patterns, folders, hf://owner/name, or - ")
    parser.add_argument("target", metavar="TARGET", help="a .jsonl, .jsonl.gz or .jsonl.zst file, or - for stdout")
    parser.add_argument(
        "--force", action="store_true", help="replace TARGET, and the ledger and bad rows beside it, if they exist"
    )
    parser.add_argument(
        "--bad-rows",
        choices=("error", "quarantine"),
        default="error",
        help="rows that are not valid: write nothing and list them, or set them aside in TARGET.bad.jsonl",
    )
    parser.add_argument(
        "--tools",
        choices=get_args(Tools),
        default="keep",
        help="keep tool calls as fields, or render them into the contents, for trainers without tools",
    )
    parser.add_argument("--split", metavar="NAME", default=TRAIN_SPLIT, help="the split of a folder (default: train)")
    parser.add_argument("--workers", type=positive_int, metavar="N", help="processes (default: all cores)")
    add_source_arguments(parser)
    group = parser.add_argument_group("repairs, off unless named, and counted")
    for name, what in _FIX_UPS.items():
        group.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=what)
    return parser


class _Conversion:
    """One call of the command: what is read, what is written."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._source = build_source_options(options)
        self._files = resolve_files(tuple(options.sources), split=options.split)
        self._job = ConversionJob(
            fix_ups=FixUps(**{name: bool(vars(options)[name]) for name in _FIX_UPS}), tools=options.tools
        )
        self._bad_path = self._ledger_path = None
        if options.target != STDOUT:
            self._bad_path = Path(f"{options.target}.bad.jsonl")
            self._ledger_path = Path(f"{options.target}.ledger.json")
        elif options.bad_rows == "quarantine":
            raise ConfigError("--bad-rows quarantine: writes a file beside TARGET, and - has none; name a file")
        beside = [path for path in (self._bad_path, self._ledger_path) if path is not None]
        check_target(options.target, beside=beside, sources=self._files, force=options.force)

    def run(self) -> ConversionCounts:
        """Read everything and write it.

        Returns:
            What became of every row.

        Raises:
            DataError: If a file can't be read, a row is bad and that is an error, or no row gave a conversation.
        """
        counts = ConversionCounts()
        problems = _Problems()
        is_quarantined = self._options.bad_rows == "quarantine"
        with ExitStack() as files:
            # The last one gets its name first, and a target that has its name has the others beside it.
            out = files.enter_context(open_target(self._options.target))
            ledger = None if self._ledger_path is None else files.enter_context(open_beside(self._ledger_path))
            quarantine = files.enter_context(Quarantine(self._bad_path))
            for converted in self._converted():
                out.write(converted.text)
                counts.add(converted.counts)
                for bad in converted.bad_rows:
                    if is_quarantined:
                        quarantine.write(bad.row, reason=bad.reason, error=bad.error)
                    problems.add(bad.error)
            if not counts.ledger.num_conversations:
                raise DataError(*problems.lines(counts), self._nothing_converted(counts))
            if problems.first and not is_quarantined:
                raise DataError(*problems.lines(counts), self._remedy())
            out.finish()
            if ledger is not None:
                self._write_ledger(counts, ledger)
        return counts

    def _converted(self) -> Iterator[ConvertedBatch]:
        sizes = {str(file): file.stat().st_size for file in self._files if file.is_file()}
        total = sum(sizes.values())
        num_workers = self._options.workers or (num_cores() if total >= _BYTES_FOR_WORKERS else 1)
        batches = read_batches(self._files, self._source)
        with RowProgress("converted", total_bytes=total if len(sizes) == len(self._files) else None) as progress:
            done_bytes = 0
            path = None
            for converted in map_batches(self._job, batches, num_workers=num_workers):
                if path is not None and converted.path != path:
                    done_bytes += sizes.get(path, 0)
                path = converted.path
                yield converted
                progress.advance(converted.counts.ledger.num_rows, bytes_done=done_bytes + converted.bytes_read)

    def _write_ledger(self, counts: ConversionCounts, path: Path) -> None:
        not_of_content = {"sources", "target", "force", "workers"}
        chosen = {name: value for name, value in vars(self._options).items() if name not in not_of_content}
        document = {
            "target": self._options.target,
            "sources": [str(file) for file in self._files],
            "options": {name: str(value) if isinstance(value, Path) else value for name, value in chosen.items()},
            **counts.to_dict(),
        }
        # A file name that is not UTF-8 is written as JSON writes what is not text.
        path.write_text(
            json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace"
        )

    def _nothing_converted(self, counts: ConversionCounts) -> str:
        found = counts.ledger
        why = f"none of {found.num_rows:,} rows gave a conversation"
        for reason, origins in sorted(found.origins.items()):
            why += f"; {len(origins):,} {reason} ({', '.join(origins[:2])}{', ...' if len(origins) > 2 else ''})"
        if self._options.target == STDOUT:
            return f"{STDOUT}: nothing is written, for {why}"
        return f"{self._options.target}: is not written, nor anything beside it, for {why}"

    def _remedy(self) -> str:
        """What can be done about bad rows that stop everything."""
        if self._options.target == STDOUT:
            hint = "name a file as TARGET to set them aside with --bad-rows quarantine"
            return f"{STDOUT}: what is written lacks them; {hint}"
        return (
            f"{self._options.target}: is not written; give --bad-rows quarantine to set bad rows aside and convert the"
            " rest"
        )

    def written_lines(self) -> list[str]:
        """The files that were written, for people."""
        if self._ledger_path is None:
            return []
        lines = [f"written: {self._options.target}", f"ledger: {self._ledger_path}"]
        has_bad_rows = self._bad_path is not None and self._bad_path.exists()
        return [*lines, f"bad rows: {self._bad_path}"] if has_bad_rows else lines


class _Problems:
    """The first problems of bad rows, and how many there are."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self._last: str | None = None
        self._count = 0

    def add(self, problem: str) -> None:
        """Count a problem; the rows of one conversation have one in common."""
        if problem != self._last:
            self._last = problem
            self._count += 1
            if len(self.first) < _MAX_LISTED:
                self.first.append(problem)

    def lines(self, counts: ConversionCounts) -> list[str]:
        """The first problems, how many more there are, and what options can do about them."""
        rest = self._count - len(self.first)
        more = [f"... {rest:,} more of {counts.ledger.num_rows:,} rows are bad"] if rest else []
        hints = [hint for reason, hint in _HINTS.items() if counts.ledger.outcomes[f"bad:{reason}"]]
        return [*self.first, *more, *hints]


def _format_lines(counts: ConversionCounts) -> list[str]:
    """What each file was recognised as."""
    lines = [
        f"{path}: {', '.join(f'{name} ({count:,} {_rows(count)})' for name, count in found.most_common())}"
        for path, found in counts.formats.items()
    ]
    if len(lines) <= _MAX_LISTED:
        return lines
    rest = sum(list(counts.formats.values())[_MAX_LISTED:], Counter[str]())
    found = ", ".join(f"{name} ({count:,} {_rows(count)})" for name, count in rest.most_common())
    return [*lines[:_MAX_LISTED], f"... {len(lines) - _MAX_LISTED:,} more files: {found}"]


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def _wrapped(lines: Sequence[str]) -> list[str]:
    """Lines of at most 100 columns, the rest of a long one indented below it; paths stay whole."""
    wrapped: list[str] = []
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        wrapped += textwrap.wrap(
            line, width=HELP_WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    return wrapped
