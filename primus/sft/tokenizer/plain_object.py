# SPDX-License-Identifier: Apache-2.0
"""The engine of last resort: an object that can only encode and decode, with offsets recovered by decoding."""

import hashlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from primus.errors import ConversationError, TokenizerError
from primus.sft.formatters import IM_END, IM_START
from primus.sft.tokenizer.base import Control, IntArray, SFTTokenizer, as_arrays, is_control_spelling

# The longest run of tokens that decodes to text only together: the bytes of a long grapheme.
_MAX_UNDECIDED = 32
# What may be the text of a control token, wherever it stands.
_CONTROL_TEXT = re.compile(r"<[|\uff5c][^<>]{1,80}?[|\uff5c]>|</?[a-z_]{1,20}>|\[/?[A-Z_]{1,20}\]")
_ANCHORS = ("\n", "a\n", ".\n", "a")


class ObjectTokenizer(SFTTokenizer):
    """Any object with `encode` (or `tokenize`) and `decode` (or `detokenize`): Megatron's tokenizers, slow ones.

    Offsets come from decoding token by token and are accepted only if the pieces spell the text; a group of tokens that
    decodes only together shares its characters. What decodes to another text is refused, never approximated.

    Args:
        tokenizer: The object.
        name: Where it came from.

    Raises:
        TokenizerError: If a method is missing or gives something else than ids and text.
    """

    def __init__(self, tokenizer: Any, *, name: str | None = None) -> None:
        self.name = name or type(tokenizer).__name__
        self._encode_ids = _find(tokenizer, ("encode", "tokenize", "text_to_ids"), self.name, "ids of a text")
        self._decode_ids = _find(tokenizer, ("decode", "detokenize", "ids_to_text"), self.name, "text of ids")
        self._prefix, self._suffix = self._added()
        self.control_tokens = {}
        for token in dict.fromkeys([*_strings(tokenizer, "all_special_tokens"), IM_START, IM_END]):
            ids = self._ids(token)
            if len(ids) == 1:
                self.control_tokens[token] = ids[0]
        self.bos_id = _first_int(tokenizer, ("bos_token_id", "bos_id", "bos"))
        self.eos_id = _first_int(tokenizer, ("eos_token_id", "eos_id", "eos", "eod"))
        pad_id = _first_int(tokenizer, ("pad_token_id", "pad_id", "pad"))
        self.pad_id = next((i for i in (pad_id, self.eos_id) if i is not None), 0)
        size = _first_int(tokenizer, ("vocab_size", "n_vocab"))
        if size is None:
            raise TokenizerError(f"{self.name}: has no vocab_size, so the model's embedding can't be sized; add one")
        # The `vocab_size` of transformers leaves added tokens out; its length does not.
        size = max(size, _first_int(tokenizer, ("__len__",)) or 0)
        known = [i for i in (self.bos_id, self.eos_id, self.pad_id, *self.control_tokens.values()) if i is not None]
        self.vocab_size = max(size, *(i + 1 for i in known))
        self.adds_bos = self.bos_id is not None and self._prefix == [self.bos_id]
        self._control_ids = set(self.control_tokens.values())
        self._is_token: dict[str, bool] = {}
        probe = self._ids("The quick brown fox, 1234567890 times!\n\n\t caf\u00e9 \u4f60\u597d")
        facts = repr((self.name, self.vocab_size, sorted(self.control_tokens.items()), probe))
        self.fingerprint = hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()

    def decode(self, ids: Sequence[int] | IntArray) -> str:
        """The text of ids, as the object gives it."""
        return str(self._decode_ids([int(i) for i in ids]))

    def _added(self) -> tuple[list[int], list[int]]:
        """What the object puts before and behind every text by itself."""
        empty, some = self._raw_ids(""), self._raw_ids("a")
        for k in range(len(empty), -1, -1):
            prefix, suffix = empty[:k], empty[k:]
            if some[: len(prefix)] == prefix and (not suffix or some[-len(suffix) :] == suffix):
                return prefix, suffix
        raise TokenizerError(
            f"{self.name}: adds tokens to a text by itself that can't be told from the text's own; turn that off"
        )

    def _raw_ids(self, text: str) -> list[int]:
        try:
            ids = self._encode_ids(text)
            ids = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        except (TypeError, ValueError, LookupError, NotImplementedError) as exc:
            raise TokenizerError(f"{self.name}: fails to encode {text[:20]!r} ({exc}); use another tokenizer") from exc
        if not all(isinstance(i, int | np.integer) for i in ids):
            raise TokenizerError(f"{self.name}: encoding gives {type(ids[0]).__name__}, not token ids; wrap it")
        return [int(i) for i in ids]

    def _ids(self, text: str) -> list[int]:
        ids = self._raw_ids(text)
        return ids[len(self._prefix) : len(ids) - len(self._suffix)]

    def _encode(self, text: str, controls: Sequence[Control]) -> tuple[IntArray, IntArray]:
        ids = self._ids(text)
        ids_T, offsets_T2 = as_arrays(ids, self._offsets(text, ids))
        if max(ids, default=0) >= self.vocab_size:
            raise TokenizerError(
                f"{self.name}: gives the id {max(ids)}, but its vocab_size is {self.vocab_size}; repair it"
            )
        found = [(ids[t], int(offsets_T2[t, 0])) for t in range(len(ids)) if ids[t] in self._control_ids]
        if found != [(control.id, control.start) for control in controls] or self._spells_a_token(text, controls):
            raise ConversationError(
                f"{self.name}: a message spells out a control token, and this tokenizer can't encode that as plain"
                " text;"
                " use its tokenizer.json or .model file, or drop the row",
                reason="control_text",
            )
        return ids_T, offsets_T2

    def _spells_a_token(self, text: str, controls: Sequence[Control]) -> bool:
        """Whether a message has a word that looks like a control token and is one token; the object tells no more."""
        meant = {control.start for control in controls}
        words = {match.group() for match in _CONTROL_TEXT.finditer(text) if match.start() not in meant}
        for word in words - self._is_token.keys():
            self._is_token[word] = is_control_spelling(word) and len(self._ids(word)) == 1
        return any(self._is_token[word] for word in words)

    def _encode_continuation(self, text: str) -> tuple[IntArray, IntArray]:
        for anchor in _ANCHORS:
            front, ids = self._ids(anchor), self._ids(anchor + text)
            if ids[: len(front)] == front:
                offsets = self._offsets(anchor + text, ids)[len(front) :]
                shift = len(anchor)
                return as_arrays(ids[len(front) :], [(a - shift, b - shift) for a, b in offsets])
        raise TokenizerError(
            f"{self.name}: can't encode {text[:20]!r} as the continuation of other text; use another one"
        )

    def _offsets(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        offsets: list[tuple[int, int]] = []
        position, done, group = 0, [], []  # type: int, list[int], list[int]
        for token_id in ids:
            group.append(token_id)
            before, after = self.decode(done), self.decode([*done, *group])
            piece = after[len(before) :]
            complete = piece and after.startswith(before) and text.startswith(piece, position)
            if complete:
                end = position + len(piece)
                offsets += [(position, end)] * len(group)
                position, done, group = end, group, []
            elif len(group) > _MAX_UNDECIDED:
                break
        if group or position != len(text):
            raise TokenizerError(
                f"{self.name}: offsets can't be recovered, because decoding does not give the text back from character"
                f" {position} on ({text[position : position + 20]!r}); use its tokenizer.json or .model file"
            )
        return offsets


def _find(tokenizer: Any, names: Sequence[str], name: str, what: str) -> Callable[[Any], Any]:
    for method_name in names:
        method = getattr(tokenizer, method_name, None)
        if callable(method):
            options = {
                "add_special_tokens": False,
                "skip_special_tokens": False,
                "clean_up_tokenization_spaces": False,
                "spaces_between_special_tokens": False,
            }
            taken = _parameters(method)
            accepted = {key: value for key, value in options.items() if key in taken}
            return lambda value: method(value, **accepted)
    raise TokenizerError(f"{name}: has none of the methods {', '.join(names)} that give the {what}; wrap it")


def _parameters(method: Callable[..., Any]) -> set[str]:
    try:
        parameters = inspect.signature(method).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return set()
    return set(parameters)


def _strings(tokenizer: Any, name: str) -> list[str]:
    value = getattr(tokenizer, name, None)
    return [token for token in value if isinstance(token, str)] if isinstance(value, list | tuple | set) else []


def _first_int(tokenizer: Any, names: Sequence[str]) -> int | None:
    for name in names:
        try:
            value = getattr(tokenizer, name, None)
        except (NotImplementedError, KeyError):  # Megatron's base class raises for what a tokenizer lacks
            continue
        if callable(value):
            # `bos_id()` is a number of SentencePiece, but `pad()` pads a batch of transformers.
            value = None if _parameters(value) else value()
        if isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0:
            return int(value)
    return None
