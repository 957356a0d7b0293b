# SPDX-License-Identifier: Apache-2.0
"""What context-parallel ranks and a single process compute from the same weights; as a program, one of the ranks."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from primus.backends.megatron.context_parallel import this_context_rank
from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.data.batches import read_micro_batch
from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.backends.megatron.model.gpt import build_model
from primus.backends.megatron.optimizer import build_optimizer
from primus.backends.megatron.step import TrainingStep
from primus.errors import TrainingError
from primus.sft.packing import Method
from tests.unit_tests.backends.megatron import tiny_run as tiny

Arrays = Mapping[str, npt.NDArray[Any]]
Keys = dict[str, Any]

WIDTH = 48


@lru_cache
def uneven_data(packing: Method) -> SFTDataset:
    """Conversations of 3 to 40 tokens, of which every second one has its targets at its beginning."""
    made = tiny.conversations(40, seed=3, longest=40)
    begins = np.array([[0, 2], [2, 3]])
    made[::2] = [replace(conversation, token_spans_K2=begins) for conversation in made[::2]]
    return tiny.dataset_of(made, packing=packing, max_seq_length=WIDTH)


def sparse_data(packing: Method) -> SFTDataset:
    """Conversations that fill a sequence, and two that are short and alone, so that a rank has only padding of them."""
    made = tiny.conversations(200, seed=4)
    long = [conversation for conversation in made if len(conversation.tokens_T) == 20]
    short = [conversation for conversation in made if len(conversation.tokens_T) == 3]
    return tiny.dataset_of([*long[:2], *short[:1], *long[2:4], *short[1:2]], packing=packing, max_seq_length=20)


def gradients(folder: Path, packing: Method, keys: Keys, data: SFTDataset | None = None) -> Arrays:
    """The gradients of all the data, one sequence after another, as the optimizer is given them."""
    data = uneven_data(packing) if data is None else data
    num_sequences = len(data) // 2 * 2
    config = tiny.tiny_config(
        folder, global_batch_size=num_sequences, **{"micro_batch_size": 1, "seq_length": WIDTH, **keys}
    )
    return tiny.gradients_of_a_step(config, data)


def sparse_gradients(folder: Path, packing: Method, keys: Keys) -> Arrays:
    """The same of sparse data."""
    return gradients(folder, packing, keys, sparse_data(packing))


def logits(folder: Path, packing: Method, keys: Keys) -> Arrays:
    """The logits of this rank's positions of each sequence, and which positions they are."""
    data = uneven_data(packing)
    process, trainer = this_process(), tiny.tiny_config(folder, seq_length=WIDTH, **keys).trainer
    found: dict[str, npt.NDArray[Any]] = {}
    with joined_processes(process, trainer):
        seed_weights(trainer.seed)
        (model,) = build_model(trainer, padded_vocab_size=64, device=process.device)
        context = this_context_rank()
        for index in range(len(data)):
            batch = read_micro_batch(data, np.array([index]), pad_to_multiple_of=4, context=context)
            logits_BSV = model(batch.input_ids_BS, batch.position_ids_BS, batch.segments_C2)
            found[f"logits {index}"] = logits_BSV[0].detach().numpy()
            found[f"positions {index}"] = context.positions(context.size * batch.input_ids_BS.shape[1])
    return found


def train(folder: Path, packing: Method, keys: Keys) -> Arrays:
    """A run of 30 steps; its numbers are in its metrics file."""
    tiny.run_tiny(tiny.tiny_config(folder, train_iters=30, eval_interval=10, sft_packing=packing, **keys))
    return {}


def blame(folder: Path, packing: Method, keys: Keys) -> Arrays:
    """What is said of a batch in which one loss is no number, in a file of this rank."""
    data = tiny.TinySequences(8)
    data.rows[3]["loss_mask"][0] = float("nan")
    process, trainer = this_process(), tiny.tiny_config(folder, sft_packing=packing, **keys).trainer
    with joined_processes(process, trainer):
        model = build_model(trainer, padded_vocab_size=64, device=process.device)
        step = TrainingStep(
            model=model,
            optimizer=build_optimizer(trainer, model),
            scheduler=None,
            dataset=data,
            micro_batch_size=2,
            pad_to_multiple_of=8,
            device=process.device,
        )
        try:
            step.run(np.arange(8), tiny.micro_batches_of(step, np.arange(8)), iteration=5)
        except TrainingError as exc:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{process.rank}.txt").write_text(str(exc))
    return {}


WORK = {"blame": blame, "sparse gradients": sparse_gradients, "gradients": gradients, "logits": logits, "train": train}

if __name__ == "__main__":
    # A list of jobs: a folder, what to do, how conversations are packed, and keys of the trainer.
    for name, what, packing, keys in json.loads(sys.argv[1]):
        folder = Path(name)
        arrays = WORK[what](folder, packing, keys)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{this_process().rank}.npz", allow_pickle=False, **arrays)
