# SPDX-License-Identifier: Apache-2.0
"""Data sets of the Hugging Face hub, streamed: `hf://owner/name?config=NAME&split=NAME&revision=NAME`."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from primus.chat.reading.arrow_files import refuse_merged_objects, rows_of_table
from primus.chat.reading.rows import RowBatch
from primus.errors import DataError

_ROWS_PER_BATCH = 256
_OPTIONS = ("config", "split", "revision")


def hub_name(path: str) -> str | None:
    """The name of a data set of the hub, if that is what a path names.

    Args:
        path: What was written. A `Path` of it has lost a slash.

    Returns:
        The name with both slashes, or None for a file.

    Examples:
        >>> hub_name("hf://owner/name"), hub_name("hf:/owner/name?split=test"), hub_name("a.jsonl")
        ('hf://owner/name', 'hf://owner/name?split=test', None)
    """
    return f"hf://{path[3:].lstrip('/')}" if path.startswith("hf:/") else None


def read_hub(path: str, *, batch_bytes: int) -> Iterator[RowBatch]:
    """Yield the rows of a split in batches, as they are downloaded.

    Args:
        path: The name, as `hub_name` gives it. Without `split` the split `train` is read.
        batch_bytes: Not used: the rows are batched by their number.

    Yields:
        The batches, in order.

    Raises:
        DataError: If `datasets` is not installed, the name is not of the form above, there is no such data set, or it
            can't be reached or read.
    """
    del batch_bytes
    name, options = _parse(path)
    try:
        import datasets  # noqa: PLC0415
        import pyarrow as pa  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise DataError(
            f"{path}: data sets of the hub need the library datasets; install the extra: pip install 'primus[hub]'"
        ) from exc
    first = 0
    try:
        stream: Any = datasets.load_dataset(
            name,
            options.get("config"),
            split=options.get("split", "train"),
            revision=options.get("revision"),
            streaming=True,
        )
        for table in stream.with_format("arrow").iter(batch_size=_ROWS_PER_BATCH):
            refuse_merged_objects(path, table.schema)
            rows = rows_of_table(path, table, first=first)
            first += len(rows)
            yield RowBatch(path, decoded=rows)
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException, datasets.exceptions.DatasetsError) as exc:
        reason = " ".join(str(exc).split())
        raise DataError(f"{path}: can't be read from the hub ({reason:.300}); check the name, the options and the"
                        " network") from exc  # fmt: skip


def _parse(path: str) -> tuple[str, dict[str, str]]:
    name, _, query = path.removeprefix("hf://").partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    is_known = all(option in _OPTIONS and value for option, value in pairs)
    if name.count("/") > 1 or not all(name.split("/")) or not is_known or len(options) != len(pairs):
        raise DataError(
            f"{path}: is not the name of a data set; write hf://owner/name, and behind it ?config=..., &split=... and"
            " &revision=... if needed"
        )
    return name, options
