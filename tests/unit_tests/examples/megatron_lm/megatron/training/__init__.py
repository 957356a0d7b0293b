# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Megatron-LM's `megatron.training`, which no package has: the part of it that reads data.

It asks the provider for as many samples as NVIDIA/Megatron-LM's megatron/training/training.py does, goes through them
with a sampler that gives the same indices as that of megatron/training/datasets/data_samplers.py, and trains with
megatron.core's schedule and optimizer; what megatron.core needs on a CPU is this project's. Its arguments have the
names and defaults of megatron/training/arguments.py.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.enums import ModelType
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch.utils.data import DataLoader, Dataset

from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.config.schema import TrainConfig

SEEN: dict[str, Any] = {}
"""What the last call of `pretrain` did, for tests."""


@lru_cache
def get_args() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("train", "valid", "test"):
        parser.add_argument(f"--{name}-data-path", nargs="*")
    parser.add_argument("--tokenizer-type")
    parser.add_argument("--tokenizer-model")
    parser.add_argument("--load")
    parser.add_argument("--sft", action="store_true")
    parser.add_argument("--calculate-per-token-loss", action="store_true")
    parser.add_argument(
        "--no-create-attention-mask-in-dataloader",
        action="store_false",
        dest="create_attention_mask_in_dataloader",
    )
    for name in ("seq-length", "micro-batch-size", "global-batch-size", "train-iters", "eval-interval"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--eval-iters", type=int, default=100)
    parser.add_argument("--consumed-train-samples", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--lr", type=float, default=1e-3)
    return parser.parse_args()


class Sampler:
    """The indices of this rank's micro-batches, from the first sample that is not consumed to the last one, once."""

    def __init__(self, total_samples: int, consumed_samples: int, micro_batch_size: int) -> None:
        assert total_samples > consumed_samples, "no samples left to consume"
        self.indices = range(consumed_samples, total_samples)
        self.micro_batch_size = micro_batch_size

    def __iter__(self) -> Iterator[list[int]]:
        ranks = parallel_state.get_data_parallel_world_size()
        first = parallel_state.get_data_parallel_rank() * self.micro_batch_size
        for start in range(0, len(self.indices) - ranks * self.micro_batch_size + 1, ranks * self.micro_batch_size):
            yield list(self.indices[start + first : start + first + self.micro_batch_size])


def pretrain(
    train_valid_test_dataset_provider: Callable[..., tuple[Dataset[Any] | None, ...]],
    model_provider: Callable[..., torch.nn.Module],
    model_type: ModelType,
    forward_step_func: Callable[..., Any],
) -> None:
    """Build the data and the model, and train."""
    args = get_args()
    keys = {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 1}
    keys |= {name: getattr(args, name) for name in ("seq_length", "global_batch_size", "lr")}
    with joined_processes(this_process(), TrainConfig(exp_name="here", workspace=Path(), trainer=keys).trainer):
        seed_weights(args.seed)
        _train(train_valid_test_dataset_provider, model_provider, forward_step_func)


def _train(
    train_valid_test_dataset_provider: Callable[..., tuple[Dataset[Any] | None, ...]],
    model_provider: Callable[..., torch.nn.Module],
    forward_step_func: Callable[..., Any],
) -> None:
    args = get_args()
    num_evaluations = args.train_iters // args.eval_interval + 1
    wanted = [
        args.train_iters * args.global_batch_size,
        num_evaluations * args.eval_iters * args.global_batch_size,
        args.eval_iters * args.global_batch_size,
    ]
    datasets = train_valid_test_dataset_provider(wanted)
    loaders = [
        DataLoader(dataset, batch_sampler=Sampler(len(dataset), consumed, args.micro_batch_size))  # type: ignore[arg-type]
        if dataset is not None
        else None
        for dataset, consumed in zip(datasets, (args.consumed_train_samples, 0, 0), strict=True)
    ]
    assert loaders[0] is not None
    model = model_provider(pre_process=True, post_process=True)
    config: Any = model.config
    wrapped = DistributedDataParallel(config, DistributedDataParallelConfig(), model)
    config.finalize_model_grads_func = finalize_model_grads
    optimizer = get_megatron_optimizer(OptimizerConfig(lr=args.lr, min_lr=args.lr, clip_grad=1.0), [wrapped])
    train_iterator, losses = iter(loaders[0]), []
    for _ in range(args.train_iters - args.consumed_train_samples // args.global_batch_size):
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        reports = get_forward_backward_func()(
            forward_step_func=forward_step_func,
            data_iterator=train_iterator,
            model=wrapped,
            num_microbatches=args.global_batch_size // args.micro_batch_size,
            seq_length=args.seq_length,
            micro_batch_size=args.micro_batch_size,
            forward_only=False,
        )
        optimizer.step()
        loss_sum, num_tokens = torch.stack([report["lm loss"] for report in reports]).sum(0).tolist()
        losses.append(loss_sum / num_tokens)
    SEEN.update(losses=losses, datasets=datasets, loaders=loaders)
