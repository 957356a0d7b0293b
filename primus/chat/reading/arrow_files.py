# SPDX-License-Identifier: Apache-2.0
"""Parquet, Arrow and Feather files, a few hundred rows at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from primus.chat.reading.rows import Row, RowBatch
from primus.errors import DataError

_ROWS_PER_BATCH = 256
_ARROW_FILE_MAGIC = b"ARROW1"
# Fields of calls and tools whose objects have the keys that somebody chose, and not those of a format.
_FREE_OBJECTS = frozenset({"arguments", "parameters", "properties", "input", "input_schema"})


def read_parquet(path: str, *, batch_bytes: int) -> Iterator[RowBatch]:
    """Yield the rows of a Parquet file in batches.

    Args:
        path: The file.
        batch_bytes: Not used: the rows are batched by their number.

    Yields:
        The batches, in order.

    Raises:
        DataError: If pyarrow is not installed, the file is damaged, or it has merged the keys of objects.
    """
    del batch_bytes
    size = Path(path).stat().st_size
    with _problems_of(path, "Parquet"):
        import pyarrow.parquet as pq  # noqa: PLC0415

        with pq.ParquetFile(path) as file:
            refuse_merged_objects(path, file.schema_arrow)
            first, total = 0, max(file.metadata.num_rows, 1)
            for table in file.iter_batches(batch_size=_ROWS_PER_BATCH):
                rows = rows_of_table(path, table, first=first)
                first += len(rows)
                yield RowBatch(path, decoded=rows, bytes_read=size * first // total)


def read_arrow(path: str, *, batch_bytes: int) -> Iterator[RowBatch]:
    """Yield the rows of an Arrow file, an Arrow stream or a Feather file (version 2) in batches.

    Args:
        path: The file.
        batch_bytes: Not used: the rows are batched by their number.

    Yields:
        The batches, in order.

    Raises:
        DataError: If pyarrow is not installed, the file is damaged, or it has merged the keys of objects.
    """
    del batch_bytes
    with _problems_of(path, "Arrow"):
        import pyarrow as pa  # noqa: PLC0415

        with pa.memory_map(path) as source:
            is_file = source.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
            source.seek(0)
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            refuse_merged_objects(path, reader.schema)
            tables = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            first = 0
            for number, table in enumerate(tables, start=1):
                bytes_read = source.size() * number // reader.num_record_batches if is_file else source.tell()
                for start in range(0, table.num_rows, _ROWS_PER_BATCH):
                    rows = rows_of_table(path, table.slice(start, _ROWS_PER_BATCH), first=first)
                    first += len(rows)
                    yield RowBatch(path, decoded=rows, bytes_read=bytes_read)


def rows_of_table(path: str, table: Any, *, first: int) -> tuple[Row, ...]:
    """The rows of an Arrow table or record batch.

    Args:
        path: Where they stand.
        table: The table.
        first: Index of its first row in the whole.

    Returns:
        The rows.
    """
    values = table.to_pylist(maps_as_pydicts="strict")
    return tuple(Row(f"{path}[{index}]", value=value) for index, value in enumerate(values, start=first))


def refuse_merged_objects(path: str, schema: Any) -> None:
    """Refuse objects with free keys in Arrow, where every row has been given the keys of all others.

    Args:
        path: Where the rows stand.
        schema: The Arrow schema.

    Raises:
        DataError: If there is such a field.
    """
    import pyarrow as pa  # noqa: PLC0415

    def refuse(field: Any) -> None:
        kind = field.type
        if field.name in _FREE_OBJECTS and pa.types.is_struct(kind):
            raise DataError(
                f"{path}: {field.name!r} is a struct, in which Arrow and Parquet give each row the keys of all rows, so"
                " calls would be trained with arguments that nobody wrote; store it as a JSON string"
            )
        if pa.types.is_map(kind):  # whose entries are a struct of key and value
            refuse(kind.item_field)
            return
        for i in range(kind.num_fields):
            refuse(kind.field(i))

    for field in schema:
        refuse(field)


@contextmanager
def _problems_of(path: str, kind: str) -> Iterator[None]:
    """Say what is wrong with a file as a DataError."""
    try:
        import pyarrow as pa  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise DataError(f"{path}: {kind} needs pyarrow; install the extra: pip install 'primus[parquet]'") from exc
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as exc:
        reason = " ".join(str(exc).split())
        raise DataError(f"{path}: not a readable {kind} file ({reason}); make or copy the file again") from exc
