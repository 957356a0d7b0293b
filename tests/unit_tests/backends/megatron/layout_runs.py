# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a layout and a single process compute from the same seed; as a program, one of the ranks."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from primus.backends.megatron.data.batches import SequenceDataset
from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.backends.megatron.model import gpt
from primus.backends.megatron.model.initialisation import name_in_whole_model
from primus.backends.megatron.optimizer import build_optimizer
from primus.backends.megatron.planning.layout import width_multiple
from primus.backends.megatron.replacement import replaced
from primus.backends.megatron.step import TrainingStep
from primus.config.schema import TrainConfig
from tests.unit_tests.backends.megatron import tiny_run as tiny

Arrays = Mapping[str, npt.NDArray[Any]]
Keys = dict[str, Any]

NUM_STEPS = 30


def config_of(folder: Path, **keys: object) -> TrainConfig:
    """A run of a model of four layers; any key of the trainer can be given."""
    return tiny.tiny_config(
        folder, **{"num_layers": 4, "lr": 0.003, "train_iters": NUM_STEPS, "eval_interval": 10, **keys}
    )


def data_of(config: TrainConfig) -> SequenceDataset:
    """Sequences with 1 to 12 targets each, or packs."""
    if config.trainer.packing == "none":
        return tiny.TinySequences(40)
    return tiny.dataset_of(tiny.conversations(120), packing=config.trainer.packing)


def train(folder: Path, keys: Keys) -> Arrays:
    """A run; its numbers are in its metrics file."""
    config = config_of(folder, **keys)
    tiny.run_tiny(config, train=data_of(config))
    return {}


def weights(folder: Path, keys: Keys) -> Arrays:
    """The weights that a run begins with, by their names in the whole model."""
    process, trainer = this_process(), config_of(folder, **keys).trainer
    with joined_processes(process, trainer):
        seed_weights(trainer.seed)
        model = gpt.build_model(trainer, padded_vocab_size=64, device=process.device, vocab_size=tiny.VOCAB_SIZE)
        return {
            name_in_whole_model(name, chunk.module): parameter.detach().float().numpy().copy()
            for chunk in model
            for name, parameter in chunk.module.named_parameters()
        }


def gradients(folder: Path, keys: Keys) -> Arrays:
    """The gradients of the first global batch, as the optimizer is given them."""
    process, config = this_process(), config_of(folder, **keys)
    trainer = config.trainer
    with joined_processes(process, trainer):
        seed_weights(trainer.seed)
        model = gpt.build_model(trainer, padded_vocab_size=64, device=process.device, vocab_size=tiny.VOCAB_SIZE)
        step = TrainingStep(
            model=model,
            optimizer=build_optimizer(trainer, model),
            scheduler=None,
            dataset=data_of(config),
            micro_batch_size=trainer.micro_batch_size,
            pad_to_multiple_of=width_multiple(trainer),
            device=process.device,
        )
        for chunk in model:
            chunk.zero_grad_buffer()
        batch_G = np.arange(trainer.global_batch_size)
        step._forward_and_backward(tiny.micro_batches_of(step, batch_G), num_sequences=len(batch_G))
        return {
            name_in_whole_model(name, chunk.module): parameter.main_grad.numpy().copy()
            for chunk in model
            for name, parameter in chunk.module.named_parameters()
        }


def gradients_by_batched_messages(folder: Path, keys: Keys) -> Arrays:
    """The same, with Megatron's default way to send to both neighbours at once."""
    build = gpt.build_transformer_config

    def build_batched(*args: Any, **options: Any) -> Any:
        config = build(*args, **options)
        config.overlap_p2p_comm, config.batch_p2p_comm = False, True
        return config

    with replaced(gpt, "build_transformer_config", build_batched):
        return gradients(folder, keys)


WORK: Mapping[str, Callable[[Path, Keys], Arrays]] = {
    "train": train,
    "weights": weights,
    "gradients": gradients,
    "gradients by batched messages": gradients_by_batched_messages,
}

if __name__ == "__main__":
    # A list of jobs: a folder, what to do, and keys of the trainer.
    for name, what, keys in json.loads(sys.argv[1]):
        folder = Path(name)
        arrays = WORK[what](folder, keys)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{this_process().rank}.npz", allow_pickle=False, **arrays)
