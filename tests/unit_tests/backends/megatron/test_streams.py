# SPDX-License-Identifier: Apache-2.0
"""Runs on a stream: the same batches after a resume, and the ledger at the end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primus.backends.megatron.data.datasets import build_stream
from primus.backends.megatron.trainer import run_training
from primus.chat.conversations import SourceOptions
from primus.config.schema import TrainConfig
from primus.errors import CheckpointError, DataError
from primus.sft.batch_encoding import ShardEncoder
from primus.sft.formatters import OpenAIMessagesFormatter
from primus.sft.options import EncodingOptions
from primus.sft.recipe import Encoder
from primus.sft.streaming import StreamingDataset
from primus.sft.tokenizer import load_tokenizer
from tests.unit_tests.sft.conftest import byte_level

SMALL = {
    "num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 1, "lr": 0.01, "seq_length": 64,
    "global_batch_size": 4, "micro_batch_size": 2, "train_iters": 9, "save_interval": 4, "tensorboard": False,
    "sft_streaming": True, "sft_shuffle_buffer": 10, "sft_packing": "best_fit", "make_vocab_size_divisible_by": 16,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    for name in "ab":
        rows = [chat(f"{name} {n}", f"sun {n} " * (1 + n % 3)) for n in range(25)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def config_of(folder: Path, exp_name: str, **keys: Any) -> TrainConfig:
    files = (str(folder / "a.jsonl"), str(folder / "b.jsonl"))
    trainer = {**SMALL, "sft_dataset_name": files, "tokenizer_model": str(folder / "tokenizer.json"), **keys}
    return TrainConfig(exp_name=exp_name, workspace=folder / "out", trainer=trainer)


def run(folder: Path, exp_name: str, **keys: Any) -> dict[int, str]:
    """Train, and return the hash of each step's batch."""
    result = run_training(config_of(folder, exp_name, **keys))
    lines = [json.loads(line) for line in result.metrics_path.read_text().splitlines()]
    return {line["iteration"]: line["batch_hash"] for line in lines if "batch_hash" in line}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_stream_goes_on_with_the_very_next_batch(folder: Path, num_workers: int) -> None:
    whole = run(folder, "whole", num_workers=num_workers)
    assert len(set(whole.values())) == 9
    checkpoints = folder / "out/primus/user/whole/checkpoints"
    for iteration in (4, 8):
        rest = run(folder, f"rest_{iteration}", load=checkpoints / f"iter_{iteration:07d}", micro_batch_size=4)
        assert rest == {step: value for step, value in whole.items() if step > iteration}
    ledger = json.loads((folder / "out/primus/user/whole/logs/ledger.json").read_text())["train"]
    assert 0 < ledger["num_rows"] <= 50
    assert ledger["outcomes"] == {"streamed": ledger["num_rows"]}


@pytest.mark.usefixtures("tiny")
def test_a_checkpoint_of_another_kind_of_data_is_refused(folder: Path) -> None:
    prepared = {"sft_streaming": False, "sft_shuffle_buffer": None}
    run(folder, "prepared", **prepared, train_iters=1)
    run(folder, "streamed", train_iters=1)
    checkpoints = folder / "out/primus/user"
    with pytest.raises(CheckpointError, match="was not trained on a stream"):
        run(folder, "again", load=checkpoints / "prepared/checkpoints")
    with pytest.raises(CheckpointError):
        run(folder, "again", load=checkpoints / "streamed/checkpoints", **prepared)
    (checkpoints / "streamed/checkpoints/iter_0000001/data_state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"is damaged \(data_state\.json has 1 bytes"):
        run(folder, "again", load=checkpoints / "streamed/checkpoints")


@pytest.mark.usefixtures("tiny")
def test_a_bad_row_ends_the_run_or_is_written(folder: Path) -> None:
    (folder / "b.jsonl").write_text((folder / "b.jsonl").read_text() + "no json\n")
    with pytest.raises(DataError, match=r"b\.jsonl:26: not valid JSON"):
        run(folder, "stopped", train_iters=40)
    run(folder, "quarantined", train_iters=40, sft_bad_rows="quarantine")
    logs = folder / "out/primus/user/quarantined"
    assert json.loads((logs / "quarantine/train.jsonl").read_text())["origin"].endswith("b.jsonl:26")
    ledger = json.loads((logs / "logs/ledger.json").read_text())["train"]
    assert ledger["outcomes"] == {"streamed": 50, "bad:not_json": 1}


def test_bad_rows_behind_a_resume_are_written_once_in_the_folder_of_the_new_run(folder: Path) -> None:
    file = folder / "a.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], "early", *lines[3:20], "late", *lines[20:]]) + "\n")
    encoder = Encoder(load_tokenizer(folder / "tokenizer.json"), OpenAIMessagesFormatter(), EncodingOptions())

    def stream(name: str, state: dict[str, Any] | None = None) -> StreamingDataset:
        return StreamingDataset(
            [file], encoder=ShardEncoder(encoder, max_seq_length=64), source=SourceOptions(), max_seq_length=64,
            global_batch_size=2, seed=1, shuffle_buffer=0, bad_rows="quarantine", batch_bytes=300,
            quarantine_path=folder / name / "bad.jsonl", state=state,
        )  # fmt: skip

    batches = iter(stream("first"))
    states = [json.loads(json.dumps(next(batches).state.to_dict())) for _ in range(11)]
    assert "late" in (folder / "first/bad.jsonl").read_text()
    for _ in range(2):
        rest = iter(stream("second", states[4]))
        for _ in range(8):
            next(rest)
        [row] = (folder / "second/bad.jsonl").read_text().splitlines()
        assert "late" in row


@pytest.mark.usefixtures("tiny")
def test_what_the_disk_refuses_is_told_by_every_thread(folder: Path) -> None:
    (folder / "b.jsonl").write_text("no json\n" + (folder / "b.jsonl").read_text())
    quarantine = folder / "out/primus/user/full/quarantine"
    quarantine.mkdir(parents=True)
    (quarantine / "train.jsonl").mkdir()
    for num_workers in (0, 2):
        with pytest.raises(DataError, match=r"train\.jsonl"):
            run(folder, "full", sft_bad_rows="quarantine", num_workers=num_workers)


def test_the_units_of_a_stream_are_those_of_its_sequences(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    config = config_of(folder, "units", sft_loss_normalizer="conversation")
    stream = build_stream(config, tokenizer=tokenizer, state=None).stream
    batch = next(iter(stream))
    assert batch.num_units_P.tolist() == np.diff(batch.bounds_P1).tolist() != batch.num_targets_P.tolist()


def test_other_settings_are_refused_by_name(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    stream = build_stream(config_of(folder, "a"), tokenizer=tokenizer, state=None).stream
    state = json.loads(json.dumps(next(iter(stream)).state.to_dict()))
    with pytest.raises(DataError, match=r"options\.supervise_turns: 'all' -> 'last'"):
        build_stream(config_of(folder, "a", sft_supervise_turns="last"), tokenizer=tokenizer, state=state)
    (folder / "a.jsonl").write_text((folder / "a.jsonl").read_text().replace("sun", "son"))
    with pytest.raises(DataError, match="the time of the last change of each file"):
        build_stream(config_of(folder, "a"), tokenizer=tokenizer, state=state)
