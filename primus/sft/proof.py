# SPDX-License-Identifier: Apache-2.0
"""The proof that a row trains exactly what its assistant said, made from the finished tokens.

T: tokens of a conversation. K: its token spans.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from primus.chat.conversations import ConversationBatch
from primus.chat.messages import Conversation
from primus.errors import ConversationError, RenderError
from primus.sft.encoding import TracedConversation, special_ids
from primus.sft.formatters import RenderedConversation
from primus.sft.masking import IntArray
from primus.sft.recipe import Encoder, Recipe
from primus.sft.verdict import TokenizerVerdict, judge_tokenizer
from primus.sft.workers import Job

Check = Literal["parsed", "rendered", "tokenized", "targets", "content", "stop", "control", "prompt", "length"]

CHECKS: dict[Check, str] = {
    "parsed": "the row is a valid conversation",
    "rendered": "the format has a form for it, with exact spans",
    "tokenized": "the tokenizer encodes it exactly",
    "targets": "at least one token is trained",
    "content": "the trained tokens of each turn decode to what the assistant wrote",
    "stop": "each trained turn ends with its trained stop token",
    "control": "control tokens stand where the format put them, none comes from content",
    "prompt": "the server's prompt of each trained turn is a token prefix of the training sequence",
    "length": "the conversation fits seq_length",
}
assert tuple(CHECKS) == get_args(Check)

# A conversation that fails one of them is not asked the others.
_FIRST_CHECKS: tuple[Check, ...] = ("parsed", "rendered", "tokenized")

# Different ends of prompts that are remembered: a format has one, or a few.
_MOST_TAILS = 4096


@dataclass(frozen=True, slots=True)
class Failure:
    """A check that a row does not pass.

    Attributes:
        origin: Where the row stands.
        check: The check.
        message: What is wrong, with the origin in front.
    """

    origin: str
    check: Check
    message: str


@dataclass(frozen=True, slots=True)
class BatchProof:
    """What became of a batch of rows.

    Attributes:
        num_rows: Rows that were read.
        passed: How many conversations passed each check. A conversation that fails one of the first three is not asked
            the others.
        failures: Every check that failed.
        lengths_N: Tokens of each conversation that was tokenized.
        num_targets: Trained tokens.
        num_turns: Assistant turns with a trained token.
        num_splits: Tokens that were cut because they crossed the edge of an assistant turn.
        verdict: What the tokenizer is like.
        engine: What made the ids.
    """

    num_rows: int
    passed: Counter[Check]
    failures: tuple[Failure, ...]
    lengths_N: IntArray
    num_targets: int
    num_turns: int
    num_splits: int
    verdict: TokenizerVerdict
    engine: str


class Prover:
    """Checks conversations against the tokens that they are trained as.

    Args:
        encoder: What encodes them.
        max_seq_length: Positions of a training sequence; None if any length will do.

    Attributes:
        verdict: What the tokenizer is like.
    """

    def __init__(self, encoder: Encoder, *, max_seq_length: int | None) -> None:
        self._encoder = encoder
        self._tokenizer = encoder.tokenizer
        puts_bos = encoder.tokenizer.adds_bos if encoder.add_bos is None else encoder.add_bos
        self.verdict = judge_tokenizer(encoder.tokenizer, encoder.formatter, puts_bos=puts_bos)
        self._max_seq_length = max_seq_length
        self._is_control_V = np.zeros(self._tokenizer.vocab_size, dtype=np.bool_)
        self._is_control_V[list(self._tokenizer.control_tokens.values())] = True
        self._text_of = {token_id: text for text, token_id in self._tokenizer.control_tokens.items()}
        self._tails: dict[tuple[str, int], list[int]] = {}
        self._checks: dict[Check, Callable[[TracedConversation], Iterator[str]]] = {
            "targets": self._has_targets,
            "content": self._decodes,
            "control": self._has_no_control_from_content,
            "prompt": self._continues_prompts,
        }
        if encoder.options.supervise_end_of_turn:
            self._checks["stop"] = self._stops
        # With another truncation a long conversation is what was asked for, and counted when the data is prepared.
        if max_seq_length is not None and encoder.options.truncation == "error":
            self._checks["length"] = self._fits
        self._asked = [check for check in CHECKS if check in _FIRST_CHECKS or check in self._checks]

    def prove_batch(self, batch: ConversationBatch) -> BatchProof:
        """Check every conversation of a batch.

        Args:
            batch: The rows.

        Returns:
            What passed and what failed.
        """
        passed: Counter[Check] = Counter()
        failures: list[Failure] = []
        num_rows = 0
        conversations: list[Conversation] = []
        for reading in batch.readings():
            num_rows += len(reading.rows)
            conversations += reading.conversations
            if reading.error is not None:
                failures.append(Failure(reading.origin, "parsed", str(reading.error)))
        all_traced = self._encoder.trace_all(conversations)
        traces = [traced for traced in all_traced if isinstance(traced, TracedConversation)]
        is_decoded = self._decode_together(traces)
        for conversation, traced in zip(conversations, all_traced, strict=True):
            failed = self.check(conversation, traced, is_decoded=is_decoded)
            broken = {failure.check for failure in failed}
            last = next((check for check in _FIRST_CHECKS if check in broken), None)
            asked = self._asked if last is None else _FIRST_CHECKS[: _FIRST_CHECKS.index(last)]
            passed.update(check for check in asked if check not in broken)
            failures += failed
        encoded = [trace.encoded for trace in traces]
        return BatchProof(
            num_rows=num_rows,
            passed=passed,
            failures=tuple(failures),
            lengths_N=np.array([len(e.tokens_T) for e in encoded], dtype=np.int64),
            num_targets=sum(e.num_targets for e in encoded),
            num_turns=sum(len(set(e.turns_K[e.weights_K > 0].tolist())) for e in encoded),
            num_splits=sum(e.num_splits for e in encoded),
            verdict=self.verdict,
            engine=self._tokenizer.engine_name,
        )

    def prove(self, conversation: Conversation) -> list[Failure]:
        """Check one conversation.

        Args:
            conversation: The conversation.

        Returns:
            The checks that it fails.
        """
        [traced] = self._encoder.trace_all([conversation])
        return self.check(conversation, traced)

    def check(
        self, conversation: Conversation, traced: TracedConversation | ConversationError, *, is_decoded: bool = False
    ) -> list[Failure]:
        """Check the tokens of a conversation.

        Args:
            conversation: The conversation.
            traced: Its tokens, or why there are none.
            is_decoded: Whether the trained tokens are known to decode to the text that they stand for.

        Returns:
            The checks that fail.
        """
        origin = conversation.origin
        if isinstance(traced, RenderError):
            return [Failure(origin, "rendered", str(traced))]
        if isinstance(traced, ConversationError):
            return [Failure(origin, "tokenized", str(traced))]
        return [
            Failure(origin, check, f"{origin}: {problem}")
            for check, problems in self._checks.items()
            if not (is_decoded and check == "content")
            for problem in problems(traced)
        ] + [Failure(origin, "content", f"{origin}: {problem}") for problem in self._says_the_content(traced)]

    def _decode_together(self, traces: Sequence[TracedConversation]) -> bool:
        """Whether the trained tokens of every piece stand for exactly its bytes; False if that is not known."""
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

    def _has_targets(self, trace: TracedConversation) -> Iterator[str]:
        if trace.encoded.num_targets == 0:
            yield "no token is trained; give an assistant turn a weight above 0, or drop the row"

    def _decodes(self, trace: TracedConversation) -> Iterator[str]:
        encoded, text = trace.encoded, trace.rendered.text
        pieces = zip(trace.rendered.spans, encoded.token_spans_K2.tolist(), encoded.weights_K.tolist(), strict=True)
        for span, (first, last), weight in pieces:
            if not weight > 0:
                continue
            wanted, ids = text[span.start : span.end], encoded.tokens_T[first:last].tolist()
            if len(ids) == 1 and self._text_of.get(ids[0]) == wanted:
                continue
            got = self._tokenizer.decode_after(encoded.tokens_T[:first], ids)
            if got != wanted and got not in self._given_back(wanted, trace.rendered, span.start):
                yield (
                    f"turn {span.turn}: its {span.kind} trains {_short(got)}, but the text is {_short(wanted)}; the"
                    " tokenizer loses something, so use another one or repair the row"
                )

    def _given_back(self, text: str, rendered: RenderedConversation, start: int) -> tuple[str, str]:
        """What the tokenizer gives back of a text by itself, and behind the control token in front of it."""
        in_front = rendered.markers_before(start)[-1:]
        behind = "".join(rendered.text[slice(*marker)] for marker in in_front)
        return self._tokenizer.given_back(text), self._tokenizer.given_back(text, behind=behind)

    def _says_the_content(self, trace: TracedConversation) -> Iterator[str]:
        """Plain answers stand in the text as they are, but for whitespace that a format strips from their edges."""
        said: dict[int, str] = {}
        for span in trace.rendered.spans:
            if span.kind == "content" and span.weight > 0:
                said[span.turn] = said.get(span.turn, "") + trace.rendered.text[span.start : span.end]
        for turn, text in said.items():
            message = trace.conversation.messages[turn]
            is_plain = not (message.tool_calls or message.reasoning or "</think>" in message.content)
            if is_plain and text != message.content and text.strip() != message.content.strip():
                yield (
                    f"turn {turn}: the message says {_short(message.content)}, but the format writes {_short(text)};"
                    " use another format"
                )

    def _stops(self, trace: TracedConversation) -> Iterator[str]:
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

    def _has_no_control_from_content(self, trace: TracedConversation) -> Iterator[str]:
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

    def _continues_prompts(self, trace: TracedConversation) -> Iterator[str]:
        encoded, rendered, formatter = trace.encoded, trace.rendered, self._encoder.formatter
        front, _ = special_ids(self._tokenizer, add_bos=self._encoder.add_bos, add_eos=False)
        asked: set[int] = set()
        pieces = zip(rendered.spans, encoded.token_spans_K2.tolist(), encoded.weights_K.tolist(), strict=True)
        for span, (first, _), weight in pieces:
            if not weight > 0 or span.turn in asked:
                continue
            asked.add(span.turn)
            if formatter.is_turn_by_turn:
                text, markers = rendered.text[: span.start], rendered.markers_before(span.start)
            else:
                prompt = formatter.render_prompt(trace.conversation, span.turn)
                text, markers = prompt.text, prompt.markers
            if rendered.text[: span.start] != text:
                same = _common_prefix(rendered.text, text)
                yield (
                    f"turn {span.turn}: a server's prompt reads {_short(text[same:])} where the training"
                    f" sequence reads {_short(rendered.text[same : span.start])} (character {same}); the format writes"
                    " earlier turns another way than the last ones, so set sft_supervise_turns: last, or use another"
                    " template"
                )
                continue
            where = self._first_difference(trace, text, markers, first, front)
            if where is not None:
                yield (
                    f"turn {span.turn}: the tokens of a server's prompt differ from the training sequence from token"
                    f" {where} on; the edge of an earlier answer merges with its header or its end, so strip it"
                )

    def _first_difference(
        self,
        trace: TracedConversation,
        text: str,
        markers: Sequence[tuple[int, int]],
        first: int,
        front: Sequence[int],
    ) -> int | None:
        """The first token in which a prompt differs from the tokens before `first`, or None."""
        tokens_T = trace.encoded.tokens_T
        marker = markers[-1] if markers else None
        word = text[slice(*marker)] if marker else ""
        if marker and trace.encoded.num_splits == 0 and self._tokenizer.cuts_cleanly(word):
            # Up to its last control token a prompt has the tokens of every text that goes on from there.
            at = int(np.searchsorted(trace.offsets_T2[:first, 0], marker[0]))
            tail = self._tail(text[marker[0] :], len(word))
            actual = tokens_T[at + 1 : first].tolist()
            return None if actual == tail else at + 1 + _common_prefix(actual, tail)
        ids = [*front, *self._tokenizer.encode(text, markers=markers).ids_T.tolist()]
        actual = tokens_T[:first].tolist()
        return None if actual == ids else _common_prefix(actual, ids)

    def _tail(self, text: str, length: int) -> list[int]:
        """The ids of a text behind the control token of so many characters that it begins with."""
        if (text, length) not in self._tails:
            if len(self._tails) >= _MOST_TAILS:
                self._tails.clear()
            self._tails[text, length] = self._tokenizer.encode(text, markers=[(0, length)]).ids_T[1:].tolist()
        return self._tails[text, length]

    def _fits(self, trace: TracedConversation) -> Iterator[str]:
        num_tokens, limit = len(trace.encoded.tokens_T), self._max_seq_length
        if limit is not None and num_tokens > limit + 1:
            yield (
                f"the conversation has {num_tokens} tokens, but seq_length {limit} holds {limit + 1}; raise seq_length,"
                " or set sft_truncation"
            )


@dataclass(frozen=True)
class ProofJob(Job[ConversationBatch, BatchProof]):
    """Proves batches in a process of its own.

    Attributes:
        recipe: How conversations become training sequences.
    """

    recipe: Recipe

    def start(self) -> Callable[[ConversationBatch], BatchProof]:
        """Load tokenizer and formatter."""
        return Prover(self.recipe.build(), max_seq_length=self.recipe.max_seq_length).prove_batch


def _common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """Items that two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _short(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}..."
