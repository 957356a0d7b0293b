# SPDX-License-Identifier: Apache-2.0
"""What context-parallel ranks and a single process compute from the same weights; as a program, one of the ranks."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from primus.backends.megatron.context_parallel import this_context_rank
from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.data.batches import read_micro_batch
from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.backends.megatron.model.gpt import build_model
from primus.sft.packing import Method
from tests.unit_tests.backends.megatron import tiny_run as tiny

Arrays = Mapping[str, npt.NDArray[Any]]
Keys = dict[str, Any]

WIDTH = 48


def uneven_data(packing: Method) -> SFTDataset:
    """Conversations of 3 to 40 tokens, of which every second one has its targets at its beginning."""
    made = tiny.conversations(40, seed=3, longest=40)
    begins = np.array([[0, 2], [2, 3]])
    made[::2] = [replace(conversation, token_spans_K2=begins) for conversation in made[::2]]
    return tiny.dataset_of(made, packing=packing, max_seq_length=WIDTH)


def gradients(folder: Path, packing: Method, keys: Keys) -> Arrays:
    """The gradients of all the data, one sequence after another, as the optimizer is given them."""
    data = uneven_data(packing)
    num_sequences = len(data) // 4 * 4
    config = tiny.tiny_config(
        folder, global_batch_size=num_sequences, **{"micro_batch_size": 1, "seq_length": WIDTH, **keys}
    )
    return tiny.gradients_of_a_step(config, data)


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


WORK = {"gradients": gradients, "logits": logits, "train": train}

if __name__ == "__main__":
    # A list of jobs: a folder, what to do, how conversations are packed, and keys of the trainer.
    for name, what, packing, keys in json.loads(sys.argv[1]):
        folder = Path(name)
        arrays = WORK[what](folder, packing, keys)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{this_process().rank}.npz", allow_pickle=False, **arrays)
