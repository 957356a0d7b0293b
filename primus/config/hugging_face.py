# SPDX-License-Identifier: Apache-2.0
"""The model keys that a Hugging Face folder's `config.json` stands for.

Only JSON is read here, so that a configuration is checked before anything heavy is imported.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primus.config.hugging_face_rope import rope_settings
from primus.config.hugging_face_values import FAMILIES, POSITIVE, read_values, unavailable
from primus.errors import ConfigError

CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")

_ADAPTER_FILE = "adapter_config.json"
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_INIT_STD = 0.02


def read_hugging_face_config(folder: Path) -> Mapping[str, Any]:
    """Read the `config.json` of a folder.

    Args:
        folder: A model's folder.

    Returns:
        Its content.

    Raises:
        ConfigError: If there is none, it is no JSON object, or an adapter stands beside it, which transformers applies.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: is no folder; download the model (hf download NAME --local-dir FOLDER) and name that folder"
        )
    if (folder / _ADAPTER_FILE).exists():
        raise ConfigError(
            f"{folder}: holds {_ADAPTER_FILE}, and adapters are not applied here; merge them into the model first"
            " (merge_and_unload of peft), or name the folder of the model without them"
        )
    content = _read_object(folder / CONFIG_FILE)
    if content is None:
        raise ConfigError(f"{folder}: holds no {CONFIG_FILE}; name the folder of a Hugging Face model")
    return content


def read_generation(folder: Path) -> Mapping[str, Any]:
    """Read by what the output of a model begins and ends, and how it is chosen.

    Args:
        folder: A model's folder.

    Returns:
        `token_ids`: the special ids in `config.json`; `generation_config`: the content of `generation_config.json`.
        Empty where there is no such file.

    Raises:
        ConfigError: If a file is no JSON object, or a special id no id.
    """
    config, generation = (_read_object(folder / name) or {} for name in (CONFIG_FILE, GENERATION_FILE))
    problems = [
        f"{folder / file}: {name} is {content[name]!r}, not an id or a list of ids; download the file again"
        for file, content in ((CONFIG_FILE, config), (GENERATION_FILE, generation))
        for name in _TOKEN_IDS
        if name in content and not _are_ids(content[name])
    ]
    if problems:
        raise ConfigError(*problems)
    token_ids = {name: config[name] for name in _TOKEN_IDS if name in config}
    return {"token_ids": token_ids, "generation_config": generation}


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
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"{origin}: model_type is {model_type!r}; take a model of one of the types {', '.join(FAMILIES)}"
        )
    problems = unavailable(config)
    values = read_values(config, problems=problems)
    rope = rope_settings(config, problems=problems) if "max_position_embeddings" in values else None
    if not problems:
        problems = _bad_heads(
            values, model_type=model_type, is_scaled=rope is not None and rope.llama3_factor is not None
        )
    if problems or rope is None:
        raise ConfigError(*(f"{origin}: {problem}" for problem in problems))
    heads, window = values["num_attention_heads"], values["sliding_window"]
    deviation: Any = config.get("initializer_range")
    return {
        "num_layers": values["num_hidden_layers"],
        "hidden_size": values["hidden_size"],
        "ffn_hidden_size": values["intermediate_size"],
        "num_attention_heads": heads,
        "max_position_embeddings": min(window or math.inf, values["max_position_embeddings"]),
        "vocab_size": values["vocab_size"],
        "num_query_groups": values["num_key_value_heads"] or heads,
        "kv_channels": _head_width(values),
        "position_embedding_type": "rope",
        "rotary_base": rope.theta,
        "use_rope_scaling": rope.llama3_factor is not None,
        **({} if rope.llama3_factor is None else {"rope_scaling_factor": rope.llama3_factor}),
        "normalization": "RMSNorm",
        "norm_epsilon": float(values["rms_norm_eps"]),
        "swiglu": True,
        "add_bias_linear": False,
        "add_qkv_bias": model_type == "qwen2" or (model_type == "qwen3" and values["attention_bias"]),
        "qk_layernorm": model_type == "qwen3",
        "untie_embeddings_and_output_weights": not values["tie_word_embeddings"],
        # No weight of a pretrained model is drawn, so whatever stands there does no harm.
        "init_method_std": float(deviation) if POSITIVE.accepts(deviation) else _INIT_STD,
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
    window: int | None = read_values(config, problems=[]).get("sliding_window")
    return window


def _head_width(values: Mapping[str, Any]) -> int:
    return int(values["head_dim"] or values["hidden_size"] // values["num_attention_heads"])


def _bad_heads(values: Mapping[str, Any], *, model_type: str, is_scaled: bool) -> list[str]:
    """What is wrong with numbers that are right one by one."""
    hidden, heads, groups = (values[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    problems = []
    if groups is not None and heads % groups:
        problems.append(
            f"num_key_value_heads is {groups}, which does not divide num_attention_heads, {heads}; download the file"
            " again"
        )
    if _head_width(values) % 2:
        problems.append(
            f"head_dim is {_head_width(values)}, and rotary positions turn pairs, so it has to be even; take another"
            " model"
        )
    # Older readers ignore a scaling in a Mistral, so it is exported as the Llama that it is.
    if hidden % heads and (model_type == "llama" or (model_type == "mistral" and is_scaled)):
        problems.append(
            f"hidden_size is {hidden}, no multiple of num_attention_heads, {heads}, which LlamaForCausalLM needs; take"
            " another model"
        )
    return problems


def _read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}: cannot be read ({exc}); download it again") from exc
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is no JSON object; download it again")
    return content


def _are_ids(value: object) -> bool:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(each, int) and not isinstance(each, bool) for each in ids)
