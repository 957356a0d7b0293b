# SPDX-License-Identifier: Apache-2.0
"""AdamW, gradient clipping and the learning-rate schedule, all of them Megatron's."""

import logging
from collections.abc import Sequence

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from primus.config.schema import TrainerConfig

logger = logging.getLogger("primus")


def build_optimizer(trainer: TrainerConfig, model: Sequence[DistributedDataParallel]) -> MegatronOptimizer:
    """Build the optimizer of this rank.

    Args:
        trainer: The trainer module of the run.
        model: The chunks of the model on this rank; biases and norms are not decayed.

    Returns:
        Megatron's optimizer, with float32 main weights where the model is bfloat16.
    """
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer=trainer.optimizer,
            lr=trainer.lr,
            min_lr=trainer.min_lr,
            weight_decay=trainer.weight_decay,
            adam_beta1=trainer.adam_beta1,
            adam_beta2=trainer.adam_beta2,
            adam_eps=trainer.adam_eps,
            clip_grad=trainer.clip_grad,
            bf16=trainer.bf16,
            params_dtype=torch.bfloat16 if trainer.bf16 else torch.float32,
            use_distributed_optimizer=trainer.use_distributed_optimizer,
            overlap_param_gather=trainer.overlap_param_gather,
        ),
        list(model),
    )
    if isinstance(optimizer.optimizer, torch.optim.AdamW):
        # Where neither Transformer Engine nor apex is installed, Megatron takes PyTorch's AdamW, by default with one
        # kernel for every operation of the update.
        for group in optimizer.param_groups:
            group["fused"] = True
    return optimizer


def build_scheduler(
    trainer: TrainerConfig, optimizer: MegatronOptimizer, *, train_iters: int
) -> OptimizerParamScheduler:
    """Build the learning-rate schedule, counted in steps.

    Args:
        trainer: The trainer module of the run.
        optimizer: Its learning rates are set.
        train_iters: Steps of the run.

    Returns:
        Megatron's schedule; stepped once before each optimizer step, so that the first step of a warm-up over W steps
        uses `lr / W` and the last step of the run uses `min_lr`.
    """
    decay_iters = trainer.lr_decay_iters or train_iters
    if trainer.lr_warmup_iters >= decay_iters:
        logger.warning(
            "lr_warmup_iters: the warm-up takes %d steps and the run %d, so that lr is reached at the end or never",
            trainer.lr_warmup_iters,
            decay_iters,
        )
        decay_iters = trainer.lr_warmup_iters + 1
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=trainer.lr,
        min_lr=trainer.min_lr,
        lr_warmup_steps=trainer.lr_warmup_iters,
        lr_decay_steps=decay_iters,
        lr_decay_style=trainer.lr_decay_style,
        start_wd=trainer.weight_decay,
        end_wd=trainer.weight_decay,
        wd_incr_steps=train_iters,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
        wsd_decay_steps=trainer.lr_wsd_decay_iters,
        lr_wsd_decay_style=trainer.lr_wsd_decay_style,
    )
