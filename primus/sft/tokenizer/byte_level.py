# SPDX-License-Identifier: Apache-2.0
"""The engine of tiktoken-like encodings: each token has known bytes, and their lengths are the offsets."""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from primus.sft.tokenizer.base import Control, IntArray, SFTTokenizer


class ByteEncoding(Protocol):
    """What is used of `tiktoken.Encoding`."""

    name: str

    @property
    def n_vocab(self) -> int:
        """Largest id + 1."""
        ...

    @property
    def special_tokens_set(self) -> set[str]:
        """The texts of the control tokens."""
        ...

    def encode_single_token(self, text_or_bytes: str) -> int:
        """The id of a token."""
        ...

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of plain text."""
        ...

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The bytes of ids."""
        ...

    def decode_tokens_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each id."""
        ...


class ByteLevelTokenizer(SFTTokenizer):
    """A `tiktoken.Encoding`, or what looks like one.

    Args:
        encoding: The encoding. It cuts text at control tokens before anything else, so the stretches between them can
            be encoded one by one.
        name: Where it came from.
        bos_token: Text of the BOS token, or None.
        eos_token: Text of the EOS token, or None.
    """

    def __init__(
        self,
        encoding: ByteEncoding,
        *,
        name: str | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
    ) -> None:
        self._encoding = encoding
        self.name = name or encoding.name
        self.control_tokens = {
            token: encoding.encode_single_token(token) for token in sorted(encoding.special_tokens_set)
        }
        self.vocab_size = encoding.n_vocab
        self.bos_id = None if bos_token is None else self.control_tokens.get(bos_token)
        self.eos_id = None if eos_token is None else self.control_tokens.get(eos_token)
        self.pad_id = self.eos_id or 0
        self.adds_bos = False
        probe = encoding.encode_ordinary("The quick brown fox, 1234567890 times!\n\n\t caf\u00e9 \u4f60\u597d")
        facts = repr((self.name, self.vocab_size, sorted(self.control_tokens.items()), probe))
        self.fingerprint = hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()

    @property
    def engine_name(self) -> str:
        """What makes the ids."""
        return "tiktoken"

    def decode(self, ids: Sequence[int] | IntArray) -> str:
        """The text of ids; bytes that are no text become U+FFFD."""
        return self._encoding.decode_bytes([int(i) for i in ids]).decode(errors="replace")

    def _encode(self, text: str, controls: Sequence[Control]) -> tuple[IntArray, IntArray]:
        ids: list[int] = []
        done = 0
        for control in controls:
            ids += [*self._encoding.encode_ordinary(text[done : control.start]), control.id]
            done = control.end
        ids += self._encoding.encode_ordinary(text[done:])
        ids_T = np.array(ids, dtype=np.int64)
        lengths = [len(token) for token in self._encoding.decode_tokens_bytes(ids)]
        return ids_T, char_offsets(text, np.array(lengths, dtype=np.int64))

    def _encode_continuation(self, text: str) -> tuple[IntArray, IntArray]:
        return self._encode(text, [])


def char_offsets(text: str, lengths_T: IntArray) -> IntArray:
    """The characters `[start, end)` of tokens whose lengths in bytes are known, shape [T, 2].

    A token that holds part of a character's bytes is given that character whole.

    Args:
        text: The text.
        lengths_T: Bytes of each token; together they are the bytes of the text.

    Returns:
        Shape [T, 2].

    Examples:
        >>> char_offsets("a\u00e9b", np.array([2, 1, 1])).tolist()  # a and half of the accented e, its rest, b
        [[0, 2], [1, 2], [2, 3]]
    """
    offsets_T2 = np.empty((len(lengths_T), 2), dtype=np.int64)
    ends_T = np.cumsum(lengths_T)
    starts_T = ends_T - lengths_T
    if text.isascii():
        offsets_T2[:, 0], offsets_T2[:, 1] = starts_T, ends_T
    elif len(lengths_T):
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        char_of_byte = np.cumsum((data & 0xC0) != 0x80) - 1
        offsets_T2[:, 0], offsets_T2[:, 1] = char_of_byte[starts_T], char_of_byte[ends_T - 1] + 1
    return offsets_T2
