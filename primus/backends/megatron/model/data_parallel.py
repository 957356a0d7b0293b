# SPDX-License-Identifier: Apache-2.0
"""The wrapping of a rank's chunks of the model for data parallelism, and what Megatron's schedules must know of it."""

from collections.abc import Sequence

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from primus.config.schema import TrainerConfig


def wrap_for_data_parallel(
    chunks: Sequence[GPTModel], config: TransformerConfig, *, trainer: TrainerConfig
) -> list[DistributedDataParallel]:
    """Give the chunks buffers for their gradients, which data-parallel ranks add up.

    Args:
        chunks: The chunks of the model on this rank, with their weights; what is not trained has no gradient.
        config: Their common configuration; it learns how gradients are added up.
        trainer: The trainer module of the run.

    Returns:
        The wrapped chunks.
    """
    wrapped = [
        DistributedDataParallel(
            config=config,
            ddp_config=DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                overlap_grad_reduce=trainer.overlap_grad_reduce,
                overlap_param_gather=trainer.overlap_param_gather,
                use_distributed_optimizer=trainer.use_distributed_optimizer,
            ),
            module=chunk,
            # The others are reduced while the first one is computed.
            disable_bucketing=number > 0,
        )
        for number, chunk in enumerate(chunks)
    ]
    for chunk in wrapped:
        _count_padding_of_buckets(chunk)
    config.finalize_model_grads_func = finalize_model_grads
    if trainer.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in wrapped]
        config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    return wrapped


def _count_padding_of_buckets(chunk: DistributedDataParallel) -> None:
    """Let the distributed optimizer save the padding behind each bucket of parameters with it.

    Megatron 0.16.1 joins the buckets without their padding when it saves, and then looks for each parameter where it
    would be with the padding. Behind the first bucket that has some, it saves the state of other parameters, and says
    so only if the last one lies behind the end.
    """
    for buffer in chunk.buffers:
        for bucket in buffer.buckets:
            bucket.numel_unpadded = bucket.grad_data.numel()
        buffer.numel_unpadded = buffer.numel
