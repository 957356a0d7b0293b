# SPDX-License-Identifier: Apache-2.0
"""Rows of data files, each with its origin.

    file -> RowBatch -> Row

The ending of a name tells how a file is read, and each way has a module of its own. A file that can't be opened is an
error; a row that can't be decoded is a `Row` with an error, so that the caller's policy decides whether the rest is
used.
"""

from primus.chat.reading.byte_streams import STDIN
from primus.chat.reading.files import FORMATS, has_known_format, read_row_batches, read_rows
from primus.chat.reading.rows import Row, RowBatch
from primus.chat.reading.strict_json import load_json

__all__ = ["FORMATS", "STDIN", "Row", "RowBatch", "has_known_format", "load_json", "read_row_batches", "read_rows"]
