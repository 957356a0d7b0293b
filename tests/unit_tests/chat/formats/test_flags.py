# SPDX-License-Identifier: Apache-2.0
"""What a row says about all of its answers: bad examples are refused, and weights reach the answers."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from primus.chat import Conversation
from primus.chat.conversations import Reading, read_conversations
from primus.chat.formats import ColumnMap, SourceOptions, parse_row
from primus.errors import ConversationError
from tests.unit_tests.chat import seed_rows as seeds

FALSE = [False, 0, 0.0, "0", "false", "False", "FALSE", " false ", "0.0"]
TRUE = [True, 1, 1.0, "1", "true", "True", "1.0"]
# A row of every format that reads rows of their own.
ROWS: list[dict[str, Any]] = [
    seeds.OPENAI, seeds.SHAREGPT, seeds.PAIRS, seeds.ANTHROPIC, seeds.LLAMAFACTORY, seeds.XTUNER, seeds.TOOLTALK,
    seeds.SWE_AGENT, seeds.OASST, seeds.HH, seeds.HH_CUT, seeds.ALPACA, seeds.COMPLETION, seeds.CHOSEN,
]  # fmt: skip
MARKED = pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))


def read(row: Any, **options: Any) -> Conversation:
    [conversation] = parse_row(row, "a.jsonl:1", SourceOptions(**options))
    return conversation


def weights(conversation: Conversation) -> list[float | None]:
    return [message.weight for message in conversation.messages if message.role == "assistant"]


def refusal(row: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(ConversationError, match=r"^a\.jsonl:1: ") as refused:
        parse_row(row, "a.jsonl:1", SourceOptions(**options))
    return refused.value.reason, str(refused.value)


def read_table(rows: list[dict[str, Any]], path: Path, column_map: dict[str, Any] | None = None) -> Reading:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    mapped = None if column_map is None else ColumnMap.from_mapping(column_map)
    [reading] = read_conversations([path], SourceOptions(column_map=mapped))
    return reading


@MARKED
@pytest.mark.parametrize("name", ["label", "kto_tag"])
def test_bad_examples_of_every_format_are_refused(row: dict[str, Any], name: str) -> None:
    for value in FALSE:
        reason, message = refusal({**row, name: value})
        assert reason == "rejected_answer"
        assert f"so the answer is an example of a bad one; drop the row, or {name} to train it" in message


@MARKED
def test_good_examples_of_every_format_are_read_as_without_the_label(row: dict[str, Any]) -> None:
    plain = parse_row(row, "a.jsonl:1", SourceOptions())
    for value in TRUE:
        marked = parse_row({**row, "label": value}, "a.jsonl:1", SourceOptions())
        assert marked == plain
        assert [c.ignored_fields for c in marked] == [c.ignored_fields for c in plain]


@pytest.mark.parametrize("value", ["news", 2, -1, [0], ""])
def test_a_label_that_is_a_class_is_counted(value: Any) -> None:
    assert read({**seeds.ALPACA, "label": value}).ignored_fields == ("category", "label")
    assert read({"messages": [*seeds.BARE[:1], {**seeds.BARE[1], "label": value}]}).ignored_fields == ("label",)


@pytest.mark.parametrize(
    "mapping", [{"prompt": "q", "response": "a", "label": "meta.ok"}, {"messages": "m", "label": "meta.ok"}]
)
def test_a_declared_label_is_true_or_false(mapping: dict[str, Any]) -> None:
    row = {"q": "a", "a": "b"} if "prompt" in mapping else {"m": seeds.BARE}
    column_map = ColumnMap.from_mapping(mapping)
    for value in FALSE:
        assert refusal({**row, "meta": {"ok": value}}, column_map=column_map)[0] == "rejected_answer"
    for value in [*TRUE, None]:
        assert read({**row, "meta": {"ok": value}}, column_map=column_map).ignored_fields == ()
    for value in ("no", 2, ""):
        reason, message = refusal({**row, "meta": {"ok": value}}, column_map=column_map)
        assert (reason, f"meta.ok is {value!r}, which is neither true nor false; write" in message) == ("label", True)


def test_a_label_beside_a_column_map_counts_unless_the_map_says_what_it_is() -> None:
    single = ColumnMap.from_mapping({"prompt": "q", "response": "a"})
    assert refusal({"q": "a", "a": "b", "label": 0}, column_map=single)[0] == "rejected_answer"
    assert weights(read({"q": "a", "a": "b", "weight": "0"}, column_map=single)) == [0]
    named = ColumnMap.from_mapping({"prompt": "label", "response": "loss"})
    assert [m.content for m in read({"label": "0", "loss": "0"}, column_map=named).messages] == ["0", "0"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*seeds.BARE, {**seeds.BARE[1], "label": False}]},
        {"messages": [{"role": "assistant", "content": [{"type": "text", "value": "x"}], "kto_tag": "0"}]},
        {"messages": [{"role": "assistant", "content": [seeds.ANTHROPIC["messages"][1]["content"][0]], "label": 0}]},
        {"conversations": [{"from": "function_call", "value": '{"name": "f"}', "label": "False"}]},
        {"conversation": [{"human": "a", "assistant": "b", "label": False}]},
        {"conversation": [{"input": "a", "output": "b", "label": False}]},
    ],
)
def test_answers_that_are_marked_as_bad_are_refused(row: Any) -> None:
    assert refusal(row)[0] == "rejected_answer"


def test_labels_of_other_messages_are_counted() -> None:
    row = {"messages": [{**seeds.BARE[0], "label": 0}, {**seeds.BARE[1], "label": True}]}
    assert read(row).ignored_fields == ("label",)
    assert read({"messages": [seeds.BARE[0], {**seeds.BARE[1], "label": True}]}).ignored_fields == ()


@pytest.mark.parametrize("turn", range(4))
def test_a_turn_with_a_false_label_refuses_its_conversation(turn: int, tmp_path: Path) -> None:
    rows = copy.deepcopy(seeds.TABLE)
    rows[turn]["label"] = "False"
    error = read_table(rows, tmp_path / "t.jsonl").error
    assert error is not None
    assert error.reason == "rejected_answer"
    rows[turn]["label"] = "1"
    assert read_table(rows, tmp_path / "t.jsonl").conversations[0].ignored_fields == ()
    mapping = {"conversation": "conversation_id", "turn": "turn", "label": "label"}
    for value, reason in (("0", "rejected_answer"), ("x", "label")):
        rows[turn]["label"] = value
        error = read_table(rows, tmp_path / "t.jsonl", mapping).error
        assert error is not None
        assert error.reason == reason


@MARKED
@pytest.mark.parametrize(
    "flag",
    [{"weight": 0}, {"loss_weight": 0.0}, {"train": False}, {"trainable": 0}, {"loss": "false"}, {"loss_mask": "0"},
     {"masked": True}, {"masked": "True"}, {"weight": "0", "train": False}],
    ids=str,
)  # fmt: skip
def test_the_weight_of_a_row_reaches_the_answers_that_have_none(row: dict[str, Any], flag: dict[str, Any]) -> None:
    plain = parse_row(row, "a.jsonl:1", SourceOptions())
    flagged = parse_row({**row, **flag}, "a.jsonl:1", SourceOptions())
    assert any(None in weights(conversation) for conversation in plain) or row is seeds.LLAMAFACTORY or (
        row is seeds.OPENAI)  # fmt: skip
    for with_flag, without in zip(flagged, plain, strict=True):
        assert weights(with_flag) == [0 if weight is None else weight for weight in weights(without)]
        assert with_flag.ignored_fields == without.ignored_fields
        assert [m.content for m in with_flag.messages] == [m.content for m in without.messages]


def test_a_weight_of_a_row_may_be_any_that_a_message_may_have() -> None:
    assert weights(read({**seeds.ALPACA, "weight": 0.5})) == [0.5, 0.5]
    assert weights(read({**seeds.ALPACA, "weight": "2.5"})) == [2.5, 2.5]
    assert weights(read({**seeds.COMPLETION, "weight": 2})) == [0, 2]
    assert weights(read({**seeds.ALPACA, "weight": None, "train": None})) == [None, None]


def test_pairs_and_calls_have_the_weight_of_what_they_are_a_part_of() -> None:
    pairs = [{"human": "a", "assistant": "b", "weight": 0}, {"human": "c", "assistant": "d"}]
    assert weights(read({"conversation": pairs})) == [0, None]
    assert weights(read({"conversation": pairs, "weight": 0.5})) == [0, 0.5]
    entries = [{"input": "a", "output": "b", "weight": 0.5}, {"input": "c", "output": "d", "train": False}]
    assert weights(read({"conversation": entries})) == [0.5, 0]
    tooltalk = copy.deepcopy(seeds.TOOLTALK)
    tooltalk["conversation"][1]["weight"] = 0
    assert weights(read(tooltalk)) == [0, 0]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ({"weight": 0, "train": True}, "says different things about its weight (train True, weight 0.0); keep one"),
        ({"weight": True}, "weight is True, not a number; write 0 or 1"),
        ({"weight": "much"}, "weight is 'much', not a number; write 0 or 1"),
        ({"weight": -1}, "weight -1.0 is not a finite number of at least 0; write 0 or 1"),
        ({"weight": "nan"}, "weight is nan, not a number; write 0 or 1"),
        ({"weight": 1e39}, "weight is 1e+39, not a number; write 0 or 1"),
        ({"weight": 1e-46}, "weight is 1e-46, which is 0 as a float32; write 0 to keep the answer as context, or"),
        ({"loss": 2.31}, "loss is 2.31, which says neither that the answers are trained nor that they are not; write"),
        ({"loss": "2.31"}, "loss is '2.31', which says neither that the answers are trained nor that they are not"),
        ({"loss_mask": [0, 1]}, "loss_mask is [0, 1], not a number; write 0 or 1"),
        ({"mask": 1}, "mask does not say whether 1 means trained; write weight 0 or 1 instead"),
        ({"mask": "0"}, "mask does not say whether 1 means trained; write weight 0 or 1 instead"),
    ],
)
@pytest.mark.parametrize("row", [seeds.ALPACA, seeds.PAIRS, {"messages": seeds.BARE}], ids=range(3))
def test_a_flag_of_a_row_that_says_nothing_clear_is_refused(
    row: dict[str, Any], flag: dict[str, Any], message: str
) -> None:
    reason, found = refusal({**row, **flag})
    assert (reason, message.replace("0.0)", "0)") in found.replace("0.0)", "0)")) == ("weight", True)


def test_an_entry_that_says_two_things_about_its_weight_is_refused() -> None:
    row = {"conversation": [{"input": "a", "output": "b", "output_with_loss": False, "weight": 1}]}
    reason, message = refusal(row)
    assert reason == "weight"
    assert message.endswith(
        "says different things about its weight (output_with_loss False, and a weight of 1); keep one"
    )


def test_the_speaker_who_is_not_trained_is_no_weight() -> None:
    assert weights(read({**seeds.SHAREGPT, "mask": "User"})) == [None, 1]
    assert "mask" in read({**seeds.SHAREGPT, "mask": "User"}).ignored_fields


def test_cells_of_a_table_of_text_are_flags_too(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("prompt,completion,label,weight\na,b,True,0\na,b,False,\na,b,,\n", encoding="utf-8")
    first, second, third = read_conversations([path], SourceOptions())
    assert weights(first.conversations[0]) == [0]
    assert second.error is not None
    assert second.error.reason == "rejected_answer"
    assert weights(third.conversations[0]) == [None]
