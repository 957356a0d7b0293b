# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from primus.backends.megatron.distributed import seed_weights
from primus.backends.megatron.model.gpt import build_model
from primus.backends.megatron.planning.parameter_count import build_vocabulary, count_parameters
from primus.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"untie_embeddings_and_output_weights": False, "num_query_groups": None},
        {"add_qkv_bias": True, "kv_channels": 16},
        {"qk_layernorm": True, "swiglu": False},
    ],
)
def test_the_counted_parameters_are_those_of_the_model(tiny: ModuleType, tmp_path: Path, keys: dict[str, Any]) -> None:
    trainer = tiny.tiny_config(tmp_path, **keys).trainer
    (model,) = build_model(trainer, padded_vocab_size=64, device=CPU)
    built = sum(parameter.numel() for parameter in model.parameters())
    assert built == count_parameters(trainer, padded_vocab_size=64).total


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("tied", [True, False])
def test_losses_at_targets_only_equal_those_from_all_logits(tiny: ModuleType, tmp_path: Path, tied: bool) -> None:
    seed_weights(1)
    trainer = tiny.tiny_config(tmp_path, untie_embeddings_and_output_weights=not tied).trainer
    (model,) = build_model(trainer, padded_vocab_size=64, device=CPU)
    input_ids_BS, labels_BS = torch.randint(61, (2, 3, 10)).unbind(0)
    # Positions 4 and 9 of the first sequence, none of the second, position 0 of the third.
    sequences, positions = torch.tensor([0, 0, 2]), torch.tensor([4, 9, 0])
    losses_N = model(
        input_ids_BS,
        None,
        None,
        labels_N=labels_BS[sequences, positions],
        target_positions_N=positions * 3 + sequences,
    )
    logits_BSV = model(input_ids_BS, None, None)
    assert logits_BSV.shape == (3, 10, 64)
    expected = cross_entropy(logits_BSV[sequences, positions], labels_BS[sequences, positions], reduction="none")
    torch.testing.assert_close(losses_N, expected)


@pytest.mark.usefixtures("joined")
def test_a_micro_batch_without_targets_has_gradients_of_zero(tiny: ModuleType, tmp_path: Path) -> None:
    (model,) = build_model(tiny.tiny_config(tmp_path).trainer, padded_vocab_size=64, device=CPU)
    model.zero_grad_buffer()
    none = torch.zeros(0, dtype=torch.int64)
    model(torch.zeros(1, 4, dtype=torch.int64), None, None, labels_N=none, target_positions_N=none).sum().backward()
    assert all(not parameter.main_grad.any() for parameter in model.parameters())


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_stand_for_no_token_have_no_part_in_the_loss(tiny: ModuleType, tmp_path: Path, tied: bool) -> None:
    trainer = tiny.tiny_config(tmp_path, untie_embeddings_and_output_weights=not tied).trainer
    input_ids_BS, labels_N = torch.arange(20).reshape(2, 10), torch.arange(20) * 3
    losses = []
    for num_rows in (61, 64, 128):
        (model,) = build_model(trainer, padded_vocab_size=num_rows, device=CPU, vocab_size=61)
        model.zero_grad_buffer()
        losses_N = model(input_ids_BS, None, None, labels_N=labels_N, target_positions_N=torch.arange(20))
        losses_N.sum().backward()
        losses.append(losses_N.detach())
        for name, parameter in model.module.named_parameters():
            if "embedding" in name or "output_layer" in name:
                assert parameter.main_grad[:61].any()
                assert not parameter.main_grad[61:].any()
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


def test_the_vocabulary_is_the_tokenizers_rounded_up(tiny: ModuleType, tmp_path: Path) -> None:
    vocabulary = build_vocabulary(tiny.tiny_config(tmp_path).trainer, tokenizer="tiny", num_ids=61)
    assert (vocabulary.used, vocabulary.padded) == (61, 64)
    larger = build_vocabulary(tiny.tiny_config(tmp_path, vocab_size=100).trainer, tokenizer="tiny", num_ids=61)
    assert (larger.used, larger.padded) == (100, 112)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_config(tmp_path, vocab_size=60).trainer
    message = "vocab_size: 60 is less than the 61 ids of the tokenizer tiny; set it to at least 61, or to null"
    with pytest.raises(ConfigError, match=message):
        build_vocabulary(trainer, tokenizer="tiny", num_ids=61)
