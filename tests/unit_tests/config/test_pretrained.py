# SPDX-License-Identifier: Apache-2.0
"""A run that starts from a Hugging Face folder has its model keys."""

import json
from pathlib import Path
from typing import Any

import pytest

from primus.config import load_config
from primus.config.hugging_face import model_keys_of
from primus.errors import ConfigError
from tests.unit_tests.config.conftest import RUN, Problems, Write

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": 1000,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
WITHOUT_MODEL = RUN.replace("    model: tiny_llama.yaml\n", "").replace("      tokenizer_model: tokenizer\n", "")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture(autouse=True)
def model(write: Write) -> None:
    """A folder `hf` with a Llama in it, and a run that says nothing of its model."""
    write("hf/config.json", json.dumps(LLAMA))
    write("hf/tokenizer.json", "{}")
    write("run.yaml", WITHOUT_MODEL)


def keys_of(**changes: object) -> dict[str, Any]:
    return dict(model_keys_of({**LLAMA, **changes}, origin="config.json"))


def refusals_of(**changes: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        keys_of(**changes)
    return list(caught.value.problems)


def test_model_keys_and_tokenizer_are_those_of_the_folder() -> None:
    trainer = load_config("run.yaml", overrides=["hf_path=hf"]).trainer
    assert (trainer.num_layers, trainer.hidden_size, trainer.ffn_hidden_size) == (2, 64, 160)
    assert (trainer.num_query_groups, trainer.kv_channels, trainer.vocab_size) == (2, 16, 1000)
    assert (trainer.rotary_base, trainer.norm_epsilon) == (500000.0, 1e-6)
    assert not trainer.untie_embeddings_and_output_weights
    assert trainer.tokenizer_model == "hf"


def test_a_tokenizer_that_is_named_wins() -> None:
    assert load_config("run.yaml", overrides=["hf_path=hf", "tokenizer_model=t"]).trainer.tokenizer_model == "t"


def test_variables_and_null_mean_what_they_mean_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "hf")
    overrides = ["hf_path=${MODEL:null}", "vocab_size=null", "num_layers=2", "init_method_std=0.5"]
    trainer = load_config("run.yaml", overrides=overrides).trainer
    assert (trainer.vocab_size, trainer.init_method_std) == (1000, 0.5)
    monkeypatch.delenv("MODEL")
    with pytest.raises(ConfigError, match=r"hidden_size: is missing"):
        load_config("run.yaml", overrides=overrides)


def test_every_contradiction_is_listed(write: Write, problems: Problems) -> None:
    write("run.yaml", WITHOUT_MODEL + "      num_layers: 3\n      hf_path: hf\n      add_qkv_bias: true\n")
    assert sorted(problems("num_query_groups=null", "hidden_size=64")) == [
        (
            "command line: num_query_groups: null contradicts hf/config.json, which has 2; leave the key out, or name"
            " another folder in hf_path"
        ),
        (
            "run.yaml:11: num_layers: 3 contradicts hf/config.json, which has 2; leave the key out, or name another"
            " folder in hf_path"
        ),
        (
            "run.yaml:13: add_qkv_bias: 'true' contradicts hf/config.json, which has false; leave the key out, or name"
            " another folder in hf_path"
        ),
    ]


def test_a_folder_that_cannot_be_used_is_refused_at_once(write: Write, problems: Problems) -> None:
    assert problems("hf_path=nowhere") == [
        (
            "command line: hf_path: nowhere: is no folder; download the model (hf download NAME --local-dir FOLDER) and"
            " name that folder"
        )
    ]
    write("hf/config.json", json.dumps({**LLAMA, "model_type": "gpt2"}))
    assert problems("hf_path=hf") == [
        (
            "command line: hf_path: hf/config.json: model_type is 'gpt2'; take a model of one of the types llama,"
            " mistral, qwen2, qwen3"
        )
    ]
    write("hf/config.json", "[")
    assert problems("hf_path=hf")[0].startswith("command line: hf_path: hf/config.json: cannot be read (")


def test_weights_come_from_one_place(problems: Problems) -> None:
    assert problems("hf_path=hf", "load=checkpoints", "finetune=true") == [
        (
            "command line: hf_path: is given, and load with finetune too, and each has weights to begin with; set one"
            " of them to null"
        )
    ]
    assert load_config("run.yaml", overrides=["hf_path=hf", "load=checkpoints"]).trainer.load == Path("checkpoints")


def test_sequences_are_no_longer_than_the_window(write: Write, problems: Problems) -> None:
    write("hf/config.json", json.dumps({**LLAMA, "model_type": "mistral", "sliding_window": 96}))
    assert load_config("run.yaml", overrides=["hf_path=hf", "seq_length=96"]).trainer.max_position_embeddings == 96
    (problem,) = problems("hf_path=hf", "seq_length=97")
    assert problem.endswith("seq_length: 97 is more than max_position_embeddings, 96; shorten the sequences")
    (problem,) = problems("hf_path=hf", "max_position_embeddings=128")
    assert "128 is more than the model's attention looks back, 96 positions (sliding_window of hf/config" in problem


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_scaling": LLAMA3_ROPE}, {"use_rope_scaling": True, "rope_scaling_factor": 32.0, "rotary_base": 5e5}),
        ({"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 7.0}}, {"use_rope_scaling": True, "rotary_base": 7.0}),
        ({"rope_theta": None}, {"use_rope_scaling": False, "rotary_base": 10000.0}),
        ({"model_type": "qwen2"}, {"add_qkv_bias": True, "qk_layernorm": False}),
        ({"model_type": "qwen3"}, {"add_qkv_bias": False, "qk_layernorm": True, "kv_channels": 128}),
        ({"model_type": "qwen3", "attention_bias": True}, {"add_qkv_bias": True}),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False}, {"max_position_embeddings": 2048}),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True}, {"max_position_embeddings": 8}),
        ({"model_type": "mistral", "sliding_window": None}, {"max_position_embeddings": 2048}),
        ({"num_key_value_heads": None}, {"num_query_groups": 4}),
        ({"head_dim": 32}, {"kv_channels": 32}),
    ],
)
def test_settings_of_each_family_are_understood(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    keys = keys_of(**changes)
    assert {key: keys[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"hidden_act": "gelu"},
            "hidden_act is 'gelu', and gated SiLU is the MLP's only activation; take another model",
        ),
        ({"mlp_bias": True}, "mlp_bias is True, and the linear layers of the MLP have no bias; take another model"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type is 'yarn', and only default and llama3 are"),
        ({"rope_scaling": {**LLAMA3_ROPE, "high_freq_factor": 2.0}}, "high_freq_factor is 2.0, and Megatron fixes 4;"),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor is not 1, and rotary positions turn",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config: the weights are quantized;"),
        ({"hidden_size": None}, "hidden_size: None is no whole number above 0; download the file again"),
        ({"attention_bias": True}, "attention_bias is True, and Llama's output projection would have one"),
    ],
)
def test_what_cannot_be_computed_is_refused(changes: dict[str, Any], problem: str) -> None:
    (found,) = refusals_of(**changes)
    assert found.startswith(f"config.json: {problem}")


@pytest.mark.parametrize(
    ("modules", "problem"),
    [
        ("[linear_qkv, q_proj]", "q_proj is no layer that can have an adapter"),
        ("[]", "names no layer"),
    ],
)
def test_adapters_have_layers_to_stand_beside(problems: Problems, modules: str, problem: str) -> None:
    expected = (
        f"command line: lora.target_modules: {problem}; there are linear_qkv, linear_proj, linear_fc1, linear_fc2"
    )
    assert problems("hf_path=hf", "lora.enabled=true", f"lora.target_modules={modules}") == [expected]
    load_config("run.yaml", overrides=["hf_path=hf", f"lora.target_modules={modules}"])  # without adapters
