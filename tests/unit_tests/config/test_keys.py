# SPDX-License-Identifier: Apache-2.0
import pytest

from primus.config.schema import LoraConfig, TrainConfig, TrainerConfig
from primus.config.suggestions import SAME_MEANING
from tests.unit_tests.config.conftest import RUN, Problems, Write

BY_ITS_OWN_NAME = "on the command line a key is given by its own name, for example lr=1e-5 or lora.dim=8"


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("num_layer", "did you mean 'num_layers'?"),
        ("LR", "did you mean 'lr'?"),
        ("learning_rate", "did you mean 'lr'?"),
        ("rope_theta", "did you mean 'rotary_base'?"),
        ("sft_dataset", "did you mean 'sft_dataset_name'?"),
        ("lora.dim", "dots are for the command line; in a file, write the inner key below the outer one"),
        ("xyzzy", "docs/CONFIGURATION.md lists all keys"),
        ("exp_name", "it belongs at the top level of the file"),
        ("confg", "did you mean 'config', which belongs in the module, beside `overrides`?"),
        ("dim", "it belongs under `lora`"),
        ("output_dir", "did you mean 'workspace', which belongs at the top level of the file?"),
    ],
)
def test_an_unknown_override_is_refused_with_what_was_meant(
    write: Write, problems: Problems, key: str, advice: str
) -> None:
    write("run.yaml", RUN + f"      {key}: 1\n")
    assert problems() == [f"run.yaml:13: {key}: unknown key; {advice}"]


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("num_layers", "it belongs under `overrides`"),
        ("exp_nam", "did you mean 'exp_name'?"),
        ("module", "did you mean 'modules'?"),
        ("overrides", "it belongs in the module, beside `overrides`"),
        ("learning_rate", "did you mean 'lr', which belongs under `overrides`?"),
    ],
)
def test_an_unknown_key_at_the_top_is_refused(write: Write, problems: Problems, key: str, advice: str) -> None:
    write("run.yaml", f"{key}: 1\n" + RUN)
    assert problems() == [f"run.yaml:1: {key}: unknown key; {advice}"]


def test_an_unknown_key_of_the_module_or_of_lora_is_refused_with_its_full_name(
    write: Write, problems: Problems
) -> None:
    write("run.yaml", RUN.replace("    config:", "    lr: 1\n    config:") + "      lora: {rank: 8, dimm: 1}\n")
    assert problems() == [
        "run.yaml:4: modules.post_trainer.lr: unknown key; it belongs under `overrides`",
        "run.yaml:14: lora.rank: unknown key; docs/CONFIGURATION.md lists all keys",
        "run.yaml:14: lora.dimm: unknown key; did you mean 'dim'?",
    ]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("num_layer=2", "num_layer: unknown key; did you mean 'num_layers'?"),
        ("exp_nam=x", "exp_nam: unknown key; did you mean 'exp_name'?"),
        ("output_dir=x", "output_dir: unknown key; did you mean 'workspace'?"),
        ("dim=8", "dim: unknown key; it belongs under `lora`"),
        ("lora.dimm=8", "lora.dimm: unknown key; did you mean 'dim'?"),
        ("lr.x=1", "lr: {x: 1} is not a number; write one, for example 1e-5"),
        (
            "overrides.lr=1",
            f"overrides: unknown key; {BY_ITS_OWN_NAME}",
        ),
        (
            "modules.post_trainer.overrides.lr=1",
            f"modules: unknown key; {BY_ITS_OWN_NAME}",
        ),
        (
            "--lr=1",
            f"--lr: unknown key; {BY_ITS_OWN_NAME}",
        ),
    ],
)
def test_an_unknown_key_on_the_command_line_is_refused(problems: Problems, override: str, problem: str) -> None:
    assert problems(override) == [f"command line: {problem}"]


def test_an_unknown_key_in_a_preset_is_refused_with_the_preset_and_its_line(write: Write, problems: Problems) -> None:
    write("mine.yaml", "extends: tiny_llama.yaml\n\nhead_dim: 64\n")
    assert problems("model=mine.yaml") == ["mine.yaml:3: head_dim: unknown key; did you mean 'kv_channels'?"]


def test_names_of_other_trainers_lead_to_keys_that_exist() -> None:
    known = TrainerConfig.model_fields.keys() | TrainConfig.model_fields.keys() | LoraConfig.model_fields.keys()
    assert known.isdisjoint(SAME_MEANING)
    assert known.issuperset(SAME_MEANING.values())
