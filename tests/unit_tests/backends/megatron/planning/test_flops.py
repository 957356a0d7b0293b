# SPDX-License-Identifier: Apache-2.0
"""Counted operations are those that PyTorch counts, as far as it counts what is useful."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.backends.megatron.model.gpt import build_model
from primus.backends.megatron.planning.flops import TrainingFlops, attention_pairs, count_flops
from primus.backends.megatron.planning.parameter_count import count_adapters, count_parameters
from primus.config import load_config
from primus.config.schema import LoraConfig, TrainerConfig

TINY: dict[str, Any] = {"num_layers": 3, "hidden_size": 64, "ffn_hidden_size": 224, "num_attention_heads": 4}
NUM_ROWS, LENGTH, NUM_TARGETS = 512, 48, 20


def counted_by_torch(trainer: TrainerConfig) -> int:
    """Operations of all matrix products of a forward and a backward pass; attention is not among them."""
    process = this_process()
    with joined_processes(process, trainer):
        seed_weights(1)
        (model,) = build_model(trainer, padded_vocab_size=NUM_ROWS, device=process.device)
        tokens_BS = torch.randint(0, NUM_ROWS, (1, LENGTH))
        positions_BS, targets_N = torch.arange(LENGTH)[None], torch.arange(NUM_TARGETS)
        with FlopCounterMode(display=False) as counter:
            loss = model(tokens_BS, positions_BS, None, labels_N=tokens_BS[0, :20], target_positions_N=targets_N)
            loss.sum().backward()
    counts: dict[Any, int] = counter.get_flop_counts()["Global"]
    return sum(num for operation, num in counts.items() if "attention" not in str(operation))


@pytest.mark.parametrize("keys", [{}, {"num_query_groups": 2, "kv_channels": 32}, {"swiglu": False}], ids=str)
def test_matrix_products_are_those_that_torch_counts(keys: dict[str, Any]) -> None:
    trainer = TrainerConfig(**{**TINY, **keys}, seq_length=LENGTH, global_batch_size=1, lr=0.1)
    flops = count_flops(trainer, vocab_size=NUM_ROWS)
    assert flops.of(positions=LENGTH, pairs=0, targets=NUM_TARGETS) == counted_by_torch(trainer)


def test_with_adapters_two_thirds_are_left_and_the_adapters_own() -> None:
    lora = LoraConfig(enabled=True, dim=8)
    trainer = TrainerConfig(**TINY, seq_length=LENGTH, global_batch_size=1, lr=0.1, lora=lora)
    flops = count_flops(trainer, vocab_size=NUM_ROWS, adapters=count_adapters(trainer, lora))
    counted = counted_by_torch(trainer)
    # The first layer's input is an embedding, which is frozen, and its gradient is asked for in vain.
    assert flops.of(positions=LENGTH, pairs=0, targets=NUM_TARGETS) == counted


def test_the_six_operations_per_weight_of_a_published_model() -> None:
    trainer = load_config("llama3_8B-multiturn-sft.yaml", overrides=["tokenizer_model=a", "sft_dataset_name=b"]).trainer
    parameters = count_parameters(trainer, padded_vocab_size=128256)
    flops = count_flops(trainer, vocab_size=128256)
    norms = 32 * 2 * 4096 + 4096
    assert flops.per_position + flops.per_target == 6 * (parameters.total - parameters.embedding - norms)
    # 12 L H T for a whole square of T x T (Chowdhery et al. 2022, appendix B); a triangle is half of it.
    assert 2 * flops.per_pair == 24 * 32 * 4096


def test_attention_counts_inside_conversations() -> None:
    flops = TrainingFlops(per_position=0, per_pair=2, per_target=0)
    packed = sum(map(attention_pairs, (3, 5)))
    assert flops.of(positions=8, pairs=packed, targets=0) == 2 * (6 + 15)
    assert attention_pairs(8) == sum(1 + position for position in range(8))
