# SPDX-License-Identifier: Apache-2.0
"""Small data sets with everything in them: several shards, bad rows, conversations that are too long."""

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import primus.sft.prepared.preparation
import primus.sft.prepared.ray_cluster
import primus.sft.shards
from primus.chat.conversations import SourceOptions, read_batches
from primus.sft.options import EncodingOptions
from primus.sft.prepared import plan_preparation, prepare
from primus.sft.recipe import Recipe
from primus.sft.shards import ShardJob

TOKENIZER = str(Path(__file__).parents[4] / "examples" / "data" / "demo-tokenizer" / "tokenizer.json")
SEQ_LENGTH = 300
# So that a file of some kilobytes has several shards.
BATCHES_PER_SHARD = 2
BATCH_BYTES = 2000

WORDS = ["the", "answer", "is", "42", "because", "café", "你好", "runs\n\n", "fast!", "<|im_end|>", "pelican", "zebras"]


def write_conversations(path: Path, *, count: int = 80, seed: int = 0) -> Path:
    """Write conversations of which one in twenty is not valid, and some are too long."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 16)))

    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            turns = [
                {"role": role, "content": text()} for _ in range(rng.randint(1, 4)) for role in ("user", "assistant")
            ]
            row = {"messages": turns if i % 20 else [{"role": "user", "content": "no answer"}]}
            file.write(json.dumps(row) + "\n" if i % 31 else "{broken\n")
    return path


def make_job(*files: Path, **changes: object) -> ShardJob:
    """How the files are prepared in these tests."""
    options = {"supervise_end_of_turn": True, "truncation": "drop", "bad_rows": "quarantine"}
    options |= {name: changes.pop(name) for name in list(changes) if name in EncodingOptions.__dataclass_fields__}
    recipe = Recipe(
        files=files,
        source=SourceOptions(),
        tokenizer=TOKENIZER,
        max_seq_length=SEQ_LENGTH,
        options=EncodingOptions(**options),  # type: ignore[arg-type]
    )
    return ShardJob(recipe, **changes)  # type: ignore[arg-type]


def use_small_shards(set_attribute: Callable[[object, str, object], None]) -> None:
    """Make shards of a few kilobytes, and start processes for them."""
    set_attribute(primus.sft.shards, "BATCHES_PER_SHARD", BATCHES_PER_SHARD)
    for module in (primus.sft.shards, primus.sft.prepared.ray_cluster):
        set_attribute(module, "read_batches", partial(read_batches, batch_bytes=BATCH_BYTES))
    set_attribute(primus.sft.prepared.preparation, "BYTES_PER_WORKER", BATCH_BYTES)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_shards(monkeypatch.setattr)


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    return write_conversations(tmp_path / "conversations.jsonl")


@pytest.fixture
def prepared(small_shards: None, conversations: Path, tmp_path: Path) -> Path:
    """The folder of a prepared data set with all kinds of files."""
    prepare(plan_preparation(make_job(conversations, validation_fraction=0.1)), tmp_path / "prepared", num_workers=1)
    return tmp_path / "prepared"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path inside it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
