# SPDX-License-Identifier: Apache-2.0
"""Many conversations through formatter and tokenizer at once, into flat arrays.

It gives what `trace_conversation` gives for each of them, in a fraction of the time: nothing is made for a message but
numbers in lists, and nothing for a token. Where anything is out of the ordinary, a conversation is traced by itself.

N: conversations. T: tokens of all of them. K: their token spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from primus.chat.messages import Conversation
from primus.errors import ConversationError, EngineError
from primus.sft.encoding import EncodedConversation, special_ids
from primus.sft.formatters.rendered import BatchFormatter, TextBatch
from primus.sft.recipe import Encoder
from primus.sft.sequences import Int32Array, Int64Array, SequenceArrays, bounds_of
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
    try:
        tokens = encoder.tokenizer.encode_flat(batch)
    except EngineError as exc:
        origins = [c.origin for n, c in enumerate(conversations) if n not in alone]
        raise EngineError(f"{origins[exc.index]}: {exc}") from exc
    if tokens is None:
        everything = {n: _trace(conversation, encoder) for n, conversation in enumerate(conversations)}
        return FlatConversations(SequenceArrays.concatenate([]), {}, everything)
    rendered = [n for n in range(len(conversations)) if n not in alone]
    arrays = _arrays(batch, tokens, [conversations[n] for n in rendered], encoder)
    for row in np.flatnonzero(~tokens.is_exact_N).tolist():
        alone[rendered[row]] = _trace(conversations[rendered[row]], encoder)
    return FlatConversations(arrays, {n: row for row, n in enumerate(rendered) if n not in alone}, alone)


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


def _trace(conversation: Conversation, encoder: Encoder) -> Alone:
    try:
        return encoder.trace(conversation).encoded
    except ConversationError as exc:
        return exc


def _arrays(
    batch: TextBatch, tokens: FlatTokens, conversations: Sequence[Conversation], encoder: Encoder
) -> SequenceArrays:
    options = encoder.options
    turns_K = np.array(batch.turns, dtype=np.int32)
    is_end_K = np.array(batch.is_end, dtype=np.bool_)
    weights_K = np.array(batch.weights, dtype=np.float32)
    span_bounds_N1 = bounds_of(batch.num_spans)
    if not options.supervise_end_of_turn:
        weights_K[is_end_K] = 0
    if options.supervise_turns == "last" and len(turns_K):
        # A text without spans has no last one; the number that stands for it is repeated 0 times.
        last_N = turns_K[np.maximum(span_bounds_N1[1:], 1) - 1]
        weights_K[turns_K != np.repeat(last_N, batch.num_spans)] = 0
    ids_T, token_bounds_N1, spans_K2 = tokens.ids_T, tokens.token_bounds_N1, tokens.token_spans_K2
    front, back = special_ids(encoder.tokenizer, add_bos=encoder.add_bos, add_eos=options.add_eos)
    if front or back:
        ids_T, token_bounds_N1 = _between(front, ids_T, back, token_bounds_N1)
        spans_K2 = spans_K2 + len(front)
    num_targets_K = (spans_K2[:, 1] - np.maximum(spans_K2[:, 0], 1)).clip(min=0) * (weights_K > 0)
    num_targets_N = np.diff(np.concatenate([[0], np.cumsum(num_targets_K)])[span_bounds_N1]).astype(np.int32)
    origins = [conversation.origin.encode() for conversation in conversations]
    hashes = b"".join([conversation.content_digest for conversation in conversations])
    return SequenceArrays(
        tokens_T=ids_T,
        token_bounds_N1=token_bounds_N1,
        token_spans_K2=spans_K2.astype(np.int32),
        turns_K=turns_K,
        is_end_K=is_end_K,
        weights_K=weights_K,
        span_bounds_N1=span_bounds_N1,
        num_targets_N=num_targets_N,
        num_units_N=num_targets_N,
        content_hashes_N16=np.frombuffer(hashes, dtype=np.uint8).reshape(-1, 16),
        origins_P=np.frombuffer(b"".join(origins), dtype=np.uint8),
        origin_bounds_N1=bounds_of([len(origin) for origin in origins]),
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
