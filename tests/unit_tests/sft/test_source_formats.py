# SPDX-License-Identifier: Apache-2.0
"""Rows of every format are trained or in the ledger: joined rows and branches are counted, and the sums hold."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from primus.chat.formats import AUTO, FORMATS
from primus.config.schema import DataKeys
from primus.errors import DataError
from primus.sft.dataset import EncodingOptions, TokenizedDataset, tokenize_files
from primus.sft.formatters import IM_END, OpenAIMessagesFormatter
from primus.sft.ledger import Ledger
from primus.sft.tokenizer import SFTTokenizer


def reply(text: str, rank: int | None = None, *replies: dict[str, Any], role: str = "assistant") -> dict[str, Any]:
    return {"role": role, "text": text, "rank": rank, "replies": list(replies)}


TREE = {"prompt": reply("Hi", None, reply("A", 1), reply("B", 0, reply("Go on", None, reply("C"), role="prompter")),
                        role="prompter")}  # fmt: skip
TABLE = [
    {"conversation_id": 1, "role": "user", "content": "q1"},
    {"conversation_id": 1, "role": "assistant", "content": "a1"},
    {"conversation_id": 1, "role": "user", "content": "q2"},
    {"conversation_id": 1, "role": "assistant", "content": "a2"},
    {"conversation_id": 2, "role": "human", "content": "q3"},
    {"conversation_id": 2, "role": "gpt", "content": "a3"},
    {"conversation_id": 3, "role": "user", "content": "nobody answers"},
    {"conversation_id": 3, "role": "user", "content": "still nobody"},
]
PAIR = {"instruction": "Say hi", "output": "hi"}
UNTRAINED = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def tokenize(path: Path, tokenizer: SFTTokenizer, **arguments: Any) -> tuple[TokenizedDataset, TokenizedDataset]:
    options = {name: arguments.pop(name) for name in list(arguments) if name in EncodingOptions.__slots__}
    settings = {"bad_rows": "quarantine", **options}
    return tokenize_files(
        [path],
        formatter=OpenAIMessagesFormatter(),
        tokenizer=tokenizer,
        **{"max_seq_length": 999, "options": EncodingOptions(**settings), **arguments},
    )


def assert_sums_hold(ledger: Ledger, *datasets: TokenizedDataset) -> None:
    assert sum(ledger.outcomes.values()) == ledger.num_rows
    assert sum(map(len, datasets)) == ledger.num_conversations
    assert ledger.num_conversations == ledger.num_used - ledger.num_joined + ledger.num_branches


def test_rows_are_conversations_and_the_ledger_with_joins_and_branches(
    tmp_path: Path, chatml_tokenizer: SFTTokenizer
) -> None:
    path = write(tmp_path / "a.jsonl", [PAIR, *TABLE, TREE, UNTRAINED, {"x": 1}])
    quarantine = tmp_path / "bad.jsonl"
    train, held_out = tokenize(path, chatml_tokenizer, quarantine_path=quarantine)
    assert_sums_hold(train.ledger, train, held_out)
    assert tuple(train.origins()) == tuple(f"{path}:{place}" for place in ("1", "2", "6", "10#0", "10#1"))
    assert train.ledger.num_rows == 12
    assert train.ledger.outcomes == {"trained": 8, "bad:no_assistant": 2, "bad:fields": 1, "nothing_to_train": 1}
    assert (train.ledger.num_conversations, train.ledger.num_joined, train.ledger.num_branches) == (5, 4, 1)
    assert (
        "  5 conversations = 8 rows that are used - 4 further turns of a conversation + 1 further branches of trees"
    ) in train.ledger.lines()
    set_aside = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [row["origin"] for row in set_aside] == [f"{path}:{line}" for line in (8, 9, 12)]
    assert [row["row"] for row in set_aside] == [*TABLE[6:], {"x": 1}]


def test_branches_that_are_too_long_are_dropped_and_counted(tmp_path: Path, chatml_tokenizer: SFTTokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [TREE, PAIR])
    whole, _ = tokenize(path, chatml_tokenizer)
    lengths = whole.num_tokens_N
    assert lengths[0] < lengths[1]
    train, held_out = tokenize(path, chatml_tokenizer, max_seq_length=int(lengths[1]) - 2, truncation="drop")
    assert tuple(train.origins()) == (f"{path}:1#0", f"{path}:2")
    assert train.ledger.num_dropped_branches == 1
    assert_sums_hold(train.ledger, train, held_out)
    assert "1 branches of them dropped: too long, or without a target" in "\n".join(train.ledger.lines())


def test_the_branches_of_a_tree_fall_on_one_side(tmp_path: Path, chatml_tokenizer: SFTTokenizer) -> None:
    trees = [json.loads(json.dumps(TREE).replace("Hi", f"Hi {i}")) for i in range(40)]
    train, held_out = tokenize(write(tmp_path / "a.jsonl", trees), chatml_tokenizer, validation_fraction=0.4)
    assert_sums_hold(train.ledger, train, held_out)
    sides = [{origin.split("#")[0] for origin in side.origins()} for side in (train, held_out)]
    assert min(map(len, sides)) > 5
    assert sides[0].isdisjoint(sides[1])


def test_rows_are_read_as_the_format_that_is_named(tmp_path: Path, chatml_tokenizer: SFTTokenizer) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "m"}], **PAIR}
    path = write(tmp_path / "a.jsonl", [row])
    trained = {}
    for name in ("auto", "openai", "alpaca"):
        data, _ = tokenize(path, chatml_tokenizer, source_format=name)
        encoded = data[0]
        trained[name] = chatml_tokenizer.decode(encoded.tokens_T[encoded.assistant_mask_T])
    assert trained == {"auto": f"m{IM_END}", "openai": f"m{IM_END}", "alpaca": f"hi{IM_END}"}


def test_a_conversation_whose_rows_stand_apart_stops_the_run(tmp_path: Path, chatml_tokenizer: SFTTokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [*TABLE[:2], *TABLE[4:6], *TABLE[2:4]])
    with pytest.raises(DataError, match=r"a\.jsonl:5: the rows of one conversation .*conversation_id=1.* stand apart"):
        tokenize(path, chatml_tokenizer)


def test_every_format_that_needs_no_column_map_can_be_named_in_a_configuration() -> None:
    names = get_args(DataKeys.model_fields["sft_source_format"].annotation)
    assert names == (AUTO, *(name for name in FORMATS if name != "columns"))
    for name in names:
        assert EncodingOptions(source_format=name).source.format == name
    with pytest.raises(ValueError, match="source_format is 'columns', not one of auto, "):
        EncodingOptions(source_format="columns")
