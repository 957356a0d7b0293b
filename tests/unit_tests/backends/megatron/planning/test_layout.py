# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from types import ModuleType

import pytest

from primus.backends.megatron.planning.layout import build_layout, num_steps
from primus.errors import LayoutError


def test_every_sequence_of_the_global_batch_belongs_to_one_forward_pass(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_config(tmp_path, global_batch_size=24, micro_batch_size=3).trainer
    layout = build_layout(trainer, world_size=4)
    assert (layout.data_parallel_size, layout.num_micro_batches) == (4, 2)


def test_a_global_batch_that_the_ranks_cannot_share_is_refused_with_the_nearest_sizes(
    tiny: ModuleType, tmp_path: Path
) -> None:
    trainer = tiny.tiny_config(tmp_path, global_batch_size=10, micro_batch_size=2).trainer
    message = (
        "global_batch_size: 10 is not a multiple of micro_batch_size 2 x 2 data-parallel ranks = 4; "
        "set it to 8 or 12, or change micro_batch_size"
    )
    with pytest.raises(LayoutError, match=message):
        build_layout(trainer, world_size=2)


def test_a_global_batch_smaller_than_one_pass_of_all_ranks_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_config(tmp_path, global_batch_size=4, micro_batch_size=2).trainer
    with pytest.raises(LayoutError, match="= 6; set it to 6, or change"):
        build_layout(trainer, world_size=3)


def test_processes_that_are_no_multiple_of_one_models_ranks_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_config(tmp_path, tensor_model_parallel_size=2, pipeline_model_parallel_size=2).trainer
    with pytest.raises(LayoutError, match=r"layout: 6 processes are not a multiple of .* = 4; start 4 or 8 processes"):
        build_layout(trainer, world_size=6)


def test_virtual_stages_take_turns_after_as_many_passes_as_there_are_stages(tiny: ModuleType, tmp_path: Path) -> None:
    keys = {"num_layers": 8, "pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2}
    assert build_layout(tiny.tiny_config(tmp_path, **keys).trainer, world_size=4).num_micro_batches == 4
    trainer = tiny.tiny_config(tmp_path, **keys, global_batch_size=12).trainer
    message = (
        "global_batch_size: 12 makes 6 forward passes on each rank, and virtual pipeline stages take turns after 4 of "
        "them; set it to 8 or 16, or virtual_pipeline_model_parallel_size to null"
    )
    with pytest.raises(LayoutError, match=f"^{message}$"):
        build_layout(trainer, world_size=4)


def test_epochs_are_rounded_up_to_whole_steps(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_config(tmp_path, train_iters=None, sft_num_epochs=2).trainer
    assert num_steps(trainer, num_sequences=13) == 4
    assert num_steps(tiny.tiny_config(tmp_path, train_iters=7).trainer, num_sequences=13) == 7
