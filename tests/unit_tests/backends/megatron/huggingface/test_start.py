# SPDX-License-Identifier: Apache-2.0
"""A run starts from a Hugging Face folder, in any layout, with exactly its weights."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from primus.backends.megatron.checkpoint.folder import read_run
from primus.backends.megatron.huggingface.export import export_hf
from primus.backends.megatron.huggingface.import_hf import import_hf
from primus.config.hugging_face import model_keys_of, read_hugging_face_config
from primus.errors import CheckpointError
from tests.unit_tests.backends.megatron.huggingface.pretrained_models import DEMO_TOKENIZER, VOCAB_SIZE, write_model
from tests.unit_tests.backends.megatron.huggingface.test_import_hf import same_bits, weights_in
from tests.unit_tests.backends.megatron.test_data_parallel import run_two_processes

LAYOUTS: dict[str, dict[str, object]] = {
    "tensor": {"tensor_model_parallel_size": 2},
    "sequence": {"tensor_model_parallel_size": 2, "sequence_parallel": True, "use_distributed_optimizer": True},
    "pipeline": {"pipeline_model_parallel_size": 2},
    "virtual": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    "data": {"use_distributed_optimizer": True},
}
# With a rate of 0 a run ends with the weights that it began with.
KEYS: dict[str, object] = {"lr": 0.0, "train_iters": 1, "lr_warmup_iters": 0, "make_vocab_size_divisible_by": 128}


def keys_of(folder: Path) -> dict[str, Any]:
    return dict(model_keys_of(read_hugging_face_config(folder), origin=str(folder)))


def written_by(run: Path) -> Path:
    return run / "primus" / "user" / "tiny" / "checkpoints"


def same_weights(checkpoints: Path, source: Path) -> bool:
    output = checkpoints.parent / "exported"
    export_hf(checkpoints, output=output, tokenizer=str(DEMO_TOKENIZER))
    kinds = {read_hugging_face_config(folder)["model_type"] for folder in (source, output)}
    assert len(kinds) == 1
    return same_bits(weights_in(source), weights_in(output))


@pytest.mark.parametrize("distributed", [False, True])
def test_a_run_starts_from_the_folder_or_from_its_checkpoint(
    tiny: ModuleType, tmp_path: Path, distributed: bool
) -> None:
    write_model(tmp_path / "hf", "qwen 3 with biases")
    import_hf(tmp_path / "hf", output=tmp_path / "imported")
    keys = {**keys_of(tmp_path / "hf"), **KEYS, "use_distributed_optimizer": distributed}
    starts: dict[str, dict[str, object]] = {
        "folder": {"hf_path": str(tmp_path / "hf")},
        # The rows of the embedding are those of the checkpoint where the run does not say how many.
        "checkpoint": {"load": str(tmp_path / "imported"), "finetune": True, "vocab_size": None},
    }
    for name, start in starts.items():
        tiny.run_tiny(tiny.tiny_config(tmp_path / name, **{**keys, **start}))
        assert same_weights(written_by(tmp_path / name), tmp_path / "hf"), name
        saved = read_run(written_by(tmp_path / name) / "iter_0000001")
        assert (saved.vocab_size, saved.hf_path, saved.model_type) == (VOCAB_SIZE, str(tmp_path / "hf"), "qwen3")
    first, second = (
        json.loads((tmp_path / name / "primus/user/tiny/logs/metrics.jsonl").read_text().splitlines()[0])["lm_loss"]
        for name in starts
    )
    assert first == second


def test_weights_that_do_not_fit_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    write_model(tmp_path / "hf", "llama 3")
    keys = {**keys_of(tmp_path / "hf"), **KEYS, "hf_path": str(tmp_path / "hf"), "ffn_hidden_size": 96}
    with pytest.raises(
        CheckpointError, match=r"gate_proj.weight has shape \(80, 32\), and config.json means \(96, 32\)"
    ):
        tiny.run_tiny(tiny.tiny_config(tmp_path / "run", **keys))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied and an untied model of four layers, each as a folder and as a checkpoint, and runs of two processes."""
    folder = tmp_path_factory.mktemp("start")
    jobs = []
    for name in ("qwen 2.5, tied", "mistral"):
        write_model(folder / name, name, num_hidden_layers=4)
        import_hf(folder / name, output=folder / f"{name} imported")
        keys = {**keys_of(folder / name), **KEYS}
        for layout, layout_keys in LAYOUTS.items():
            start: dict[str, object] = {"hf_path": str(folder / name)}
            jobs.append((str(folder / f"{name} {layout}"), "train", {**keys, **layout_keys, **start}))
        start = {"load": str(folder / f"{name} imported"), "finetune": True}
        jobs.append((str(folder / f"{name} checkpoint"), "train", {**keys, **LAYOUTS["sequence"], **start}))
    run_two_processes(jobs)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("layout", [*LAYOUTS, "checkpoint"])
@pytest.mark.parametrize("name", ["qwen 2.5, tied", "mistral"])
def test_each_layout_has_exactly_the_weights_of_the_folder(sources: Path, name: str, layout: str) -> None:
    assert same_weights(written_by(sources / f"{name} {layout}"), sources / name)
