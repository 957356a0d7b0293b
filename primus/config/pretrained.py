# SPDX-License-Identifier: Apache-2.0
"""The model keys of a run that starts from a Hugging Face folder: taken from it, and compared with what is written."""

from pathlib import Path
from typing import Any

from primus.config.hugging_face import (
    CONFIG_FILE,
    TOKENIZER_FILES,
    model_keys_of,
    read_hugging_face_config,
    sliding_window_of,
)
from primus.config.schema import TrainerConfig
from primus.config.tree import Node, Origin, Scalar, Section, merge_sections
from primus.config.validation import validate_section
from primus.config.variables import expand_scalar, expand_section
from primus.errors import ConfigError

_OF_THE_RUN = frozenset({"init_method_std"})
"""Keys of `config.json` that change no weight that is loaded; what the run says wins."""


def with_pretrained_keys(trainer: Section, *, problems: list[str]) -> Section:
    """Give a run that names `hf_path` the model keys of that folder, and its tokenizer if the run names none.

    Args:
        trainer: The keys of the trainer module as they were written.
        problems: Takes one entry for each model key that is written and contradicts the folder.

    Returns:
        The section with the folder's keys below what was written; the same one without `hf_path`.

    Raises:
        ConfigError: If the folder cannot be used; with the problems up to there.
    """
    folder_node = _filled(trainer.find("hf_path"), key="hf_path")
    if folder_node is None or folder_node.text is None:
        return trainer
    folder = Path(folder_node.text)
    file = folder / CONFIG_FILE
    try:
        config = read_hugging_face_config(folder)
        keys = dict(model_keys_of(config, origin=str(file)))
    except ConfigError as error:  # every model key would be reported as missing
        raise ConfigError(
            *problems, *(f"{folder_node.origin}: hf_path: {problem}" for problem in error.problems)
        ) from error
    problems += _differences(trainer, keys, file=file, window=sliding_window_of(config))
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        keys["tokenizer_model"] = str(folder)
    found = Section({key: Scalar(_text(value), Origin(file)) for key, value in keys.items()}, trainer.origin)
    unsaid = {key for key in keys if _is_null(trainer.find(key), key=key)}
    return merge_sections(found, trainer.drop(unsaid))


def _filled(node: Node | None, *, key: str) -> Scalar | None:
    """A value with its variables filled in; None for what is no text, which validation complains about."""
    if not isinstance(node, Scalar):
        return None
    try:
        filled = expand_scalar(node, key=key)
    except ConfigError:
        return None
    return filled if isinstance(filled, Scalar) else None


def _is_null(node: Node | None, *, key: str) -> bool:
    filled = _filled(node, key=key)
    return filled is not None and filled.text is None


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _differences(trainer: Section, keys: dict[str, Any], *, file: Path, window: int | None) -> list[str]:
    written = expand_section(trainer.keep(keys.keys() - _OF_THE_RUN), problems=[])
    problems = []
    for key, value in validate_section(written, TrainerConfig).values.items():
        node, found = trainer.find(key), keys[key]
        assert node is not None
        if key == "max_position_embeddings":
            if window is not None and value > found:
                problems.append(
                    f"{node.origin}: {key}: {node} is more than the model's attention looks back, {window} positions"
                    f" (sliding_window of {file}), and there is no sliding window here; set it to {found} or less"
                )
        elif value != found and not (value is None and _means_the_same(key, found, keys)):
            problems.append(
                f"{node.origin}: {key}: {node} contradicts {file}, which has {_text(found)}; leave the key out, or name"
                " another folder in hf_path"
            )
    return problems


def _means_the_same(key: str, found: object, keys: dict[str, Any]) -> bool:
    """Whether null stands for the value that was found."""
    defaults = {
        "num_query_groups": keys["num_attention_heads"],
        "kv_channels": keys["hidden_size"] // keys["num_attention_heads"],
        "vocab_size": keys["vocab_size"],
    }
    return defaults.get(key) == found
