# SPDX-License-Identifier: Apache-2.0
"""Rows of a data file, each with its origin.

A file that can't be opened is an error; a row that can't be decoded is a `Row` with an error, so that the caller's
policy decides whether the rest is used.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from primus.errors import DataError

_COMPRESSIONS = (".gz", ".zst")
FORMATS = (".jsonl", ".json", ".parquet")
# Decompressed at once. A block of 4 bytes can hold 128 KiB, so this bounds the memory that a file of repetitions takes.
_ZSTD_INPUT_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read.

    Attributes:
        origin: `file:line` (JSONL, lines from 1) or `file[index]` (JSON list and Parquet, rows from 0).
        value: The decoded row; None if it could not be decoded.
        error: Why it could not be decoded, as a complete message; None if it could.
        raw: The text of a row that could not be decoded.
    """

    origin: str
    value: Any = None
    error: str | None = None
    raw: str | None = None


def read_rows(path: str | Path) -> Iterator[Row]:
    """Yield the rows of a data file in order, in constant memory for JSONL and Parquet.

    Args:
        path: `.jsonl`, `.json` (a list of rows) or `.parquet`; the first two also with `.gz` or `.zst` behind.

    Yields:
        A row for each line that is not blank, or for each element. A line that is not valid UTF-8 or JSON is a row with
        its `error` set.

    Raises:
        DataError: If the file does not exist, is no regular file, is empty or damaged, has another ending, or a `.json`
            file is not a list. The message begins with the path.
    """
    path = Path(path)
    kind = _kind(path)
    _check_file(path)
    rows = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}[kind](path)
    count = 0
    for row in rows:
        count += 1
        yield row
    if count == 0:
        raise DataError(_no_rows(path))


def _check_file(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path (relative paths start at {Path.cwd()})")
    if not path.is_file():
        raise DataError(f"{path}: is not a file; name a {', '.join(FORMATS)} file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; a data file needs at least one row")


def _no_rows(path: Path) -> str:
    return f"{path}: the file has no rows; a data file needs at least one"


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows that stand together in a file, not decoded yet where the file is one of lines.

    Attributes:
        path: The file, as it was named.
        first_line: Number of the first line in `lines`, from 1.
        lines: Whole lines as they stand in the file.
        decoded: The rows, of a file that is not read by lines.
    """

    path: str
    first_line: int = 1
    lines: bytes = b""
    decoded: tuple[Row, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        """The rows, decoded."""
        yield from self.decoded
        for number, line in enumerate(self.lines.split(b"\n") if self.lines else (), start=self.first_line):
            if line.strip():
                yield _decode(line, origin=f"{self.path}:{number}")


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
    path = Path(path)
    if _kind(path) != ".jsonl":
        for rows in _chunked(read_rows(path), size=256):
            yield RowBatch(str(path), decoded=rows)
        return
    _check_file(path)
    has_rows, number = False, 1
    with _open_bytes(path) as file:
        while lines := file.readlines(batch_bytes):
            if number == 1:
                lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            has_rows = has_rows or any(line.strip() for line in lines)
            yield RowBatch(str(path), first_line=number, lines=b"".join(lines))
            number += len(lines)
    if not has_rows:
        raise DataError(_no_rows(path))


def _chunked(rows: Iterator[Row], *, size: int) -> Iterator[tuple[Row, ...]]:
    while chunk := tuple(islice(rows, size)):
        yield chunk


def has_known_format(path: Path) -> bool:
    """Whether the ending of a file's name is one that `read_rows` takes."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in FORMATS


def _kind(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        raise DataError(
            f"{path}: the ending of the name tells no known format; use {', '.join(FORMATS)}"
            f" (the first two also with {' or '.join(_COMPRESSIONS)})"
        )
    return suffixes[-1]


@contextmanager
def _open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file; damage in a compressed file becomes a DataError."""
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as raw:
            if suffix == ".gz":
                with gzip.open(raw) as unzipped:
                    yield io.BufferedReader(unzipped)
            elif suffix == ".zst":
                import zstandard  # noqa: PLC0415

                try:
                    yield io.BufferedReader(_ZstdFrames(raw, zstandard.ZstdDecompressor()), buffer_size=1 << 16)
                except zstandard.ZstdError as exc:
                    raise DataError(f"{path}: the zst data is damaged ({exc}); make or copy the file again") from exc
            else:
                yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise DataError(f"{path}: the {suffix[1:]} data is damaged ({exc}); make or copy the file again") from exc
    except PermissionError as exc:
        raise DataError(f"{path}: may not be read ({exc.strerror}); change its permissions") from exc


class _ZstdFrames(io.RawIOBase):
    """The content of zst frames, one after another; zstandard's own reader takes a truncated file for a whole one."""

    def __init__(self, compressed: IO[bytes], decompressor: Any) -> None:
        self._compressed = compressed
        self._decompressor = decompressor
        self._frame: Any = None
        self._input = b""
        self._content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            self._input = self._input or self._compressed.read(_ZSTD_INPUT_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("compressed file ended before the end of its last frame")
                return 0
            frame = self._frame or self._decompressor.decompressobj()
            self._content = memoryview(frame.decompress(self._input))
            self._input = frame.unused_data
            self._frame = None if frame.eof else frame
        count = min(len(buffer), len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        return count


def _read_jsonl(path: Path) -> Iterator[Row]:
    with _open_bytes(path) as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _decode(line, origin=f"{path}:{number}")


def _decode(line: bytes, *, origin: str) -> Row:
    try:
        text = line.decode()
    except UnicodeDecodeError as exc:
        error = f"{origin}: not UTF-8 at byte {exc.start} (0x{line[exc.start]:02x}); save the file as UTF-8"
        return Row(origin, error=error, raw=line.decode(errors="backslashreplace").rstrip("\r\n"))
    try:
        return Row(origin, value=load_json(text))
    except json.JSONDecodeError as exc:
        error = f"{origin}: not valid JSON: {exc.msg} at column {exc.colno}; write one JSON object per line"
    except ValueError as exc:
        error = f"{origin}: not valid JSON: {exc}; write one JSON object per line"
    return Row(origin, error=error, raw=text.rstrip("\r\n"))


def load_json(text: str) -> Any:
    """Decode JSON strictly: a repeated key or a number like NaN is refused, where `json.loads` loses or invents data.

    Args:
        text: JSON text.

    Returns:
        The decoded value.

    Raises:
        ValueError: If the text is not JSON (then a `json.JSONDecodeError`), repeats a key, has NaN or Infinity, or is
            nested too deeply to be read.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError as exc:
        raise ValueError("brackets are nested too deeply") from exc


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated!r} stands twice in one object")
    return unique


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _read_json(path: Path) -> Iterator[Row]:
    with _open_bytes(path) as file:
        data = file.read()
    try:
        rows = load_json(data.removeprefix(b"\xef\xbb\xbf").decode())
    except UnicodeDecodeError as exc:
        raise DataError(f"{path}: not UTF-8 at byte {exc.start}; save the file as UTF-8") from exc
    except json.JSONDecodeError as exc:
        hint = "one object per line is JSONL: name it .jsonl" if exc.msg == "Extra data" else "repair the file"
        raise DataError(f"{path}:{exc.lineno}: not valid JSON: {exc.msg} at column {exc.colno}; {hint}") from exc
    except ValueError as exc:
        raise DataError(f"{path}: not valid JSON: {exc}; repair the file") from exc
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a JSON {_json_type(rows)}, not a list of rows; write [row, row, ...] or JSONL")
    for index, value in enumerate(rows):
        yield Row(f"{path}[{index}]", value=value)


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise DataError(f"{path}: Parquet needs pyarrow; install the extra: pip install 'primus[parquet]'") from exc
    index = 0
    try:
        with pq.ParquetFile(path) as file:
            _refuse_merged_objects(path, file.schema_arrow)
            for batch in file.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    yield Row(f"{path}[{index}]", value=value)
                    index += 1
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{path}: not a readable Parquet file ({exc}); make or copy the file again") from exc


def _refuse_merged_objects(path: Path, schema: Any) -> None:
    """Refuse objects with free keys in Parquet, where every row has been given the keys of all others."""
    import pyarrow as pa  # noqa: PLC0415

    def refuse(field: Any) -> None:
        kind = field.type
        if field.name in {"arguments", "parameters"} and pa.types.is_struct(kind):
            raise DataError(
                f"{path}: {field.name!r} is a struct, in which Parquet gives each row the keys of all rows, so calls"
                " would be"
                " trained with arguments that nobody wrote; store it as a JSON string"
            )
        for i in range(kind.num_fields):
            refuse(kind.field(i))

    for field in schema:
        refuse(field)
