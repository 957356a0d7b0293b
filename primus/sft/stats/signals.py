# SPDX-License-Identifier: Apache-2.0
"""Finds oddities of a conversation that a person may want to look at, as `signal_kinds` defines them.

None of them makes a conversation invalid: it is trained as it stands.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

import regex

from primus.chat.messages import Conversation, Message
from primus.sft.stats.code_blocks import find_code_blocks, prose_lines
from primus.sft.stats.refusals import looks_like_refusal
from primus.sft.stats.shingles import SHINGLE_WORDS, shingles
from primus.sft.stats.signal_kinds import (
    MAX_REPEATED,
    MIN_LAST_LINE_WORDS,
    MIN_LINE_TIMES,
    MIN_LINE_WORDS,
    MIN_REPEAT_WORDS,
    MIN_SENTENCES,
    SHORT_ANSWER,
)  # fmt: skip
from primus.sft.stats.writing import count_odd_characters, words

WELL_KNOWN_MARKERS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<start_of_turn>",
    "<end_of_turn>", "[INST]", "[/INST]",
)  # fmt: skip
"""Markers of common chat formats, looked for besides the tokenizer's own control tokens."""

REFUSAL = "refusal"

_STOP = "[.!?\u2026\u3002\uff01\uff1f\u061f\u0964]"
_CLOSING = "['\")\\]\u201d\u2019\u300d\u300f\uff09*_]*"
# Chinese and Japanese stops need no space behind them.
_ENDS_SENTENCE = re.compile(rf"{_STOP}{_CLOSING}(?=\s|$)|[\u3002\uff01\uff1f]")
# A word without capital (which a name or a label may have), or what never ends a sentence.
_OPEN_END = regex.compile(r"(?:^|[\s\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\u3001\uFF0C\u3002])"
                          r"(?:\p{Ll}[\p{Ll}\p{M}'\u2019-]+|[\p{Lo}\p{M}]+)\Z|[,\uFF0C\u3001(\[{\uFF08]\Z")  # fmt: skip
_LINE_STOPS = re.compile(rf"(?:{_STOP}|[:\uff1a]){_CLOSING}$")
# List items, headings, quotes, table rows, links, `key: value`.
_NO_PROSE = re.compile(r"\\?[-*+#>|]|\d+[.)\u3001\uff09]|https?://|.{,12}[:\uff1a]")
_TAG = re.compile("[#\uff03]")
_TAIL = 80


class SignalFinder:
    """Looks for the oddities of conversations.

    Args:
        control_texts: Texts of control tokens and of the format's markers.
    """

    def __init__(self, control_texts: Iterable[str]) -> None:
        texts = sorted({text for text in (*control_texts, *WELL_KNOWN_MARKERS) if text})
        self._controls = regex.compile(r"\L<texts>", texts=texts)

    def find(self, conversation: Conversation, *, num_targets: int) -> dict[str, list[int | None]]:
        """Find what is odd about a conversation.

        Args:
            conversation: The conversation.
            num_targets: Its trained tokens.

        Returns:
            For each signal (and `REFUSAL`) the messages that have it; None stands for the whole conversation.
        """
        found: dict[str, list[int | None]] = {}
        if not num_targets:
            found["no_target"] = [None]
        messages = conversation.messages
        for name, turn in (*_roles(messages), *_calls(messages), *self._texts(messages)):
            turns = found.setdefault(name, [])
            if turn not in turns[-1:]:
                turns.append(turn)
        return found

    def _texts(self, messages: tuple[Message, ...]) -> Iterator[tuple[str, int | None]]:
        for turn, message in enumerate(messages):
            text = f"{message.reasoning}\n{message.content}" if message.reasoning else message.content
            for name in count_odd_characters(text):
                yield name, turn
            if self._controls.search(text) is not None:
                yield "control_token_text", turn
            if message.role == "assistant":
                for name in _answer(message):
                    yield name, turn


def _roles(messages: tuple[Message, ...]) -> Iterator[tuple[str, int | None]]:
    if messages[0].role not in ("system", "user"):
        yield "starts_oddly", 0
    if messages[-1].role != "assistant":
        yield "ends_without_assistant", len(messages) - 1
    for turn, (before, message) in enumerate(pairwise(messages), start=1):
        if message.role == "system":
            yield "system_not_first", turn
        if message.role == before.role != "tool":
            yield "same_role_twice", turn
        is_answer = message.role == "assistant" and before.role == "user"
        if is_answer and message.content.strip() == before.content.strip() != "":
            yield "echo", turn


def _calls(messages: tuple[Message, ...]) -> Iterator[tuple[str, int | None]]:
    """Compare each run of tool messages with the calls of the assistant message before it."""
    turn = 0
    while turn < len(messages):
        calls = messages[turn].tool_calls
        ids = [call.id for call in calls]
        known = [i for i in ids if i is not None]
        if len(set(known)) < len(known):
            yield "call_id_mismatch", turn
        first = turn if messages[turn].role == "tool" else turn + 1
        end = first
        while end < len(messages) and messages[end].role == "tool":
            answered = messages[end].tool_call_id
            if answered is not None and ids and None not in ids and answered not in ids:
                yield "call_id_mismatch", end
            if end - first >= len(calls):
                yield "answer_without_call", end
            end += 1
        if end - first < len(calls) and end < len(messages):
            yield "unanswered_call", turn
        turn = max(end, turn + 1)


def _answer(message: Message) -> Iterator[str]:
    content = message.content
    stripped = content.strip()
    if content != stripped and stripped:
        yield "outer_whitespace"
    if not stripped:
        if not message.reasoning and not message.tool_calls:
            yield "empty_answer"
        return
    if len(stripped) <= SHORT_ANSWER and not message.tool_calls:
        yield "short_answer"
    blocks = find_code_blocks(content)
    if blocks.is_unclosed:
        yield "unclosed_code_fence"
    if _is_think_open(blocks.prose):
        yield "unclosed_think"
    before, end_of_thought, _ = blocks.prose.partition("</think>")
    if end_of_thought and "<think>" not in before:
        yield "think_without_start"
    if _repeats_itself(content):
        yield "repeats_itself"
    if _repeats_a_line(content):
        yield "repeats_a_line"
    if not message.tool_calls and not blocks.is_unclosed and _looks_cut(stripped):
        yield "looks_cut"
    if looks_like_refusal(content):
        yield REFUSAL


def _is_think_open(prose: str) -> bool:
    openings = [match.start() for match in re.finditer(r"^[ \t]*<think>", prose, re.MULTILINE)]
    return bool(openings) and "</think>" not in prose[openings[-1] :]


def _repeats_itself(text: str) -> bool:
    words_W = words(text)
    num_runs = len(words_W) - SHINGLE_WORDS + 1
    return len(words_W) >= MIN_REPEAT_WORDS and 1 - len(shingles(words_W)) / num_runs > MAX_REPEATED


def _repeats_a_line(text: str) -> bool:
    if text.count("\n") + 1 < MIN_LINE_TIMES:
        return False
    times: dict[str, int] = {}
    for line in prose_lines(text):
        times[line] = times.get(line, 0) + 1
    return any(count >= MIN_LINE_TIMES and len(words(line)) >= MIN_LINE_WORDS for line, count in times.items())


def _looks_cut(text: str) -> bool:
    if _OPEN_END.search(text[-_TAIL:]) is None:
        return False
    *others, last = (line for line in text.splitlines() if line.strip())
    if _NO_PROSE.match(last.strip()) or "|" in last or _TAG.search(last.split()[-1]):
        return False
    if len(words(last)) < MIN_LAST_LINE_WORDS:
        return False
    if sum(1 for _ in _ENDS_SENTENCE.finditer(text)) < MIN_SENTENCES:
        return False
    # Lyrics and lists have long lines without stops, too.
    long = [line.rstrip() for line in others if len(words(line)) >= MIN_LAST_LINE_WORDS]
    return 2 * sum(_LINE_STOPS.search(line) is not None for line in long) >= len(long)
