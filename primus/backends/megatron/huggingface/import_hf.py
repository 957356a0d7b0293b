# SPDX-License-Identifier: Apache-2.0
"""From a Hugging Face folder to a checkpoint that any parallel layout loads.

The checkpoint is written part by part, in the format of `dist_checkpointing`, which is that of
`torch.distributed.checkpoint` with two more files. No model is built, and no more than a part is in memory.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save

from primus.backends.megatron.checkpoint.folder import LATEST_FILE, RunFacts, begin_folder, finish_folder
from primus.backends.megatron.huggingface.model_folder import ModelFolder
from primus.backends.megatron.huggingface.pretrained_weights import LAYERS, PretrainedWeights, rows_at_once
from primus.backends.megatron.huggingface.tokenizer import UNTRAINED, load_fitting
from primus.backends.megatron.planning.parameter_count import padded_vocab_size
from primus.config.hugging_face import (
    CONFIG_FILE,
    TOKENIZER_FILES,
    model_keys_of,
    read_generation,
    read_hugging_face_config,
    sliding_window_of,
)
from primus.config.schema import ModelKeys
from primus.errors import CheckpointError

logger = logging.getLogger("primus")

MODEL_FILE = "model.yaml"
"""The model's keys, as a preset that a run can name."""

_PART_BYTES = 128_000_000
# Modules of a layer for which Megatron's layers ask for a state beside their weights; there is none.
_MODULES_WITH_STATE = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")


def import_hf(source: Path, *, output: Path, tokenizer: str | None = None) -> Path:
    """Write a Hugging Face model as a checkpoint, for `load` with `finetune`.

    The weights keep their type and every bit. The rows of the embedding are all kept, also those behind the
    tokenizer's ids; what is added to make shares equal is zero.

    Args:
        source: The model's folder.
        output: Folder of checkpoints to write into; it gets the checkpoint of step 0, and `model.yaml`.
        tokenizer: The tokenizer's folder, file or name, if it is not in `source`.

    Returns:
        The folder of the checkpoint. It has its name only once everything is in it.

    Raises:
        ConfigError: If `config.json` is missing or of a model that GPTModel cannot compute, or
            `generation_config.json` is damaged.
        TokenizerError: If the tokenizer cannot be loaded.
        CheckpointError: If the weights are missing, damaged or not those of `config.json`, the tokenizer has more ids
            than the embedding has rows, or `output` has checkpoints already or cannot be written.
    """
    check_import_output(output)
    config = read_hugging_face_config(source)
    model = ModelKeys(**model_keys_of(config, origin=str(source / CONFIG_FILE)))
    assert model.vocab_size is not None, "one of the keys of config.json"
    weights = PretrainedWeights(ModelFolder(source), model, vocab_size=model.vocab_size)
    generation = read_generation(source)
    _warn_of_window(source, sliding_window_of(config))
    tokenizer = _tokenizer_of(source) if tokenizer is None else tokenizer
    if tokenizer:
        load_fitting(tokenizer, vocab_size=model.vocab_size)
    padded = padded_vocab_size(model.vocab_size, divisible_by=model.make_vocab_size_divisible_by, tensor_parallel=1)
    try:
        partial = begin_folder(output, 0)
        _write_weights(weights, partial, padded_vocab_size=padded)
        (output / MODEL_FILE).write_text(_model_yaml(model, source=source), encoding="utf-8")
        return finish_folder(
            partial,
            save=output,
            run=RunFacts(
                iteration=0,
                consumed_samples=0,
                model=model,
                vocab_size=model.vocab_size,
                padded_vocab_size=padded,
                # It may be exported from another folder.
                tokenizer_model=str(Path(tokenizer).resolve()) if tokenizer and Path(tokenizer).exists() else tokenizer,
                sft_conversation_format=UNTRAINED,
                add_bos=False,
                params_dtype=_name_of_type(weights),
                use_distributed_optimizer=False,
                data_fingerprint="",
                seed=0,
                global_batch_size=1,
                sft_length_bucket=0,
                hf_path=str(source.resolve()),
                model_type=str(config["model_type"]),
                generation=generation,
            ),
        )
    except (OSError, CheckpointException) as exc:
        cause = next(iter(exc.failures.values()))[0] if isinstance(exc, CheckpointException) else exc
        if isinstance(cause, CheckpointError):
            raise cause from exc
        reason = " ".join(str(cause).split())
        raise CheckpointError(
            f"{output}: the checkpoint cannot be written ({reason}); check the free space and the permissions"
        ) from exc


def check_import_output(output: Path) -> None:
    """Refuse a folder that has checkpoints already.

    Args:
        output: The folder to write into.

    Raises:
        CheckpointError: If that is so.
    """
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"{output}: is a file; name a folder")
    if (output / LATEST_FILE).exists():
        raise CheckpointError(f"{output}: has checkpoints already; name another folder")


def _tokenizer_of(source: Path) -> str:
    """The model's own tokenizer; empty if it has none."""
    return str(source) if any((source / name).is_file() for name in TOKENIZER_FILES) else ""


def _warn_of_window(source: Path, window: int | None) -> None:
    if window is not None:
        logger.warning(
            "%s: attention looks %d positions back, and there is no sliding window here; sequences may have that many"
            " (max_position_embeddings), in which both are the same",
            source,
            window,
        )


def _name_of_type(weights: PretrainedWeights) -> str:
    """The type of most of the model; a wider one of a few weights does not count."""
    name = str(weights.dtype_of(f"{LAYERS}mlp.linear_fc2.weight"))
    return name.removeprefix("torch.")


def _model_yaml(model: ModelKeys, *, source: Path) -> str:
    keys = model.model_dump(
        mode="json", exclude={"attention_dropout", "hidden_dropout", "make_vocab_size_divisible_by"}
    )
    return f"# {CONFIG_FILE} of {source.resolve()}\n{yaml.safe_dump(keys, sort_keys=False)}"


def _write_weights(weights: PretrainedWeights, folder: Path, *, padded_vocab_size: int) -> None:
    planner = _PartByPart(weights, padded_vocab_size=padded_vocab_size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        save({}, storage_writer=FileSystemWriter(folder), planner=planner, no_dist=True)
    torch.save({}, folder / "common.pt")
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


class _PartByPart(DefaultSavePlanner):
    """Plans a checkpoint from shapes, and reads each part when it is written."""

    def __init__(self, weights: PretrainedWeights, *, padded_vocab_size: int) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._weights = weights
        self._padded_vocab_size = padded_vocab_size

    def create_local_plan(self) -> SavePlan:
        """One item for each part."""
        states = [
            WriteItem(
                index=MetadataIndex(f"{LAYERS}{module}._extra_state/shard_{layer}_{self._weights.num_layers}"),
                type=WriteItemType.BYTE_IO,
            )
            for layer in range(self._weights.num_layers)
            for module in _MODULES_WITH_STATE
        ]
        self.plan = SavePlan(items=[*self._parts(), *states])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        """Read a part."""
        if write_item.type == WriteItemType.BYTE_IO:
            state = io.BytesIO()
            torch.save([None], state)
            return state
        assert write_item.tensor_data is not None
        chunk = write_item.tensor_data.chunk
        name = write_item.index.fqn
        if not name.startswith(LAYERS):
            start, num_rows = chunk.offsets[0], chunk.sizes[0]
            return self._weights.read(name, layer=None, start=start, stop=start + num_rows)
        layer, start, num_rows = chunk.offsets[0], chunk.offsets[1], chunk.sizes[1]
        return self._weights.read(name, layer=layer, start=start, stop=start + num_rows).unsqueeze(0)

    def _parts(self) -> Iterator[WriteItem]:
        for name, shape in self._weights.shapes.items():
            dtype = self._weights.dtype_of(name)
            has_padding = name in {"embedding.word_embeddings.weight", "output_layer.weight"}
            num_rows = self._padded_vocab_size if has_padding else shape[0]
            layers = self._weights.num_layers if name.startswith(LAYERS) else None
            front: tuple[int, ...] = () if layers is None else (layers,)
            at_once = rows_at_once(shape, itemsize=dtype.itemsize, most_bytes=_PART_BYTES)
            for layer in range(layers or 1):
                for start in range(0, num_rows, at_once):
                    rows = min(at_once, num_rows - start)
                    place = (() if layers is None else (layer,)) + (start, *(0 for _ in shape[1:]))
                    sizes = (() if layers is None else (1,)) + (rows, *shape[1:])
                    yield WriteItem(
                        index=MetadataIndex(name, torch.Size(place)),
                        type=WriteItemType.SHARD,
                        tensor_data=TensorWriteData(
                            chunk=ChunkStorageMetadata(offsets=torch.Size(place), sizes=torch.Size(sizes)),
                            properties=TensorProperties(dtype=dtype),
                            size=torch.Size((*front, num_rows, *shape[1:])),
                        ),
                    )
