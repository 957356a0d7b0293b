# SPDX-License-Identifier: Apache-2.0
"""Write a safetensors file tensor by tensor, as `safetensors.torch.save_file` does with all of them in memory.

The format is the length of a JSON header in 8 bytes, the header, and the tensors without gaps; see the README of
huggingface/safetensors.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 8


class TensorSpec(NamedTuple):
    """A tensor that is to be written."""

    name: str
    """Its name."""
    shape: tuple[int, ...]
    """Its shape."""
    dtype: torch.dtype
    """Its type."""

    @property
    def num_bytes(self) -> int:
        """What it takes in a file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(path: Path, specs: Sequence[TensorSpec], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write a file.

    Args:
        path: The file.
        specs: What it will hold, in order; wider types first, so that each tensor begins at a multiple of its width.
        tensors: The names and tensors, in the same order; each is asked for when the one before is written.

    Raises:
        ValueError: If the tensors are not those of the list.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for spec in specs:
        stop = position + spec.num_bytes
        header[spec.name] = {"dtype": _DTYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for spec, (name, tensor) in zip(specs, tensors, strict=True):
            if TensorSpec(name, tuple(tensor.shape), tensor.dtype) != spec:
                raise ValueError(f"{name} of shape {tuple(tensor.shape)} comes where {spec} was announced")
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
