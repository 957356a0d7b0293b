# SPDX-License-Identifier: Apache-2.0
"""A declared column map."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnMap:
    """Where the parts of a conversation stand in a row."""
