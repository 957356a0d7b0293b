# SPDX-License-Identifier: Apache-2.0
"""Many conversations through formatter and tokenizer at once, into flat arrays.

It gives what `trace_conversation` gives for each of them, in a fraction of the time: nothing is made for a message but
numbers in lists, and nothing for a token. Where anything is out of the ordinary, a conversation is traced by itself.

N: conversations. T: tokens of all of them. K: their token spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from primus.chat.messages import Conversation
from primus.chat.plain_lines import PlainLines
from primus.errors import ConversationError, EngineError
from primus.sft.encoding import EncodedConversation, special_ids
from primus.sft.formatters.flat_texts import FlatTexts, PlainWriter
from primus.sft.formatters.rendered import BatchFormatter, TextBatch
from primus.sft.recipe import Encoder
from primus.sft.sequences import Int32Array, Int64Array, SequenceArrays, bounds_of, text_hash
from primus.sft.tokenizer.token_edges import FlatTokens

Alone = EncodedConversation | ConversationError


@dataclass(frozen=True, slots=True)
class FlatConversations:
    """Encoded conversations.

    Attributes:
        arrays: Those that were encoded together.
        rows: The index in `arrays` of each conversation that is not in `alone`, by its own index.
        alone: Those that were encoded by themselves, or the error, by their index.
    """

    arrays: SequenceArrays
    rows: dict[int, int]
    alone: dict[int, Alone]


def encode_conversations(conversations: Sequence[Conversation], encoder: Encoder) -> FlatConversations:
    """Encode conversations, each exactly as `Encoder.trace` does.

    Args:
        conversations: The conversations.
        encoder: Renders and tokenizes.

    Returns:
        Their tokens and what of them is trained.

    Raises:
        EngineError: If the fast engine gives other ids than the reference; the message begins with the origin.
        TokenizerError: If BOS or EOS is asked for and the tokenizer has none.
    """
    batch, alone = _render(conversations, encoder)
    texts = batch.flat()
    origins = [c.origin for n, c in enumerate(conversations) if n not in alone]
    tokens = _encode(texts, origins, encoder)
    if tokens is None:
        everything = {n: trace_alone(conversation, encoder) for n, conversation in enumerate(conversations)}
        return FlatConversations(SequenceArrays.concatenate([]), {}, everything)
    rendered = [n for n in range(len(conversations)) if n not in alone]
    arrays = _arrays(texts, tokens, origins, encoder)
    for row in np.flatnonzero(~tokens.is_exact_N).tolist():
        alone[rendered[row]] = trace_alone(conversations[rendered[row]], encoder)
    return FlatConversations(arrays, {n: row for row, n in enumerate(rendered) if n not in alone}, alone)


class PlainEncoder:
    """Encodes lines of usual rows, without an object for a conversation.

    Args:
        encoder: Renders and tokenizes.
    """

    def __init__(self, encoder: Encoder) -> None:
        formatter = encoder.formatter
        frames = formatter.plain_frames if isinstance(formatter, BatchFormatter) else None
        self._encoder = encoder
        self._writer = None if frames is None else PlainWriter(frames)

    def encode(self, plain: PlainLines) -> tuple[SequenceArrays, npt.NDArray[np.bool_]] | None:
        """Encode all conversations.

        Args:
            plain: The conversations.

        Returns:
            What `encode_conversations` gives for each, and for which that is so; the others have to be traced. None if
            they all have to.

        Raises:
            EngineError: As `encode_conversations` does.
            TokenizerError: As `encode_conversations` does.
        """
        if self._writer is None or not self._writer.can_write(plain.roles):
            return None
        texts = self._writer.write(plain.roles, plain.contents, plain.num_messages)
        origins = plain.origins()
        tokens = _encode(texts, origins, self._encoder)
        return None if tokens is None else (_arrays(texts, tokens, origins, self._encoder), tokens.is_exact_N)


def _encode(texts: FlatTexts, origins: Sequence[str], encoder: Encoder) -> FlatTokens | None:
    try:
        return encoder.tokenizer.encode_flat(texts)
    except EngineError as exc:
        raise EngineError(f"{origins[exc.index]}: {exc}") from exc


def _render(conversations: Sequence[Conversation], encoder: Encoder) -> tuple[TextBatch, dict[int, Alone]]:
    batch = TextBatch()
    failed: dict[int, Alone] = {}
    formatter = encoder.formatter
    quick = formatter if isinstance(formatter, BatchFormatter) else None
    for n, conversation in enumerate(conversations):
        try:
            if quick is not None:
                quick.render_into(conversation, batch)
            else:
                batch.add(formatter.render(conversation))
        except ConversationError as exc:
            failed[n] = exc
    return batch, failed


def trace_alone(conversation: Conversation, encoder: Encoder) -> Alone:
    """Encode a conversation by itself.

    Args:
        conversation: The conversation.
        encoder: Renders and tokenizes.

    Returns:
        Its tokens, or the error.
    """
    try:
        return encoder.trace(conversation).encoded
    except ConversationError as exc:
        return exc


def _arrays(texts: FlatTexts, tokens: FlatTokens, origins: Sequence[str], encoder: Encoder) -> SequenceArrays:
    options = encoder.options
    turns_K, weights_K = texts.turns_K, texts.weights_K
    span_bounds_N1 = bounds_of(texts.num_spans_N)
    if not options.supervise_end_of_turn:
        weights_K[texts.is_end_K] = 0
    if options.supervise_turns == "last" and len(turns_K):
        # A text without spans has no last one; the number that stands for it is repeated 0 times.
        last_N = turns_K[np.maximum(span_bounds_N1[1:], 1) - 1]
        weights_K[turns_K != np.repeat(last_N, texts.num_spans_N)] = 0
    ids_T, token_bounds_N1, spans_K2 = tokens.ids_T, tokens.token_bounds_N1, tokens.token_spans_K2
    front, back = special_ids(encoder.tokenizer, add_bos=encoder.add_bos, add_eos=options.add_eos)
    if front or back:
        ids_T, token_bounds_N1 = _between(front, ids_T, back, token_bounds_N1)
        spans_K2 = spans_K2 + len(front)
    num_targets_K = (spans_K2[:, 1] - np.maximum(spans_K2[:, 0], 1)).clip(min=0) * (weights_K > 0)
    num_targets_N = np.diff(np.concatenate([[0], np.cumsum(num_targets_K)])[span_bounds_N1]).astype(np.int32)
    places = [origin.encode() for origin in origins]
    return SequenceArrays(
        tokens_T=ids_T,
        token_bounds_N1=token_bounds_N1,
        token_spans_K2=spans_K2.astype(np.int32),
        turns_K=turns_K,
        is_end_K=texts.is_end_K,
        weights_K=weights_K,
        span_bounds_N1=span_bounds_N1,
        num_targets_N=num_targets_N,
        num_units_N=num_targets_N,
        content_hashes_N16=np.frombuffer(b"".join(map(text_hash, texts.data)), dtype=np.uint8).reshape(-1, 16),
        origins_P=np.frombuffer(b"".join(places), dtype=np.uint8),
        origin_bounds_N1=bounds_of([len(place) for place in places]),
    )


def _between(
    front: Sequence[int], ids_T: Int32Array, back: Sequence[int], bounds_N1: Int64Array
) -> tuple[Int32Array, Int64Array]:
    """Put ids in front of those of each text, and behind them."""
    num_more = len(front) + len(back)
    moved_N1 = bounds_N1 + num_more * np.arange(len(bounds_N1))
    all_T = np.empty(moved_N1[-1], dtype=np.int32)
    all_T[np.arange(len(ids_T)) + np.repeat(moved_N1[:-1] + len(front) - bounds_N1[:-1], np.diff(bounds_N1))] = ids_T
    for place, token_id in enumerate(front):
        all_T[moved_N1[:-1] + place] = token_id
    for place, token_id in enumerate(reversed(back), start=1):
        all_T[moved_N1[1:] - place] = token_id
    return all_T, moved_N1
