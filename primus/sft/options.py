# SPDX-License-Identifier: Apache-2.0
"""What is a target, and what happens to rows that do not fit."""

from dataclasses import dataclass
from typing import Literal, get_args

from primus.chat.conversations import SourceOptions
from primus.chat.formats import AUTO, FORMATS
from primus.sft.encoding import SuperviseTurns
from primus.sft.truncation import Truncation

__all__ = ["BadRows", "EncodingOptions", "Truncation"]

BadRows = Literal["error", "quarantine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingOptions:
    """What is a target, and what happens to rows that do not fit.

    Attributes:
        supervise_end_of_turn: Whether the end of a trained turn is a target.
        supervise_turns: Which assistant turns are targets.
        truncation: What happens to a conversation of more than `max_seq_length` + 1 tokens.
        bad_rows: Whether rows that are not valid stop everything, or are set aside.
        messages_field: The field, or fields, with a row's messages.
        source_format: Name of the format of the rows; `auto` recognises that of each.
        add_bos: Begin with BOS; None does what the tokenizer does by itself.
        add_eos: End with EOS.

    Raises:
        ValueError: If an option has a value that does not exist.
    """

    supervise_end_of_turn: bool = False
    supervise_turns: SuperviseTurns = "all"
    truncation: Truncation = "error"
    bad_rows: BadRows = "error"
    messages_field: str | tuple[str, ...] = "messages"
    source_format: str = AUTO
    add_bos: bool | None = None
    add_eos: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("supervise_turns", self.supervise_turns, get_args(SuperviseTurns)),
            ("truncation", self.truncation, get_args(Truncation)),
            ("bad_rows", self.bad_rows, get_args(BadRows)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, not one of {', '.join(choices)}")
        if not self.messages_field:
            raise ValueError("messages_field names no field")
        formats = [AUTO, *(name for name in FORMATS if name != "columns")]
        if self.source_format not in formats:
            raise ValueError(f"source_format is {self.source_format!r}, not one of {', '.join(formats)}")

    @property
    def source(self) -> SourceOptions:
        """How rows are read."""
        return SourceOptions(format=self.source_format, messages_field=self.messages_field)
