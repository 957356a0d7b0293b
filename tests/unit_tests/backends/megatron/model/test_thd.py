# SPDX-License-Identifier: Apache-2.0
"""How packs reach Transformer Engine, up to its kernel, in place of which attention is written out here."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from primus.backends.megatron.data.batches import MicroBatch, read_micro_batch
from primus.backends.megatron.model.gpt import TargetsOnlyGPTModel, build_transformer_config
from primus.backends.megatron.model.initialisation import initialise
from primus.backends.megatron.model.layers import LayerModules, build_layer_modules

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("joined")


class ThdAttention(torch.nn.Module):
    """Of Transformer Engine's attention, what packs need: `[T, N, D]`, and bounds that begin at 0 and end at T."""

    def __init__(self, **_: object) -> None:
        super().__init__()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        packed_seq_params: PackedSeqParams,
        **_: object,
    ) -> Tensor:
        assert attention_mask is None
        assert packed_seq_params.qkv_format == "thd"
        bounds = packed_seq_params.cu_seqlens_q
        assert (int(bounds[0]), int(bounds[-1])) == (0, query.size(0))
        assert torch.equal(bounds, packed_seq_params.cu_seqlens_kv)
        assert packed_seq_params.max_seqlen_q == packed_seq_params.max_seqlen_kv == int(bounds.diff().max())
        cuts = bounds[1:-1].tolist()
        pieces = [
            [piece.transpose(0, 1).unsqueeze(0) for piece in torch.tensor_split(tensor, cuts)]
            for tensor in (query, key, value)
        ]
        contexts = [
            scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True).squeeze(0).transpose(0, 1)  # type: ignore[misc]
            for heads in zip(*pieces, strict=True)
        ]
        return torch.cat(contexts).flatten(1)


def build(
    tiny: ModuleType, folder: Path, *, is_thd: bool, is_first: bool = True, is_last: bool = True
) -> TargetsOnlyGPTModel:
    """A pipeline stage of two layers."""
    trainer = tiny.tiny_config(folder, seq_length=64).trainer
    config = build_transformer_config(trainer, device=CPU)
    modules: LayerModules = build_layer_modules(config, device=CPU, is_packed=True)
    if is_thd:
        for layer in modules.submodules.layer_specs:
            layer.submodules.self_attention.module = SelfAttention
            layer.submodules.self_attention.submodules.core_attention = ThdAttention
        modules = replace(modules, is_transformer_engine=True, padding_attends=True)
    model = TargetsOnlyGPTModel(
        num_tokens=61,
        modules=modules,
        config=config,
        transformer_layer_spec=modules.submodules,
        vocab_size=64,
        max_sequence_length=64,
        pre_process=is_first,
        post_process=is_last,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=10000,
    )
    initialise(model, seed=5, vocab_size=61)
    return model


def run(model: TargetsOnlyGPTModel, batch: MicroBatch) -> Tensor:
    losses_N: Tensor = model(
        batch.input_ids_BS,
        batch.position_ids_BS,
        batch.segments_C2,
        labels_N=batch.labels_N,
        target_positions_N=batch.target_positions_N,
    )
    return losses_N


def packs(tiny: ModuleType, num_sequences: int) -> MicroBatch:
    data = tiny.dataset_of(tiny.conversations(24), packing="best_fit", max_seq_length=64)
    # With padding at the end of each, and a length that no conversation has.
    return read_micro_batch(data, np.arange(num_sequences), pad_to_multiple_of=72)


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_packs_as_one_sequence_have_the_losses_and_gradients_of_packs(
    tiny: ModuleType, tmp_path: Path, num_sequences: int
) -> None:
    batch = packs(tiny, num_sequences)
    outcomes = []
    for is_thd in (False, True):
        model = build(tiny, tmp_path, is_thd=is_thd)
        losses_N = run(model, batch)
        losses_N.sum().backward()  # type: ignore[no-untyped-call]
        logits_BSV = model(batch.input_ids_BS, batch.position_ids_BS, batch.segments_C2)
        assert batch.segments_C2 is not None
        row, position = np.divmod(batch.segments_C2[-1, 1].item() - 1, batch.input_ids_BS.shape[1])
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        outcomes.append({"losses": losses_N.detach(), "logits": logits_BSV[row, position].detach(), **gradients})
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_packs_as_one_sequence_pass_a_pipeline_in_the_shape_of_packs(
    tiny: ModuleType, tmp_path: Path, num_sequences: int
) -> None:
    batch = packs(tiny, num_sequences)
    outcomes = []
    for is_thd in (False, True):
        first = build(tiny, tmp_path, is_thd=is_thd, is_last=False)
        last = build(tiny, tmp_path, is_thd=is_thd, is_first=False)
        sent = run(first, batch)
        assert sent.shape == (batch.input_ids_BS.shape[1], num_sequences, 32)
        # Megatron empties what it has sent.
        assert sent._base is None
        received = sent.detach().requires_grad_()
        last.set_input_tensor(received)
        losses_N = run(last, batch)
        losses_N.sum().backward()  # type: ignore[no-untyped-call]
        sent.backward(received.grad)  # type: ignore[no-untyped-call]
        gradients = {name: parameter.grad for name, parameter in first.named_parameters()}
        outcomes.append({"losses": losses_N.detach(), **gradients})
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-5)
