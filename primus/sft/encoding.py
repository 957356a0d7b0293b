# SPDX-License-Identifier: Apache-2.0
"""One conversation through formatter, tokenizer and masking.

T: tokens of the conversation, BOS and EOS included. K: token spans of its assistant turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from primus.chat.messages import Conversation
from primus.errors import ConversationError, EngineError, TokenizerError
from primus.sft.formatters import CharSpan, ConversationFormatter, RenderedConversation
from primus.sft.masking import BoolArray, FloatArray, IntArray, assistant_mask, token_spans, token_weights
from primus.sft.tokenizer import SFTTokenizer
from primus.sft.tokenizer.base import Encoding, MarkedText

SuperviseTurns = Literal["all", "last"]


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """The tokens of a conversation and what in them is trained.

    Attributes:
        tokens_T: Token ids.
        token_spans_K2: Tokens `[first, last)` of each piece of an assistant turn, trained or not.
        turns_K: Index of the message that a piece belongs to.
        is_end_K: Whether a piece is the end of its turn, and not its content.
        weights_K: Loss weight of each piece; 0 where it is context only.
        origin: Where the conversation came from.
        num_splits: Tokens that were cut because they crossed the edge of a piece.
        is_truncated: Whether tokens were cut off.
        num_untrained_turns: Turns that lost their targets because they were cut off.
    """

    tokens_T: IntArray
    token_spans_K2: IntArray
    turns_K: IntArray
    is_end_K: BoolArray
    weights_K: FloatArray
    origin: str
    num_splits: int = 0
    is_truncated: bool = False
    num_untrained_turns: int = 0

    @property
    def weights_T(self) -> FloatArray:
        """The loss weight of each token, aligned with the tokens."""
        return token_weights(self.token_spans_K2, self.weights_K, len(self.tokens_T))

    @property
    def assistant_mask_T(self) -> BoolArray:
        """Which tokens the assistant wrote, aligned with the tokens."""
        return assistant_mask(self.token_spans_K2, len(self.tokens_T))

    @property
    def num_targets(self) -> int:
        """Tokens that are trained; a conversation's first token never is, since nothing predicts it."""
        lengths_K = self.token_spans_K2[:, 1] - np.maximum(self.token_spans_K2[:, 0], 1)
        return int(lengths_K[self.weights_K > 0].clip(min=0).sum())


@dataclass(frozen=True, slots=True)
class TracedConversation:
    """An encoded conversation with the way that led to it, for looking at it and for checking it.

    Attributes:
        conversation: The conversation.
        rendered: Its text and spans.
        encoded: Its tokens and what of them is trained.
        offsets_T2: Characters `[start, end)` of the text that each token stands for; a BOS or EOS that the text does
            not hold has no width.
    """

    conversation: Conversation
    rendered: RenderedConversation
    encoded: EncodedConversation
    offsets_T2: IntArray


def encode_conversation(
    conversation: Conversation,
    *,
    formatter: ConversationFormatter,
    tokenizer: SFTTokenizer,
    supervise_end_of_turn: bool,
    supervise_turns: SuperviseTurns = "all",
    add_bos: bool | None = None,
    add_eos: bool = False,
) -> EncodedConversation:
    """The tokens of a conversation and what of them is trained: `trace_conversation` without the way there."""
    return trace_conversation(
        conversation,
        formatter=formatter,
        tokenizer=tokenizer,
        supervise_end_of_turn=supervise_end_of_turn,
        supervise_turns=supervise_turns,
        add_bos=add_bos,
        add_eos=add_eos,
    ).encoded


def trace_conversation(
    conversation: Conversation,
    *,
    formatter: ConversationFormatter,
    tokenizer: SFTTokenizer,
    supervise_end_of_turn: bool,
    supervise_turns: SuperviseTurns = "all",
    add_bos: bool | None = None,
    add_eos: bool = False,
) -> TracedConversation:
    """Render and tokenize a conversation, and find its assistant tokens.

    The tokens do not depend on what is supervised; only the weights do.

    Args:
        conversation: The conversation.
        formatter: Gives its text.
        tokenizer: Gives the tokens.
        supervise_end_of_turn: Whether the end of a trained turn is a target.
        supervise_turns: `all` trains every assistant turn, `last` only the last one of the conversation.
        add_bos: Begin with BOS; None does what the tokenizer does by itself, unless the format writes BOS itself.
        add_eos: End with EOS, which is never a target: the assistant has stopped at its end of turn before.

    Returns:
        The encoded conversation with its text.

    Raises:
        RenderError: If the format has no form for the conversation.
        ConversationError: If the tokenizer can't encode it exactly. Both begin with the origin.
        TokenizerError: If BOS or EOS is asked for and the tokenizer has none.
    """
    [traced] = trace_conversations(
        [conversation],
        formatter=formatter,
        tokenizer=tokenizer,
        supervise_end_of_turn=supervise_end_of_turn,
        supervise_turns=supervise_turns,
        add_bos=add_bos,
        add_eos=add_eos,
    )
    if isinstance(traced, ConversationError):
        raise traced
    return traced


def trace_conversations(
    conversations: Sequence[Conversation],
    *,
    formatter: ConversationFormatter,
    tokenizer: SFTTokenizer,
    supervise_end_of_turn: bool,
    supervise_turns: SuperviseTurns = "all",
    add_bos: bool | None = None,
    add_eos: bool = False,
) -> list[TracedConversation | ConversationError]:
    """Do for many conversations at once what `trace_conversation` does for one.

    Args:
        conversations: The conversations.
        formatter: Gives their texts.
        tokenizer: Gives the tokens.
        supervise_end_of_turn: Whether the end of a trained turn is a target.
        supervise_turns: Which assistant turns are targets.
        add_bos: Begin with BOS; None does what the tokenizer does by itself, unless the format writes BOS itself.
        add_eos: End with EOS.

    Returns:
        For each conversation the same as it gives alone, or the error.

    Raises:
        TokenizerError: If BOS or EOS is asked for and the tokenizer has none.
    """
    front, back = special_ids(
        tokenizer, add_bos=False if add_bos is None and formatter.writes_bos else add_bos, add_eos=add_eos
    )
    rendered = [_render(conversation, formatter) for conversation in conversations]
    texts = [
        MarkedText(r.text, r.markers, [(span.start, span.end) for span in r.spans])
        for r in rendered
        if isinstance(r, RenderedConversation)
    ]
    try:
        encodings = iter(zip(texts, tokenizer.encode_plain(texts), strict=True))
    except EngineError as exc:
        origins = [
            c.origin for c, r in zip(conversations, rendered, strict=True) if isinstance(r, RenderedConversation)
        ]
        raise EngineError(f"{origins[exc.index]}: {exc}") from exc
    traced: list[TracedConversation | ConversationError] = []
    for conversation, text in zip(conversations, rendered, strict=True):
        if isinstance(text, ConversationError):
            traced.append(text)
            continue
        marked, encoding = next(encodings)
        try:
            traced.append(
                _trace(
                    conversation,
                    text,
                    encoding or _encode(marked, tokenizer, origin=conversation.origin),
                    spans=_supervised(
                        text.spans, supervise_end_of_turn=supervise_end_of_turn, supervise_turns=supervise_turns
                    ),
                    front=front,
                    back=back,
                )
            )
        except ConversationError as exc:
            traced.append(exc)
    return traced


def _render(conversation: Conversation, formatter: ConversationFormatter) -> RenderedConversation | ConversationError:
    try:
        return formatter.render(conversation)
    except ConversationError as exc:
        return exc


def _encode(marked: MarkedText, tokenizer: SFTTokenizer, *, origin: str) -> Encoding:
    try:
        return tokenizer.encode(marked.text, markers=marked.markers, spans=marked.spans)
    except ConversationError as exc:
        raise ConversationError(f"{origin}: {exc}", reason=exc.reason) from exc
    except TokenizerError as exc:
        raise ConversationError(f"{origin}: {exc}", reason="tokenizer") from exc
    except EngineError as exc:
        raise EngineError(f"{origin}: {exc}") from exc


def _trace(
    conversation: Conversation,
    rendered: RenderedConversation,
    encoding: Encoding,
    *,
    spans: Sequence[CharSpan],
    front: Sequence[int],
    back: Sequence[int],
) -> TracedConversation:
    tokens_T, offsets_T2 = encoding.ids_T, encoding.offsets_T2
    if front or back:
        tokens_T = np.concatenate([np.array(front, dtype=np.int64), tokens_T, np.array(back, dtype=np.int64)])
        end = np.full((len(back), 2), len(rendered.text))
        offsets_T2 = np.concatenate([np.zeros((len(front), 2), np.int64), offsets_T2, end])
    encoded = EncodedConversation(
        tokens_T=tokens_T,
        token_spans_K2=token_spans(encoding.offsets_T2, spans) + len(front),
        turns_K=np.array([span.turn for span in spans], dtype=np.int64),
        is_end_K=np.array([span.kind == "end_of_turn" for span in spans], dtype=np.bool_),
        weights_K=np.array([span.weight for span in spans], dtype=np.float32),
        origin=conversation.origin,
        num_splits=encoding.num_splits,
    )
    return TracedConversation(conversation, rendered, encoded, offsets_T2)


def special_ids(tokenizer: SFTTokenizer, *, add_bos: bool | None, add_eos: bool) -> tuple[list[int], list[int]]:
    """The ids in front of a text and behind it.

    Args:
        tokenizer: The tokenizer.
        add_bos: Begin with BOS; None does what the tokenizer does by itself.
        add_eos: End with EOS.

    Returns:
        Two lists of at most one id.

    Raises:
        TokenizerError: If one is asked for that the tokenizer does not have.
    """
    wanted = tokenizer.adds_bos if add_bos is None else add_bos
    for asked, token_id, key in ((wanted, tokenizer.bos_id, "sft_add_bos"), (add_eos, tokenizer.eos_id, "sft_add_eos")):
        if asked and token_id is None:
            raise TokenizerError(f"{tokenizer.name}: has no {key[-3:].upper()} token, but {key} is on; turn it off")
    front = [tokenizer.bos_id] if wanted and tokenizer.bos_id is not None else []
    back = [tokenizer.eos_id] if add_eos and tokenizer.eos_id is not None else []
    return front, back


def _supervised(
    spans: tuple[CharSpan, ...], *, supervise_end_of_turn: bool, supervise_turns: SuperviseTurns
) -> list[CharSpan]:
    """The spans, with weight 0 where the options ask for no supervision."""
    last = max(span.turn for span in spans)
    return [
        span
        if (span.kind == "content" or supervise_end_of_turn) and (supervise_turns == "all" or span.turn == last)
        else replace(span, weight=0.0)
        for span in spans
    ]
