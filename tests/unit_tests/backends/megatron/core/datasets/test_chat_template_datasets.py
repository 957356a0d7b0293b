# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset, build_train_valid_test_datasets
from primus.errors import ConfigError, DataError
from primus.sft.dataset import EncodingOptions

DEMO_TOKENIZER = Path(__file__).parents[6] / "examples" / "data" / "demo-tokenizer"
TEMPLATE = """{{ greeting | default('') }}{% for m in messages %}
{{ '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>' }}
{% endfor %}{{ '<|im_start|>assistant\\n' if add_generation_prompt }}"""
ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Hello, Milo. "}]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    (tmp_path / "data.jsonl").write_text(json.dumps(ROW) + "\n")
    return tmp_path / "data.jsonl"


def trained(dataset: SFTDataset) -> str:
    item = dataset[0]
    return dataset.tokenizer.decode(item["labels"][item["loss_mask"] > 0].tolist())


def test_a_data_set_trains_what_the_template_makes_of_an_answer(data: Path) -> None:
    dataset = SFTDataset(
        data, DEMO_TOKENIZER, 64, formatter="template", chat_template=data.with_name("t.jinja"),
        supervise_end_of_turn=True, chat_template_kwargs={"greeting": "Welcome"},
    )  # fmt: skip
    assert trained(dataset) == "Hello, Milo.<|im_end|>"
    assert dataset.tokenizer.decode(dataset[0]["input_ids"].tolist()).startswith("Welcome<|im_start|>user")


def test_all_splits_are_rendered_with_the_template(data: Path) -> None:
    train, validation, _ = build_train_valid_test_datasets(
        data, DEMO_TOKENIZER, 64, formatter="template", chat_template=data.with_name("t.jinja"),
        validation_dataset_name=data, options=EncodingOptions(supervise_end_of_turn=True),
    )  # fmt: skip
    assert validation is not None
    assert trained(train) == trained(validation) == "Hello, Milo.<|im_end|>"


def test_a_second_bos_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"^sft_add_bos: is on, but the format writes BOS itself"):
        SFTDataset(
            data, DEMO_TOKENIZER, 64, formatter="template", chat_template=data.with_name("t.jinja"), add_bos=True
        )


def test_a_row_that_the_template_refuses_is_named_with_its_line(data: Path) -> None:
    data.with_name("t.jinja").write_text("{{ raise_exception('no chat today') }}")
    with pytest.raises(DataError, match=r"data.jsonl:1: the chat template refuses the conversation \(no chat today\)"):
        SFTDataset(data, DEMO_TOKENIZER, 64, formatter="template", chat_template=data.with_name("t.jinja"))
