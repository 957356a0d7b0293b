# SPDX-License-Identifier: Apache-2.0
"""A stream whose packs are asked for by number, as those of a data set are.

G: packs of a global batch. B: some packs. S: positions of a training sequence.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from primus.sft.masking import PackedTargets
from primus.sft.sequences import Int64Array
from primus.sft.streaming.dataset import StreamedBatch, StreamingDataset

IntArray = npt.NDArray[np.int64]


class IndexedStream:
    """The packs of a stream by their numbers: those of step `k`, from 0, are `[k * G, (k + 1) * G)`.

    The stream is read when a pack is asked for that has not come yet, by whichever thread asks first. The newest steps
    are kept; what is older is gone.

    Args:
        stream: The stream.
        pad_id: Fills the positions behind the conversations of a pack.
        num_kept: Steps that are kept: at least as many as are loaded ahead of the one that is trained on, and two more.
        name: What its loss is told under.

    Attributes:
        max_seq_length: Positions of a training sequence, S.
        is_packed: Whether a pack may hold several conversations.
        shares: None: there is one source.
        source_names: What its loss is told under; one name.
        source: What the packs depend on, as plain JSON data.
        fingerprint: Hash of the files' names, sizes and times and of all options; not of the files' content.
        first_step: The first step that can be asked for: the number of batches before the state that the stream went on
            from.

    Raises:
        ValueError: If `num_kept` is below 1.
    """

    shares = None

    def __init__(self, stream: StreamingDataset, *, pad_id: int, num_kept: int, name: str = "all") -> None:
        if num_kept < 1:
            raise ValueError(f"num_kept is {num_kept}, not at least 1")
        self.max_seq_length = stream.max_seq_length
        self.is_packed = stream.packing != "none"
        self.source_names = (name,)
        self.source = stream.source
        self.fingerprint = hashlib.blake2b(json.dumps(stream.source).encode(), digest_size=16).hexdigest()
        self.first_step = stream.num_batches
        self._batch_size = stream.global_batch_size
        self._pad_id = pad_id
        self._num_kept = num_kept
        self._start = stream.state().to_dict()
        self._rest: Iterator[StreamedBatch] = iter(stream)
        self._newest = self.first_step - 1
        self._batches: dict[int, StreamedBatch] = {}
        self._lock = Lock()
        self._error: BaseException | None = None

    def global_batch(self, step: int) -> IntArray:
        """The numbers of the packs of a step, counted from 0; shape [G]."""
        return np.arange(step * self._batch_size, (step + 1) * self._batch_size)

    def num_positions_of(self, indices_B: IntArray) -> IntArray:
        """Positions of some packs that are not padding."""
        return self._values(indices_B, "num_positions_P")

    def num_pairs_of(self, indices_B: IntArray) -> IntArray:
        """Pairs of positions of some packs of which one attends to the other."""
        return self._values(indices_B, "num_pairs_P")

    def num_units_of(self, indices_B: IntArray) -> IntArray:
        """What some packs add to the divisor of the loss."""
        return self._values(indices_B, "num_units_P")

    def batch(self, indices_B: IntArray, *, length: int) -> PackedTargets:
        """The training sequences of some packs of one step.

        Args:
            indices_B: Numbers of the packs.
            length: Positions of each training sequence, S.

        Returns:
            The training sequences, in this order.

        Raises:
            ValueError: If the packs are of several steps, or of one that is gone.
        """
        steps_B, places_B = np.divmod(indices_B, self._batch_size)
        if len(set(steps_B.tolist())) != 1:
            raise ValueError(f"packs of {len(set(steps_B.tolist()))} steps; those of a batch are of one")
        return self._step(int(steps_B[0])).targets(places_B.tolist(), length=length, pad_id=self._pad_id)

    def origin(self, index: int) -> str:
        """Where the conversations of a pack stand, as `file:line`."""
        return " + ".join(self.origins(index))

    def origins(self, index: int) -> list[str]:
        """Where each conversation of a pack stands, as `file:line`, in their order in it."""
        step, place = divmod(index, self._batch_size)
        return self._step(step).origins(place)

    def state(self, num_steps: int) -> Mapping[str, Any]:
        """The state behind a number of steps, for a checkpoint.

        Args:
            num_steps: How many steps were made since the stream began, also before `first_step`.

        Returns:
            Plain JSON data; a stream that is given it goes on with step `num_steps`.

        Raises:
            ValueError: If the last of these steps is gone.
        """
        if num_steps == self.first_step:
            return self._start
        return self._step(num_steps - 1).state.to_dict()

    def _values(self, indices_B: IntArray, name: str) -> Int64Array:
        steps_B, places_B = np.divmod(indices_B, self._batch_size)
        found = [
            getattr(self._step(step), name)[place]
            for step, place in zip(steps_B.tolist(), places_B.tolist(), strict=True)
        ]
        return np.array(found, dtype=np.int64)

    def _step(self, step: int) -> StreamedBatch:
        with self._lock:
            while self._newest < step:
                batch = self._next()
                self._newest += 1
                self._batches[self._newest] = batch
                self._batches.pop(self._newest - self._num_kept, None)
            if step not in self._batches:
                raise ValueError(f"step {step} is not among the {self._num_kept} that are kept, up to {self._newest}")
            return self._batches[step]

    def _next(self) -> StreamedBatch:
        if self._error is not None:
            raise self._error
        done = False
        try:
            batch = next(self._rest)
            done = True
        finally:
            if not done:
                # Every thread that asks later is told the same, whatever it is.
                self._error = sys.exc_info()[1]
        return batch
