# SPDX-License-Identifier: Apache-2.0
"""Which files a data set has, and on which side of a train/validation split a conversation falls."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from primus.chat.messages import Conversation
from primus.chat.reading import has_known_format
from primus.errors import ConfigError

TRAIN_SPLIT = "train"
VALIDATION_SPLIT = "validation"


def resolve_files(dataset_name: str | Path | Sequence[str | Path], *, split: str = TRAIN_SPLIT) -> tuple[Path, ...]:
    """The files of a data set, in the order of their names.

    Args:
        dataset_name: A file, a pattern with `*`, a folder that holds one file per split (`train.jsonl`,
            `validation.jsonl`, or shards `train-00000-of-00002.parquet`), or several of these.
        split: The split of a folder; a file belongs to every split.

    Returns:
        The files, in the order given, and by name within a folder or pattern.

    Raises:
        ConfigError: If a folder has no file of the split, or a pattern matches nothing. Files are checked when they are
            read.
    """
    if isinstance(dataset_name, str | Path):
        dataset_name = (dataset_name,)
    files = [file for name in dataset_name for file in _resolve(Path(name), split)]
    if not files:
        raise ConfigError("sft_dataset_name: names no file; name at least one")
    seen: set[Path] = set()
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError as exc:
            raise ConfigError(f"{str(file)!r}: the name of the file is not UTF-8; rename the file") from exc
        if file.resolve() in seen:
            raise ConfigError(f"{file}: is named twice, and its rows would be trained twice; name it once")
        seen.add(file.resolve())
    return tuple(files)


def require_folder(dataset_name: str | Path | Sequence[str | Path], *, split: str, key: str) -> None:
    """Refuse a named split of something that has no splits: a file would be its own validation data.

    Args:
        dataset_name: The data set.
        split: The split that is asked for.
        key: The configuration key that asks for it.

    Raises:
        ConfigError: If one of the data set's names is not a folder.
    """
    for name in (dataset_name,) if isinstance(dataset_name, str | Path) else dataset_name:
        if not Path(name).is_dir():
            raise ConfigError(
                f"{key}: {name} is not a folder with a file per split, so it has no split {split!r}; hold out a"
                " fraction"
                " with sft_validation_fraction, or name files to validate on"
            )


def names_of_sources(dataset_names: Sequence[str | Path | Sequence[str | Path]]) -> list[str]:
    """What to call sources where their losses are told: short, and different.

    Args:
        dataset_names: What `resolve_files` is given, for each source.

    Returns:
        The file's name without its format; of several, that of the first and how many more there are. Where two would
        be called the same, the whole path; where even that is the same, also the place in the list.

    Examples:
        >>> names_of_sources(["chat/math-v1.1.jsonl.gz", ("a.json", "b.json"), "code/*.parquet", "hf://owner/poems"])
        ['math-v1.1', 'a+1', 'code/*', 'poems']
        >>> names_of_sources(["2023/train.jsonl", "2024/train.jsonl", "other", "other"])
        ['2023/train.jsonl', '2024/train.jsonl', 'other (3)', 'other (4)']
    """
    listed = [(name,) if isinstance(name, str | Path) else name for name in dataset_names]
    more = [f"+{len(names) - 1}" if len(names) > 1 else "" for names in listed]
    short = [_short_name(names[0]) + rest for names, rest in zip(listed, more, strict=True)]
    counts = Counter(short)
    told = [
        name if counts[name] == 1 else f"{names[0]}{rest}"
        for name, names, rest in zip(short, listed, more, strict=True)
    ]
    counts = Counter(told)
    return [name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(told, start=1)]


def _short_name(name: str | Path) -> str:
    path = Path(name)
    stem = re.sub(r"(\.(jsonl?|parquet|arrow|csv|gz|zst))+$", "", path.name)
    return stem if re.search(r"\w", stem) else f"{path.parent.name}/{stem}"


def _resolve(path: Path, split: str) -> list[Path]:
    if path.is_dir():
        data = sorted(f for f in path.iterdir() if f.is_file() and has_known_format(f))
        shard = re.compile(re.escape(split) + r"(-\d+(-of-\d+)?)?\.[^-]+")
        files = [f for f in data if shard.fullmatch(f.name)]
        if not files:
            found = ", ".join(f.name for f in data) or "no data file"
            raise ConfigError(
                f"{path}: the folder has no file of the split {split!r} (it has {found}); name another split"
            )
        return files
    if "*" in path.name:
        files = sorted(path.parent.glob(path.name))
        if not files:
            raise ConfigError(f"{path}: no file matches the pattern; check the path (it starts at {Path.cwd()})")
        return files
    return [path]


def split_of(conversation: Conversation, *, validation_fraction: float) -> str:
    """The side of the split that a conversation falls on, decided by how it opens and by nothing else.

    It opens with its tools and all messages up to the first question. So equal conversations fall on one side, and so
    do all that go on from one question: the branches of a tree, and a conversation and its beginning. It does not
    matter where they stand and what else the files hold; adding rows moves none of the others.

    Args:
        conversation: The conversation.
        validation_fraction: Share of the openings to hold out, from 0 to below 1.

    Returns:
        `train` or `validation`.

    Examples:
        >>> from primus.chat.parse import single_turn
        >>> split_of(single_turn("2 + 2?", "4"), validation_fraction=0.0)
        'train'
    """
    return split_of_opening(conversation.opening_hash, validation_fraction=validation_fraction)


def split_of_opening(opening_hash: str, *, validation_fraction: float) -> str:
    """The side that conversations fall on which open with a hash; as `split_of`."""
    position = int(opening_hash[:16], 16) / 2**64
    return VALIDATION_SPLIT if position < validation_fraction else TRAIN_SPLIT
