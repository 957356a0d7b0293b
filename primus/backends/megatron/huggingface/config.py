# SPDX-License-Identifier: Apache-2.0
"""`config.json` and `generation_config.json` of an exported model.

The rotary settings are written twice: as `rope_parameters`, which transformers 5 reads, and as `rope_theta` and
`rope_scaling`, which everything older reads. A reader that knows only the old names would otherwise take its default
base without a word, and the model would run, badly.
"""

from collections.abc import Sequence
from typing import Any

from primus.backends.megatron.planning.parameter_count import HeadLayout
from primus.config.hugging_face_rope import LLAMA3_ROPE
from primus.config.schema import ModelKeys
from primus.errors import CheckpointError

_NO_WINDOW: dict[str, Any] = {"use_sliding_window": False, "sliding_window": None}


def model_config(
    model: ModelKeys,
    *,
    vocab_size: int,
    params_dtype: str,
    token_ids: dict[str, Any],
    model_type: str | None = None,
) -> dict[str, Any]:
    """The content of `config.json`.

    Args:
        model: The model's keys.
        vocab_size: Rows of the embedding without Megatron's padding.
        params_dtype: `float32` or `bfloat16`, the type of the weights in the folder.
        token_ids: `special_token_ids`' result.
        model_type: The family of the pretrained model, if there was one.

    Returns:
        A configuration for LlamaForCausalLM, or for MistralForCausalLM if the model was one and has scaled no rotary
        positions, which is the same; for Qwen2ForCausalLM if the model has query, key and value biases, or for
        Qwen3ForCausalLM if it normalises queries and keys.

    Raises:
        CheckpointError: If no architecture of `transformers` has the model's shape.
    """
    heads = HeadLayout.of(model)
    architecture, own_type = _architecture(model, pretrained=model_type)
    if own_type == "llama" and model.hidden_size % model.num_attention_heads:
        raise CheckpointError(
            f"model: LlamaForCausalLM needs a hidden_size ({model.hidden_size}) that is a multiple of "
            f"num_attention_heads ({model.num_attention_heads}); no Hugging Face model has this shape"
        )
    return {
        "architectures": [architecture],
        "model_type": own_type,
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": heads.num_attention_heads,
        "num_key_value_heads": heads.num_query_groups,
        "head_dim": heads.kv_channels,
        "hidden_act": "silu",
        "max_position_embeddings": model.max_position_embeddings,
        "initializer_range": model.init_method_std,
        "rms_norm_eps": model.norm_epsilon,
        "attention_dropout": model.attention_dropout,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        **_biases(model, model_type=own_type),
        **_rotary(model),
        "use_cache": True,
        "dtype": params_dtype,
        "torch_dtype": params_dtype,
        **token_ids,
    }


def special_token_ids(
    *, bos_id: int | None, eos_id: int | None, end_of_turn_id: int | None, pad_id: int, other_ends: Sequence[int] = ()
) -> dict[str, Any]:
    """The ids by which a model's output begins, ends and is filled up.

    Args:
        bos_id: The tokenizer's BOS.
        eos_id: The tokenizer's EOS.
        end_of_turn_id: The token that ends an assistant turn, which is what the model was trained to stop with; None
            if the format's marker is several tokens.
        pad_id: What fills shorter rows of a batch.
        other_ends: Tokens at which the pretrained model stopped.

    Returns:
        `bos_token_id`, `eos_token_id` and `pad_token_id`. Generation ends at the end-of-turn token and, where those are
        others, at EOS and where the pretrained model ended, for it may still write them.

    Examples:
        >>> special_token_ids(bos_id=None, eos_id=1, end_of_turn_id=7, pad_id=1)
        {'bos_token_id': None, 'eos_token_id': [7, 1], 'pad_token_id': 1}
    """
    ends = list(dict.fromkeys(end for end in (end_of_turn_id, eos_id, *other_ends) if end is not None))
    return {
        "bos_token_id": bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": pad_id,
    }


def generation_config(*, token_ids: dict[str, Any], stop_strings: tuple[str, ...]) -> dict[str, Any]:
    """The content of `generation_config.json`: how `generate` knows that an answer is over.

    Args:
        token_ids: `special_token_ids`' result.
        stop_strings: Texts that end an answer and are not single tokens; `generate` needs the tokenizer for them.

    Returns:
        A configuration whose every other setting is the default of `transformers`.
    """
    return {**token_ids, **({"stop_strings": list(stop_strings)} if stop_strings else {})}


def _architecture(model: ModelKeys, *, pretrained: str | None) -> tuple[str, str]:
    if model.qk_layernorm:
        return "Qwen3ForCausalLM", "qwen3"
    if model.add_qkv_bias:
        return "Qwen2ForCausalLM", "qwen2"
    if pretrained == "mistral" and not model.use_rope_scaling:
        return "MistralForCausalLM", "mistral"
    return "LlamaForCausalLM", "llama"


def _biases(model: ModelKeys, *, model_type: str) -> dict[str, Any]:
    """Which linear layers have a bias (Qwen2's are fixed by its name), and that attention looks at everything."""
    if model_type == "llama":
        return {"attention_bias": False, "mlp_bias": False}
    if model_type == "mistral":
        return {"sliding_window": None}
    if model_type == "qwen3":
        return {"attention_bias": model.add_qkv_bias, **_NO_WINDOW}
    return _NO_WINDOW


def _rotary(model: ModelKeys) -> dict[str, Any]:
    if not model.use_rope_scaling:
        rope_parameters = {"rope_type": "default", "rope_theta": model.rotary_base}
        return {"rope_parameters": rope_parameters, "rope_theta": model.rotary_base}
    scaling = {"rope_type": "llama3", "factor": model.rope_scaling_factor, **LLAMA3_ROPE}
    return {
        "rope_parameters": {**scaling, "rope_theta": model.rotary_base},
        "rope_theta": model.rotary_base,
        "rope_scaling": scaling,
    }
