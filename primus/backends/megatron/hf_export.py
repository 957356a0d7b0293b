# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a folder that `transformers` and everything built on it takes as it is.

One process on the CPU reads a checkpoint of any parallel layout: the files of `dist_checkpointing` know each weight's
whole shape, so no model is built and no rank is asked.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

from primus.backends.megatron.cpu import megatron_on_cpu
from primus.backends.megatron.hf_config import generation_config, model_config, special_token_ids
from primus.backends.megatron.hf_tokenizer import chat_template, end_of_turn, write_tokenizer
from primus.backends.megatron.hf_weights import MODEL_PREFIXES, split_layers, to_hugging_face
from primus.backends.megatron.parameter_count import HeadLayout
from primus.config.schema import ModelKeys
from primus.errors import CheckpointError
from primus.sft.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 5_000_000_000
"""Weights above this are cut into several files, as the Hub wants them."""
LATEST_FILE = "latest_checkpointed_iteration.txt"
_RUN_FILE = "run.json"
_RUN_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """What `run.json` beside a checkpoint says about the model in it."""

    model: ModelKeys
    """The model's keys."""
    vocab_size: int
    """Rows of the embedding that stand for a token."""
    params_dtype: str
    """Type of the weights, as torch names it."""
    tokenizer_model: str
    """The tokenizer's folder, file or name."""
    conversation_format: str
    """The format that conversations were rendered in."""
    add_bos: bool
    """Whether sequences began with BOS."""


@dataclass(frozen=True, kw_only=True)
class _StoredWeight:
    """A weight of one layer, or of none, and where the checkpoint keeps it."""

    name: str
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layer: tuple[int, int] | None
    """Its place in a tensor of all layers: its number, and how many there are."""

    @property
    def num_bytes(self) -> int:
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize

    def request(self) -> ShardedTensor:
        """What asks `dist_checkpointing.load` for this weight, whole."""
        data = torch.empty(self.shape, dtype=self.dtype)
        if self.layer is None:
            return ShardedTensor.from_rank_offsets(self.key, data)
        return ShardedTensor.from_rank_offsets(self.key, data, (0, *self.layer), prepend_axis_num=1)


def export_hf(checkpoint: Path, *, output: Path, tokenizer: str | None = None, force: bool = False) -> None:
    """Write a checkpoint as a Hugging Face folder: weights, configuration, tokenizer, chat template, stop tokens.

    Args:
        checkpoint: An `iter_*` folder, or the folder of a run's checkpoints, whose newest one is taken.
        output: The folder to write. It appears under its name when it is complete.
        tokenizer: The tokenizer's folder, file or name, if it is no longer where training found it.
        force: Replace what `output` holds.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or `output` is not empty and `force` is off.
        TokenizerError: If the tokenizer cannot be loaded, or cannot be written for `transformers`.
    """
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"{output}: is a file; name a folder")
    if not force and output.is_dir() and any(output.iterdir()):
        raise CheckpointError(f"{output}: the folder is not empty; name another one, or pass --force to replace it")
    folder = find_iteration(checkpoint)
    run = read_run(folder)
    with _written_beside(output) as unfinished:
        _write_tokenizer_and_configs(unfinished, run=run, source=tokenizer or run.tokenizer_model)
        _write_weights(folder, output=unfinished, run=run)


def find_iteration(checkpoint: Path) -> Path:
    """The folder of one checkpoint: the argument itself, or the newest one in it.

    Raises:
        CheckpointError: If it is neither.
    """
    if (checkpoint / _RUN_FILE).is_file():
        return checkpoint
    latest = checkpoint / LATEST_FILE
    if not latest.is_file():
        raise CheckpointError(
            f"{checkpoint}: holds neither {_RUN_FILE} nor {LATEST_FILE}; name an iter_* folder or the folder it is in"
        )
    text = latest.read_text(encoding="utf-8").strip()
    if not text.isdecimal():
        raise CheckpointError(f"{latest}: holds {text!r}, not a step; name one of the iter_* folders beside it")
    folder = checkpoint / f"iter_{int(text):07d}"
    if not (folder / _RUN_FILE).is_file():
        raise CheckpointError(
            f"{latest}: names step {text}, but {folder.name}/{_RUN_FILE} is missing; name another one"
        )
    return folder


def read_run(folder: Path) -> TrainedRun:
    """What a checkpoint says about itself.

    Raises:
        CheckpointError: If `run.json` is of another version, incomplete or no JSON.
    """
    path = folder / _RUN_FILE
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["format_version"] != _RUN_FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: has format_version {run['format_version']}, this version reads {_RUN_FORMAT_VERSION}; "
                "export with the version of primus that wrote it"
            )
        return TrainedRun(
            model=ModelKeys(**run["model"]),
            vocab_size=run["vocab_size"],
            params_dtype=run["params_dtype"],
            tokenizer_model=run["tokenizer_model"],
            conversation_format=run["sft_conversation_format"],
            add_bos=run["add_bos"],
        )
    except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as exc:
        reason = " ".join(str(exc).split())
        raise CheckpointError(f"{path}: cannot be read ({reason}); name another checkpoint") from exc


def _write_tokenizer_and_configs(output: Path, *, run: TrainedRun, source: str) -> None:
    tokenizer = load_tokenizer(source)
    if tokenizer.vocab_size > run.vocab_size:
        raise CheckpointError(
            f"{source}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model's embedding has "
            f"{run.vocab_size} rows; pass the tokenizer that the model was trained with"
        )
    template = chat_template(run.conversation_format, add_bos=run.add_bos)
    write_tokenizer(source, output=output, tokenizer=tokenizer, template=template)
    marker = end_of_turn(run.conversation_format, tokenizer=tokenizer)
    end_of_turn_id = tokenizer.control_tokens.get(marker)
    token_ids = special_token_ids(
        bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, end_of_turn_id=end_of_turn_id, pad_id=tokenizer.pad_id
    )
    stop_strings = (marker,) if marker and end_of_turn_id is None else ()
    if stop_strings:
        logger.warning(
            "%s: %r is no token of its own, so generate() stops there only with `tokenizer=` given", source, marker
        )
    _write_json(
        output / "config.json",
        model_config(run.model, vocab_size=run.vocab_size, params_dtype=run.params_dtype, token_ids=token_ids),
    )
    _write_json(output / "generation_config.json", generation_config(token_ids=token_ids, stop_strings=stop_strings))


def _write_weights(folder: Path, *, output: Path, run: TrainedRun) -> None:
    """Write the weights file by file, holding one file's weights at a time."""
    with megatron_on_cpu(), _process_group():
        files = _cut_into_files(_stored_weights(folder))
        weight_map: dict[str, str] = {}
        total_bytes = 0
        for number, weights in enumerate(files, start=1):
            name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
            tensors = _load(folder, weights, run=run)
            save_file(tensors, output / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
            total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        _write_json(output / "model.safetensors.index.json", index)


def _stored_weights(folder: Path) -> list[_StoredWeight]:
    """The model's weights in a checkpoint, those of one layer together."""
    try:
        metadata = dist_checkpointing.load_tensors_metadata(str(folder))
    except dist_checkpointing.core.CheckpointingException as exc:
        raise CheckpointError(f"{folder}: is no checkpoint ({exc}); name another one") from exc
    weights = []
    for key, stored in metadata.items():
        if not key.startswith(MODEL_PREFIXES):
            continue
        whole = tuple(stored.global_shape)
        names = [name for name, _ in split_layers(key, torch.empty(whole, device="meta"))]
        if names == [key]:
            weights.append(_StoredWeight(name=key, key=key, shape=whole, dtype=stored.dtype, layer=None))
            continue
        weights += [
            _StoredWeight(name=name, key=key, shape=whole[1:], dtype=stored.dtype, layer=(layer, len(names)))
            for layer, name in enumerate(names)
        ]
    if not weights:
        raise CheckpointError(f"{folder}: holds no weights of a GPTModel; name another checkpoint")
    return sorted(weights, key=_reading_order)


def _reading_order(weight: _StoredWeight) -> tuple[int, int, str]:
    """Embedding, layers by number, then the rest."""
    parts = weight.name.split(".")
    if parts[0] == "embedding":
        return 0, 0, weight.name
    return (1, int(parts[2]), weight.name) if parts[1] == "layers" else (2, 0, weight.name)


def _cut_into_files(weights: Sequence[_StoredWeight]) -> list[list[_StoredWeight]]:
    """Neighbours together, as many as a file takes."""
    files: list[list[_StoredWeight]] = [[]]
    num_bytes = 0
    for weight in weights:
        if files[-1] and num_bytes + weight.num_bytes > MAX_FILE_BYTES:
            files.append([])
            num_bytes = 0
        files[-1].append(weight)
        num_bytes += weight.num_bytes
    return files


def _load(folder: Path, weights: Sequence[_StoredWeight], *, run: TrainedRun) -> dict[str, Tensor]:
    """Read some weights and give them Hugging Face's names."""
    loaded = dist_checkpointing.load(
        {weight.name: weight.request() for weight in weights}, str(folder), validate_access_integrity=False
    )
    heads = HeadLayout.of(run.model)
    tensors: dict[str, Tensor] = {}
    for weight in weights:
        parts = to_hugging_face(
            weight.name,
            loaded.pop(weight.name),
            heads=heads,
            vocab_size=run.vocab_size,
            tied=not run.model.untie_embeddings_and_output_weights,
        )
        # safetensors refuses tensors that share memory, so that a part must be a copy.
        tensors |= {name: part.clone(memory_format=torch.contiguous_format) for name, part in parts.items()}
    if run.model.qk_layernorm and run.model.add_qkv_bias:
        tensors |= _output_projection_biases(tensors)
    return tensors


def _output_projection_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Zeros for the bias that Qwen3 adds to its output projection as soon as the other three have one."""
    return {
        name.replace(".weight", ".bias"): torch.zeros(weight.shape[0], dtype=weight.dtype)
        for name, weight in tensors.items()
        if name.endswith(".o_proj.weight")
    }


@contextmanager
def _process_group() -> Iterator[None]:
    """The group of one process that `dist_checkpointing.load` asks for its rank, unless there is a group already."""
    if torch.distributed.is_initialized():
        yield
        return
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _written_beside(output: Path) -> Iterator[Path]:
    """A new folder beside `output` that takes its name, and its place, when the block ends well."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    replaced = output.with_name(f"{unfinished.name}.replaced")
    unfinished.mkdir()
    try:
        yield unfinished
        if output.exists():
            output.rename(replaced)
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
