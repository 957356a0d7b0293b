# SPDX-License-Identifier: Apache-2.0
"""The ways to compute the attention of pieces, against one that is written out."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from primus.backends.megatron.context_parallel import ContextRank
from primus.backends.megatron.model import attention_kernels
from primus.backends.megatron.model.attention_kernels import (
    AttendAtOnce,
    AttendPieces,
    attend_one_by_one,
    find_varlen_attention,
    why_not_at_once,
)
from primus.backends.megatron.model.attention_plan import AttentionPlan, build_attention_plan

CPU = torch.device("cpu")
SCALE = 0.3


def written_out(query: Tensor, key: Tensor, value: Tensor, *, from_the_end: bool) -> Tensor:
    """Causal attention of one piece; the last query sees the last key, or the first query only the first key."""
    key, value = (tensor.repeat_interleave(query.size(1) // key.size(1), dim=1) for tensor in (key, value))
    scores = torch.einsum("qnd,knd->nqk", query, key) * SCALE
    offset = key.size(0) - query.size(0) if from_the_end else 0
    hidden = torch.ones(query.size(0), key.size(0), dtype=torch.bool).tril(offset).logical_not()
    return torch.einsum("nqk,knd->qnd", scores.masked_fill(hidden, -math.inf).softmax(-1), value)


def varlen_kernel(*, from_the_end: bool) -> Callable[..., Tensor]:
    """What `varlen_attn` does on a GPU, with its arguments."""

    def kernel(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_bounds: Tensor,
        key_bounds: Tensor,
        longest_query: int,
        longest_key: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool,
    ) -> Tensor:
        assert (scale, window_size, enable_gqa) == (SCALE, (-1, 0), query.size(1) != key.size(1))
        assert longest_query == query_bounds.diff().max().item()
        assert longest_key == key_bounds.diff().max().item()
        bounds = (query_bounds[1:-1].tolist(), *[key_bounds[1:-1].tolist()] * 2)
        pieces = (torch.tensor_split(tensor, cuts) for tensor, cuts in zip((query, key, value), bounds, strict=True))
        return torch.cat([written_out(*piece, from_the_end=from_the_end) for piece in zip(*pieces, strict=True)])

    return kernel


def outcome(attend: AttendPieces, plan: AttentionPlan, *, num_groups: int = 2) -> list[Tensor]:
    """What comes out of random heads, and the gradients."""
    torch.manual_seed(0)
    num_queries, num_keys = sum(plan.query_lengths), sum(plan.key_lengths)
    shapes = ((num_queries, 4), (num_keys, num_groups), (num_keys, num_groups))
    leaves = [torch.randn(*shape, 8, requires_grad=True) for shape in shapes]
    query, key, value = leaves
    output = attend(query, key, value, plan, scale=SCALE, dropout=0.0)
    return [output.detach(), *torch.autograd.grad(output, leaves, torch.randn(output.shape))]


@pytest.fixture(autouse=True)
def a_small_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that pieces are cut."""
    monkeypatch.setattr(attention_kernels, "_MASK_ENTRIES", 30)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    rank=st.integers(0, 1),
    num_groups=st.sampled_from((1, 2, 4)),
)
def test_both_ways_are_the_attention_that_is_written_out(lengths: list[int], rank: int, num_groups: int) -> None:
    width = -(-sum(lengths) // 4) * 4
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    plan = build_attention_plan(
        torch.stack([bounds[:-1], bounds[1:]], dim=1),
        num_sequences=1,
        width=width,
        context=ContextRank(rank=rank, size=2),
        device=CPU,
        padding_attends=True,
    )
    expected = outcome(AttendAtOnce(varlen_kernel(from_the_end=True)), plan, num_groups=num_groups)
    found = outcome(attend_one_by_one, plan, num_groups=num_groups)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_queries_without_keys_get_zeros_and_gradients_of_zero() -> None:
    # Both chunks of the second rank are padding.
    plan = build_attention_plan(
        torch.tensor([[0, 3]]), num_sequences=1, width=16, context=ContextRank(rank=1, size=2), device=CPU
    )
    assert plan.key_lengths == [0]
    output, *gradients = outcome(attend_one_by_one, plan)
    assert output.shape == (8, 4, 8)
    assert not output.any()
    assert [tuple(gradient.shape) for gradient in gradients] == [(8, 4, 8), (0, 2, 8), (0, 2, 8)]
    with pytest.raises(ValueError, match="1 pieces attend to nothing, not 0"):
        outcome(AttendAtOnce(varlen_kernel(from_the_end=True)), plan)


def try_out(kernel: Callable[..., Tensor]) -> str | None:
    return why_not_at_once(kernel, num_heads=4, num_groups=2, head_width=16, dtype=torch.float32, device=CPU)


def test_a_kernel_is_taken_if_it_is_right() -> None:
    assert try_out(varlen_kernel(from_the_end=True)) is None


def test_a_kernel_that_aligns_the_first_query_with_the_first_key_is_not_taken() -> None:
    why_not = try_out(varlen_kernel(from_the_end=False))
    assert why_not is not None
    assert "varlen_attn is off by" in why_not


def test_a_kernel_that_fails_is_not_taken() -> None:
    def fails(*_: object, **__: object) -> Tensor:
        raise RuntimeError("no kernel for this head\nand more")

    assert try_out(fails) == "varlen_attn fails here: no kernel for this head"


@pytest.mark.skipif(torch.cuda.is_available(), reason="it may work there")
def test_the_kernel_of_pytorch_does_not_run_on_a_cpu() -> None:
    kernel = find_varlen_attention()
    assert not isinstance(kernel, str)
    why_not = try_out(kernel)
    assert why_not is not None
    assert "varlen_attn fails here: Could not run" in why_not
