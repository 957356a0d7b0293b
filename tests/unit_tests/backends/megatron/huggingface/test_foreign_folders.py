# SPDX-License-Identifier: Apache-2.0
"""What others put into a folder: it is computed as transformers computes it, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from primus.backends.megatron.huggingface.export import export_hf
from primus.backends.megatron.huggingface.import_hf import import_hf
from primus.backends.megatron.huggingface.pretrained_weights import check_pretrained
from primus.config.hugging_face import model_keys_of, read_hugging_face_config
from primus.config.schema import TrainerConfig
from primus.errors import ConfigError, PrimusError
from tests.unit_tests.backends.megatron.huggingface.pretrained_models import DEMO_TOKENIZER, some_tokens, write_model
from tests.unit_tests.backends.megatron.huggingface.test_import_hf import megatron_logits, same_bits, weights_in

LLAMA3_SCALING = {
    "type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 8192,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("llama 3", "llama 3.1", "llama 3.2, tied", "qwen 3"):
        write_model(folder / name, name)
    return folder


@pytest.fixture
def copied(models: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A model's folder of a test's own."""
    return lambda name: Path(shutil.copytree(models / name, tmp_path / "hf"))


def change(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def change_weights(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def transformers_logits(folder: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits_BSV: Tensor = model(some_tokens()).logits
    return logits_BSV


def refusal(source: Path, tmp_path: Path) -> str:
    with pytest.raises(PrimusError) as caught:
        import_hf(source, output=tmp_path / "refused")
    assert not list(tmp_path.glob("refused/iter_*"))
    (problem,) = caught.value.problems
    return str(problem).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("llama 3.1", {"rope_scaling": LLAMA3_SCALING, "rope_theta": 500000.0}),
        ("llama 3.1", {"rope_parameters": None, "rope_scaling": LLAMA3_SCALING, "rope_theta": 3000.0}),
        ("llama 3", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}, "rope_theta": 500000.0}),
        ("llama 3", {"rope_parameters": {"rope_type": "default"}, "rope_theta": 77.0}),
        ("llama 3", {"rope_parameters": None, "rope_scaling": {"rope_theta": 50.0}, "rope_theta": 77.0}),
        ("llama 3", {"rope_parameters": None, "rope_scaling": {}}),
        ("llama 3", {"hidden_act": "swish"}),
        ("qwen 3", {"use_sliding_window": False, "sliding_window": 4, "rms_norm_eps": 0.01}),
    ],
)
def test_each_spelling_means_what_it_means_to_transformers(
    copied: Callable[[str], Path], tmp_path: Path, name: str, keys: dict[str, Any]
) -> None:
    folder = copied(name)
    change(folder, **keys)
    checkpoint = import_hf(folder, output=tmp_path / "checkpoints")
    expected_BSV = transformers_logits(folder)
    torch.testing.assert_close(megatron_logits(checkpoint, some_tokens()), expected_BSV, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("llama 3", {"rope_scaling": YARN}),
        ("llama 3", {"rope_scaling": LLAMA3_SCALING, "max_position_embeddings": 131072}),
        ("llama 3.1", {"original_max_position_embeddings": 64}),
        ("llama 3", {"is_causal": False}),
    ],
)
def test_what_would_change_the_logits_is_refused(
    copied: Callable[[str], Path], tmp_path: Path, name: str, keys: dict[str, Any]
) -> None:
    folder = copied(name)
    before_BSV = transformers_logits(folder)
    change(folder, **keys)
    assert (transformers_logits(folder) - before_BSV).abs().max() > 1e-3
    assert refusal(folder, tmp_path).startswith("hf/config.json: ")


def test_what_export_writes_is_taken_again_and_another_scaling_on_top_is_not(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    import_hf(copied("llama 3.1"), output=tmp_path / "checkpoints")
    export_hf(tmp_path / "checkpoints", output=tmp_path / "back")
    checkpoint = import_hf(tmp_path / "back", output=tmp_path / "again")
    expected_BSV = transformers_logits(tmp_path / "hf")
    torch.testing.assert_close(megatron_logits(checkpoint, some_tokens()), expected_BSV, atol=1e-4, rtol=0)
    change(tmp_path / "back", rope_scaling=YARN)
    assert "rope_scaling and rope_parameters contradict each other" in refusal(tmp_path / "back", tmp_path)


def test_two_sets_of_weights_are_refused(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("llama 3")
    weights = load_file(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, "model.safetensors")}))
    import_hf(folder, output=tmp_path / "checkpoints")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}))
    save_file({name: weight + 1 for name, weight in weights.items()}, folder / "model-00001-of-00001.safetensors")
    assert refusal(folder, tmp_path) == (
        "hf: holds model.safetensors and model.safetensors.index.json, which names other files"
        " (model-00001-of-00001.safetensors); delete what is stale"
    )


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "", 3])
def test_an_index_names_files_of_its_folder(copied: Callable[[str], Path], tmp_path: Path, name: object) -> None:
    folder = copied("llama 3")
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    assert refusal(folder, tmp_path) == (
        f"hf/model.safetensors.index.json: names {name!r}, not files of its folder; download it again"
    )


def test_an_index_of_nothing_is_refused(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("llama 3")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert refusal(folder, tmp_path).startswith("hf/model.safetensors.index.json: names no file, not files of its")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
def test_an_adapter_in_the_folder_is_refused_because_transformers_applies_it(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    folder = copied("llama 3")
    before_BSV = transformers_logits(folder)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), settings)
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(folder)
    assert (transformers_logits(folder) - before_BSV).abs().max() > 1e-3
    assert refusal(folder, tmp_path).startswith("hf: holds adapter_config.json, and adapters are not applied here;")


def test_a_tied_model_may_have_only_its_output_layer(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("llama 3.2, tied")
    own = weights_in(folder)
    change_weights(folder, lambda weights: weights.update({"lm_head.weight": weights.pop("model.embed_tokens.weight")}))
    expected_BSV = transformers_logits(folder)
    checkpoint = import_hf(folder, output=tmp_path / "checkpoints")
    torch.testing.assert_close(megatron_logits(checkpoint, some_tokens()), expected_BSV, atol=1e-4, rtol=0)
    export_hf(tmp_path / "checkpoints", output=tmp_path / "back")
    assert same_bits(weights_in(tmp_path / "back"), own)


def test_a_tied_model_without_its_one_matrix_is_incomplete(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("llama 3.2, tied")
    change_weights(folder, lambda weights: weights.__delitem__("model.embed_tokens.weight"))
    assert refusal(folder, tmp_path).startswith("hf: lacks model.embed_tokens.weight; download the model again")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_none_are_refused_with_the_weight(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    write_model(tmp_path / "hf", "qwen 3", dtype=dtype)

    def spoil(weights: dict[str, Tensor]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][79, 31] = value

    change_weights(tmp_path / "hf", spoil)
    assert refusal(tmp_path / "hf", tmp_path) == (
        "hf/model.safetensors: model.layers.1.mlp.up_proj.weight has numbers that are NaN or infinite; download the"
        " file again, or take another model"
    )


def test_a_tied_matrix_is_compared_bit_by_bit(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("llama 3.2, tied")

    def spoil(weights: dict[str, Tensor]) -> None:
        weights["model.embed_tokens.weight"][5] = float("nan")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    change_weights(folder, spoil)
    assert "model.embed_tokens.weight has numbers that are NaN" in refusal(folder, tmp_path)


def test_a_tokenizer_with_more_ids_than_rows_is_refused_at_once(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("llama 3")

    def cut(weights: dict[str, Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[name] = weights[name][:1010].contiguous()

    change_weights(folder, cut)
    change(folder, vocab_size=1010)
    assert refusal(folder, tmp_path) == (
        "hf: the tokenizer has ids up to 1023, the model's embedding has 1010 rows; pass the tokenizer that the model"
        " was trained with"
    )


def test_a_tokenizer_that_transformers_refuses_is_no_traceback(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("llama 3")
    change(folder, initializer_range=-1)  # no harm to the model, and the tokenizer is not loaded beside it
    assert refusal(folder, tmp_path).startswith("hf: AutoTokenizer can't load it (Validation error for field 'init")
    import_hf(folder, output=tmp_path / "checkpoints", tokenizer=str(DEMO_TOKENIZER))


def test_a_damaged_generation_configuration_is_refused_before_anything_is_read(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied("llama 3")
    keys = model_keys_of(read_hugging_face_config(folder), origin="hf")
    trainer = TrainerConfig(**keys, seq_length=64, global_batch_size=1, lr=1e-4, hf_path=str(folder))
    check_pretrained(trainer)
    (folder / "generation_config.json").write_text("{")
    assert refusal(folder, tmp_path).startswith("hf/generation_config.json: cannot be read (")
    with pytest.raises(ConfigError, match=r"generation_config.json: cannot be read \("):
        check_pretrained(trainer)


def test_shapes_that_cannot_leave_do_not_come_in(tmp_path: Path) -> None:
    scaled = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        **{key: LLAMA3_SCALING[key] for key in LLAMA3_SCALING if key != "type"},
    }
    heads: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}
    write_model(tmp_path / "plain", "mistral", **heads)
    import_hf(tmp_path / "plain", output=tmp_path / "checkpoints")
    export_hf(tmp_path / "checkpoints", output=tmp_path / "back")
    write_model(tmp_path / "hf", "mistral", **heads, rope_parameters=scaled, max_position_embeddings=131072)
    assert refusal(tmp_path / "hf", tmp_path).startswith("hf/config.json: hidden_size is 32, no multiple of num_att")
