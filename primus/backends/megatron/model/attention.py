# SPDX-License-Identifier: Apache-2.0
"""Causal attention by PyTorch's own kernels: in packs each conversation for itself, and over context-parallel ranks.

Shapes: S positions of a sequence on this rank, B sequences, P = B * S positions of all of them, K keys that the queries
of this rank attend to, N query heads, G key-value heads, D width of a head.
"""

import math
from contextlib import nullcontext

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from primus.backends.megatron.model.attention_kernels import AttendPieces, attend_one_by_one
from primus.backends.megatron.model.attention_plan import AttentionPlan


class FusedDotProductAttention(MegatronModule):  # type: ignore[misc]
    """Causal self-attention with grouped key-value heads.

    It never builds the scores of a whole sequence in memory. Where context-parallel ranks share sequences, each gathers
    the keys and values of all of them, in one collective, and attends with its own queries; backwards each gets the sum
    of the gradients of its keys.
    """

    def __init__(
        self,
        config: TransformerConfig,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        attend_pieces: AttendPieces = attend_one_by_one,
        **_: object,
    ) -> None:
        super().__init__(config=config)
        if attn_mask_type is not AttnMaskType.causal or attention_type != "self":
            raise ValueError(f"attention is causal self-attention, not {attn_mask_type} {attention_type}")
        self.dropout = config.attention_dropout
        self.softmax_scale = 1 / math.sqrt(config.kv_channels) if softmax_scale is None else softmax_scale
        self.attend_pieces = attend_pieces
        self.context_group = None
        if config.context_parallel_size > 1:
            groups = ProcessGroupCollection.use_mpu_process_groups() if pg_collection is None else pg_collection
            self.context_group = groups.cp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_: object,
    ) -> Tensor:
        """Attend to the positions before each position and to itself.

        Args:
            query: Shape [S, B, N, D].
            key: Shape [S, B, G, D].
            value: Shape [S, B, G, D].
            attention_mask: None for causal attention, or a bool tensor of shape [B or 1, 1, S, S] that is True where a
                position may **not** be attended to, as Megatron has it; it must then exclude the positions that follow
                as well.
            attention_bias: Must be None.
            packed_seq_params: The `AttentionPlan` of the micro-batch, where sequences hold several conversations or
                ranks share them; excludes a mask. What no conversation covers gets zeros, unless the plan has it
                attend.

        Returns:
            Shape [S, B, N * D].

        Raises:
            ValueError: If there is a bias, a mask and a plan, a plan of another kind, or ranks that share sequences
                without a plan.
        """
        plan = packed_seq_params
        if attention_bias is not None or not (plan is None or isinstance(plan, AttentionPlan)):
            raise ValueError("attention_bias and packed_seq_params of Megatron are not supported")
        if (plan is not None and attention_mask is not None) or (plan is None and self.context_group is not None):
            raise ValueError("a plan excludes a mask, and context parallelism needs a plan")
        dropout = self.dropout if self.training else 0.0
        # Sequence-parallel layers have entered the stream of random numbers already.
        forked = dropout > 0 and not self.config.sequence_parallel
        with get_cuda_rng_tracker().fork() if forked else nullcontext():
            if plan is not None:
                return self._attend_by_plan(query, key, value, plan, dropout=dropout)
            context_BNSD = scaled_dot_product_attention(
                query.permute(1, 2, 0, 3),
                key.permute(1, 2, 0, 3),
                value.permute(1, 2, 0, 3),
                attn_mask=None if attention_mask is None else ~attention_mask,
                dropout_p=dropout,
                is_causal=attention_mask is None,
                scale=self.softmax_scale,
                enable_gqa=query.size(2) != key.size(2),
            )
        return context_BNSD.permute(2, 0, 1, 3).flatten(2)

    def _attend_by_plan(
        self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, *, dropout: float
    ) -> Tensor:
        num_positions, num_sequences = query.shape[:2]
        if plan.key_places_K is None:
            key_KGD, value_KGD = (tensor.transpose(0, 1).flatten(0, 1) for tensor in (key, value))
        else:
            key_KGD, value_KGD = self._gather(key, value, plan.key_places_K)
        context_PND = self.attend_pieces(
            query.transpose(0, 1).flatten(0, 1), key_KGD, value_KGD, plan, scale=self.softmax_scale, dropout=dropout
        )
        context_BSND = context_PND.reshape(num_sequences, num_positions, *query.shape[2:])
        return context_BSND.transpose(0, 1).flatten(2).contiguous()

    def _gather(self, key: Tensor, value: Tensor, places_K: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of the pieces, of all ranks."""
        both = torch.cat([key, value], dim=-1)
        gathered = gather_from_sequence_parallel_region(both, group=self.context_group)
        key_KGD, value_KGD = gathered.flatten(0, 1).index_select(0, places_K).split(key.size(-1), dim=-1)
        return key_KGD, value_KGD
