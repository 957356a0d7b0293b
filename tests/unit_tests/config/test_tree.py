# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from primus.config.tree import COMMAND_LINE, Items, Node, Origin, Scalar, Section, merge, merge_sections, plain_data

SCALARS = st.builds(Scalar, st.none() | st.text(max_size=3), st.just(COMMAND_LINE))
ITEMS = st.builds(lambda scalars: Items(tuple(scalars), COMMAND_LINE), st.lists(SCALARS, max_size=2))


def _sections(values: st.SearchStrategy[Node]) -> st.SearchStrategy[Section]:
    return st.builds(Section, st.dictionaries(st.sampled_from("abcd"), values), st.just(COMMAND_LINE))


SECTIONS = _sections(st.recursive(SCALARS | ITEMS, lambda nodes: nodes | _sections(nodes), max_leaves=8))
# In these a key is either always a mapping or never, as in a schema.
TYPED_SECTIONS: st.SearchStrategy[Section] = st.deferred(
    lambda: st.builds(
        lambda values, sections: Section({**values, **sections}, COMMAND_LINE),
        st.dictionaries(st.sampled_from("ab"), SCALARS | ITEMS),
        st.dictionaries(st.sampled_from("cd"), st.just(Section({}, COMMAND_LINE)) | TYPED_SECTIONS, max_size=2),
    )
)


def _scalar(text: str, line: int) -> Scalar:
    return Scalar(text, Origin(Path("a.yaml"), line))


def test_merging_goes_into_mappings_and_replaces_lists() -> None:
    base = Section({"a": Section({"x": _scalar("1", 1), "y": _scalar("2", 2)}, COMMAND_LINE)}, COMMAND_LINE)
    over = Section({"a": Section({"y": Items((), COMMAND_LINE)}, COMMAND_LINE), "b": _scalar("3", 3)}, COMMAND_LINE)
    assert plain_data(merge(base, over)) == {"a": {"x": "1", "y": []}, "b": "3"}


def test_a_merged_value_keeps_its_own_origin() -> None:
    merged = merge_sections(
        Section({"x": _scalar("1", 1), "y": _scalar("2", 2)}, COMMAND_LINE),
        Section({"y": Scalar("3", COMMAND_LINE)}, COMMAND_LINE),
    )
    assert {key: str(node.origin) for key, node in merged.children.items()} == {"x": "a.yaml:1", "y": "command line"}


@given(TYPED_SECTIONS, TYPED_SECTIONS, TYPED_SECTIONS)
def test_layers_may_be_merged_in_any_grouping(a: Section, b: Section, c: Section) -> None:
    assert plain_data(merge(merge(a, b), c)) == plain_data(merge(a, merge(b, c)))


@given(SECTIONS)
def test_merging_with_itself_or_nothing_changes_nothing(section: Section) -> None:
    nothing = Section({}, COMMAND_LINE)
    assert merge(section, section) == merge(section, nothing) == merge(nothing, section) == section


@given(SECTIONS, SECTIONS)
def test_what_is_merged_on_top_is_found_there(base: Section, over: Section) -> None:
    merged = merge_sections(base, over)
    for key, node in over.children.items():
        if not isinstance(node, Section):
            assert merged.find(key) == node
    assert merged.children.keys() == base.children.keys() | over.children.keys()


def test_a_dotted_key_finds_a_value_or_nothing() -> None:
    section = Section({"lora": Section({"dim": _scalar("8", 2)}, COMMAND_LINE), "lr": _scalar("1", 1)}, COMMAND_LINE)
    assert section.find("lora.dim") == _scalar("8", 2)
    assert section.find("lora.rank") is None
    assert section.find("lr.dim") is None


def test_values_are_shown_as_they_were_written() -> None:
    section = Section(
        {"a": Scalar(None, COMMAND_LINE), "b": Items((_scalar("1e-5", 1), _scalar("x", 1)), COMMAND_LINE)}, COMMAND_LINE
    )
    assert str(section) == "{a: null, b: [1e-5, 'x']}"
