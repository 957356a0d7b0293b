# SPDX-License-Identifier: Apache-2.0
"""However ranks share a model and its batches, they train what a single process trains."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit_tests.backends.megatron import layout_runs
from tests.unit_tests.backends.megatron.layout_runs import Arrays, Keys
from tests.unit_tests.backends.megatron.real_ranks import run_ranks

DISTRIBUTED: Keys = {"use_distributed_optimizer": True}
OVERLAPPED: Keys = {**DISTRIBUTED, "overlap_grad_reduce": True, "overlap_param_gather": True}
PACKINGS = ("none", "best_fit")
TP2: Keys = {"tensor_model_parallel_size": 2}
TP2_SP: Keys = {**TP2, "sequence_parallel": True}
PP2: Keys = {"pipeline_model_parallel_size": 2}
PP2_VPP2: Keys = {**PP2, "virtual_pipeline_model_parallel_size": 2}
LAYOUTS: dict[str, Keys] = {"dp2": {}, "tp2": TP2, "tp2 sp": TP2_SP, "pp2": PP2, "pp2 vpp2": PP2_VPP2}
# Of four processes.
LARGER_LAYOUTS: dict[str, Keys] = {
    "dp2 tp2": TP2,
    "dp2 tp2 sp, overlapped": {**TP2_SP, **OVERLAPPED},
    "tp2 pp2": {**TP2, **PP2},
    "tp2 sp pp2 vpp2": {**TP2_SP, **PP2_VPP2},
    "dp2 pp2, distributed optimizer": {**PP2, **DISTRIBUTED},
    "dp2 pp2 vpp2, overlapped": {**PP2_VPP2, **OVERLAPPED},
    "pp4": {"pipeline_model_parallel_size": 4},
    "pp2 cp2": {**PP2, "context_parallel_size": 2},
}
TOLERANCES = {"lm_loss": 2e-6, "grad_norm": 2e-6, "validation_loss": 2e-6}
# Models and ways to run them that meet other parts of the code, for fewer steps.
SHORT: Keys = {"train_iters": 10, "eval_interval": 4}
TIED: Keys = {"untie_embeddings_and_output_weights": False, "qk_layernorm": True, "add_qkv_bias": True}
RECOMPUTED: Keys = {"recompute_granularity": "full"}
BF16: Keys = {"bf16": True, **OVERLAPPED}
# A run, and the layouts that it is made in.
VARIANTS: dict[str, tuple[Keys, Sequence[str]]] = {
    "tied": (TIED, ("tp2 sp", "pp2", "pp2 vpp2")),
    "tied, distributed optimizer": ({**TIED, **DISTRIBUTED}, ("dp2", "pp2", "pp2 vpp2")),
    "overlapped": (OVERLAPPED, ("dp2", "tp2 sp", "pp2", "pp2 vpp2")),
    "recomputed": (RECOMPUTED, ("tp2 sp", "pp2 vpp2")),
    "one micro-batch": ({"micro_batch_size": 8}, ("tp2", "pp2")),
    "any width": ({"sft_pad_to_multiple_of": 1}, ("tp2 sp", "pp2")),
}
# What tensor-parallel ranks have in common they must drop out in common.
HIDDEN_DROPOUT: Keys = {"hidden_dropout": 0.3}
DROPPING_OUT = ("tp2", "tp2 sp", "pp2 vpp2")

# The fixtures make all runs of their number of ranks at once.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def read(folder: Path, name: str) -> list[Any]:
    lines = (folder / "primus" / "user" / "tiny" / "logs" / "metrics.jsonl").read_text().splitlines()
    return [line[name] for line in map(json.loads, lines) if name in line]


def assert_trains_the_same(found: Path, expected: Path) -> None:
    for name, tolerance in TOLERANCES.items():
        assert read(found, name) == pytest.approx(read(expected, name), abs=tolerance), name
    for name in ("batch_hash", "supervised_tokens", "tokens", "consumed_samples", "learning_rate"):
        assert read(found, name) == read(expected, name), name
    for name in ("loss_by_turn", "validation_loss_by_role", "validation_loss_by_source"):
        ours, theirs = (
            [(group, loss["targets"], loss["loss"]) for line in read(folder, name) for group, loss in line.items()]
            for folder in (found, expected)
        )
        assert [told[:2] for told in ours] == [told[:2] for told in theirs], name
        assert [told[2] for told in ours] == pytest.approx([told[2] for told in theirs], abs=1e-5), name


def load(folder: Path, rank: int) -> Arrays:
    with np.load(folder / f"{rank}.npz") as arrays:
        return dict(arrays)


def part_of(whole: np.ndarray, shape: tuple[int, ...], *, name: str, rank: int, num_ranks: int) -> np.ndarray:
    """The part of a parameter that a tensor-parallel rank has."""
    cut = [dimension for dimension, size in enumerate(shape) if size != whole.shape[dimension]]
    if not cut:
        return whole
    # The gate, and what is gated.
    blocks = np.split(whole, 2) if "linear_fc1" in name else [whole]
    return np.concatenate([np.split(block, num_ranks, axis=cut[0])[rank % num_ranks] for block in blocks])


def relative_error(found: Arrays, expected: Arrays, *, rank: int, num_ranks: int) -> float:
    wrong = size = 0.0
    for name, array in found.items():
        part = part_of(expected[name], array.shape, name=name, rank=rank, num_ranks=num_ranks)
        wrong += ((array - part).astype(np.float64) ** 2).sum()
        size += (part.astype(np.float64) ** 2).sum()
    return float((wrong / size) ** 0.5)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of what a single process computed, by packing, and of its runs by variant."""
    folder = tmp_path_factory.mktemp("single")
    jobs: list[tuple[str, str, Keys]] = [(str(folder / "weights"), "weights", {})]
    for packing in PACKINGS:
        keys = {"sft_packing": packing}
        # In one pass, so that micro-batches are put to the test too.
        jobs.append((str(folder / "gradients" / packing), "gradients", {**keys, "micro_batch_size": 8}))
        jobs.append((str(folder / packing), "train", keys))
    packed: Keys = {"sft_packing": "best_fit", **SHORT}
    jobs.append((str(folder / "short"), "train", packed))
    jobs.append((str(folder / "tied"), "train", {**packed, **TIED}))
    jobs.append((str(folder / "hidden dropout"), "train", {**packed, **HIDDEN_DROPOUT}))
    jobs.append((str(folder / "bf16"), "train", {**SHORT, "bf16": True}))
    jobs.append((str(folder / "no dropout"), "train", SHORT))
    run_ranks(layout_runs.__file__, json.dumps(jobs), num_ranks=1, timeout_s=1500)
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of what two processes computed."""
    folder = tmp_path_factory.mktemp("two_ranks")
    jobs: list[tuple[str, str, Keys]] = []
    for layout, keys in LAYOUTS.items():
        jobs.append((str(folder / "weights" / layout), "weights", keys))
        for packing in PACKINGS:
            packed = {**keys, "sft_packing": packing}
            jobs.append((str(folder / "gradients" / layout / packing), "gradients", packed))
            jobs.append((str(folder / "whole" / layout / packing), "train", packed))
            jobs.append((str(folder / "distributed" / layout / packing), "train", {**packed, **DISTRIBUTED}))
        jobs.append((str(folder / "bf16" / layout), "train", {**SHORT, **keys, **BF16}))
    for variant, (added, layouts) in VARIANTS.items():
        for layout in layouts:
            packed = {**SHORT, **LAYOUTS[layout], **added, "sft_packing": "best_fit"}
            jobs.append((str(folder / variant / layout), "train", packed))
    same = {"sft_packing": "best_fit", **SHORT, **TP2, **HIDDEN_DROPOUT, **RECOMPUTED}
    jobs.append((str(folder / "hidden dropout"), "train", same))
    for layout in DROPPING_OUT:
        dropout = {"hidden_dropout": 0.2, "attention_dropout": 0.2, **RECOMPUTED}
        jobs.append((str(folder / "dropout" / layout), "train", {**SHORT, **LAYOUTS[layout], **dropout}))
    # The state of the embedding is saved behind a bucket that ends with padding.
    padded = {**TIED, **PP2_VPP2, **DISTRIBUTED, "train_iters": 8, "save_interval": 4, "sft_packing": "best_fit"}
    half = folder / "padded" / "primus" / "user" / "tiny" / "checkpoints" / "iter_0000004"
    jobs.append((str(folder / "padded"), "train", padded))
    jobs.append((str(folder / "padded, resumed"), "train", {**padded, "load": str(half)}))
    jobs.append((str(folder / "trap"), "gradients by batched messages", {**PP2_VPP2, "sft_packing": "best_fit"}))
    run_ranks(layout_runs.__file__, json.dumps(jobs), num_ranks=2, timeout_s=1500)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_of_a_seed_are_the_same_in_every_layout(single: Path, two_ranks: Path, layout: str) -> None:
    expected = load(single / "weights", 0)
    seen: set[str] = set()
    for rank in range(2):
        found = load(two_ranks / "weights" / layout, rank)
        seen |= found.keys()
        for name, array in found.items():
            part = part_of(expected[name], array.shape, name=name, rank=rank, num_ranks=2)
            assert np.array_equal(array, part), name
    assert seen == expected.keys()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_is_that_of_one_pass_of_a_single_process(
    single: Path, two_ranks: Path, layout: str, packing: str
) -> None:
    expected = load(single / "gradients" / packing, 0)
    for rank in range(2):
        found = load(two_ranks / "gradients" / layout / packing, rank)
        assert relative_error(found, expected, rank=rank, num_ranks=2) < 1e-6


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("optimizer", ["whole", "distributed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_train_what_one_trains(
    single: Path, two_ranks: Path, layout: str, optimizer: str, packing: str
) -> None:
    losses = read(single / packing, "lm_loss")
    assert len(losses) == layout_runs.NUM_STEPS
    assert losses[-1] < losses[0] - 0.5
    assert_trains_the_same(two_ranks / optimizer / layout / packing, single / packing)


@pytest.mark.parametrize(
    ("variant", "layout"), [(name, layout) for name, (_, all_) in VARIANTS.items() for layout in all_]
)
def test_other_models_and_ways_to_run_them_are_no_different(
    single: Path, two_ranks: Path, variant: str, layout: str
) -> None:
    assert_trains_the_same(two_ranks / variant / layout, single / ("tied" if "tied" in variant else "short"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_runs_are_as_close_as_bfloat16_is(single: Path, two_ranks: Path, layout: str) -> None:
    expected, found = (read(folder, "lm_loss") for folder in (single / "bf16", two_ranks / "bf16" / layout))
    assert found == pytest.approx(expected, abs=0.05)
    assert read(two_ranks / "bf16" / layout, "batch_hash") == read(single / "bf16", "batch_hash")


@pytest.mark.parametrize("layout", DROPPING_OUT)
def test_dropout_runs_and_learns_in_every_layout(single: Path, two_ranks: Path, layout: str) -> None:
    without, losses = (read(folder, "lm_loss") for folder in (single / "no dropout", two_ranks / "dropout" / layout))
    assert losses == pytest.approx(without, abs=0.5)
    assert losses != pytest.approx(without, abs=1e-3)


def test_tensor_parallel_ranks_drop_out_the_same_of_what_each_has_whole(single: Path, two_ranks: Path) -> None:
    assert_trains_the_same(two_ranks / "hidden dropout", single / "hidden dropout")


def test_a_resume_finds_the_optimizers_state_behind_the_padding_of_a_bucket(two_ranks: Path) -> None:
    whole, resumed = (read(two_ranks / name, "lm_loss") for name in ("padded", "padded, resumed"))
    assert resumed == whole[4:]


def test_messages_between_two_stages_are_not_mixed_up(single: Path, two_ranks: Path) -> None:
    # As Megatron sends by default, activations and gradients are taken for each other without an error. This is what
    # the tests above would not let pass.
    expected = load(single / "gradients" / "best_fit", 0)
    errors = [relative_error(load(two_ranks / "trap", rank), expected, rank=rank, num_ranks=2) for rank in range(2)]
    assert not max(errors) < 0.01


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs of four processes."""
    folder = tmp_path_factory.mktemp("four_ranks")
    jobs = [
        (str(folder / layout / packing), "train", {**keys, "sft_packing": packing})
        for layout, keys in LARGER_LAYOUTS.items()
        for packing in PACKINGS
    ]
    tied = {**SHORT, **TIED, **DISTRIBUTED, **TP2_SP, **PP2, "sft_packing": "best_fit"}
    jobs.append((str(folder / "tied"), "train", tied))
    run_ranks(layout_runs.__file__, json.dumps(jobs), num_ranks=4, timeout_s=1500)
    return folder


def test_four_ranks_share_tied_embeddings(single: Path, four_ranks: Path) -> None:
    assert_trains_the_same(four_ranks / "tied", single / "tied")


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("layout", LARGER_LAYOUTS)
def test_four_ranks_train_what_one_trains(single: Path, four_ranks: Path, layout: str, packing: str) -> None:
    assert_trains_the_same(four_ranks / layout / packing, single / packing)
