# SPDX-License-Identifier: Apache-2.0
"""Questions without answers, and answers without questions: rows of benchmarks, which have nothing to train.

MT-bench has the user's `turns`, and a `reference` that is made for graders; BFCL has the user's messages in `question`,
and in another file the calls that a program expects, without what they returned.
"""

from collections.abc import Mapping
from typing import Any

from primus.chat.formats.options import SourceOptions
from primus.chat.messages import Conversation
from primus.errors import ConversationError

FIELDS = ("turns", "question", "ground_truth")


def recognises(row: object, options: SourceOptions) -> bool:
    """Whether a row has a list of questions, or of expected calls."""
    del options
    return isinstance(row, Mapping) and (_questions(row) is not None or _is_ground_truth(row))


def _questions(row: Mapping[str, Any]) -> int | None:
    for name in ("turns", "question"):
        value = row.get(name)
        if isinstance(value, list | tuple) and value and isinstance(value[0], str | list | tuple | Mapping):
            return len(value)
    return None


def _is_ground_truth(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("ground_truth"), list | tuple)


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Refuse the row with the reason."""
    del options
    count = _questions(row) if isinstance(row, Mapping) else None
    if count is None:
        raise ConversationError(
            f"{origin}: the row has the calls that a benchmark expects, and not the conversation they belong to; drop"
            " the row",
            reason="no_questions",
        )
    raise ConversationError(
        f"{origin}: the row has {count} turns of the user and no answers of an assistant, so there is nothing to train;"
        " let a model answer them first, or drop the row",
        reason="no_answers",
    )
