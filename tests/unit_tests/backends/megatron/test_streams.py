# SPDX-License-Identifier: Apache-2.0
"""Runs on a stream: the same batches after a resume, and the ledger at the end."""

import json
from pathlib import Path
from typing import Any

import pytest

from primus.backends.megatron.trainer import run_training
from primus.config.schema import TrainConfig
from primus.errors import CheckpointError, DataError
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


def run(folder: Path, exp_name: str, **keys: Any) -> dict[int, str]:
    """Train, and return the hash of each step's batch."""
    files = (str(folder / "a.jsonl"), str(folder / "b.jsonl"))
    trainer = {**SMALL, "sft_dataset_name": files, "tokenizer_model": str(folder / "tokenizer.json"), **keys}
    result = run_training(TrainConfig(exp_name=exp_name, workspace=folder / "out", trainer=trainer))
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
    assert ledger["outcomes"] == {"trained": ledger["num_rows"]}


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
    with pytest.raises(CheckpointError, match=r"data_state\.json: is damaged"):
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
    assert ledger["outcomes"] == {"trained": 50, "bad:not_json": 1}
