# SPDX-License-Identifier: Apache-2.0
"""Adapters leave as `peft` reads them, or merged, and the model says the same."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from primus.backends.megatron.checkpoint.folder import read_run
from primus.backends.megatron.distributed import joined_processes, this_process
from primus.backends.megatron.huggingface.export import export_hf
from primus.backends.megatron.model.gpt import build_model
from primus.config.schema import TrainConfig
from primus.errors import CheckpointError
from tests.unit_tests.backends.megatron.huggingface.pretrained_models import DEMO_TOKENIZER, some_tokens, write_model
from tests.unit_tests.backends.megatron.huggingface.test_start import keys_of

LORA: dict[str, Any] = {"enabled": True, "dim": 4, "alpha": 6, "dropout": 0.1}
MODELS = {"qwen 2.5": LORA, "llama 3.2, tied": {**LORA, "target_modules": ["linear_proj", "linear_fc1"]}}


def config_of(folder: Path, name: str, tiny: ModuleType) -> TrainConfig:
    keys: dict[str, Any] = {**keys_of(folder / "hf"), "lora": MODELS[name], "hf_path": str(folder / "hf"), "lr": 0.05}
    config: TrainConfig = tiny.tiny_config(folder / "run", **keys, train_iters=5, make_vocab_size_divisible_by=128)
    return config


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model (`hf`), a run with adapters on it (`run`), its exports (`merged`, `adapter`), and Megatron's logits."""
    folder = tmp_path_factory.mktemp("peft")
    write_model(folder / "hf", request.param)
    config = config_of(folder, request.param, tiny)
    result = tiny.run_tiny(config)
    export_hf(result.checkpoint, output=folder / "merged", tokenizer=str(DEMO_TOKENIZER))
    export_hf(result.checkpoint, output=folder / "adapter", tokenizer=str(DEMO_TOKENIZER), adapter_only=True)
    process = this_process()
    with joined_processes(process, config.trainer):
        facts = read_run(result.checkpoint)
        chunks = build_model(config.trainer, padded_vocab_size=facts.padded_vocab_size, device=process.device)
        model = chunks[0].module.eval()
        state = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(result.checkpoint))
        model.load_state_dict(state["model"])
        with torch.no_grad():
            torch.save(model(some_tokens(), None, None)[..., : facts.vocab_size], folder / "logits.pt")
    return folder


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        logits_BSV: Tensor = model.eval()(some_tokens()).logits
    return logits_BSV


def test_the_merged_model_says_what_the_model_with_adapters_says(trained: Path) -> None:
    expected = torch.load(trained / "logits.pt", weights_only=True)
    model, report = AutoModelForCausalLM.from_pretrained(trained / "merged", output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=0)
    untrained = logits_of(AutoModelForCausalLM.from_pretrained(trained / "hf"))
    assert (untrained - expected).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
def test_peft_loads_the_adapters_on_the_model_they_were_trained_on(trained: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.AutoPeftModelForCausalLM.from_pretrained(trained / "adapter")
    expected = torch.load(trained / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits_of(model.merge_and_unload()), expected, atol=1e-5, rtol=0)
    assert set(peft.get_peft_model_state_dict(model)) <= set(load_file(trained / "adapter/adapter_model.safetensors"))


def test_the_folder_of_the_adapters_has_their_facts_and_the_tokenizer(trained: Path) -> None:
    config = json.loads((trained / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 6, str(trained / "hf"))
    assert set(config["target_modules"]) in (
        {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        {"o_proj", "gate_proj", "up_proj"},
    )
    assert "<|im_start|>" in AutoTokenizer.from_pretrained(trained / "adapter").chat_template
    assert not (trained / "adapter/model.safetensors").exists()
    assert not (trained / "adapter/config.json").exists()


def test_only_adapters_are_merged(trained: Path) -> None:
    before, after = (load_file(trained / name / "model.safetensors") for name in ("hf", "merged"))
    targets = json.loads((trained / "adapter/adapter_config.json").read_text())["target_modules"]
    for name, weight in before.items():
        is_target = name.endswith(".weight") and name.split(".")[-2] in targets
        assert torch.equal(weight, after[name]) is not is_target, name


def base_of(run: Path, output: Path, caplog: pytest.LogCaptureFixture) -> tuple[str | None, bool]:
    """What the adapters of a run stand on, by their folder, and whether there was a warning."""
    caplog.clear()
    export_hf(run, output=output, tokenizer=str(DEMO_TOKENIZER), adapter_only=True)
    base: str | None = json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"]
    return base, "base_model_name_or_path is null in adapter_config.json" in caplog.text


def test_the_model_beneath_is_named_as_long_as_it_is_that_model(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path / "hf", "qwen 2.5")
    keys: dict[str, Any] = {**keys_of(tmp_path / "hf"), "lr": 0.05, "train_iters": 1, "lr_warmup_iters": 0}

    def train(name: str, **start: Any) -> Path:
        checkpoint: Path = tiny.run_tiny(tiny.tiny_config(tmp_path / name, **keys, **start)).checkpoint
        return checkpoint

    adapted = train("adapted", hf_path=str(tmp_path / "hf"), lora=LORA)
    assert base_of(adapted, tmp_path / "first", caplog) == (str(tmp_path / "hf"), False)
    further = train("further", load=adapted, finetune=True, lora=LORA)
    assert base_of(further, tmp_path / "second", caplog) == (str(tmp_path / "hf"), False)
    whole = train("whole", hf_path=str(tmp_path / "hf"))
    on_whole = train("on whole", load=whole, finetune=True, lora=LORA)
    assert base_of(on_whole, tmp_path / "third", caplog) == (None, True)
    assert base_of(train("last", load=on_whole, finetune=True, lora=LORA), tmp_path / "fourth", caplog) == (None, True)


def test_a_checkpoint_without_adapters_gives_none(tiny: ModuleType, tmp_path: Path) -> None:
    keys = {"train_iters": 1, "lr_warmup_iters": 0, "vocab_size": 1030}
    checkpoint = tiny.run_tiny(tiny.tiny_config(tmp_path, **keys)).checkpoint
    with pytest.raises(CheckpointError, match=r"--adapter: the checkpoint has no adapters; leave --adapter out"):
        export_hf(checkpoint, output=tmp_path / "out", tokenizer=str(DEMO_TOKENIZER), adapter_only=True)
    assert not (tmp_path / "out").exists()
