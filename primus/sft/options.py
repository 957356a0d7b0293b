# SPDX-License-Identifier: Apache-2.0
"""What is a target, and what happens to rows that do not fit."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from primus.chat.conversations import SourceOptions
from primus.chat.formats import AUTO, FORMATS
from primus.config.schema import DataKeys, DataSource
from primus.sft.encoding import SuperviseTurns
from primus.sft.truncation import Truncation
from primus.sft.weighting import LossNormalizer, TurnSchedule

__all__ = ["BadRows", "EncodingOptions", "Truncation", "build_options"]

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
        schedule: How the weight of a turn depends on its place among those that are trained.
        loss_normalizer: What has one vote in the loss.
        loss_weight: Factor of the loss of everything in the data set.

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
    schedule: TurnSchedule = field(default_factory=TurnSchedule)
    loss_normalizer: LossNormalizer = "token"
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("supervise_turns", self.supervise_turns, get_args(SuperviseTurns)),
            ("truncation", self.truncation, get_args(Truncation)),
            ("bad_rows", self.bad_rows, get_args(BadRows)),
            ("loss_normalizer", self.loss_normalizer, get_args(LossNormalizer)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, not one of {', '.join(choices)}")
        if self.truncation == "window" and self.loss_normalizer == "conversation":
            raise ValueError("a conversation that window makes into several sequences has no one vote to share")
        if not 0 < self.loss_weight < math.inf:
            raise ValueError(f"loss_weight is {self.loss_weight}, not a finite number above 0")
        if not self.messages_field:
            raise ValueError("messages_field names no field")
        formats = [AUTO, *(name for name in FORMATS if name != "columns")]
        if self.source_format not in formats:
            raise ValueError(f"source_format is {self.source_format!r}, not one of {', '.join(formats)}")

    @property
    def weighs_evenly(self) -> bool:
        """Whether every target counts as its message says, and as one in the divisor of the loss."""
        return self.schedule.kind == "uniform" and self.loss_normalizer == "token" and self.loss_weight == 1

    @property
    def source(self) -> SourceOptions:
        """How rows are read."""
        return SourceOptions(format=self.source_format, messages_field=self.messages_field)


def build_options(keys: DataKeys, source: DataSource | None = None) -> EncodingOptions:
    """The options that the keys of a run ask for.

    Args:
        keys: The keys.
        source: One of several sources; None if there is one.

    Returns:
        The options.
    """
    parameters = {"start": keys.sft_turn_schedule_start, "decay": keys.sft_turn_schedule_decay}
    return EncodingOptions(
        supervise_end_of_turn=keys.sft_supervise_end_of_turn,
        supervise_turns=keys.sft_supervise_turns,
        truncation=keys.sft_truncation,
        bad_rows=keys.sft_bad_rows,
        messages_field=keys.sft_messages_field if source is None else source.messages_field,
        source_format=keys.sft_source_format if source is None else source.source_format,
        add_bos=keys.sft_add_bos,
        add_eos=keys.sft_add_eos,
        schedule=TurnSchedule(
            kind=keys.sft_turn_schedule, **{name: value for name, value in parameters.items() if value is not None}
        ),
        loss_normalizer=keys.sft_loss_normalizer,
        loss_weight=1.0 if source is None else source.loss_weight,
    )
