# SPDX-License-Identifier: Apache-2.0
"""The folder of a checkpoint: where it is, what it says about itself, and how it appears under its name.

<save>/latest_checkpointed_iteration.txt    the step of the newest checkpoint, written last
<save>/iter_0000200/run.json                RunFacts: what the weights belong to
<save>/iter_0000200/files.json              size and hash of every other file
<save>/iter_0000200/data_state.json         where a stream of data is
<save>/iter_0000200/...                     the files of megatron.core.dist_checkpointing
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from primus.backends.megatron.checkpoint.digests import FileDigest, write_digests
from primus.config.schema import LoraConfig, ModelKeys, Packing
from primus.errors import CheckpointError
from primus.sft.prepared.disk import sync_folder

LATEST_FILE = "latest_checkpointed_iteration.txt"
RUN_FILE = "run.json"
DATA_STATE_FILE = "data_state.json"
FORMAT_VERSION = 1
_FOLDER_PREFIX = "iter_"

_SHAPE_FREE_KEYS = frozenset({"attention_dropout", "hidden_dropout", "init_method_std", "max_position_embeddings"})
"""Model keys that may differ between a checkpoint and a run: they change no weight and no meaning of one."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a checkpoint's weights belong to; the content of `run.json`."""

    iteration: int
    """Steps that were made."""
    consumed_samples: int
    """Sequences that were trained, repetitions counted."""
    model: ModelKeys
    """The model."""
    vocab_size: int
    """Rows of the embedding that stand for a token."""
    padded_vocab_size: int
    """Rows of the embedding."""
    tokenizer_model: str
    """The tokenizer's folder, file or name."""
    sft_conversation_format: str
    """The formatter."""
    add_bos: bool
    """Whether sequences begin with BOS."""
    params_dtype: str
    """Type of the weights, as torch names it."""
    use_distributed_optimizer: bool
    """How the optimizer's state is divided."""
    data_fingerprint: str
    """Hash of the training data."""
    seed: int
    """Seed of the order of the data."""
    global_batch_size: int
    """Sequences of a step."""
    sft_length_bucket: int
    """Block in which sequences are sorted by length."""
    chat_templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The chat templates of the format `template`: `default`, and `tool_use` where there is another for tools."""
    sft_packing: Packing = "none"
    """How conversations share training sequences."""
    tokenizer_fingerprint: str = ""
    """Hash of everything that the tokenizer's ids depend on; empty if it is not known."""
    lora: LoraConfig | None = None
    """The adapters; None if all weights are trained."""
    hf_path: str | None = None
    """The Hugging Face folder that the run started from."""
    model_type: str | None = None
    """The family of the pretrained model, in Hugging Face's words."""
    generation: Mapping[str, Any] | None = None
    """How that model's output ends and is chosen, as `read_generation` gives it; None if it is not known."""
    owes_evaluation: bool = False
    """Whether a signal came before the evaluation that was due after the step."""

    def to_json(self) -> str:
        """The facts as a JSON document."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lora = None if self.lora is None else self.lora.model_dump(mode="json")
        model = self.model.model_dump(mode="json")
        document = {"format_version": FORMAT_VERSION, **facts, "model": model, "lora": lora}
        return json.dumps(document, indent=2) + "\n"


def iteration_folder(save: Path, iteration: int) -> Path:
    """Name the folder of the checkpoint of a step.

    Args:
        save: Folder of the checkpoints.
        iteration: Number of the step.

    Returns:
        The folder.

    Examples:
        >>> iteration_folder(Path("checkpoints"), 200).as_posix()
        'checkpoints/iter_0000200'
    """
    return save / f"{_FOLDER_PREFIX}{iteration:07d}"


def find_checkpoint(load: Path) -> Path:
    """Find the folder of one checkpoint: the argument itself, or the newest one in it.

    Args:
        load: An `iter_*` folder, or the folder it is in.

    Returns:
        An `iter_*` folder.

    Raises:
        CheckpointError: If it is neither.
    """
    if (load / RUN_FILE).is_file():
        return load
    latest = load / LATEST_FILE
    if not latest.is_file():
        raise CheckpointError(
            f"{load}: holds neither {RUN_FILE} nor {LATEST_FILE}; name an iter_* folder or the folder it is in"
        )
    text = latest.read_text(encoding="utf-8").strip()
    if not text.isdecimal():
        raise CheckpointError(f"{latest}: holds {text!r}, not a step; name one of the iter_* folders beside it")
    folder = iteration_folder(load, int(text))
    if not (folder / RUN_FILE).is_file():
        raise CheckpointError(
            f"{latest}: names step {text}, but {folder.name}/{RUN_FILE} is missing; name one of the iter_* folders"
        )
    return folder


def read_data_state(load: Path) -> Mapping[str, Any]:
    """Read where the data of a checkpoint was.

    Args:
        load: An `iter_*` folder, or the folder it is in.

    Returns:
        The state.

    Raises:
        CheckpointError: If there is no checkpoint, it was not trained on a stream, or the file is damaged.
    """
    path = find_checkpoint(load) / DATA_STATE_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise CheckpointError(
            f"{path.parent}: was not trained on a stream, so there is no place in one to go on from; set sft_streaming"
            " to false, or finetune to true to begin anew with its weights"
        ) from exc
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{path}: is damaged ({exc}); load another checkpoint") from exc
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: is damaged (no object); load another checkpoint")
    return state


def read_run(folder: Path) -> RunFacts:
    """Read what a checkpoint says about itself.

    Args:
        folder: An `iter_*` folder.

    Returns:
        The facts.

    Raises:
        CheckpointError: If `run.json` is of another version, incomplete or no JSON.
    """
    path = folder / RUN_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document.pop("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: has format_version {version}, this version reads {FORMAT_VERSION}; "
                f"load it with the version of primus that wrote it"
            )
        lora = LoraConfig(**document["lora"]) if document.get("lora") else None
        return RunFacts(**{**document, "model": ModelKeys(**document["model"]), "lora": lora})
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError, ValidationError) as exc:
        reason = " ".join(str(exc).split())
        raise CheckpointError(f"{path}: cannot be read ({reason}); name another checkpoint") from exc


def check_weights_fit(saved: RunFacts, *, run: RunFacts, folder: Path) -> None:
    """Refuse a checkpoint whose weights are those of another model.

    Args:
        saved: What the checkpoint says about itself.
        run: The same facts of the run that wants to load it.
        folder: Named in the message.

    Raises:
        CheckpointError: If a model key that weights depend on, or the size of the embedding, differs. It lists each.
    """
    wanted, found = run.model.model_dump(), saved.model.model_dump()
    keys = wanted.keys() - _SHAPE_FREE_KEYS
    differing = {key: (found[key], wanted[key]) for key in keys if found[key] != wanted[key]}
    # The embedding is compared by its rows, which come from the tokenizer if vocab_size is not set. Those behind them
    # are zero, and as many as a layout needs.
    differing.pop("vocab_size", None)
    differing.pop("make_vocab_size_divisible_by", None)
    if saved.vocab_size != run.vocab_size:
        differing["vocab_size"] = (saved.vocab_size, run.vocab_size)
    if saved.lora is not None:
        differing |= _differing_adapters(saved.lora, run.lora)
    _refuse(differing, folder=folder, advice="use the saved value, or load another checkpoint")


def _differing_adapters(saved: LoraConfig, wanted: LoraConfig | None) -> dict[str, tuple[Any, Any]]:
    """What decides the shapes and the meaning of the adapters' weights."""
    if wanted is None:
        return {"lora.enabled": (True, "false (export-hf writes a folder with the adapters merged, for hf_path)")}
    keys = ("dim", "alpha", "target_modules")
    facts = ((f"lora.{key}", getattr(saved, key), getattr(wanted, key)) for key in keys)
    return {key: (found, run) for key, found, run in facts if found != run}


def check_run_continues(saved: RunFacts, *, run: RunFacts, folder: Path) -> None:
    """Refuse to continue a run with other data, in another order, or with another kind of optimizer state.

    Args:
        saved: What the checkpoint says about itself.
        run: The same facts of the run that wants to continue it.
        folder: Named in the message.

    Raises:
        CheckpointError: If one of these facts differs. It lists each.
    """
    keys = (
        "data_fingerprint",
        "seed",
        "global_batch_size",
        "sft_length_bucket",
        "sft_packing",
        "params_dtype",
        "use_distributed_optimizer",
    )
    facts = ((key, getattr(saved, key), getattr(run, key)) for key in keys)
    differing = {key: (found, wanted) for key, found, wanted in facts if found != wanted}
    if saved.lora is None and run.lora is not None:
        differing["lora.enabled"] = (False, True)
    advice = "to continue the run, use the saved value; to start anew from these weights, set finetune: true"
    _refuse(differing, folder=folder, advice=advice)


def _refuse(differing: Mapping[str, tuple[Any, Any]], *, folder: Path, advice: str) -> None:
    if differing:
        raise CheckpointError(
            *(
                f"{folder}: was saved with {key} {found}, this run has {wanted}; {advice}"
                for key, (found, wanted) in sorted(differing.items())
            )
        )


def begin_folder(save: Path, iteration: int) -> Path:
    """Make an empty folder to write a checkpoint into; it does not yet have its name."""
    folder = save / f".{iteration_folder(save, iteration).name}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def finish_folder(
    partial: Path,
    *,
    save: Path,
    run: RunFacts,
    data_state: str | None = None,
    digests: Mapping[str, FileDigest] = MappingProxyType({}),
) -> Path:
    """Write `run.json` and `files.json`, give the folder its name, and make it the newest checkpoint.

    Each of these happens at once or not at all, and the file that names the newest checkpoint comes last, so that it
    never names one that is incomplete.

    Args:
        partial: What `begin_folder` made, with everything else in it.
        save: Folder of the checkpoints.
        run: What the weights belong to.
        data_state: Where the data is, for data that is no function of the step.
        digests: What is known of the files already; the others are read.

    Returns:
        The folder under its name.
    """
    if data_state is not None:
        _write_durably(partial / DATA_STATE_FILE, data_state)
    _write_durably(partial / RUN_FILE, run.to_json())
    write_digests(partial, known=digests)
    sync_folder(partial)
    folder = iteration_folder(save, run.iteration)
    replaced = save / f".{folder.name}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    sync_folder(save)
    name_newest(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return folder


def name_newest(folder: Path) -> None:
    """Let the file that names the newest checkpoint of a folder name this one."""
    iteration = int(folder.name.removeprefix(_FOLDER_PREFIX))
    _write_durably(folder.with_name(f".{LATEST_FILE}.partial"), f"{iteration}\n").replace(folder.with_name(LATEST_FILE))


def complete_folders(save: Path) -> Sequence[Path]:
    """The checkpoints that were written to their end, the newest first.

    Args:
        save: Folder of the checkpoints, which need not exist.

    Returns:
        `iter_*` folders. What became of their files later is not looked at.
    """
    folders = [path for path in save.glob(f"{_FOLDER_PREFIX}*") if _names_iteration(path)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix(_FOLDER_PREFIX)), reverse=True)


def _names_iteration(path: Path) -> bool:
    return path.name.removeprefix(_FOLDER_PREFIX).isdecimal() and path.is_dir()


def clear_unfinished(save: Path) -> Sequence[str]:
    """Clear away what a run left that was ended while it saved or deleted a checkpoint.

    Args:
        save: Folder of the checkpoints, which need not exist. No run may be writing to it.

    Returns:
        Names of the checkpoints that were not written to their end.
    """
    for path in save.glob(f".{_FOLDER_PREFIX}*.replaced"):
        whole = save / path.name.removeprefix(".").removesuffix(".replaced")
        if not whole.exists():  # between the two renamings
            path.rename(whole)
    unfinished = []
    for path in sorted(save.glob(f".{_FOLDER_PREFIX}*")):
        if path.suffix == ".partial":
            unfinished.append(path.name.removeprefix(".").removesuffix(".partial"))
        if path.suffix in {".partial", ".replaced", ".removed"}:
            shutil.rmtree(path, ignore_errors=True)
    return unfinished


def remove_older(newest: Path, *, keep: int) -> Sequence[Path]:
    """Delete the checkpoints before the newest ones.

    Args:
        newest: The checkpoint that was written last; those of later steps, which another run left, are not touched.
        keep: How many are kept, this one included; at least 1.

    Returns:
        The folders that are gone.
    """
    folders = complete_folders(newest.parent)
    removed = folders[folders.index(newest) + max(keep, 1) :]
    for folder in removed:
        # So that no folder that is half deleted has the name of a checkpoint.
        doomed = folder.rename(folder.with_name(f".{folder.name}.removed"))
        shutil.rmtree(doomed, ignore_errors=True)
    return removed


def _write_durably(path: Path, text: str) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return path
