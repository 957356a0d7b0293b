# SPDX-License-Identifier: Apache-2.0
"""What kind of file a name names, and the rows of any of them."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from primus.chat.reading.arrow_files import read_arrow, read_parquet
from primus.chat.reading.byte_streams import COMPRESSIONS, STDIN, STDIN_NAME
from primus.chat.reading.hub import hub_name, read_hub
from primus.chat.reading.json_documents import read_json
from primus.chat.reading.lines import read_lines
from primus.chat.reading.rows import Row, RowBatch
from primus.chat.reading.tables import read_table
from primus.errors import DataError

_Reader = Callable[..., Iterator[RowBatch]]
_TEXT: dict[str, _Reader] = {
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".json": read_json,
    ".traj": read_json,
    ".csv": partial(read_table, delimiter=","),
    ".tsv": partial(read_table, delimiter="\t"),
}
_BINARY: dict[str, _Reader] = {".parquet": read_parquet, ".arrow": read_arrow, ".feather": read_arrow}

FORMATS = (*_TEXT, *_BINARY)
"""Endings of the names of files that can be read; those of text may have `.gz` or `.zst` behind them."""

_BATCH_BYTES = 1 << 17


def read_rows(path: str | Path) -> Iterator[Row]:
    """Yield the rows of a data file in order, in constant memory except for a `.json` that holds one object.

    Args:
        path: A file with one of the endings `FORMATS`, `-` for lines of JSON on standard input, or a data set of the
            hub (`hf://owner/name`).

    Yields:
        A row for each line that is not blank, or for each element. A row that can't be decoded has its `error` set.

    Raises:
        DataError: If the file does not exist, is no regular file, is empty or damaged, has another ending, or a `.json`
            file holds neither a list nor an object. The message begins with the path.
    """
    for batch in read_row_batches(path, batch_bytes=_BATCH_BYTES):
        yield from batch


def read_row_batches(path: str | Path, *, batch_bytes: int) -> Iterator[RowBatch]:
    """Yield the rows of a data file in batches, which another process can decode.

    Args:
        path: A file that `read_rows` takes.
        batch_bytes: About how many bytes of lines one batch holds.

    Yields:
        The batches, in order.

    Raises:
        DataError: As `read_rows` does.
    """
    name = str(path)
    if hub := hub_name(name):
        name, reader = hub, read_hub
    elif name == STDIN:
        reader = read_lines
    else:
        reader = _reader(name)
        _check_file(Path(name))
    has_rows = False
    for batch in reader(name, batch_bytes=batch_bytes):
        has_rows = has_rows or batch.has_rows
        yield batch
    if not has_rows:
        name = STDIN_NAME if name == STDIN else name
        raise DataError(f"{name}: the file has no rows; a data file needs at least one")


def has_known_format(path: Path) -> bool:
    """Whether the ending of a file's name is one that `read_rows` takes."""
    return _find_reader(path.name) is not None


def _reader(name: str) -> _Reader:
    reader = _find_reader(name)
    if reader is None:
        raise DataError(
            f"{name}: the ending of the name tells no known format; use {', '.join(FORMATS)} (those of text also with"
            f" {' or '.join(COMPRESSIONS)})"
        )
    return reader


def _find_reader(name: str) -> _Reader | None:
    suffixes = [suffix.lower() for suffix in Path(name).suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        return _TEXT.get(suffixes[0]) if len(suffixes) == 2 else None
    return (_TEXT | _BINARY).get(suffixes[-1]) if suffixes else None


def _check_file(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path (relative paths start at {Path.cwd()})")
    if not path.is_file():
        raise DataError(f"{path}: is not a file; name a {', '.join(FORMATS)} file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; a data file needs at least one row")
