# SPDX-License-Identifier: Apache-2.0
"""The weights in a checkpoint of `dist_checkpointing`, whatever layout wrote them, read one layer at a time."""

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from primus.errors import CheckpointError

_STACKED = "decoder.layers."


@dataclass(frozen=True, kw_only=True)
class StoredPart:
    """A weight of one layer, or of none."""

    name: str
    """Its name in GPTModel's state dict, with the layer's number."""
    key: str
    """Its name in the checkpoint, where a weight that every layer has is one tensor with the layers in front."""
    layer: int | None
    """Where it is in that tensor; None if it is all of it."""
    shape: tuple[int, ...]
    """Its shape, without the layers."""
    dtype: torch.dtype
    """Its type."""


class StoredWeights:
    """What a checkpoint holds."""

    def __init__(self, folder: Path, *, prefixes: tuple[str, ...]) -> None:
        """Read what there is, and no weight yet.

        Args:
            folder: An `iter_*` folder.
            prefixes: How the names of weights begin; everything else is left out.

        Raises:
            CheckpointError: If the folder holds no checkpoint of `torch.distributed`.
        """
        self._folder = folder
        self._reader = FileSystemReader(folder)
        try:
            metadata = self._reader.read_metadata()
        except (OSError, EOFError, AttributeError, ValueError, pickle.UnpicklingError) as exc:
            reason = " ".join(str(exc).split())
            raise CheckpointError(f"{folder}: is no checkpoint that can be read ({reason}); name another one") from exc
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._tensors: Mapping[str, TensorStorageMetadata] = {
            key: stored
            for key, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata) and key.startswith(prefixes)
        }

    def parts(self) -> Iterator[StoredPart]:
        """All weights, layer by layer."""
        for key, stored in self._tensors.items():
            dtype, shape = stored.properties.dtype, tuple(stored.size)
            in_layer = key.removeprefix(_STACKED)
            if in_layer == key or in_layer[0].isdigit():
                yield StoredPart(name=key, key=key, layer=None, shape=shape, dtype=dtype)
                continue
            for layer in range(shape[0]):
                name = f"{_STACKED}{layer}.{in_layer}"
                yield StoredPart(name=name, key=key, layer=layer, shape=shape[1:], dtype=dtype)

    def read(self, part: StoredPart) -> Tensor:
        """Read a weight.

        Args:
            part: One of `parts`.

        Returns:
            The weight, put together from the pieces that the ranks wrote.

        Raises:
            CheckpointError: If a file is missing or damaged.
        """
        whole = torch.empty(part.shape, dtype=part.dtype)
        target = whole if part.layer is None else whole.unsqueeze(0)
        items = [
            ReadItem(
                type=LoadItemType.TENSOR,
                dest_index=MetadataIndex(part.key, chunk.offsets),
                dest_offsets=torch.Size((0, *chunk.offsets[1:]) if part.layer is not None else chunk.offsets),
                storage_index=MetadataIndex(part.key, chunk.offsets, index),
                storage_offsets=torch.Size(storage_offsets),
                lengths=torch.Size((1, *chunk.sizes[1:]) if part.layer is not None else chunk.sizes),
            )
            for index, chunk in enumerate(self._tensors[part.key].chunks)
            if (storage_offsets := _offsets_in(chunk, layer=part.layer)) is not None
        ]
        try:
            self._reader.read_data(LoadPlan(items), _Into(target)).wait()
        except (OSError, EOFError, KeyError, RuntimeError, ValueError, AssertionError, pickle.UnpicklingError) as exc:
            reason = " ".join(str(exc).split())
            raise CheckpointError(
                f"{self._folder}: {part.name} cannot be read ({type(exc).__name__}: {reason}); name another checkpoint"
            ) from exc
        return whole


def _offsets_in(chunk: ChunkStorageMetadata, *, layer: int | None) -> tuple[int, ...] | None:
    """Where a layer begins in a stored piece; None if it is not in there."""
    if layer is None:
        return tuple(0 for _ in chunk.offsets)
    if not chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0]:
        return None
    return (layer - chunk.offsets[0], *(0 for _ in chunk.offsets[1:]))


class _Into(DefaultLoadPlanner):
    """Puts what is read where it belongs in one tensor."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """The place of a piece."""
        place = self._target
        for dimension, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            place = place.narrow(dimension, offset, length)
        return place

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Do nothing more."""
