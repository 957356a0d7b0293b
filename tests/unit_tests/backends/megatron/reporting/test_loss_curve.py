# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from primus.backends.megatron.reporting.loss_curve import draw_loss_curve

TRAIN = [{"iteration": step, "lm_loss": 4 / step} for step in range(1, 201)]
VALIDATION = [{"iteration": step, "validation_loss": 5 / step} for step in (100, 200)]
# Red and blue of the curves, in the order of the picture's channels.
BLUE, RED = (0x44, 0x77, 0xAA), (0xEE, 0x66, 0x77)


def num_pixels(path: Path, colour: tuple[int, int, int]) -> int:
    pixels = (imread(path)[..., :3] * 255).round().astype(int)
    return int((abs(pixels - colour).max(-1) <= 2).sum())


@pytest.mark.parametrize(
    ("lines", "has_training", "has_validation"),
    [([*TRAIN, *VALIDATION], True, True), (TRAIN[:3], True, False), (VALIDATION, False, True), ([], False, False)],
)
def test_the_picture_has_a_curve_for_each_loss_that_there_is(
    tmp_path: Path, lines: list[dict[str, Any]], has_training: bool, has_validation: bool
) -> None:
    path = tmp_path / "loss_curve.png"
    draw_loss_curve(lines, path=path, title="a run")
    assert (num_pixels(path, BLUE) > 100) == has_training
    assert (num_pixels(path, RED) > 100) == has_validation
    assert [file.name for file in tmp_path.iterdir()] == ["loss_curve.png"]
