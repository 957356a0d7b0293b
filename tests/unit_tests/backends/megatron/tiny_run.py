# SPDX-License-Identifier: Apache-2.0
"""A tiny data set and a tiny run on it; as a program, one process of several such runs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from primus.backends.megatron.core.datasets.settings import DatasetSettings
from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.data.batches import IntArray, SequenceDataset
from primus.backends.megatron.data.loading import MicroBatchLoader
from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.backends.megatron.model.gpt import build_model
from primus.backends.megatron.optimizer import build_optimizer
from primus.backends.megatron.step import TrainingStep
from primus.backends.megatron.trainer import TokenizerFacts, train_on
from primus.backends.megatron.training_result import TrainingResult
from primus.config.schema import TrainConfig
from primus.sft.dataset import EncodingOptions, TokenizedDataset
from primus.sft.encoding import EncodedConversation
from primus.sft.formatters import create_formatter
from primus.sft.ledger import Ledger
from primus.sft.masking import PackedTargets
from primus.sft.packing import Method
from primus.sft.sequences import SequenceArrays
from primus.sft.target_groups import GROUPS_PER_SOURCE
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer

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
        self.is_packed = False
        self.shares = None
        self.source_names = ("tiny",)

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

    def num_positions_of(self, indices_B: IntArray) -> IntArray:
        return self.num_positions_N[indices_B]

    def num_pairs_of(self, indices_B: IntArray) -> IntArray:
        return self.num_positions_N[indices_B] * (self.num_positions_N[indices_B] + 1) // 2

    def num_units_of(self, indices_B: IntArray) -> IntArray:
        return self.num_targets_N[indices_B]

    def batch(self, indices_B: IntArray, *, length: int) -> PackedTargets:
        rows = [self.rows[index] for index in indices_B]
        starts = np.arange(len(rows)) * length

        def stack(name: str) -> npt.NDArray[Any]:
            return torch.stack([row[name][:length] for row in rows]).numpy()

        return PackedTargets(
            input_ids_BS=stack("input_ids"),
            labels_BS=stack("labels"),
            loss_mask_BS=stack("loss_mask"),
            position_ids_BS=stack("position_ids"),
            segments_C2=np.stack([starts, starts + self.num_positions_N[indices_B]], axis=1).astype(np.int32),
            # Odd labels are in the first group, the others in the last.
            groups_N=np.concatenate([self.groups(row) for row in rows]),
        )

    def groups(self, row: dict[str, torch.Tensor]) -> npt.NDArray[np.int32]:
        """The group of each target of a row."""
        labels_N = row["labels"][row["loss_mask"] != 0].numpy()
        return np.where(labels_N % 2 == 1, 0, GROUPS_PER_SOURCE - 1).astype(np.int32)

    def origin(self, index: int) -> str:
        return f"tiny.jsonl:{index + 1}"

    def origins(self, index: int) -> list[str]:
        return [self.origin(index)]


VALIDATION = TinySequences(13, seed=1)


@lru_cache
def _byte_tokenizer() -> SFTTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<pad>": 0, **{letter: 1 + n for n, letter in enumerate(letters)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return load_tokenizer(tokenizer)


def conversations(num: int, *, seed: int = 0, longest: int = 20) -> list[EncodedConversation]:
    """Random conversations of 3 to `longest` tokens with two trained pieces, of weight 1 and 0.5."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(num):
        tokens_T = np.cumsum(rng.integers(1, 3, rng.integers(3, longest + 1))) % VOCAB_SIZE
        edges = np.sort(rng.choice(len(tokens_T) + 1, size=3, replace=False))
        made.append(
            EncodedConversation(
                tokens_T=tokens_T,
                token_spans_K2=np.stack([edges[:-1], edges[1:]], axis=1),
                turns_K=np.array([1, 3]),
                is_end_K=np.array([False, False]),
                weights_K=np.array([0.5, 1.0], dtype=np.float32),
                origin=f"tiny.jsonl:{number + 1}",
            )
        )
    return made


def dataset_of(
    made: Sequence[EncodedConversation], *, packing: Method, max_seq_length: int = 32, units: int | None = None
) -> SFTDataset:
    """The data set of conversations, in two shards; each with so many units, or one for each target."""
    half = len(made) // 2
    shards = [
        SequenceArrays.of_conversations(part, content_hashes=[bytes(16)] * len(part))
        for part in (made[:half], made[half:])
    ]
    if units is not None:
        shards = [replace(shard, num_units_N=np.full(len(shard), units, dtype=np.int32)) for shard in shards]
    tokenizer = _byte_tokenizer()
    settings = DatasetSettings(
        tokenizer=tokenizer,
        formatter=create_formatter("alpaca", eos_token="<pad>", tokenizer=tokenizer),
        max_seq_length=max_seq_length,
        seed=1234,
        options=EncodingOptions(),
        packing=packing,
    )
    return SFTDataset.from_tokenized(TokenizedDataset(shards, ledger=Ledger()), settings, [])


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
    if train is None:
        packing = config.trainer.packing
        train = TinySequences(40) if packing == "none" else dataset_of(conversations(120), packing=packing)
    return train_on(config, process=this_process(), train=train, validation=validation, tokenizer=TOKENIZER)


def read_losses(result: TrainingResult, name: str = "lm_loss") -> list[float]:
    """One of the numbers of the metrics file, in order."""
    lines = map(json.loads, result.metrics_path.read_text().splitlines())
    return [line[name] for line in lines if name in line]


def micro_batches_of(step: TrainingStep, batch_G: IntArray) -> MicroBatchLoader:
    """This rank's micro-batches of a global batch."""
    return MicroBatchLoader(
        step.dataset, step.own_micro_batches(batch_G), pad_to_multiple_of=8, device=torch.device("cpu")
    )


def gradients_of_a_step(config: TrainConfig, data: SequenceDataset | None = None) -> dict[str, npt.NDArray[np.float32]]:
    """The gradients of the first global batch, as the optimizer is given them."""
    process, data = this_process(), data or TinySequences(40)
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
        for chunk in model:
            chunk.zero_grad_buffer()
        batch_G = np.arange(config.trainer.global_batch_size)
        step._forward_and_backward(micro_batches_of(step, batch_G), num_sequences=len(batch_G))
        return {
            name: parameter.main_grad.numpy().copy()
            for chunk in model
            for name, parameter in chunk.module.named_parameters()
        }


if __name__ == "__main__":
    # A list of jobs: a folder, what to do, and keys of the trainer.
    for folder, what, keys in json.loads(sys.argv[1]):
        config = tiny_config(Path(folder), **keys)
        if what == "train":
            run_tiny(config)
        else:
            np.savez(Path(folder) / f"{this_process().rank}.npz", allow_pickle=False, **gradients_of_a_step(config))
