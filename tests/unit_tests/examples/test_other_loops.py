# SPDX-License-Identifier: Apache-2.0
"""The examples that train in other loops than this project's: the same losses from the same weights."""

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from primus.backends.megatron.core.datasets.megatron_samples import MegatronSamples, megatron_samples
    from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
    from primus.backends.megatron.distributed import this_process
    from primus.backends.megatron.trainer import TokenizerFacts, train_on
from primus.config.hugging_face import model_keys_of, read_hugging_face_config
from primus.config.schema import TrainConfig
from primus.errors import ConfigError
from primus.sft.dataset import TokenizedDataset
from primus.sft.packing import Method

CHECKOUT = Path(__file__).parents[3]
EXAMPLES = CHECKOUT / "examples"
STAND_IN = Path(__file__).with_name("megatron_lm")
LENGTH, NUM_CONVERSATIONS, BATCH, STEPS = 160, 24, 8, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama from random weights, with the tokenizer of the demo."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LENGTH, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in (EXAMPLES / "data" / "demo-tokenizer").iterdir():
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The first of the demo's conversations: as many as a batch has, and as many as some steps read."""
    folder = tmp_path_factory.mktemp("data")
    with gzip.open(EXAMPLES / "data" / "demo-train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = list(islice(file, NUM_CONVERSATIONS))
    files = {}
    for num in (BATCH, NUM_CONVERSATIONS):
        files[num] = folder / f"{num}.jsonl"
        files[num].write_text("".join(rows[:num]), encoding="utf-8")
    return files


def dataset(model: Path, file: Path, packing: Method = "none", **options: Any) -> SFTDataset:
    return SFTDataset(file, model, LENGTH, formatter="template", supervise_end_of_turn=True, packing=packing, **options)


def losses_of_primus(model: Path, file: Path, folder: Path, *, steps: int) -> list[float]:
    trainer = {
        **model_keys_of(read_hugging_face_config(model), origin="here"),
        "hf_path": str(model),
        "seq_length": LENGTH,
        "micro_batch_size": BATCH // 2,
        "global_batch_size": BATCH,
        "train_iters": steps,
        "lr": 1e-3,
        "min_lr": 1e-3,
        "lr_warmup_iters": 0,
        "lr_decay_style": "constant",
        "weight_decay": 0.01,
        "adam_beta2": 0.999,
        "bf16": False,
        "tensorboard": False,
    }
    result = train_on(
        TrainConfig(exp_name="here", workspace=folder, trainer=trainer),
        process=this_process(),
        train=dataset(model, file),
        validation=None,
        tokenizer=TokenizerFacts(name=str(model), vocab_size=1024, adds_bos=False),
    )
    lines = map(json.loads, result.metrics_path.read_text().splitlines())
    return [line["lm_loss"] for line in lines if "lm_loss" in line]


def run_example(name: str, *words: object, folder: Path, path: Path | None = None) -> dict[str, Any]:
    """Run an example as a user does, in a process of its own; return what it says at the end."""
    code = (
        "import json, runpy, sys; sys.argv = sys.argv[1:]; found = runpy.run_path(sys.argv[0], run_name='__main__');"
        "seen = sys.modules.get('megatron.training'); found = found if seen is None else seen.SEEN;"
        "print(json.dumps({name: found[name] for name in ('losses',)}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(EXAMPLES / name), *map(str, words)],
        cwd=folder if path is None else path, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_loop_of_pytorch_begins_at_the_loss_of_primus(
    model: Path, conversations: dict[int, Path], tmp_path: Path
) -> None:
    (expected,) = losses_of_primus(model, conversations[BATCH], tmp_path, steps=1)
    losses = run_example("pytorch_dataloader.py", model, conversations[BATCH], 4, folder=tmp_path)["losses"]
    assert losses[0] == pytest.approx(expected, rel=1e-6)
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_hugging_faces_trainer_begins_at_the_loss_of_primus(
    model: Path, conversations: dict[int, Path], tmp_path: Path
) -> None:
    """So labels are shifted once, and the loss is divided by the number of targets."""
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("needs accelerate")
    (expected,) = losses_of_primus(model, conversations[BATCH], tmp_path, steps=1)
    losses = run_example("hf_trainer.py", model, conversations[BATCH], 4, folder=tmp_path)["losses"]
    assert losses[0] == pytest.approx(expected, rel=1e-6)
    assert losses[-1] < losses[0]


def pretrain(model: Path, file: Path, folder: Path, *more: str) -> dict[str, Any]:
    return run_example(
        "megatron_lm.py",
        "--train-data-path", file, "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", model,
        "--load", model, "--seq-length", LENGTH, "--micro-batch-size", BATCH // 2, "--global-batch-size", BATCH,
        "--train-iters", STEPS + 1, "--eval-interval", 10, "--eval-iters", 0, "--calculate-per-token-loss", *more,
        folder=folder, path=STAND_IN,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_megatron_lm_trains_the_steps_of_primus(model: Path, conversations: dict[int, Path], tmp_path: Path) -> None:
    """Over the end of an epoch, with its own model, and with the mask that it is given."""
    expected = losses_of_primus(model, conversations[NUM_CONVERSATIONS], tmp_path, steps=STEPS + 1)
    found = pretrain(model, conversations[NUM_CONVERSATIONS], tmp_path)["losses"]
    assert found == pytest.approx(expected, rel=2e-6)


def test_samples_are_the_sequences_in_the_order_of_training(model: Path, conversations: dict[int, Path]) -> None:
    data = dataset(model, conversations[NUM_CONVERSATIONS])
    samples = MegatronSamples(data, 40)
    assert len(samples) == 40
    order = data.order(global_batch_size=BATCH)
    expected = np.concatenate([order.global_batch(step) for step in range(5)])
    for index in (0, 7, 8, 23, 24, 39):
        sample, sequence = samples[index], data[expected[index]]
        assert torch.equal(sample["tokens"], sequence["input_ids"])
        for name in ("labels", "loss_mask", "position_ids"):
            assert torch.equal(sample[name], sequence[name])
        assert "attention_mask" not in sample
    with pytest.raises(IndexError, match="sample 40 of 40"):
        samples[40]


def test_a_sample_has_a_mask_if_it_is_asked_for(model: Path, conversations: dict[int, Path]) -> None:
    samples = MegatronSamples(dataset(model, conversations[BATCH]), 1, create_attention_mask=True)
    mask = samples[0]["attention_mask"]
    assert mask.shape == (1, LENGTH, LENGTH)
    assert torch.equal(mask[0], torch.ones(LENGTH, LENGTH).triu(1).bool())


def test_a_pack_names_its_conversations_and_its_padding(model: Path, conversations: dict[int, Path]) -> None:
    """As Megatron-LM's own data set of conversations does; a kernel has to write every position."""
    data = dataset(model, conversations[NUM_CONVERSATIONS], packing="best_fit")
    order = data.order(global_batch_size=len(data)).global_batch(0)
    samples = MegatronSamples(data, len(data))
    for index, sequence in enumerate(order.tolist()):
        bounds, bounds_in_data = samples[index]["cu_seqlens"], data[sequence]["cu_seqlens"]
        assert bounds.dtype is torch.int32
        assert bounds[-1] == LENGTH
        assert bounds.tolist() == sorted({*bounds_in_data.tolist(), LENGTH})
        assert samples[index]["max_seqlen"] == bounds.diff().max()
    with pytest.raises(ConfigError, match="create_attention_mask: packed conversations are kept apart by cu_seqlens"):
        MegatronSamples(data, 1, create_attention_mask=True)


def test_what_megatron_lm_would_divide_otherwise_is_refused(model: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "weight": 0.5}]
    file = tmp_path / "weights.jsonl"
    file.write_text(json.dumps({"messages": turns}), encoding="utf-8")
    data = dataset(model, file)
    assert isinstance(data.data, TokenizedDataset)
    with pytest.raises(ConfigError, match="loss_mask: the targets have weights, and Megatron-LM's loss function"):
        MegatronSamples(data, 1)


def test_a_split_without_samples_is_none(model: Path, conversations: dict[int, Path]) -> None:
    data = dataset(model, conversations[BATCH])
    train, valid, test = megatron_samples((data, data, None), (5, 0, 3))
    assert train is not None
    assert len(train) == 5
    assert valid is None
    assert test is None
