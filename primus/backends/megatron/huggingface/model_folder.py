# SPDX-License-Identifier: Apache-2.0
"""The weights in a Hugging Face folder: what is there, and parts of it.

A file is mapped for as long as one part is read and copied, so reading a model takes no memory beyond the parts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from primus.backends.megatron.huggingface.weights import Rows
from primus.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class StoredWeight:
    """A weight of the folder."""

    path: Path
    """The file it is in."""
    shape: tuple[int, ...]
    """Its shape."""
    dtype: torch.dtype
    """Its type."""


class ModelFolder:
    """The weights of a Hugging Face model.

    Attributes:
        path: The folder.
        weights: What is there, by name.
    """

    def __init__(self, path: Path) -> None:
        """Read what there is, and no weight yet.

        Args:
            path: The folder.

        Raises:
            CheckpointError: If there are no safetensors, or they are damaged, incomplete or of a type that is no plain
                floating point.
        """
        self.path = path
        self.weights: Mapping[str, StoredWeight] = {}
        for file in _files(path):
            self.weights = {**self.weights, **_weights_of(file)}

    @property
    def files(self) -> Sequence[Path]:
        """The files that hold the weights, in order."""
        return sorted({weight.path for weight in self.weights.values()})

    def read(self, rows: Rows, columns: slice = slice(None)) -> Tensor:
        """Read a part of a weight.

        Args:
            rows: The weight, and its rows.
            columns: The columns, of a matrix.

        Returns:
            The part, which may be a view of the mapped file: copy it and let it go.

        Raises:
            CheckpointError: If the file is damaged.
        """
        stored = self.weights[rows.name]
        try:
            with safe_open(stored.path, framework="pt") as file:
                whole = file.get_slice(rows.name)
                part: Tensor = whole[rows.start : rows.stop]
        except (SafetensorError, OSError) as exc:
            raise CheckpointError(f"{stored.path}: cannot be read ({exc}); download it again") from exc
        return part[:, columns] if part.ndim == 2 else part


def _files(folder: Path) -> list[Path]:
    """The files that hold the weights."""
    if (folder / _INDEX).is_file():
        names = _names_in(folder / _INDEX)
        if names != [_SINGLE] and (folder / _SINGLE).is_file():  # transformers takes the one, other readers the others
            raise CheckpointError(
                f"{folder}: holds {_SINGLE} and {_INDEX}, which names other files ({names[0]}); delete what is stale"
            )
        files = [folder / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{folder}: lacks {', '.join(missing)}, which {_INDEX} names; download what is missing"
            )
        return files
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise CheckpointError(
            f"{folder}: has its weights in {pickles[0]}, a pickle, which can run any program when it is read; save them"
            " as safetensors: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER)"
        )
    raise CheckpointError(f"{folder}: holds no {_SINGLE} and no {_INDEX}; name the folder of a Hugging Face model")


def _names_in(index: Path) -> list[str]:
    """The files that an index names, all of them beside it."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{index}: cannot be read ({exc}); download it again") from exc
    wrong = [name for name in names if not isinstance(name, str) or Path(name).name != name or name in ("", "..")]
    if wrong or not names:
        raise CheckpointError(
            f"{index}: names {repr(wrong[0]) if wrong else 'no file'}, not files of its folder; download it again"
        )
    return sorted(names)


def _weights_of(path: Path) -> dict[str, StoredWeight]:
    weights = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                part = file.get_slice(name)
                dtype = part.get_dtype()
                if dtype not in _DTYPES:
                    raise CheckpointError(
                        f"{path}: {name} is of type {dtype}; take the model's folder with weights in"
                        f" {', '.join(_DTYPES)}, which are not quantized"
                    )
                weights[name] = StoredWeight(path, tuple(part.get_shape()), _DTYPES[dtype])
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path}: cannot be read ({exc}); download it again") from exc
    return weights
