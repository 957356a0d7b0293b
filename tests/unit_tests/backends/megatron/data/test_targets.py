# SPDX-License-Identifier: Apache-2.0
"""Every training sequence has a target, and each target is told in the turn, the part and the source that it is of."""

import json
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primus.backends.megatron.core.datasets.settings import DatasetSettings
from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.core.datasets.training_sequences import Source
from primus.backends.megatron.data.batches import read_micro_batch
from primus.errors import DataError
from primus.sft.formatters import create_formatter
from primus.sft.options import EncodingOptions
from primus.sft.packing import Method
from primus.sft.target_groups import NUM_TURNS, ROLE_NAMES
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer
from primus.sft.weighting import TurnSchedule
from tests.unit_tests.sft.conftest import byte_level


@pytest.fixture(scope="module")
def tokenizer() -> SFTTokenizer:
    return load_tokenizer(byte_level())


def settings_of(
    tokenizer: SFTTokenizer, *, packing: Method = "none", length: int = 96, **options: Any
) -> DatasetSettings:
    return DatasetSettings(
        tokenizer=tokenizer,
        formatter=create_formatter("openai", eos_token=tokenizer.eos_token, tokenizer=tokenizer),
        max_seq_length=length,
        seed=0,
        options=EncodingOptions(supervise_end_of_turn=True, **options),
        packing=packing,
    )


def write(path: Path, conversations: list[list[dict[str, Any]]]) -> Path:
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return path


def exchange(number: int, weight: float, length: int) -> list[dict[str, Any]]:
    answer = {"role": "assistant", "content": "x" * length, "weight": weight}
    return [{"role": "user", "content": f"{number}?"}, answer]


# Answers of conversations: how long each is, down to nothing and up to more than fits, and what it counts for.
EXCHANGES = st.lists(
    st.lists(st.tuples(st.sampled_from([0.0, 1e-40, 1.0]), st.sampled_from([0, 1, 9, 120])), min_size=1, max_size=5),
    min_size=1,
    max_size=6,
)  # fmt: skip
SCHEDULES = (TurnSchedule(), TurnSchedule(kind="last_only"), TurnSchedule(kind="exponential"))
OPTIONS = [
    {"truncation": truncation, "schedule": schedule, "supervise_turns": turns}
    for truncation, schedule, turns in product(
        ("drop", "right", "keep_last_turns", "window"), SCHEDULES, ("all", "last")
    )
]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EXCHANGES, st.sampled_from(OPTIONS), st.sampled_from(["none", "sequential", "best_fit"]))
def test_there_is_no_batch_without_a_target(
    tokenizer: SFTTokenizer, tmp_path: Path, exchanges: list[Any], options: dict[str, Any], packing: Method
) -> None:
    conversations = [
        [message for number, (weight, length) in enumerate(answers) for message in exchange(number, weight, length)]
        for answers in exchanges
    ]
    path = write(tmp_path / "a.jsonl", conversations)
    chosen = settings_of(tokenizer, packing=packing, **options)
    try:
        data = SFTDataset.from_tokenized(chosen.tokenize([path])[0], chosen, [path])
    except DataError as exc:
        assert "no conversation is left to train" in str(exc)  # noqa: PT017  # it is one of two ways
        return
    for index in range(len(data)):
        batch = read_micro_batch(data, np.array([index]), pad_to_multiple_of=8)
        assert len(batch.weights_N) >= 1
        assert (batch.weights_N > 0).all()
        assert len(batch.groups_N) == len(batch.weights_N)


def test_a_target_is_told_in_its_turn_its_part_and_its_source(tokenizer: SFTTokenizer, tmp_path: Path) -> None:
    # The second answer is context, and what follows it is the third turn all the same.
    first = [*exchange(0, 1.0, 3), *exchange(1, 0.0, 5), *exchange(2, 0.5, 7)]
    second = [*exchange(0, 1.0, 2), {"role": "assistant", "content": "yy"}]
    chosen = settings_of(tokenizer, packing="best_fit", length=256)
    files = [write(tmp_path / "a.jsonl", [first]), write(tmp_path / "b.jsonl", [second, first])]
    data = SFTDataset.from_tokenized(
        [Source(chosen.tokenize([file])[0], name=file.stem) for file in files], chosen, files
    )
    assert data.source_names == ("a", "b")
    batch = read_micro_batch(data, np.arange(len(data)), pad_to_multiple_of=8)
    assert batch.num_groups == 2 * NUM_TURNS * len(ROLE_NAMES)
    found = Counter(
        (data.source_names[group // 18], group % 18 // 2 + 1, ROLE_NAMES[group % 2])
        for group in batch.groups_N.tolist()
    )
    said, ended = ROLE_NAMES
    of_first = {(1, said): 3, (1, ended): 1, (3, said): 7, (3, ended): 1}
    of_second = {(1, said): 2, (1, ended): 1, (2, said): 2, (2, ended): 1}
    expected = {("a", *group): num for group, num in of_first.items()}
    for group, num in [*of_first.items(), *of_second.items()]:
        expected[("b", *group)] = expected.get(("b", *group), 0) + num
    assert found == expected
