# SPDX-License-Identifier: Apache-2.0
"""Every file of examples/configs/ loads, from anywhere, and those for large models fit the GPUs that they name."""

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from primus.cli import main
from primus.config import load_config
from primus.config.places import EXAMPLE_CONFIGS, EXAMPLES
from primus.errors import ConfigError

CONFIGS = sorted(path.name for path in EXAMPLE_CONFIGS.iterdir())
LARGE = [name for name in CONFIGS if not name.startswith("tiny")]
DATA = ["sft_dataset_name=train.jsonl", "tokenizer_model=tokenizer"]
TOKENIZER = EXAMPLES / "data" / "demo-tokenizer"
MODELS = ("llama3_8B", "llama3_70B", "qwen2.5_7B", "qwen2.5_32B")
MACHINES = ("H100", "H200", "MI300X", "MI355X")


def named_gpus(name: str) -> Iterator[tuple[int, str, int]]:
    """The machines that the head of a file names: how many GPUs, their kind, and the memory that each will need."""
    text = (EXAMPLE_CONFIGS / name).read_text(encoding="utf-8")
    for number, kinds, memory in re.findall(r"^# GPUs: (\d+) x (.+?), (\d+) GiB", text, re.MULTILINE):
        for kind in re.split(r", | or ", kinds):
            yield int(number), kind, int(memory)


RUNS = [(name, *machine) for name in LARGE for machine in named_gpus(name)]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("PRIMUS_", "SFT_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations that fill their sequences with targets nearly to the last token, and what is prepared of them."""
    folder = tmp_path_factory.mktemp("long_answers")
    rng = random.Random(1)
    words = ["the", "quick", "duck", "packed", "nuts", "and", "tea", "for", "a", "trip", "to", "Lima"]
    with (folder / "long.jsonl").open("w") as file:
        for number in range(80):
            answer = " ".join(rng.choices(words, k=rng.randint(300, 1500)))
            messages = [{"role": "user", "content": f"Go {number}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return folder


def test_there_is_a_file_for_every_model_way_and_machine() -> None:
    kinds = {(name.split("-")[0], name.split("-")[2].removesuffix(".yaml"), kind) for name, _, kind, _ in RUNS}
    assert kinds == {(model, way, kind) for model in MODELS for way in ("sft", "lora") for kind in MACHINES}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("name", "num_gpus", "kind", "memory"), RUNS)
def test_a_large_recipe_fits_its_gpus_with_the_memory_that_it_says(
    name: str, num_gpus: int, kind: str, memory: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"tokenizer_model={TOKENIZER}", f"sft_dataset_name={folder / 'long.jsonl'}", f"workspace={folder}"]
    code = main(["train", "--config", name, "--dry-run", "--gpus", str(num_gpus), "--gpu", kind, *data])
    printed = capsys.readouterr().out
    assert code == 0
    together = re.search(r"^  together +([\d.]+)", printed, re.MULTILINE)
    assert together is not None
    assert float(together[1]) == pytest.approx(memory, abs=1)
    assert re.search(r"^  fits +\d+%", printed, re.MULTILINE), printed
    if "lora" in name:
        assert "adapters of rank 32" in printed


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


SFT = [name for name in LARGE if "sft" in name]


@pytest.mark.parametrize("name", SFT)
def test_a_large_recipe_says_what_it_needs(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    dataset, tokenizer = caught.value.problems
    assert "sft_dataset_name: the environment variable SFT_DATASET is not set; set it" in dataset
    assert "tokenizer_model: is missing; give a folder" in tokenizer


@pytest.mark.parametrize("name", SFT)
def test_a_large_recipe_takes_its_data_from_variables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {"SFT_DATASET": "[a.jsonl, b.jsonl]", "SFT_TOKENIZER": "t", "SFT_LOAD": "weights"}.items():
        monkeypatch.setenv(variable, value)
    trainer = load_config(name).trainer
    assert trainer.sft_dataset_name == ("a.jsonl", "b.jsonl")
    assert trainer.load == Path("weights")
    assert trainer.finetune
    assert trainer.bf16


@pytest.mark.parametrize("name", ["llama3_8B-multiturn-sft.yaml", "qwen2.5_7B-multiturn-sft.yaml"])
def test_a_large_recipe_shrinks_on_the_command_line(name: str) -> None:
    small = ["num_layers=2", "hidden_size=64", "ffn_hidden_size=128", "num_attention_heads=4", "num_query_groups=2"]
    steps = ["seq_length=256", "global_batch_size=2", "sft_num_epochs=null", "train_iters=5", "lr_warmup_iters=1"]
    trainer = load_config(name, overrides=[*DATA, *small, *steps]).trainer
    assert (trainer.num_layers, trainer.train_iters, trainer.load) == (2, 5, None)
