# SPDX-License-Identifier: Apache-2.0
"""Objects through a pipe between this process and those that it started.

They are pickled as `multiprocessing` does it, with one difference: what arrays hold goes through the pipe as it lies in
memory, behind the pickled rest, and is not copied in between.

    number of parts, bytes of all that follows | size of each part, the pickled object, buffer, buffer, ...

Each part begins at a multiple of eight bytes.

A thread that reads needs the interpreter for every call of the system, and may have to wait for it: so there are few.
"""

import os
import struct
from collections.abc import Sequence
from io import BytesIO
from itertools import accumulate
from multiprocessing.reduction import ForkingPickler
from pickle import PickleBuffer
from typing import Any, NamedTuple

import numpy as np

_HEAD = "<QQ"
_ALIGNED = 8  # bytes: no array has larger items
_PROTOCOL = 5  # the first with buffers of their own
_MAX_PARTS = 512  # of one call; the system takes 1,024 at least


class Message(NamedTuple):
    """An object as it came through a pipe."""

    num_parts: int
    """How many parts it has."""
    content: memoryview
    """What follows the numbers."""

    def unpack(self) -> Any:
        """The object; its arrays are parts of one piece of memory, and can be written to."""
        sizes = struct.unpack_from(f"<{self.num_parts}Q", self.content)
        starts = accumulate((size + -size % _ALIGNED for size in sizes[:-1]), initial=_ALIGNED * self.num_parts)
        pickled, *buffers = [self.content[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        return ForkingPickler.loads(pickled, buffers=buffers)


def send(pipe: int, value: Any) -> None:
    """Write an object.

    Args:
        pipe: The pipe's end for writing.
        value: The object.

    Raises:
        BrokenPipeError: If nobody can read it any more.
    """
    stream = BytesIO()
    buffers: list[PickleBuffer] = []
    ForkingPickler(stream, _PROTOCOL, True, buffers.append).dump(value)  # noqa: FBT003  # it takes no names
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    sizes = [part.nbytes for part in parts]
    spaces = [bytes(-size % _ALIGNED) for size in sizes]
    head = struct.pack(_HEAD, len(parts), _ALIGNED * len(parts) + sum(sizes) + sum(map(len, spaces)))
    rest = [memoryview(piece) for pair in zip(parts, spaces, strict=True) for piece in pair if len(piece)]
    _write(pipe, [memoryview(head + struct.pack(f"<{len(sizes)}Q", *sizes)), *rest])


def receive(pipe: int) -> Message | None:
    """Read an object, without unpacking it.

    Args:
        pipe: The pipe's end for reading.

    Returns:
        The object; None if nobody can write one any more.
    """
    head = _read(pipe, struct.calcsize(_HEAD))
    if head is None:
        return None
    num_parts, num_bytes = struct.unpack(_HEAD, head)
    content = _read(pipe, num_bytes)
    return None if content is None else Message(num_parts, content)


def _write(pipe: int, parts: Sequence[memoryview]) -> None:
    rest = list(parts)
    while rest:
        num_bytes = os.writev(pipe, rest[:_MAX_PARTS])
        num_whole = 0
        while num_whole < len(rest) and num_bytes >= rest[num_whole].nbytes:
            num_bytes -= rest[num_whole].nbytes
            num_whole += 1
        rest = rest[num_whole:]
        if num_bytes:
            rest[0] = rest[0][num_bytes:]


def _read(pipe: int, num_bytes: int) -> memoryview | None:
    view = memoryview(np.empty(num_bytes, dtype=np.uint8))  # without zeros first
    position = 0
    while position < num_bytes:
        num_read = os.readv(pipe, [view[position:]])
        if not num_read:
            return None
        position += num_read
    return view
