# SPDX-License-Identifier: Apache-2.0
"""A stored plan is that of the data set, or it is made again."""

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from primus.sft.packing import PackPlan, pack_sequences
from primus.sft.packing_cache import stored_plan

LENGTHS = np.random.default_rng(0).integers(1, 65, 500)
FINGERPRINT = "0123456789abcdef" * 2
FILES = ("items.npy", "bounds.npy", "plan.json")


def plan_in(folder: Path, lengths: npt.NDArray[np.int64] = LENGTHS, *, fingerprint: str = FINGERPRINT) -> PackPlan:
    return stored_plan(
        lambda: lengths,
        num_sequences=len(lengths),
        capacity=64,
        method="best_fit",
        fingerprint=fingerprint,
        folder=folder,
    )


def same(one: PackPlan, other: PackPlan) -> bool:
    equal = np.array_equal(one.items_N, other.items_N) and np.array_equal(one.bounds_P1, other.bounds_P1)
    return equal and one.fill == other.fill


EXPECTED = pack_sequences(LENGTHS, capacity=64, method="best_fit")


def stored_in(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_a_plan_is_made_once_and_read_after(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = plan_in(tmp_path / "packing")
    path = stored_in(tmp_path / "packing")
    assert path.name == "best_fit-64-0123456789ab"
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    # What is read comes from the files: another plan with right digests would be believed.
    written = path.stat().st_mtime_ns
    second = plan_in(tmp_path / "packing")
    assert same(first, EXPECTED)
    assert same(second, EXPECTED)
    assert path.stat().st_mtime_ns == written
    assert not caplog.records


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_any_flipped_byte_leads_to_the_right_plan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, where: float
) -> None:
    plan_in(tmp_path)
    file = stored_in(tmp_path) / name
    whole = file.read_bytes()
    place = int(where * (len(whole) - 1))
    # The last byte of the JSON document is the newline behind it.
    place -= name == "plan.json" and where == 1.0
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    with caplog.at_level(logging.WARNING):
        assert same(plan_in(tmp_path), EXPECTED)
    (record,) = caplog.records
    assert "is not the pack plan of this data set" in record.getMessage()
    assert file.read_bytes() == whole, "it is stored again"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "missing", "empty"])
def test_any_missing_piece_leads_to_the_right_plan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    plan_in(tmp_path)
    file = stored_in(tmp_path) / name
    whole = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    assert same(plan_in(tmp_path), EXPECTED)
    assert len(caplog.records) == 1
    assert file.read_bytes() == whole


def test_the_plan_of_another_data_set_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = np.flip(LENGTHS)
    # The same twelve letters, as good as never, and the same folder.
    plan_in(tmp_path, other, fingerprint=FINGERPRINT[:12] + "another")
    assert same(plan_in(tmp_path), EXPECTED)
    assert "made of other sequences" in caplog.text
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_not_taken_for_a_plan(tmp_path: Path) -> None:
    plan_in(tmp_path)
    path = stored_in(tmp_path)
    path.rename(path.with_name(f"{path.name}.1.part"))
    (tmp_path / f"{path.name}.1.part" / "plan.json").unlink()
    assert same(plan_in(tmp_path), EXPECTED)


def test_a_folder_that_cannot_be_written_to_costs_the_time_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "packing").write_text("a file stands where the folder should")
    with caplog.at_level(logging.INFO):
        assert same(plan_in(tmp_path / "packing"), EXPECTED)
    assert "the pack plan can't be stored" in caplog.text
