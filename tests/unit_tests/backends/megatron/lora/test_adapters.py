# SPDX-License-Identifier: Apache-2.0
"""Adapters are trained, the model under them stands still, and no layout makes a difference."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from primus.backends.megatron.checkpoint.folder import read_run
from primus.backends.megatron.huggingface.stored_weights import StoredWeights
from primus.backends.megatron.huggingface.weights import MODEL_PREFIXES
from primus.backends.megatron.lora.adapter import MARK
from primus.errors import CheckpointError
from tests.unit_tests.backends.megatron.test_data_parallel import run_two_processes

ALL = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
LORA: dict[str, object] = {"lora": {"enabled": True, "dim": 4, "alpha": 8, "target_modules": ALL}}
LAYOUTS: dict[str, dict[str, object]] = {
    "tensor": {"tensor_model_parallel_size": 2},
    "sequence": {"tensor_model_parallel_size": 2, "sequence_parallel": True, "use_distributed_optimizer": True},
    "pipeline": {"pipeline_model_parallel_size": 2, "recompute_granularity": "full"},
    "context": {"context_parallel_size": 2},
    "data": {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
}
FROM_ONE = ("tensor", "pipeline")
SHARED: dict[str, object] = {
    **LORA,
    "untie_embeddings_and_output_weights": False,
    "save_interval": 4,
    "init_method_std": 0.1,
    "lr": 0.03,
}


def checkpoints(run: Path) -> Path:
    return run / "primus" / "user" / "tiny" / "checkpoints"


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    stored = StoredWeights(checkpoint, prefixes=MODEL_PREFIXES)
    return {part.name: stored.read(part) for part in stored.parts()}


def metrics(run: Path, name: str) -> list[float]:
    lines = map(json.loads, (run / "primus/user/tiny/logs/metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


@pytest.fixture(scope="module")
def one(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, with checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("lora") / "one"
    tiny.run_tiny(tiny.tiny_config(folder, **SHARED))
    return folder


@pytest.fixture(scope="module")
def fresh(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights that the run without adapters begins with."""
    folder = tmp_path_factory.mktemp("fresh")
    keys = {**SHARED, "lora": {}, "lr": 0.0, "train_iters": 1, "lr_warmup_iters": 0}
    return weights_of(tiny.run_tiny(tiny.tiny_config(folder, **keys)).checkpoint)


def test_adapters_learn_and_the_model_stands_still_bit_for_bit(one: Path, fresh: dict[str, Tensor]) -> None:
    losses = metrics(one, "lm_loss")
    assert sum(losses[-2:]) < sum(losses[:2]) - 1
    trained = weights_of(checkpoints(one) / "iter_0000008")
    adapters = {name for name in trained if MARK in name}
    assert trained.keys() - adapters == fresh.keys()
    assert all(torch.equal(trained[name].view(torch.uint8), fresh[name].view(torch.uint8)) for name in fresh)
    assert len(adapters) == 2 * 4 * 2
    assert all(trained[name].abs().sum() > 0 for name in adapters)


def test_training_begins_with_the_model_as_it_is(tiny: ModuleType, one: Path, tmp_path: Path) -> None:
    tiny.run_tiny(tiny.tiny_config(tmp_path, **{**SHARED, "lora": {}, "train_iters": 1, "lr_warmup_iters": 0}))
    assert metrics(tmp_path, "lm_loss")[0] == metrics(one, "lm_loss")[0]


def test_a_run_goes_on_exactly(tiny: ModuleType, one: Path, tmp_path: Path) -> None:
    tiny.run_tiny(tiny.tiny_config(tmp_path, **SHARED, load=checkpoints(one) / "iter_0000004"))
    assert metrics(tmp_path, "lm_loss") == metrics(one, "lm_loss")[4:]
    first, second = (weights_of(checkpoints(run) / "iter_0000008") for run in (one, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("position", ["pre", "post"])
def test_a_run_that_drops_out_inside_adapters_goes_on_exactly(tiny: ModuleType, tmp_path: Path, position: str) -> None:
    lora = {"enabled": True, "dim": 4, "alpha": 8, "dropout": 0.5, "dropout_position": position}
    keys: dict[str, Any] = {**SHARED, "lora": lora, "train_iters": 4, "save_interval": 2}
    tiny.run_tiny(tiny.tiny_config(tmp_path / "whole", **keys))
    tiny.run_tiny(tiny.tiny_config(tmp_path / "half", **keys, load=checkpoints(tmp_path / "whole") / "iter_0000002"))
    assert metrics(tmp_path / "half", "lm_loss") == metrics(tmp_path / "whole", "lm_loss")[2:]


def test_only_the_layers_that_are_named_have_adapters(tiny: ModuleType, tmp_path: Path) -> None:
    lora = {"enabled": True, "dim": 2, "target_modules": ["linear_proj"], "dropout": 0.5, "dropout_position": "post"}
    result = tiny.run_tiny(tiny.tiny_config(tmp_path, lora=lora, train_iters=3))
    shapes = {name: tuple(weight.shape) for name, weight in weights_of(result.checkpoint).items() if MARK in name}
    assert shapes == {
        f"decoder.layers.{layer}.self_attention.linear_proj.adapter.lora_{part}": shape
        for layer in range(2)
        for part, shape in (("a", (2, 32)), ("b", (32, 2)))
    }
    assert read_run(result.checkpoint).lora is not None


def test_adapters_begin_on_weights_without_any(tiny: ModuleType, tmp_path: Path) -> None:
    whole = tiny.run_tiny(tiny.tiny_config(tmp_path / "whole", train_iters=3))
    keys: dict[str, Any] = {**LORA, "load": whole.checkpoint, "lr_warmup_iters": 0}
    adapted = tiny.run_tiny(tiny.tiny_config(tmp_path / "adapted", **keys, finetune=True, train_iters=2))
    before, after = weights_of(whole.checkpoint), weights_of(adapted.checkpoint)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(CheckpointError, match=r"was saved with lora.enabled False, this run has True"):
        tiny.run_tiny(tiny.tiny_config(tmp_path / "continued", **keys))
    with pytest.raises(CheckpointError, match=r"was saved with lora.enabled True, this run has false \(export-hf"):
        tiny.run_tiny(tiny.tiny_config(tmp_path / "merged", load=adapted.checkpoint, finetune=True))
    other = {"lora": {"enabled": True, "dim": 8, "alpha": 8}, "load": adapted.checkpoint, "finetune": True}
    with pytest.raises(CheckpointError, match=r"was saved with lora.dim 4, this run has 8"):
        tiny.run_tiny(tiny.tiny_config(tmp_path / "other", **other))


@pytest.fixture(scope="module")
def layouts(one: Path) -> Path:
    """Runs of two processes, from the same seed, and from the one process's step 4."""
    jobs = [(str(one.parent / name), "train", {**SHARED, **keys}) for name, keys in LAYOUTS.items()]
    half = {"load": str(checkpoints(one) / "iter_0000004")}
    jobs += [(str(one.parent / f"{name} from 4"), "train", {**SHARED, **LAYOUTS[name], **half}) for name in FROM_ONE]
    run_two_processes(jobs)
    return one.parent


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("number", ["lm_loss", "grad_norm"])
def test_each_layout_trains_what_one_process_trains(layouts: Path, name: str, number: str) -> None:
    assert metrics(layouts / name, number) == pytest.approx(metrics(layouts / "one", number), abs=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_saves_the_same_adapters_over_the_same_model(layouts: Path, name: str) -> None:
    expected = weights_of(checkpoints(layouts / "one") / "iter_0000008")
    found = weights_of(checkpoints(layouts / name) / "iter_0000008")
    assert found.keys() == expected.keys()
    for weight in expected:
        num_rows = min(len(found[weight]), len(expected[weight]))  # without the padding of the vocabulary
        if MARK in weight:
            torch.testing.assert_close(found[weight], expected[weight], atol=2e-5, rtol=0)
        else:
            assert torch.equal(found[weight][:num_rows], expected[weight][:num_rows]), weight


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_ONE)
def test_adapters_are_loaded_at_another_layout(layouts: Path, name: str) -> None:
    expected = metrics(layouts / "one", "lm_loss")[4:]
    assert metrics(layouts / f"{name} from 4", "lm_loss") == pytest.approx(expected, abs=2e-6)


# What is dropped is on every tensor-parallel rank as a whole: the input of the first kind, the output of the second.
DROPPED_ALIKE: dict[str, dict[str, object]] = {
    "before": {"dropout_position": "pre", "target_modules": ["linear_qkv", "linear_fc1"]},
    "behind": {"dropout_position": "post", "target_modules": ["linear_proj", "linear_fc2"]},
}


@pytest.fixture(scope="module")
def dropping(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process and of two tensor-parallel ones that drop out inside adapters, or train in bfloat16."""
    folder = tmp_path_factory.mktemp("dropping")
    lora = {"enabled": True, "dim": 4, "alpha": 8, "dropout": 0.5}
    keys: dict[str, dict[str, object]] = {
        name: {**SHARED, "lora": {**lora, **where}} for name, where in DROPPED_ALIKE.items()
    }
    keys["bf16"] = {**SHARED, "bf16": True}
    for name, those in keys.items():
        tiny.run_tiny(tiny.tiny_config(folder / "one" / name, **those))
    run_two_processes(
        [(str(folder / "two" / name), "train", {**those, **LAYOUTS["tensor"]}) for name, those in keys.items()]
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", DROPPED_ALIKE)
def test_tensor_parallel_ranks_drop_the_same_of_what_they_have_in_common(one: Path, dropping: Path, name: str) -> None:
    alone = metrics(dropping / "one" / name, "lm_loss")
    assert metrics(dropping / "two" / name, "lm_loss") == pytest.approx(alone, abs=2e-6)
    assert alone[1:] != pytest.approx(metrics(one, "lm_loss")[1:], abs=1e-3)


@pytest.mark.slow
def test_adapters_in_bfloat16_train_alike_on_tensor_parallel_ranks(dropping: Path) -> None:
    alone, shared = (metrics(dropping / who / "bf16", "lm_loss") for who in ("one", "two"))
    assert shared == pytest.approx(alone, rel=2e-2)
    assert sum(shared[-2:]) < sum(shared[:2]) - 1
