# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a folder that `transformers` and everything built on it takes as it is.

One process on the CPU reads a checkpoint of any parallel layout: the files of `dist_checkpointing` know each weight's
whole shape, so no model is built and no rank is asked. Weights are read, renamed and written one at a time, so the
memory does not grow with the model.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from primus.backends.megatron.checkpoint.folder import RunFacts, find_checkpoint, read_run
from primus.backends.megatron.huggingface.config import generation_config, model_config, special_token_ids
from primus.backends.megatron.huggingface.export_folder import check_output, keep_sources, written_beside
from primus.backends.megatron.huggingface.safetensors_file import TensorSpec, write_safetensors
from primus.backends.megatron.huggingface.stored_weights import StoredPart, StoredWeights
from primus.backends.megatron.huggingface.tokenizer import (
    UNTRAINED,
    chat_template,
    copy_tokenizer,
    end_of_turn,
    load_fitting,
    write_tokenizer,
)
from primus.backends.megatron.huggingface.weights import MODEL_PREFIXES, ModelShape, to_hugging_face
from primus.backends.megatron.lora.adapter import MARK
from primus.backends.megatron.lora.stored_adapters import StoredAdapters, write_peft
from primus.config.hugging_face import CONFIG_FILE, GENERATION_FILE, read_generation
from primus.errors import CheckpointError, TokenizerError
from primus.sft.tokenizer import SFTTokenizer
from primus.sft.tokenizer.chat_templates import DEFAULT

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 5_000_000_000
"""Weights above this are cut into several files, as the Hub wants them."""


def export_hf(
    checkpoint: Path,
    *,
    output: Path,
    tokenizer: str | None = None,
    force: bool = False,
    adapter_only: bool = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder: weights, configuration, tokenizer, chat template, stop tokens.

    Adapters are merged into the weights beside which they stand.

    Args:
        checkpoint: An `iter_*` folder, or the folder of a run's checkpoints, whose newest one is taken.
        output: The folder to write. Nothing is in it before everything is complete.
        tokenizer: The tokenizer's folder, file or name, if it is no longer where training found it.
        force: Replace an earlier export.
        adapter_only: Write the adapters by themselves, for `peft`, with the tokenizer and no model.

    Raises:
        CheckpointError: If the checkpoint cannot be read, it has no adapters and `adapter_only` is on, or `output` is
            not empty, unless it is an export and `force` is on, or holds what the run was made from.
        TokenizerError: If the tokenizer cannot be loaded, or cannot be written for `transformers`.
    """
    check_output(output, force=force)
    folder = find_checkpoint(checkpoint)
    run = read_run(folder)
    source = tokenizer or run.tokenizer_model
    keep_sources(output, sources=[folder, *(Path(name) for name in (source, run.hf_path) if name)])
    with written_beside(output) as unfinished:
        token_ids, generation = _write_tokenizer(unfinished, run=run, source=source)
        stored = StoredWeights(folder, prefixes=MODEL_PREFIXES)
        if adapter_only:
            write_peft(stored, run, output=unfinished)
        else:
            config = model_config(
                run.model,
                vocab_size=run.vocab_size,
                params_dtype=run.params_dtype,
                token_ids=token_ids,
                model_type=run.model_type,
            )
            _write_json(unfinished / CONFIG_FILE, config)
            _write_json(unfinished / GENERATION_FILE, generation)
            _write_weights(folder, stored, output=unfinished, run=run)


def _write_tokenizer(output: Path, *, run: RunFacts, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the tokenizer; give the special ids, and the generation configuration that goes with it."""
    tokenizer = _load_tokenizer(source, run=run)
    if run.sft_conversation_format == UNTRAINED:
        copy_tokenizer(source, output=output, tokenizer=tokenizer)
        return _of_pretrained(run, tokenizer=tokenizer, source=source)
    templates = run.chat_templates or {DEFAULT: chat_template(run.sft_conversation_format, add_bos=run.add_bos)}
    write_tokenizer(source, output=output, tokenizer=tokenizer, templates=templates)
    marker = end_of_turn(run.sft_conversation_format, tokenizer=tokenizer, templates=templates)
    end_of_turn_id = tokenizer.control_tokens.get(marker)
    token_ids = special_token_ids(
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        end_of_turn_id=end_of_turn_id,
        pad_id=tokenizer.pad_id,
        other_ends=_ends_of_pretrained(run, tokenizer=tokenizer),
    )
    stop_strings = (marker,) if marker and end_of_turn_id is None else ()
    if stop_strings:
        logger.warning(
            "%s: %r is no token of its own, so generate() stops there only with `tokenizer=` given", source, marker
        )
    return token_ids, generation_config(token_ids=token_ids, stop_strings=stop_strings)


def _load_tokenizer(source: str, *, run: RunFacts) -> SFTTokenizer:
    if not source:
        raise TokenizerError("--tokenizer: is not given, and the model was imported without a tokenizer; name one")
    try:
        tokenizer = load_fitting(source, vocab_size=run.vocab_size)
    except TokenizerError as exc:
        raise TokenizerError(f"{exc}; --tokenizer names one that has moved since training") from exc
    if run.tokenizer_fingerprint and tokenizer.fingerprint != run.tokenizer_fingerprint:
        raise CheckpointError(
            f"{source}: the tokenizer gives other ids than the one of training (fingerprint {tokenizer.fingerprint},"
            f" and the run had {run.tokenizer_fingerprint}); pass the tokenizer that the model was trained with"
        )
    return tokenizer


def _of_pretrained(run: RunFacts, *, tokenizer: SFTTokenizer, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The special ids and the generation configuration of a model that was not trained here: its own."""
    own = run.generation
    if own is None:  # of a checkpoint that was imported before they were kept
        folders = [Path(name) for name in (run.hf_path, source) if name and Path(name).is_dir()]
        own = read_generation(folders[0]) if folders else {"token_ids": {}, "generation_config": {}}
    token_ids = special_token_ids(
        bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, end_of_turn_id=None, pad_id=tokenizer.pad_id
    )
    token_ids |= own["token_ids"]
    return token_ids, own["generation_config"] or generation_config(token_ids=token_ids, stop_strings=())


def _ends_of_pretrained(run: RunFacts, *, tokenizer: SFTTokenizer) -> list[int]:
    """Where the model stopped before it was trained, as far as that is no text to the tokenizer that it has now."""
    documents = () if run.generation is None else (run.generation["generation_config"], run.generation["token_ids"])
    ends: list[int] = []
    for document in documents:
        value = document.get("eos_token_id")
        ends += value if isinstance(value, list) else [] if value is None else [value]
    control_ids = set(tokenizer.control_tokens.values())
    text_ids = sorted(set(ends) - control_ids)
    if text_ids:
        logger.warning(
            "%s: the pretrained model stopped at the ids %s, which are no control tokens here, so answers do not end"
            " there",
            tokenizer.name,
            text_ids,
        )
    return [end for end in ends if end in control_ids]


def _write_weights(folder: Path, stored: StoredWeights, *, output: Path, run: RunFacts) -> None:
    sources = _sources(stored, run=run)
    if not sources:
        raise CheckpointError(f"{folder}: holds no weights of a GPTModel; name another checkpoint")
    files = _cut_into_files(sources)
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    for name, of_file in zip(names, files, strict=True):
        specs = [spec for source in of_file for spec in source.specs]
        write_safetensors(output / name, specs, (item for source in of_file for item in source.read().items()))
    if len(files) > 1:
        weight_map = {
            spec.name: name
            for name, of_file in zip(names, files, strict=True)
            for source in of_file
            for spec in source.specs
        }
        total_bytes = sum(source.num_bytes for source in sources)
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        _write_json(output / "model.safetensors.index.json", index)


@dataclass(frozen=True)
class _Source:
    """One weight of the checkpoint, and what it becomes."""

    specs: Sequence[TensorSpec]
    read: Callable[[], dict[str, Tensor]]

    @property
    def num_bytes(self) -> int:
        return sum(spec.num_bytes for spec in self.specs)


def _sources(stored: StoredWeights, *, run: RunFacts) -> list[_Source]:
    """What the files are made of, in their order; nothing is read yet.

    Types of 4 bytes come first, so that every weight begins at a multiple of its width; then the layers in order.
    """
    adapters = StoredAdapters(stored, run.lora)
    shape = ModelShape.of(run.model, vocab_size=run.vocab_size)
    has_output_biases = run.model.qk_layernorm and run.model.add_qkv_bias

    def renamed(part: StoredPart, weight: Tensor) -> dict[str, Tensor]:
        tied = not run.model.untie_embeddings_and_output_weights
        weights = to_hugging_face(part.name, weight, shape=shape, tied=tied)
        return weights | _output_projection_biases(weights) if has_output_biases else weights

    def read(part: StoredPart) -> dict[str, Tensor]:
        return renamed(part, adapters.merge_into(part.name, stored.read(part)))

    sources = []
    for part in stored.parts():
        if MARK in part.name:
            continue
        planned = renamed(part, torch.empty(part.shape, dtype=part.dtype, device="meta"))
        specs = [TensorSpec(name, tuple(weight.shape), weight.dtype) for name, weight in planned.items()]
        if specs:
            sources.append(_Source(specs, partial(read, part)))
    return sorted(sources, key=lambda source: (-source.specs[0].dtype.itemsize, _file_order(source.specs[0].name)))


def _cut_into_files(sources: Sequence[_Source]) -> list[list[_Source]]:
    """Neighbours together, as many as a file takes."""
    files: list[list[_Source]] = [[]]
    num_bytes = 0
    for source in sources:
        if files[-1] and num_bytes + source.num_bytes > MAX_FILE_BYTES:
            files.append([])
            num_bytes = 0
        files[-1].append(source)
        num_bytes += source.num_bytes
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
        name.replace(".weight", ".bias"): torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
        for name, weight in tensors.items()
        if name.endswith(".o_proj.weight")
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
