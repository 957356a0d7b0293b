# SPDX-License-Identifier: Apache-2.0
"""Keys of Megatron whose effect this version does not have, and what works instead.

They are known, so that a recipe from elsewhere gets an answer; they are refused, so that none is ignored.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from primus.config.schema import TrainerConfig


class Unavailable(NamedTuple):
    """A feature that is asked for by a key and is not there yet."""

    key: str
    """Dotted name of the key."""
    is_asked_for: Callable[[TrainerConfig], bool]
    """Whether the settings ask for it."""
    instead: str
    """What to do, after the value and the words `is not available yet`."""


UNAVAILABLE: Sequence[Unavailable] = (
    Unavailable(
        "add_bias_linear", lambda t: t.add_bias_linear, "set it to false; add_qkv_bias is the bias that Qwen2 has"
    ),
)


def asked_for(trainer: TrainerConfig) -> Sequence[Unavailable]:
    """Return the unavailable features that the settings ask for.

    Args:
        trainer: The settings. A key without a usable value has its default, and no default asks for such a feature.

    Returns:
        In the order of `UNAVAILABLE`.
    """
    return [feature for feature in UNAVAILABLE if feature.is_asked_for(trainer)]
