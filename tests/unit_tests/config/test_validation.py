# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from primus.config import load_config
from tests.unit_tests.config.conftest import RUN, Problems, Write

FORMATS = "openai, messages, chatml, alpaca, template, llama3, qwen, mistral, gemma, phi"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("lr=1e-5", 1e-5),
        ("lr=1", 1.0),
        ("train_iters=1e3", 1000),
        ("train_iters=1000", 1000),
        ("train_iters=1_000", 1000),
        ("seed=0", 0),
        ("bf16=true", True),
        ("bf16=yes", True),
        ("bf16=off", False),
        ("load=a/b", Path("a/b")),
        ("load=null", None),
        ("num_query_groups=~", None),
        ("sft_dataset_name=[a, b]", ("a", "b")),
        ("sft_dataset_name=2024", "2024"),
        ("sft_dataset_name='null'", "null"),
        ("sft_dataset_split=no", "no"),
        ("sft_add_bos=false", False),
        ("lora.target_modules=[linear_qkv]", ("linear_qkv",)),
    ],
)
def test_the_type_of_the_key_decides_what_a_value_is(override: str, value: object) -> None:
    trainer = load_config("run.yaml", overrides=[override]).trainer
    key = override.partition("=")[0]
    found = getattr(trainer.lora, key.removeprefix("lora.")) if key.startswith("lora.") else getattr(trainer, key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train_iters=many", "train_iters: 'many' is not a whole number; write one, for example 8"),
        ("train_iters=1.5", "train_iters: 1.5 is not a whole number; write one, for example 8"),
        ("train_iters=15e-1", "train_iters: 15e-1 is not a whole number; write one, for example 8"),
        ("train_iters=true", "train_iters: 'true' is not a whole number; write one, for example 8"),
        ("seq_length=null", "seq_length: null is not a whole number; write one, for example 8"),
        ("seq_length=[1]", "seq_length: [1] is not a whole number; write one, for example 8"),
        ("train_iters=0", "train_iters: 0 is not greater than 0; choose a larger value"),
        ("train_iters=1e400", "train_iters: 1e400 is not a finite number; write one"),
        ("lr=fast", "lr: 'fast' is not a number; write one, for example 1e-5"),
        ("lr=-1", "lr: -1 is less than 0; choose a larger value"),
        ("lr=nan", "lr: nan is not a finite number; write one"),
        ("adam_beta1=1", "adam_beta1: 1 is not less than 1; choose a smaller value"),
        ("bf16=maybe", "bf16: 'maybe' is neither true nor false; write one of the two"),
        ("bf16=null", "bf16: null is neither true nor false; write one of the two"),
        ("sft_dataset_split=[a]", "sft_dataset_split: ['a'] is not text; write text"),
        ("load=[a]", "load: ['a'] is not a path; write one"),
        (
            "sft_dataset_name={a: b}",
            "sft_dataset_name: {a: 'b'} is neither text nor a list of texts; write one of the two",
        ),
        (
            "sft_dataset_name=[a, null]",
            "sft_dataset_name: ['a', null] is neither text nor a list of texts; write one of the two",
        ),
        ("lora=8", "lora: 8 is not a mapping; write its keys below it, one `key: value` per line"),
        ("lora.dim=none", "lora.dim: 'none' is not a whole number; write one, for example 8"),
        ("lora.target_modules=a", "lora.target_modules: 'a' is not a list; write one, for example [a, b]"),
        ("lora.target_modules=[[a]]", "lora.target_modules: [['a']] is not text; write text"),
        (
            "sft_truncation=rigth",
            "sft_truncation: 'rigth' is not one of error, drop, right, keep_last_turns, window; did you mean 'right'?",
        ),
        (
            "sft_conversation_format=openia",
            f"sft_conversation_format: 'openia' is not one of {FORMATS}; did you mean 'openai'?",
        ),
        (
            "sft_conversation_format=sharegpt",
            f"sft_conversation_format: 'sharegpt' is not one of {FORMATS}; choose one of them",
        ),
        ("stage=dpo", "stage: 'dpo' is not available; only sft is"),
        ("framework=jax", "framework: 'jax' is not available; only megatron is"),
        ("normalization=null", "normalization: null is not available; only RMSNorm is"),
        ("exp_name=a/b", "exp_name: 'a/b' is not the name of one folder; leave out '/' and give at least one letter"),
        ("user_name=..", "user_name: '..' is not the name of one folder; leave out '/' and give at least one letter"),
        ("exp_name=null", "exp_name: null is not text; write text"),
    ],
)
def test_a_wrong_value_is_refused_with_the_value_and_the_limit(problems: Problems, override: str, problem: str) -> None:
    assert problems(override) == [f"command line: {problem}"]


def test_wrong_values_of_one_section_are_all_reported(write: Write, problems: Problems) -> None:
    write("run.yaml", RUN + "      lora:\n        dim: x\n        dropout: 2\n        alpha: 8\n")
    assert problems() == [
        "run.yaml:14: lora.dim: 'x' is not a whole number; write one, for example 8",
        "run.yaml:15: lora.dropout: 2 is not less than 1; choose a smaller value",
    ]
