# SPDX-License-Identifier: Apache-2.0
"""The engine of SentencePiece: a `.model` file, with the library's own offsets."""

import hashlib
from collections.abc import Sequence

import numpy as np
import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as proto

from primus.errors import TokenizerError
from primus.sft.tokenizer import shield
from primus.sft.tokenizer.base import Control, IntArray, SFTTokenizer, as_arrays, is_control_spelling

_PIECE = proto.ModelProto.SentencePiece


class SentencePieceTokenizer(SFTTokenizer):
    """A SentencePiece model.

    Control symbols of a `.model` are never found in text, and user-defined symbols always; neither is what training
    needs. All encoding therefore runs on a shielded twin (see `shield`), which finds both where they are meant.

    Args:
        model: The serialized model.
        name: Where it came from.

    Raises:
        TokenizerError: If the bytes are no SentencePiece model.
    """

    def __init__(self, model: bytes, *, name: str) -> None:
        self.name = name
        self._proto = proto.ModelProto()
        try:
            if self._proto.ParseFromString(model) == 0:  # bytes read; the library takes an empty model without a word
                raise DecodeError("the file is empty")
            self._official = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (DecodeError, RuntimeError) as exc:
            raise TokenizerError(
                f"{name}: is no SentencePiece model; a tiktoken file needs its tokenizer.json instead"
            ) from exc
        self.control_tokens = {
            piece.piece: i
            for i, piece in enumerate(self._proto.pieces)
            if piece.type in {_PIECE.CONTROL, _PIECE.UNKNOWN}
            or (piece.type == _PIECE.USER_DEFINED and is_control_spelling(piece.piece))
        }
        self.vocab_size = len(self._proto.pieces)
        self.bos_id, self.eos_id, pad_id = (
            i if i >= 0 else None for i in (self._official.bos_id(), self._official.eos_id(), self._official.pad_id())
        )
        self.pad_id = next((i for i in (pad_id, self.eos_id) if i is not None), 0)
        self.adds_bos = False
        self.fingerprint = hashlib.blake2b(model, digest_size=16).hexdigest()
        self._twins: dict[int, tuple[sentencepiece.SentencePieceProcessor, dict[int, str]]] = {}
        self._continuations: dict[int, sentencepiece.SentencePieceProcessor] = {}

    @property
    def engine_name(self) -> str:
        """What makes the ids."""
        return "sentencepiece"

    def decode(self, ids: Sequence[int] | IntArray) -> str:
        """The text of ids, control tokens included."""
        # SentencePiece leaves control symbols out of decoded text, so they are put between the decoded stretches.
        words = {i: word for word, i in self.control_tokens.items()}
        parts: list[str] = []
        stretch: list[int] = []
        for token_id in [*(int(i) for i in ids), -1]:
            if token_id == -1 or token_id in words:
                parts += [self._official.decode(stretch), words.get(token_id, "")]
                stretch = []
            else:
                stretch.append(token_id)
        return "".join(parts)

    def _encode(self, text: str, controls: Sequence[Control]) -> tuple[IntArray, IntArray]:
        twin, spelling = self._twin(shield.free_area(text, name=self.name))
        ids_T, offsets_T2 = _run(twin, shield.respell(text, controls, spelling))
        if controls and controls[0].start == 0:
            # The library puts its dummy prefix in front of a control token, where no tokenizer of a chat model has one.
            first = int(np.argmax(ids_T == controls[0].id))
            ids_T, offsets_T2 = ids_T[first:], offsets_T2[first:]
        return ids_T, offsets_T2

    def _encode_continuation(self, text: str) -> tuple[IntArray, IntArray]:
        area = shield.free_area(text, name=self.name)
        if area not in self._continuations:
            model, _ = self._shielded(area)
            model.normalizer_spec.add_dummy_prefix = False
            self._continuations[area] = _processor(model)
        return _run(self._continuations[area], text)

    def _twin(self, area: int) -> tuple[sentencepiece.SentencePieceProcessor, dict[int, str]]:
        if area not in self._twins:
            model, spelling = self._shielded(area)
            self._twins[area] = (_processor(model), spelling)
        return self._twins[area]

    def _shielded(self, area: int) -> tuple[proto.ModelProto, dict[int, str]]:
        model = proto.ModelProto()
        model.CopyFrom(self._proto)
        spelling: dict[int, str] = {}
        for index, (word, i) in enumerate(self.control_tokens.items()):
            piece = model.pieces[i]
            if piece.type != _PIECE.UNKNOWN:
                piece.piece = spelling[i] = shield.private_spelling(index, len(word), area=area)
                piece.type = _PIECE.USER_DEFINED
        return model, spelling


def _processor(model: proto.ModelProto) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def _run(processor: sentencepiece.SentencePieceProcessor, text: str) -> tuple[IntArray, IntArray]:
    result = processor.encode(text, return_type="offset_mapping")
    return as_arrays(result["ids"], result["offsets"])
