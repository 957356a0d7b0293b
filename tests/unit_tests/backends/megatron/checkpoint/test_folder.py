# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from primus.backends.megatron.checkpoint.folder import (
    LATEST_FILE,
    RUN_FILE,
    RunFacts,
    begin_folder,
    check_run_continues,
    check_weights_fit,
    find_checkpoint,
    finish_folder,
    read_run,
)
from primus.config.schema import ModelKeys
from primus.errors import CheckpointError

FOLDER = Path("checkpoints/iter_0000200")


@pytest.fixture
def run(tiny: ModuleType, tmp_path: Path) -> RunFacts:
    trainer = tiny.tiny_config(tmp_path).trainer
    return RunFacts(
        iteration=200,
        consumed_samples=1600,
        model=ModelKeys(**trainer.model_dump(include=set(ModelKeys.model_fields))),
        vocab_size=61,
        padded_vocab_size=64,
        tokenizer_model="tiny",
        sft_conversation_format="openai",
        add_bos=False,
        params_dtype="float32",
        use_distributed_optimizer=False,
        data_fingerprint="abc",
        seed=1234,
        global_batch_size=8,
        sft_length_bucket=0,
    )


def save(folder: Path, run: RunFacts) -> Path:
    partial = begin_folder(folder, run.iteration)
    (partial / "weights").write_text(str(run.consumed_samples))
    return finish_folder(partial, save=folder, run=run)


def with_model(run: RunFacts, **keys: Any) -> RunFacts:
    return dataclasses.replace(run, model=run.model.model_copy(update=keys))


def test_what_is_written_is_read_again(tmp_path: Path, run: RunFacts) -> None:
    folder = save(tmp_path, run)
    assert folder == tmp_path / "iter_0000200"
    assert (tmp_path / LATEST_FILE).read_text() == "200\n"
    assert read_run(folder) == run
    assert json.loads((folder / RUN_FILE).read_text())["format_version"] == 1


def test_the_newest_checkpoint_is_found_and_any_can_be_named(tmp_path: Path, run: RunFacts) -> None:
    older = save(tmp_path, dataclasses.replace(run, iteration=100))
    newer = save(tmp_path, run)
    assert find_checkpoint(tmp_path) == newer
    assert find_checkpoint(older) == older


def test_an_interrupted_save_leaves_the_one_before_in_place(tmp_path: Path, run: RunFacts) -> None:
    finished = save(tmp_path, dataclasses.replace(run, iteration=100))
    partial = begin_folder(tmp_path, 200)
    (partial / "weights").write_text("half")
    assert find_checkpoint(tmp_path) == finished
    # The next save of the step begins with an empty folder.
    assert not list(begin_folder(tmp_path, 200).iterdir())


def test_a_checkpoint_of_the_same_step_is_replaced_whole(tmp_path: Path, run: RunFacts) -> None:
    save(tmp_path, run)
    folder = save(tmp_path, dataclasses.replace(run, consumed_samples=3200))
    assert (folder / "weights").read_text() == "3200"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000200", LATEST_FILE]


@pytest.mark.parametrize(
    ("latest", "message"),
    [
        (None, "holds neither run.json nor latest_checkpointed_iteration.txt; name an iter_"),
        ("release", "holds 'release', not a step; name one of the iter_"),
        ("300", "names step 300, but iter_0000300/run.json is missing; name one of the iter_"),
    ],
)
def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, latest: str | None, message: str) -> None:
    if latest is not None:
        (tmp_path / LATEST_FILE).write_text(latest)
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"run.json: cannot be read \(Expecting property name"),
        ("[]", r"run.json: cannot be read \('str' object"),
        ("{}", r"run.json: cannot be read \('format_version'\)"),
        ('{"format_version": 2}', "run.json: has format_version 2, this version reads 1; load it with the version"),
        ('{"format_version": 1, "model": {}}', r"run.json: cannot be read \(.* validation errors for ModelKeys"),
        ('{"format_version": 1}', r"run.json: cannot be read \('model'\)"),
    ],
)
def test_facts_that_cannot_be_read_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / RUN_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_facts_with_an_unknown_name_are_refused(tmp_path: Path, run: RunFacts) -> None:
    folder = save(tmp_path, run)
    document = json.loads((folder / RUN_FILE).read_text())
    (folder / RUN_FILE).write_text(json.dumps({**document, "colour": "red"}))
    with pytest.raises(CheckpointError, match=r"cannot be read .*colour"):
        read_run(folder)


def test_weights_of_another_model_are_refused_with_every_difference(run: RunFacts) -> None:
    saved = dataclasses.replace(with_model(run, num_layers=4, rotary_base=500000), vocab_size=128)
    with pytest.raises(CheckpointError) as caught:
        check_weights_fit(saved, run=run, folder=FOLDER)
    advice = "use the saved value, or load another checkpoint"
    assert list(caught.value.problems) == [
        f"{FOLDER}: was saved with num_layers 4, this run has 2; {advice}",
        f"{FOLDER}: was saved with rotary_base 500000, this run has 10000.0; {advice}",
        f"{FOLDER}: was saved with vocab_size 128, this run has 61; {advice}",
    ]


def test_keys_that_change_no_weight_may_differ(run: RunFacts) -> None:
    saved = with_model(run, hidden_dropout=0.1, max_position_embeddings=99, vocab_size=61, init_method_std=0.5)
    check_weights_fit(saved, run=run, folder=FOLDER)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data_fingerprint", "xyz"),
        ("seed", 5),
        ("global_batch_size", 16),
        ("sft_length_bucket", 64),
        ("params_dtype", "bfloat16"),
        ("use_distributed_optimizer", True),
    ],
)
def test_a_run_continues_only_with_the_same_data_in_the_same_order(run: RunFacts, key: str, value: Any) -> None:
    check_run_continues(run, run=dataclasses.replace(run, iteration=0, consumed_samples=0), folder=FOLDER)
    saved = dataclasses.replace(run, **{key: value})
    message = f"was saved with {key} {value}, this run has {getattr(run, key)}; to continue .* set finetune: true"
    with pytest.raises(CheckpointError, match=message):
        check_run_continues(saved, run=run, folder=FOLDER)
