# SPDX-License-Identifier: Apache-2.0
"""The oddities that are looked for, each with its one definition."""

from dataclasses import dataclass

from primus.sft.stats.shingles import SHINGLE_WORDS

MIN_REPEAT_WORDS = 50
MAX_REPEATED = 0.5
MIN_LINE_WORDS = 3
MIN_LINE_TIMES = 5
SHORT_ANSWER = 3
MIN_LAST_LINE_WORDS = 8
MIN_SENTENCES = 2


@dataclass(frozen=True, slots=True)
class Signal:
    """One kind of oddity.

    Attributes:
        name: Its stable name.
        title: Its name for people.
        definition: When a conversation has it.
    """

    name: str
    title: str
    definition: str


SIGNALS = (
    Signal(
        "no_target",
        "nothing to train",
        "no token of the conversation is trained, since all weights are 0",
    ),
    Signal(
        "starts_oddly",
        "starts with assistant or tool",
        "the first message is neither the system's nor the user's",
    ),
    Signal(
        "ends_without_assistant",
        "ends without assistant",
        "the last message is not the assistant's",
    ),
    Signal(
        "system_not_first",
        "system message not first",
        "a system message stands behind another message",
    ),
    Signal(
        "same_role_twice",
        "same role twice in a row",
        "a message has the role of the one before; tools' excepted",
    ),
    Signal(
        "unanswered_call",
        "tool calls without answers",
        "an assistant message is followed by fewer tool messages than it has calls, and the conversation goes on",
    ),
    Signal(
        "answer_without_call",
        "tool answers without calls",
        "a tool message answers no call: the assistant's message before it has fewer calls than there are answers",
    ),
    Signal(
        "call_id_mismatch",
        "tool_call_id mismatch",
        "a tool message names a call that the assistant's message before it does not have, where all its "
        "calls have ids, or two calls of a message share an id",
    ),
    Signal(
        "echo",
        "answer equals the question",
        "an assistant message has the text of the user message before it",
    ),
    Signal(
        "empty_answer",
        "empty assistant turn",
        "an assistant message has no text but whitespace, no reasoning and no calls",
    ),
    Signal(
        "short_answer",
        "very short answer",
        f"an assistant message without calls has 1 to {SHORT_ANSWER} characters",
    ),
    Signal(
        "repeats_itself",
        "repeats itself",
        f"of an assistant message of at least {MIN_REPEAT_WORDS} words, more than {MAX_REPEATED:.0%} of the "
        f"runs of {SHINGLE_WORDS} words stood in it before",
    ),
    Signal(
        "repeats_a_line",
        "repeats a line",
        f"a line of at least {MIN_LINE_WORDS} words stands {MIN_LINE_TIMES} times or more in an assistant "
        "message, outside of fenced code",
    ),
    Signal(
        "looks_cut",
        "looks cut",
        "an assistant message without calls ends in a word without a capital, a comma or an opening bracket, on a line"
        f" of at least {MIN_LAST_LINE_WORDS} words that is no list item, heading, quote, table row, link, tag or `key:"
        f" value`, although at least {MIN_SENTENCES} sentences and half of the other lines that long end in a full stop"
        " or its like",
    ),
    Signal(
        "unclosed_code_fence",
        "unclosed code fence",
        "a fenced code block of an assistant message has no end",
    ),
    Signal(
        "unclosed_think",
        "unclosed <think>",
        "a line of an assistant message begins with <think>, and no </think> follows",
    ),
    Signal(
        "think_without_start",
        "</think> without <think>",
        "an assistant message has a </think> and no <think> before",
    ),
    Signal(
        "control_token_text",
        "text of a control token",
        "a message's content has the text of a control token of the tokenizer, a marker of the format or a "
        "well-known chat marker; it is trained as plain text",
    ),
    Signal(
        "replacement_character",
        "replacement character",
        "a message has U+FFFD, which stands where decoding failed",
    ),
    Signal(
        "byte_order_mark",
        "byte order mark",
        "a message has U+FEFF",
    ),
    Signal(
        "control_character",
        "control character",
        "a message has NUL or another control character but tab, line feed and carriage return",
    ),
    Signal(
        "private_use",
        "private-use character",
        "a message has a character that Unicode leaves to private agreement",
    ),
    Signal(
        "outer_whitespace",
        "whitespace around an answer",
        "an assistant message begins or ends with whitespace",
    ),
)
"""All of them, in the order of the report."""
