# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a folder that `transformers` and everything built on it takes as it is.

One process on the CPU reads a checkpoint of any parallel layout: the files of `dist_checkpointing` know each weight's
whole shape, so no model is built and no rank is asked.
"""

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.checkpoint.api import CheckpointException

from primus.backends.megatron.checkpoint.folder import RunFacts, find_checkpoint, read_run
from primus.backends.megatron.cpu import megatron_on_cpu
from primus.backends.megatron.huggingface.config import generation_config, model_config, special_token_ids
from primus.backends.megatron.huggingface.export_folder import check_output, written_beside
from primus.backends.megatron.huggingface.tokenizer import chat_template, end_of_turn, write_tokenizer
from primus.backends.megatron.huggingface.weights import MODEL_PREFIXES, split_layers, to_hugging_face
from primus.backends.megatron.planning.parameter_count import HeadLayout
from primus.errors import CheckpointError, TokenizerError
from primus.sft.tokenizer import load_tokenizer
from primus.sft.tokenizer.chat_templates import DEFAULT

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 5_000_000_000
"""Weights above this are cut into several files, as the Hub wants them."""


def export_hf(checkpoint: Path, *, output: Path, tokenizer: str | None = None, force: bool = False) -> None:
    """Write a checkpoint as a Hugging Face folder: weights, configuration, tokenizer, chat template, stop tokens.

    Args:
        checkpoint: An `iter_*` folder, or the folder of a run's checkpoints, whose newest one is taken.
        output: The folder to write. It appears under its name when it is complete.
        tokenizer: The tokenizer's folder, file or name, if it is no longer where training found it.
        force: Replace an earlier export.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or `output` is not empty, unless it is an export and `force`
            is on.
        TokenizerError: If the tokenizer cannot be loaded, or cannot be written for `transformers`.
    """
    check_output(output, force=force)
    folder = find_checkpoint(checkpoint)
    run = read_run(folder)
    with written_beside(output) as unfinished:
        _write_tokenizer_and_configs(unfinished, run=run, source=tokenizer or run.tokenizer_model)
        _write_weights(folder, output=unfinished, run=run)


def _write_tokenizer_and_configs(output: Path, *, run: RunFacts, source: str) -> None:
    try:
        tokenizer = load_tokenizer(source)
    except TokenizerError as exc:
        raise TokenizerError(f"{exc}; --tokenizer names one that has moved since training") from exc
    if tokenizer.vocab_size > run.vocab_size:
        raise CheckpointError(
            f"{source}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model's embedding has "
            f"{run.vocab_size} rows; pass the tokenizer that the model was trained with"
        )
    templates = run.chat_templates or {DEFAULT: chat_template(run.sft_conversation_format, add_bos=run.add_bos)}
    write_tokenizer(source, output=output, tokenizer=tokenizer, templates=templates)
    marker = end_of_turn(run.sft_conversation_format, tokenizer=tokenizer, templates=templates)
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


def _write_weights(folder: Path, *, output: Path, run: RunFacts) -> None:
    weights = _read_weights(folder, run=run)
    files = _cut_into_files(weights)
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    for name, tensors in zip(names, files, strict=True):
        save_file(tensors, output / name, metadata={"format": "pt"})
    if len(files) > 1:
        weight_map = {weight: name for name, tensors in zip(names, files, strict=True) for weight in tensors}
        total_bytes = sum(weight.nbytes for weight in weights.values())
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        _write_json(output / "model.safetensors.index.json", index)


def _read_weights(folder: Path, *, run: RunFacts) -> dict[str, Tensor]:
    """The model's weights under Hugging Face's names; most are views of what was read, so they are in memory once."""
    with megatron_on_cpu(), _process_group():
        try:
            stored = dist_checkpointing.load_tensors_metadata(str(folder))
            wanted = {key: place for key, place in stored.items() if key.startswith(MODEL_PREFIXES)}
            loaded = dist_checkpointing.load(wanted, str(folder), validate_access_integrity=False)
        except (CheckpointingException, CheckpointException, OSError, EOFError) as exc:
            reason = " ".join(str(exc).split())
            raise CheckpointError(f"{folder}: is no checkpoint that can be read ({reason}); name another one") from exc
    if not wanted:
        raise CheckpointError(f"{folder}: holds no weights of a GPTModel; name another checkpoint")
    weights: dict[str, Tensor] = {}
    for key in sorted(wanted):
        for name, weight in split_layers(key, loaded.pop(key)):
            weights |= to_hugging_face(
                name,
                weight,
                heads=HeadLayout.of(run.model),
                vocab_size=run.vocab_size,
                tied=not run.model.untie_embeddings_and_output_weights,
            )
    if run.model.qk_layernorm and run.model.add_qkv_bias:
        weights |= _output_projection_biases(weights)
    return weights


def _cut_into_files(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Neighbours together, as many as a file takes: the layers in order, then embedding, norm and output layer."""
    files: list[dict[str, Tensor]] = [{}]
    num_bytes = 0
    for name in sorted(weights, key=_file_order):
        if files[-1] and num_bytes + weights[name].nbytes > MAX_FILE_BYTES:
            files.append({})
            num_bytes = 0
        files[-1][name] = weights[name]
        num_bytes += weights[name].nbytes
    return files


def _file_order(name: str) -> tuple[int, str]:
    """Where a weight stands among the files.

    Examples:
        >>> sorted(["model.norm.weight", "model.layers.10.x", "model.layers.9.x"], key=_file_order)
        ['model.layers.9.x', 'model.layers.10.x', 'model.norm.weight']
    """
    layer = re.search(r"\.layers\.(\d+)\.", name)
    return (int(layer[1]) if layer else sys.maxsize), name


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
