# SPDX-License-Identifier: Apache-2.0
"""The folder of a checkpoint: where it is, what it says about itself, and how it appears under its name.

<save>/latest_checkpointed_iteration.txt    the step of the newest checkpoint, written last
<save>/iter_0000200/run.json                RunFacts: what the weights belong to
<save>/iter_0000200/data_state.json         where a stream of data is
<save>/iter_0000200/...                     the files of megatron.core.dist_checkpointing
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from primus.config.schema import ModelKeys, Packing
from primus.errors import CheckpointError

LATEST_FILE = "latest_checkpointed_iteration.txt"
RUN_FILE = "run.json"
DATA_STATE_FILE = "data_state.json"
FORMAT_VERSION = 1

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

    def to_json(self) -> str:
        """The facts as a JSON document."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        document = {"format_version": FORMAT_VERSION, **facts, "model": self.model.model_dump(mode="json")}
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
    return save / f"iter_{iteration:07d}"


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
        return RunFacts(**{**document, "model": ModelKeys(**document["model"])})
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
    # The embedding is compared by its rows, which come from the tokenizer if vocab_size is not set.
    differing.pop("vocab_size", None)
    differing.pop("make_vocab_size_divisible_by", None)
    if saved.padded_vocab_size != run.padded_vocab_size:
        differing["padded vocab_size"] = (saved.padded_vocab_size, run.padded_vocab_size)
    _refuse(differing, folder=folder, advice="use the saved value, or load another checkpoint")


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


def finish_folder(partial: Path, *, save: Path, run: RunFacts, data_state: str | None = None) -> Path:
    """Write `run.json`, give the folder its name, and make it the newest checkpoint.

    Each of the three happens at once or not at all, and the file that names the newest checkpoint comes last, so that
    it never names one that is incomplete.

    Args:
        partial: What `begin_folder` made, with everything else in it.
        save: Folder of the checkpoints.
        run: What the weights belong to.
        data_state: Where the data is, for data that is no function of the step.

    Returns:
        The folder under its name.
    """
    if data_state is not None:
        _write_durably(partial / DATA_STATE_FILE, data_state)
    _write_durably(partial / RUN_FILE, run.to_json())
    folder = iteration_folder(save, run.iteration)
    replaced = save / f".{folder.name}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    _write_durably(save / f".{LATEST_FILE}.partial", f"{run.iteration}\n").replace(save / LATEST_FILE)
    shutil.rmtree(replaced, ignore_errors=True)
    return folder


def _write_durably(path: Path, text: str) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return path
