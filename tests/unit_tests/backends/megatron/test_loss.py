# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from primus.backends.megatron.data.batches import MicroBatch
from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.backends.megatron.loss import break_down, sum_losses, sums_of_groups
from primus.backends.megatron.model.gpt import build_model
from primus.config.schema import TrainConfig
from primus.sft.target_groups import GROUPS_PER_SOURCE


def reference_gradients(tiny: ModuleType, config: TrainConfig, *, num_sequences: int) -> dict[str, np.ndarray]:
    """Of the mean over all targets, from all logits of all sequences at once, by plain autograd."""
    data = tiny.TinySequences(40)
    rows = [data[index] for index in range(num_sequences)]
    input_ids_BS, labels_BS, weights_BS = (
        torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels", "loss_mask")
    )
    with joined_processes(this_process(), config.trainer):
        seed_weights(config.trainer.seed)
        model = build_model(config.trainer, padded_vocab_size=64, device=torch.device("cpu"))[0].module
        losses_BS = cross_entropy(model(input_ids_BS, None, None).transpose(1, 2), labels_BS, reduction="none")
        mean = (losses_BS * weights_BS).sum() / (weights_BS > 0).sum()
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(mean, parameters)
    return {name: gradient.numpy() for name, gradient in zip(names, gradients, strict=True)}


def relative_error(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    def norm(arrays: list[np.ndarray]) -> float:
        return float(np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in arrays)))

    assert found.keys() == expected.keys()
    return norm([found[name] - expected[name] for name in expected]) / norm(list(expected.values()))


def micro_batch(*, weights_N: torch.Tensor, groups_N: torch.Tensor, num_groups: int) -> MicroBatch:
    nothing = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(
        input_ids_BS=torch.zeros(2, 8, dtype=torch.int64),
        position_ids_BS=nothing,
        segments_C2=None,
        target_positions_N=nothing,
        labels_N=nothing,
        weights_N=weights_N,
        groups_N=groups_N,
        num_groups=num_groups,
        num_units=2,
        content_hash=7,
    )


def test_weights_scale_the_loss_and_not_the_divisor() -> None:
    groups_N = torch.tensor([3, 1, 3], dtype=torch.int32)
    batch = micro_batch(weights_N=torch.tensor([1.0, 0.5, 2.0]), groups_N=groups_N, num_groups=5)
    total, num_units, report = sum_losses(batch, torch.tensor([1.0, 2.0, 3.0]))
    assert (total.item(), num_units.item(), num_units.dtype) == (8.0, 2, torch.int)
    assert report.loss_sum.item() == 8.0
    # What a group's loss tells does not depend on weights.
    assert report.group_sums_G.tolist() == [0.0, 2.0, 0.0, 4.0, 0.0]
    assert report.group_counts_G.tolist() == [0, 1, 0, 2, 0]
    assert (report.num_targets, report.num_units, report.num_places) == (3, 2, 16)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(1, 3))
def test_groups_add_up_to_the_whole_however_they_fall_on_micro_batches(sizes: list[int], num_sources: int) -> None:
    rng = np.random.default_rng(sum(sizes))
    num_groups = num_sources * GROUPS_PER_SOURCE
    reports, losses, groups = [], np.zeros(0), np.zeros(0, dtype=np.int64)
    for size in sizes:
        losses_N, groups_N = rng.random(size, dtype=np.float32), rng.integers(0, num_groups, size)
        batch = micro_batch(weights_N=torch.ones(size), groups_N=torch.from_numpy(groups_N), num_groups=num_groups)
        reports.append(sum_losses(batch, torch.from_numpy(losses_N))[2])
        losses, groups = np.append(losses, losses_N), np.append(groups, groups_N)
    sums = np.array(sums_of_groups(reports, num_groups=num_groups)).reshape(2, -1)
    assert sums[0] == pytest.approx(np.bincount(groups, weights=losses, minlength=num_groups), rel=1e-14)
    assert sums[1].tolist() == np.bincount(groups, minlength=num_groups).tolist()
    names = [f"source {number}" for number in range(num_sources)]
    told = break_down(sums.ravel().tolist(), source_names=names)
    assert list(told) == ["turn", "role", "source"]
    for each in told.values():
        assert sum(group.targets for group in each.values()) == len(losses)
        assert sum(group.loss * group.targets for group in each.values()) == pytest.approx(losses.sum(), rel=1e-12)
    for number, name in enumerate(names):
        mine = losses[groups // GROUPS_PER_SOURCE == number]
        assert (name in told["source"]) == bool(len(mine))
        assert not len(mine) or told["source"][name].loss == pytest.approx(mine.mean(), rel=1e-12)


def test_a_rank_without_micro_batches_adds_nothing() -> None:
    assert sums_of_groups([], num_groups=18) == [0.0] * 36


@pytest.mark.parametrize("micro_batch_size", [1, 2, 8])
def test_the_gradient_is_that_of_the_mean_over_all_targets_however_they_fall_on_micro_batches(
    tiny: ModuleType, tmp_path: Path, micro_batch_size: int
) -> None:
    config = tiny.tiny_config(tmp_path, micro_batch_size=micro_batch_size)
    targets = tiny.TinySequences(40).num_targets_N[:8]
    assert targets.max() >= 4 * targets.min()
    found = tiny.gradients_of_a_step(config)
    assert relative_error(found, reference_gradients(tiny, config, num_sequences=8)) < 1e-6
