# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from primus.backends.megatron.loss import GroupLoss
from primus.backends.megatron.reporting.metrics import EvaluationMetrics, StepMetrics, metrics_writer, read_metrics
from primus.backends.megatron.reporting.tensorboard_curves import tensorboard_curves


def step(iteration: int, *, lm_loss: float = 0.1 + 0.2, grad_norm: float | None = 1.5) -> StepMetrics:
    return StepMetrics(
        iteration=iteration,
        lm_loss=lm_loss,
        loss_by_turn={"1": GroupLoss(loss=0.5, targets=20), "3": GroupLoss(loss=0.75, targets=10)},
        loss_by_role={"assistant": GroupLoss(loss=0.625, targets=30)},
        loss_by_source={"chat": GroupLoss(loss=0.625, targets=30)},
        grad_norm=grad_norm,
        learning_rate=1e-5,
        consumed_samples=8 * iteration,
        supervised_tokens=30,
        tokens=100,
        fill=0.875,
        tokens_per_second=1234.5,
        step_time_s=0.25,
        tflops_per_device=12.5,
        mfu=0.4,
        peak_memory_bytes=1 << 30,
        batch_hash="0123456789abcdef",
    )


def evaluation(iteration: int, *, validation_loss: float) -> EvaluationMetrics:
    loss = GroupLoss(loss=validation_loss, targets=50)
    return EvaluationMetrics(
        iteration=iteration,
        validation_loss=validation_loss,
        validation_loss_by_turn={"1": loss},
        validation_loss_by_role={"assistant": loss},
        validation_loss_by_source={"chat": loss},
        consumed_samples=8 * iteration,
    )


def test_numbers_keep_all_their_digits(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "metrics.jsonl"
    with metrics_writer(path, start=0) as writer:
        writer.write(step(1))
        # A reader sees a line as soon as it is written.
        assert path.read_text().startswith('{"iteration": 1, "lm_loss": 0.30000000000000004, "loss_by_turn": {"1": ')
        writer.write(evaluation(1, validation_loss=1 / 3))
    assert read_metrics(path)[1] == {
        "iteration": 1,
        "validation_loss": 1 / 3,
        "validation_loss_by_turn": {"1": {"loss": 1 / 3, "targets": 50}},
        "validation_loss_by_role": {"assistant": {"loss": 1 / 3, "targets": 50}},
        "validation_loss_by_source": {"chat": {"loss": 1 / 3, "targets": 50}},
        "consumed_samples": 8,
    }


def test_a_step_has_the_keys_that_readers_rely_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with metrics_writer(path, start=0) as writer:
        writer.write(step(1))
    keys = "iteration lm_loss grad_norm learning_rate consumed_samples supervised_tokens tokens_per_second batch_hash"
    line = json.loads(path.read_text())
    assert set(keys.split()) <= line.keys()
    assert line["loss_by_turn"] == {"1": {"loss": 0.5, "targets": 20}, "3": {"loss": 0.75, "targets": 10}}
    assert line["loss_by_role"] == {"assistant": {"loss": 0.625, "targets": 30}}
    assert line["loss_by_source"] == {"chat": {"loss": 0.625, "targets": 30}}


def test_a_run_that_continues_keeps_the_lines_up_to_where_it_starts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with metrics_writer(path, start=0) as writer:
        for iteration in range(1, 6):
            writer.write(step(iteration))
    whole = path.read_text()
    with path.open("a") as file:
        file.write('{"iteration": 6, "lm_lo')  # as a killed run leaves it
    with metrics_writer(path, start=3) as writer:
        for iteration in (4, 5):
            writer.write(step(iteration))
    assert path.read_text() == whole


def test_a_run_that_starts_anew_begins_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        with metrics_writer(path, start=0) as writer:
            writer.write(step(1))
    assert len(read_metrics(path)) == 1


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    with (
        tensorboard_curves(tmp_path / "tensorboard", start=0) as curves,
        metrics_writer(tmp_path / "metrics.jsonl", start=0, curves=[curves]) as writer,
    ):
        writer.write(step(1, lm_loss=0.5))
        writer.write(step(2, lm_loss=0.25, grad_norm=None))
        writer.write(evaluation(2, validation_loss=0.75))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert points["lm_loss"] == [(1, 0.5), (2, 0.25)]
    assert points["validation_loss"] == points["validation_loss_by_turn/1"] == [(2, 0.75)]
    assert points["loss_by_turn/3"] == [(1, 0.75), (2, 0.75)]
    assert points["loss_by_role/assistant"] == points["loss_by_source/chat"] == [(1, 0.625), (2, 0.625)]
    assert points["grad_norm"] == [(1, 1.5)]
    assert points["fill"] == [(1, 0.875), (2, 0.875)]
    assert not {"iteration", "batch_hash"} & points.keys()


def test_a_number_that_json_does_not_have_is_refused(tmp_path: Path) -> None:
    with (
        metrics_writer(tmp_path / "m.jsonl", start=0) as writer,
        pytest.raises(ValueError, match="JSON"),
    ):
        writer.write(step(1, lm_loss=float("nan")))
