# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

import pytest

from primus.config import LoraConfig, TrainConfig, TrainerConfig, describe_keys, load_config
from primus.config.places import MODEL_PRESETS
from primus.config.reference import keys_as_markdown
from tests.unit_tests.config.conftest import Write

DOC = Path(__file__).parents[3] / "docs" / "CONFIGURATION.md"


def test_every_key_is_described_once() -> None:
    names = [key.name for key in describe_keys()]
    lora = [f"lora.{name}" for name in LoraConfig.model_fields]
    expected = [
        *(TrainConfig.model_fields.keys() - {"trainer"}),
        *(TrainerConfig.model_fields.keys() - {"lora"}),
        *lora,
    ]
    assert sorted(names) == sorted(expected)
    assert all(key.text for key in describe_keys())


@pytest.mark.parametrize(
    ("name", "type_", "default"),
    [
        ("seq_length", "whole number > 0", "required"),
        ("num_query_groups", "whole number > 0 or null", "null"),
        ("adam_beta1", "number >= 0 < 1", "0.9"),
        ("sft_dataset_name", "text or list of text or null", "null"),
        ("sft_truncation", "`error`, `drop`, `right`, `keep_last_turns`, `window`", "error"),
        ("bf16", "true or false", "false"),
        ("workspace", "path", "output"),
        ("lora.target_modules", "list of text", "[linear_qkv, linear_proj, linear_fc1, linear_fc2]"),
    ],
)
def test_a_key_is_described_with_its_type_and_default(name: str, type_: str, default: str) -> None:
    key = next(key for key in describe_keys() if key.name == name)
    assert (key.type, key.default) == (type_, default)


def test_the_document_has_the_keys_of_the_schema() -> None:
    text = DOC.read_text(encoding="utf-8")
    assert text.endswith(keys_as_markdown()), "run scripts/write_configuration_doc.py"


def test_the_first_example_of_the_document_loads(write: Write) -> None:
    example = re.search(r"```yaml\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    write("example.yaml", example[1])
    assert load_config("example.yaml").trainer.sft_num_epochs == 2


def test_the_document_names_every_model_preset() -> None:
    section = DOC.read_text(encoding="utf-8").partition("## Model presets")[2].partition("## Keys")[0]
    assert all(f"`{path.stem}`" in section for path in MODEL_PRESETS.glob("*.yaml"))
