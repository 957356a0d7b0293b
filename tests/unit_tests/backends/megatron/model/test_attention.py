# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from types import ModuleType

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from primus.backends.megatron.context_parallel import WHOLE_SEQUENCES
from primus.backends.megatron.model.attention import FusedDotProductAttention
from primus.backends.megatron.model.attention_plan import AttentionPlan, build_attention_plan
from primus.backends.megatron.model.gpt import build_transformer_config

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("joined")


@pytest.fixture
def config(tiny: ModuleType, tmp_path: Path) -> TransformerConfig:
    return build_transformer_config(tiny.tiny_config(tmp_path).trainer, device=CPU)


def build(kind: type, config: TransformerConfig) -> torch.nn.Module:
    module: torch.nn.Module = kind(
        config=config,
        layer_number=1,
        attn_mask_type=AttnMaskType.causal,
        attention_type="self",
        cp_comm_type=None,
        softmax_scale=None,
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )
    return module


def random_qkv() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(7, 3, heads, 8, requires_grad=True) for heads in (4, 2, 2)]


def plan_of(segments: list[list[int]], *, num_sequences: int = 1) -> AttentionPlan:
    """Of conversations in sequences of 7 positions."""
    return build_attention_plan(
        torch.tensor(segments, dtype=torch.int32),
        num_sequences=num_sequences,
        width=7,
        context=WHOLE_SEQUENCES,
        device=CPU,
    )


def test_attention_and_its_gradients_equal_those_of_megatron(config: TransformerConfig) -> None:
    outcomes = []
    for kind in (FusedDotProductAttention, DotProductAttention):
        query, key, value = random_qkv()
        output = build(kind, config)(query, key, value, attention_mask=None)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        outcomes.append([output, query.grad, key.grad, value.grad])
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_given_mask_replaces_the_causal_one(config: TransformerConfig) -> None:
    query, key, value = random_qkv()
    positions = torch.arange(7)
    two_documents = (positions[:, None] < positions[None]) | ((positions[:, None] >= 4) & (positions[None] < 4))
    outputs = [
        build(kind, config)(query, key, value, attention_mask=two_documents[None, None])
        for kind in (FusedDotProductAttention, DotProductAttention)
    ]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    alone = build(FusedDotProductAttention, config)(query[4:], key[4:], value[4:], attention_mask=None)
    torch.testing.assert_close(outputs[0][4:], alone, rtol=1e-5, atol=1e-6)


def test_attention_refuses_what_it_does_not_do(config: TransformerConfig) -> None:
    query, key, value = random_qkv()
    with pytest.raises(ValueError, match="packed_seq_params of Megatron are not supported"):
        build(FusedDotProductAttention, config)(query, key, value, attention_mask=None, packed_seq_params=object())
    mask, plan = torch.zeros(1, 1, 7, 7, dtype=torch.bool), plan_of([[0, 7]])
    with pytest.raises(ValueError, match="a plan excludes a mask"):
        build(FusedDotProductAttention, config)(query, key, value, attention_mask=mask, packed_seq_params=plan)
    with pytest.raises(ValueError, match="attention is causal self-attention, not"):
        FusedDotProductAttention(config, attn_mask_type=AttnMaskType.no_mask, attention_type="self")
    config.context_parallel_size = 2
    with pytest.raises(ValueError, match="context parallelism needs a plan"):
        build(FusedDotProductAttention, config)(query, key, value, attention_mask=None)


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_packed_attention_is_that_of_a_mask_of_blocks(config: TransformerConfig, num_sequences: int) -> None:
    torch.manual_seed(0)
    heads = [torch.randn(7, num_sequences, num, 8, requires_grad=True) for num in (4, 2, 2)]
    # Of the first sequence position 6 is padding, of the second 0 and 1; the third is one conversation.
    segments = [[0, 2], [2, 6], [9, 10], [10, 14], [14, 21]][: 2 if num_sequences == 1 else 5]
    owner_P = torch.full((7 * num_sequences,), -1)
    for number, (first, last) in enumerate(segments):
        owner_P[first:last] = number
    owner_BS = owner_P.view(num_sequences, 7)
    positions = torch.arange(7)
    masked_BSS = (owner_BS[:, :, None] != owner_BS[:, None]) | (positions[:, None] < positions[None])
    # A row of a mask allows something, also where there is padding; what comes out there is left out.
    outcomes = []
    for kind, given in (
        (FusedDotProductAttention, {"packed_seq_params": plan_of(segments, num_sequences=num_sequences)}),
        (DotProductAttention, {"attention_mask": masked_BSS[:, None]}),
    ):
        query, key, value = (tensor.detach().clone().requires_grad_() for tensor in heads)
        output = build(kind, config)(query, key, value, **{"attention_mask": None, **given})
        used_SB1 = (owner_BS >= 0).t()[..., None]
        weighted = output * torch.linspace(-1, 1, output.numel()).view_as(output) * used_SB1
        weighted.sum().backward()
        outcomes.append([output * used_SB1, query.grad, key.grad, value.grad])
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
