# SPDX-License-Identifier: Apache-2.0
"""What a template does by habit, found by rendering a few words with it: once per template, not per conversation."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from primus.chat.messages import Message, Role, ToolCall
from primus.errors import RenderError
from primus.sft.formatters.template.conversion import MessageForm
from primus.sft.formatters.template.tracking import TrackedRender
from primus.sft.formatters.template.turns import Turns

_NAME, _ARGUMENT, _ID = "lookup7", "quokka", "callid007"  # Mistral wants nine letters and digits
_ASK = Message("user", "wombat")
_SAY = Message("assistant", "numbat")
_CALL = Message("assistant", "", tool_calls=(ToolCall(_NAME, f'{{"key": "{_ARGUMENT}"}}', _ID),))
_CALLS = Message(
    "assistant",
    "",
    tool_calls=(_CALL.tool_calls[0], ToolCall(_NAME, f'{{"key": "{_ARGUMENT}"}}', "callid008")),
)
_ANSWER = Message("tool", "bilby", tool_call_id=_ID, name=_NAME)
_ANSWER_2 = Message("tool", "dingo", tool_call_id="callid008", name=_NAME)
_BEFORE: Mapping[Role | None, tuple[Message, ...]] = {
    "user": (_ASK,),
    "tool": (_ASK, _CALL, _ANSWER),
    "assistant": (_ASK, _SAY),
    "system": (Message("system", "potoroo"),),
    None: (),
}

TOKEN = re.compile(r"<[^<>\s]*>|\[/?[A-Z_]+\]|\s+|\w+|[^\w\s]")
"""The units of a header: tags, whitespace, words, and other characters."""

RenderInForm = Callable[[Sequence[Message], MessageForm], str]
RenderPlain = Callable[[Sequence[Message]], str]
RenderTracked = Callable[[Sequence[Message], bool], TrackedRender]


@dataclass(frozen=True, slots=True)
class Shape:
    """The habits of a template.

    Attributes:
        headers: What it writes to let the assistant speak, by the role of the message before; None where that is not
            known.
        tails: What it writes after an answer, without whitespace around; longest first.
        last_tail: What it writes after the last answer, likewise; empty for nothing.
        answer_opener: The tag in front of every tool answer that it writes inside an assistant turn; None for none.
        call_opening: What it writes between the header and the name of a tool call.
        sample: The text of a short conversation.
    """

    headers: Mapping[Role | None, str | None]
    tails: tuple[str, ...]
    last_tail: str
    answer_opener: str | None
    call_opening: str
    sample: str


def find_form(render: RenderInForm) -> MessageForm:
    """Find out how a template wants messages.

    Args:
        render: Renders messages in a form.

    Returns:
        The first form of which it prints everything; the plain one for what it prints in none.
    """

    def attempt(messages: Sequence[Message], form: MessageForm) -> str:
        try:
            return render(messages, form)
        except RenderError:
            return ""

    def prints_content(form: MessageForm) -> bool:
        text = attempt((_ASK, _SAY), form)
        # A template for strings prints a list of parts as Python does.
        return _ASK.content in text and _SAY.content in text and f"'{_SAY.content}'" not in text

    def prints_calls(form: MessageForm) -> bool:
        # A template for arguments as text prints an object as Python does.
        texts = [attempt(messages, form) for messages in ((_ASK, _CALL, _ANSWER, _SAY), (_ASK, _CALL))]
        return any(_NAME in text and _ARGUMENT in text and f"'{_ARGUMENT}'" not in text for text in texts)

    contents = (MessageForm(), MessageForm(content_as_parts=True))
    content = next(filter(prints_content, contents), MessageForm())
    calls = (
        replace(content, arguments_as_text=as_text, null_content=null)
        for as_text in (False, True)
        for null in (False, True)
    )
    return next(filter(prints_calls, calls), content)


def find_shape(plain: RenderPlain, tracked: RenderTracked) -> Shape:
    """Find the habits of a template.

    Args:
        plain: Renders messages.
        tracked: Renders tracked messages, with or without a generation prompt.

    Returns:
        Its habits; what the template refuses to render leaves them unknown.
    """
    headers = {role: _header(plain, tracked, before) for role, before in _BEFORE.items()}
    user, _ = headers["user"]
    sample = _attempt(tracked, (_ASK, _SAY))
    tails = _tails(tracked)
    return Shape(
        headers={role: user if is_refused else header for role, (header, is_refused) in headers.items()},
        tails=tuple(sorted({*tails} - {""}, key=lambda tail: (-len(tail), tail))),
        last_tail=tails[-1] if tails else "",
        answer_opener=_answer_opener(tracked),
        call_opening=_call_opening(tracked, user or ""),
        sample=sample.text if sample else "",
    )


def _attempt(tracked: RenderTracked, messages: Sequence[Message]) -> TrackedRender | None:
    try:
        return tracked(messages, False)  # noqa: FBT003
    except RenderError:
        return None


def _header(plain: RenderPlain, tracked: RenderTracked, before: Sequence[Message]) -> tuple[str | None, bool]:
    """What follows on messages to let the assistant speak, and whether the template refuses them."""
    try:
        prompt = tracked(before, True)  # noqa: FBT003
        base = plain(before)
    except RenderError:
        return None, True
    end = max((segment.end for segment in prompt.segments if segment.turn is not None), default=None)
    if end is not None and prompt.text[end:].strip():
        return prompt.text[end:], False
    return (prompt.text[len(base) :] if prompt.text.startswith(base) else None), False


def _tails(tracked: RenderTracked) -> list[str]:
    tails = []
    for messages in ((_ASK, _SAY, _ASK, _SAY), (_ASK, _SAY)):
        render = _attempt(tracked, messages)
        if render is None:
            continue
        for number, message in enumerate(messages):
            turn = Turns(render).find(number)
            if message is _SAY and turn is not None and turn.atoms:
                tails.append(render.text[turn.atoms[-1].end : turn.end].strip())
    return tails


def _call_opening(tracked: RenderTracked, header: str) -> str:
    render = _attempt(tracked, (_ASK, _CALL))
    turn = Turns(render).find(1) if render else None
    if render is None or turn is None or turn.first_own is None:
        return ""
    words = "".join(render.text[a:b] for a, b in turn.front())
    return words[longest_prefix(header, words) or 0 :]


def _answer_opener(tracked: RenderTracked) -> str | None:
    """The tag that stands in front of each of two tool answers inside an assistant turn.

    What stands only before the first may belong to the call or to the answers; then there is no telling.
    """
    render = _attempt(tracked, (_ASK, _CALLS, _ANSWER, _ANSWER_2))
    alone = _attempt(tracked, (_ASK, _CALLS))
    if render is None or alone is None:
        return None
    turn, turn_alone = Turns(render).find(1), Turns(alone).find(1)
    if turn is None or turn_alone is None:
        return None
    own = [atom for atom in turn.atoms if atom.is_own]
    answers = [atom for atom in turn.atoms if not atom.is_own]
    end = next((run.end for run in render.runs if render.sources[run.source].text == _ANSWER.content), 0)
    later = [atom.start for atom in answers if atom.start >= end]
    if not own or not answers or not later or not answers[0].end <= end:
        return None
    first, second = (TOKEN.findall(render.text[a:b]) for a, b in ((own[-1].end, answers[0].start), (end, later[0])))
    pairs = list(zip(reversed(first), reversed(second), strict=False))
    num = next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))
    common = first[len(first) - num :]
    tag = next((i for i, token in enumerate(common) if token.startswith("<") and len(token) > 1), None)
    if tag is None:
        return None
    call_end = "".join(first[: len(first) - num + tag])
    last_own = max((atom.end for atom in turn_alone.atoms if atom.is_own), default=0)
    return common[tag] if alone.text[last_own:].startswith(call_end) else None


def longest_prefix(header: str, text: str) -> int | None:
    r"""Where the longest beginning of a header, in whole units, ends in a text, at the last place where it stands.

    Args:
        header: The header as a generation prompt has it.
        text: What stands in front of an answer.

    Returns:
        The place in the text, or None if nothing but whitespace of the header is there.

    Examples:
        >>> longest_prefix("<|assistant|>\n<think>\n", "<|assistant|>\nOn"), longest_prefix("<|a|>", "Bot: ")
        (14, None)
    """
    units = TOKEN.findall(header)
    for num in range(len(units), 0, -1):
        prefix = "".join(units[:num])
        if not prefix.strip():
            return None
        at = text.rfind(prefix)
        if at >= 0:
            return at + len(prefix)
    return None
