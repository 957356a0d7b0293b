# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from primus.backends.megatron.model.gpt import build_model

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("joined")


def weights_of(tiny: ModuleType, folder: Path, *, rows: int = 64, **keys: Any) -> dict[str, Tensor]:
    trainer = tiny.tiny_config(folder, **keys).trainer
    (model,) = build_model(trainer, padded_vocab_size=rows, device=CPU, vocab_size=61)
    return {name: parameter.detach().float() for name, parameter in model.module.named_parameters()}


def test_every_matrix_has_a_stream_of_its_own_that_the_seed_decides(tiny: ModuleType, tmp_path: Path) -> None:
    first, again, other = (weights_of(tiny, tmp_path, seed=seed) for seed in (1, 1, 2))
    matrices = {name for name, weight in first.items() if weight.ndim > 1}
    assert len(matrices) == 2 * 4 + 2
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in matrices)
    drawn = torch.stack([first[name].flatten()[:64] for name in sorted(matrices)])
    assert len(torch.unique(drawn, dim=0)) == len(matrices)


def test_weights_do_not_depend_on_how_many_layers_and_padding_rows_there_are(tiny: ModuleType, tmp_path: Path) -> None:
    few = weights_of(tiny, tmp_path)
    many = weights_of(tiny, tmp_path, rows=96, num_layers=8)
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert torch.equal(few[name][:61], many[name][:61])
        assert not many[name][61:].any()
    qkv = "decoder.layers.1.self_attention.linear_qkv.weight"
    assert torch.equal(few[qkv], many[qkv])
    # What ends in the residual stream is smaller the more layers there are.
    out = "decoder.layers.1.mlp.linear_fc2.weight"
    torch.testing.assert_close(many[out] * 2, few[out])


def test_matrices_are_normal_norms_are_ones_and_biases_are_zeros(tiny: ModuleType, tmp_path: Path) -> None:
    weights = weights_of(tiny, tmp_path, init_method_std=0.5, add_qkv_bias=True, hidden_size=128, qk_layernorm=True)
    for name, weight in weights.items():
        if "bias" in name:
            assert not weight.any()
        elif weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            into_the_residual = "linear_proj" in name or "linear_fc2" in name
            numbers = weight[:61] if "embedding" in name or "output" in name else weight
            assert numbers.std().item() == pytest.approx(0.5 / (2 if into_the_residual else 1), rel=0.05)
            assert abs(numbers.mean().item()) < 0.02


def test_a_bfloat16_model_begins_with_the_same_weights_rounded(tiny: ModuleType, tmp_path: Path) -> None:
    exact, rounded = weights_of(tiny, tmp_path), weights_of(tiny, tmp_path, bf16=True)
    assert all(torch.equal(exact[name].bfloat16().float(), rounded[name]) for name in exact)
