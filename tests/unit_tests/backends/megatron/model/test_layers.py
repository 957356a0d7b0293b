# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from types import ModuleType

import pytest
import torch
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.transformer.transformer_config import TransformerConfig

from primus.backends.megatron.model.gpt import build_transformer_config
from primus.backends.megatron.model.layers import build_layer_modules
from primus.backends.megatron.model.pointwise import RMSNorm

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("joined")


@pytest.fixture
def config(tiny: ModuleType, tmp_path: Path) -> TransformerConfig:
    return build_transformer_config(tiny.tiny_config(tmp_path).trainer, device=CPU)


def test_the_norm_is_that_of_the_paper(config: TransformerConfig) -> None:
    norm = RMSNorm(config=config, hidden_size=5, eps=0.5)
    torch.nn.init.uniform_(norm.weight)
    hidden = torch.randn(3, 5)
    expected = hidden / (hidden.square().mean(-1, keepdim=True) + 0.5).sqrt() * norm.weight
    torch.testing.assert_close(norm(hidden), expected)
    assert not getattr(norm.weight, "sequence_parallel")  # noqa: B009 - mypy knows no such attribute


def test_the_log_can_say_which_attention_runs_and_why(
    config: TransformerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "(the device is a CPU)" in build_layer_modules(config, device=CPU, is_packed=False).reason
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    modules = build_layer_modules(config, device=torch.device("cuda"), is_packed=False)
    assert "torch scaled_dot_product_attention" in modules.reason
    assert "(transformer_engine is not installed)" in modules.reason
    assert modules.submodules.layer_norm is RMSNorm
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    modules = build_layer_modules(config, device=torch.device("cuda"), is_packed=False)
    assert "(transformer_engine is installed, but Megatron cannot import it)" in modules.reason


def test_packs_that_ranks_share_are_not_given_to_transformer_engine(
    config: TransformerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr(gpt_layer_specs, "HAVE_TE", True)
    config.context_parallel_size = 2
    # With dropout there is nothing to try on a GPU.
    config.attention_dropout = 0.1
    modules = build_layer_modules(config, device=torch.device("cuda"), is_packed=True)
    assert modules.reason == (
        "attention by torch scaled_dot_product_attention, each conversation of a pack by itself, over the keys of 2 "
        "context ranks; Megatron's local layers (Transformer Engine would cut each conversation of a pack over the "
        "context ranks, and they cut packs; varlen_attn has no attention_dropout, which is 0.1)"
    )
    assert modules.submodules.layer_norm is RMSNorm
    assert not modules.is_transformer_engine
    assert not modules.padding_attends
