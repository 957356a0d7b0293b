# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from primus.backends.megatron.reporting.continuation import SET_ASIDE_FILE, set_aside_later_lines

LINES = ['{"iteration": 1}\n', '{"iteration": 2}\n', '{"iteration": 2, "validation_loss": 0.5}\n', '{"iteration": 3}\n']


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "metrics.jsonl").write_text("".join(LINES))
    return tmp_path / "metrics.jsonl"


def test_lines_after_the_step_are_set_aside_and_not_lost(path: Path) -> None:
    assert set_aside_later_lines(path, start=2) == 1
    assert path.read_text() == "".join(LINES[:3])
    assert set_aside_later_lines(path, start=0) == 3
    assert path.read_text() == ""
    assert path.with_name(SET_ASIDE_FILE).read_text() == LINES[3] + "".join(LINES[:3])


def test_a_file_that_ends_with_the_step_is_left_alone(path: Path) -> None:
    before = path.stat()
    assert set_aside_later_lines(path, start=3) == 0
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not path.with_name(SET_ASIDE_FILE).exists()
    assert set_aside_later_lines(path.with_name("absent.jsonl"), start=3) == 0


@pytest.mark.parametrize("rest", ['{"iteration": 3, "lm_', "\0\0\0\0\n", '{"lm_loss": 1}\n'])
def test_what_a_kill_or_a_loss_of_power_left_is_set_aside(path: Path, rest: str) -> None:
    path.write_text("".join(LINES[:3]) + rest)
    assert set_aside_later_lines(path, start=3) == 1
    assert path.read_text() == "".join(LINES[:3])
    assert path.with_name(SET_ASIDE_FILE).read_text() == rest.rstrip("\n") + "\n"
