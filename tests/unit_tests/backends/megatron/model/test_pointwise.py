# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from primus.backends.megatron.model import pointwise
from primus.backends.megatron.model.gpt import TargetsOnlyGPTModel, build_model, build_transformer_config
from primus.backends.megatron.model.layers import build_layer_modules
from primus.backends.megatron.model.pointwise import (
    RMSNorm,
    TurnedSelfAttention,
    normalised,
    split_and_turn,
    swiglu,
)

CPU = torch.device("cpu")
Tensors = tuple[Tensor, ...]


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def assert_same(
    ours: Callable[..., Tensors], theirs: Callable[..., Tensors], *inputs: Tensor, close: float | None = None
) -> None:
    """Both give the same numbers and the same gradients."""
    outputs = [function(*inputs) for function in (ours, theirs)]
    torch.testing.assert_close(*outputs, rtol=close, atol=close)
    upstream = [torch.rand_like(output) for output in outputs[0]]
    gradients = [torch.autograd.grad(output, inputs, upstream) for output in outputs]
    torch.testing.assert_close(*gradients, rtol=close, atol=close)


def angles_of(num_positions: int, num_sequences: int, width: int) -> Tensor:
    """Some angles, in Megatron's layout: the second half repeats the first."""
    half = random(num_positions, num_sequences, 1, width // 2).detach()
    return torch.cat([half, half], dim=-1)


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_norm_and_its_gradients_are_those_of_pytorch(tiny: ModuleType, tmp_path: Path, dtype: torch.dtype) -> None:
    model = build_model(tiny.tiny_config(tmp_path).trainer, padded_vocab_size=64, device=CPU)[0].module
    norm = RMSNorm(config=model.config, hidden_size=24, eps=0.1).to(dtype)
    hidden, weight = random(5, 3, 24, dtype=dtype), random(24, dtype=dtype)
    norm.weight = torch.nn.Parameter(weight)

    def ours(x: Tensor, weight: Tensor) -> Tensors:
        return (norm(x),)

    def theirs(x: Tensor, weight: Tensor) -> Tensors:
        return (torch.nn.functional.rms_norm(x, (24,), weight, 0.1),)

    assert_same(ours, theirs, hidden, norm.weight, close=2e-2 if dtype is torch.bfloat16 else None)


def test_the_norm_of_bfloat16_rounds_only_what_it_gives() -> None:
    """Sums over a wide layer are kept in float32, in both directions."""
    narrow = [random(2, 4096).detach().bfloat16().requires_grad_(), random(4096).detach().bfloat16().requires_grad_()]
    wide = [x.detach().double().requires_grad_() for x in narrow]
    upstream = random(2, 4096).detach().bfloat16()
    found = torch.autograd.grad(normalised(narrow[0], narrow[1], 1e-5), narrow, upstream)
    expected = torch.autograd.grad(normalised(wide[0], wide[1], 1e-5), wide, upstream.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype is torch.bfloat16
        torch.testing.assert_close(ours.double(), theirs, rtol=2**-8, atol=1e-4)


def test_swiglu_and_its_gradient_are_those_of_the_elementary_operations() -> None:
    def elementary(gate_and_up: Tensor) -> Tensors:
        gate, up = gate_and_up.chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up,)

    assert_same(lambda both: (swiglu(both),), elementary, random(3, 2, 14))
    # To the last bit, also where numbers are rounded.
    both = random(3, 2, 14, dtype=torch.float32)
    assert torch.equal(swiglu(both), elementary(both)[0])


@pytest.mark.parametrize("num_sequences_of_angles", [1, 3])
def test_heads_are_split_and_turned_as_megatron_does_it(num_sequences_of_angles: int) -> None:
    width, groups, heads_per_group = 8, 2, 3
    angles = angles_of(5, num_sequences_of_angles, width)

    def megatron(mixed_SBGE: Tensor) -> Tensors:
        query, key, value = torch.split(mixed_SBGE, [heads_per_group * width, width, width], dim=3)
        turned = (_apply_rotary_pos_emb_bshd(x, angles) for x in (query.reshape(5, 3, -1, width), key))
        return (*turned, value)

    mixed = random(5, 3, groups, (heads_per_group + 2) * width)
    assert_same(lambda mixed: split_and_turn(mixed, angles), megatron, mixed)


def logits_of(model: TargetsOnlyGPTModel) -> Tensor:
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        logits: Tensor = model(tokens, torch.arange(12).expand(2, -1), None)
    return logits


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("qk_layernorm", [False, True])
def test_a_model_computes_what_it_does_with_megatrons_attention(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qk_layernorm: bool
) -> None:
    """With norms of queries and keys, which come between splitting and turning, it is Megatron's."""
    trainer = tiny.tiny_config(tmp_path, qk_layernorm=qk_layernorm).trainer
    model = build_model(trainer, padded_vocab_size=64, device=CPU)[0].module
    num_calls = 0

    def counted(mixed_SBGE: Tensor, angles: Tensor) -> Tensors:
        nonlocal num_calls
        num_calls += 1
        return split_and_turn(mixed_SBGE, angles)

    monkeypatch.setattr(pointwise, "split_and_turn", counted)
    found = logits_of(model)
    assert num_calls == (0 if qk_layernorm else trainer.num_layers)
    monkeypatch.setattr(TurnedSelfAttention, "forward", SelfAttention.forward)
    torch.testing.assert_close(found, logits_of(model), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("has_triton", [False, True])
def test_on_a_gpu_the_activation_is_the_one_that_megatron_compiles(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_triton: bool
) -> None:
    """Where its compiler is; else, and on a CPU, it is ours."""
    config = build_transformer_config(tiny.tiny_config(tmp_path).trainer, device=CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "triton" and has_triton else None)
    layer = build_layer_modules(config, device=torch.device("cuda"), is_packed=False).submodules.layer_specs[0]
    assert config.bias_activation_fusion == has_triton
    assert config.use_te_activation_func != has_triton
    assert layer.submodules.mlp.submodules.activation_func is (None if has_triton else swiglu)
