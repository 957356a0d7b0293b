# SPDX-License-Identifier: Apache-2.0
"""The adapters in a checkpoint: merged into the weights beside which they stand, or as a folder of PEFT.

A fused layer has one A for all that is fused in it; PEFT has a pair for each part, so each gets the same A, and its own
rows of B.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from primus.backends.megatron.checkpoint.folder import RunFacts
from primus.backends.megatron.huggingface.safetensors_file import TensorSpec, write_safetensors
from primus.backends.megatron.huggingface.stored_weights import StoredPart, StoredWeights
from primus.backends.megatron.huggingface.weights import ModelShape, to_hugging_face
from primus.backends.megatron.lora.adapter import MARK
from primus.config.schema import LoraConfig
from primus.errors import CheckpointError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
logger = logging.getLogger("primus")

_PREFIX = "base_model.model."


class _Pair(NamedTuple):
    lora_a: StoredPart
    lora_b: StoredPart


class StoredAdapters:
    """The adapters of a checkpoint, by the weight beside which they stand."""

    def __init__(self, stored: StoredWeights, settings: LoraConfig | None) -> None:
        """Find them; none is read yet.

        Args:
            stored: The checkpoint.
            settings: What its run says of them; None if it has none.
        """
        parts = {part.name: part for part in stored.parts() if MARK in part.name}
        self._stored = stored
        self._scale = settings.alpha / settings.dim if settings is not None else 0.0
        self._pairs: Mapping[str, _Pair] = {
            f"{name.partition(MARK)[0]}.weight": _Pair(part, parts[f"{name[:-1]}b"])
            for name, part in parts.items()
            if name.endswith("lora_a")
        }

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def merge_into(self, name: str, weight: Tensor) -> Tensor:
        """Add what an adapter adds, in float32, and round once.

        Args:
            name: The weight's name.
            weight: The weight.

        Returns:
            `W + alpha / dim * B A`, or the weight itself if no adapter stands beside it.
        """
        pair = self._pairs.get(name)
        if pair is None or weight.device.type == "meta":
            return weight
        lora_a, lora_b = (self._stored.read(part).float() for part in pair)
        return torch.addmm(weight.float(), lora_b, lora_a, alpha=self._scale).to(weight.dtype)

    def to_peft(self, shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
        """Give the adapters their names and cuts in PEFT.

        Args:
            shape: The model's shape.

        Yields:
            PEFT's names and tensors.
        """
        for name, pair in sorted(self._pairs.items()):
            lora_a, lora_b = self._stored.read(pair.lora_a), self._stored.read(pair.lora_b)
            for weight, rows in to_hugging_face(name, lora_b, shape=shape, tied=False).items():
                module = _PREFIX + weight.removesuffix(".weight")
                yield f"{module}.lora_A.weight", lora_a
                yield f"{module}.lora_B.weight", rows


def write_peft(stored: StoredWeights, run: RunFacts, *, output: Path) -> None:
    """Write the adapters of a checkpoint as `peft` reads them.

    What is beneath them has a name only if it is a Hugging Face folder as it was; otherwise a warning says what to do.

    Args:
        stored: The checkpoint.
        run: What it says about itself.
        output: The folder, which exists.

    Raises:
        CheckpointError: If it has no adapters.
    """
    adapters = StoredAdapters(stored, run.lora)
    if run.lora is None or not adapters:
        raise CheckpointError("--adapter: the checkpoint has no adapters; leave --adapter out to export the model")
    tensors = dict(adapters.to_peft(ModelShape.of(run.model, vocab_size=run.vocab_size)))
    specs = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    write_safetensors(output / WEIGHTS_FILE, specs, tensors.items())
    modules = {name.removesuffix(".lora_A.weight").rpartition(".")[2] for name in tensors if ".lora_A." in name}
    config = _config(run.lora, modules=sorted(modules), base_model=run.hf_path)
    if run.hf_path is None:
        logger.warning(
            "base_model_name_or_path is null in %s: the weights beneath the adapters are of no Hugging Face folder;"
            " export the checkpoint that the run began with, and fill in its folder",
            CONFIG_FILE,
        )
    (output / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _config(settings: LoraConfig, *, modules: list[str], base_model: str | None) -> dict[str, Any]:
    alpha = settings.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": settings.dim,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": settings.dropout,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_rslora": False,
    }
