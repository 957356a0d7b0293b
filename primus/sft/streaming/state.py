# SPDX-License-Identifier: Apache-2.0
"""All there is to know for going on with a stream: where reading is, and which sequences wait where."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from primus.errors import DataError
from primus.sft.ledger import Ledger
from primus.sft.prepared.key import differences
from primus.sft.streaming.reading import Place, StreamedSequence

STATE_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class LedgerMark:
    """What a ledger had counted at a time, while it goes on counting.

    Attributes:
        counts: Its counts.
        num_origins: How many origins each outcome had.
        ledger: The ledger, whose lists of origins only grow.
    """

    counts: Mapping[str, Any]
    num_origins: Mapping[str, int]
    ledger: Ledger

    @classmethod
    def of(cls, ledger: Ledger) -> "LedgerMark":
        """What a ledger has counted so far."""
        return cls(ledger.to_dict(), {outcome: len(origins) for outcome, origins in ledger.origins.items()}, ledger)

    def to_dict(self) -> dict[str, Any]:
        """The counts and the origins of that time, as `Ledger.to_dict` gives them."""
        origins = {outcome: self.ledger.origins[outcome][:num] for outcome, num in self.num_origins.items()}
        return {**self.counts, "origins": origins}


@dataclass(frozen=True, slots=True)
class StreamState:
    """Where a stream is between two global batches.

    It is made for every batch and cheap to make: what is written down is worked out only by `to_dict`.

    Attributes:
        source: What the stream depends on: another one has other batches.
        num_batches: Global batches that were given out.
        epoch: The epoch that is read.
        file: How many files of it were begun.
        batch: How many batches of rows of the newest were read.
        num_sequences: Sequences that were read in this epoch.
        num_draws: Random numbers that the shuffle buffer drew in it.
        quarantine_bytes: Size of the file of bad rows.
        incoming: Sequences that were tokenized and are to be shuffled.
        shuffled: Sequences in the shuffle buffer.
        packer: `state_dict` of the packer, with the sequences themselves.
        packs: Packs that are finished.
        ledger: What was counted.
    """

    source: Mapping[str, Any]
    num_batches: int
    epoch: int
    file: int
    batch: int
    num_sequences: int
    num_draws: int
    quarantine_bytes: int
    incoming: Sequence[StreamedSequence]
    shuffled: Sequence[StreamedSequence]
    packer: Mapping[str, Any]
    packs: Sequence[Sequence[StreamedSequence]]
    ledger: LedgerMark

    def to_dict(self) -> dict[str, Any]:
        """The state as plain JSON data: sequences are written as the places of their rows."""
        waiting = [[_written(item), length] for item, length in self.packer["waiting"]]
        return {
            "format": STATE_FORMAT,
            "source": dict(self.source),
            "num_batches": self.num_batches,
            "epoch": self.epoch,
            "file": self.file,
            "batch": self.batch,
            "num_sequences": self.num_sequences,
            "num_draws": self.num_draws,
            "quarantine_bytes": self.quarantine_bytes,
            "incoming": [_written(item) for item in self.incoming],
            "shuffled": [_written(item) for item in self.shuffled],
            "packer": {**self.packer, "waiting": waiting},
            "packs": [[_written(item) for item in pack] for pack in self.packs],
            "ledger": self.ledger.to_dict(),
        }


def check_source(written: Mapping[str, Any], source: Mapping[str, Any], *, name: str) -> None:
    """Refuse the state of another stream.

    Args:
        written: A state as `StreamState.to_dict` gives it.
        source: What this stream depends on.
        name: What the message begins with.

    Raises:
        DataError: If the state is of another format, or of a stream that depends on something else.
    """
    if written.get("format") != STATE_FORMAT:
        raise DataError(
            f"{name}: the state of the stream has the format {written.get('format')}, and this version reads"
            f" {STATE_FORMAT}; start anew, or use the version that wrote it"
        )
    for key, ours in source.items():
        theirs = written["source"].get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            changes = differences(theirs, ours)
            if not changes:
                continue
            raise DataError(
                f"{name}: the checkpoint was written with other settings ({'; '.join(changes)}), so the stream would go"
                " on with other batches; set them back, or start anew"
            )
        if theirs != ours:
            raise DataError(
                f"{name}: the checkpoint was written while {key} was {_shortened(theirs)}, and now it is"
                f" {_shortened(ours)}, so the stream would go on with other batches; set it back, or start anew"
            )


def read_sequences(
    written: Mapping[str, Any], find: Callable[[list[Place]], Mapping[Place, StreamedSequence]], *, name: str
) -> Callable[[Sequence[Any]], StreamedSequence]:
    """What gives the sequences of a state.

    Args:
        written: A state as `StreamState.to_dict` gives it.
        find: Reads and tokenizes the rows of places.
        name: What the message begins with.

    Returns:
        A function that takes a sequence as it is written in the state.

    Raises:
        DataError: If a row is not there any more, or says something else now.
    """
    items = [*written["incoming"], *written["shuffled"], *(item for item, _ in written["packer"]["waiting"])]
    items += [item for pack in written["packs"] for item in pack]
    found = find([_place(item) for item in items])
    for item in items:
        sequence = found[_place(item)]
        if (sequence.num_positions, sequence.content_hash) != tuple(item[4:]):
            raise DataError(
                f"{name}: {sequence.origin} is not what it was when the checkpoint was written"
                " (a conversation, or how it is tokenized, has changed); restore it, or start anew"
            )
    return lambda item: found[_place(item)]


def _written(sequence: StreamedSequence) -> list[Any]:
    file, batch, rows, number = sequence.place
    return [file, batch, list(rows), number, sequence.num_positions, sequence.content_hash]


def _place(item: Sequence[Any]) -> Place:
    file, batch, rows, number = item[:4]
    return Place(file, batch, tuple(rows), number)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
