# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face folder becomes a checkpoint with the same logits, and again the same folder."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from primus.backends.megatron.checkpoint.folder import find_checkpoint, read_run
from primus.backends.megatron.distributed import joined_processes, this_process
from primus.backends.megatron.huggingface import import_hf as importing
from primus.backends.megatron.huggingface.export import export_hf
from primus.backends.megatron.huggingface.import_hf import import_hf
from primus.backends.megatron.model.gpt import build_model
from primus.config.schema import TrainerConfig
from primus.errors import CheckpointError, ConfigError, TokenizerError
from tests.unit_tests.backends.megatron.huggingface.pretrained_models import (
    DEMO_TOKENIZER,
    MODELS,
    VOCAB_SIZE,
    some_tokens,
    write_model,
)


def weights_in(folder: Path) -> dict[str, Tensor]:
    return {name: weight for file in sorted(folder.glob("*.safetensors")) for name, weight in load_file(file).items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8))
        for name in one
    )


def megatron_logits(checkpoint: Path, tokens_BS: Tensor) -> Tensor:
    """What GPTModel computes from a checkpoint, built from the facts in it."""
    run = read_run(checkpoint)
    trainer = TrainerConfig(**run.model.model_dump(), seq_length=64, global_batch_size=1, lr=1e-4)
    process = this_process()
    with joined_processes(process, trainer):
        chunks = build_model(trainer, padded_vocab_size=run.padded_vocab_size, device=process.device)
        model = chunks[0].module.eval()
        model.load_state_dict(dist_checkpointing.load(model.sharded_state_dict(), str(checkpoint)))
        with torch.no_grad():
            logits_BSV: Tensor = model(tokens_BS, None, None)
        return logits_BSV[..., : run.vocab_size].float()


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers_and_the_way_back_changes_no_bit(name: str, tmp_path: Path) -> None:
    expected_BSV = write_model(tmp_path / "hf", name)
    checkpoint = import_hf(tmp_path / "hf", output=tmp_path / "checkpoints")
    torch.testing.assert_close(megatron_logits(checkpoint, some_tokens()), expected_BSV, atol=1e-4, rtol=0)
    export_hf(tmp_path / "checkpoints", output=tmp_path / "back")
    assert same_bits(weights_in(tmp_path / "hf"), weights_in(tmp_path / "back"))
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.model_type == MODELS[name]["model_type"]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(some_tokens()).logits, expected_BSV, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_keep_their_type_and_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    write_model(tmp_path / "hf", "qwen 2.5", dtype=dtype)
    import_hf(tmp_path / "hf", output=tmp_path / "checkpoints")
    export_hf(tmp_path / "checkpoints", output=tmp_path / "back")
    assert same_bits(weights_in(tmp_path / "hf"), weights_in(tmp_path / "back"))
    assert json.loads((tmp_path / "back/config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_sharded_folders_are_read_and_parts_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_PART_BYTES", 1000)
    write_model(tmp_path / "hf", "qwen 3", shard_size="40KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    import_hf(tmp_path / "hf", output=tmp_path / "checkpoints")
    export_hf(tmp_path / "checkpoints", output=tmp_path / "back")
    assert same_bits(weights_in(tmp_path / "hf"), weights_in(tmp_path / "back"))


def test_rows_behind_the_tokenizer_are_kept_and_padding_is_zero(tmp_path: Path) -> None:
    write_model(tmp_path / "hf", "mistral")
    checkpoint = import_hf(tmp_path / "hf", output=tmp_path / "checkpoints")
    assert (read_run(checkpoint).vocab_size, read_run(checkpoint).padded_vocab_size) == (VOCAB_SIZE, 1152)
    with joined_processes(this_process(), TrainerConfig(**TINY)):
        stored = dist_checkpointing.load_tensors_metadata(str(checkpoint))
        name = "embedding.word_embeddings.weight"
        embedding = dist_checkpointing.load({name: stored[name]}, str(checkpoint))[name]
    assert torch.equal(embedding[:VOCAB_SIZE], weights_in(tmp_path / "hf")["model.embed_tokens.weight"])
    assert not embedding[VOCAB_SIZE:].any()


TINY = {
    "num_layers": 3,
    "hidden_size": 32,
    "ffn_hidden_size": 80,
    "num_attention_heads": 4,
    "seq_length": 64,
    "global_batch_size": 1,
    "lr": 1e-4,
}


def test_the_checkpoint_has_what_one_that_training_wrote_has(tmp_path: Path) -> None:
    write_model(tmp_path / "hf", "qwen 3 with biases")
    checkpoint = import_hf(tmp_path / "hf", output=tmp_path / "checkpoints")
    run = read_run(checkpoint)
    trainer = TrainerConfig(**run.model.model_dump(), seq_length=64, global_batch_size=1, lr=1e-4)
    process = this_process()
    with joined_processes(process, trainer):
        chunks = build_model(trainer, padded_vocab_size=run.padded_vocab_size, device=process.device)
        (tmp_path / "trained").mkdir()
        dist_checkpointing.save(chunks[0].module.sharded_state_dict(), str(tmp_path / "trained"))
    found, expected = (
        pickle.loads((folder / ".metadata").read_bytes()).state_dict_metadata
        for folder in (checkpoint, tmp_path / "trained")
    )
    assert found.keys() == expected.keys()
    for name, stored in expected.items():
        assert type(found[name]) is type(stored)
        if hasattr(stored, "size"):
            assert (found[name].size, found[name].properties) == (stored.size, stored.properties), name


def test_an_imported_model_comes_back_with_its_tokenizer_and_stop_tokens(tmp_path: Path) -> None:
    write_model(tmp_path / "hf", "llama 3")
    (tmp_path / "hf/chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    import_hf(tmp_path / "hf", output=tmp_path / "checkpoints")
    export_hf(tmp_path / "checkpoints", output=tmp_path / "back")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi!"
    generation = GenerationConfig.from_pretrained(tmp_path / "back")
    assert (generation.eos_token_id, generation.temperature) == ([2, 3], 0.7)


def test_the_model_keys_are_written_as_a_preset(tmp_path: Path) -> None:
    write_model(tmp_path / "hf", "qwen 2.5")
    import_hf(tmp_path / "hf", output=tmp_path / "checkpoints")
    text = (tmp_path / "checkpoints/model.yaml").read_text()
    assert "num_layers: 3\n" in text
    assert f"vocab_size: {VOCAB_SIZE}\n" in text
    assert find_checkpoint(tmp_path / "checkpoints").name == "iter_0000000"


def refusal(source: Path, tmp_path: Path) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        import_hf(source, output=tmp_path / "refused")
    assert not list(tmp_path.glob("refused/iter_*"))
    (problem,) = caught.value.problems
    return str(problem).replace(f"{tmp_path}/", "")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "hf"
    write_model(folder, "llama 3.2, tied")
    return folder


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A folder of a test's own."""
    return Path(shutil.copytree(llama, tmp_path / "hf"))


def change_config(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_pickles_are_refused_with_the_way_out(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert refusal(copy, tmp_path).startswith("hf: has its weights in pytorch_model.bin, a pickle, which can run any")


def test_damaged_and_missing_files_are_named(copy: Path, tmp_path: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:-100])
    assert refusal(copy, tmp_path).startswith("hf/model.safetensors: cannot be read (")
    (copy / "model.safetensors").unlink()
    assert refusal(copy, tmp_path).startswith("hf: holds no model.safetensors and no model.safetensors.index.json;")
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    assert refusal(copy, tmp_path).startswith("hf: lacks b.safetensors, which model.safetensors.index.json names;")
    (copy / "config.json").unlink()
    assert refusal(copy, tmp_path) == "hf: holds no config.json; name the folder of a Hugging Face model"


def test_weights_of_another_model_are_named(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors")
    assert refusal(copy, tmp_path).startswith("hf: lacks model.layers.1.mlp.up_proj.weight; download the model again")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(81, 32)
    save_file(weights, copy / "model.safetensors")
    assert "up_proj.weight has shape (81, 32), and config.json means (80, 32);" in refusal(copy, tmp_path)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(80, 32)
    save_file({**weights, "model.layers.1.mlp.experts": torch.zeros(2)}, copy / "model.safetensors")
    assert refusal(copy, tmp_path).startswith("hf: has model.layers.1.mlp.experts, for which GPTModel has no place;")


def test_a_second_output_layer_must_be_the_embedding(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    lm_head = weights["model.embed_tokens.weight"].clone()
    inverse = torch.ones(4)
    save_file(
        {**weights, "lm_head.weight": lm_head, "model.layers.0.self_attn.rotary_emb.inv_freq": inverse},
        copy / "model.safetensors",
    )
    import_hf(copy, output=tmp_path / "checkpoints")
    lm_head[-1, -1] += 1
    save_file({**weights, "lm_head.weight": lm_head}, copy / "model.safetensors")
    assert "lm_head.weight is not the embedding; set tie_word_embeddings to false" in refusal(copy, tmp_path)


def test_quantized_weights_are_refused(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(weights, copy / "model.safetensors")
    assert "model.norm.weight is of type F8_E4M3; take the model's folder with weights in F32" in refusal(
        copy, tmp_path
    )


def test_a_folder_with_checkpoints_is_left_alone(llama: Path, tmp_path: Path) -> None:
    import_hf(llama, output=tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match=r"checkpoints: has checkpoints already; name another folder"):
        import_hf(llama, output=tmp_path / "checkpoints")


def test_a_window_limits_the_sequences(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected_BSV = write_model(tmp_path / "hf", "mistral", sliding_window=300)
    checkpoint = import_hf(tmp_path / "hf", output=tmp_path / "checkpoints")
    assert read_run(checkpoint).model.max_position_embeddings == 300
    assert "attention looks 300 positions back" in caplog.text
    torch.testing.assert_close(megatron_logits(checkpoint, some_tokens()), expected_BSV, atol=1e-4, rtol=0)


def test_a_model_without_a_tokenizer_needs_one_to_leave(copy: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    import_hf(copy, output=tmp_path / "checkpoints")
    with pytest.raises(TokenizerError, match=r"--tokenizer: is not given, and the model was imported without a token"):
        export_hf(tmp_path / "checkpoints", output=tmp_path / "back")
    export_hf(tmp_path / "checkpoints", output=tmp_path / "back", tokenizer=str(DEMO_TOKENIZER))
    assert (tmp_path / "back/tokenizer.json").is_file()
