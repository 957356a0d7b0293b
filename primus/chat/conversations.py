# SPDX-License-Identifier: Apache-2.0
"""From data files to conversations, row by row or in batches that other processes can parse.

    file -> RowBatch -> Reading: the rows that belong together, and the conversations they gave or the error

Every row is in exactly one reading, so the counts of readings sum to the rows.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from primus.chat.formats import AUTO, SourceFormat, SourceOptions, group_of, parse_group, parse_row
from primus.chat.formats.registry import GROUP_COLUMNS
from primus.chat.messages import Conversation
from primus.chat.reading import Row, RowBatch, read_row_batches
from primus.chat.reading.byte_search import has_any
from primus.errors import ConversationError, DataError

__all__ = ["ConversationBatch", "Reading", "SourceOptions", "read_batches", "read_conversations"]

BATCH_BYTES = 1 << 20
_GROUPED_FORMATS = (AUTO, "turns", "oasst", "columns")
# A line without any of these is no part of a group: the names of the columns, or one with an escaped letter. What the
# names end with, and what such a letter begins with, is looked for first, quickly.
_GROUP_NAMES = tuple(f'"{name}"'.encode() for name in GROUP_COLUMNS)
_GROUP_NAMES_END = b'_id"'
assert all(name.endswith(_GROUP_NAMES_END) for name in _GROUP_NAMES)
_ESCAPED_LETTER, _ESCAPE = re.compile(rb"\\u00[4-7]"), b"\\u00"


@dataclass(frozen=True, slots=True)
class Reading:
    """Rows that belong together, and what they gave.

    Attributes:
        rows: The rows: one, or those of one conversation where every row is a turn.
        conversations: What they gave: one conversation, or the branches of a tree; none if there is an error.
        error: Why they gave none.
    """

    rows: tuple[Row, ...]
    conversations: tuple[Conversation, ...] = ()
    error: ConversationError | None = None

    @property
    def origin(self) -> str:
        """Where the first row stands."""
        return self.rows[0].origin


@dataclass(frozen=True, slots=True)
class ConversationBatch:
    """Rows that stand together, and how to read them; small, and the same in every process.

    Attributes:
        rows: The rows.
        options: How they are read.
    """

    rows: RowBatch
    options: SourceOptions

    def readings(self) -> Iterator[Reading]:
        """Parse the rows, in order."""
        for part in _parts(self.rows, self.options):
            yield _read(part, self.options)


def read_batches(
    files: Sequence[str | Path],
    options: SourceOptions,
    *,
    batch_bytes: int = BATCH_BYTES,
    last_group: str | None = None,
    on_end: Callable[[str | None], None] = lambda _: None,
) -> Iterator[ConversationBatch]:
    """Yield batches of rows, in order, in constant memory for files of lines.

    Where rows are turns, the names of the conversations that have been read are kept: 16 bytes for each.

    Args:
        files: Data files.
        options: How rows are read.
        batch_bytes: About how many bytes of a file one batch holds.
        last_group: With which conversation of several rows the files end that were read before; None if with none.
        on_end: Is told with which one these files end.

    Yields:
        The batches; rows of one conversation are never in two of them.

    Raises:
        DataError: If a file can't be read, or the rows of one conversation stand apart.
    """
    for file in files:
        batches = read_row_batches(file, batch_bytes=batch_bytes)
        if not _may_have_groups(options):
            yield from (ConversationBatch(rows, options) for rows in batches)
            continue
        cutter = _Cutter(options, last_group=last_group)
        for rows in batches:
            yield from (ConversationBatch(whole, options) for whole in cutter.add(rows))
        yield from (ConversationBatch(whole, options) for whole in cutter.rest())
        last_group = cutter.last_group
    on_end(last_group)


def read_conversations(files: Sequence[str | Path], options: SourceOptions) -> Iterator[Reading]:
    """Yield every row of data files with the conversations it gave or the error.

    Args:
        files: Data files.
        options: How rows are read.

    Yields:
        The readings, in the order of the files.

    Raises:
        DataError: If a file can't be read, or the rows of one conversation stand apart.
    """
    for batch in read_batches(files, options):
        yield from batch.readings()


def _may_have_groups(options: SourceOptions) -> bool:
    if options.column_map is not None:
        return options.column_map.conversation is not None
    return options.format in _GROUPED_FORMATS


@dataclass(slots=True)
class _Part:
    """Rows that belong together: those of a group, or one that stands alone.

    Attributes:
        rows: The rows; those of a group may have some between them that can't be decoded.
        source: The format of the group, if it is one.
        name: The name of the group.
        after_broken: Where the row before the group stands, if it can't be decoded.
        before_broken: Where the row behind the group stands, if it can't be decoded.
    """

    rows: list[Row]
    source: SourceFormat | None = None
    name: str | None = None
    after_broken: str | None = None
    before_broken: str | None = None


def _parts(rows: Iterable[Row], options: SourceOptions) -> Iterator[_Part]:
    """The rows, with those of a group together."""
    if not _may_have_groups(options):
        yield from (_Part([row]) for row in rows)
        return
    current: _Part | None = None
    undecided: list[Row] = []  # behind the current group, and not decodable
    broken: str | None = None
    for row in rows:
        if row.error is not None:
            broken = row.origin
            if current is None:
                yield _Part([row])
            else:
                undecided.append(row)
            continue
        found = group_of(row.value, options)
        name = f"{found[0].name} {found[1]}" if found else None
        if current is not None and name == current.name:
            current.rows += [*undecided, row]
        else:
            if current is not None:
                yield from _closed(current, undecided)
            current = None
            if found is None:
                yield _Part([row])
            else:
                current = _Part([row], source=found[0], name=name, after_broken=broken)
        undecided, broken = [], None
    if current is not None:
        yield from _closed(current, undecided)


def _closed(group: _Part, undecided: list[Row]) -> Iterator[_Part]:
    group.before_broken = undecided[0].origin if undecided else None
    yield group
    yield from (_Part([row]) for row in undecided)


def _read(part: _Part, options: SourceOptions) -> Reading:
    rows = tuple(part.rows)
    try:
        broken = next((row for row in rows if row.error is not None), None)
        if broken is not None and broken.error is not None:
            raise _not_json(rows[0], broken)
        if part.source is None:
            return Reading(rows, parse_row(rows[0].value, rows[0].origin, options))
        for where, origin in (("before", part.after_broken), ("behind", part.before_broken)):
            if origin is not None:
                raise ConversationError(
                    f"{rows[0].origin}: the row {where} the conversation, {origin}, can't be decoded and may be a part"
                    " of it; repair that row",
                    reason="torn",
                )
        return Reading(rows, parse_group(part.source, rows, options))
    except ConversationError as exc:
        return Reading(rows, error=exc)


def _not_json(first: Row, broken: Row) -> ConversationError:
    if first is broken:
        return ConversationError(str(broken.error), reason="not_json")
    return ConversationError(f"{first.origin}: a turn of the conversation can't be decoded: {broken.error}",
                             reason="not_json")  # fmt: skip


@dataclass
class _Cutter:
    """Cuts the rows of a file into batches only where no group is cut, and refuses a group that comes back."""

    options: SourceOptions
    last_group: str | None = None
    _kept: list[Row] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set)
    _is_first: bool = True
    _open: str | None = None
    _path: str = ""
    _bytes_read: int = 0

    def add(self, rows: RowBatch) -> Iterator[RowBatch]:
        """Take the next rows; yield what can be read."""
        self._path, self._bytes_read = rows.path, rows.bytes_read
        if rows.lines and not self._kept and not self._may_have_group(rows.lines) and _ends_well(rows):
            self._note_others()
            yield rows
            return
        decoded = list(rows)
        has_group = self._open is not None
        first_kept, cut = len(self._kept), 0
        before = self._kept[-1] if self._kept else None
        for i, row in enumerate(decoded, start=first_kept):
            name = self._name(row)
            has_group = has_group or name is not None
            if self._may_cut(before, row, name):
                cut = i
            self._note(row, name)
            before = row
        if not has_group and not self._kept and before is not None and before.error is None:
            yield rows
            return
        whole = [*self._kept, *decoded]
        self._kept = whole[cut:]
        if cut:
            yield RowBatch(rows.path, decoded=tuple(whole[:cut]), bytes_read=rows.bytes_read)

    def rest(self) -> Iterator[RowBatch]:
        """What is left at the end of the file."""
        if self._kept:
            yield RowBatch(self._path, decoded=tuple(self._kept), bytes_read=self._bytes_read)
        self._kept = []

    def _may_have_group(self, lines: bytes) -> bool:
        if self.options.column_map is not None or self.options.conversation_id is not None:
            return True
        if not has_any(lines, _GROUP_NAMES_END, _ESCAPE):
            return False
        return any(name in lines for name in _GROUP_NAMES) or _ESCAPED_LETTER.search(lines) is not None

    def _name(self, row: Row) -> str | None:
        found = None if row.error is not None else group_of(row.value, self.options)
        return f"{found[0].name} {found[1]}" if found else None

    def _may_cut(self, before: Row | None, row: Row, name: str | None) -> bool:
        """Whether a batch may end before a row: not inside a group, nor between one and a row that can't be decoded."""
        if self._open is not None and (row.error is not None or name == self._open):
            return False
        return not (before is not None and before.error is not None and name is not None)

    def _note(self, row: Row, name: str | None) -> None:
        if row.error is not None:
            return
        if name is None:
            self._note_others()
        elif name != self._open:
            self._refuse_returning(row, name)
            self._open = name
            self._is_first = False
            self.last_group = name

    def _note_others(self) -> None:
        self._open, self._is_first, self.last_group = None, False, None

    def _refuse_returning(self, row: Row, name: str) -> None:
        digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()
        if digest in self._seen or (self._is_first and name == self.last_group):
            where = "further up in the file" if digest in self._seen else "in the file before"
            raise DataError(
                f"{row.origin}: the rows of one conversation ({name:.100}) stand apart, the others {where}; sort the"
                " rows by conversation"
            )
        self._seen.add(digest)


def _ends_well(rows: RowBatch) -> bool:
    """Whether the last row of a batch of lines can be decoded, so that nothing is torn where the next one begins."""
    lines = rows.lines
    end = len(lines)
    while end and lines[end - 1 : end].isspace():
        end -= 1
    last = lines[lines.rfind(b"\n", 0, end) + 1 : end]
    return all(row.error is None for row in RowBatch(rows.path, lines=last))
