# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from primus.sft.formatters.template.origin import EXACT, Run, Tracked, joined, joined_by, plain, runs_of
from primus.sft.formatters.template.values import tracked_json, tracked_repr

TEXTS = st.text(st.sampled_from("ab AB\n\t-'\"\\éß\u2028🎉\x01"), max_size=8)
PAIRS = st.tuples(TEXTS, TEXTS)
SEPARATORS = st.sampled_from([" ", "-", "b", "\n", "ab", "é"])
COUNTS = st.sampled_from([-1, 0, 1, 2])


def tracked(texts: Sequence[str]) -> list[Tracked]:
    return [Tracked(text, [Run(0, len(text), number, 0, len(text), EXACT)]) for number, text in enumerate(texts)]


def assert_follows(text: str, expected: str, sources: Sequence[str]) -> None:
    """The text is the expected one; exact runs are copies of their sources, in order and disjoint."""
    assert plain(text) == expected
    end = 0
    for run in runs_of(text):
        assert end <= run.start <= run.end <= len(expected)
        end = run.end
        if run.kind == EXACT:
            assert expected[run.start : run.end] == sources[run.source][run.first : run.last]


def covered(text: str) -> int:
    return sum(run.end - run.start for run in runs_of(text))


@given(PAIRS, SEPARATORS, COUNTS, st.none() | st.just(" a") | st.just("\n"))
def test_string_methods_give_what_strings_give_and_keep_every_character(
    texts: tuple[str, str], sep: str, count: int, chars: str | None
) -> None:
    one, other = tracked(texts)
    both, expected = one + other, texts[0] + texts[1]
    assert_follows(both, expected, texts)
    assert covered(both) == len(expected)
    for name, arguments in [
        ("strip", (chars,)), ("lstrip", (chars,)), ("rstrip", (chars,)), ("split", (None, count)),
        ("split", (sep, count)), ("rsplit", (None, count)), ("rsplit", (sep, count)), ("splitlines", ()),
        ("splitlines", (True,)), ("partition", (sep,)), ("rpartition", (sep,)), ("removeprefix", (sep,)),
        ("removesuffix", (sep,)),
    ]:  # fmt: skip
        result, right = getattr(both, name)(*arguments), getattr(expected, name)(*arguments)
        pieces, wanted = ([result], [right]) if isinstance(right, str) else (list(result), list(right))
        assert len(pieces) == len(wanted)
        for piece, text in zip(pieces, wanted, strict=True):
            assert_follows(piece, text, texts)
            assert covered(piece) == len(text)


@given(PAIRS, SEPARATORS, COUNTS, st.slices(9), st.integers(0, 3))
def test_other_operations_do_so_too(texts: tuple[str, str], old: str, count: int, part: slice, times: int) -> None:
    one, other = tracked(texts)
    both, expected = one + "-" + other, f"{texts[0]}-{texts[1]}"
    for result, right in [
        (both.replace(old, "+", count), expected.replace(old, "+", count)),
        (both.replace("-", one), expected.replace("-", texts[0])),
        (both[part], expected[part]),
        (both * times, expected * times),
        ("x" + both, "x" + expected),
        (joined(both), expected),
        (joined_by("-", [one, "", other]), "-".join([texts[0], "", texts[1]])),
        (one.join([other, "b"]), texts[0].join([texts[1], "b"])),
    ]:
        assert_follows(result, right, texts)
    assert [plain(character) for character in both] == list(expected)
    assert (both == expected, hash(both) == hash(expected)) == (True, True)


@given(PAIRS)
def test_case_changes_keep_places_or_lose_the_origin(texts: tuple[str, str]) -> None:
    [one] = tracked(texts[:1])
    for name in ("upper", "lower", "title", "capitalize", "swapcase", "casefold"):
        result, right = getattr(one, name)(), getattr(texts[0], name)()
        assert_follows(result, right, texts)
        assert covered(result) in ([len(right)] if len(right) == len(texts[0]) else [0])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def deep(value: Any, sources: list[str]) -> Any:
    if isinstance(value, str):
        sources.append(value)
        return Tracked(value, [Run(0, len(value), len(sources) - 1, 0, len(value), EXACT)])
    if isinstance(value, list):
        return [deep(item, sources) for item in value]
    if isinstance(value, dict):
        return {deep(key, sources): deep(item, sources) for key, item in value.items()}
    return value


@given(
    VALUES,
    st.fixed_dictionaries(
        {},
        optional={
            "ensure_ascii": st.booleans(),
            "indent": st.sampled_from([None, 0, 2, "\t"]),
            "separators": st.sampled_from([None, (",", ":")]),
            "sort_keys": st.booleans(),
        },
    ),
)
def test_json_with_runs_is_json(value: Any, options: dict[str, Any]) -> None:
    sources: list[str] = []
    text = tracked_json(deep(value, sources), **options)
    assert_follows(text, json.dumps(value, **{"ensure_ascii": False, **options}), sources)
    assert {run.source for run in runs_of(text)} == set(range(len(sources)))


@given(VALUES | st.tuples(TEXTS) | st.tuples(TEXTS, VALUES))
def test_printed_values_with_runs_are_as_python_prints_them(value: Any) -> None:
    sources: list[str] = []
    tracked_value = tuple(deep(item, sources) for item in value) if isinstance(value, tuple) else deep(value, sources)
    assert_follows(tracked_repr(tracked_value), repr(value), sources)
