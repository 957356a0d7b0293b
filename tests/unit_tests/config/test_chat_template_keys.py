# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from primus.config import load_config
from tests.unit_tests.config.conftest import Problems


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("{enable_thinking: false}", {"enable_thinking": False}),
        ("{effort: high, budget: 3, share: 0.5, on: true}", {"effort": "high", "budget": 3, "share": 0.5, "on": True}),
        ("{deep: {list: [1, two, null]}}", {"deep": {"list": [1, "two", None]}}),
        ("{}", {}),
    ],
)
def test_variables_of_a_template_have_the_types_that_yaml_gives_them(override: str, value: dict[str, Any]) -> None:
    config = load_config(
        "run.yaml", overrides=["sft_conversation_format=template", f"sft_chat_template_kwargs={override}"]
    )
    assert config.trainer.sft_chat_template_kwargs == value


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["sft_chat_template=t.jinja"], "sft_chat_template: is for sft_conversation_format: template, and that is"),
        (["sft_chat_template_kwargs={a: 1}"], "is for sft_conversation_format: template, and that is 'openai'"),
        (["sft_conversation_format=template", "sft_add_bos=true"], "the format 'template' writes BOS itself"),
        (["sft_conversation_format=llama3", "sft_add_bos=true"], "the format 'llama3' writes BOS itself"),
        (
            ["sft_conversation_format=template", "sft_chat_template_kwargs=3"],
            "3 is not a mapping; write its keys below",
        ),
    ],
)
def test_a_template_goes_with_its_format(problems: Problems, overrides: list[str], problem: str) -> None:
    [line] = problems(*overrides)
    assert problem in line
