# SPDX-License-Identifier: Apache-2.0
"""The values of a `config.json`: of which kind each is, and what transformers takes where it is absent.

`config.json` is written by many programs and by hand, and nothing checks it but its reader.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""The model types that can be trained, and the class that each has in transformers."""


class Kind(NamedTuple):
    """What a value may be."""

    words: str
    """For messages."""
    accepts: Callable[[object], bool]
    """Whether a value is of the kind."""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value <= sys.float_info.max  # type: ignore[operator]


COUNT = Kind("a whole number above 0", _is_count)
POSITIVE = Kind("a number above 0", _is_positive)
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))

_NEEDED = object()


class _Key(NamedTuple):
    kind: Kind
    default: Any = _NEEDED
    may_be_null: bool = False


_SIZE = _Key(COUNT)
_WINDOW = _Key(COUNT, 4096, may_be_null=True)
_OF_ALL: Mapping[str, _Key] = {
    "num_hidden_layers": _SIZE,
    "hidden_size": _SIZE,
    "intermediate_size": _SIZE,
    "num_attention_heads": _SIZE,
    "max_position_embeddings": _SIZE,
    "vocab_size": _SIZE,
    "num_key_value_heads": _Key(COUNT, None, may_be_null=True),
    "head_dim": _Key(COUNT, None, may_be_null=True),
    "rms_norm_eps": _Key(POSITIVE, 1e-6),
    "tie_word_embeddings": _Key(SWITCH, default=False),
}
_OF_FAMILY: Mapping[str, Mapping[str, _Key]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": _Key(COUNT, 8, may_be_null=True), "sliding_window": _WINDOW},
    "qwen2": {
        "num_key_value_heads": _Key(COUNT, 32, may_be_null=True),
        "head_dim": _Key(COUNT, None),  # no key of the class, which looks for it all the same
        "use_sliding_window": _Key(SWITCH, default=False),
        "sliding_window": _WINDOW,
    },
    "qwen3": {
        "num_key_value_heads": _Key(COUNT, 32, may_be_null=True),
        "head_dim": _Key(COUNT, 128),
        "attention_bias": _Key(SWITCH, default=False),
        "use_sliding_window": _Key(SWITCH, default=False),
        "sliding_window": _WINDOW,
    },
}

_FIXED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "hidden_act": (("silu", "swish"), "gated SiLU is the MLP's only activation"),
    "mlp_bias": ((False, None), "the linear layers of the MLP have no bias"),
    "is_causal": ((True, None), "a position sees only those before it"),
}
_NO_OUTPUT_BIAS = ((False, None), "Llama's output projection would have one, which GPTModel has not")
_ADVICE = "take another model"
_MUST_BE_ABSENT = {
    "quantization_config": "the weights are quantized; take the model's folder with full weights",
    "compression_config": "the weights are quantized; take the model's folder with full weights",
    "transformers_weights": "the weights are in a file of another name; save the model anew with save_pretrained",
    "per_layer_config": f"layers have settings of their own, and all are alike here; {_ADVICE}",
}


def read_values(config: Mapping[str, Any], *, problems: list[str]) -> dict[str, Any]:
    """Check every value that a model is built from, but for the rotary settings.

    Args:
        config: The content of `config.json`, of one of `FAMILIES`.
        problems: Takes one entry for each value that is missing, or of the wrong kind.

    Returns:
        The values by name, with what transformers takes for those that are absent; without those in `problems`.
        `sliding_window` is None where attention looks at everything.
    """
    keys = {**_OF_ALL, **_OF_FAMILY[config["model_type"]]}
    values: dict[str, Any] = {"sliding_window": None}
    for name, key in keys.items():
        if name == "sliding_window" and values.get("use_sliding_window") is False:
            continue
        value = config.get(name, key.default)
        if value is _NEEDED:
            problems.append(f"{name} is missing; download the file again")
        elif name in config and not (value is None and key.may_be_null) and not key.kind.accepts(value):
            problems.append(f"{name} is {value!r}, not {key.kind.words}; download the file again")
        else:
            values[name] = value
    return values


def unavailable(config: Mapping[str, Any]) -> list[str]:
    """List what a model of the family may have, and GPTModel as it is built here has not.

    Args:
        config: The content of `config.json`, of one of `FAMILIES`.

    Returns:
        Problems, with what to do.
    """
    family = config["model_type"]
    fixed = {**_FIXED, **({"attention_bias": _NO_OUTPUT_BIAS} if family == "llama" else {})}
    problems = [
        f"{name} is {config[name]!r}, and {why}; {_ADVICE}"
        for name, (values, why) in fixed.items()
        if name in config and config[name] not in values
    ]
    problems += [f"{name}: {why}" for name, why in _MUST_BE_ABSENT.items() if config.get(name) not in (None, {})]
    classes = config.get("architectures")
    if classes is not None and classes != [FAMILIES[family]]:
        problems.append(f"architectures is {classes!r}, and a {family} model here is a {FAMILIES[family]}; {_ADVICE}")
    own_classes = config.get("auto_map")
    if own_classes is not None and (not isinstance(own_classes, dict) or "AutoModelForCausalLM" in own_classes):
        problems.append(f"auto_map: the model comes with code of its own, which is not run here; {_ADVICE}")
    return problems
