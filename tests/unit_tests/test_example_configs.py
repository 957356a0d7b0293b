# SPDX-License-Identifier: Apache-2.0
"""Every file of examples/configs/ loads, from anywhere."""

import os
from pathlib import Path

import pytest

from primus.config import TrainerConfig, load_config
from primus.config.places import EXAMPLE_CONFIGS, EXAMPLES
from primus.errors import ConfigError

CONFIGS = sorted(path.name for path in EXAMPLE_CONFIGS.iterdir())
LARGE = ["llama3_8B-multiturn-sft.yaml", "qwen2.5_7B-multiturn-sft.yaml"]
DATA = ["sft_dataset_name=train.jsonl", "tokenizer_model=tokenizer"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("PRIMUS_", "SFT_")):
            monkeypatch.delenv(name)


def test_the_examples_are_those_of_the_documents() -> None:
    assert sorted([*LARGE, "tiny-multiturn-sft.yaml"]) == CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_an_example_loads_by_its_bare_name_and_trains_the_end_of_every_turn(name: str) -> None:
    config = load_config(name, overrides=[] if name.startswith("tiny") else DATA)
    assert f"{config.exp_name}.yaml" == name
    assert config.trainer.sft_supervise_end_of_turn


def test_the_demo_finds_its_data_from_an_empty_folder() -> None:
    trainer = load_config("tiny-multiturn-sft.yaml").trainer
    files = [trainer.tokenizer_model, trainer.sft_dataset_name, trainer.sft_validation_dataset_name]
    assert [Path(str(file)).parent for file in files] == [EXAMPLES / "data"] * 3
    assert all(Path(str(file)).exists() for file in files)


@pytest.mark.parametrize("name", LARGE)
def test_a_large_recipe_says_which_variables_it_needs(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    dataset, tokenizer = caught.value.problems
    assert "sft_dataset_name: the environment variable SFT_DATASET is not set; set it" in dataset
    assert "tokenizer_model: the environment variable SFT_TOKENIZER is not set; set it" in tokenizer


@pytest.mark.parametrize("name", LARGE)
def test_a_large_recipe_takes_its_data_from_variables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {"SFT_DATASET": "[a.jsonl, b.jsonl]", "SFT_TOKENIZER": "t", "SFT_LOAD": "weights"}.items():
        monkeypatch.setenv(variable, value)
    trainer = load_config(name).trainer
    assert trainer.sft_dataset_name == ("a.jsonl", "b.jsonl")
    assert trainer.load == Path("weights")
    assert trainer.finetune


@pytest.mark.parametrize("name", LARGE)
def test_a_large_recipe_shrinks_on_the_command_line(name: str) -> None:
    small = ["num_layers=2", "hidden_size=64", "ffn_hidden_size=128", "num_attention_heads=4", "num_query_groups=2"]
    steps = ["seq_length=256", "global_batch_size=2", "sft_num_epochs=null", "train_iters=5", "lr_warmup_iters=1"]
    trainer = load_config(name, overrides=[*DATA, *small, *steps]).trainer
    assert (trainer.num_layers, trainer.train_iters, trainer.load) == (2, 5, None)


@pytest.mark.parametrize("name", LARGE)
def test_the_state_of_a_large_recipe_fits_its_gpus(name: str) -> None:
    trainer = load_config(name, overrides=DATA).trainer
    assert trainer.bf16
    assert trainer.global_batch_size % (8 * trainer.micro_batch_size) == 0
    # bfloat16 weights and float32 gradients on every GPU, float32 weights and two moments shared out over 8.
    state_gb = _num_parameters(trainer) * (2 + 4 + 12 / 8) / 1e9
    assert state_gb < 141 / 2


def _num_parameters(model: TrainerConfig) -> int:
    assert model.vocab_size is not None
    return 2 * model.vocab_size * model.hidden_size + 4 * model.num_layers * model.hidden_size * model.ffn_hidden_size
