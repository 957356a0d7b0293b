# SPDX-License-Identifier: Apache-2.0
"""OpenAssistant trees: `{"prompt": {"role", "text", "replies": [...]}}`, or a row per message with `message_tree_id`.

Every path from the root to a reply of the assistant behind which no other one stands is a conversation; `oasst: best`
takes only the best-ranked reply at each step. Questions at the end that nobody answered, deleted messages and those
that reviewers refused are left out with what stands behind them, and noted. A turn that several branches share stands
in each of them, and is trained with each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from primus.chat.formats.message_reading import Dialect, read_message, role_of
from primus.chat.formats.notes import Notes
from primus.chat.formats.options import SourceOptions
from primus.chat.formats.values import type_name
from primus.chat.messages import Conversation, Message
from primus.chat.reading import Row
from primus.errors import ConversationError

_DIALECT = Dialect(("role",), ("text",), {"prompter": "user", "user": "user", "assistant": "assistant"})
_STRUCTURE = ("replies", "rank", "deleted", "review_result", "message_id", "parent_id", "message_tree_id")
_ROW = frozenset({"message_id", "text", "role"})
FIELDS = ("prompt", "message_id")
TREE_COLUMN = "message_tree_id"
UNANSWERED, DELETED, REFUSED = "unanswered prompts", "deleted messages", "messages that reviewers refused"


@dataclass(slots=True)
class _Node:
    message: Message
    rank: float
    replies: list["_Node"] = field(default_factory=list)


def recognises(row: object, options: SourceOptions) -> bool:
    """Whether a row is a tree, or a message of one."""
    del options
    if not isinstance(row, Mapping):
        return False
    prompt = row.get("prompt")
    return (isinstance(prompt, Mapping) and "replies" in prompt) or _is_message(row)


def _is_message(row: Mapping[str, Any]) -> bool:
    return row.keys() >= _ROW and not row.keys().isdisjoint(("parent_id", "message_tree_id"))


def group(row: object, options: SourceOptions) -> str | None:
    """The tree that a row is a message of."""
    del options
    if isinstance(row, Mapping) and _is_message(row) and isinstance(row.get(TREE_COLUMN), str):
        return str(row[TREE_COLUMN])
    return None


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Read a tree as its branches."""
    notes = Notes(origin, options)
    prompt = row.get("prompt") if isinstance(row, Mapping) else None
    if not isinstance(prompt, Mapping):
        raise ConversationError(
            f"{origin}: the row is one message of a tree and does not say of which (message_tree_id); convert the file"
            " of whole trees",
            reason="part_of_a_conversation",
        )
    notes.ignore_others(row, ("prompt",))
    left_out: set[str] = set()
    return _conversations(_nested(prompt, notes, f"{origin}: prompt", left_out), notes, left_out)


def parse_rows(rows: Sequence[Row], options: SourceOptions) -> tuple[Conversation, ...]:
    """Read the messages of one tree as its branches."""
    notes = Notes(rows[0].origin, options)
    nodes: dict[object, _Node | str] = {}  # of one that is left out, why
    left_out: set[str] = set()
    root: _Node | None = None
    for row in rows:
        value = row.value
        place = f"{notes.origin}: message at {row.origin}"
        parent_id = value.get("parent_id")
        if parent_id is not None and (not isinstance(parent_id, str) or parent_id not in nodes):
            raise ConversationError(
                f"{place}: answers {parent_id!r:.60}, which does not stand before it; sort the rows, or convert the"
                " file of whole trees",
                reason="part_of_a_conversation",
            )
        if parent_id is None and nodes:
            raise ConversationError(
                f"{place}: is a second root of its tree; repair the file", reason="part_of_a_conversation"
            )
        parent = None if parent_id is None else nodes[parent_id]
        node = parent if isinstance(parent, str) else _node(value, notes, place)
        if not isinstance(value["message_id"], str) or value["message_id"] in nodes:
            raise ConversationError(
                f"{place}: message_id is {value['message_id']!r:.60}, not a name of its own; repair the file",
                reason="field_type",
            )
        nodes[value["message_id"]] = node
        if isinstance(node, str):
            left_out |= {node} if _is_answer(value, notes) else set()
            continue
        if isinstance(parent, _Node):
            parent.replies.append(node)
        root = root or node
    return _conversations(root, notes, left_out)


def _nested(value: object, notes: Notes, place: str, left_out: set[str]) -> _Node | None:
    node = _node(value, notes, place)
    replies = value.get("replies") if isinstance(value, Mapping) else None
    if not isinstance(replies, list | tuple | None):
        raise ConversationError(
            f"{place}: replies is a {type_name(replies)}, not a list; repair the row", reason="messages_type"
        )
    if isinstance(node, str):
        left_out |= {node} if _has_answer(value, notes) else set()
        return None
    read = (_nested(reply, notes, f"{place}.replies[{i}]", left_out) for i, reply in enumerate(replies or ()))
    node.replies = [reply for reply in read if reply is not None]
    return node


def _is_answer(value: object, notes: Notes) -> bool:
    name = value.get("role") if isinstance(value, Mapping) else None
    return isinstance(name, str) and role_of(name, notes, _DIALECT) == "assistant"


def _has_answer(value: object, notes: Notes) -> bool:
    """Whether a message that is left out, or one behind it, is an assistant's."""
    replies = value.get("replies") if isinstance(value, Mapping) else None
    behind = replies if isinstance(replies, list | tuple) else ()
    return _is_answer(value, notes) or any(_has_answer(reply, notes) for reply in behind)


def _node(value: object, notes: Notes, place: str) -> _Node | str:
    """One message without its replies; if it is left out, why."""
    fields = dict(value) if isinstance(value, Mapping) else value
    if isinstance(fields, dict):
        structure = {name: fields.pop(name, None) for name in _STRUCTURE}
        for is_out, why in ((structure["deleted"] is True, DELETED), (structure["review_result"] is False, REFUSED)):
            if is_out:
                notes.ignored.add(why)
                return why
        rank = structure["rank"]
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float)):
            raise ConversationError(f"{place}: rank is a {type_name(rank)}, not a number; repair the row",
                                    reason="rank")  # fmt: skip
        message = read_message(fields, notes, place, dialect=_DIALECT)
        return _Node(message, float("inf") if rank is None else rank)
    return _Node(read_message(fields, notes, place, dialect=_DIALECT), float("inf"))


def _conversations(root: _Node | None, notes: Notes, left_out: set[str]) -> tuple[Conversation, ...]:
    if root is None or not _answered(root, notes):
        if left_out:
            raise ConversationError(
                f"{notes.origin}: every answer of the tree is left out ({' and '.join(sorted(left_out))}, with what"
                " stands behind them), so there is nothing to train; drop the row",
                reason="no_assistant",
            )
        raise ConversationError(
            f"{notes.origin}: no message of the tree is an assistant's answer, so there is nothing to train; drop the"
            " row",
            reason="no_assistant",
        )
    paths = [_best(root)] if notes.options.oasst == "best" else list(_paths(root, []))
    if len(paths) == 1:
        return (notes.conversation(paths[0]),)
    return tuple(notes.conversation(path, origin=f"{notes.origin}#{i}") for i, path in enumerate(paths))


def _answered(node: _Node, notes: Notes) -> bool:
    """Drop the replies that lead to no answer; whether the node itself does or is one."""
    answered = [reply for reply in node.replies if _answered(reply, notes)]
    if len(answered) < len(node.replies):
        notes.ignored.add(UNANSWERED)
    node.replies = answered
    return bool(answered) or node.message.role == "assistant"


def _best(root: _Node) -> list[Message]:
    path = [root]
    while path[-1].replies:
        path.append(min(path[-1].replies, key=lambda reply: reply.rank))
    return [node.message for node in path]


def _paths(node: _Node, before: list[Message]) -> Iterator[list[Message]]:
    path = [*before, node.message]
    if not node.replies:
        yield path
    for reply in node.replies:
        yield from _paths(reply, path)
