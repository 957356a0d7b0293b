# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Megatron-LM's `pretrain_gpt.py`: how its `forward_step` reads a batch and sums its loss.

The names of what a batch holds are those of NVIDIA/Megatron-LM's pretrain_gpt.py and megatron/training/utils.py. The
model is megatron.core's GPTModel with its local layers, and the weights are those of the Llama in the folder `--load`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training import get_args
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig


def gpt_builder(pre_process: bool, post_process: bool) -> GPTModel:
    """Megatron's GPTModel with the weights of a Llama."""
    folder = Path(get_args().load)
    llama = LlamaConfig.from_pretrained(folder)
    config = TransformerConfig(
        num_layers=llama.num_hidden_layers,
        hidden_size=llama.hidden_size,
        ffn_hidden_size=llama.intermediate_size,
        num_attention_heads=llama.num_attention_heads,
        num_query_groups=llama.num_key_value_heads,
        normalization="RMSNorm",
        layernorm_epsilon=llama.rms_norm_eps,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        calculate_per_token_loss=get_args().calculate_per_token_loss,
        use_cpu_initialization=True,
        batch_p2p_sync=False,
        cuda_graph_scope=[],
    )
    model = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=llama.vocab_size,
        max_sequence_length=llama.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        position_embedding_type="rope",
        rotary_base=int(llama.rope_parameters["rope_theta"]),
        share_embeddings_and_output_weights=llama.tie_word_embeddings,
    )
    model.load_state_dict(of_llama(load_file(folder / "model.safetensors"), llama), strict=False)
    return model


def of_llama(weights: Mapping[str, Tensor], llama: LlamaConfig) -> dict[str, Tensor]:
    """A Llama's weights, as GPTModel has them."""
    names = {
        "embedding.word_embeddings": "model.embed_tokens",
        "decoder.final_layernorm": "model.norm",
        "output_layer": "lm_head",
    }
    found = {f"{ours}.weight": weights[f"{theirs}.weight"] for ours, theirs in names.items()}
    for layer in range(llama.num_hidden_layers):
        ours, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
        query, key, value = (
            weights[f"{theirs}.self_attn.{part}_proj.weight"].reshape(llama.num_key_value_heads, -1, llama.hidden_size)
            for part in "qkv"
        )
        gate_and_up = [weights[f"{theirs}.mlp.{part}_proj.weight"] for part in ("gate", "up")]
        found |= {
            f"{ours}.input_layernorm.weight": weights[f"{theirs}.input_layernorm.weight"],
            f"{ours}.self_attention.linear_qkv.weight": torch.cat([query, key, value], dim=1).flatten(0, 1),
            f"{ours}.self_attention.linear_proj.weight": weights[f"{theirs}.self_attn.o_proj.weight"],
            f"{ours}.pre_mlp_layernorm.weight": weights[f"{theirs}.post_attention_layernorm.weight"],
            f"{ours}.mlp.linear_fc1.weight": torch.cat(gate_and_up),
            f"{ours}.mlp.linear_fc2.weight": weights[f"{theirs}.mlp.down_proj.weight"],
        }
    return found


def model_provider(builder: Callable[..., GPTModel], pre_process: bool = True, post_process: bool = True) -> GPTModel:
    """What the builder builds."""
    return builder(pre_process, post_process)


def loss_func(loss_mask: Tensor, output_tensor: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The sum of the losses, what to divide it by, and both of them to report."""
    mask = loss_mask.view(-1).float()
    loss = torch.sum(output_tensor.view(-1).float() * mask)
    num_tokens = mask.sum().detach().to(torch.int)
    return loss, num_tokens, {"lm loss": torch.stack([loss.detach(), num_tokens.float()])}


def forward_step(data_iterator: Iterator[dict[str, Tensor]], model: torch.nn.Module) -> tuple[Tensor, Any]:
    """The losses of all positions of the next micro-batch."""
    data = next(data_iterator)
    names = ("tokens", "position_ids", "labels", "loss_mask")
    tokens, position_ids, labels, loss_mask = (data[name] for name in names)
    losses = model(tokens, position_ids, data.get("attention_mask"), labels=labels, loss_mask=loss_mask)
    return losses, partial(loss_func, loss_mask)
