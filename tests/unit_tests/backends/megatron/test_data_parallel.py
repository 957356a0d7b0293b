# SPDX-License-Identifier: Apache-2.0
"""Two real processes against one."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.unit_tests.backends.megatron.real_ranks import run_ranks

TINY_RUN = Path(__file__).with_name("tiny_run.py")
OPTIMIZERS = {
    "whole": {},
    "distributed": {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
}
TOLERANCES = {"lm_loss": 1e-6, "grad_norm": 3e-6, "validation_loss": 1e-6}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs: by one process; by two, whole, and from step 4 of the one; by one, from step 4 of the two."""
    folder = tmp_path_factory.mktemp("runs")
    jobs: list[tuple[str, str, dict[str, object]]] = [(str(folder), "gradients", {})]
    for name, optimizer in OPTIMIZERS.items():
        one = tiny.run_tiny(tiny.tiny_config(folder / name / "one", save_interval=4, **optimizer))
        half = str(one.checkpoint.with_name("iter_0000004"))
        jobs.append((str(folder / name / "two"), "train", {"save_interval": 4, **optimizer}))
        jobs.append((str(folder / name / "one_then_two"), "train", {"load": half, **optimizer}))
    run_two_processes(jobs)
    for name, optimizer in OPTIMIZERS.items():
        save = folder / name / "two" / "primus" / "user" / "tiny" / "checkpoints"
        tiny.run_tiny(tiny.tiny_config(folder / name / "two_then_one", load=save / "iter_0000004", **optimizer))
    return folder


def run_two_processes(jobs: list[tuple[str, str, dict[str, object]]]) -> None:
    run_ranks(TINY_RUN, json.dumps(jobs), num_ranks=2, timeout_s=110)


def read(folder: Path, name: str) -> list[Any]:
    lines = (folder / "primus" / "user" / "tiny" / "logs" / "metrics.jsonl").read_text().splitlines()
    return [line[name] for line in map(json.loads, lines) if name in line]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", TOLERANCES)
def test_two_processes_train_what_one_trains(runs: Path, optimizer: str, name: str) -> None:
    # 13 validation sequences in micro-batches of 2: one of the processes has one micro-batch more.
    one, two = (read(runs / optimizer / who, name) for who in ("one", "two"))
    assert len(one) >= 2
    assert two == pytest.approx(one, abs=TOLERANCES[name])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("who", ["one_then_two", "two_then_one"])
def test_a_run_is_continued_by_another_number_of_processes(runs: Path, optimizer: str, who: str) -> None:
    hashes = read(runs / optimizer / "one", "batch_hash")
    assert read(runs / optimizer / who, "batch_hash") == hashes[-len(hashes) // 2 :]
    for name, tolerance in TOLERANCES.items():
        expected, found = (read(runs / optimizer / folder, name) for folder in ("one", who))
        assert len(found) == len(expected) // 2
        assert found == pytest.approx(expected[-len(found) :], abs=tolerance)


@pytest.mark.parametrize(
    "name", ["learning_rate", "supervised_tokens", "tokens", "fill", "consumed_samples", "batch_hash"]
)
def test_counts_are_those_of_all_processes(runs: Path, name: str) -> None:
    one, two = (read(runs / "whole" / who, name) for who in ("one", "two"))
    assert two == one


@pytest.mark.parametrize("name", ["loss_by_turn", "loss_by_role", "loss_by_source"])
def test_the_losses_of_groups_are_those_of_all_processes(runs: Path, name: str) -> None:
    for whole, prefix in (("lm_loss", ""), ("validation_loss", "validation_")):
        one, two = (
            [group for line in read(runs / "whole" / who, f"{prefix}{name}") for group in line.items()]
            for who in ("one", "two")
        )
        assert len(one) >= len(read(runs / "whole" / "one", whole))
        assert [(group, loss["targets"]) for group, loss in two] == [(group, loss["targets"]) for group, loss in one]
        assert [loss["loss"] for _, loss in two] == pytest.approx([loss["loss"] for _, loss in one], abs=1e-6)


def test_the_gradient_of_two_processes_is_that_of_one_pass(runs: Path, tiny: ModuleType, tmp_path: Path) -> None:
    expected = tiny.gradients_of_a_step(tiny.tiny_config(tmp_path, micro_batch_size=8))
    for rank in range(2):
        found = np.load(runs / f"{rank}.npz")
        assert set(found) == set(expected)
        error = sum(((found[name] - expected[name]).astype(np.float64) ** 2).sum() for name in expected)
        scale = sum((array.astype(np.float64) ** 2).sum() for array in expected.values())
        assert (error / scale) ** 0.5 < 1e-6
