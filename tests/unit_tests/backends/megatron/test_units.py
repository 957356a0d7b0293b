# SPDX-License-Identifier: Apache-2.0
"""The divisor of the loss is the units of the sequences, wherever a loss is told or differentiated."""

from pathlib import Path
from types import ModuleType

import pytest

from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.sft.packing import Method

NUM = 24


def told(tiny: ModuleType, folder: Path, data: SFTDataset, *, micro_batch_size: int) -> list[float]:
    """Loss and norm of the gradient of a step with all the data, and the validation loss of the same data."""
    config = tiny.tiny_config(
        folder, train_iters=1, lr=1e-9, min_lr=0.0, lr_warmup_iters=0, eval_interval=1, clip_grad=0.0,
        global_batch_size=len(data), micro_batch_size=micro_batch_size, sft_packing=data.packing,
    )  # fmt: skip
    result = tiny.run_tiny(config, train=data, validation=data)
    return [tiny.read_losses(result, name)[0] for name in ("lm_loss", "grad_norm", "validation_loss")]


@pytest.mark.parametrize("packing", ["none", "best_fit"])
@pytest.mark.parametrize("units", [1, 3])
def test_losses_and_gradients_are_divided_by_units(
    tiny: ModuleType, tmp_path: Path, packing: Method, units: int
) -> None:
    made = tiny.conversations(NUM)
    plain = tiny.dataset_of(made, packing=packing)
    other = tiny.dataset_of(made, packing=packing, units=units)
    assert other.num_units_N.sum() == units * NUM
    ratio = float(plain.num_targets_N.sum()) / (units * NUM)
    assert ratio > 1.5
    per_target = told(tiny, tmp_path / "plain", plain, micro_batch_size=1)
    for micro_batch_size in (1, len(other)):
        per_unit = told(tiny, tmp_path / f"units{micro_batch_size}", other, micro_batch_size=micro_batch_size)
        assert per_unit == pytest.approx([value * ratio for value in per_target], rel=1e-4)
