# SPDX-License-Identifier: Apache-2.0
import pytest

from primus.config import load_config
from primus.config.places import EXAMPLES
from primus.config.tree import COMMAND_LINE, Items, Scalar, Section, plain_data
from primus.config.variables import expand_section
from tests.unit_tests.config.conftest import RUN, Problems, Write


def _expand(text: str, *, is_quoted: bool = False) -> object:
    problems: list[str] = []
    section = Section({"key": Scalar(text, COMMAND_LINE, is_quoted=is_quoted)}, COMMAND_LINE)
    expanded = expand_section(section, problems=problems)
    assert not problems
    return plain_data(expanded.children["key"])


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UNSET", "SFT_DATASET", "PRIMUS_EXAMPLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NAME", "value")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("LIST", "[a.jsonl, b.jsonl]")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${NAME}", "value"),
        ("${UNSET:other}", "other"),
        ("${NAME:other}", "value"),
        ("${UNSET:a:b/c}", "a:b/c"),
        ("a/${NAME}/${UNSET:b}.yaml", "a/value/b.yaml"),
        ("${UNSET:null}", None),
        ("${UNSET:}", None),
        ("${EMPTY}", None),
        ("x${EMPTY}", "x"),
        ("${LIST}", ["a.jsonl", "b.jsonl"]),
        ("$${NAME}", "${NAME}"),
        ("$NAME costs 5$ {NAME}", "$NAME costs 5$ {NAME}"),
    ],
)
def test_variables_are_filled_in(text: str, expanded: object) -> None:
    assert _expand(text) == expanded


def test_a_quoted_value_stays_text() -> None:
    assert _expand("${UNSET:null}", is_quoted=True) == "null"
    assert _expand("${LIST}", is_quoted=True) == "[a.jsonl, b.jsonl]"


def test_variables_are_filled_in_inside_lists() -> None:
    section = Section(
        {"key": Items((Scalar("${NAME}", COMMAND_LINE), Scalar("b", COMMAND_LINE)), COMMAND_LINE)}, COMMAND_LINE
    )
    assert plain_data(expand_section(section, problems=[])) == {"key": ["value", "b"]}


def test_the_examples_have_a_variable_that_the_environment_may_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _expand("${PRIMUS_EXAMPLES}/data") == f"{EXAMPLES}/data"
    monkeypatch.setenv("PRIMUS_EXAMPLES", "/mine")
    assert _expand("${PRIMUS_EXAMPLES}/data") == "/mine/data"


def test_a_filled_in_number_is_a_number(write: Write) -> None:
    write("run.yaml", RUN.replace("lr: 1e-3", "lr: ${LR:1e-5}"))
    assert load_config("run.yaml").trainer.lr == 1e-5


def test_a_variable_that_is_not_set_is_refused_with_file_and_key(write: Write, problems: Problems) -> None:
    write("run.yaml", RUN.replace("train.jsonl", "${SFT_DATASET}").replace("exp_name: test", "exp_name: a${UNSET}"))
    assert problems() == [
        (
            "run.yaml:1: exp_name: the environment variable UNSET is not set; "
            "set it, or give exp_name another value (on the command line: exp_name=VALUE)"
        ),
        (
            "run.yaml:8: sft_dataset_name: the environment variable SFT_DATASET is not set; "
            "set it, or give sft_dataset_name another value (on the command line: sft_dataset_name=VALUE)"
        ),
    ]


def test_a_variable_that_is_overridden_need_not_be_set(write: Write) -> None:
    write("run.yaml", RUN.replace("train.jsonl", "${SFT_DATASET}"))
    assert load_config("run.yaml", overrides=["sft_dataset_name=mine.jsonl"]).trainer.sft_dataset_name == "mine.jsonl"


def test_a_variable_inside_a_list_or_a_section_is_refused_by_its_key(problems: Problems) -> None:
    assert [
        problem.partition(";")[0] for problem in problems("sft_dataset_name=['${UNSET}']", "lora.dim=${UNSET}")
    ] == [
        "command line: sft_dataset_name: the environment variable UNSET is not set",
        "command line: lora.dim: the environment variable UNSET is not set",
    ]


def test_a_variable_holds_no_mapping_and_no_broken_list(problems: Problems, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPPING", "{rank: 8}")
    monkeypatch.setenv("BROKEN", "[a")
    assert problems("lora=${MAPPING}") == [
        "command line: lora: its variable holds the mapping {rank: 8}; write the mapping in the file"
    ]
    (broken,) = problems("sft_dataset_name=${BROKEN}")
    assert broken.startswith("command line: sft_dataset_name: '[a' is not valid YAML at column 3: ")


@pytest.mark.parametrize("text", ["${NAME", "${}", "${1A}", "${A-B}", "${UNSET:${NAME}}", "${UNSET:{a}}"])
def test_a_malformed_variable_is_refused(problems: Problems, text: str) -> None:
    assert problems(f"exp_name={text}") == [
        (
            f"command line: exp_name: '{text}' is not a well-formed variable; write ${{NAME}} or ${{NAME:default}}, "
            "without braces in the default, or $${ for the text itself"
        )
    ]
