# SPDX-License-Identifier: Apache-2.0
"""ToolTalk: `{"conversation": [{"role", "text", "apis": [{"request", "response", "exception"}]}]}`.

The calls of an assistant's turn were made one after another before the text was said, so each is a message of its own
with its answer behind it. The answer is the JSON of response and exception, as ToolTalk shows it to models
(microsoft/ToolTalk, `evaluate_openai.py`).
"""

from collections.abc import Mapping
from typing import Any

from primus.chat.formats.flags import weighted
from primus.chat.formats.message_reading import Dialect, read_message, require_list
from primus.chat.formats.notes import Notes
from primus.chat.formats.options import SourceOptions
from primus.chat.formats.tools import tool_call
from primus.chat.formats.values import canonical_json, type_name
from primus.chat.messages import Conversation, Message
from primus.errors import ConversationError

FIELD = "conversation"
_DIALECT = Dialect(("role",), ("text",), {"user": "user", "assistant": "assistant", "system": "system"})


def recognises(row: object, options: SourceOptions) -> bool:
    """Whether a row's conversation has texts, and any of its turns has `apis`."""
    del options
    turns = row.get(FIELD) if isinstance(row, Mapping) else None
    if not isinstance(turns, list | tuple) or not turns or not isinstance(turns[0], Mapping) or "text" not in turns[0]:
        return False
    return any(isinstance(turn, Mapping) and "apis" in turn for turn in turns)


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Read a row as one conversation."""
    notes = Notes(origin, options)
    messages: list[Message] = []
    for turn, entry in enumerate(require_list(row.get(FIELD), FIELD, origin)):
        messages += _read(entry, notes, f"{origin}: turn {turn}")
    notes.ignore_others(row, (FIELD,))
    return (notes.conversation(messages),)


def _read(entry: object, notes: Notes, place: str) -> list[Message]:
    apis: object = ()
    if isinstance(entry, Mapping):
        apis = entry.get("apis") or ()
        entry = {name: value for name, value in entry.items() if name not in ("apis", "index")}
    message = read_message(entry, notes, place, dialect=_DIALECT)
    if not isinstance(apis, list | tuple) or (apis and message.role != "assistant"):
        raise ConversationError(
            f"{place}: apis are a {type_name(apis)} of the {message.role}, not a list of the assistant's calls; repair"
            " the row",
            reason="tool_calls",
        )
    calls = [_call(api, notes, f"{place}: apis[{i}]") for i, api in enumerate(apis)]
    # The calls are the assistant's words of this turn as much as the text behind them.
    return [*(weighted(part, message.weight) for call in calls for part in call), message]


def _call(api: object, notes: Notes, place: str) -> tuple[Message, Message]:
    request = api.get("request") if isinstance(api, Mapping) else None
    if not isinstance(api, Mapping) or not isinstance(request, Mapping) or not isinstance(request.get("api_name"), str):
        raise ConversationError(f"{place}: has no request with an api_name; repair the row", reason="tool_calls")
    notes.ignore_others(api, ("request", "response", "exception"), prefix="apis.")
    notes.ignore_others(request, ("api_name", "parameters"), prefix="apis.request.")
    name = request["api_name"]
    answer = {"response": api.get("response"), "exception": api.get("exception")}
    try:
        call = Message("assistant", "", tool_calls=(tool_call(name, request.get("parameters"), notes, place),))
        return call, Message("tool", canonical_json(answer, place), name=name)
    except ConversationError as exc:
        raise exc if str(exc).startswith(place) else ConversationError(f"{place}: {exc}", reason=exc.reason) from exc
