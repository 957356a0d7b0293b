# SPDX-License-Identifier: Apache-2.0
"""Ranks that share sequences compute what a single process computes."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from primus.backends.megatron.context_parallel import ContextRank
from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.data.batches import MicroBatch, part_of_context_rank, read_micro_batch
from primus.sft.packing import Method
from tests.unit_tests.backends.megatron import context_runs
from tests.unit_tests.backends.megatron.context_runs import Arrays, Keys
from tests.unit_tests.backends.megatron.real_ranks import run_ranks

# Many runs of several processes, on whatever cores there are.
pytestmark = pytest.mark.timeout(900)

PACKINGS: tuple[Method, ...] = ("none", "best_fit")
DISTRIBUTED: Keys = {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
MODELS: dict[str, Keys] = {
    "groups of heads": {},
    "scaled angles, biases": {"use_rope_scaling": True, "rope_scaling_factor": 8.0, "add_qkv_bias": True},
    "norms of heads, tied": {"qk_layernorm": True, "untie_embeddings_and_output_weights": False},
    "heads of their own": {"num_query_groups": None, "kv_channels": 16},
}
RECOMPUTED: dict[str, Keys] = {name: {"recompute_granularity": name} for name in ("full", "selective")}
CASES: list[tuple[str, Method]] = [(name, "best_fit") for name in MODELS] + [("groups of heads", "none")]
# A gradient is missing, and not zero, where a norm is not asked for.
SPARSE = MODELS["norms of heads, tied"]
RUNS: dict[str, tuple[Method, Keys]] = {
    "unpacked": ("none", {}),
    "unpacked, distributed optimizer": ("none", DISTRIBUTED),
    "packed": ("best_fit", {}),
    "packed, distributed optimizer": ("best_fit", DISTRIBUTED),
}
TENSOR_PARALLEL: Keys = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
OF_FOUR: dict[str, tuple[Method, Keys]] = {
    "dp2 cp2": ("none", {"context_parallel_size": 2}),
    "dp2 cp2, packed, distributed optimizer": ("best_fit", {"context_parallel_size": 2, **DISTRIBUTED}),
    "tp2 cp2, packed": ("best_fit", {"context_parallel_size": 2, **TENSOR_PARALLEL}),
    "pp2 cp2": ("none", {"context_parallel_size": 2, "pipeline_model_parallel_size": 2}),
    "pp2 cp2, packed": ("best_fit", {"context_parallel_size": 2, "pipeline_model_parallel_size": 2}),
    "cp4, distributed optimizer": ("none", {"context_parallel_size": 4, **DISTRIBUTED}),
}
TOLERANCES = {"lm_loss": 2e-6, "grad_norm": 2e-6, "validation_loss": 2e-6}


def run_processes(num: int, jobs: Sequence[tuple[str, str, str, Keys]]) -> None:
    run_ranks(context_runs.__file__, json.dumps(jobs), num_ranks=num, timeout_s=840)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of what two context-parallel ranks computed."""
    folder = tmp_path_factory.mktemp("two_ranks")
    shared: Keys = {"context_parallel_size": 2}
    jobs = [
        (str(folder / "logits" / name / packing), "logits", packing, {**MODELS[name], **shared})
        for name, packing in CASES
    ]
    jobs += [
        (
            str(folder / "gradients" / name / packing),
            "gradients",
            packing,
            {**MODELS.get(name, {}), **RECOMPUTED.get(name, {}), **shared},
        )
        for name, packing in [*CASES, *((name, "best_fit") for name in RECOMPUTED)]
    ]
    jobs += [
        (str(folder / "train" / name), "train", packing, {**keys, **shared}) for name, (packing, keys) in RUNS.items()
    ]
    jobs.append((str(folder / "blame"), "blame", "none", shared))
    jobs.append(
        (str(folder / "sparse"), "sparse gradients", "sequential", {**SPARSE, "overlap_grad_reduce": True, **shared})
    )
    run_processes(2, jobs)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[Method, Path]:
    """Folders of what a single process trained."""
    folders = {packing: tmp_path_factory.mktemp("alone") for packing in PACKINGS}
    for packing, folder in folders.items():
        context_runs.train(folder, packing, {})
    return folders


def read(folder: Path, name: str) -> list[Any]:
    lines = (folder / "primus" / "user" / "tiny" / "logs" / "metrics.jsonl").read_text().splitlines()
    return [line[name] for line in map(json.loads, lines) if name in line]


def relative_error(found: Arrays, expected: Arrays) -> float:
    assert set(found) == set(expected)
    error = sum(((found[name] - expected[name]).astype(np.float64) ** 2).sum() for name in expected)
    scale = sum((array.astype(np.float64) ** 2).sum() for array in expected.values())
    return float((error / scale) ** 0.5)


def logits_of_conversations(folder: Path, keys: Keys) -> list[torch.Tensor]:
    """The logits of each conversation alone, in one process, without padding."""
    data = context_runs.uneven_data("none")
    found = context_runs.logits(folder, "none", keys)
    return [torch.from_numpy(found[f"logits {index}"][: data.num_positions_N[index]]) for index in range(len(data))]


def assert_logits_are_those_alone(
    parts: Sequence[Arrays], alone: Sequence[torch.Tensor], data: SFTDataset
) -> list[list[int]]:
    """Compare the logits of ranks with those of conversations; how many of each conversation's each rank has."""
    shares = []
    for index in range(len(data)):
        positions = np.concatenate([part[f"positions {index}"] for part in parts])
        assert sorted(positions) == list(range(len(positions)))
        logits_SV = np.concatenate([part[f"logits {index}"] for part in parts])[np.argsort(positions)]
        first = 0
        for conversation in [index] if data.plan is None else data.plan.pack(index).tolist():
            expected = alone[conversation]
            places = np.arange(first, first + len(expected))
            torch.testing.assert_close(torch.from_numpy(logits_SV[places]), expected, rtol=0, atol=2e-5)
            shares.append([int(np.isin(places, part[f"positions {index}"]).sum()) for part in parts])
            first += len(expected)
    return shares


@pytest.mark.parametrize("model", MODELS)
def test_the_logits_of_packs_are_those_of_each_conversation_alone(tmp_path: Path, model: str) -> None:
    data = context_runs.uneven_data("best_fit")
    packed = context_runs.logits(tmp_path, "best_fit", MODELS[model])
    shares = assert_logits_are_those_alone([packed], logits_of_conversations(tmp_path, MODELS[model]), data)
    assert len(shares) > 2 * len(data)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "packing"), CASES)
def test_the_logits_of_two_ranks_are_those_of_each_conversation_alone(
    two_ranks: Path, tmp_path: Path, model: str, packing: Method
) -> None:
    parts = [np.load(two_ranks / "logits" / model / packing / f"{rank}.npz") for rank in range(2)]
    alone = logits_of_conversations(tmp_path, MODELS[model])
    shares = assert_logits_are_those_alone(parts, alone, context_runs.uneven_data(packing))
    # Many conversations lie on both ranks.
    assert sum(min(share) > 0 for share in shares) > 10


@pytest.mark.slow
@pytest.mark.parametrize(("model", "packing"), [*CASES, *((name, "best_fit") for name in RECOMPUTED)])
def test_the_gradients_of_two_ranks_are_those_of_a_single_process(
    two_ranks: Path, tmp_path: Path, model: str, packing: Method
) -> None:
    expected = context_runs.gradients(tmp_path, packing, MODELS.get(model, {}))
    for rank in range(2):
        found = np.load(two_ranks / "gradients" / model / packing / f"{rank}.npz")
        assert relative_error(found, expected) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_train_what_a_single_process_trains(two_ranks: Path, alone: dict[Method, Path], name: str) -> None:
    packing, _ = RUNS[name]
    assert_same_training(two_ranks / "train" / name, alone[packing])


def assert_same_training(found: Path, expected: Path) -> None:
    for name, tolerance in TOLERANCES.items():
        numbers = read(expected, name)
        assert len(numbers) == (3 if name == "validation_loss" else 30)
        assert read(found, name) == pytest.approx(numbers, abs=tolerance, rel=0)
    for name in ("batch_hash", "supervised_tokens", "tokens", "learning_rate", "consumed_samples"):
        assert read(found, name) == read(expected, name)
    for name in ("loss_by_turn", "loss_by_source", "validation_loss_by_role"):
        groups = [group for line in read(expected, name) for group in line.items()]
        found_groups = [group for line in read(found, name) for group in line.items()]
        assert [name for name, _ in found_groups] == [name for name, _ in groups]
        for (_, ours), (_, theirs) in zip(found_groups, groups, strict=True):
            assert ours == pytest.approx(theirs, abs=5e-6, rel=0)


@pytest.mark.slow
def test_a_rank_that_has_only_padding_takes_part_in_the_gradients(two_ranks: Path, tmp_path: Path) -> None:
    data = context_runs.sparse_data("sequential")
    assert sorted(data.num_positions_N.tolist()) == [2, 2, 19, 19, 19, 19]
    expected = context_runs.sparse_gradients(tmp_path, "sequential", SPARSE)
    for rank in range(2):
        assert relative_error(np.load(two_ranks / "sparse" / f"{rank}.npz"), expected) < 1e-6


@pytest.mark.slow
def test_two_ranks_name_the_sequence_whose_loss_is_no_number(two_ranks: Path) -> None:
    for rank in range(2):
        said = (two_ranks / "blame" / f"{rank}.txt").read_text()
        assert re.match(r"step 5: the loss is nan because of 1 of .*; look at tiny.jsonl:4 \(batch .*\)$", said)


@pytest.fixture(scope="module")
def four_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of what four processes trained."""
    folder = tmp_path_factory.mktemp("four_processes")
    run_processes(4, [(str(folder / name), "train", packing, keys) for name, (packing, keys) in OF_FOUR.items()])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_FOUR)
def test_four_processes_train_what_a_single_process_trains(
    four_processes: Path, alone: dict[Method, Path], name: str
) -> None:
    packing, _ = OF_FOUR[name]
    assert_same_training(four_processes / name, alone[packing])


def micro_batch(packing: Method, indices: Sequence[int]) -> MicroBatch:
    data = context_runs.uneven_data(packing)
    places_B = np.arange(len(indices))
    return read_micro_batch(data, np.array(indices), pad_to_multiple_of=24, places_B=places_B)


@given(
    packing=st.sampled_from(PACKINGS),
    num_ranks=st.sampled_from((1, 2, 3, 4)),
    indices=st.lists(st.integers(0, 9), min_size=1, max_size=3),
)
def test_the_parts_of_a_micro_batch_have_each_position_and_target_once(
    packing: Method, num_ranks: int, indices: list[int]
) -> None:
    whole = micro_batch(packing, indices)
    num_sequences, width = whole.input_ids_BS.shape
    parts = [part_of_context_rank(whole, ContextRank(rank=rank, size=num_ranks)) for rank in range(num_ranks)]
    targets, ids_BW = [], torch.full_like(whole.input_ids_BS, -1)
    for rank, part in enumerate(parts):
        positions_S = ContextRank(rank=rank, size=num_ranks).positions(width)
        ids_BW[:, positions_S] = part.input_ids_BS
        assert torch.equal(part.position_ids_BS, whole.position_ids_BS[:, positions_S])
        assert part.segments_C2 is whole.segments_C2
        positions_N, rows_N = np.divmod(part.target_positions_N.numpy(), num_sequences)
        columns = (rows_N, positions_S[positions_N], part.labels_N, part.weights_N, part.groups_N)
        targets += list(zip(*(np.asarray(column).tolist() for column in columns), strict=True))
    positions_N, rows_N = np.divmod(whole.target_positions_N.numpy(), num_sequences)
    columns = (rows_N, positions_N, whole.labels_N, whole.weights_N, whole.groups_N)
    assert sorted(targets) == sorted(zip(*(np.asarray(column).tolist() for column in columns), strict=True))
    assert torch.equal(ids_BW, whole.input_ids_BS)
    assert sum(part.num_units for part in parts) == whole.num_units
    assert {part.content_hash for part in parts} == {whole.content_hash} != {0}


def test_a_rank_has_no_target_where_another_has_some() -> None:
    # So the gradients above are those of such micro-batches too.
    data = context_runs.uneven_data("none")
    context = ContextRank(rank=1, size=2)
    parts = [
        read_micro_batch(data, np.array([index]), pad_to_multiple_of=8, context=context) for index in range(len(data))
    ]
    num_targets = [part.labels_N.numel() for part in parts]
    assert num_targets.count(0) > 10
    assert sum(num_targets) > 50
