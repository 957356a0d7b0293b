# SPDX-License-Identifier: Apache-2.0
"""Weights are counted to the last one."""

import numpy as np
import pytest

from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.backends.megatron.model.gpt import build_model
from primus.backends.megatron.planning.parameter_count import (
    count_adapters,
    count_parameters,
    padded_vocab_size,
)
from primus.config import load_config
from primus.config.schema import LoraConfig, ModelKeys, TrainerConfig

TINY = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 224, "num_attention_heads": 4, "num_query_groups": 2}
SHAPES: dict[str, dict[str, object]] = {
    "llama": {},
    "tied": {"untie_embeddings_and_output_weights": False},
    "every head its own keys": {"num_query_groups": None},
    "qwen 2": {"add_qkv_bias": True},
    "qwen 3": {"qk_layernorm": True, "kv_channels": 32},
    "no gate": {"swiglu": False},
}


def trainer_of(**keys: object) -> TrainerConfig:
    return TrainerConfig(**{**TINY, "seq_length": 64, "global_batch_size": 2, "lr": 1e-4, **keys})


@pytest.mark.parametrize("shape", SHAPES)
def test_counted_weights_are_those_of_the_model(shape: str) -> None:
    trainer, process = trainer_of(**SHAPES[shape]), this_process()
    with joined_processes(process, trainer):
        seed_weights(1)
        (model,) = build_model(trainer, padded_vocab_size=384, device=process.device)
    built = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(trainer, padded_vocab_size=384).total == built


@pytest.mark.parametrize(
    ("config", "total"),
    [("llama3_8B-multiturn-sft.yaml", 8_030_261_248), ("qwen2.5_7B-multiturn-sft.yaml", 7_615_616_512)],
)
def test_published_models_have_their_published_number_of_weights(config: str, total: int) -> None:
    keys = ["tokenizer_model=any", "sft_dataset_name=any.jsonl"]
    trainer = load_config(config, overrides=keys).trainer
    assert trainer.vocab_size is not None
    num_rows = padded_vocab_size(
        trainer.vocab_size, divisible_by=trainer.make_vocab_size_divisible_by, tensor_parallel=1
    )
    assert num_rows == trainer.vocab_size
    assert count_parameters(trainer, padded_vocab_size=num_rows).total == total


def test_ranks_of_a_model_hold_all_of_it_between_them() -> None:
    whole = count_parameters(trainer_of(), padded_vocab_size=256)
    halves = whole.on_one_rank(tensor_parallel=2, pipeline_parallel=1)
    norms = 2 * 2 * 64 + 64
    assert 2 * halves == whole.total + norms
    stages = [whole.on_stage(stage, tensor_parallel=1, pipeline_parallel=2) for stage in range(2)]
    assert sum(stages) == whole.total
    assert whole.on_one_rank(tensor_parallel=1, pipeline_parallel=2) == max(stages)


def test_the_last_of_several_stages_has_a_copy_of_a_tied_embedding() -> None:
    whole = count_parameters(trainer_of(untie_embeddings_and_output_weights=False), padded_vocab_size=256)
    stages = [whole.on_stage(stage, tensor_parallel=1, pipeline_parallel=2) for stage in range(2)]
    assert sum(stages) == whole.total + 256 * 64
    assert whole.on_stage(0, tensor_parallel=1, pipeline_parallel=1) == whole.total


def test_model_keys_alone_are_enough_to_count() -> None:
    keys = ModelKeys(num_layers=1, hidden_size=8, ffn_hidden_size=16, num_attention_heads=2)
    count = count_parameters(keys, padded_vocab_size=16)
    attention, mlp, norms, embeddings = 4 * 8 * 8, 3 * 8 * 16, 3 * 8, 2 * 16 * 8
    assert count.total == np.sum([attention, mlp, norms, embeddings])


def test_adapters_of_a_published_model_are_as_large_as_elsewhere() -> None:
    """The number that peft prints for Llama-3-8B with rank 16 on all linear layers of its blocks."""
    trainer = load_config(
        "llama3_8B-multiturn-sft.yaml", overrides=["tokenizer_model=any", "sft_dataset_name=a"]
    ).trainer
    separate = {"q": (4096, 4096), "k": (4096, 1024), "v": (4096, 1024), "o": (4096, 4096)}
    separate |= {"gate": (4096, 14336), "up": (4096, 14336), "down": (14336, 4096)}
    assert 32 * 16 * sum(map(sum, separate.values())) == 41_943_040
    # Megatron's linear_qkv and linear_fc1 are three and two of these with one input, and so one first matrix each.
    shared = 32 * 16 * (2 * 4096 + 4096)
    assert count_adapters(trainer, LoraConfig(enabled=True, dim=16)).total == 41_943_040 - shared
