# SPDX-License-Identifier: Apache-2.0
import pytest

from primus.config import load_config
from primus.config.documents import read_document
from primus.config.places import EXAMPLE_CONFIGS
from primus.config.tree import plain_data
from primus.errors import ConfigError
from tests.unit_tests.config.conftest import Problems, Write


def test_a_file_is_merged_onto_what_it_extends_and_the_later_wins(write: Write) -> None:
    write("a.yaml", "x: a\ny: a\nz: a\nm: {p: a, q: a}\n")
    write("b.yaml", "y: b\nz: b\nm: {q: b}\n")
    path = write("c.yaml", "extends: [a.yaml, b.yaml]\nz: c\n")
    assert plain_data(read_document(path, library=EXAMPLE_CONFIGS)) == {
        "x": "a",
        "y": "b",
        "z": "c",
        "m": {"p": "a", "q": "b"},
    }


def test_extended_files_are_found_beside_the_file_that_names_them(write: Write) -> None:
    write("deep/base.yaml", "extends: ../top.yaml\nx: base\n")
    write("top.yaml", "y: top\n")
    path = write("deep/run.yaml", "extends: base.yaml\n")
    assert plain_data(read_document(path, library=EXAMPLE_CONFIGS)) == {"x": "base", "y": "top"}


def test_a_configuration_may_extend_a_shipped_one(write: Write) -> None:
    write("mine.yaml", "extends: tiny-multiturn-sft.yaml\nmodules: {post_trainer: {overrides: {lr: 0.5}}}\n")
    config = load_config("mine.yaml")
    assert config.trainer.lr == 0.5
    assert config.trainer.hidden_size == 128


def test_two_files_may_extend_the_same_one(write: Write) -> None:
    write("a.yaml", "x: 1\n")
    write("b.yaml", "extends: a.yaml\n")
    write("c.yaml", "extends: a.yaml\n")
    path = write("d.yaml", "extends: [b.yaml, c.yaml]\n")
    assert plain_data(read_document(path, library=EXAMPLE_CONFIGS)) == {"x": "1"}


def test_extending_takes_variables(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASE", "a")
    write("a.yaml", "x: 1\n")
    path = write("b.yaml", "extends: ${BASE}.yaml\n")
    assert plain_data(read_document(path, library=EXAMPLE_CONFIGS)) == {"x": "1"}


def test_a_circle_is_refused(write: Write, problems: Problems) -> None:
    write("a.yaml", "x: 1\nextends: b.yaml\n")
    write("b.yaml", "extends: [c.yaml]\n")
    write("c.yaml", "extends: b.yaml\n")
    assert problems(path="a.yaml") == ["c.yaml:1: extends: b.yaml -> c.yaml -> b.yaml is a circle; remove one of them"]
    write("self.yaml", "extends: self.yaml\n")
    assert problems(path="self.yaml") == [
        "self.yaml:1: extends: self.yaml -> self.yaml is a circle; remove one of them"
    ]


def test_a_missing_base_is_refused_with_the_nearest_name(write: Write, problems: Problems) -> None:
    write("basis.yaml", "x: 1\n")
    write("a.yaml", "extends: bases.yaml\n")
    (problem,) = problems(path="a.yaml")
    assert problem.startswith("a.yaml:1: extends: there is no file 'bases.yaml' in '.' or in '")
    assert problem.endswith("examples/configs'; did you mean 'basis.yaml'?")


@pytest.mark.parametrize("value", ["{a: 1}", "[[a]]", "null", "''"])
def test_what_is_not_a_file_name_is_refused(write: Write, value: str) -> None:
    path = write("a.yaml", f"extends: {value}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:1: extends: .* is not the name of a file; write one, for example"):
        read_document(path, library=EXAMPLE_CONFIGS)
