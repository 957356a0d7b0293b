# SPDX-License-Identifier: Apache-2.0
"""The texts of many conversations as flat arrays, and the way to them that makes no object for a message.

N: texts. M: markers of all texts. E: edges of the spans of all texts, two for each. K: spans. I: messages of all texts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from primus.chat.messages import Role

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FlatTexts:
    """Texts, with everything that has a place in them as numbers. Places are bytes of UTF-8, counted in each text.

    Attributes:
        texts: The texts.
        data: Their bytes.
        markers_M: First byte of each marker, one text's behind another's.
        words: All markers that there are.
        words_M: Which of them stands there, as an index.
        num_markers_N: How many markers each text has.
        edges_E: First byte and one past the last of each piece of an assistant turn, in turn.
        turns_K: Index of the message that a piece belongs to.
        is_end_K: Whether a piece is the end of its turn.
        weights_K: Factor of a piece's loss.
        num_spans_N: How many pieces each text has.
    """

    texts: Sequence[str]
    data: Sequence[bytes]
    markers_M: Int64Array
    words: Sequence[str]
    words_M: Int64Array
    num_markers_N: Int64Array
    edges_E: Int64Array
    turns_K: npt.NDArray[np.int32]
    is_end_K: npt.NDArray[np.bool_]
    weights_K: npt.NDArray[np.float32]
    num_spans_N: Int64Array


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the content of a message, in ASCII.

    Attributes:
        header: Text in front of it.
        markers: Where in the header a marker begins, and which.
        end_of_turn: The marker behind it.
        behind_end: Text behind that.
    """

    header: str
    markers: tuple[tuple[int, str], ...]
    end_of_turn: str
    behind_end: str


@dataclass(frozen=True, slots=True)
class PlainFrames:
    """A format of which everything is said by what stands around contents.

    Attributes:
        by_role: What stands around a message of each role that has a form.
        opening: The marker in front of a text; empty for none.
        closing: The marker behind it; empty for none.
        content: The content as it is written, from role and text; None if nothing changes.
    """

    by_role: Mapping[Role, Frame]
    opening: str = ""
    closing: str = ""
    content: Callable[[Role, str], str] | None = None


class PlainWriter:
    """Writes messages of a role and a text into flat texts.

    Args:
        frames: The format.
    """

    def __init__(self, frames: PlainFrames) -> None:
        self._frames = frames
        self._codes = {role: code for code, role in enumerate(frames.by_role)}
        self._headers = [frame.header for frame in frames.by_role.values()]
        self._ends = [f"{frame.end_of_turn}{frame.behind_end}" for frame in frames.by_role.values()]
        words: dict[str, int] = {}
        # Of each role: markers of a message as places from its first byte and, for the last, from its content's end.
        self._places = [
            [(place, words.setdefault(word, len(words))) for place, word in frame.markers]
            for frame in frames.by_role.values()
        ]
        self._end_words = [words.setdefault(frame.end_of_turn, len(words)) for frame in frames.by_role.values()]
        self._end_lengths = np.array([len(frame.end_of_turn) for frame in frames.by_role.values()], dtype=np.int64)
        self._opening, self._closing = (
            words.setdefault(word, len(words)) if word else -1 for word in (frames.opening, frames.closing)
        )
        self._words = tuple(words)

    def can_write(self, roles: Sequence[Role]) -> bool:
        """Whether there is a form for each of these roles."""
        return self._codes.keys() >= set(roles)

    def write(self, roles: Sequence[Role], contents: Sequence[str], num_messages: Sequence[int]) -> FlatTexts:
        """Write texts.

        Args:
            roles: Who speaks, of the messages of all texts, one text's behind another's.
            contents: What is said.
            num_messages: How many messages each text has; at least one.

        Returns:
            The texts, as the format's `render` writes each.
        """
        frames = self._frames
        if frames.content is not None:
            contents = list(map(frames.content, roles, contents))
        codes = [self._codes[role] for role in roles]
        headers, ends = self._headers, self._ends
        pieces = [f"{headers[code]}{content}{ends[code]}" for code, content in zip(codes, contents, strict=True)]
        texts: list[str] = []
        first = 0
        for num in num_messages:
            texts.append(f"{frames.opening}{''.join(pieces[first : first + num])}{frames.closing}")
            first += num
        codes_I = np.array(codes, dtype=np.int64)
        num_bytes_I = np.array([len(c) if c.isascii() else len(c.encode()) for c in contents], dtype=np.int64)
        return self._flat(texts, codes_I, num_bytes_I, np.array(num_messages, dtype=np.int64))

    def _flat(
        self, texts: Sequence[str], codes_I: Int64Array, num_bytes_I: Int64Array, num_messages_N: Int64Array
    ) -> FlatTexts:
        header_I, end_I = (
            np.array([len(text) for text in of_roles], dtype=np.int64)[codes_I]
            for of_roles in (self._headers, self._ends)
        )
        first_message_N = np.cumsum(num_messages_N) - num_messages_N
        turns_I = np.arange(len(codes_I)) - np.repeat(first_message_N, num_messages_N)
        whole_I = header_I + num_bytes_I + end_I
        behind_I = np.cumsum(whole_I)
        in_front_N = behind_I[first_message_N] - whole_I[first_message_N] - len(self._frames.opening)
        starts_I = behind_I - whole_I - np.repeat(in_front_N, num_messages_N)
        content_I = starts_I + header_I
        content_end_I = content_I + num_bytes_I
        answers_A = np.flatnonzero(codes_I == self._codes["assistant"])
        edges_A4 = np.empty((len(answers_A), 4), dtype=np.int64)
        edges_A4[:, 0] = content_I[answers_A]
        edges_A4[:, 1] = edges_A4[:, 2] = content_end_I[answers_A]
        edges_A4[:, 3] = content_end_I[answers_A] + self._end_lengths[self._codes["assistant"]]
        text_of_I = np.repeat(np.arange(len(num_messages_N)), num_messages_N)
        num_answers_N = np.bincount(text_of_I[answers_A], minlength=len(num_messages_N))
        markers_M, words_M, num_markers_N = self._markers(
            codes_I,
            starts_I,
            content_end_I,
            num_messages_N,
            ends_N=(content_end_I + end_I)[np.cumsum(num_messages_N) - 1],
        )
        return FlatTexts(
            texts=texts,
            data=[text.encode() for text in texts],
            markers_M=markers_M,
            words=self._words,
            words_M=words_M,
            num_markers_N=num_markers_N,
            edges_E=edges_A4.reshape(-1),
            turns_K=np.repeat(turns_I[answers_A], 2).astype(np.int32),
            is_end_K=np.tile(np.array([False, True]), len(answers_A)),
            weights_K=np.ones(2 * len(answers_A), dtype=np.float32),
            num_spans_N=2 * num_answers_N,
        )

    def _markers(
        self,
        codes_I: Int64Array,
        starts_I: Int64Array,
        content_end_I: Int64Array,
        num_messages_N: Int64Array,
        *,
        ends_N: Int64Array,
    ) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Places of all markers, which they are, and how many each text has."""
        num_I = np.array([len(places) + 1 for places in self._places], dtype=np.int64)[codes_I]
        num_more = (self._opening >= 0, self._closing >= 0)
        text_of_I = np.repeat(np.arange(len(num_messages_N)), num_messages_N)
        num_markers_N = np.bincount(text_of_I, weights=num_I, minlength=len(num_messages_N)).astype(np.int64)
        num_markers_N += sum(num_more)
        # A message's markers stand behind those of all before it, with the opening of its own text and the openings and
        # closings of the texts before.
        at_I = np.cumsum(num_I) - num_I + text_of_I * sum(num_more) + num_more[0]
        markers_M = np.empty(int(num_markers_N.sum()), dtype=np.int64)
        words_M = np.empty_like(markers_M)
        for code, places in enumerate(self._places):
            its_J = np.flatnonzero(codes_I == code)
            at_J = at_I[its_J]
            for number, (place, word) in enumerate(places):
                markers_M[at_J + number] = starts_I[its_J] + place
                words_M[at_J + number] = word
            markers_M[at_J + len(places)] = content_end_I[its_J]
            words_M[at_J + len(places)] = self._end_words[code]
        behind_N = np.cumsum(num_markers_N)
        if num_more[0]:
            markers_M[behind_N - num_markers_N], words_M[behind_N - num_markers_N] = 0, self._opening
        if num_more[1]:
            markers_M[behind_N - 1], words_M[behind_N - 1] = ends_N, self._closing
        return markers_M, words_M, num_markers_N


def byte_places(data: bytes, places: Sequence[int]) -> Sequence[int]:
    """Bytes that characters of a text begin with.

    Args:
        data: The text in UTF-8.
        places: Characters; the one behind the last stands for the end.

    Returns:
        The first byte of each.

    Examples:
        >>> byte_places("añb".encode(), [0, 1, 2, 3])
        [0, 1, 3, 4]
    """
    starts: npt.NDArray[Any] = np.flatnonzero((np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80)
    return [int(place) for place in np.append(starts, len(data))[list(places)]]
