# SPDX-License-Identifier: Apache-2.0
"""How rows are read: what a user may choose."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from primus.chat.formats.column_map import ColumnMap
from primus.chat.messages import ROLES

AUTO = "auto"
FUNCTION_CALL = "function_call"
"""A role of sources: an assistant message whose text is a call as JSON."""

OasstBranches = Literal["all", "best"]
Think = Literal["keep", "split"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """How rows are read as conversations.

    Attributes:
        format: Name of the source format; `auto` recognises the format of each row.
        messages_field: The field, or fields, with a row's messages.
        roles: Further names of roles: `system`, `user`, `assistant`, `tool` or `function_call` by the name that the
            source uses. They go before the names that a format knows.
        oasst: Which branches of a tree become conversations: `all`, or the `best`-ranked one.
        think: What becomes of a `<think>` element at the start of an assistant's content: `keep` leaves it where it
            is, `split` makes it the message's reasoning.
        column_map: Where the parts of a conversation stand in a row, for the format `columns`.
        conversation_id: The column that says which rows are turns of one conversation, for tables with a row per turn;
            None takes the usual names.

    Raises:
        ValueError: If an option has a value that does not exist.
    """

    format: str = AUTO
    messages_field: str | tuple[str, ...] = "messages"
    roles: Mapping[str, str] = field(default_factory=dict, hash=False)
    oasst: OasstBranches = "all"
    think: Think = "keep"
    column_map: ColumnMap | None = None
    conversation_id: str | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("oasst", self.oasst, get_args(OasstBranches)),
            ("think", self.think, get_args(Think)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, not one of {', '.join(choices)}")
        for name, role in self.roles.items():
            if role not in (*ROLES, FUNCTION_CALL):
                raise ValueError(f"roles: {name!r} is mapped to {role!r}, not to one of {', '.join(ROLES)}")
        if not self.messages_field:
            raise ValueError("messages_field names no field")
        if self.format == "columns" and self.column_map is None:
            raise ValueError("the format columns needs a column_map")

    @property
    def messages_fields(self) -> tuple[str, ...]:
        """The fields with a row's messages, in the order in which they are looked for."""
        return (self.messages_field,) if isinstance(self.messages_field, str) else tuple(self.messages_field)
