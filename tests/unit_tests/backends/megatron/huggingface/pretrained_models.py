# SPDX-License-Identifier: Apache-2.0
"""Random small models as `transformers` builds and saves them."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

CHECKOUT = Path(__file__).parents[5]
DEMO_TOKENIZER = CHECKOUT / "examples/data/demo-tokenizer"
VOCAB_SIZE = 1030  # six rows more than the tokenizer has ids

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama 3": {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "llama 3.1": {"model_type": "llama", "rope_parameters": _LLAMA3_ROPE, "max_position_embeddings": 131072},
    "llama 3.2, tied": {
        "model_type": "llama",
        "rope_parameters": {**_LLAMA3_ROPE, "factor": 32.0},
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "qwen 2.5": {"model_type": "qwen2", "rms_norm_eps": 1e-6},
    "qwen 2.5, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen 3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "qwen 3 with biases": {"model_type": "qwen3", "head_dim": 8, "attention_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 16},
}


def some_tokens(*, length: int = 300) -> Tensor:
    return torch.randint(0, VOCAB_SIZE, (2, length), generator=torch.Generator().manual_seed(3))


def write_model(
    folder: Path, name: str, *, dtype: torch.dtype = torch.float32, shard_size: str = "5GB", **config: Any
) -> Tensor:
    """Save a model with the demo's tokenizer; gives its float32 logits of `some_tokens`."""
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**_SIZES, **MODELS[name], **config})).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # From ones and zeros, so that each matters; Megatron has no place for this one bias.
            if ("norm" in parameter_name or "bias" in parameter_name) and "o_proj.bias" not in parameter_name:
                parameter += 0.3 * torch.randn_like(parameter)
        logits: Tensor = model(some_tokens()).logits
    model.generation_config = GenerationConfig(eos_token_id=[2, 3], temperature=0.7, do_sample=True)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    for path in DEMO_TOKENIZER.iterdir():
        shutil.copyfile(path, folder / path.name)
    return logits
