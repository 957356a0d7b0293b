# SPDX-License-Identifier: Apache-2.0
"""A declared map of the columns of a file, for rows that no format knows."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from primus.chat.messages import ROLES
from primus.errors import ConfigError

_ROLES = (*ROLES, "function_call")
_OF_MESSAGES = ("role", "content", "name", "tool_calls", "tool_call_id", "weight")
_OF_SINGLE_TURNS = ("response", "input", "history")
_OF_TURNS = ("turn",)
_LLAMAFACTORY_KEYS = frozenset({"formatting", "columns", "tags", "file_name", "hf_hub_url", "ms_hub_url", "ranking"})
_MEDIA = ("images", "videos", "audios")
_DEFAULT_TAGS: Final[Mapping[str, Mapping[str, str]]] = {
    "sharegpt": {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "observation",
        "function_tag": "function_call",
        "system_tag": "system",
    },
    "openai": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "function_call",
        "system_tag": "system",
    },
}
_ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnMap:
    """Where the parts of a conversation stand in a row; a path such as `meta.system` leads into objects.

    Exactly one of `messages`, `prompt` and `conversation` is there.

    Attributes:
        messages: The list of messages; `role`, `content`, `name`, `tool_calls`, `tool_call_id` and `weight` are paths
            in one of them.
        prompt: What the user asks, as a text or a list of messages; `response` answers it, `input` is material for it,
            and `history` are pairs of turns before it.
        conversation: The identifier of the conversation, where every row is a turn; `role` and the others are paths in
            the row, and `turn` is the number of the turn.
        role: The speaker.
        content: The text.
        name: The speaker's name.
        tool_calls: The calls of a message.
        tool_call_id: The call that a message answers.
        weight: The weight of a message's loss, as a number or a boolean.
        response: The answer to the prompt.
        input: Material for the prompt.
        history: Turns before the prompt.
        turn: The number of a turn.
        system: The system prompt of the row.
        tools: The tool definitions of the row.
        label: Says with false that the answer is a bad example.
        roles: Names of roles, each with one of the four roles or `function_call`.
    """

    messages: str | None = None
    prompt: str | None = None
    conversation: str | None = None
    role: str = "role"
    content: str = "content"
    name: str | None = None
    tool_calls: str | None = None
    tool_call_id: str | None = None
    weight: str | None = None
    response: str | None = None
    input: str | None = None
    history: str | None = None
    turn: str | None = None
    system: str | None = None
    tools: str | None = None
    label: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def from_mapping(cls, mapping: object, *, origin: str = "column map") -> "ColumnMap":
        """Read a column map as it stands in a YAML file, or an entry of LLaMA-Factory's `dataset_info.json`.

        Args:
            mapping: The decoded file.
            origin: What the messages begin with, such as the file's name.

        Returns:
            The column map.

        Raises:
            ConfigError: If it is not valid; all problems are listed.

        Examples:
            >>> columns = {"messages": "dialog", "role": "who", "content": "says", "roles": {"client": "user"}}
            >>> ColumnMap.from_mapping(columns).content
            'says'
        """
        if not isinstance(mapping, Mapping):
            raise ConfigError(f"{origin}: is not a mapping; write a line such as `messages: dialog`")
        if not _LLAMAFACTORY_KEYS.isdisjoint(mapping):
            mapping = _from_llamafactory(mapping, origin)
        problems = [*_problems_of_fields(mapping), *_problems_of_kinds(mapping)]
        if problems:
            raise ConfigError(*(f"{origin}: {problem}" for problem in problems))
        return cls(**{str(key): value for key, value in mapping.items() if value is not None})


def _problems_of_fields(mapping: Mapping[Any, Any]) -> list[str]:
    known = [item.name for item in fields(ColumnMap)]
    problems = []
    for key, value in mapping.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(known)}"
            problems.append(f"{key!r} is not a part of a conversation; {hint}")
        elif key == "roles":
            problems += _problems_of_roles(value)
        elif value is not None and not (isinstance(value, str) and all(value.split("."))):
            problems.append(f"{key} is {value!r:.60}, not the name of a field; write a name, or a path such as a.b")
    return problems


def _problems_of_roles(roles: object) -> list[str]:
    if roles is None:
        return ["roles is empty; drop it, or write a line such as `client: user`"]
    if not isinstance(roles, Mapping):
        return [f"roles is {roles!r:.60}, not a mapping; write a line such as `client: user`"]
    problems = []
    for name, role in roles.items():
        if role not in _ROLES:
            problems.append(f"roles: {name!r:.60} is {role!r:.60}, not one of {', '.join(_ROLES)}; choose one")
        elif not isinstance(name, str):
            problems.append(f"roles: {name!r:.60} is {role!r}, but a name is a text; put it in quotes")
    return problems


def _problems_of_kinds(mapping: Mapping[Any, Any]) -> list[str]:
    kinds = [kind for kind in ("messages", "prompt", "conversation") if mapping.get(kind) is not None]
    if len(kinds) != 1:
        found = f"has {' and '.join(kinds)}" if kinds else "has none of them"
        remedy = "drop one" if kinds else "name one"
        return [f"needs exactly one of messages, prompt and conversation, but {found}; {remedy}"]
    if kinds == ["prompt"]:
        problems = [] if mapping.get("response") is not None else ["has prompt but no response; name the answer"]
        misplaced: tuple[str, ...] = (*_OF_MESSAGES, *_OF_TURNS)
    else:
        problems = []
        misplaced = _OF_SINGLE_TURNS if kinds == ["conversation"] else (*_OF_SINGLE_TURNS, *_OF_TURNS)
    return problems + [
        f"{key} has no meaning beside {kinds[0]}; drop it" for key in misplaced if mapping.get(key) is not None
    ]


def _from_llamafactory(entry: Mapping[Any, Any], origin: str) -> dict[str, Any]:
    """The same map in this project's words. Source of the names: LLaMA-Factory, `data/README.md`."""
    formatting = entry.get("formatting") or "alpaca"
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    problems = [
        f"{origin}: {name} is {value!r:.60}, not a mapping of names"
        for name, value in (("columns", columns), ("tags", tags))
        if not isinstance(value, Mapping)
    ]
    if formatting not in ("alpaca", *_DEFAULT_TAGS):
        problems.append(f"{origin}: formatting is {formatting!r:.60}, not alpaca, sharegpt or openai")
    if not problems:
        problems = [
            f"{origin}: columns has {name}, but only text can be trained here; drop the column" for name in _MEDIA
            if columns.get(name)
        ]  # fmt: skip
    if problems:
        raise ConfigError(*problems)
    result: dict[str, Any] = {"system": columns.get("system"), "tools": columns.get("tools")}
    result["label"] = columns.get("kto_tag")
    if formatting == "alpaca":
        answer = columns.get("chosen", "chosen") if entry.get("ranking") else columns.get("response", "output")
        prompt = {"prompt": columns.get("prompt", "instruction"), "input": columns.get("query", "input")}
        return {**result, **prompt, "response": answer, "history": columns.get("history")}
    messages = columns.get("messages", "conversations" if formatting == "sharegpt" else "messages")
    tags = {**_DEFAULT_TAGS[formatting], **tags}
    roles = {tags[tag]: role for tag, role in _ROLE_TAGS.items()}
    result |= {"role": tags["role_tag"], "content": tags["content_tag"], "roles": roles}
    if entry.get("ranking"):
        # The answer is a message of its own behind the list; role and content have the same names in it.
        raise ConfigError(
            f"{origin}: ranking with {formatting} has the answers beside the messages; write the chosen answer as the"
            " last message"
        )
    return {**result, "messages": messages}
