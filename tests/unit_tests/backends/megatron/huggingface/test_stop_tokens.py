# SPDX-License-Identifier: Apache-2.0
"""A pretrained model stops where it stopped, whichever tokenizer it gets and whatever becomes of its folder."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from primus.backends.megatron.checkpoint.folder import find_checkpoint, read_run
from primus.backends.megatron.huggingface.export import export_hf
from primus.backends.megatron.huggingface.import_hf import import_hf
from primus.errors import ConfigError, TokenizerError
from primus.sft.tokenizer import load_tokenizer
from tests.unit_tests.backends.megatron.huggingface.pretrained_models import DEMO_TOKENIZER, write_model
from tests.unit_tests.backends.megatron.huggingface.test_start import KEYS, keys_of


def write_with_ends(folder: Path) -> dict[str, Any]:
    """A model that stops at tokens 1 and 2, of which its tokenizer's EOS is one; gives its generation configuration."""
    write_model(folder, "qwen 2.5")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 1, "bos_token_id": None}))
    generation = {"eos_token_id": [1, 2], "pad_token_id": 0, "temperature": 0.7, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return generation


def forget(checkpoint: Path) -> None:
    """Take out of a checkpoint what it has kept of the model's generation."""
    path = checkpoint / "run.json"
    facts = json.loads(path.read_text())
    del facts["generation"]
    path.write_text(json.dumps(facts))


def test_they_do_not_depend_on_the_tokenizer_or_on_the_folder(tmp_path: Path) -> None:
    generation = write_with_ends(tmp_path / "hf")
    import_hf(tmp_path / "hf", output=tmp_path / "checkpoints", tokenizer=str(DEMO_TOKENIZER))
    shutil.rmtree(tmp_path / "hf")
    export_hf(tmp_path / "checkpoints", output=tmp_path / "back")
    assert json.loads((tmp_path / "back/generation_config.json").read_text()) == generation
    assert GenerationConfig.from_pretrained(tmp_path / "back").eos_token_id == [1, 2]
    assert json.loads((tmp_path / "back/config.json").read_text())["eos_token_id"] == 1


def test_a_checkpoint_that_has_not_kept_them_takes_them_from_the_models_folder(tmp_path: Path) -> None:
    generation = write_with_ends(tmp_path / "hf")
    checkpoint = import_hf(tmp_path / "hf", output=tmp_path / "checkpoints", tokenizer=str(DEMO_TOKENIZER))
    forget(checkpoint)
    assert read_run(checkpoint).generation is None
    export_hf(checkpoint, output=tmp_path / "back")
    assert json.loads((tmp_path / "back/generation_config.json").read_text()) == generation
    (tmp_path / "hf/generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config.json: cannot be read \("):
        export_hf(checkpoint, output=tmp_path / "again")
    shutil.rmtree(tmp_path / "hf")
    export_hf(checkpoint, output=tmp_path / "again")
    assert json.loads((tmp_path / "again/generation_config.json").read_text())["eos_token_id"] == 2


def test_a_tokenizer_file_of_any_name_becomes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = write_with_ends(tmp_path / "hf")
    shutil.copyfile(DEMO_TOKENIZER / "tokenizer.json", tmp_path / "mine.json")
    monkeypatch.chdir(tmp_path)
    import_hf(tmp_path / "hf", output=tmp_path / "checkpoints", tokenizer="mine.json")
    monkeypatch.chdir(tmp_path.parent)  # a model may be exported from another folder
    export_hf(tmp_path / "checkpoints", output=tmp_path / "back")
    AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    text = "<|im_start|>user\nHi<|im_end|>\n"
    ids = AutoTokenizer.from_pretrained(tmp_path / "back")(text)["input_ids"]
    assert ids == load_tokenizer(tmp_path / "mine.json").encode(text, markers=[(0, 12), (19, 29)]).ids_T.tolist()
    assert json.loads((tmp_path / "back/generation_config.json").read_text()) == generation


def test_a_sentencepiece_file_is_refused_with_the_way_out(tmp_path: Path, shared_dir: Path) -> None:
    write_model(tmp_path / "hf", "llama 3", vocab_size=32000)
    tokenizer = str(shared_dir / "tokenizers/llama2/tokenizer.model")
    import_hf(tmp_path / "hf", output=tmp_path / "checkpoints", tokenizer=tokenizer)
    with pytest.raises(TokenizerError, match=r"has no exact form in transformers; pass --tokenizer"):
        export_hf(tmp_path / "checkpoints", output=tmp_path / "back")


@pytest.mark.parametrize("begins", ["folder", "checkpoint"])
def test_a_run_keeps_them_through_a_resume_and_adds_its_own(tiny: ModuleType, tmp_path: Path, begins: str) -> None:
    write_with_ends(tmp_path / "hf")
    import_hf(tmp_path / "hf", output=tmp_path / "imported")
    starts: dict[str, dict[str, Any]] = {
        "folder": {"hf_path": str(tmp_path / "hf")},
        "checkpoint": {"load": str(tmp_path / "imported"), "finetune": True},
    }
    keys: dict[str, Any] = {**keys_of(tmp_path / "hf"), **KEYS, **starts[begins]}
    tiny.run_tiny(tiny.tiny_config(tmp_path / "run", **keys))
    shutil.rmtree(tmp_path / "imported")
    keys = {**keys, "train_iters": 2}
    checkpoint = tiny.run_tiny(tiny.tiny_config(tmp_path / "run", **keys)).checkpoint
    assert read_run(find_checkpoint(checkpoint)).iteration == 2
    shutil.rmtree(tmp_path / "hf")
    export_hf(checkpoint, output=tmp_path / "back", tokenizer=str(DEMO_TOKENIZER))
    # 2 ends a turn of the run's format.
    assert GenerationConfig.from_pretrained(tmp_path / "back").eos_token_id == [2, 1]
    assert json.loads((tmp_path / "back/config.json").read_text())["eos_token_id"] == [2, 1]


def test_ids_that_are_text_to_the_runs_tokenizer_end_nothing(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_with_ends(tmp_path / "hf")
    (tmp_path / "hf/generation_config.json").write_text(json.dumps({"eos_token_id": [1, 70]}))
    keys: dict[str, Any] = {**keys_of(tmp_path / "hf"), **KEYS, "hf_path": str(tmp_path / "hf")}
    checkpoint = tiny.run_tiny(tiny.tiny_config(tmp_path / "run", **keys)).checkpoint
    export_hf(checkpoint, output=tmp_path / "back", tokenizer=str(DEMO_TOKENIZER))
    assert GenerationConfig.from_pretrained(tmp_path / "back").eos_token_id == [2, 1]
    assert "stopped at the ids [70], which are no control tokens here, so answers do not end there" in caplog.text
