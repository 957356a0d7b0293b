# SPDX-License-Identifier: Apache-2.0
"""A run that starts from a Hugging Face folder has its model keys."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from primus.config import load_config
from primus.config.hugging_face import model_keys_of, read_generation
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


ABSENT = object()


def keys_of(**changes: object) -> dict[str, Any]:
    config = {key: value for key, value in {**LLAMA, **changes}.items() if value is not ABSENT}
    return dict(model_keys_of(config, origin="config.json"))


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
        ({"rope_theta": ABSENT}, {"use_rope_scaling": False, "rotary_base": 10000.0}),
        (
            {"rope_scaling": {**LLAMA3_ROPE, "factor": 32}, "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 5e5}},
            {"use_rope_scaling": True, "rope_scaling_factor": 32.0, "rotary_base": 5e5},
        ),
        ({"rope_scaling": {}, "rope_parameters": {"rope_theta": 7.0}}, {"rotary_base": 7.0}),
        ({"rope_scaling": {"type": "default", "rope_type": "default"}}, {"rotary_base": 5e5}),
        (
            {
                "rope_scaling": {**LLAMA3_ROPE, "original_max_position_embeddings": 512},
                "original_max_position_embeddings": 8192,
            },
            {"use_rope_scaling": True},
        ),
        ({"hidden_act": "swish", "architectures": ["LlamaForCausalLM"], "is_causal": True}, {"swiglu": True}),
        ({"initializer_range": -1}, {"init_method_std": 0.02}),
        ({"model_type": "mistral", "num_key_value_heads": ABSENT, "num_attention_heads": 16}, {"num_query_groups": 8}),
        ({"model_type": "qwen2", "num_key_value_heads": ABSENT, "num_attention_heads": 32}, {"num_query_groups": 32}),
        ({"num_key_value_heads": ABSENT}, {"num_query_groups": 4}),
        ({"model_type": "qwen2", "sliding_window": 0}, {"max_position_embeddings": 2048}),
        (
            {"model_type": "mistral", "sliding_window": ABSENT, "max_position_embeddings": 9999},
            {"max_position_embeddings": 4096},
        ),
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
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            (
                "rope_type is 'yarn' in rope_scaling, and only default and llama3 are available; take the settings"
                " of the unstretched context (remove rope_scaling), if the model was trained with them"
            ),
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
            (
                "rope_type is 'linear' in rope_parameters, and only default and llama3 are available; take the settings"
                " of the unstretched context (leave rope_type default and rope_theta in rope_parameters), if the model"
            ),
        ),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "rope_type is 'mrope' in rope_scaling, and only"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type is ['yarn'] in rope_parameters, and only default"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_parameters": {"rope_theta": 5e5}},
            (
                "rope_scaling and rope_parameters contradict each other (factor 4.0 and None, rope_type 'yarn' and"
                " 'default'); put what the model was trained with, rope_theta included, in one of them and remove"
            ),
        ),
        (
            {"rope_scaling": LLAMA3_ROPE, "rope_parameters": {**LLAMA3_ROPE, "factor": 8.0}},
            "rope_scaling and rope_parameters contradict each other (factor 32.0 and 8.0); put what",
        ),
        (
            {"rope_scaling": LLAMA3_ROPE, "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 7.0}},
            "rope_scaling and rope_parameters contradict each other (rope_theta 500000.0 and 7.0); put what",
        ),
        (
            {"rope_scaling": {"type": "mrope"}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling and rope_parameters contradict each other (rope_type 'mrope' and 'default'); put what",
        ),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "default"}},
            "rope_scaling has rope_type 'default' and type 'linear'; remove the wrong one",
        ),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn', not a mapping; download the file again"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "rope_parameters has settings of its own for full_attention, and positions turn alike in all layers; take",
        ),
        (
            {"rope_scaling": LLAMA3_ROPE, "original_max_position_embeddings": 512},
            "original_max_position_embeddings is 512, and Megatron fixes 8192; take another model",
        ),
        (
            {"rope_scaling": {key: value for key, value in LLAMA3_ROPE.items() if key[0] != "o"}},
            "original_max_position_embeddings is 2048, and Megatron fixes 8192; take another model",
        ),
        ({"rope_scaling": {**LLAMA3_ROPE, "high_freq_factor": 2.0}}, "high_freq_factor is 2.0, and Megatron fixes 4;"),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5, and rotary positions turn whole heads; take another model",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config: the weights are quantized;"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, and rotary positions turn whole heads;"),
        ({"compression_config": {"bits": 4}}, "compression_config: the weights are quantized;"),
        ({"is_causal": False}, "is_causal is False, and a position sees only those before it; take another model"),
        ({"transformers_weights": "a.safetensors"}, "transformers_weights: the weights are in a file of another name;"),
        ({"per_layer_config": {"1": {"rms_norm_eps": 0.5}}}, "per_layer_config: layers have settings of their own,"),
        ({"auto_map": {"AutoModelForCausalLM": "own.Model"}}, "auto_map: the model comes with code of its own, which"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "architectures is ['LlamaForSequenceClassification'], and a llama model here is a LlamaForCausalLM; take",
        ),
        ({"attention_bias": True}, "attention_bias is True, and Llama's output projection would have one"),
        (
            {"num_key_value_heads": 3},
            "num_key_value_heads is 3, which does not divide num_attention_heads, 4; download",
        ),
        ({"head_dim": 7}, "head_dim is 7, and rotary positions turn pairs, so it has to be even; take another model"),
        (
            {"num_attention_heads": 6, "head_dim": 8},
            "hidden_size is 64, no multiple of num_attention_heads, 6, which LlamaForCausalLM needs; take",
        ),
        (
            {"model_type": "mistral", "num_attention_heads": 6, "head_dim": 8, "rope_scaling": LLAMA3_ROPE},
            "hidden_size is 64, no multiple of num_attention_heads, 6, which LlamaForCausalLM needs; take",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused(changes: dict[str, Any], problem: str) -> None:
    (found,) = refusals_of(**changes)
    assert found.startswith(f"config.json: {problem}")


COUNT, POSITIVE, SWITCH = "a whole number above 0", "a number above 0", "true or false"


@pytest.mark.parametrize(
    ("family", "name", "value", "kind"),
    [
        *(("llama", "hidden_size", value, COUNT) for value in (None, "64", 64.0, True, 0, -1)),
        *(("llama", "rms_norm_eps", value, POSITIVE) for value in (None, "x", 0, math.nan, math.inf, 10**400, [1])),
        *(("llama", "rope_theta", value, POSITIVE) for value in (None, "abc", 0, -5.0, [1])),
        *(("llama", "head_dim", value, COUNT) for value in ("x", 0, 16.0)),
        ("qwen3", "head_dim", None, COUNT),
        ("llama", "num_key_value_heads", "2", COUNT),
        ("llama", "tie_word_embeddings", None, SWITCH),
        ("qwen3", "attention_bias", "false", SWITCH),
        ("qwen2", "use_sliding_window", "false", SWITCH),
        *(("mistral", "sliding_window", value, COUNT) for value in ("big", 0, -1)),
    ],
)
def test_values_of_a_wrong_kind_are_refused(family: str, name: str, value: object, kind: str) -> None:
    problems = refusals_of(model_type=family, **{name: value})
    assert problems == [f"config.json: {name} is {value!r}, not {kind}; download the file again"]


@pytest.mark.parametrize("factor", [None, 0, "8", math.nan])
def test_a_scaling_needs_a_factor(factor: object) -> None:
    problem = f"factor is {factor!r} in rope_scaling, not a number above 0; download the file again"
    assert refusals_of(rope_scaling={**LLAMA3_ROPE, "factor": factor}) == [f"config.json: {problem}"]


def test_every_problem_of_a_model_is_listed() -> None:
    assert refusals_of(hidden_size=ABSENT, mlp_bias=True, rope_scaling="yarn") == [
        "config.json: mlp_bias is True, and the linear layers of the MLP have no bias; take another model",
        "config.json: hidden_size is missing; download the file again",
        "config.json: rope_scaling is 'yarn', not a mapping; download the file again",
    ]


@pytest.mark.parametrize("model_type", [None, ["llama"], {}, "gpt2"])
def test_a_model_of_another_type_is_refused(model_type: object) -> None:
    (found,) = refusals_of(model_type=model_type)
    assert found.startswith(f"config.json: model_type is {model_type!r}; take a model of one of the types llama, ")


def test_a_folder_with_an_adapter_is_refused(write: Write, problems: Problems) -> None:
    write("hf/adapter_config.json", "{}")
    assert problems("hf_path=hf") == [
        (
            "command line: hf_path: hf: holds adapter_config.json, and adapters are not applied here; merge them into"
            " the model first (merge_and_unload of peft), or name the folder of the model without them"
        )
    ]


def test_the_generation_configuration_is_read_with_the_ids(write: Write) -> None:
    assert read_generation(Path("hf")) == {"token_ids": {}, "generation_config": {}}
    write("hf/config.json", json.dumps({**LLAMA, "eos_token_id": [2, 3], "bos_token_id": None}))
    write("hf/generation_config.json", json.dumps({"eos_token_id": 4, "temperature": 0.5}))
    assert read_generation(Path("hf")) == {
        "token_ids": {"eos_token_id": [2, 3], "bos_token_id": None},
        "generation_config": {"eos_token_id": 4, "temperature": 0.5},
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read ("),
        ("[]", "is no JSON object; download it again"),
        ('{"eos_token_id": "</s>"}', "eos_token_id is '</s>', not an id or a list of ids; download the file again"),
        ('{"eos_token_id": [1, null]}', "eos_token_id is [1, None], not an id or a list of ids;"),
    ],
)
def test_a_damaged_generation_configuration_is_refused(write: Write, text: str, problem: str) -> None:
    write("hf/generation_config.json", text)
    with pytest.raises(ConfigError) as caught:
        read_generation(Path("hf"))
    assert str(caught.value).startswith(f"hf/generation_config.json: {problem}")


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
