# SPDX-License-Identifier: Apache-2.0
"""Prepared data in packs: the same as from memory, and the plan of the packs is kept beside it."""

import json
import logging
from pathlib import Path

import pytest
import torch

from primus.backends.megatron.core.datasets.training_sequences import TrainingSequences
from primus.chat.conversations import SourceOptions
from primus.sft.dataset import TokenizedDataset, tokenize_files
from primus.sft.options import EncodingOptions
from primus.sft.packing import Method
from primus.sft.packing_cache import PACKING
from primus.sft.prepared import open_prepared, plan_preparation, prepare, verify
from primus.sft.recipe import Recipe
from primus.sft.shards import ShardJob

TOKENIZER = str(Path(__file__).parents[6] / "examples" / "data" / "demo-tokenizer" / "tokenizer.json")
OPTIONS = EncodingOptions(supervise_end_of_turn=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    roles = ("user", "assistant")
    conversations = [
        [
            {"role": roles[turn % 2], "content": f"{number} {turn} " * (1 + number % 7)}
            for turn in range(2 + 2 * (number % 3))
        ]
        for number in range(60)
    ]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return path


@pytest.fixture
def recipe(rows: Path) -> Recipe:
    return Recipe(files=(rows,), source=SourceOptions(), tokenizer=TOKENIZER, max_seq_length=256, options=OPTIONS)


@pytest.fixture
def prepared(recipe: Recipe, tmp_path: Path) -> Path:
    prepare(plan_preparation(ShardJob(recipe)), tmp_path / "prepared", num_workers=1)
    return tmp_path / "prepared"


def sequences(data: TokenizedDataset, packing: Method) -> TrainingSequences:
    return TrainingSequences(data, packing=packing, max_seq_length=256, pad_id=0, seed=1)


@pytest.mark.parametrize("packing", ["none", "sequential", "best_fit"])
def test_packs_of_prepared_data_are_those_of_data_in_memory(recipe: Recipe, prepared: Path, packing: Method) -> None:
    encoder = recipe.build()
    in_memory, _ = tokenize_files(
        recipe.files,
        formatter=encoder.formatter,
        tokenizer=encoder.tokenizer,
        max_seq_length=256,
        options=OPTIONS,
    )
    expected = sequences(in_memory, packing)
    for _ in range(2):  # the second time, the plan comes from the disk
        found = sequences(open_prepared(prepared), packing)
        assert found.fingerprint == expected.fingerprint
        assert len(found) == len(expected)
        for index in range(len(expected)):
            ours, theirs = found[index], expected[index]
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
            assert found.origin(index) == expected.origin(index)
    assert (prepared / PACKING).is_dir() == (packing != "none")
    assert verify(prepared) == []


def test_a_damaged_plan_is_made_again(prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = sequences(open_prepared(prepared), "best_fit")
    (file,) = (prepared / PACKING).glob("*/items.npy")
    content = file.read_bytes()
    file.write_bytes(content[:-4] + b"\1\2\3\4")
    with caplog.at_level(logging.WARNING):
        found = sequences(open_prepared(prepared), "best_fit")
    assert "is not the pack plan of this data set" in caplog.text
    assert found.plan is not None
    assert expected.plan is not None
    assert found.plan.items_N.tolist() == expected.plan.items_N.tolist()
