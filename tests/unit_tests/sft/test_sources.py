# SPDX-License-Identifier: Apache-2.0
"""The side of a split: whatever goes on from one question stays together, wherever it stands."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat import Conversation, Message, ToolCall
from primus.chat.conversations import SourceOptions, read_batches, read_conversations
from primus.errors import DataError
from primus.sft.conversion import ConversionJob
from primus.sft.dataset import EncodingOptions, TokenizedDataset, tokenize_files
from primus.sft.formatters import OpenAIMessagesFormatter
from primus.sft.sources import VALIDATION_SPLIT, split_of
from primus.sft.tokenizer import SFTTokenizer

TEXTS = st.sampled_from(["", "a", "b", "Hi", "你好", "  "])
TURNS = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user", "tool"]), TEXTS),
    st.builds(Message, st.just("assistant"), TEXTS, reasoning=st.none() | TEXTS),
    st.builds(Message, st.just("assistant"), TEXTS, tool_calls=st.just((ToolCall("f", "{}"),))),
)
OPENINGS = st.builds(
    lambda before, question: (*before, Message("user", question)),
    st.lists(TURNS.filter(lambda turn: turn.role != "user"), max_size=2),
    TEXTS,
)
CONTINUATIONS = st.lists(TURNS, max_size=4).map(lambda turns: (*turns, Message("assistant", "end")))
FRACTIONS = st.floats(0, 1, exclude_max=True)


@given(
    opening=OPENINGS,
    branches=st.lists(CONTINUATIONS, min_size=2, max_size=4),
    fraction=FRACTIONS,
    has_tools=st.booleans(),
)
def test_all_that_goes_on_from_one_question_falls_on_one_side(
    opening: tuple[Message, ...], branches: list[tuple[Message, ...]], fraction: float, has_tools: bool
) -> None:
    tools = ('{"name": "f"}',) if has_tools else ()
    conversations = [
        Conversation((*opening, *branch), tools=tools, origin=f"{i}.jsonl:1") for i, branch in enumerate(branches)
    ]
    whole = conversations[0].messages
    answers = [i for i, message in enumerate(whole) if i >= len(opening) and message.role == "assistant"]
    conversations += [Conversation(whole[: end + 1], tools=tools) for end in answers]
    assert len({split_of(conversation, validation_fraction=fraction) for conversation in conversations}) == 1


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5])
def test_distinct_questions_are_held_out_at_the_fraction(fraction: float) -> None:
    number = 10_000
    conversations = (
        Conversation((Message("user", f"What is {i}?"), Message("assistant", "A number."))) for i in range(number)
    )
    held_out = sum(split_of(one, validation_fraction=fraction) == VALIDATION_SPLIT for one in conversations)
    spread = (number * fraction * (1 - fraction)) ** 0.5
    assert abs(held_out - number * fraction) < 4 * spread


# --- in files ---


def reply(text: str, role: str, *replies: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "text": text, "replies": list(replies)}


def tree(number: int) -> dict[str, Any]:
    then = reply("And then?", "prompter", reply("C", "assistant"), reply("D", "assistant"))
    return {"prompt": reply(f"Question {number}", "prompter", reply("A", "assistant"), reply("B", "assistant", then))}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def converted(path: Path, target: Path) -> Path:
    with target.open("wb") as file:
        for batch in read_batches([path], SourceOptions()):
            file.write(ConversionJob().convert(batch).text)
    return target


def split(files: list[Path], tokenizer: SFTTokenizer, *, fraction: float) -> tuple[TokenizedDataset, TokenizedDataset]:
    return tokenize_files(
        files,
        formatter=OpenAIMessagesFormatter(),
        tokenizer=tokenizer,
        max_seq_length=999,
        options=EncodingOptions(),
        validation_fraction=fraction,
    )


def questions(files: list[Path], data: TokenizedDataset) -> Iterator[str]:
    """The first question of every conversation of a side."""
    first = {
        conversation.origin: conversation.messages[0].content
        for reading in read_conversations(files, SourceOptions())
        for conversation in reading.conversations
    }
    return (first[origin] for origin in data.origins())


def test_branches_their_converted_copies_and_their_beginnings_are_on_one_side(
    tmp_path: Path, chatml_tokenizer: SFTTokenizer
) -> None:
    trees = write(tmp_path / "trees.jsonl", [tree(i) for i in range(40)])
    copies = converted(trees, tmp_path / "copies.jsonl")
    singles = write(tmp_path / "singles.jsonl", [{"instruction": f"Question {i}", "output": "E"} for i in range(40)])
    for files, num_each in (([trees], 3), ([copies], 3), ([singles, copies, trees], 7)):
        train, held_out = split(files, chatml_tokenizer, fraction=0.4)
        sides = [list(questions(files, side)) for side in (train, held_out)]
        assert len(sides[0]) + len(sides[1]) == 40 * num_each
        assert min(map(len, sides)) > 5 * num_each
        assert set(sides[0]).isdisjoint(sides[1])
        assert all(side.count(question) == num_each for side in sides for question in side)


def test_a_tree_whose_questions_fall_apart_is_refused_only_where_there_are_two_sides(
    tmp_path: Path, chatml_tokenizer: SFTTokenizer
) -> None:
    answers = [reply(f"Question {i}", "prompter", reply("A", "assistant")) for i in range(9)]
    path = write(tmp_path / "a.jsonl", [{"prompt": reply("Welcome!", "assistant", *answers)}])
    train, held_out = split([path], chatml_tokenizer, fraction=0)
    assert (len(train), len(held_out)) == (9, 0)
    with pytest.raises(
        DataError, match=r"a\.jsonl:1#0: the branches of the tree begin with different questions, which"
    ):
        split([path], chatml_tokenizer, fraction=0.5)
