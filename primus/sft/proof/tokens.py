# SPDX-License-Identifier: Apache-2.0
"""The rendered text against the tokens: what is trained decodes to it and ends, control tokens are the format's.

K: target spans. V: ids of the vocabulary.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from primus.sft.encoding import TracedConversation
from primus.sft.formatters import RenderedConversation
from primus.sft.masking import IntArray
from primus.sft.proof.report import shortened
from primus.sft.tokenizer import SFTTokenizer


class TokenChecks:
    """Checks the tokens of conversations.

    Args:
        tokenizer: Their tokenizer.

    Attributes:
        num_lossy: Pieces so far that decode to what the tokenizer keeps of them, and not to themselves.
    """

    def __init__(self, tokenizer: SFTTokenizer) -> None:
        self.num_lossy = 0
        self._tokenizer = tokenizer
        self._is_control_V = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
        self._is_control_V[list(tokenizer.control_tokens.values())] = True
        self._text_of = {token_id: text for text, token_id in tokenizer.control_tokens.items()}

    def decode_together(self, traces: Sequence[TracedConversation]) -> bool:
        """Decode the trained tokens of many conversations at once.

        Args:
            traces: The conversations.

        Returns:
            Whether the tokens of every piece stand for exactly its bytes; False if that is not known.
        """
        ids: list[IntArray] = []
        texts: list[bytes] = []
        for trace in traces:
            encoded, text = trace.encoded, trace.rendered.text
            is_trained_K = encoded.weights_K > 0
            for k, (first, last) in zip(
                np.flatnonzero(is_trained_K).tolist(), encoded.token_spans_K2[is_trained_K].tolist(), strict=True
            ):
                ids.append(encoded.tokens_T[first:last])
                texts.append(text[trace.rendered.spans[k].start : trace.rendered.spans[k].end].encode())
        if not ids:
            return False
        decoded = self._tokenizer.bytes_of(np.concatenate(ids))
        if decoded is None or decoded[0] != b"".join(texts):
            return False
        ends_of_pieces = np.concatenate([[0], decoded[1]])[np.cumsum([len(piece) for piece in ids])]
        return np.array_equal(ends_of_pieces, np.cumsum([len(piece) for piece in texts]))

    def decode(self, trace: TracedConversation) -> Iterator[str]:
        """Yield the trained pieces that do not decode to their text."""
        encoded, text = trace.encoded, trace.rendered.text
        pieces = zip(trace.rendered.spans, encoded.token_spans_K2.tolist(), encoded.weights_K.tolist(), strict=True)
        for span, (first, last), weight in pieces:
            if not weight > 0:
                continue
            wanted, ids = text[span.start : span.end], encoded.tokens_T[first:last].tolist()
            if len(ids) == 1 and self._text_of.get(ids[0]) == wanted:
                continue
            got = self._tokenizer.decode_after(encoded.tokens_T[:first], ids)
            if self._tokenizer.unknown_id in ids:
                yield (
                    f"turn {span.turn}: {ids.count(self._tokenizer.unknown_id)} of its {len(ids)} trained tokens are"
                    f" {self._text_of[self._tokenizer.unknown_id]!r}, for characters that the vocabulary lacks; use"
                    " another tokenizer, or drop the row"
                )
                continue
            if got == wanted:
                continue
            if got in self._given_back(wanted, trace.rendered, span.start):
                self.num_lossy += 1
            else:
                yield (
                    f"turn {span.turn}: its {span.kind} trains {shortened(got)}, but the text is {shortened(wanted)};"
                    " the tokenizer loses something, so use another one or repair the row"
                )

    def _given_back(self, text: str, rendered: RenderedConversation, start: int) -> tuple[str, str]:
        """What the tokenizer gives back of a text by itself, and behind the control token in front of it."""
        in_front = rendered.markers_before(start)[-1:]
        behind = "".join(rendered.text[slice(*marker)] for marker in in_front)
        return self._tokenizer.given_back(text), self._tokenizer.given_back(text, behind=behind)

    def stop(self, trace: TracedConversation) -> Iterator[str]:
        """Yield the trained turns that do not end with a trained stop token."""
        encoded = trace.encoded
        pieces: dict[int, list[tuple[bool, int, int, bool]]] = {}
        facts = zip(
            encoded.turns_K.tolist(),
            encoded.is_end_K.tolist(),
            encoded.token_spans_K2.tolist(),
            (encoded.weights_K > 0).tolist(),
            strict=True,
        )
        for turn, is_end, (first, last), is_trained in facts:
            pieces.setdefault(turn, []).append((is_end, first, last, is_trained))
        for turn, of_turn in pieces.items():
            if not any(is_trained for *_, is_trained in of_turn):
                continue
            is_end, first, last, is_trained = of_turn[-1]
            if not (is_end and is_trained and last > first):
                yield f"turn {turn}: does not end with a trained stop token, so the model does not learn to stop"
            elif len(of_turn) > 1 and of_turn[-2][2] != first:
                yield f"turn {turn}: something stands between what is said and its stop token"

    def find_control(self, trace: TracedConversation) -> Iterator[str]:
        """Yield the control tokens that are not the format's, and say where one of the format's is missing."""
        tokens_T, text = trace.encoded.tokens_T, trace.rendered.text
        places = {marker: text[slice(*marker)] for marker in trace.rendered.markers}
        wanted = [marker for marker, word in places.items() if word in self._tokenizer.control_tokens]
        found = []
        controls = np.flatnonzero(self._is_control_V[tokens_T])
        for token_id, (start, end) in zip(
            tokens_T[controls].tolist(), trace.offsets_T2[controls].tolist(), strict=True
        ):
            word = self._text_of[token_id]
            if start == end:
                continue  # BOS or EOS beside the text
            if places.get((start, end)) == word:
                found.append((start, end))
            elif text[start:end].strip() == word:  # an unknown token stands for other text
                yield f"the text {word!r} at character {start} became a control token, though a message holds it"
        if found != wanted:
            yield f"{len(wanted)} markers are control tokens, but the sequence has {len(found)} of them at their places"
