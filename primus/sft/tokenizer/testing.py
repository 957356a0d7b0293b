# SPDX-License-Identifier: Apache-2.0
"""A tokenizer small enough to see through, for worked examples."""

import re
from collections.abc import Sequence

from primus.sft.tokenizer.base import Control, IntArray, SFTTokenizer, as_arrays


class WordTokenizer(SFTTokenizer):
    """One token per word with the spaces behind it; an id is the number of characters. No control tokens."""

    def __init__(self) -> None:
        self.name = "words"
        self.vocab_size = 1000
        self.bos_id = self.eos_id = None
        self.pad_id = 0
        self.adds_bos = False
        self.control_tokens = {}
        self.fingerprint = "words"

    def decode(self, ids: Sequence[int] | IntArray) -> str:
        """As many letters as the ids count."""
        return "".join("x" * int(i) for i in ids)

    def _encode(self, text: str, controls: Sequence[Control]) -> tuple[IntArray, IntArray]:  # noqa: ARG002
        words = list(re.finditer(r"\S+\s*|\s+", text))
        return as_arrays([len(word.group()) for word in words], [word.span() for word in words])

    def _encode_continuation(self, text: str) -> tuple[IntArray, IntArray]:
        return self._encode(text, [])
