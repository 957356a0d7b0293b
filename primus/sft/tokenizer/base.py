# SPDX-License-Identifier: Apache-2.0
"""What every tokenizer gives here: ids with the characters they stand for, and control tokens only where asked.

T: tokens of a text. K: control tokens in it. Offsets are characters `[start, end)` of the text, shape [T, 2].
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from primus.errors import TokenizerError

if TYPE_CHECKING:
    from primus.sft.formatters.flat_texts import FlatTexts
    from primus.sft.tokenizer.token_edges import FlatTokens

IntArray = npt.NDArray[np.int64]

# Some vocabularies hold chat markers as ordinary added tokens or user-defined symbols; by their spelling they are
# control tokens all the same. `<think>` or `<tool_call>` are not: they are words that a model writes.
_CONTROL_SPELLING = re.compile(
    r"<[|\uff5c].*[|\uff5c]>|</?s>|<(pad|unk|bos|eos|mask|start_of_turn|end_of_turn)>|\[/?(INST|SYSTEM_PROMPT)\]",
    re.DOTALL,
)


def is_control_spelling(text: str) -> bool:
    """Whether a token's text is that of a control token.

    Args:
        text: The text of a token.

    Returns:
        True for the chat markers and sentence marks of known vocabularies.

    Examples:
        >>> [is_control_spelling(text) for text in ("<|im_end|>", "</s>", "<think>")]
        [True, True, False]
    """
    return _CONTROL_SPELLING.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Control:
    """A control token at its place in a text: characters `[start, end)`, and the id it gets."""

    start: int
    end: int
    id: int


class MarkedText(NamedTuple):
    """A text to encode."""

    text: str
    """The text."""
    markers: Sequence[tuple[int, int]]
    """Characters `[start, end)` where a control token may stand, in order."""
    spans: Sequence[tuple[int, int]]
    """Disjoint characters `[start, end)`, in order, whose edges no token may cross."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """A tokenized text.

    Attributes:
        ids_T: Token ids.
        offsets_T2: Characters `[start, end)` of each token. Starts and ends never decrease; the tokens of one character
            (bytes of an emoji) share its range; a character may have no token where the tokenizer is lossy.
        num_splits: Places where a token would have crossed the edge of a span and the text was cut.
    """

    ids_T: IntArray
    offsets_T2: IntArray
    num_splits: int = 0


class SFTTokenizer(ABC):
    """A tokenizer that says which characters each token stands for.

    Attributes:
        name: Where it came from, for messages.
        vocab_size: Largest id + 1; the rows that an embedding needs.
        bos_id: Id of the token that begins a text, or None.
        eos_id: Id of the token that ends a text, or None.
        pad_id: Id to fill padding with. Padding is masked by position, so any id will do: the pad token, else EOS,
            else 0.
        adds_bos: Whether the tokenizer begins a text with BOS by itself.
        control_tokens: Text of each control token, with its id.
        fingerprint: Hash of everything that the ids depend on.
        chat_templates: The chat templates that came with it, by name; the usual one is `default`.
        special_tokens: Texts of special tokens by the names that chat templates have for them: `bos_token` and so on.
    """

    name: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    adds_bos: bool
    control_tokens: Mapping[str, int]
    fingerprint: str
    chat_templates: Mapping[str, str] = MappingProxyType({})
    special_tokens: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def decode(self, ids: Sequence[int] | IntArray) -> str:
        """The text of ids, control tokens included, nothing cleaned up."""

    @abstractmethod
    def _encode(self, text: str, controls: Sequence[Control]) -> tuple[IntArray, IntArray]:
        """Ids and offsets of a text in which exactly `controls` are control tokens."""

    @abstractmethod
    def _encode_continuation(self, text: str) -> tuple[IntArray, IntArray]:
        """Ids and offsets of plain text that goes on from other text: no control tokens, no prefix space."""

    @property
    def unknown_id(self) -> int:
        """The id of what the vocabulary lacks; -1 if it lacks nothing."""
        return self.control_tokens.get("<unk>", -1)

    @property
    def engine_name(self) -> str:
        """What makes the ids, for people."""
        return type(self).__name__

    @property
    def eos_token(self) -> str:
        """Text of the EOS token; empty if there is none."""
        return next((text for text, token_id in self.control_tokens.items() if token_id == self.eos_id), "")

    def decode_after(self, front: Sequence[int] | IntArray, ids: Sequence[int] | IntArray) -> str:
        """The text of ids behind others, as a server streams them.

        By themselves, ids may lose a space at the beginning of a text.

        Args:
            front: The ids in front of them, of which the last one is enough.
            ids: The ids.

        Returns:
            What the text gains by them.
        """
        head = [int(i) for i in front[-1:]]
        return self.decode([*head, *(int(i) for i in ids)])[len(self.decode(head)) :]

    def bytes_of(self, ids_T: IntArray) -> tuple[bytes, IntArray] | None:  # noqa: ARG002
        """The bytes that ids stand for, one after another, and where those of each id end; faster than decoding.

        Args:
            ids_T: The ids.

        Returns:
            The bytes and their ends; None where ids do not stand for bytes of their own.
        """
        return None

    def given_back(self, text: str, *, behind: str = "") -> str:
        """What a lossy tokenizer gives back for plain text that goes on from other text.

        Args:
            text: The text.
            behind: The control token that it stands behind; some vocabularies put a space in front of a text there.

        Returns:
            The text itself, if the tokenizer loses nothing of it and adds nothing.
        """
        if behind in self.control_tokens:
            ids_T = self.encode(
                behind + text, markers=[(0, len(behind))], spans=[(len(behind), len(behind + text))]
            ).ids_T
            return self.decode_after(ids_T[:1], ids_T[1:])
        front_T, _ = self._encode_continuation("a")
        ids_T, _ = self._encode_continuation(text)
        return self.decode_after(front_T, ids_T)

    def cuts_cleanly(self, word: str) -> bool:  # noqa: ARG002
        """Whether a control token cuts a text so that what stands behind it has no effect on what stands before it.

        Args:
            word: The control token's text.

        Returns:
            False where that is not known.
        """
        return False

    def warm_up(self) -> None:  # noqa: B027  # most have nothing to load
        """Load now what is otherwise loaded when it pays, after some texts; processes that are forked then share it."""

    def encode_plain(self, texts: Sequence[MarkedText]) -> list[Encoding | None]:
        """The encodings of texts in which nothing special happens, in less time than one by one.

        Args:
            texts: The texts.

        Returns:
            For each text what `encode` gives, or None where only `encode` can tell.
        """
        return [None] * len(texts)

    def encode_flat(self, batch: "FlatTexts") -> "FlatTokens | None":  # noqa: ARG002
        """The tokens of many texts and of their spans, as flat arrays.

        Args:
            batch: The texts.

        Returns:
            The tokens; None where this tokenizer has no faster way than `encode`.

        Raises:
            EngineError: If one of the texts was to be compared with the reference, which gives other ids.
        """
        return None

    def encode(
        self,
        text: str,
        *,
        markers: Sequence[tuple[int, int]] = (),
        spans: Sequence[tuple[int, int]] = (),
    ) -> Encoding:
        """Tokenize a text in one pass.

        Args:
            text: The text; no BOS or EOS is added.
            markers: Characters `[start, end)` where a control token may stand, in order. Elsewhere the text of a
                control token is plain text. A marker that is no control token of this tokenizer is plain text, too.
            spans: Disjoint characters `[start, end)`, in order, whose edges no token may cross.

        Returns:
            Where no token crosses the edge of a span, and no control token's text stands outside the markers, the ids
            are those of tokenizing the whole text at once. A token across an edge is re-encoded in parts, cut there,
            each part as the continuation of the one before.

        Raises:
            TokenizerError: If the tokenizer cannot encode the text under these conditions.

        Examples:
            With one token per word, and "ab" | "cd" a span's edge, the word is cut:

            >>> from primus.sft.tokenizer.testing import WordTokenizer
            >>> encoding = WordTokenizer().encode("x abcd", spans=[(0, 4)])
            >>> encoding.offsets_T2.tolist(), encoding.num_splits
            ([[0, 2], [2, 4], [4, 6]], 1)
        """
        controls = [
            Control(start, end, token_id)
            for start, end in markers
            if (token_id := self.control_tokens.get(text[start:end])) is not None
        ]
        wanted_K3 = np.array([(c.start, c.end, c.id) for c in controls], dtype=np.int64).reshape(-1, 3)
        edges = np.array(spans, dtype=np.int64).reshape(-1)
        ids_T, offsets_T2 = self._encode(text, controls)
        control_K = self._locate(ids_T, offsets_T2, wanted_K3)
        cuts = _swallowed(offsets_T2[control_K], wanted_K3[:, :2], spans)
        offsets_T2[control_K] = wanted_K3[:, :2]
        offsets_T2 = _monotone(offsets_T2)
        crossed = crossed_edges(offsets_T2, edges)
        if not len(cuts) and not len(crossed):
            return Encoding(ids_T, offsets_T2)
        edges, cuts = np.unique(edges), np.union1d(cuts, crossed)
        whole_T, whole_offsets_T2 = ids_T, offsets_T2
        while True:
            ids_T, offsets_T2 = self._cut(text, whole_T, whole_offsets_T2, control_K, controls, cuts)
            crossed = np.setdiff1d(crossed_edges(offsets_T2, edges), cuts)
            if not len(crossed):
                return Encoding(ids_T, offsets_T2, num_splits=len(cuts))
            cuts = np.union1d(cuts, crossed)

    def _locate(self, ids_T: IntArray, offsets_T2: IntArray, wanted_K3: IntArray) -> IntArray:
        """The index of each control token among the tokens; they must be there, in order, at their places."""
        found_K = np.flatnonzero(np.isin(ids_T, wanted_K3[:, 2]))
        at_place = len(found_K) == len(wanted_K3) and bool(
            np.all(ids_T[found_K] == wanted_K3[:, 2])
            and np.all(offsets_T2[found_K, 0] <= wanted_K3[:, 0])
            and np.all(offsets_T2[found_K, 1] >= wanted_K3[:, 1])
        )
        if not at_place:
            raise TokenizerError(
                f"{self.name}: {len(wanted_K3)} markers are control tokens, but its encoding has {len(found_K)} of"
                " them, or has them elsewhere; the tokenizer changes its own control tokens, so use another one"
            )
        return found_K

    def _cut(
        self,
        text: str,
        ids_T: IntArray,
        offsets_T2: IntArray,
        control_K: IntArray,
        controls: Sequence[Control],
        cuts: IntArray,
    ) -> tuple[IntArray, IntArray]:
        """Encode again, in parts, each stretch between control tokens that has a cut in it."""
        pieces_ids: list[IntArray] = []
        pieces_offsets: list[IntArray] = []
        # Stretch i lies before control i; its tokens are [first, last).
        begins = [0, *(control.end for control in controls)]
        ends = [*(control.start for control in controls), len(text)]
        firsts = [0, *(t + 1 for t in control_K.tolist())]
        lasts = [*control_K.tolist(), len(ids_T)]
        done = 0
        for i in np.unique(np.searchsorted(np.array(ends), cuts)):
            begin, end = begins[i], ends[i]
            inside = [int(cut) for cut in cuts[(cuts >= begin) & (cuts <= end)]]
            bounds = [begin, *inside, end]
            pieces_ids.append(ids_T[done : firsts[i]])
            pieces_offsets.append(offsets_T2[done : firsts[i]])
            for part, (a, b) in enumerate(pairwise(bounds)):
                if a == b:
                    continue
                if part:
                    part_ids, part_offsets = self._encode_continuation(text[a:b])
                    part_offsets = part_offsets + a
                elif i == 0:
                    part_ids, part_offsets = self._encode(text[a:b], [])
                    part_offsets = part_offsets + a
                else:
                    # The control token in front decides about a prefix space, so it is encoded along.
                    front = controls[i - 1]
                    shift = front.start
                    moved = Control(0, front.end - shift, front.id)
                    part_ids, part_offsets = self._encode(text[shift:b], [moved])
                    [at] = self._locate(part_ids, part_offsets, np.array([[moved.start, moved.end, moved.id]]))
                    part_ids, part_offsets = part_ids[at + 1 :], part_offsets[at + 1 :] + shift
                pieces_ids.append(part_ids)
                pieces_offsets.append(_monotone(np.clip(part_offsets, a, b)))
            done = lasts[i]
        pieces_ids.append(ids_T[done:])
        pieces_offsets.append(offsets_T2[done:])
        return np.concatenate(pieces_ids), np.concatenate(pieces_offsets)


def _monotone(offsets_T2: IntArray) -> IntArray:
    """Offsets whose starts and ends never decrease; a normalizer that reorders combining marks gives others."""
    monotone_T2 = np.empty_like(offsets_T2)
    np.minimum.accumulate(offsets_T2[::-1, 0], out=monotone_T2[::-1, 0])
    np.maximum.accumulate(offsets_T2[:, 1], out=monotone_T2[:, 1])
    return monotone_T2


def crossed_edges(offsets_T2: IntArray, edges: IntArray) -> IntArray:
    """The edges that lie inside a token: its start before, its end behind."""
    if not len(offsets_T2):
        return edges[:0]
    # Among the tokens that start before the edge the last one reaches furthest.
    before = np.searchsorted(offsets_T2[:, 0], edges) - 1
    crossed = (before >= 0) & (offsets_T2[np.maximum(before, 0), 1] > edges)
    at_fault: IntArray = edges[crossed]
    return at_fault


def _swallowed(taken_K2: IntArray, places_K2: IntArray, spans: Sequence[tuple[int, int]]) -> IntArray:
    """Cuts where a control token took in whitespace across the edge of a span (its `lstrip` or `rstrip`).

    Whitespace in front of the token goes back to the text that it ends: an answer, or the header of an empty one. Of
    the whitespace behind it a span gets its own; what stands before the span stays taken in, as in the prompt alone.
    """
    if not spans or np.array_equal(taken_K2, places_K2):
        return np.zeros(0, dtype=np.int64)
    starts = np.array([start for start, _ in spans], dtype=np.int64)
    edges = np.unique(np.array(spans, dtype=np.int64))
    in_front_K = np.searchsorted(edges, taken_K2[:, 0], "right") < np.searchsorted(edges, places_K2[:, 0], "right")
    next_start_K = np.append(starts, np.iinfo(np.int64).max)[np.searchsorted(starts, places_K2[:, 1])]
    behind_K = next_start_K < taken_K2[:, 1]
    return np.union1d(places_K2[in_front_K, 0], next_start_K[behind_K])


def as_arrays(ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> tuple[IntArray, IntArray]:
    """Ids and offsets as arrays of shape [T] and [T, 2]."""
    return np.array(ids, dtype=np.int64), np.array(offsets, dtype=np.int64).reshape(-1, 2)
