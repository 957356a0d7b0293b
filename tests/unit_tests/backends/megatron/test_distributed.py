# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from primus.backends.megatron.distributed import on_first_rank, sum_over_losses, this_process
from primus.errors import LayoutError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_a_process_without_a_launcher_is_alone() -> None:
    process = this_process()
    assert (process.rank, process.world_size, process.local_rank) == (0, 1, 0)
    assert process.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_process_learns_its_place_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(VARIABLES, ("5", "8", "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    process = this_process()
    assert (process.rank, process.world_size, process.local_rank) == (5, 8, 1)


@pytest.mark.parametrize("variables", [{"RANK": "1"}, {"RANK": "1", "WORLD_SIZE": "two", "LOCAL_RANK": "1"}])
def test_half_a_place_is_refused(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LayoutError, match=r"environment: RANK=1, WORLD_SIZE=.* is no place in a run; start several"):
        this_process()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(VARIABLES, ("2", "4", "2"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(
        LayoutError, match="process 2 of this machine has no GPU, there are 2; start at most 2 processes"
    ):
        this_process()


@pytest.mark.usefixtures("joined")
def test_sums_are_in_float64() -> None:
    assert sum_over_losses(0.1, 1e9 + 0.1, device=torch.device("cpu")) == [0.1, 1e9 + 0.1]


@pytest.mark.usefixtures("joined")
def test_what_fails_on_the_first_rank_is_raised() -> None:
    def fail() -> None:
        raise PermissionError("no")

    assert on_first_rank(lambda: "done") == "done"
    with pytest.raises(PermissionError, match="no"):
        on_first_rank(fail)
