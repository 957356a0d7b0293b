# SPDX-License-Identifier: Apache-2.0
"""Megatron's GPTModel, built from the model keys of the configuration.

Shapes: S positions of a sequence on this context rank, B sequences, C conversations and N targets of a micro-batch, H
width of the residual stream, V rows of the embedding.
"""

import logging
import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import make_viewless_tensor
from torch import Tensor
from torch.nn.functional import cross_entropy

from primus.backends.megatron.context_parallel import this_context_rank
from primus.backends.megatron.lora.adapted_model import add_adapters
from primus.backends.megatron.model.attention_plan import build_attention_plan, thd_params
from primus.backends.megatron.model.data_parallel import wrap_for_data_parallel
from primus.backends.megatron.model.initialisation import initialise, leave_uninitialised
from primus.backends.megatron.model.layers import LayerModules, build_layer_modules
from primus.backends.megatron.planning.layout import has_variable_widths
from primus.config.schema import TrainerConfig

logger = logging.getLogger("primus")


class TargetsOnlyGPTModel(GPTModel):  # type: ignore[misc]
    """GPTModel that computes logits only at the positions that have a target.

    In a conversation most positions have none. Logits are the largest tensor of the model, V numbers for each position,
    so leaving out those that nothing is computed from saves time and memory and changes no loss.

    Rows of the embedding that stand for no token, which are there to make the shares of tensor-parallel ranks equal,
    have no part in the loss. So it does not depend on how many there are.

    Context-parallel ranks compute the positions of each sequence that `ContextRank` gives them.

    Args:
        num_tokens: Rows of the embedding that stand for a token; the others are the last ones.
        modules: What its layers are built from.
        **keys: As for `GPTModel`.
    """

    def __init__(self, *, num_tokens: int, modules: LayerModules, **keys: Any) -> None:
        super().__init__(**keys)
        self.num_tokens = num_tokens
        self.modules_of_layers = modules
        if self.post_process and self.config.sequence_parallel:
            # It would gather the positions that the ranks share out; they are gathered before targets are picked.
            self.output_layer.sequence_parallel = False
            self.output_layer.allreduce_dgrad = True

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        segments_C2: Tensor | None,
        *,
        labels_N: Tensor | None = None,
        target_positions_N: Tensor | None = None,
    ) -> Tensor:
        """Give the loss of every target, or the logits of every position; before the last stage, hidden states.

        Args:
            input_ids: Shape [B, S].
            position_ids: Shape [B, S]. It is read where there are several conversations in a sequence; else rotary
                positions are those of the sequence, and it may be None.
            segments_C2: Positions `[first, last)` of each conversation in the whole sequences, on the host, as for
                `build_attention_plan`; None if each sequence is one conversation.
            labels_N: The token to predict at each target; None gives logits.
            target_positions_N: Where the targets are: position `s` of sequence `b` is `s * B + b`.

        Returns:
            Cross entropy in float32, shape [N], aligned with `labels_N`. Without `labels_N`, logits of shape [B, S, V].
            On a pipeline stage that is not the last one, what the next one goes on with, shape [S, B, H], of which
            sequence-parallel ranks have a part of S each.
        """
        num_sequences, num_positions = input_ids.shape
        width = num_positions * self.config.context_parallel_size
        plan = self._attention_plan(segments_C2, input_ids=input_ids, width=width)
        is_thd = plan is not None and plan.qkv_format == "thd"
        if is_thd:
            # One sequence of all; what is handed over between pipeline stages keeps its shape.
            input_ids = input_ids.reshape(1, -1)
            if not self.pre_process:
                self.decoder.set_input_tensor(self.decoder.input_tensor.reshape(-1, 1, self.config.hidden_size))
        # The angles of all positions; Megatron would give this rank those of its part of a single conversation.
        everywhere = PackedSeqParams(qkv_format="thd", max_seqlen_q=width, max_seqlen_kv=width)
        decoder_input, angles, *_ = self._preprocess(
            input_ids=input_ids, position_ids=position_ids, packed_seq_params=everywhere
        )
        hidden_SBH: Tensor = self.decoder(
            hidden_states=decoder_input,
            attention_mask=None,
            rotary_pos_emb=self._own_angles(angles, position_ids, plan=plan, is_packed=segments_C2 is not None),
            packed_seq_params=plan,
        )
        if not self.post_process:
            return hidden_SBH if not is_thd else _reshaped(hidden_SBH, num_sequences=num_sequences)
        if self.config.sequence_parallel:
            # What flows back is the same on all ranks, so each takes its part instead of adding them up.
            hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, tensor_parallel_output_grad=False)
        if is_thd:
            hidden_SBH = hidden_SBH.reshape(num_sequences, num_positions, -1).transpose(0, 1)
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        if labels_N is None or target_positions_N is None:
            logits_SBV, _ = self.output_layer(hidden_SBH, weight=weight, runtime_gather_output=True)
            logits_BSV: Tensor = logits_SBV.transpose(0, 1).contiguous()
            return logits_BSV
        hidden_N1H = hidden_SBH.flatten(0, 1).index_select(0, target_positions_N).unsqueeze(1)
        logits_N1V, _ = self.output_layer(hidden_N1H, weight=weight)
        self._leave_out_padding(logits_N1V)
        if self.config.tensor_model_parallel_size == 1:
            # Megatron's loss asks the other ranks for their part of the vocabulary, also where there is none.
            return cross_entropy(logits_N1V.squeeze(1).float(), labels_N, reduction="none")
        losses_1N: Tensor = self.compute_language_model_loss(labels_N.unsqueeze(0), logits_N1V)
        return losses_1N.squeeze(0)

    def _attention_plan(self, segments_C2: Tensor | None, *, input_ids: Tensor, width: int) -> PackedSeqParams | None:
        """What tells the layers who attends to whom; None where each sequence is one conversation on one rank."""
        modules, context = self.modules_of_layers, this_context_rank()
        if segments_C2 is None and (context.size == 1 or modules.is_transformer_engine):
            return None
        plan = build_attention_plan(
            segments_C2,
            num_sequences=len(input_ids),
            width=width,
            context=context,
            device=input_ids.device,
            padding_attends=modules.padding_attends,
        )
        return thd_params(plan) if modules.is_transformer_engine else plan

    def _own_angles(
        self, angles: Tensor, position_ids: Tensor | None, *, plan: PackedSeqParams | None, is_packed: bool
    ) -> Tensor:
        """Of the angles of all positions, those of this rank's; of a pack, each conversation's from 0."""
        context = this_context_rank()
        if plan is not None and plan.qkv_format == "thd":
            # Megatron begins each conversation at the first angle if there are fewer angles than positions.
            return angles[: plan.max_seqlen_q]
        if is_packed and position_ids is not None:
            # As if each conversation were alone: what a long sequence rounds off its angles depends on the place.
            return angles[position_ids.t()].flatten(2, 3)
        if context.size == 1:
            return angles
        return angles[torch.from_numpy(context.positions(len(angles))).to(angles.device)]

    def _leave_out_padding(self, logits_N1V: Tensor) -> None:
        """Give rows of the embedding that stand for no token the probability 0, and with it the gradient 0."""
        num_rows = logits_N1V.size(-1)
        num_used = self.num_tokens - num_rows * parallel_state.get_tensor_model_parallel_rank()
        if num_used < num_rows:
            with torch.no_grad():
                logits_N1V[..., max(num_used, 0) :] = -math.inf


def _reshaped(hidden: Tensor, *, num_sequences: int) -> Tensor:
    """The same numbers with as many sequences, in a tensor that Megatron may empty once it is sent."""
    reshaped = hidden.reshape(-1, num_sequences, hidden.size(-1))
    viewless: Tensor = make_viewless_tensor(reshaped, requires_grad=True, keep_graph=True)
    return viewless


def build_transformer_config(trainer: TrainerConfig, *, device: torch.device) -> TransformerConfig:
    """Translate the model keys into Megatron's configuration.

    Args:
        trainer: The trainer module of the run.
        device: Where the model will run; a model for the CPU is also initialised there.

    Returns:
        Megatron's configuration, with the loss summed per token.
    """
    dtype = torch.bfloat16 if trainer.bf16 else torch.float32
    is_interleaved = trainer.virtual_pipeline_model_parallel_size is not None
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
            init_method=leave_uninitialised,
            output_layer_init_method=leave_uninitialised,
            embedding_init_method=leave_uninitialised,
            attention_dropout=trainer.attention_dropout,
            hidden_dropout=trainer.hidden_dropout,
            bf16=trainer.bf16,
            deterministic_mode=trainer.deterministic_mode,
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
            # With two stages the one before is also the one behind, and a batch of two sends to the same rank would be
            # received in the order in which that one happens to ask for them; see docs/design/architecture.md.
            overlap_p2p_comm=is_interleaved,
            batch_p2p_comm=not is_interleaved,
            batch_p2p_sync=device.type != "cpu",
            variable_seq_lengths=has_variable_widths(trainer),
            # There are no experts, but Megatron checks that their dispatcher can cope with variable widths.
            moe_token_dispatcher_type="alltoall",  # noqa: S106 - no password
            # gloo still reads what it sends, where a GPU keeps the memory until it is sent.
            deallocate_pipeline_outputs=trainer.pipeline_model_parallel_size > 1 and device.type != "cpu",
            cuda_graph_scope=[],
        )


def build_model(
    trainer: TrainerConfig, *, padded_vocab_size: int, device: torch.device, vocab_size: int | None = None
) -> list[DistributedDataParallel]:
    """Build this rank's part of the model, wrapped for data parallelism.

    Args:
        trainer: The trainer module of the run.
        padded_vocab_size: Rows of the embedding.
        device: Where the model runs.
        vocab_size: Rows that stand for a token; None means all.

    Returns:
        Megatron's DistributedDataParallel around each chunk of GPTModel: one, or with virtual pipeline stages one for
        each. The weights are those of the seed, the same in every layout.
    """
    config = build_transformer_config(trainer, device=device)
    modules = build_layer_modules(
        config, device=device, is_packed=trainer.packing != "none", has_adapters=trainer.lora.enabled
    )
    logger.info("model: %s", modules.reason)
    num_chunks = trainer.virtual_pipeline_model_parallel_size
    chunks = [
        _build_chunk(
            trainer,
            config,
            modules,
            padded_vocab_size=padded_vocab_size,
            vocab_size=vocab_size or padded_vocab_size,
            number=number if num_chunks else None,
        ).to(device)
        for number in range(num_chunks or 1)
    ]
    return wrap_for_data_parallel(chunks, config, trainer=trainer)


def _build_chunk(
    trainer: TrainerConfig,
    config: TransformerConfig,
    modules: LayerModules,
    *,
    padded_vocab_size: int,
    vocab_size: int,
    number: int | None,
) -> TargetsOnlyGPTModel:
    """One pipeline stage of this rank; `number` counts them if they are virtual stages."""
    num_layers = get_num_layers_to_build(config, vp_stage=number)
    model = TargetsOnlyGPTModel(
        num_tokens=vocab_size,
        modules=modules,
        config=config,
        transformer_layer_spec=replace(modules.submodules, layer_specs=modules.submodules.layer_specs[:num_layers]),
        vocab_size=padded_vocab_size,
        max_sequence_length=trainer.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=number),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=number),
        share_embeddings_and_output_weights=not trainer.untie_embeddings_and_output_weights,
        position_embedding_type=trainer.position_embedding_type,
        rotary_base=trainer.rotary_base,
        rope_scaling=trainer.use_rope_scaling,
        rope_scaling_factor=trainer.rope_scaling_factor,
        vp_stage=number,
    )
    initialise(model, seed=trainer.seed, vocab_size=vocab_size)
    if trainer.lora.enabled:
        add_adapters(model, trainer.lora, seed=trainer.seed)
    return model
