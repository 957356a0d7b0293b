# SPDX-License-Identifier: Apache-2.0
"""What became of every row that was read; the counts sum to the rows."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from primus.chat.fixups import NOTHING_LEFT

TRAINED: Final = "trained"
VALIDATION: Final = "validation"
CONVERTED: Final = "converted"
STREAMED: Final = "streamed"
OVERLONG = "overlong"
NOTHING_TO_TRAIN = "nothing_to_train"

_USED = (TRAINED, VALIDATION, CONVERTED, STREAMED)
_EXPLANATIONS = {
    TRAINED: "in the training data",
    VALIDATION: "held out for validation",
    CONVERTED: "written as messages",
    STREAMED: "read by the stream; the newest of them may wait to be trained",
    OVERLONG: "longer than seq_length, dropped by sft_truncation",
    NOTHING_TO_TRAIN: "without a target (weights of 0, or all targets truncated)",
    NOTHING_LEFT: "dropped, for the fix-ups leave nothing to train",
}


class Ledger:
    """Counts rows by outcome, and keeps the origins of those that are not used.

    Attributes:
        num_rows: Rows that were read.
        outcomes: How many rows had each outcome; sums to `num_rows`. A bad row's outcome is `bad:` and the broken rule.
        origins: Where the rows of each outcome that is not a use stand.
        num_conversations: Conversations that are used: the rows that are used, less `num_joined`, and `num_branches`.
        num_joined: Rows beyond the first of each conversation whose turns are rows, if it is used.
        num_branches: Conversations beyond the first of each row that is a tree, of those that are used.
        num_dropped_branches: Conversations of rows that are used which are not used themselves.
        num_splits: Tokens that were cut because they crossed the edge of an assistant turn.
        num_untrained_turns: Assistant turns that lost their targets because truncation cut them off.
        num_truncated: Conversations that were shortened.
        num_windows: Sequences beyond the first of each conversation that was cut into several.
        ignored_fields: Fields of rows and messages that have no meaning here, and how many rows have them.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self.outcomes: Counter[str] = Counter()
        self.origins: dict[str, list[str]] = {}
        self.num_conversations = 0
        self.num_joined = 0
        self.num_branches = 0
        self.num_dropped_branches = 0
        self.num_splits = 0
        self.num_untrained_turns = 0
        self.num_truncated = 0
        self.num_windows = 0
        self.ignored_fields: Counter[str] = Counter()

    def record(self, outcome: str, *, origin: str) -> None:
        """Count one row; every row that is read is recorded once."""
        self.num_rows += 1
        self.outcomes[outcome] += 1
        if outcome not in _USED:
            self.origins.setdefault(outcome, []).append(origin)

    def record_usual(self, outcome: str, num_rows: int) -> None:
        """Count rows that are used, each as one conversation."""
        assert outcome in _USED
        if num_rows:
            self.num_rows += num_rows
            self.outcomes[outcome] += num_rows
            self.num_conversations += num_rows

    def add(self, other: "Ledger") -> None:
        """Take in what another ledger counted, of rows that follow."""
        self.num_rows += other.num_rows
        self.outcomes.update(other.outcomes)
        for outcome, origins in other.origins.items():
            self.origins.setdefault(outcome, []).extend(origins)
        self.num_conversations += other.num_conversations
        self.num_joined += other.num_joined
        self.num_branches += other.num_branches
        self.num_dropped_branches += other.num_dropped_branches
        self.num_splits += other.num_splits
        self.num_untrained_turns += other.num_untrained_turns
        self.num_truncated += other.num_truncated
        self.num_windows += other.num_windows
        self.ignored_fields.update(other.ignored_fields)

    def record_together(
        self, outcome: str, *, origins: Sequence[str], num_conversations: int, num_dropped: int = 0
    ) -> None:
        """Count rows that belong together, and the conversations that they gave.

        Args:
            outcome: What became of them.
            origins: Where they stand.
            num_conversations: How many of their conversations are used.
            num_dropped: How many are not.
        """
        for origin in origins:
            self.record(outcome, origin=origin)
        if num_conversations:
            self.num_conversations += num_conversations
            self.num_joined += len(origins) - 1
            self.num_branches += num_conversations - 1
            self.num_dropped_branches += num_dropped

    @property
    def num_trained(self) -> int:
        """Rows in the training data."""
        return self.outcomes[TRAINED]

    @property
    def num_used(self) -> int:
        """Rows in the training data, held out, or converted."""
        return sum(self.outcomes[outcome] for outcome in _USED)

    @property
    def num_bad(self) -> int:
        """Rows that are not valid."""
        return sum(count for outcome, count in self.outcomes.items() if outcome.startswith("bad:"))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for a JSON file."""
        return {
            "num_rows": self.num_rows,
            "outcomes": dict(sorted(self.outcomes.items())),
            "origins": dict(sorted(self.origins.items())),
            "num_conversations": self.num_conversations,
            "num_joined": self.num_joined,
            "num_branches": self.num_branches,
            "num_dropped_branches": self.num_dropped_branches,
            "num_splits": self.num_splits,
            "num_truncated": self.num_truncated,
            "num_windows": self.num_windows,
            "num_untrained_turns": self.num_untrained_turns,
            "ignored_fields": dict(sorted(self.ignored_fields.items())),
        }

    def lines(self) -> list[str]:
        r"""The ledger for people, one line per outcome, then what else was noticed.

        Returns:
            The lines, indented where they belong to the first.

        Examples:
            >>> ledger = Ledger()
            >>> for line in (1, 2):
            ...     ledger.record(TRAINED, origin=f"a.jsonl:{line}")
            >>> ledger.record("bad:role", origin="a.jsonl:3")
            >>> print("\n".join(ledger.lines()))
            3 rows read
              2 trained: in the training data
              1 bad:role: quarantined (a.jsonl:3)
        """
        lines = [f"{self.num_rows:,} {'row' if self.num_rows == 1 else 'rows'} read"]
        for outcome, count in sorted(self.outcomes.items(), key=lambda item: (item[0] not in _USED, item[0])):
            where = self.origins.get(outcome, [])
            examples = f" ({', '.join(where[:3])}{', ...' if len(where) > 3 else ''})" if where else ""
            lines.append(f"  {count:,} {outcome}: {explain(outcome)}{examples}")
        if self.num_joined or self.num_branches or self.num_dropped_branches:
            parts = [f"{self.num_used:,} rows that are used"]
            parts += [f"- {self.num_joined:,} further turns of a conversation"] if self.num_joined else []
            parts += [f"+ {self.num_branches:,} further branches of trees"] if self.num_branches else []
            lines.append(f"  {self.num_conversations:,} conversations = {' '.join(parts)}")
        if self.num_dropped_branches:
            lines.append(f"  {self.num_dropped_branches:,} branches of them dropped: too long, or without a target")
        if self.num_truncated:
            lines.append(
                f"  {self.num_truncated:,} conversations truncated; {self.num_untrained_turns:,} turns that were cut"
                " off are not trained"
            )
        if self.num_windows:
            lines.append(f"  {self.num_windows:,} further sequences of conversations that were cut into several")
        if self.num_splits:
            lines.append(f"  {self.num_splits:,} tokens cut at the edge of an assistant turn")
        if self.ignored_fields:
            fields = sorted(self.ignored_fields.items(), key=lambda item: (-item[1], item[0]))
            listed = ", ".join(f"{name!r} ({count:,} {'row' if count == 1 else 'rows'})" for name, count in fields)
            lines.append(f"  ignored, for they have no place in a conversation: {listed}")
        return lines


def explain(outcome: str) -> str:
    """What an outcome of rows means.

    Args:
        outcome: The outcome, as in `Ledger.outcomes`.

    Returns:
        The words.

    Examples:
        >>> explain("overlong")
        'longer than seq_length, dropped by sft_truncation'
    """
    return _EXPLANATIONS.get(outcome, "quarantined")


def write_ledgers(ledgers: Mapping[str, Ledger], *, path: Path) -> None:
    """Write ledgers with the origins of all rows that are not used, as one JSON object.

    Args:
        ledgers: The ledger of each split.
        path: The file; written beside and renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    document = {name: ledger.to_dict() for name, ledger in ledgers.items()}
    part.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
