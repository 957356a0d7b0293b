# SPDX-License-Identifier: Apache-2.0
"""`primus data show`: rows token by token, in the terminal or as one page for a browser."""

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from primus.chat.conversations import Reading, read_conversations
from primus.cli.data.request import add_request_arguments, build_recipe
from primus.cli.data.shown_rows import legend_lines, row_lines
from primus.cli.logs import set_up_logging
from primus.cli.parsing import CommandParser, positive_int
from primus.errors import ConfigError, ConversationError, DataError
from primus.sft.recipe import Encoder, Recipe
from primus.sft.views import ConversationView, RowProblem, render_page, view_conversation

_ROWS_IN_TERMINAL = 1
_ROWS_OF_PAGE = 50
_NARROWEST, _WIDEST = 40, 160

_DESCRIPTION = """See rows token by token: what of them is trained, the control tokens, whitespace and characters that
can't be seen otherwise. The first row, or those that --row names, in the terminal; or the first 50 as one HTML page
that needs no network."""
_EXAMPLES = """
primus data show examples/data/demo-heldout.jsonl --tokenizer examples/data/demo-tokenizer --row 3
primus data show tiny-multiturn-sft.yaml --limit 2 --ids
primus data show tiny-multiturn-sft.yaml --html page.html
"""


def run(arguments: Sequence[str]) -> int:
    """Run `primus data show`.

    Args:
        arguments: The words after `primus data show`.

    Returns:
        The exit code.
    """
    parser = CommandParser("data show", description=_DESCRIPTION, examples=_EXAMPLES)
    add_request_arguments(parser)
    parser.add_argument(
        "--row", action="append", default=[], metavar="ROW", help="its number from 1, or FILE:LINE; may be repeated"
    )
    parser.add_argument(
        "--limit",
        type=positive_int,
        metavar="N",
        help=f"how many rows ({_ROWS_IN_TERMINAL}; with --html {_ROWS_OF_PAGE}; with --row all that it names)",
    )
    parser.add_argument("--full", action="store_true", help="print long turns and rows whole")
    parser.add_argument("--ids", action="store_true", help="print a line for each token, with its id and characters")
    parser.add_argument(
        "--colour", choices=("auto", "always", "never"), default="auto", help="use colours (auto: in a terminal)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page instead")
    options = parser.parse(arguments)
    set_up_logging(verbose=False)
    given = [f"--{name}" for name in ("full", "ids") if vars(options)[name]]
    if options.html is not None and given:
        raise ConfigError(f"{' and '.join(given)}: go with the terminal, and a page shows all of it; drop --html")
    recipe = build_recipe(options)
    rows, has_more = _rows(recipe, recipe.build(), options)
    if all(isinstance(row, RowProblem) for row in rows):
        raise DataError(*(row.message for row in rows if isinstance(row, RowProblem)))
    if options.html is not None:
        _write_page(options.html, rows, recipe)
    else:
        _print_rows(rows, recipe, options)
    if has_more:
        _explain_limit(len(rows), options)
    return 0


def _rows(
    recipe: Recipe, encoder: Encoder, options: argparse.Namespace
) -> tuple[list[ConversationView | RowProblem], bool]:
    """The rows that are asked for, and whether there are more."""
    limit = options.limit
    if limit is None and not options.row:
        limit = _ROWS_OF_PAGE if options.html is not None else _ROWS_IN_TERMINAL
    rows: list[ConversationView | RowProblem] = []
    for reading in _chosen(read_conversations(recipe.files, recipe.source), options.row):
        if limit is not None and len(rows) >= limit:
            return rows[:limit], True
        rows += _views(reading, recipe, encoder)
    assert rows, "a file without rows is an error, and a row gives a conversation or an error"
    return rows[:limit], limit is not None and len(rows) > limit


def _chosen(readings: Iterable[Reading], words: Sequence[str]) -> Iterator[Reading]:
    """The readings with rows that the words name, all of them if there are no words."""
    if wrong := [word for word in words if not (word.isdecimal() and int(word) > 0) and not set(word) & set(":[")]:
        raise ConfigError(*(f"--row {word}: is neither a number from 1 on nor FILE:LINE; write one" for word in wrong))
    missing = set(words)
    number = 0
    for reading in readings:
        if not words:
            yield reading
            continue
        first, number = number + 1, number + len(reading.rows)
        found = {word for word in words if word.isdecimal() and first <= int(word) <= number}
        found |= {word for row in reading.rows for word in words if _is_at(row.origin, word)}
        if found:
            missing -= found
            yield reading
        if not missing and not any(not word.isdecimal() for word in words):
            return
    if missing:
        rows = "there is 1 row" if number == 1 else f"there are {number:,} rows"
        raise ConfigError(*(f"--row {word}: does not exist, {rows}; ask for one of them" for word in sorted(missing)))


def _is_at(origin: str, word: str) -> bool:
    return origin == word or origin.endswith(f"/{word}")


def _views(reading: Reading, recipe: Recipe, encoder: Encoder) -> Iterator[ConversationView | RowProblem]:
    """What can be seen of each conversation that rows gave; of rows that gave none, why."""
    if reading.error is not None:
        yield RowProblem(reading.origin, str(reading.error))
    for conversation in reading.conversations:
        try:
            traced = encoder.trace(conversation)
        except ConversationError as exc:
            yield RowProblem(conversation.origin, str(exc))
            continue
        yield view_conversation(traced, tokenizer=encoder.tokenizer, max_seq_length=recipe.max_seq_length)


def _print_rows(rows: Sequence[ConversationView | RowProblem], recipe: Recipe, options: argparse.Namespace) -> None:
    in_colour = options.colour == "always" or (options.colour == "auto" and _wants_colour())
    width = min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
    lines = legend_lines(rows, in_colour=in_colour, width=width)
    for row in rows:
        lines += ["", *row_lines(
            row, in_colour=in_colour, width=width, is_whole=options.full, shows_ids=options.ids,
            max_seq_length=recipe.max_seq_length,
        )]  # fmt: skip
    print("\n".join(lines))


def _wants_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _write_page(path: Path, rows: Sequence[ConversationView | RowProblem], recipe: Recipe) -> None:
    """Write the page beside its name, and rename it when it is whole."""
    facts = [("tokenizer", recipe.tokenizer), ("format", recipe.conversation_format)]
    if recipe.max_seq_length is not None:
        facts.append(("seq_length", f"{recipe.max_seq_length:,}"))
    page = render_page(rows, facts=facts, max_seq_length=recipe.max_seq_length)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")
    part.replace(path)
    num_bad = sum(isinstance(row, RowProblem) for row in rows)
    bad = f", {num_bad:,} of them not valid" if num_bad else ""
    print(f"{path}: {len(rows):,} {'row' if len(rows) == 1 else 'rows'}{bad}; open it in a browser")


def _explain_limit(num_rows: int, options: argparse.Namespace) -> None:
    what = "the first row" if num_rows == 1 else f"the first {num_rows:,} rows"
    if options.row:
        print(f"{what} of those that --row names; --limit takes more")
    else:
        print(f"{what}, and there are more; --row picks others, --limit takes more")
