# SPDX-License-Identifier: Apache-2.0
"""The weight of a message's loss, under all its names."""

import struct
from collections.abc import Mapping
from typing import Any

from primus.errors import ConversationError

_NUMBERS = ("weight", "loss_weight")
SWITCHES = ("train", "trainable", "loss", "loss_mask")
WEIGHT_FIELDS = (*_NUMBERS, *SWITCHES, "masked", "mask", "train_detail")


def cell_value(name: str, value: Any) -> Any:
    """The value of a weight's field in a table, where numbers and booleans are text.

    Args:
        name: The field.
        value: Its value.

    Returns:
        The number or the boolean; the same value if it is neither, or the field is none of a weight.
    """
    if not isinstance(value, str) or name not in WEIGHT_FIELDS:
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        number = float(value)
    except ValueError:
        return value
    return bool(number) if name == "masked" and number in (0, 1) else number


def read_weight(message: Mapping[str, Any], place: str) -> float | None:
    """The weight of a message's loss, under any of the names for it.

    Args:
        message: The message: `weight` and `loss_weight` are numbers; `train`, `trainable`, `loss` and `loss_mask` are
            booleans or numbers; `masked` is a boolean that says the opposite.
        place: What an error begins with.

    Returns:
        The weight, or None if nothing is said.

    Raises:
        ConversationError: If it is not of that type, two fields differ, or the field does not say what it means.
    """
    if message.keys().isdisjoint(WEIGHT_FIELDS):
        return None
    weights: dict[str, float] = {}
    for name in WEIGHT_FIELDS:
        value = message.get(name)
        if value is not None:
            weights[name] = _weight(name, value, place)
    if len(set(weights.values())) > 1:
        found = ", ".join(f"{name} {message[name]}" for name in sorted(weights))
        raise ConversationError(f"{place}: says different things about its weight ({found}); keep one", reason="weight")
    return next(iter(weights.values()), None)


def _weight(name: str, value: object, place: str) -> float:
    if name in ("mask", "train_detail"):
        why = "does not say whether 1 means trained" if name == "mask" else "trains parts of a message"
        raise ConversationError(f"{place}: {name} {why}; write weight 0 or 1 instead", reason="weight")
    if isinstance(value, bool):
        if name not in _NUMBERS:
            return float(value) if name != "masked" else float(not value)
    elif name != "masked" and isinstance(value, int | float) and -1e38 < value < 1e38:
        # A weight is a float32 later, which holds no larger number.
        _refuse_vanishing(name, value, place)
        return float(value)
    kind = "boolean" if name == "masked" else "number"
    raise ConversationError(f"{place}: {name} is {value!r:.40}, not a {kind}; write 0 or 1", reason="weight")


def _refuse_vanishing(name: str, value: float, place: str) -> None:
    """Refuse a number that the float32 of a weight rounds to 0."""
    if value and not struct.unpack("<f", struct.pack("<f", value))[0]:
        raise ConversationError(
            f"{place}: {name} is {value!r:.40}, which is 0 as a float32; write 0 to keep the answer as context, or a"
            " larger number",
            reason="weight",
        )
