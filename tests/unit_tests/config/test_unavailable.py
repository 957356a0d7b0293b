# SPDX-License-Identifier: Apache-2.0
import pytest

from primus.config.unavailable import UNAVAILABLE
from tests.unit_tests.config.conftest import Problems

CASES = {
    "add_bias_linear=true": "set it to false; add_qkv_bias is the bias that Qwen2 has",
}


@pytest.mark.parametrize(("override", "instead"), CASES.items())
def test_a_feature_that_is_not_there_is_refused_with_what_works(
    problems: Problems, override: str, instead: str
) -> None:
    key, _, value = override.partition("=")
    shown = value if value.isdigit() else repr(value)
    assert problems(override) == [f"command line: {key}: {shown} is not available yet; {instead}"]


def test_every_unavailable_feature_has_a_case() -> None:
    assert [feature.key for feature in UNAVAILABLE] == [override.partition("=")[0] for override in CASES]


def test_a_wrong_value_of_such_a_key_is_reported_as_that(problems: Problems) -> None:
    assert problems("add_bias_linear=two", "lora.enabled=maybe") == [
        "command line: add_bias_linear: 'two' is neither true nor false; write one of the two",
        "command line: lora.enabled: 'maybe' is neither true nor false; write one of the two",
    ]
