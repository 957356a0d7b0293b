# SPDX-License-Identifier: Apache-2.0
"""What is checked of a row, and what became of a batch of rows."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

from primus.sft.masking import IntArray
from primus.sft.verdict import TokenizerVerdict

Check = Literal["parsed", "rendered", "tokenized", "targets", "content", "stop", "control", "prompt", "length"]

CHECKS: dict[Check, str] = {
    "parsed": "the row is a valid conversation",
    "rendered": "the format has a form for it, with exact spans",
    "tokenized": "the tokenizer encodes it exactly",
    "targets": "at least one token is trained",
    "content": "the trained tokens of each turn decode to what the assistant wrote",
    "stop": "each trained turn ends with its trained stop token",
    "control": "control tokens stand where the format put them, none comes from content",
    "prompt": "the server's prompt of each trained turn is a token prefix of the training sequence",
    "length": "the conversation fits seq_length",
}
assert tuple(CHECKS) == get_args(Check)

# A row, or a conversation, that fails one of them is not asked the others.
FIRST_CHECKS: tuple[Check, ...] = ("parsed", "rendered", "tokenized")


@dataclass(frozen=True, slots=True)
class Failure:
    """A check that a row, or a conversation of it, does not pass.

    Attributes:
        origin: Where it stands.
        check: The check.
        message: What is wrong, with the origin in front.
    """

    origin: str
    check: Check
    message: str


@dataclass(frozen=True, slots=True)
class BatchProof:
    """What became of a batch of rows.

    Attributes:
        num_rows: Rows that were read.
        num_bad_rows: Those of them that gave no conversation.
        num_conversations: Conversations that the others gave; a tree gives several, and a table one for many rows.
        passed: How many conversations passed each check; for `parsed` how many rows.
        failed: How many conversations failed each check; for `parsed` how many rows.
        failures: Everything that is wrong, one or more for each.
        lengths_N: Tokens of each conversation that was tokenized.
        num_targets: Trained tokens.
        num_turns: Assistant turns with a trained token.
        num_splits: Tokens that were cut because they crossed the edge of an assistant turn.
        num_lossy: Pieces of turns that decode to what the tokenizer keeps of them, and not to themselves.
        left_out: Conversations of which the format leaves something out that is not trained: `reasoning` of an
            assistant, or `context`.
        verdict: What the tokenizer is like.
        engine: What made the ids.
    """

    num_rows: int
    num_bad_rows: int
    num_conversations: int
    passed: Counter[Check]
    failed: Counter[Check]
    failures: tuple[Failure, ...]
    lengths_N: IntArray
    num_targets: int
    num_turns: int
    num_splits: int
    num_lossy: int
    left_out: Counter[str]
    verdict: TokenizerVerdict
    engine: str


def shortened(text: str) -> str:
    """A text as it is shown in a message: quoted, and at most its first 40 characters."""
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}..."
