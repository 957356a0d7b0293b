# SPDX-License-Identifier: Apache-2.0
"""`primus data stats`: what a data set is made of, on screen, as JSON and as one HTML page."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from primus.cli.data.request import add_request_arguments, build_recipe, num_workers
from primus.cli.data.stats_tables import report_tables
from primus.cli.logs import set_up_logging
from primus.cli.parsing import CommandParser
from primus.cli.progress import RowProgress
from primus.errors import ConfigError
from primus.sft.stats import build_report, choose_bands, compare, gather
from primus.sft.stats.page import render_page

_MAX_WIDTH = 100
_DEFAULT_THRESHOLD = 0.8

_DESCRIPTION = """Count what a data set is made of: turns, tokens by role and turn, what is trained, what candidate
sequence lengths would cut, pad and pack, scripts, code, exact and near duplicates, and oddities with the rows that have
them. Every figure is exact unless its words say otherwise. Uses all cores."""
_EXAMPLES = """
primus data stats examples/data/demo-heldout.jsonl --tokenizer examples/data/demo-tokenizer
primus data stats tiny-multiturn-sft.yaml --html report.html --json report.json
primus data stats tiny-multiturn-sft.yaml --seq-lengths 64,128 --html report.html
"""


def run(arguments: Sequence[str]) -> int:
    """Run `primus data stats`.

    Args:
        arguments: The words after `primus data stats`.

    Returns:
        The exit code.
    """
    parser = CommandParser("data stats", description=_DESCRIPTION, examples=_EXAMPLES)
    add_request_arguments(parser)
    parser.add_argument(
        "--seq-lengths",
        type=_lengths,
        default=(),
        metavar="N,N,...",
        help="sequence lengths to weigh (powers of two up to the longest conversation); --seq-length is always one",
    )
    parser.add_argument(
        "--near-threshold",
        type=_threshold,
        default=_DEFAULT_THRESHOLD,
        metavar="J",
        help=f"Jaccard index from which conversations are near duplicates ({_DEFAULT_THRESHOLD}); 0 turns them off",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with plots, that needs no network")
    options = parser.parse(arguments)
    set_up_logging(verbose=False)
    _check_outputs(options)
    recipe = build_recipe(options)
    recipe.build()  # a tokenizer that can't be used is told before processes start
    bands = choose_bands(options.near_threshold) if options.near_threshold else None
    with RowProgress("counted") as progress:
        gathered = gather(recipe, bands=bands, num_workers=num_workers(options), advance=progress.advance)
    if not gathered.counts.num_rows:
        raise ConfigError("sources: hold no rows; name files that do")
    with RowProgress("compared for near duplicates") as progress:
        compare(gathered, num_workers=num_workers(options), advance=progress.advance)
    report = build_report(gathered, seq_lengths=options.seq_lengths)
    if options.json:
        _write(options.json, json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n")
    if options.html:
        _write(options.html, render_page(report))
    console = Console(width=_width(), highlight=False)
    for part in report_tables(report):
        console.print(part)
    for path in (options.json, options.html):
        if path:
            print(f"written: {path}")
    return 0


def _width() -> int:
    """Columns of a terminal, but no more than are easily read; a file has as many."""
    return min(Console().width, _MAX_WIDTH) if sys.stdout.isatty() else _MAX_WIDTH


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse to write over what is read, and two files into one.

    Raises:
        ConfigError: If a file that is to be written is a source, a folder, or named twice.
    """
    outputs = {name: path for name, path in (("--json", options.json), ("--html", options.html)) if path}
    for name, path in outputs.items():
        if path.is_dir():
            raise ConfigError(f"{name}: {path} is a folder; name a file in it")
        if path.resolve() in {Path(source).resolve() for source in options.sources}:
            raise ConfigError(f"{name}: {path} is a source, and would be overwritten; name another file")
    if len({path.resolve() for path in outputs.values()}) < len(outputs):
        raise ConfigError(f"--html: {options.html} is the file of --json, too; name another file")


def _write(path: Path, text: str) -> None:
    """Write a file beside and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _lengths(text: str) -> tuple[int, ...]:
    """Numbers above 0 with commas between them, for argparse."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 0 < int(word) < 2**31 for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 2048,4096")
    return tuple(sorted({int(word) for word in words}))


def _threshold(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    try:
        threshold = float(text)
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return threshold
