# SPDX-License-Identifier: Apache-2.0
"""The model keys that a Hugging Face folder's `config.json` stands for.

Only JSON is read here, so that a configuration is checked before anything heavy is imported.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primus.errors import ConfigError

CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")

LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What megatron-core fixes of Llama 3's rotary scaling; see its RotaryEmbedding._apply_scaling."""

_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
# What transformers takes where config.json is silent; all four families agree.
_EPSILON, _ROTARY_BASE, _QWEN3_HEAD_WIDTH, _WINDOW = 1e-6, 10000.0, 128, 4096


def read_hugging_face_config(folder: Path) -> Mapping[str, Any]:
    """Read the `config.json` of a folder.

    Args:
        folder: A model's folder.

    Returns:
        Its content.

    Raises:
        ConfigError: If there is none, or it is no JSON object.
    """
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: is no folder; download the model (hf download NAME --local-dir FOLDER) and name that folder"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(f"{folder}: holds no {CONFIG_FILE}; name the folder of a Hugging Face model") from exc
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: cannot be read ({exc}); download it again") from exc
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is no JSON object; download it again")
    return content


def model_keys_of(config: Mapping[str, Any], *, origin: str) -> Mapping[str, Any]:
    """Translate a `config.json` into Megatron's model keys.

    A sliding window becomes a limit of the sequences: in one that is no longer than the window, every position sees
    all before it, with the window or without.

    Args:
        config: The content of `config.json`.
        origin: Its path, for messages.

    Returns:
        Every key of `ModelKeys` that a pretrained model decides; dropout and padding are the run's.

    Raises:
        ConfigError: If the model is not of the Llama family, or has what megatron-core's GPTModel cannot compute. It
            lists everything.
    """
    model_type = config.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise ConfigError(
            f"{origin}: model_type is {model_type!r}; take a model of one of the types {', '.join(_MODEL_TYPES)}"
        )
    problems = [f"{origin}: {problem}" for problem in _not_supported(config)]
    problems += [
        f"{origin}: {name}: {config.get(name)!r} is no whole number above 0; download the file again"
        for name in _SIZES.values()
        if not isinstance(config.get(name), int) or config[name] <= 0
    ]
    if problems:
        raise ConfigError(*problems)
    keys = {key: config[name] for key, name in _SIZES.items()}
    window = sliding_window_of(config)
    if window is not None:
        keys["max_position_embeddings"] = min(window, keys["max_position_embeddings"])
    rotary = _rotary(config)
    return {
        **keys,
        "num_query_groups": config.get("num_key_value_heads") or config["num_attention_heads"],
        "kv_channels": _head_width(config),
        "position_embedding_type": "rope",
        "rotary_base": float(rotary.get("rope_theta") or config.get("rope_theta") or _ROTARY_BASE),
        "use_rope_scaling": _rope_type(rotary) == "llama3",
        **({"rope_scaling_factor": float(rotary["factor"])} if _rope_type(rotary) == "llama3" else {}),
        "normalization": "RMSNorm",
        "norm_epsilon": float(config.get("rms_norm_eps") or _EPSILON),
        "swiglu": True,
        "add_bias_linear": False,
        "add_qkv_bias": model_type == "qwen2" or (model_type == "qwen3" and bool(config.get("attention_bias"))),
        "qk_layernorm": model_type == "qwen3",
        "untie_embeddings_and_output_weights": not config.get("tie_word_embeddings", False),
        "init_method_std": float(config.get("initializer_range") or 0.02),
    }


def sliding_window_of(config: Mapping[str, Any]) -> int | None:
    """How far back a model's attention looks, in positions, or None if it looks at everything.

    Args:
        config: The content of `config.json`.

    Returns:
        The window.

    Examples:
        >>> sliding_window_of({"model_type": "mistral", "sliding_window": 4096})
        4096
        >>> sliding_window_of({"model_type": "qwen2", "sliding_window": 131072, "use_sliding_window": False})
    """
    model_type = config.get("model_type")
    is_windowed = model_type == "mistral" or (model_type in {"qwen2", "qwen3"} and config.get("use_sliding_window"))
    window = config.get("sliding_window", _WINDOW) if is_windowed else None
    return None if window is None else int(window)


def _head_width(config: Mapping[str, Any]) -> int:
    fallback = _QWEN3_HEAD_WIDTH if config["model_type"] == "qwen3" else None
    # Qwen2's class reads it, too, where it is given.
    width = config.get("head_dim") or fallback or config["hidden_size"] // config["num_attention_heads"]
    return int(width)


def _rotary(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings under their new name or their old one."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return settings if isinstance(settings, dict) else {}


def _rope_type(rotary: Mapping[str, Any]) -> str:
    return str(rotary.get("rope_type") or rotary.get("type") or "default")


def _not_supported(config: Mapping[str, Any]) -> list[str]:
    """What a model of the family may have, and GPTModel as it is built here has not."""
    fixed = {
        "hidden_act": ("silu", "gated SiLU is the MLP's only activation"),
        "mlp_bias": (False, "the linear layers of the MLP have no bias"),
        "partial_rotary_factor": (1.0, "rotary positions turn whole heads"),
    }
    if config["model_type"] == "llama":
        fixed["attention_bias"] = (False, "Llama's output projection would have one, which GPTModel has not")
    advice = "take another model"
    problems = [
        f"{name} is {config[name]!r}, and {why}; {advice}"
        for name, (value, why) in fixed.items()
        if config.get(name) is not None and config[name] != value
    ]
    if config.get("quantization_config"):
        problems.append("quantization_config: the weights are quantized; take the model's folder with full weights")
    rotary = _rotary(config)
    rope_type = _rope_type(rotary)
    if rotary.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(f"partial_rotary_factor is not 1, and {fixed['partial_rotary_factor'][1]}; {advice}")
    if rope_type not in {"default", "llama3"}:
        problems.append(
            f"rope_type is {rope_type!r}, and only default and llama3 are available; take the settings of the"
            " unstretched context (remove rope_scaling), if the model was trained with them"
        )
    elif rope_type == "llama3":
        wrong = {name: rotary.get(name) for name, value in LLAMA3_ROPE.items() if rotary.get(name) != value}
        problems += [
            f"{name} is {value!r}, and Megatron fixes {LLAMA3_ROPE[name]:g}; {advice}" for name, value in wrong.items()
        ]
        if not isinstance(rotary.get("factor"), int | float):
            problems.append("factor: is missing in the rotary scaling; download the file again")
    return problems
