# SPDX-License-Identifier: Apache-2.0
"""The conversation against the rendered text: each answer has a target span that says it, with its weight.

K: target spans.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from primus.chat.messages import Message
from primus.sft.dataset import EncodingOptions
from primus.sft.encoding import TracedConversation
from primus.sft.proof.report import shortened


def wrong_targets(trace: TracedConversation, *, options: EncodingOptions, is_turn_by_turn: bool) -> Iterator[str]:
    """Compare the target spans of a conversation with its messages.

    Args:
        trace: The conversation.
        options: What is a target.
        is_turn_by_turn: Whether the format writes each answer as it is; a template may add words of its own.

    Yields:
        What is wrong: a span with another weight than its message, or an answer that none of them says.
    """
    messages = trace.conversation.messages
    last = max(turn for turn, message in enumerate(messages) if message.role == "assistant")
    said: dict[int, str] = {}
    for span, weight in zip(trace.rendered.spans, trace.encoded.weights_K.tolist(), strict=True):
        is_asked = span.kind == "content" or options.supervise_end_of_turn
        wanted = _weight(messages[span.turn], is_chosen=is_asked and _is_chosen(span.turn, last, options))
        if weight != np.float32(wanted):
            yield (
                f"turn {span.turn}: its {span.kind} has weight {weight:g}, but the data says {wanted:g}; report this"
                " fault"
            )
        if span.kind == "content":
            said[span.turn] = said.get(span.turn, "") + trace.rendered.text[span.start : span.end]
    for turn, message in enumerate(messages):
        if not _weight(message, is_chosen=_is_chosen(turn, last, options)) > 0:
            continue
        missing = _missing(message, said.get(turn), is_turn_by_turn=is_turn_by_turn)
        if missing is not None:
            yield f"turn {turn}: {missing}, so use another format or give the turn weight 0"


def left_out(trace: TracedConversation) -> Counter[str]:
    """What of a conversation is not in the text at all.

    Args:
        trace: The conversation.

    Returns:
        1 for `reasoning` if a thought of the assistant is left out, as templates do with earlier turns, and 1 for
        `context` if a message is.
    """
    text = trace.rendered.text
    found: Counter[str] = Counter()
    for message in trace.conversation.messages:
        if message.reasoning and message.reasoning.strip() not in text:
            found["reasoning"] = 1
        if message.role != "assistant" and message.content.strip() not in text:
            found["context"] = 1
    return found


def _is_chosen(turn: int, last: int, options: EncodingOptions) -> bool:
    return options.supervise_turns == "all" or turn == last


def _weight(message: Message, *, is_chosen: bool) -> float:
    if message.role != "assistant" or not is_chosen:
        return 0.0
    return 1.0 if message.weight is None else message.weight


def _missing(message: Message, said: str | None, *, is_turn_by_turn: bool) -> str | None:
    """What of an answer is not said by its target spans, whose text is `said`."""
    content = message.content.strip()
    if said is None:
        has_something = content or message.tool_calls or message.reasoning
        return "the format writes nothing of this answer" if has_something else None
    is_plain = not (message.tool_calls or message.reasoning or "</think>" in content)
    if is_plain and is_turn_by_turn:
        is_said = said == message.content or said.strip() == content
        return None if is_said else f"the message says {shortened(content)}, but the format writes {shortened(said)}"
    # A template drops thoughts that stand in the content, too.
    wanted = [content.rpartition("</think>")[2].strip(), *(call.name for call in message.tool_calls)]
    if is_turn_by_turn:
        wanted.insert(0, (message.reasoning or "").strip())
    at = 0
    for piece in wanted:
        at = said.find(piece, at)
        if at < 0:
            return f"{shortened(piece)} is not in what the format writes, {shortened(said)}"
        at += len(piece)
    return None
