# SPDX-License-Identifier: Apache-2.0
"""Bytes that a model really takes, for tests of the estimate; as a program, one rank of a run in several layouts."""

import json
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from primus.backends.megatron.data.batches import IntArray
from primus.backends.megatron.data.loading import MicroBatchLoader
from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.backends.megatron.model.gpt import build_model
from primus.backends.megatron.optimizer import build_optimizer
from primus.backends.megatron.planning.layout import width_multiple
from primus.backends.megatron.step import TrainingStep
from primus.config.schema import TrainerConfig
from primus.sft.masking import PackedTargets

MegatronModel: TypeAlias = Any  # megatron-core has no types


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations make inside the block, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {_storage_id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and _storage_id(leaf) not in given | self._storages.keys():
                self._count(leaf.untyped_storage(), _storage_id(leaf))
        self.peak = max(self.peak, self.now)
        return made

    def _count(self, storage: torch.UntypedStorage, name: int) -> None:
        num_bytes = storage.nbytes()

        def forget(_: object) -> None:
            self.now -= num_bytes
            del self._storages[name]

        self._storages[name] = weakref.ref(storage, forget)
        self.now += num_bytes


def _storage_id(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class FullSequences:
    """Sequences of full length with a target at every position, unpacked."""

    is_packed = False
    fingerprint = "full"
    source_names = ("full",)

    def __init__(self, *, max_seq_length: int, num_rows: int) -> None:
        self.max_seq_length = max_seq_length
        self.num_rows = num_rows

    def num_positions_of(self, indices_B: IntArray) -> IntArray:
        return np.full(len(indices_B), self.max_seq_length)

    def num_pairs_of(self, indices_B: IntArray) -> IntArray:
        return self.num_positions_of(indices_B) * (self.max_seq_length + 1) // 2

    def num_units_of(self, indices_B: IntArray) -> IntArray:
        return self.num_positions_of(indices_B)

    def batch(self, indices_B: IntArray, *, length: int) -> PackedTargets:
        shape = (len(indices_B), length)
        starts = np.arange(len(indices_B)) * length
        tokens_BS = np.random.default_rng(int(indices_B[0])).integers(0, self.num_rows, shape)
        return PackedTargets(
            input_ids_BS=tokens_BS,
            labels_BS=tokens_BS,
            loss_mask_BS=np.ones(shape, dtype=np.float32),
            position_ids_BS=np.broadcast_to(np.arange(length), shape).copy(),
            segments_C2=np.stack([starts, starts + length], axis=1).astype(np.int32),
            groups_N=np.zeros(tokens_BS.size, dtype=np.int32),
        )

    def origin(self, index: int) -> str:
        return f"full:{index}"

    def origins(self, index: int) -> list[str]:
        return [self.origin(index)]


def bytes_of_state(chunks: Any, optimizer: Any, *, bf16: bool) -> dict[str, int]:
    """Bytes of weights, of gradients, and of what the optimizer keeps."""
    weights = [weight for chunk in chunks for weight in chunk.parameters()]
    kept = 0
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        updated = [weight for group in part.optimizer.param_groups for weight in group["params"]]
        # In float32 the optimizer's weights are the model's own.
        kept += sum(weight.nbytes for weight in updated) if bf16 else 0
        kept += sum(state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes for state in part.optimizer.state.values())
    return {
        "weights": sum(weight.nbytes for weight in weights),
        "gradients": sum(weight.main_grad.nbytes for weight in weights if weight.requires_grad),
        "optimizer": kept,
    }


def measure(trainer: TrainerConfig, *, num_rows: int) -> dict[str, int]:
    """Make two steps in this process's place in the layout; measure the second one."""
    process = this_process()
    with joined_processes(process, trainer):
        seed_weights(1)
        chunks = build_model(trainer, padded_vocab_size=num_rows, device=process.device, vocab_size=num_rows)
        optimizer = build_optimizer(trainer, chunks)
        step = TrainingStep(
            model=chunks,
            optimizer=optimizer,
            scheduler=None,
            dataset=FullSequences(max_seq_length=trainer.seq_length, num_rows=num_rows),
            micro_batch_size=trainer.micro_batch_size,
            pad_to_multiple_of=width_multiple(trainer),
            device=process.device,
        )
        batch_G = np.arange(trainer.global_batch_size)
        for measured in (LiveBytes(), LiveBytes()):
            for chunk in chunks:
                chunk.zero_grad_buffer()
            optimizer.zero_grad()
            batches = MicroBatchLoader(
                step.dataset,
                step.own_micro_batches(batch_G),
                pad_to_multiple_of=width_multiple(trainer),
                device=process.device,
                num_workers=0,
            )
            with measured:
                step._forward_and_backward(batches, num_sequences=len(batch_G))
            optimizer.step()
        return {**bytes_of_state(chunks, optimizer, bf16=trainer.bf16), "working": measured.peak}


if __name__ == "__main__":
    # A folder, rows of the embedding, and a list of trainers.
    folder, rows, trainers = json.loads(sys.argv[1])
    found = [measure(TrainerConfig(**keys), num_rows=rows) for keys in trainers]
    (Path(folder) / f"{this_process().rank}.json").write_text(json.dumps(found))
