# SPDX-License-Identifier: Apache-2.0
"""From data files to the tokenized conversations of a split, and a ledger of every row.

N: conversations. T: tokens of one of them. K: its token spans.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from primus.errors import DataError
from primus.sft.batch_encoding import Outcome, ShardEncoder
from primus.sft.encoding import SuperviseTurns
from primus.sft.formatters import ConversationFormatter
from primus.sft.ledger import TRAINED, Ledger
from primus.sft.options import BadRows, EncodingOptions
from primus.sft.quarantine import Quarantine
from primus.sft.recipe import Encoder
from primus.sft.sequences import SequenceArrays, SequenceShards
from primus.sft.shards import shard_batches
from primus.sft.sources import TRAIN_SPLIT, VALIDATION_SPLIT
from primus.sft.tokenizer import SFTTokenizer
from primus.sft.truncation import Truncation

__all__ = ["BadRows", "EncodingOptions", "SuperviseTurns", "TokenizedDataset", "Truncation", "tokenize_files"]

# Problems that an error message lists; the rest is counted.
MAX_LISTED = 10


class TokenizedDataset(SequenceShards):
    """The training sequences of a split, in the order of the files.

    Args:
        shards: The sequences.
        ledger: What became of every row that was read.
        digests: The digest of each shard; None computes them.

    Attributes:
        ledger: What became of every row that was read.
        digests: The digest of each shard.
        fingerprint: Hash of the tokens and of what is trained of them.
    """

    def __init__(
        self, shards: Sequence[SequenceArrays], *, ledger: Ledger, digests: Sequence[str] | None = None
    ) -> None:
        super().__init__(shards)
        self.ledger = ledger
        self.digests = tuple([shard.digest() for shard in self.shards] if digests is None else digests)
        self.fingerprint = fingerprint_of(self.digests, num_sequences=len(self))

    @classmethod
    def joined(cls, parts: Sequence["TokenizedDataset"]) -> "TokenizedDataset":
        """The sequences of several data sets, one behind another.

        Args:
            parts: The data sets; a ledger that two of them share is counted once.

        Returns:
            A data set of all of them; the only one itself.
        """
        if len(parts) == 1:
            return parts[0]
        ledger = Ledger()
        for each in {id(part.ledger): part.ledger for part in parts}.values():
            ledger.add(each)
        return TokenizedDataset(
            [shard for part in parts for shard in part.shards],
            ledger=ledger,
            digests=[digest for part in parts for digest in part.digests],
        )


def fingerprint_of(digests: Sequence[str], *, num_sequences: int) -> str:
    """The fingerprint of a data set from the digests of its shards.

    Args:
        digests: The digest of each shard, in order.
        num_sequences: Sequences of all shards.

    Returns:
        128 bits, as text.
    """
    return hashlib.blake2b("\n".join([str(num_sequences), *digests]).encode(), digest_size=16).hexdigest()


def tokenize_files(
    files: Sequence[Path],
    *,
    formatter: ConversationFormatter,
    tokenizer: SFTTokenizer,
    max_seq_length: int,
    options: EncodingOptions,
    outcome: Outcome = TRAINED,
    validation_fraction: float = 0.0,
    quarantine_path: Path | None = None,
) -> tuple[TokenizedDataset, TokenizedDataset]:
    """Read, parse, split and tokenize files.

    Args:
        files: Data files.
        formatter: Gives the text.
        tokenizer: Gives the tokens.
        max_seq_length: Positions of a training sequence; a conversation may have one token more.
        options: What is a target, and what happens to rows that do not fit.
        outcome: What the rows are used for.
        validation_fraction: Share of the rows held out, chosen by how conversations open.
        quarantine_path: Where bad rows are written, with `bad_rows` quarantine; None only counts them.

    Returns:
        The conversations that are not held out, and those that are. Both share one ledger. Rows that belong together
        have one outcome; if any branch of a tree is not valid, the whole row is not.

    Raises:
        DataError: If a file can't be read; with `bad_rows` error, if any row is bad: the first ones are listed and the
            rest is counted.
        ValueError: If `max_seq_length` or `validation_fraction` is out of range.
    """
    encoder = ShardEncoder(
        Encoder(tokenizer, formatter, options),
        max_seq_length=max_seq_length,
        outcome=outcome,
        validation_fraction=validation_fraction,
    )
    ledger = Ledger()
    problems: list[str] = []
    shards: dict[str, list[SequenceArrays]] = {TRAIN_SPLIT: [], VALIDATION_SPLIT: []}
    with Quarantine(quarantine_path if options.bad_rows == "quarantine" else None) as quarantine:
        for _, batches in groupby(shard_batches(files, options.source), key=itemgetter(0)):
            parts: dict[str, list[SequenceArrays]] = {name: [] for name in shards}
            for encoded in (encoder.encode(batch) for _, batch in batches):
                ledger.add(encoded.ledger)
                problems += encoded.problems
                for bad in encoded.bad_rows:
                    quarantine.write(bad.row, reason=bad.reason, error=bad.error)
                for name, arrays in encoded.splits.items():
                    parts[name].append(arrays)
            for name, of_split in parts.items():
                shards[name].append(SequenceArrays.concatenate(of_split))
        if problems and options.bad_rows == "error":
            raise DataError(*listed_problems(problems, num_rows=ledger.num_rows))
    train, held_out = (TokenizedDataset(of_split, ledger=ledger) for of_split in shards.values())
    return train, held_out


def listed_problems(problems: Sequence[str], *, num_rows: int, num_problems: int | None = None) -> list[str]:
    """The problems of an error message.

    Args:
        problems: What is wrong with rows.
        num_rows: Rows that were read.
        num_problems: How many problems there are, if `problems` has only the first ones.

    Returns:
        The first problems, and how many more there are.
    """
    listed = list(problems[:MAX_LISTED])
    more = (len(problems) if num_problems is None else num_problems) - len(listed)
    if more:
        listed.append(
            f"... {more} more of {num_rows} rows are bad; set sft_bad_rows: quarantine to see"
            " all of"
            " them in a file and train the rest"
        )
    return listed


def shared_conversations(first: TokenizedDataset, second: TokenizedDataset) -> Iterator[tuple[str, str]]:
    """The origins, in both, of conversations that stand in two data sets."""
    places = {content_hash: index for index, content_hash in enumerate(first.content_hashes())}
    for index, content_hash in enumerate(second.content_hashes()):
        if content_hash in places:
            yield first.origin(places[content_hash]), second.origin(index)
