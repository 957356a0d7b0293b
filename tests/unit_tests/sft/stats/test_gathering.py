# SPDX-License-Identifier: Apache-2.0
"""From files to the report: figures worked out by hand, and the same for any number of processes."""

import gzip
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from primus.chat.conversations import SourceOptions
from primus.errors import DataError
from primus.sft.recipe import Recipe
from primus.sft.stats import StatsReport, build_report, choose_bands, compare, gather

EXAMPLES = Path(__file__).parents[4] / "examples" / "data"
TOKENIZER = str(EXAMPLES / "demo-tokenizer" / "tokenizer.json")
FACTS = (
    "The harbour lies west of the old town.", "Boats leave at seven and at nine every day.", "Bring warm clothes.",
    "Nobody knows who built the lighthouse there.", "In winter the ferry takes the longer way around.",
    "There is a bakery behind the church.", "Most visitors come for the birds.", "The island has two roads.",
)  # fmt: skip


def recipe(*files: Path, **fields: Any) -> Recipe:
    return Recipe(files=files, source=SourceOptions(), tokenizer=TOKENIZER, **fields)


def report(*files: Path, num_workers: int = 1, threshold: float = 0.8, **fields: Any) -> StatsReport:
    bands = choose_bands(threshold) if threshold else None
    gathered = gather(recipe(*files, **fields), bands=bands, num_workers=num_workers)
    compare(gathered, num_workers=num_workers)
    return build_report(gathered)


def write(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def pair(question: str, answer: str) -> dict[str, Any]:
    return chat(("user", question), ("assistant", answer))


def test_every_row_is_a_conversation_or_a_bad_row(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", pair("Hi", "Hello"), "{", {"nothing": 1}, chat(("user", "Hi")), "", pair("Hi", "Bye"),
        {"messages": [{"role": "user", "content": "Hi", "mood": "sad"}, {"role": "assistant", "content": "Oh"}]},
    )  # fmt: skip
    got = report(path)
    assert (got.num_rows, got.num_conversations) == (6, 3)
    assert {kind.name: kind.origins for kind in got.bad_rows} == {
        "not_json": [f"{path}:2"], "fields": [f"{path}:3"], "no_assistant": [f"{path}:4"]
    }  # fmt: skip
    assert got.bad_conversations == []
    assert got.ignored_fields == {"mood": 1}


def test_a_conversation_that_the_format_has_no_form_for_is_counted_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
                 pair("Hi", "Hello"))  # fmt: skip
    got = report(path, conversation_format="alpaca")
    assert (got.num_rows, got.num_conversations) == (2, 1)
    assert [(kind.num, kind.origins) for kind in got.bad_conversations] == [(1, [f"{path}:1"])]


def test_figures_of_a_small_file_by_hand(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        chat(("system", "You are kind."), ("user", "Who am I?"), ("assistant", "You are David.")),
        chat(
            *(("user", "Who am I?"), ("assistant", "You are David.")), ("user", "And my city?"), ("assistant", "Riga!")
        ),
        pair("Who am I?", "Ты кто?\n```py\nx\n```"),
        pair("Who am I?", "Ты кто?\n```py\nx\n```"),
    )  # fmt: skip
    got = report(path)
    count = len(Tokenizer.from_file(TOKENIZER).encode("You are kind.").ids)
    assert (got.messages.num, got.messages.total, got.messages.mean) == (4, 11, 2.75)
    assert [(cell.low, cell.count) for cell in got.messages_histogram] == [(2, 2), (3, 1), (4, 1)]
    assert got.assistant_messages.total == 5
    assert [(role.role, role.num_messages) for role in got.roles] == [("system", 1), ("user", 5), ("assistant", 5)]
    assert got.roles[0].content_tokens == got.roles[0].per_message.max == count
    assert [sum(turn.num_messages.values()) for turn in got.by_turn] == [4, 4, 2, 1]
    assert got.by_turn[1].num_messages == {"assistant": 3, "user": 1}
    assert got.letters == {"Latin": 10 + 4 * 6 + 2 * 11 + 9 + 4 + 2 * 3, "Cyrillic": 2 * 5}
    assert got.main_scripts == {"Latin": 4}
    assert (got.code.num_conversations, got.code.num_blocks, got.code.languages) == (2, 2, {"py": 2})
    characters = 4 * 9 + 2 * 14 + 12 + 5 + 2 * 19
    assert got.code.character_share == pytest.approx(2 * 2 / characters)
    copies = {c.of: (c.num_compared, c.num_distinct, c.num_copies, c.num_groups) for c in got.copies}
    assert copies == {"conversation": (4, 3, 1, 1), "first_user_message": (4, 1, 3, 1), "answers": (4, 3, 1, 1)}
    assert got.copies[0].groups[0].origins == [f"{path}:3", f"{path}:4"]
    assert got.near_duplicates is not None
    assert got.near_duplicates.num_compared == 3
    assert [kind.num for kind in got.signals if kind.num] == []


def test_the_figures_of_the_demo_data_are_those_of_other_code() -> None:
    """Tokens, targets and lengths once more from the whole rendered text, without spans or masks."""
    tokenizer = Tokenizer.from_file(TOKENIZER)
    path = EXAMPLES / "demo-validation.jsonl"
    lengths, num_targets, roles = [], 0, Counter[str]()
    for line in path.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        lengths.append(len(tokenizer.encode(text).ids))
        roles.update(m["role"] for m in messages)
        num_targets += sum(len(tokenizer.encode(m["content"]).ids) + 1 for m in messages if m["role"] == "assistant")
    got = report(path, max_seq_length=100)
    assert got.num_tokens == sum(lengths)
    assert got.num_targets == num_targets
    assert (got.tokens.min, got.tokens.max, got.tokens.p50) == (min(lengths), max(lengths), sorted(lengths)[149])
    assert {role.role: role.num_messages for role in got.roles} == dict(roles)
    parts = sum(role.content_tokens + role.overhead_tokens for role in got.roles)
    assert parts + got.outside_tokens == got.num_tokens
    [own] = [w for w in got.seq_lengths if w.seq_length == 100]
    assert own.num_overlong == sum(length - 1 > 100 for length in lengths)
    assert sum(cell.count for cell in got.lengths_histogram) == len(lengths)


def shuffled_rows(num: int, seed: int) -> list[dict[str, Any]]:
    """Conversations of different sentences, with exact and near copies among them."""
    rng = random.Random(seed)
    rows = []
    for number in range(num):
        words = " ".join(
            rng.choice(["red", "blue", "tall", "round", "quick", "seven", "Riga", "Oslo"]) for _ in range(40)
        )
        rows.append(pair(f"{words} {number}", " ".join(rng.sample(FACTS, 5))))
        if number % 10 == 3:
            rows.append(rows[-1])
        if number % 10 == 7:
            content = rows[-1]["messages"][1]["content"]
            rows.append(pair(f"{words} {number}", f"{content} So there."))
    return rows


def test_the_report_is_the_same_for_one_process_and_two(tmp_path: Path) -> None:
    """Each file is a batch of its own; all of it once more, packed, is another."""
    rows = [*shuffled_rows(80, 1), "{"]
    files = [write(tmp_path / f"{start}.jsonl", *rows[start : start + 20]) for start in range(0, len(rows), 20)]
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(b"".join(file.read_bytes() for file in files)))
    alone, together = report(*files, packed), report(*files, packed, num_workers=2)
    assert alone == together
    assert alone.num_conversations == 2 * 96
    assert alone.copies[0].num_copies == 8 + 96
    assert alone.near_duplicates is not None
    assert alone.near_duplicates.num_clusters == 8
    assert replace(report(*files), files=[]) == replace(report(packed), files=[], **places(report(*files)))


def places(of: StatsReport) -> dict[str, Any]:
    """What names places, which differ where the same rows stand in other files."""
    return {name: getattr(of, name) for name in ("bad_rows", "copies", "near_duplicates", "signals")}


def test_near_duplicates_are_those_of_comparing_everything(tmp_path: Path) -> None:
    rows = shuffled_rows(60, 2)
    path = write(tmp_path / "a.jsonl", *rows)
    got = report(path, threshold=0.7)

    def runs(row: dict[str, Any]) -> frozenset[tuple[str, ...]]:
        words = " ".join(m["content"] for m in row["messages"]).lower().replace(".", "").split()
        return frozenset(tuple(words[i : i + 5]) for i in range(len(words) - 4))

    sets = [runs(row) for row in rows]
    is_copy = [sets.index(s) < i for i, s in enumerate(sets)]
    near = {
        (i, j)
        for i in range(len(rows)) for j in range(i)
        if not is_copy[i] and not is_copy[j] and len(sets[i] & sets[j]) >= 0.7 * len(sets[i] | sets[j])
    }  # fmt: skip
    members = {i for both in near for i in both}
    assert got.near_duplicates is not None
    assert len(near) == 6
    assert got.near_duplicates.num_in_clusters == len(members)
    found = {origin for cluster in got.near_duplicates.clusters for origin in cluster.origins}
    assert found == {f"{path}:{i + 1}" for i in members}


def test_near_duplicates_can_be_left_out(tmp_path: Path) -> None:
    assert report(write(tmp_path / "a.jsonl", pair("Hi", "Hello")), threshold=0).near_duplicates is None


def test_a_file_that_changes_between_the_passes_is_noticed(tmp_path: Path) -> None:
    rows = [pair(FACTS[0], " ".join(FACTS)), pair(FACTS[0], " ".join(FACTS) + " So there.")]
    for change in (rows[::-1], rows[:1]):
        path = write(tmp_path / "a.jsonl", *rows)
        gathered = gather(recipe(path), bands=choose_bands(0.8), num_workers=1)
        write(path, *change)
        with pytest.raises(DataError, match=r"a\.jsonl.*(changed|shrunk)"):
            compare(gathered, num_workers=1)


def test_standard_input_can_not_be_read_twice() -> None:
    with pytest.raises(DataError, match="--near-threshold 0"):
        gather(recipe(Path("-")), bands=choose_bands(0.8), num_workers=1)


def test_places_are_shown_without_the_folder_that_all_files_share(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    got = report(
        write(tmp_path / "x" / "a.jsonl", pair("Hi", "Yes")), write(tmp_path / "b.jsonl", pair("Ho", "Oh, that."))
    )
    assert got.folder == f"{tmp_path}/"
    [short] = [kind for kind in got.signals if kind.num]
    assert [got.place(origin) for origin in short.origins] == ["x/a.jsonl:1 turn 1"]
