# SPDX-License-Identifier: Apache-2.0
import json
import logging
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from primus.backends.megatron.trainer import run_training
from primus.backends.megatron.training_result import TrainingResult
from primus.errors import ConfigError, LayoutError, TrainingError

DEMO_TOKENIZER = Path(__file__).parents[4] / "examples" / "data" / "demo-tokenizer"


def untimed(result: TrainingResult) -> list[dict[str, Any]]:
    lines = map(json.loads, result.metrics_path.read_text().splitlines())
    timed = {"tokens_per_second", "step_time_s", "tflops_per_device", "peak_memory_bytes"}
    return [{key: line[key] for key in line.keys() - timed} for line in lines]


def test_the_same_run_again_gives_the_same_numbers_to_the_last_bit(tiny: ModuleType, tmp_path: Path) -> None:
    first, second = (tiny.run_tiny(tiny.tiny_config(tmp_path / name)) for name in ("first", "second"))
    assert untimed(first) == untimed(second)


def test_another_seed_gives_another_run(tiny: ModuleType, tmp_path: Path) -> None:
    first, second = (tiny.run_tiny(tiny.tiny_config(tmp_path / str(seed), seed=seed)) for seed in (1, 2))
    assert tiny.read_losses(first)[0] != tiny.read_losses(second)[0]


def test_the_model_learns(tiny: ModuleType, tmp_path: Path) -> None:
    result = tiny.run_tiny(tiny.tiny_config(tmp_path, train_iters=30, eval_interval=10))
    losses = tiny.read_losses(result, "validation_loss")
    assert losses == sorted(losses, reverse=True)
    # One of two tokens follows with equal chance; the weights of 0.5 lower the loss by a quarter.
    assert losses[-1] < 0.5 * math.log(61)


def test_a_run_leaves_metrics_a_picture_events_and_a_checkpoint(tiny: ModuleType, tmp_path: Path) -> None:
    result = tiny.run_tiny(tiny.tiny_config(tmp_path, train_iters=2, tensorboard=True))
    folder = tmp_path / "primus" / "user" / "tiny"
    assert result.metrics_path == folder / "logs" / "metrics.jsonl"
    assert result.loss_curve_path.read_bytes().startswith(b"\x89PNG")
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert result.checkpoint == folder / "checkpoints" / "iter_0000002"
    assert str(result).splitlines()[0] == "steps            2"
    assert result.lm_loss == tiny.read_losses(result)[-1]


def test_lines_are_written_every_log_interval_and_at_the_end(tiny: ModuleType, tmp_path: Path) -> None:
    each = tiny.run_tiny(tiny.tiny_config(tmp_path / "each"))
    some = tiny.run_tiny(tiny.tiny_config(tmp_path / "some", log_interval=3))
    steps = [line for line in untimed(some) if "lm_loss" in line]
    assert [line["iteration"] for line in steps] == [3, 6, 8]
    # A step's line says what that step did, however often lines are written.
    assert all(line in untimed(each) for line in steps)


def test_evaluations_come_every_eval_interval_and_at_the_end(tiny: ModuleType, tmp_path: Path) -> None:
    result = tiny.run_tiny(tiny.tiny_config(tmp_path, eval_interval=3))
    assert [line["iteration"] for line in untimed(result) if "validation_loss" in line] == [3, 6, 8]
    at_the_end = tiny.run_tiny(tiny.tiny_config(tmp_path / "other", eval_interval=0))
    assert [line["iteration"] for line in untimed(at_the_end) if "validation_loss" in line] == [8]


def test_a_run_without_validation_data_has_no_validation_loss(tiny: ModuleType, tmp_path: Path) -> None:
    result = tiny.run_tiny(tiny.tiny_config(tmp_path, train_iters=2), validation=None)
    assert result.validation_loss is None
    assert not any(line.startswith("validation") for line in result.lines())


def test_checkpoints_come_every_save_interval_and_at_the_end(tiny: ModuleType, tmp_path: Path) -> None:
    result = tiny.run_tiny(tiny.tiny_config(tmp_path, save_interval=3, save=tmp_path / "kept"))
    folders = sorted(path.name for path in (tmp_path / "kept").glob("iter_*"))
    assert folders == ["iter_0000003", "iter_0000006", "iter_0000008"]
    assert result.checkpoint == tmp_path / "kept" / "iter_0000008"


def test_epochs_count_the_sequences(tiny: ModuleType, tmp_path: Path) -> None:
    config = tiny.tiny_config(tmp_path, train_iters=None, sft_num_epochs=1.5)
    assert tiny.run_tiny(config, train=tiny.TinySequences(21)).iteration == 4


def test_a_run_that_is_complete_has_nothing_to_do(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = tiny.run_tiny(tiny.tiny_config(tmp_path))
    lines = done.metrics_path.read_text()
    with caplog.at_level(logging.WARNING, logger="primus"):
        again = tiny.run_tiny(tiny.tiny_config(tmp_path, load=done.checkpoint))
    assert "step 8 is reached already, and the run has 8; nothing to do" in caplog.text
    assert (again.iteration, again.lm_loss) == (8, None)
    assert done.metrics_path.read_text() == lines


def test_the_log_says_which_attention_runs(tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="primus"):
        tiny.run_tiny(tiny.tiny_config(tmp_path, train_iters=1))
    assert "attention by torch scaled_dot_product_attention" in caplog.text


def test_a_run_that_breaks_saves_no_broken_weights(tiny: ModuleType, tmp_path: Path) -> None:
    data = tiny.TinySequences(40)
    data.rows[11]["loss_mask"][0] = float("nan")
    with pytest.raises(TrainingError, match=r"step \d: the loss is nan .* look at tiny.jsonl:12 \(batch \w{16}\)$"):
        tiny.run_tiny(tiny.tiny_config(tmp_path), train=data)
    assert not (tmp_path / "primus" / "user" / "tiny" / "checkpoints").exists()


def test_conversations_on_disk_become_a_trained_model(tiny: ModuleType, tmp_path: Path) -> None:
    def conversation(name: str) -> str:
        turns = [("user", f"Hi, I am {name}."), ("assistant", f"Hello {name}."), ("user", "Who am I?")]
        turns.append(("assistant", f"You are {name}."))
        return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})

    data = tmp_path / "conversations.jsonl"
    data.write_text("\n".join(conversation(f"{first}{last}") for first in "ABCDEF" for last in ("da", "li", "on")))
    config = tiny.tiny_config(
        tmp_path,
        tokenizer_model=str(DEMO_TOKENIZER),
        sft_dataset_name=str(data),
        sft_validation_fraction=0.2,
        seq_length=64,
        max_position_embeddings=64,
        train_iters=12,
        lr=0.02,
    )
    result = run_training(config)
    losses = tiny.read_losses(result)
    assert losses[-1] < 0.7 * losses[0]
    assert result.validation_loss is not None
    facts = json.loads((result.checkpoint / "run.json").read_text())
    assert Path(facts["tokenizer_model"]) == DEMO_TOKENIZER
    assert facts["add_bos"] is False


def test_a_run_needs_a_tokenizer(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenizer_model: is not set; name a tokenizer"):
        run_training(tiny.tiny_config(tmp_path))


def test_batch_sizes_are_checked_before_the_tokenizer_is_loaded(tiny: ModuleType, tmp_path: Path) -> None:
    config = tiny.tiny_config(tmp_path, tokenizer_model="missing", global_batch_size=7)
    with pytest.raises(LayoutError, match="global_batch_size: 7 is not a multiple"):
        run_training(config)
