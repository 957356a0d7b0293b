# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from primus.config.strict_yaml import parse_value, read_yaml
from primus.config.tree import COMMAND_LINE, Scalar, plain_data
from primus.errors import ConfigError
from tests.unit_tests.config.conftest import Write


def test_every_value_knows_its_line(write: Write) -> None:
    section = read_yaml(write("a.yaml", "x: 1\ny:\n  z: [2,\n    3]\n"))
    assert [section.children[key].origin.line for key in "xy"] == [1, 3]
    z = section.find("y.z")
    assert z is not None
    assert z.origin.line == 3


def test_scalars_stay_text_and_only_an_unquoted_null_is_null(write: Write) -> None:
    section = read_yaml(write("a.yaml", "a: no\nb: 1e-5\nc: 017\nd: null\ne: ~\nf:\ng: 'null'\nh: ''\ni: 2024-01-01\n"))
    assert plain_data(section) == {
        "a": "no",
        "b": "1e-5",
        "c": "017",
        "d": None,
        "e": None,
        "f": None,
        "g": "null",
        "h": "",
        "i": "2024-01-01",
    }


def test_duplicate_keys_are_refused_with_both_lines(write: Write) -> None:
    path = write("a.yaml", "lr: 1\nb:\n  c: 1\n  c: 2\nd: 1\nlr: 2\nlr: 3\n")
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert caught.value.problems == (
        f"{path}:4: c: the key is given twice, first on line 3; keep one",
        f"{path}:6: lr: the key is given twice, first on line 1; keep one",
        f"{path}:7: lr: the key is given twice, first on line 1; keep one",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "a: [1\nb: 2\n",
            r"a\.yaml:2: not valid YAML at column 2: expected ',' or ']', but got ':'; check indentation",
        ),
        ("a: 1\n\tb: 2\n", r"a\.yaml:2: not valid YAML at column 1: found character '\\t'"),
        ("a: b: c\n", r"a\.yaml:1: not valid YAML at column 5: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", r"a\.yaml:2: not valid YAML at column 1: but found another document"),
        ("a: *b\n", r"a\.yaml:1: not valid YAML at column 4: found undefined alias 'b'"),
        ("a: \x07\n", r"a\.yaml: not valid YAML: unacceptable character #x0007: .*; remove the character"),
        ("", r"a\.yaml: is empty, which is not a mapping; write keys and values"),
        ("# nothing\n", r"a\.yaml: is empty, which is not a mapping"),
        ("- a\n", r"a\.yaml: holds \['a'\], which is not a mapping"),
        (
            "a: !!python/name:os.system\n",
            r"a\.yaml:1: the tag '!!python/name:os.system' is not supported; write a plain",
        ),
        ("a: !mine 1\n", r"a\.yaml:1: the tag '!mine' is not supported"),
        ("a: &a\n  b: *a\n", r"a\.yaml:1: an alias stands inside its own anchor; write the value out"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n", r"a\.yaml:3: <<: merge keys are not supported; use `extends`"),
        ("a: " + "[" * 5000, r"a\.yaml: nested too deeply; flatten its lists and mappings"),
        ("? [a]\n: 1\n", r"a\.yaml:1: a key is a list or a mapping; keys are plain names"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_line(write: Write, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_yaml(write("a.yaml", text))


def test_a_file_that_cannot_be_read_is_refused(write: Write, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file or directory; check the path"):
        read_yaml(Path("none.yaml"))
    (folder / "latin.yaml").write_bytes(b"a: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: byte 6 is not UTF-8; save the file as UTF-8"):
        read_yaml(Path("latin.yaml"))


def test_anchors_repeat_a_value(write: Write) -> None:
    assert plain_data(read_yaml(write("a.yaml", "a: &x [1, 2]\nb: *x\n"))) == {"a": ["1", "2"], "b": ["1", "2"]}


@pytest.mark.parametrize("text", ["a: b", "#1", "*.jsonl", "&x", "!x", "@x", "%x", "a #b", "- a", "x: {", "${A:b}"])
def test_a_plain_value_outside_a_file_needs_no_quotes(text: str) -> None:
    assert parse_value(text, key="files", origin=COMMAND_LINE) == Scalar(text, COMMAND_LINE)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("null", None),
        ("~", None),
        ("", None),
        (" 8 ", "8"),
        ("'null'", "null"),
        ('""', ""),
        ("[a, b c]", ["a", "b c"]),
        ("{dim: 8, x: [1]}", {"dim": "8", "x": ["1"]}),
    ],
)
def test_null_lists_mappings_and_quotes_are_read_outside_a_file_too(text: str, data: object) -> None:
    assert plain_data(parse_value(text, key="files", origin=COMMAND_LINE)) == data


def test_a_broken_list_outside_a_file_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"command line: files: '\[a' is not valid YAML at column 3: .*; check indentation and quotes"
    ):
        parse_value("[a", key="files", origin=COMMAND_LINE)


PLAIN = st.recursive(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))),
    lambda children: st.lists(children) | st.dictionaries(st.text("abc", min_size=1), children),
    max_leaves=10,
)


@given(st.dictionaries(st.text("abc", min_size=1), PLAIN))
def test_what_yaml_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(yaml.safe_dump(data, default_style='"', allow_unicode=True), encoding="utf-8")
    if data:
        assert plain_data(read_yaml(path)) == data
