# SPDX-License-Identifier: Apache-2.0
"""The report of `primus data stats` as tables for a terminal of 80 columns or more."""

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from primus.sft.stats.figures import COPY_NAMES, Copies, Kind, NearDuplicates, StatsReport, Summary, percent

_BAR = 30
_MOST_SHOWN = 8
_EIGHTHS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"
_BLOCK = "\u2588"


def report_tables(report: StatsReport) -> Iterator[RenderableType]:
    """The report, section by section.

    Args:
        report: The report.

    Yields:
        What a rich console prints.
    """
    yield from _head(report)
    if not report.num_conversations:
        return
    yield _per_conversation(report)
    yield _roles(report)
    yield _lengths(report)
    yield _sequence_lengths(report)
    yield Text(
        "A conversation of T tokens takes T - 1 positions. Cut on the right or dropped: the turns and targets (trained"
        " tokens) that are lost; a turn that is not whole loses all of its own. Alone: each conversation padded to the"
        " length. Packed: best-fit decreasing over the whole data set.\n",
        style="dim",
    )
    yield from _writing(report)
    yield from _duplicates(report)
    yield from _signals(report)


def visible(text: str) -> str:
    r"""Text that a terminal only shows: control characters as escapes.

    Args:
        text: Any text, such as the name of a file.

    Returns:
        The text on one line.

    Examples:
        >>> visible("a\x1b[31m\n")
        'a\\x1b[31m\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """A table whose first columns are words and whose others are numbers."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )  # fmt: skip
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else visible(str(cell))) for cell in cells))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _head(report: StatsReport) -> Iterator[RenderableType]:
    yield Text(
        f"{_count(report.num_rows, 'row')}, {_count(report.num_conversations, 'conversation')},"
        f" {_count(report.num_tokens, 'token')}, of which {report.num_targets:,} are trained"
        f" ({percent(report.target_share)})",
        style="bold",
    )
    if report.folder:
        yield Text(f"  places are in {visible(report.folder)}", style="dim")
    for what, kinds in (("bad rows", report.bad_rows), ("can't be rendered or tokenized", report.bad_conversations)):
        for kind in kinds:
            yield Text(f"  {what}: {kind.num:,} {kind.name} ({_places(report, kind.origins, kind.num_conversations)})")
    for name, count in report.ignored_fields.items():
        yield Text(f"  {_count(count, 'conversation')} with the message field {name!r}, which has no meaning here")
    if report.num_splits:
        yield Text(f"  {_count(report.num_splits, 'token')} cut at the edge of an assistant turn")


def _places(report: StatsReport, origins: Iterable[str], num: int, *, most: int = 2) -> str:
    shown = [visible(report.place(origin)) for origin in list(origins)[:most]]
    return ", ".join(shown) + (", ..." if num > len(shown) else "")


def _per_conversation(report: StatsReport) -> Table:
    table = _table(
        "Per conversation", ["", ], ["mean", "min", "10 %", "median", "90 %", "99 %", "max"]
    )  # fmt: skip
    for name, summary in (
        ("messages", report.messages),
        ("assistant messages", report.assistant_messages),
        ("tokens", report.tokens),
        ("trained tokens", report.targets),
        ("trained, % (rounded down)", report.target_percent),
    ):
        _row(table, name, *_figures(summary))
    return table


def _figures(summary: Summary) -> list[object]:
    mean = f"{summary.mean:,.1f}"
    return [mean, summary.min, summary.p10, summary.p50, summary.p90, summary.p99, summary.max]


def _roles(report: StatsReport) -> Table:
    table = _table(
        "Tokens by role", ["role"], ["messages", "content", "around it", "of all", "mean", "median", "90 %", "max"]
    )
    for role in report.roles:
        each = role.per_message
        _row(
            table, role.role, role.num_messages, role.content_tokens, role.overhead_tokens, percent(role.share),
            f"{each.mean:,.1f}", each.p50, each.p90, each.max,
        )  # fmt: skip
    if report.outside_tokens:
        share = percent(report.outside_tokens / report.num_tokens)
        _row(table, "of no message", "", "", report.outside_tokens, share, "", "", "", "")
    return table


def _lengths(report: StatsReport) -> Table:
    """A bar for each octave."""
    table = _table("Positions of a conversation", ["from", "to"], ["conversations"])
    table.columns[0].justify = table.columns[1].justify = "right"
    table.add_column("")
    octaves: dict[int, int] = {}
    for cell in report.lengths_histogram:
        octave = cell.low.bit_length() - 1
        octaves[octave] = octaves.get(octave, 0) + cell.count
    most = max(octaves.values(), default=1)
    for octave in range(min(octaves, default=0), max(octaves, default=-1) + 1):
        count = octaves.get(octave, 0)
        cells = (f"{2**octave:,}", f"{2 ** (octave + 1) - 1:,}", f"{count:,}")
        table.add_row(*map(Text, cells), Text(bar(count / most), style="cyan"))
    return table


def bar(share: float, *, width: int = _BAR) -> str:
    """A bar of block characters.

    Args:
        share: How much of the width it takes, from 0 to 1.
        width: Columns of a whole bar.

    Returns:
        The bar, rounded to an eighth of a column; something is never nothing.

    Examples:
        >>> bar(0.5, width=3)
        '\u2588\u258c'
    """
    eighths = max(round(share * width * 8), 1) if share else 0
    return (_BLOCK * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _sequence_lengths(report: StatsReport) -> Table:
    names = (
        "length", "too\nlong", "cut:\nturns", "\ntargets", "dropped:\nturns", "\ntargets", "alone:\npadding",
        "packed:\nnumber", "\npadding",
    )  # fmt: skip
    table = _table("What sequence lengths would do", [], names)
    for weighed in report.seq_lengths:
        is_own = weighed.seq_length == report.seq_length
        cells = (
            f"{'* ' if is_own else ''}{weighed.seq_length:,}", f"{weighed.num_overlong:,}",
            f"{weighed.right_lost_turns:,}", percent(weighed.right_lost_target_share),
            f"{weighed.drop_lost_turns:,}", percent(weighed.drop_lost_target_share),
            percent(weighed.padding_share) if weighed.num_sequences else "-", f"{weighed.packed_sequences:,}",
            percent(weighed.packed_padding_share) if weighed.num_sequences else "-",
        )  # fmt: skip
        table.add_row(*cells, style="bold" if is_own else None)
    return table


def _writing(report: StatsReport) -> Iterator[RenderableType]:
    table = _table("Scripts", ["script"], ["letters", "of all", "mostly: conversations"])
    total = sum(report.letters.values())
    names = sorted({*report.letters, *report.main_scripts}, key=lambda n: (-report.letters.get(n, 0), n))
    for name in names[:_MOST_SHOWN]:
        letters = report.letters.get(name, 0)
        _row(table, name, letters, percent(letters / total if total else 0.0), report.main_scripts.get(name, 0))
    if len(names) > _MOST_SHOWN:
        rest = sum(report.letters.get(name, 0) for name in names[_MOST_SHOWN:])
        mostly = sum(report.main_scripts.get(name, 0) for name in names[_MOST_SHOWN:])
        _row(table, f"{len(names) - _MOST_SHOWN} more", rest, percent(rest / total if total else 0.0), mostly)
    yield table
    code = report.code
    languages = ", ".join(f"{visible(name) or 'no name'} {count:,}" for name, count in list(code.languages.items())[:6])
    if code.num_blocks:
        yield Text(
            f"Code: {_count(code.num_blocks, 'fenced block')} in {_count(code.num_conversations, 'conversation')},"
            f" {percent(code.character_share)} of what user and assistant say ({languages})\n"
        )
    else:
        yield Text("Code: no fenced block\n")


def _duplicates(report: StatsReport) -> Iterator[RenderableType]:
    table = _table("Exact duplicates", ["of"], ["compared", "different", "copies", "groups", "largest"])
    for copies in report.copies:
        largest = copies.groups[0].size if copies.groups else 0
        _row(
            table, COPY_NAMES[copies.of], copies.num_compared, copies.num_distinct, copies.num_copies,
            copies.num_groups, largest,
        )  # fmt: skip
    yield table
    yield from (line for copies in report.copies[:1] for line in _groups(report, copies))
    if report.near_duplicates is not None:
        yield from _near(report, report.near_duplicates)


def _groups(report: StatsReport, copies: Copies) -> Iterator[Text]:
    for group in copies.groups[:3]:
        yield Text(f"  {group.size:,} times: {_places(report, group.origins, group.size, most=3)}")


def _near(report: StatsReport, near: NearDuplicates) -> Iterator[Text]:
    if not near.num_clusters:
        yield Text(f"Near duplicates: none among {_count(near.num_compared, 'different conversation')}")
    else:
        yield Text(
            f"Near duplicates: {_count(near.num_clusters, 'cluster')} of"
            f" {_count(near.num_in_clusters, 'conversation')}; {near.num_removable:,} would go if one of each stayed"
        )
    for cluster in near.clusters[:3]:
        yield Text(f"  {cluster.size:,} alike: {_places(report, cluster.origins, cluster.size, most=3)}")
    yield Text(
        f"  alike: Jaccard index of {near.shingle_words}-word shingles at least {near.threshold:g}, computed exactly;"
        f" a pair just there is found with {percent(near.found_at_threshold)}\n",
        style="dim",
    )


def _signals(report: StatsReport) -> Iterator[RenderableType]:
    found = [kind for kind in report.signals if kind.num]
    if found:
        table = _table("Worth a look", ["what"], ["conversations", "messages"])
        table.add_column("first", overflow="fold")
        for kind in sorted(found, key=lambda kind: -kind.num_conversations):
            _row(
                table,
                kind.title,
                kind.num_conversations,
                kind.num,
                _places(report, kind.origins, kind.num_conversations, most=1),
            )
        yield table
    yield from _absent(report.signals)
    yield Text(
        f"Answers that begin like a refusal (a heuristic): {report.num_refusals:,}. The definitions are in --json and"
        " --html."
    )


def _absent(signals: Sequence[Kind]) -> Iterator[Text]:
    absent = [kind.title for kind in signals if not kind.num]
    if absent:
        yield Text(f"None: {', '.join(absent)}", style="dim")
