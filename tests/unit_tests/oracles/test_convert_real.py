# SPDX-License-Identifier: Apache-2.0
"""Every shared file of conversations through `primus data convert`, and what it writes through it again."""

import json
from pathlib import Path
from typing import Any

import pytest

from primus.chat import parse_conversation, read_rows
from primus.cli.data import convert
from primus.errors import DataError

# Rows, conversations, and reasons of rows that give none.
FILES: dict[str, tuple[int, int, dict[str, int]]] = {
    "bfcl/BFCL_v4_multi_turn_base.json": (200, 0, {"no_answers": 200}),
    "bfcl/possible_answer/BFCL_v4_multi_turn_base.json": (200, 0, {"no_questions": 200}),
    "crosswoz/val_first200.json": (200, 200, {}),
    "emollm/data_first400.json": (400, 400, {}),
    "emollm/tiangou_first600.json": (600, 600, {}),
    "fastchat/dummy_conversation.json": (500, 500, {}),
    "fastchat/mt_bench_question.jsonl": (80, 0, {"no_answers": 80}),
    "hh_rlhf/harmless-base_test.jsonl": (750, 750, {}),
    "litgpt_fixtures/alpaca.json": (23, 23, {}),
    "litgpt_fixtures/dolly.json": (12, 12, {}),
    "litgpt_fixtures/longform_val.json": (9, 9, {}),
    "llama_factory/alpaca_en_demo.json": (999, 999, {}),
    "llama_factory/alpaca_zh_demo.json": (1000, 1000, {}),
    "llama_factory/dataset_info.json": (104, 0, {"fields": 104}),
    "llama_factory/glaive_toolcall_en_demo.json": (300, 300, {}),
    "llama_factory/identity.json": (91, 91, {}),
    "llama_factory/kto_en_demo.json": (300, 150, {"rejected_answer": 150}),
    "llama_factory/v1_sft_demo.jsonl": (500, 500, {}),
    "oasst/en_100_tree.jsonl": (100, 546, {}),
    "sharegpt_zh/sharegpt_zh_1K_format.jsonl": (500, 500, {}),
    "smile/smile_1000.jsonl": (300, 300, {}),
    **{f"swe_agent/{name}.traj": (1, 1, {}) for name in (
        "ctf__crypto__BabyEncryption", "ctf__crypto__BabyTimeCapsule", "ctf__crypto__eps", "ctf__crypto__katy",
        "ctf__forensics__flash", "ctf__misc__networking_1", "ctf__pwn__warmup", "ctf__rev__rock",
        "ctf__web__i_got_id_demo",
    )},
    "swift_tiny/alpaca.csv": (3, 3, {}),
    "swift_tiny/alpaca.jsonl": (3, 3, {}),
    "swift_tiny/alpaca2.csv": (3, 3, {}),
    "swift_tiny/chatml.jsonl": (3, 3, {}),
    "swift_tiny/conversations.jsonl": (3, 3, {}),
    "swift_tiny/sharegpt.jsonl": (3, 3, {}),
    "swift_tiny/swift_multi.json": (3, 3, {}),
    "swift_tiny/swift_multi.jsonl": (3, 3, {}),
    "swift_tiny/swift_pre.csv": (3, 0, {"fields": 3}),
    "swift_tiny/swift_pre.jsonl": (3, 0, {"fields": 3}),
    "swift_tiny/swift_single.csv": (3, 3, {}),
    "swift_tiny/swift_single.jsonl": (3, 3, {}),
    "tau_bench/gpt-4o-airline.json": (100, 100, {}),
    "tooltalk/tooltalk_all.jsonl": (50, 50, {}),
    "xtuner/mllm_sft_text_example_data.jsonl": (200, 200, {}),
    "xtuner/openai_sft.jsonl": (128, 128, {}),
}  # fmt: skip
OPTIONS = {
    "crosswoz/val_first200.json": ["--roles", "usr=user,sys=assistant"],
    "smile/smile_1000.jsonl": ["--roles", "client=user,counselor=assistant"],
    "tau_bench/gpt-4o-airline.json": ["--messages-field", "traj"],
}
EVERY_FIX_UP = ["--strip", "--drop-empty-turns", "--drop-leading-assistant", "--merge-consecutive"]


@pytest.fixture(scope="module")
def conversations_dir(shared_dir: Path) -> Path:
    return shared_dir / "conversations"


def ledger(target: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(f"{target}.ledger.json").read_text("utf-8"))
    return document


def test_no_shared_file_is_left_out(conversations_dir: Path) -> None:
    found = {str(path.relative_to(conversations_dir)) for path in conversations_dir.rglob("*") if path.is_file()}
    assert found == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_every_row_is_written_or_in_the_ledger(file: str, conversations_dir: Path, tmp_path: Path) -> None:
    num_rows, num_conversations, reasons = FILES[file]
    source, target = conversations_dir / file, tmp_path / "out.jsonl"
    arguments = [str(source), str(target), "--bad-rows", "quarantine", *OPTIONS.get(file, [])]
    if not num_conversations:
        with pytest.raises(DataError, match=f"none of {num_rows} rows gave a conversation") as refused:
            convert.run(arguments)
        for reason, count in reasons.items():
            assert f"; {count} bad:{reason} (" in str(refused.value)
        assert sum(reasons.values()) == num_rows
        assert list(tmp_path.iterdir()) == []
        return
    assert convert.run(arguments) == 0
    document = ledger(target)
    num_bad = sum(reasons.values())
    outcomes = {f"bad:{reason}": count for reason, count in reasons.items()}
    assert document["outcomes"] == {**outcomes, "converted": num_rows - num_bad}
    assert (document["num_rows"], document["num_conversations"]) == (num_rows, num_conversations)
    assert num_conversations == num_rows - num_bad - document["num_joined"] + document["num_branches"]
    assert sum(map(len, document["origins"].values())) == num_bad
    if num_bad:
        assert len(list(read_rows(f"{target}.bad.jsonl"))) == num_bad
    parsed = [parse_conversation(row.value, origin=row.origin) for row in read_rows(target)]
    assert len(parsed) == num_conversations


@pytest.mark.parametrize("options", [[], ["--tools", "render"], EVERY_FIX_UP], ids=["plain", "render", "fix-ups"])
def test_what_is_written_converts_to_itself_byte_for_byte(
    options: list[str], conversations_dir: Path, tmp_path: Path
) -> None:
    for number, (file, (_, num_conversations, _)) in enumerate(FILES.items()):
        if num_conversations:
            first, second = tmp_path / f"{number}.jsonl", tmp_path / f"{number}-again.jsonl"
            source = str(conversations_dir / file)
            convert.run([source, str(first), "--bad-rows", "quarantine", *OPTIONS.get(file, []), *options])
            convert.run([str(first), str(second), *options])
            assert first.read_bytes() == second.read_bytes(), file
            assert (ledger(second)["fix_ups"], ledger(second)["ignored_fields"]) == ({}, {}), file
