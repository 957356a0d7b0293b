# SPDX-License-Identifier: Apache-2.0
"""A tiny data set and a tiny run on it; as a program, one process of several such runs."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from primus.backends.megatron.batches import IntArray, SequenceDataset
from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.backends.megatron.model import build_model
from primus.backends.megatron.optimizer import build_optimizer
from primus.backends.megatron.step import TrainingStep
from primus.backends.megatron.trainer import TokenizerFacts, TrainingResult, train_on
from primus.config.schema import TrainConfig

VOCAB_SIZE = 61
TOKENIZER = TokenizerFacts(name="tiny", vocab_size=VOCAB_SIZE, adds_bos=False)


class TinySequences:
    """Random sequences of 5 to `max_seq_length` positions with 1 to 12 targets each, some of them with weight 0.5.

    The next token follows from the one before, so that there is something to learn.
    """

    def __init__(self, num_sequences: int, *, seed: int = 0, max_seq_length: int = 32) -> None:
        rng = np.random.default_rng(seed)
        self.max_seq_length = max_seq_length
        self.fingerprint = f"tiny-{num_sequences}-{seed}-{max_seq_length}"
        self.num_positions_N: IntArray = rng.integers(5, max_seq_length + 1, num_sequences)
        self.rows = [self._row(rng, int(length)) for length in self.num_positions_N]
        self.num_targets_N: IntArray = np.array([int((row["loss_mask"] > 0).sum()) for row in self.rows])

    def _row(self, rng: np.random.Generator, length: int) -> dict[str, torch.Tensor]:
        tokens = np.cumsum(rng.integers(1, 3, length + 1)) % VOCAB_SIZE
        weights = np.zeros(length, dtype=np.float32)
        targets = rng.choice(length, size=min(int(rng.integers(1, 13)), length), replace=False)
        weights[targets] = rng.choice([1.0, 0.5], size=len(targets))
        padding = (0, self.max_seq_length - length)
        return {
            "input_ids": torch.from_numpy(np.pad(tokens[:-1], padding)),
            "labels": torch.from_numpy(np.pad(tokens[1:], padding)),
            "loss_mask": torch.from_numpy(np.pad(weights, padding)),
            "position_ids": torch.arange(self.max_seq_length),
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]

    def origin(self, index: int) -> str:
        return f"tiny.jsonl:{index + 1}"


VALIDATION = TinySequences(13, seed=1)


def tiny_config(workspace: Path, **trainer: object) -> TrainConfig:
    """A run of a few seconds; any key of the trainer can be given."""
    keys: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "seq_length": 32,
        "make_vocab_size_divisible_by": 16,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "train_iters": 8,
        "lr": 0.01,
        "lr_warmup_iters": 2,
        "eval_interval": 4,
        "tensorboard": False,
    }
    return TrainConfig(exp_name="tiny", workspace=workspace, trainer={**keys, **trainer})


def run_tiny(
    config: TrainConfig, *, train: SequenceDataset | None = None, validation: SequenceDataset | None = VALIDATION
) -> TrainingResult:
    """Train on the tiny data in this process."""
    train = train or TinySequences(40)
    return train_on(config, process=this_process(), train=train, validation=validation, tokenizer=TOKENIZER)


def read_losses(result: TrainingResult, name: str = "lm_loss") -> list[float]:
    """One of the numbers of the metrics file, in order."""
    lines = map(json.loads, result.metrics_path.read_text().splitlines())
    return [line[name] for line in lines if name in line]


def gradients_of_a_step(config: TrainConfig) -> dict[str, npt.NDArray[np.float32]]:
    """The gradients of the first global batch, as the optimizer is given them."""
    process, data = this_process(), TinySequences(40)
    with joined_processes(process, config.trainer):
        seed_weights(config.trainer.seed)
        model = build_model(config.trainer, padded_vocab_size=64, device=process.device)
        step = TrainingStep(
            model=model,
            optimizer=build_optimizer(config.trainer, model),
            scheduler=None,
            dataset=data,
            micro_batch_size=config.trainer.micro_batch_size,
            pad_to_multiple_of=8,
            device=process.device,
        )
        model.zero_grad_buffer()
        step._forward_and_backward(np.arange(config.trainer.global_batch_size))
        return {name: parameter.main_grad.numpy().copy() for name, parameter in model.module.named_parameters()}


if __name__ == "__main__":
    # A list of jobs: a folder, what to do, and keys of the trainer.
    for folder, what, keys in json.loads(sys.argv[1]):
        config = tiny_config(Path(folder), **keys)
        if what == "train":
            run_tiny(config)
        else:
            np.savez(Path(folder) / f"{this_process().rank}.npz", allow_pickle=False, **gradients_of_a_step(config))
