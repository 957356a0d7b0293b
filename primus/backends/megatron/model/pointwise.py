# SPDX-License-Identifier: Apache-2.0
"""The parts of a layer that are no matrix products, each as one operation with a backward pass of its own.

Built from PyTorch's elementary operations, each of them would be several, and autograd would keep what lies between and
pass over it again. These keep what they are given, and pass over it as seldom as they can. What they compute is the
same.

Shapes: S positions, B sequences, G key-value groups, Q query heads of each, D width of a head, F width of the MLP, H
width of what is normalised.
"""

from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import silu

_silu_backward = torch.ops.aten.silu_backward


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        output: Tensor = (wide * scale).mul_(weight).to(x.dtype)
        return output

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        wide_weight = weight.to(scale.dtype)
        normal = x * scale
        product = grad * normal
        share = torch.mv(product.flatten(0, -2), wide_weight).reshape(scale.shape)
        grad_weight = product.flatten(0, -2).sum(0)
        grad_x = torch.mul(grad, wide_weight, out=product).addcmul_(normal, share, value=-1 / x.size(-1)).mul_(scale)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


def normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Give `x / sqrt(mean(x ** 2) + eps) * weight` along the last dimension, computed in float32 at least."""
    normal: Tensor = _Normalised.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normal


class RMSNorm(torch.nn.RMSNorm):
    """Root-mean-square normalisation (Zhang and Sennrich, 2019, arXiv:1910.07467).

    Its weight carries the flag by which Megatron sums its gradient over the tensor-parallel ranks when each of them
    sees a part of the sequence. On a GPU it is PyTorch's kernel.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self._epsilon = eps
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; shape [..., H]."""
        if x.device.type != "cpu":
            return super().forward(x)
        return normalised(x, self.weight, self._epsilon)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (gate_and_up,) = ctx.saved_tensors  # type: ignore[attr-defined]
        gate, up = gate_and_up.chunk(2, dim=-1)
        # Written where it belongs, so that nothing has to be put together.
        grad_both = torch.empty_like(gate_and_up)
        grad_gate, grad_up = grad_both.chunk(2, dim=-1)
        torch.mul(silu(gate), grad, out=grad_up)
        _silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grad_both


def swiglu(gate_and_up: Tensor) -> Tensor:
    """Give `silu(gate) * up` (Shazeer, 2020, arXiv:2002.05202).

    Args:
        gate_and_up: Shape [..., 2 F]: the gate, and behind it what passes through it.

    Returns:
        Shape [..., F].
    """
    passed: Tensor = _SwiGLU.apply(gate_and_up)  # type: ignore[no-untyped-call]
    return passed


class _SplitAndTurn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, mixed_SBGE: Tensor, cos: Tensor, sin: Tensor, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.width = width  # type: ignore[attr-defined]
        num_positions, num_sequences = mixed_SBGE.shape[:2]
        query, key, value = _heads(mixed_SBGE, width)
        # Each sequence in one piece, which is how attention reads them.
        outputs = tuple(
            torch.empty(num_sequences, num_positions, *part.shape[2:], dtype=part.dtype, device=part.device)
            for part in (query, key, value)
        )
        turned_query, turned_key, copied_value = (output.transpose(0, 1) for output in outputs)
        _turn(query, cos, sin, out=turned_query)
        _turn(key, cos, sin, out=turned_key)
        copied_value.copy_(value)
        return turned_query.flatten(2, 3), turned_key.squeeze(3), copied_value.squeeze(3)

    @staticmethod
    def backward(
        ctx: FunctionCtx, grad_query: Tensor, grad_key: Tensor, grad_value: Tensor
    ) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        width: int = ctx.width  # type: ignore[attr-defined]
        heads_per_group = grad_query.size(2) // grad_key.size(2)
        grad_mixed = grad_query.new_empty(*grad_key.shape[:3], (heads_per_group + 2) * width)
        query, key, value = _heads(grad_mixed, width)
        # The transpose of a turn is the turn back.
        _turn(grad_query.reshape(*grad_key.shape[:3], heads_per_group, width), cos, -sin, out=query)
        _turn(grad_key.unsqueeze(3), cos, -sin, out=key)
        value.copy_(grad_value.unsqueeze(3))
        return grad_mixed, None, None, None


def _heads(mixed_SBGE: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [S, B, G, Q, D], keys and values [S, B, G, 1, D], views of Megatron's one tensor of them."""
    heads = mixed_SBGE.view(*mixed_SBGE.shape[:3], -1, width)
    return heads[..., :-2, :], heads[..., -2:-1, :], heads[..., -1:, :]


def _turn(x: Tensor, cos: Tensor, sin: Tensor, *, out: Tensor) -> None:
    """Turn the plane of each number and the one half a head behind it by its angle."""
    (first, second), (out_first, out_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)


def split_and_turn(mixed_SBGE: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take queries, keys and values apart, and give the first two their rotary positions (Su, 2021, arXiv:2104.09864).

    Args:
        mixed_SBGE: What Megatron's `linear_qkv` gives: of each group its queries, its key, its value; E = (Q + 2) D.
        angles: Shape [S, 1 or B, 1, D], as Megatron's `RotaryEmbedding` gives them: the second half repeats the first.

    Returns:
        Queries of shape [S, B, G * Q, D], keys and values of shape [S, B, G, D].
    """
    half = angles[..., : angles.size(-1) // 2].unsqueeze(2)
    cos, sin = half.cos().to(mixed_SBGE.dtype), half.sin().to(mixed_SBGE.dtype)
    parts: tuple[Tensor, Tensor, Tensor] = _SplitAndTurn.apply(  # type: ignore[no-untyped-call]
        mixed_SBGE, cos, sin, angles.size(-1)
    )
    return parts


class TurnedSelfAttention(SelfAttention):  # type: ignore[misc]
    """Megatron's self-attention, with `split_and_turn` where nothing happens between the two."""

    _angles: Tensor | None = None

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, *args: Any, **keys: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; the arguments are those of Megatron's."""
        angles = keys.get("rotary_pos_emb")
        if not isinstance(angles, Tensor) or not self._is_plain(angles):
            outcome: tuple[Tensor, Tensor | None] = super().forward(hidden_states, attention_mask, *args, **keys)
            return outcome
        self._angles = angles
        try:
            outcome = super().forward(hidden_states, attention_mask, *args, **{**keys, "rotary_pos_emb": None})
        finally:
            self._angles = None
        return outcome

    def _is_plain(self, angles: Tensor) -> bool:
        has_no_norms = all(isinstance(norm, IdentityOp | None) for norm in (self.q_layernorm, self.k_layernorm))
        has_whole_groups = self.config.num_query_groups >= self.config.tensor_model_parallel_size
        turns_halves = not self.config.rotary_interleaved and angles.size(-1) == self.hidden_size_per_attention_head
        return has_no_norms and has_whole_groups and turns_halves

    def get_query_key_value_tensors(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        output_gate: bool = False,  # noqa: FBT001, FBT002 - Megatron's signature
        split_qkv: bool = True,  # noqa: FBT001, FBT002
    ) -> Any:
        """Queries, keys and values; within `forward` they have their rotary positions."""
        if self._angles is None:
            return super().get_query_key_value_tensors(hidden_states, key_value_states, output_gate, split_qkv)
        mixed_SBGE, _ = super().get_query_key_value_tensors(hidden_states, key_value_states, split_qkv=False)
        return split_and_turn(mixed_SBGE, self._angles)
