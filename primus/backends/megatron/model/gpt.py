# SPDX-License-Identifier: Apache-2.0
"""Megatron's GPTModel, built from the model keys of the configuration.

Shapes: S positions, B sequences, N targets of a micro-batch, H width of the residual stream, V rows of the embedding.
"""

import logging
import warnings

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import cross_entropy

from primus.backends.megatron.model.attention import are_segments, build_layer_modules
from primus.config.schema import TrainerConfig

logger = logging.getLogger("primus")


class TargetsOnlyGPTModel(GPTModel):  # type: ignore[misc]
    """GPTModel that computes logits only at the positions that have a target.

    In a conversation most positions have none. Logits are the largest tensor of the model, V numbers for each position,
    so leaving out those that nothing is computed from saves time and memory and changes no loss.
    """

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        *,
        labels_N: Tensor | None = None,
        target_positions_N: Tensor | None = None,
    ) -> Tensor:
        """Give the loss of every target, or the logits of every position.

        Args:
            input_ids: Shape [B, S].
            position_ids: Shape [B, S]. It is read where there are several conversations in a sequence; else rotary
                positions are those of the sequence, and it may be None.
            attention_mask: None for causal attention, or where conversations begin and end, or a mask; as for
                `FusedDotProductAttention`.
            labels_N: The token to predict at each target; None gives logits.
            target_positions_N: Where the targets are: position `s` of sequence `b` is `s * B + b`.

        Returns:
            Cross entropy in float32, shape [N], aligned with `labels_N`. Without `labels_N`, logits of shape [B, S, V].
        """
        if labels_N is None or target_positions_N is None:
            logits_BSV: Tensor = super().forward(input_ids, position_ids, attention_mask)
            return logits_BSV
        decoder_input, rotary_pos_emb, *_ = self._preprocess(input_ids=input_ids, position_ids=position_ids)
        if attention_mask is not None and position_ids is not None and are_segments(attention_mask):
            # As if each conversation were alone: what a long sequence rounds off its angles depends on the place.
            rotary_pos_emb = rotary_pos_emb[position_ids.t()].flatten(2, 3)
        hidden_SBH = self.decoder(
            hidden_states=decoder_input, attention_mask=attention_mask, rotary_pos_emb=rotary_pos_emb
        )
        hidden_N1H = hidden_SBH.flatten(0, 1).index_select(0, target_positions_N).unsqueeze(1)
        tied = self.share_embeddings_and_output_weights
        logits_N1V, _ = self.output_layer(hidden_N1H, weight=self.shared_embedding_or_output_weight() if tied else None)
        if self.config.tensor_model_parallel_size == 1:
            # Megatron's loss asks the other ranks for their part of the vocabulary, also where there is none.
            return cross_entropy(logits_N1V.squeeze(1).float(), labels_N, reduction="none")
        losses_1N: Tensor = self.compute_language_model_loss(labels_N.unsqueeze(0), logits_N1V)
        return losses_1N.squeeze(0)


def build_transformer_config(trainer: TrainerConfig, *, device: torch.device) -> TransformerConfig:
    """Translate the model keys into Megatron's configuration.

    Args:
        trainer: The trainer module of the run.
        device: Where the model will run; a model for the CPU is also initialised there.

    Returns:
        Megatron's configuration, with the loss summed per token.
    """
    dtype = torch.bfloat16 if trainer.bf16 else torch.float32
    recompute_method, recompute_num_layers = trainer.recompute_method, trainer.recompute_num_layers
    if trainer.recompute_granularity == "full":
        recompute_method = recompute_method or "uniform"
        recompute_num_layers = recompute_num_layers or 1
    with warnings.catch_warnings():
        # That selective recomputation is not worth it with fused attention, whether or not attention is fused.
        warnings.filterwarnings("ignore", message="If you are using transformer_engine", category=UserWarning)
        return TransformerConfig(
            num_layers=trainer.num_layers,
            hidden_size=trainer.hidden_size,
            ffn_hidden_size=trainer.ffn_hidden_size,
            num_attention_heads=trainer.num_attention_heads,
            num_query_groups=trainer.num_query_groups,
            kv_channels=trainer.kv_channels,
            normalization=trainer.normalization,
            layernorm_epsilon=trainer.norm_epsilon,
            qk_layernorm=trainer.qk_layernorm,
            add_bias_linear=trainer.add_bias_linear,
            add_qkv_bias=trainer.add_qkv_bias,
            gated_linear_unit=trainer.swiglu,
            activation_func=torch.nn.functional.silu if trainer.swiglu else torch.nn.functional.gelu,
            init_method_std=trainer.init_method_std,
            attention_dropout=trainer.attention_dropout,
            hidden_dropout=trainer.hidden_dropout,
            bf16=trainer.bf16,
            params_dtype=dtype,
            pipeline_dtype=dtype,
            tensor_model_parallel_size=trainer.tensor_model_parallel_size,
            pipeline_model_parallel_size=trainer.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=trainer.virtual_pipeline_model_parallel_size,
            context_parallel_size=trainer.context_parallel_size,
            sequence_parallel=trainer.sequence_parallel,
            recompute_granularity=trainer.recompute_granularity,
            recompute_method=recompute_method,
            recompute_num_layers=recompute_num_layers,
            calculate_per_token_loss=True,
            use_cpu_initialization=device.type == "cpu",
            batch_p2p_sync=device.type != "cpu",
            cuda_graph_scope=[],
        )


def build_model(trainer: TrainerConfig, *, padded_vocab_size: int, device: torch.device) -> DistributedDataParallel:
    """Build the model of this rank, wrapped for data parallelism.

    Args:
        trainer: The trainer module of the run.
        padded_vocab_size: Rows of the embedding.
        device: Where the model runs.

    Returns:
        Megatron's DistributedDataParallel around GPTModel; its weights are those of the seed, the same on every rank.
    """
    config = build_transformer_config(trainer, device=device)
    modules = build_layer_modules(config, device=device, is_packed=trainer.packing != "none")
    logger.info("model: %s", modules.reason)
    model = TargetsOnlyGPTModel(
        config=config,
        transformer_layer_spec=modules.submodules,
        vocab_size=padded_vocab_size,
        max_sequence_length=trainer.max_position_embeddings,
        share_embeddings_and_output_weights=not trainer.untie_embeddings_and_output_weights,
        position_embedding_type=trainer.position_embedding_type,
        rotary_base=trainer.rotary_base,
        rope_scaling=trainer.use_rope_scaling,
        rope_scaling_factor=trainer.rope_scaling_factor,
    ).to(device)
    wrapped = DistributedDataParallel(
        config=config,
        ddp_config=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=trainer.overlap_grad_reduce,
            overlap_param_gather=trainer.overlap_param_gather,
            use_distributed_optimizer=trainer.use_distributed_optimizer,
        ),
        module=model,
    )
    config.finalize_model_grads_func = finalize_model_grads
    if trainer.overlap_grad_reduce:
        config.no_sync_func = wrapped.no_sync
    return wrapped
