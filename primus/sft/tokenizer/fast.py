# SPDX-License-Identifier: Apache-2.0
"""The engine of Hugging Face `tokenizers`: a `tokenizer.json`, or a fast tokenizer of `transformers`."""

import hashlib
import json
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders

from primus.sft.formatters.flat_texts import FlatTexts
from primus.sft.tokenizer import shield
from primus.sft.tokenizer.base import (
    Control,
    Encoding,
    IntArray,
    MarkedText,
    SFTTokenizer,
    as_arrays,
    is_control_spelling,
)
from primus.sft.tokenizer.byte_level import char_offsets
from primus.sft.tokenizer.engine import FastEngine, proven_engine
from primus.sft.tokenizer.flat import ByteVocabulary, encode_plain_texts
from primus.sft.tokenizer.token_edges import FlatTokens, TokenWords, find_spans

# Long enough that the cost of a call does not count, short enough for the processor's caches.
_STRETCH_CHARS = 8192
# Building and proving the fast engine takes about as long as encoding this much without it.
_CHARS_BEFORE_ENGINE = 500_000


class FastTokenizer(SFTTokenizer):
    """A tokenizer of the `tokenizers` library, with offset mapping as the reference for everything else.

    Args:
        pipeline: The content of a `tokenizer.json`.
        name: Where it came from.
        bos_token: Text of the BOS token, or None.
        eos_token: Text of the EOS token, or None.
        pad_token: Text of the pad token, or None.
        extra_control_tokens: Tokens that are control tokens besides those that the file marks as special.
    """

    def __init__(
        self,
        pipeline: str,
        *,
        name: str,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        extra_control_tokens: Iterable[str] = (),
    ) -> None:
        self.name = name
        self._pipeline = pipeline
        self._special = (bos_token, eos_token, pad_token, tuple(extra_control_tokens))
        self._official = official = Tokenizer.from_str(pipeline)
        official.no_truncation()
        official.no_padding()
        first = official.encode("a", add_special_tokens=True).ids[:1]
        # A post-processor adds special tokens, which is decided elsewhere, and trims whitespace from offsets, which
        # loses where a token begins.
        official.post_processor = None
        special = {token for token in (bos_token, eos_token, pad_token, *self._special[3]) if token}
        added = official.get_added_tokens_decoder()
        self.control_tokens = {
            token.content: token_id
            for token_id, token in sorted(added.items())
            if token.special or token.content in special or is_control_spelling(token.content)
        }
        vocab = official.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max([*added, *vocab.values()])
        self.bos_id = None if bos_token is None else official.token_to_id(bos_token)
        self.eos_id = None if eos_token is None else official.token_to_id(eos_token)
        pad_id = None if pad_token is None else official.token_to_id(pad_token)
        self.pad_id = next((i for i in (pad_id, self.eos_id) if i is not None), 0)
        if self.bos_id is None and first and first[0] in self.control_tokens.values():
            self.bos_id = first[0]  # a file without a configuration: what it puts in front of a text says so
        self.adds_bos = self.bos_id is not None and first == [self.bos_id]
        self._is_control_V = np.zeros(self.vocab_size, dtype=bool)
        self._is_control_V[list(self.control_tokens.values())] = True
        unk = getattr(official.model, "unk_token", None)  # not every model type of the library has the attribute
        self._unk_token = unk if unk in self.control_tokens else "<unk>" if "<unk>" in self.control_tokens else None
        self._clean_cuts = {
            token_id for token_id, token in added.items() if not (token.lstrip or token.normalized or token.single_word)
        }
        self._num_chars = 0
        self._twins: dict[int, tuple[Tokenizer, Mapping[int, str]]] = {}
        self._continuations: dict[int, Tokenizer] = {}
        facts = repr((sorted(self.control_tokens.items()), self.bos_id, self.eos_id, self.pad_id))
        self.fingerprint = hashlib.blake2b((pipeline + facts).encode(), digest_size=16).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process builds the same from, sooner than from a folder of `transformers`."""
        others = {name: dict(getattr(self, name)) for name in ("chat_templates", "special_tokens")}
        return _rebuilt, (self._pipeline, self.name, *self._special, others)

    @cached_property
    def _token_bytes(self) -> list[bytes] | None:
        """The bytes of every id of a byte-level vocabulary; None for another."""
        if not isinstance(self._official.decoder, decoders.ByteLevel):
            return None
        vocab = self._official.get_vocab(with_added_tokens=True)
        return _token_bytes(vocab, self._official.get_added_tokens_decoder())

    @cached_property
    def _num_bytes_V(self) -> IntArray:
        return np.array([len(word) for word in self._token_bytes or ()], dtype=np.int64)

    @property
    def unknown_id(self) -> int:
        """The id of what the vocabulary lacks."""
        return self.control_tokens.get(self._unk_token or "", -1)

    @property
    def engine_name(self) -> str:
        """What makes the ids."""
        # The cached property, if it has been asked for.
        return "fastokens, proven equal to tokenizers" if self.__dict__.get("_engine") else "tokenizers"

    def decode(self, ids: Sequence[int] | IntArray) -> str:
        """The text of ids, control tokens included."""
        plain = ids.tolist() if isinstance(ids, np.ndarray) else ids
        text: str = self._official.decode(plain, skip_special_tokens=False)
        return text

    def decode_after(self, front: Sequence[int] | IntArray, ids: Sequence[int] | IntArray) -> str:
        """The text of ids behind others."""
        if self._token_bytes is None or not self._decodes_by_bytes:
            return super().decode_after(front, ids)
        plain = ids.tolist() if isinstance(ids, np.ndarray) else ids
        return b"".join(map(self._token_bytes.__getitem__, plain)).decode(errors="replace")

    def bytes_of(self, ids_T: IntArray) -> tuple[bytes, IntArray] | None:
        """The bytes of ids of a byte-level vocabulary."""
        if self._token_bytes is None or not self._decodes_by_bytes:
            return None
        ends_T = np.cumsum(self._byte_vocabulary.num_bytes_V[ids_T], dtype=np.int64)
        return self._byte_vocabulary.bytes_of(ids_T, ends_T).tobytes(), ends_T

    @cached_property
    def _decodes_by_bytes(self) -> bool:
        """Whether the library gives for every id by itself the text of the bytes that it is taken for here."""
        assert self._token_bytes is not None
        ids = [i for i in range(self.vocab_size) if self._official.id_to_token(i) is not None]
        texts = self._official.decode_batch([[i] for i in ids], skip_special_tokens=False)
        return all(text == self._token_bytes[i].decode(errors="replace") for i, text in zip(ids, texts, strict=True))

    def cuts_cleanly(self, word: str) -> bool:
        """Whether a control token is found in the text as it stands, before anything else happens to it."""
        return self.control_tokens.get(word) in self._clean_cuts

    def _encode(self, text: str, controls: Sequence[Control]) -> tuple[IntArray, IntArray]:
        ids_T, offsets_T2 = self._encode_by_bytes(text, controls) or _run(self._official, text)
        if self._are_exactly(controls, ids_T, offsets_T2, text):
            return ids_T, offsets_T2
        twin, spelling = self._twin(text)
        return _run(twin, shield.respell(text, controls, spelling))

    def warm_up(self) -> None:
        """Build and prove the fast engine, if there may be one, and meanwhile the tables that go with it."""
        if not isinstance(self._official.decoder, decoders.ByteLevel):
            return
        with ThreadPoolExecutor(1) as thread:
            engine = thread.submit(lambda: self._engine)
            _ = self._token_words
            if engine.result() is not None:
                self._num_chars = _CHARS_BEFORE_ENGINE

    def encode_plain(self, texts: Sequence[MarkedText]) -> list[Encoding | None]:
        """The encodings of texts in which nothing special happens."""
        self._num_chars += sum(len(marked.text) for marked in texts)
        if self._token_bytes is None or self._num_chars < _CHARS_BEFORE_ENGINE or self._engine is None:
            return super().encode_plain(texts)
        ids_T, first_N = self._engine.encode_all([marked.text for marked in texts])
        return encode_plain_texts(texts, ids_T.astype(np.int64), first_N, vocabulary=self._byte_vocabulary)

    def encode_flat(self, batch: FlatTexts) -> FlatTokens | None:
        """The tokens of many texts and of their spans, from the fast engine."""
        if self._token_bytes is None or self._token_words is None:
            return None
        self._num_chars += sum(map(len, batch.texts))
        if self._num_chars < _CHARS_BEFORE_ENGINE or self._engine is None:
            return None
        ids_T, token_bounds_N1 = self._engine.encode_all(batch.texts)
        return find_spans(batch, ids_T, token_bounds_N1, words=self._token_words)

    @cached_property
    def _token_words(self) -> TokenWords | None:
        return None if self._token_bytes is None else TokenWords(self._token_bytes, self.control_tokens)

    @cached_property
    def _byte_vocabulary(self) -> ByteVocabulary:
        assert self._token_bytes is not None
        return ByteVocabulary(self._token_bytes, self.control_tokens)

    def _locate(self, ids_T: IntArray, offsets_T2: IntArray, wanted_K3: IntArray) -> IntArray:
        """The index of each control token; where all control tokens are the wanted ones, a look at a table tells."""
        found_K = np.flatnonzero(self._is_control_V[ids_T])
        if len(found_K) == len(wanted_K3):
            is_wanted = ids_T[found_K] == wanted_K3[:, 2]
            if is_wanted.all() and (offsets_T2[found_K] == wanted_K3[:, :2]).all():
                return found_K
        return super()._locate(ids_T, offsets_T2, wanted_K3)

    def _encode_by_bytes(self, text: str, controls: Sequence[Control]) -> tuple[IntArray, IntArray] | None:
        """The encoding from the bytes of the tokens, or None where these are not the text's.

        The library's own offset mapping, and the library itself, take longer per token the longer a text is. A
        byte-level vocabulary needs neither: the tokens' bytes are the text's bytes, which is checked, so their lengths
        are the offsets; and control tokens cut the text before anything else happens to it, so it is encoded in
        stretches.
        """
        if self._token_bytes is None:
            return None
        cuts = [0]
        for control in controls:
            if control.id in self._clean_cuts and control.start - cuts[-1] >= _STRETCH_CHARS:
                cuts.append(control.start)
        stretches = [text[start:end] for start, end in pairwise([*cuts, len(text)])]
        ids = self._ids(stretches)
        if b"".join(map(self._token_bytes.__getitem__, ids)) != text.encode():
            return None  # a normalizer has changed the text, or a control token has taken whitespace in
        ids_T = np.array(ids, dtype=np.int64)
        return ids_T, char_offsets(text, self._num_bytes_V[ids_T])

    def _ids(self, stretches: Sequence[str]) -> list[int]:
        """The ids of stretches of text, from the fast engine once enough is encoded to make up for building it."""
        self._num_chars += sum(map(len, stretches))
        if self._num_chars > _CHARS_BEFORE_ENGINE and self._engine is not None:
            return list(chain.from_iterable(map(self._engine.encode, stretches)))
        encodings = self._official.encode_batch_fast(stretches, add_special_tokens=False)
        return list(chain.from_iterable(encoding.ids for encoding in encodings))

    @cached_property
    def _engine(self) -> FastEngine | None:
        """The fast engine, if there is one that is proven for this tokenizer."""
        if os.environ.get("PRIMUS_FAST_TOKENIZER", "1") == "0":
            return None
        return proven_engine(
            self._pipeline, reference=self._reference_ids, control_tokens=self.control_tokens, name=self.name
        )

    def _reference_ids(self, text: str) -> list[int]:
        [encoding] = self._official.encode_batch_fast([text], add_special_tokens=False)  # without offsets
        ids: list[int] = encoding.ids
        return ids

    def _encode_continuation(self, text: str) -> tuple[IntArray, IntArray]:
        if self._goes_on_as_it_begins and not any(word in text for word in self.control_tokens):
            return _run(self._official, text)
        area = shield.free_area(text, name=self.name)
        if area not in self._continuations:
            twin = self._shielded(self._spelling(area))
            self._continuations[area] = Tokenizer.from_str(json.dumps(shield.continuing(twin)))
        return _run(self._continuations[area], text)

    @cached_property
    def _goes_on_as_it_begins(self) -> bool:
        """Whether nothing is put in front of a text, so that a continuation needs no tokenizer of its own."""
        steps = {"normalizer": self._official.normalizer, "pre_tokenizer": self._official.pre_tokenizer}
        pipeline = {name: None if step is None else json.loads(step.__getstate__()) for name, step in steps.items()}
        return shield.continuing(pipeline) == pipeline

    def _are_exactly(self, controls: Sequence[Control], ids_T: IntArray, offsets_T2: IntArray, text: str) -> bool:
        """Whether the control tokens in an encoding are the intended ones."""
        at = np.flatnonzero(self._is_control_V[ids_T])
        found = list(zip(ids_T[at].tolist(), *offsets_T2[at].T.tolist(), strict=True))
        if self._unk_token is not None:
            # An unknown character is no control token, unless the text spells it out.
            unk_id = self.control_tokens[self._unk_token]
            found = [(i, a, b) for i, a, b in found if i != unk_id or text[a:b].strip() == self._unk_token]
        return len(found) == len(controls) and all(
            i == control.id and a <= control.start and b >= control.end
            for (i, a, b), control in zip(found, controls, strict=True)
        )

    def _twin(self, text: str) -> tuple[Tokenizer, Mapping[int, str]]:
        """A shielded twin whose private characters the text does not use, and its spelling by id."""
        area = shield.free_area(text, name=self.name)
        if area not in self._twins:
            by_text = self._spelling(area)
            twin = Tokenizer.from_str(json.dumps(self._shielded(by_text)))
            self._twins[area] = (twin, {self.control_tokens[word]: private for word, private in by_text.items()})
        return self._twins[area]

    def _spelling(self, area: int) -> dict[str, str]:
        return {
            word: shield.private_spelling(index, len(word), area=area) for index, word in enumerate(self.control_tokens)
        }

    def _shielded(self, spelling: Mapping[str, str]) -> dict[str, Any]:
        normalizer = self._official.normalizer
        is_removed = normalizer is not None and any(
            word not in normalizer.normalize_str(word) for word in spelling.values()
        )
        return shield.shielded(self._json, spelling, before_normalizer=is_removed)

    @cached_property
    def _json(self) -> dict[str, Any]:
        return shield.plain_pipeline(json.loads(self._pipeline))


def _rebuilt(
    pipeline: str,
    name: str,
    bos_token: str | None,
    eos_token: str | None,
    pad_token: str | None,
    extra_control_tokens: tuple[str, ...],
    others: Mapping[str, Mapping[str, str]],
) -> FastTokenizer:
    tokenizer = FastTokenizer(
        pipeline, name=name, bos_token=bos_token, eos_token=eos_token, pad_token=pad_token,
        extra_control_tokens=extra_control_tokens,
    )  # fmt: skip
    tokenizer.chat_templates, tokenizer.special_tokens = others["chat_templates"], others["special_tokens"]
    return tokenizer


def _token_bytes(vocab: Mapping[str, int], added: Container[int]) -> list[bytes]:
    """The bytes of every id of a byte-level vocabulary."""
    # The alphabet's characters to those of Latin-1, which are bytes, and all other characters of Latin-1 to one beyond.
    to_latin_1 = dict.fromkeys(range(256), "\uffff")
    to_latin_1 |= {ord(character): chr(byte) for byte, character in byte_alphabet().items()}
    table = [b""] * (1 + max(vocab.values()))
    for word, token_id in vocab.items():
        if token_id not in added:
            try:
                table[token_id] = word.translate(to_latin_1).encode("latin-1")
                continue
            except UnicodeEncodeError:
                pass
        table[token_id] = word.encode()
    return table


def byte_alphabet() -> dict[int, str]:
    """The character that byte-level vocabularies write for each byte (GPT-2's `bytes_to_unicode`).

    Returns:
        A printable character for each of the 256 bytes.

    Examples:
        >>> byte_alphabet()[ord("A")], byte_alphabet()[ord(" ")]
        ('A', 'Ġ')
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _run(tokenizer: Tokenizer, text: str) -> tuple[IntArray, IntArray]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return as_arrays(encoding.ids, encoding.offsets)
