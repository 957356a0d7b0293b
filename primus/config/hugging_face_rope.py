# SPDX-License-Identifier: Apache-2.0
"""The rotary settings of a `config.json`, which has two names and three places for them.

`rope_scaling` is the old name, with the base beside it in `rope_theta`; `rope_parameters` is the new one, and has the
base in it. Writers put both down, so that old and new readers understand. transformers takes `rope_scaling` where there
are both (`convert_rope_params_to_dict`), and other readers the other one; so both must say the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from primus.config.hugging_face_values import POSITIVE

LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What megatron-core fixes of Llama 3's rotary scaling; see its RotaryEmbedding._apply_scaling."""

_NAMES = ("rope_scaling", "rope_parameters")
_ROTARY_BASE = 10000.0  # what transformers takes where config.json is silent; all four families agree
_ADVICE = "take another model"
_REMEDIES = {
    "rope_scaling": "remove rope_scaling",
    "rope_parameters": "leave rope_type default and rope_theta in rope_parameters",
}


@dataclass(frozen=True, kw_only=True)
class RopeSettings:
    """How positions turn queries and keys."""

    theta: float
    """Base of the frequencies."""
    llama3_factor: float | None
    """Factor of Llama 3's scaling; None if nothing is scaled."""


def rope_settings(config: Mapping[str, Any], *, problems: list[str]) -> RopeSettings | None:
    """Find the settings that transformers would compute with.

    Args:
        config: The content of `config.json`, whose `max_position_embeddings` is a number.
        problems: Takes one entry for each setting that is not understood, or that Megatron cannot compute.

    Returns:
        The settings; None if there is a problem.

    Examples:
        >>> rope_settings({"rope_theta": 500000.0}, problems=[])
        RopeSettings(theta=500000.0, llama3_factor=None)
    """
    problems_before = len(problems)
    found = {name: settings for name in _NAMES if (settings := _read(config, name, problems=problems)) is not None}
    if len(found) > 1:
        problems += _contradictions(*found.values())
    if len(problems) > problems_before:
        return None
    name, settings = next(iter(found.items()), ("rope_theta", _completed({}, config)))
    problems += _not_available(settings, config, name=name)
    if len(problems) > problems_before:
        return None
    factor = float(settings["factor"]) if settings["rope_type"] == "llama3" else None
    return RopeSettings(theta=float(settings["rope_theta"]), llama3_factor=factor)


def _read(config: Mapping[str, Any], name: str, *, problems: list[str]) -> Mapping[str, Any] | None:
    settings = config.get(name)
    if settings is None or settings == {}:
        return None
    if not isinstance(settings, dict):
        problems.append(f"{name} is {settings!r}, not a mapping; download the file again")
        return None
    nested = [key for key, value in settings.items() if isinstance(value, dict)]
    if nested:
        problems.append(
            f"{name} has settings of its own for {', '.join(nested)}, and positions turn alike in all layers; {_ADVICE}"
        )
        return None
    if settings.get("type") is not None and settings.get("rope_type", settings["type"]) != settings["type"]:
        problems.append(
            f"{name} has rope_type {settings['rope_type']!r} and type {settings['type']!r}; remove the wrong one"
        )
        return None
    return _completed(settings, config)


def _completed(settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with what transformers fills in, from beside them or by itself."""
    kind = settings.get("rope_type", settings.get("type", "default"))
    theta = settings.get("rope_theta", config.get("rope_theta", _ROTARY_BASE))
    completed = {**settings, "rope_type": kind, "rope_theta": theta}
    completed.pop("type", None)
    if kind == "llama3":
        # Here the value beside the settings comes first, as transformers has it.
        inside = settings.get("original_max_position_embeddings", config["max_position_embeddings"])
        completed["original_max_position_embeddings"] = config.get("original_max_position_embeddings", inside)
    return completed


def _contradictions(scaling: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[str]:
    keys = [key for key in {**scaling, **parameters} if scaling.get(key) != parameters.get(key)]
    if not keys:
        return []
    differing = ", ".join(f"{key} {scaling.get(key)!r} and {parameters.get(key)!r}" for key in keys)
    problem = f"rope_scaling and rope_parameters contradict each other ({differing})"
    return [f"{problem}; put what the model was trained with, rope_theta included, in one of them and remove the other"]


def _not_available(settings: Mapping[str, Any], config: Mapping[str, Any], *, name: str) -> list[str]:
    theta, kind = settings["rope_theta"], settings["rope_type"]
    problems = []
    if not POSITIVE.accepts(theta):
        problems.append(f"rope_theta is {theta!r}, not {POSITIVE.words}; download the file again")
    for place in (settings, config):
        share = place.get("partial_rotary_factor")
        if share is not None and share != 1:
            problems.append(f"partial_rotary_factor is {share!r}, and rotary positions turn whole heads; {_ADVICE}")
    if kind not in ("default", "llama3"):
        problems.append(
            f"rope_type is {kind!r} in {name}, and only default and llama3 are available; take the settings of the"
            f" unstretched context ({_REMEDIES[name]}), if the model was trained with them"
        )
    elif kind == "llama3":
        problems += [
            f"{key} is {settings.get(key)!r}, and Megatron fixes {value:g}; {_ADVICE}"
            for key, value in LLAMA3_ROPE.items()
            if settings.get(key) != value
        ]
        if not POSITIVE.accepts(settings.get("factor")):
            problems.append(
                f"factor is {settings.get('factor')!r} in {name}, not {POSITIVE.words}; download the file again"
            )
    return problems
