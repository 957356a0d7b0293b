# SPDX-License-Identifier: Apache-2.0
"""The ledger: counts that sum to the rows, and sums of ledgers."""

import pickle

from hypothesis import given
from hypothesis import strategies as st

from primus.chat.fixups import NOTHING_LEFT
from primus.sft.ledger import CONVERTED, TRAINED, Ledger

GROUPS = st.lists(
    st.tuples(
        st.sampled_from([CONVERTED, TRAINED, NOTHING_LEFT, "bad:role"]), st.integers(1, 3), st.integers(1, 3),
        st.sets(st.sampled_from(["a", "b", "c"])),
    ),
    max_size=12,
)  # fmt: skip


def filled(groups: list[tuple[str, int, int, set[str]]], *, first: int = 0) -> Ledger:
    ledger = Ledger()
    for number, (outcome, num_rows, num_conversations, fields) in enumerate(groups, start=first):
        used = num_conversations if outcome in (CONVERTED, TRAINED) else 0
        ledger.record_together(
            outcome, origins=[f"a:{number}.{i}" for i in range(num_rows)], num_conversations=used, num_dropped=1
        )
        ledger.ignored_fields.update(sorted(fields))
    return ledger


@given(groups=GROUPS, cut=st.integers(0, 12))
def test_the_ledger_of_all_rows_is_the_sum_of_those_of_its_parts(
    groups: list[tuple[str, int, int, set[str]]], cut: int
) -> None:
    total = filled(groups[:cut])
    total.add(pickle.loads(pickle.dumps(filled(groups[cut:], first=len(groups[:cut])))))
    assert total.to_dict() == filled(groups).to_dict()
    assert total.lines() == filled(groups).lines()


@given(groups=GROUPS)
def test_outcomes_sum_to_the_rows_and_rows_to_the_conversations(groups: list[tuple[str, int, int, set[str]]]) -> None:
    ledger = filled(groups)
    assert sum(ledger.outcomes.values()) == ledger.num_rows == sum(num_rows for _, num_rows, _, _ in groups)
    assert ledger.num_conversations == ledger.num_used - ledger.num_joined + ledger.num_branches
    assert sum(map(len, ledger.origins.values())) == ledger.num_rows - ledger.num_used


def test_ignored_fields_are_listed_from_the_most_frequent_on_and_then_by_name() -> None:
    ledger = Ledger()
    for fields in (["id", "score"], ["score", "a"], ["id", "score"], ["b"]):
        ledger.ignored_fields.update(fields)
    assert ledger.lines()[-1] == (
        "  ignored, for they have no place in a conversation: 'score' (3 rows), 'id' (2 rows), 'a' (1 row), 'b' (1 row)"
    )
