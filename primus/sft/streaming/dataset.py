# SPDX-License-Identifier: Apache-2.0
"""The endless stream of global batches.

G, also P: packs of a global batch. N: its sequences. S: positions of a training sequence.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from primus.chat.conversations import BATCH_BYTES, SourceOptions
from primus.chat.reading.byte_streams import STDIN
from primus.chat.reading.hub import hub_name
from primus.errors import DataError
from primus.sft.assembly import Assembler
from primus.sft.batch_encoding import EncodedBatch, ShardEncoder
from primus.sft.dataset import listed_problems
from primus.sft.ledger import Ledger
from primus.sft.masking import PackedTargets
from primus.sft.options import BadRows
from primus.sft.packing import Method
from primus.sft.permutation import Permutation
from primus.sft.prepared.disk import disk_errors
from primus.sft.prepared.manifest import ledger_from
from primus.sft.quarantine import quarantine_line
from primus.sft.sequences import Int64Array, SequenceArrays, SequenceShards, bounds_of
from primus.sft.streaming.packing import PACKING_BUFFER, packer_for
from primus.sft.streaming.reading import SequenceReader, StreamedSequence
from primus.sft.streaming.shuffling import ShuffleBuffer
from primus.sft.streaming.state import LedgerMark, StreamState, check_source, read_sequences

_NAME = "sft_streaming"


@dataclass(frozen=True, slots=True)
class StreamedBatch:
    """A global batch: packs of sequences.

    Attributes:
        sequences: The sequences of all packs, pack after pack.
        bounds_P1: Pack `p` holds the sequences `[bounds_P1[p], bounds_P1[p + 1])`; shape [G + 1].
        state: Where the stream is behind this batch.
    """

    sequences: SequenceArrays
    bounds_P1: Int64Array
    state: StreamState

    def __len__(self) -> int:
        """Packs, G."""
        return len(self.bounds_P1) - 1

    @property
    def num_positions_P(self) -> Int64Array:
        """Positions of each pack that are not padding."""
        return self._sums(self.sequences.num_tokens_N - 1)

    @property
    def num_pairs_P(self) -> Int64Array:
        """Pairs of positions of each pack of which one attends to the other."""
        lengths_N = self.sequences.num_tokens_N.astype(np.int64)
        return self._sums((lengths_N - 1) * lengths_N // 2)

    @property
    def num_targets_P(self) -> Int64Array:
        """Positions of each pack that are trained."""
        return self._sums(self.sequences.num_targets_N.astype(np.int64))

    @property
    def num_units_P(self) -> Int64Array:
        """What each pack adds to the divisor of the loss."""
        return self._sums(self.sequences.num_units_N.astype(np.int64))

    def _sums(self, values_N: Int64Array) -> Int64Array:
        return np.diff(bounds_of(values_N)[self.bounds_P1])

    def origins(self, pack: int) -> list[str]:
        """Where the conversations of a pack stand, as `file:line`."""
        return [self.sequences.origin(n) for n in range(self.bounds_P1[pack], self.bounds_P1[pack + 1])]

    def targets(self, packs: Sequence[int], *, length: int, pad_id: int) -> PackedTargets:
        """The training sequences of some packs, such as those of a rank's micro-batch.

        Args:
            packs: Which packs, from 0.
            length: Positions of each training sequence, S.
            pad_id: Fills the positions behind the conversations.

        Returns:
            The training sequences, in this order.
        """
        items = [np.arange(self.bounds_P1[pack], self.bounds_P1[pack + 1]) for pack in packs]
        return Assembler(SequenceShards([self.sequences]), pad_id=pad_id).assemble(items, length=length)

    def digest(self) -> str:
        """128 bits that are equal for equal batches."""
        packs = self.bounds_P1.astype("<i8").tobytes()
        return hashlib.blake2b(self.sequences.digest().encode() + packs, digest_size=16).hexdigest()


class StreamingDataset:
    """Training sequences out of files, epoch after epoch, without an end.

    An epoch has every conversation once: its files come in an order of their own, the shuffle buffer and the packer are
    empty at its beginning and its end. A global batch may hold the end of one and the beginning of the next. The
    batches depend on the arguments and on nothing else, so every rank that has the same arguments sees the same ones.

    Bad rows are written and counted in the first epoch; with `bad_rows` error the stream ends at the first of them.

    Args:
        files: Data files, or data sets of the hub (`hf://owner/name`).
        encoder: Turns rows into sequences.
        source: How rows are read.
        max_seq_length: Positions of a training sequence, S.
        global_batch_size: Packs of a global batch, G. Another one cuts the same stream of packs elsewhere.
        seed: Of the order.
        shuffle_buffer: Sequences that wait to be shuffled; 0 keeps the order of the files.
        packing: How sequences share training sequences.
        packing_buffer: Sequences that `best_fit` chooses from.
        bad_rows: Whether the stream ends at a bad row, or writes it and goes on.
        quarantine_path: Where bad rows are written; None only counts them.
        identity: Whatever else the sequences depend on, as plain JSON data: tokenizer, format, options. A state with
            another one is refused.
        batch_bytes: About how many bytes of lines are read at once.
        state: `StreamState.to_dict` of a batch; the stream goes on with the next one.

    Attributes:
        max_seq_length: Positions of a training sequence, S.
        global_batch_size: Packs of a global batch, G.
        packing: How sequences share training sequences.
        source: What the batches depend on, as plain JSON data.
        num_batches: Global batches that were given out.
        ledger: What became of every row that was read in the first epoch.

    Raises:
        DataError: If there is no file, one can't be read, or the state is of another stream.
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        encoder: ShardEncoder,
        source: SourceOptions,
        max_seq_length: int,
        global_batch_size: int,
        seed: int,
        shuffle_buffer: int,
        packing: Method = "none",
        packing_buffer: int = PACKING_BUFFER,
        bad_rows: BadRows = "error",
        quarantine_path: Path | None = None,
        identity: Mapping[str, Any] = MappingProxyType({}),
        batch_bytes: int = BATCH_BYTES,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        for what, number, least in (
            ("max_seq_length", max_seq_length, 1),
            ("global_batch_size", global_batch_size, 1),
            ("shuffle_buffer", shuffle_buffer, 0),
            ("packing_buffer", packing_buffer, 1),
        ):
            if number < least:
                raise ValueError(f"{what} is {number}, not at least {least}")
        self._files = tuple(files)
        self._sizes = _sizes(self._files)
        self.max_seq_length = max_seq_length
        self.global_batch_size = global_batch_size
        self.packing = packing
        self._seed = seed
        self._bad_rows = bad_rows
        self._quarantine_path = quarantine_path
        self.source = {
            "sft_dataset_name": [[str(file), size] for file, size in zip(self._files, self._sizes, strict=True)],
            "the time of the last change of each file": list(map(_changed_ns, self._files)),
            "seed": seed,
            "seq_length": max_seq_length,
            "sft_shuffle_buffer": shuffle_buffer,
            "sft_packing": packing,
            "the number of sequences to pack from": packing_buffer,
            "the size of a batch of rows": batch_bytes,
            "what sequences are made with": dict(identity),
        }
        self._reader = SequenceReader(self._files, source=source, encoder=encoder, batch_bytes=batch_bytes)
        self._shuffle = ShuffleBuffer[StreamedSequence](shuffle_buffer, seed=seed)
        self._packer = packer_for(packing, capacity=max_seq_length, buffer_size=packing_buffer)
        self._incoming: deque[StreamedSequence] = deque()
        self._packs: deque[list[StreamedSequence]] = deque()
        self._open: Iterator[tuple[EncodedBatch, list[StreamedSequence]]] | None = None
        self.num_batches = self._epoch = self._file = self._batch = self._num_sequences = 0
        self._quarantine_bytes = 0
        self.ledger = Ledger()
        if state is not None:
            self._restore(state)
        self._mark = LedgerMark.of(self.ledger)
        self._open_quarantine()

    def __iter__(self) -> Iterator[StreamedBatch]:
        """The global batches, from where the stream is.

        Yields:
            The batches, without an end.

        Raises:
            DataError: If a file can't be read or has changed, a row is bad and `bad_rows` is error, or a whole epoch
                has nothing to train on.
        """
        while True:
            while len(self._packs) < self.global_batch_size:
                self._advance()
            packs = [self._packs.popleft() for _ in range(self.global_batch_size)]
            self.num_batches += 1
            parts = [one.arrays.between(one.at, one.at + 1) for pack in packs for one in pack]
            yield StreamedBatch(
                SequenceArrays.concatenate(parts), bounds_of([len(pack) for pack in packs]), self.state()
            )

    def _advance(self) -> None:
        """Move one sequence on, or read a batch of rows, or end an epoch."""
        if self._incoming:
            self._pack(self._shuffle.add(self._incoming.popleft()))
        elif (read := self._read()) is not None:
            encoded, sequences = read
            self._count(encoded)
            self._incoming.extend(sequences)
            self._num_sequences += len(sequences)
        else:
            self._end_epoch()

    def _pack(self, sequence: StreamedSequence | None) -> None:
        if sequence is not None:
            self._packs.extend(self._packer.add(sequence, sequence.num_positions))

    def _read(self) -> tuple[EncodedBatch, list[StreamedSequence]] | None:
        """The next batch of the epoch; None behind the last."""
        while True:
            if self._open is None:
                if self._file == len(self._files):
                    return None
                self._file += 1
                self._batch = 0
                self._open = self._batches()
            read = next(self._open, None)
            if read is not None:
                self._batch += 1
                return read
            self._open = None

    def _batches(self, *, skip: int = 0) -> Iterator[tuple[EncodedBatch, list[StreamedSequence]]]:
        """The batches of the newest file."""
        order = Permutation(len(self._files), seed=self._seed, stream=self._epoch)
        file = int(order[self._file - 1])
        if _size(self._files[file]) != self._sizes[file]:
            raise DataError(f"{self._files[file]}: the file has changed since the run began; restore it, or start anew")
        return self._reader.batches(file, skip=skip)

    def _end_epoch(self) -> None:
        if not self._num_sequences:
            summary = "; ".join(line.strip() for line in self.ledger.lines())
            raise DataError(f"{_NAME}: no conversation is left to train ({summary}); raise seq_length, or look at the"
                            " rows")  # fmt: skip
        for sequence in self._shuffle.drain():
            self._pack(sequence)
        self._packs.extend(self._packer.flush())
        self._epoch += 1
        self._file = self._batch = self._num_sequences = 0
        self._shuffle.start(epoch=self._epoch)

    def _count(self, encoded: EncodedBatch) -> None:
        if self._epoch:
            return
        self.ledger.add(encoded.ledger)
        self._mark = LedgerMark.of(self.ledger)
        if encoded.problems and self._bad_rows == "error":
            raise DataError(*listed_problems(encoded.problems, num_rows=self.ledger.num_rows))
        if encoded.bad_rows and self._quarantine_path is not None:
            lines = [quarantine_line(bad.row, reason=bad.reason, error=bad.error) for bad in encoded.bad_rows]
            with (
                disk_errors(self._quarantine_path),
                self._quarantine_path.open("a", encoding="utf-8", newline="") as file,
            ):
                file.writelines(lines)
            self._quarantine_bytes += sum(map(len, lines))

    def _open_quarantine(self) -> None:
        """Take away what was written behind the state that the stream goes on from: those rows are read again."""
        path = self._quarantine_path
        if path is None:
            return
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._quarantine_bytes and path.exists():
                os.truncate(path, min(self._quarantine_bytes, path.stat().st_size))
            else:
                path.unlink(missing_ok=True)
            # A run that goes on in another folder writes its own file; the rows before are in that of the other run.
            self._quarantine_bytes = path.stat().st_size if path.exists() else 0

    def state(self) -> StreamState:
        """Where the stream is: the state of the newest batch, or that from which it goes on."""
        return StreamState(
            source=self.source,
            num_batches=self.num_batches,
            epoch=self._epoch,
            file=self._file,
            batch=self._batch,
            num_sequences=self._num_sequences,
            num_draws=self._shuffle.num_draws,
            quarantine_bytes=self._quarantine_bytes,
            incoming=tuple(self._incoming),
            shuffled=tuple(self._shuffle.waiting),
            packer=self._packer.state_dict(),
            packs=tuple(map(tuple, self._packs)),
            ledger=self._mark,
        )

    def _restore(self, state: Mapping[str, Any]) -> None:
        check_source(state, self.source, name=_NAME)
        sequence = read_sequences(state, self._reader.find, name=_NAME)
        self.num_batches, self._epoch = state["num_batches"], state["epoch"]
        self._file, self._batch = state["file"], state["batch"]
        self._quarantine_bytes = state["quarantine_bytes"]
        self._num_sequences = state["num_sequences"]
        self.ledger = ledger_from(deepcopy(state["ledger"]))
        self._incoming.extend(map(sequence, state["incoming"]))
        self._shuffle.start(
            epoch=self._epoch, num_draws=state["num_draws"], waiting=[sequence(item) for item in state["shuffled"]]
        )
        waiting = [[sequence(item), length] for item, length in state["packer"]["waiting"]]
        self._packer.load_state_dict({**state["packer"], "waiting": waiting})
        self._packs.extend([sequence(item) for item in pack] for pack in state["packs"])
        if self._file:
            self._open = self._batches(skip=self._batch)


def _sizes(files: Sequence[Path]) -> list[int]:
    if not files:
        raise DataError(f"{_NAME}: there is no file; name at least one with sft_dataset_name")
    if any(str(file) == STDIN for file in files):
        raise DataError(f"{_NAME}: standard input can be read only once; name files")
    return [_size(file) for file in files]


def _changed_ns(file: Path) -> int:
    """When a file was last written, in nanoseconds; 0 for what is not on disk."""
    return file.stat().st_mtime_ns if file.is_file() else 0


def _size(file: Path) -> int:
    """Bytes of a file; what is not on disk has none."""
    if hub_name(str(file)) is not None:
        return 0
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return -1
