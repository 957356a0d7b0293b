# SPDX-License-Identifier: Apache-2.0
"""SFTDataset and its builder: tensors, splits, truncation, bad rows, the ledger."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from primus.backends.megatron.core.datasets.sft_dataset import (
    OpenAIMessagesFormatter,
    SFTDataset,
    build_train_valid_test_datasets,
    create_formatter,
)
from primus.errors import ConfigError, DataError
from primus.sft.dataset import EncodingOptions


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["user assistant hello"], trainer=trainer)
    return tokenizer


def chat(*contents: str, **extra: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)], **extra}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def trained_text(dataset: SFTDataset, index: int) -> str:
    item = dataset[index]
    return dataset.tokenizer.decode(item["labels"][item["loss_mask"] > 0].tolist())


ROWS = [chat("q", f"answer {i}", "more", f"second {i}") for i in range(20)] + [
    {"instruction": f"Do {i}", "input": "with this", "output": f"Done {i}"} for i in range(10)
]


def test_items_are_tensors_of_the_sequence_length(tmp_path: Path, tokenizer: Tokenizer) -> None:
    dataset = SFTDataset(write(tmp_path / "a.jsonl", ROWS), tokenizer, 64, "train", "openai", 1234)
    item = dataset[0]
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in item.items()} == {
        "input_ids": ((64,), torch.int64),
        "labels": ((64,), torch.int64),
        "loss_mask": ((64,), torch.float32),
        "position_ids": ((64,), torch.int64),
    }
    assert item["position_ids"].tolist() == list(range(64))
    num = int(dataset.num_positions_N[0])
    assert torch.equal(item["labels"][: num - 1], item["input_ids"][1:num])
    assert item["loss_mask"][num:].sum() == 0
    assert int((item["loss_mask"] > 0).sum()) == dataset.num_targets_N[0]


def test_single_turn_and_multi_turn_rows_mix_in_one_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    dataset = SFTDataset(write(tmp_path / "a.jsonl", ROWS), tokenizer, 99, supervise_end_of_turn=True)
    assert len(dataset) == 30
    assert trained_text(dataset, 3) == "answer 3<|im_end|>second 3<|im_end|>"
    assert trained_text(dataset, 25) == "Done 5<|im_end|>"
    assert dataset.origin(25) == f"{tmp_path / 'a.jsonl'}:26"


def test_the_class_trains_content_only_unless_told_otherwise(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert trained_text(SFTDataset(write(tmp_path / "a.jsonl", ROWS), tokenizer, 99), 0) == "answer 0second 0"


def test_several_files_a_pattern_and_compressed_files_are_read_in_order(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "b.jsonl", ROWS[:2])
    (tmp_path / "c.json").write_text(json.dumps(ROWS[2:4]))
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, ROWS[4:6])))
    names = [tmp_path / "d.jsonl.gz", tmp_path / "c.json", tmp_path / "b.jsonl"]
    dataset = SFTDataset(names, tokenizer, 99)
    assert [trained_text(dataset, i)[7] for i in range(6)] == list("452301")
    assert len(SFTDataset(str(tmp_path / "*.json*"), tokenizer, 99)) == 6


def test_a_fraction_splits_by_content_without_leakage_and_without_loss(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [chat(f"question {i}", f"answer {i}") for i in range(300)]
    path = write(tmp_path / "a.jsonl", rows + rows[::-1])
    train, valid, _ = build_train_valid_test_datasets(path, tokenizer, 64, validation_fraction=0.1)
    assert valid is not None
    sides = [{trained_text(dataset, i) for i in range(len(dataset))} for dataset in (train, valid)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 300
    assert len(train) + len(valid) == 600
    assert 10 < len(sides[1]) < 55
    assert train.ledger.outcomes == {"trained": len(train), "validation": len(valid)}
    longer = write(tmp_path / "b.jsonl", [chat("new", "row"), *rows])
    again = SFTDataset(longer, tokenizer, 64, split="validation", validation_fraction=0.1)
    assert {trained_text(again, i) for i in range(len(again))} - {"row"} == sides[1], "a new row moves no other"


def test_a_fraction_that_holds_nothing_out_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [chat("q", f"answer {i}") for i in range(5)])
    for fraction in (0.001, 0.999):
        with pytest.raises(
            DataError, match="all 5 conversations fall on one side of sft_validation_fraction, and none"
        ):
            build_train_valid_test_datasets(path, tokenizer, 64, validation_fraction=fraction)


def test_a_folder_has_a_file_per_split(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "train-00000-of-00002.jsonl", ROWS[:3])
    write(tmp_path / "train-00001-of-00002.jsonl", ROWS[3:5])
    write(tmp_path / "validation.jsonl", ROWS[5:6])
    train, valid, test = build_train_valid_test_datasets(tmp_path, tokenizer, 99, validation_split="validation")
    assert (len(train), len(valid or []), test) == (5, 1, None)
    with pytest.raises(
        ConfigError, match=r"the folder has no file of the split 'test' \(it has train-00000.*validation"
    ):
        SFTDataset(tmp_path, tokenizer, 99, split="test")


def test_conversations_on_both_sides_are_warned_about(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    train, other = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", [*ROWS[4:6], chat("x", "y")])
    with caplog.at_level(logging.WARNING, "primus"):
        build_train_valid_test_datasets(train, tokenizer, 99, validation_dataset_name=other)
    assert f"2 of 3 validation conversations are also trained on ({other}:1 is {train}:5)" in caplog.text


def test_validation_in_two_ways_or_in_none_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConfigError, match="at most one of sft_validation_dataset_name"):
        build_train_valid_test_datasets(path, tokenizer, 99, validation_dataset_name=path, validation_fraction=0.5)
    with pytest.raises(ConfigError, match="validation data is asked for, but none is named"):
        build_train_valid_test_datasets(path, tokenizer, 99, [10, 10, 0])
    assert build_train_valid_test_datasets(path, tokenizer, 99, [10, 0, 0])[1:] == (None, None)


def test_a_conversation_that_is_too_long_is_an_error_dropped_or_cut(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [chat("q", "short"), chat("q", "one", "q", "x" * 50)])
    with pytest.raises(
        DataError, match=rf"{path}:2: the conversation has \d+ tokens, but seq_length 40 holds 41; raise"
    ):
        SFTDataset(path, tokenizer, 40)
    dropped = SFTDataset(path, tokenizer, 40, truncation="drop")
    assert (len(dropped), dropped.ledger.outcomes) == (1, {"trained": 1, "overlong": 1})
    assert dropped.ledger.origins == {"overlong": [f"{path}:2"]}
    cut = SFTDataset(path, tokenizer, 40, truncation="right", supervise_end_of_turn=True)
    assert [trained_text(cut, i) for i in range(2)] == ["short<|im_end|>", "one<|im_end|>"]
    assert (cut.ledger.num_truncated, cut.ledger.num_untrained_turns) == (1, 1)


def test_a_sequence_of_one_token_more_than_positions_fits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [chat("q", "short")])
    num = int(SFTDataset(path, tokenizer, 99).num_positions_N[0])
    exact = SFTDataset(path, tokenizer, num, supervise_end_of_turn=True)
    assert trained_text(exact, 0) == "short<|im_end|>"
    with pytest.raises(DataError, match="raise seq_length"):
        SFTDataset(path, tokenizer, num - 1)


def test_a_sequence_length_too_short_for_any_target_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(
        DataError, match=rf"{path}: no conversation is left to train with seq_length 5 \(30 rows read; 30"
    ):
        SFTDataset(path, tokenizer, 5, truncation="right")


def test_a_row_with_weights_of_zero_is_counted_and_not_trained(tmp_path: Path, tokenizer: Tokenizer) -> None:
    silent = {"messages": [{"role": "assistant", "content": "x", "weight": 0}]}
    dataset = SFTDataset(write(tmp_path / "a.jsonl", [silent, chat("q", "a")]), tokenizer, 99)
    assert len(dataset) == 1
    assert dataset.ledger.outcomes == {"trained": 1, "nothing_to_train": 1}


BAD = [
    "{not json",
    {"messages": "[]"},
    {"messages": [{"role": "assistent", "content": "x"}]},
    {"messages": [{"role": "user", "content": "x"}]},
    {"text": "x"},
    [1],
]


def test_bad_rows_are_listed_at_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [ROWS[0], *BAD, *[{"n": i} for i in range(20)]])
    with pytest.raises(DataError) as caught:
        SFTDataset(path, tokenizer, 99)
    problems = caught.value.problems
    assert [problem.split(": ")[0] for problem in problems[:6]] == [f"{path}:{line}" for line in range(2, 8)]
    assert len(problems) == 11
    assert problems[10].startswith("... 16 more of 27 rows are bad; set sft_bad_rows: quarantine")
    assert not any("\n" in problem for problem in problems)


def test_quarantine_writes_the_bad_rows_trains_the_rest_and_the_ledger_sums_to_the_rows(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = write(tmp_path / "a.jsonl", [ROWS[0], *BAD, ROWS[1]])
    quarantine = tmp_path / "out" / "bad.jsonl"
    dataset = SFTDataset(path, tokenizer, 99, bad_rows="quarantine", quarantine_path=quarantine)
    rows = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [row["origin"] for row in rows] == [f"{path}:{line}" for line in range(2, 8)]
    assert [row["reason"] for row in rows] == [
        "not_json", "messages_type", "role", "no_assistant", "fields", "not_an_object",
    ]  # fmt: skip
    assert rows[0]["raw"] == "{not json"
    assert rows[1]["row"] == {"messages": "[]"}
    assert all(row["error"].startswith(row["origin"]) for row in rows)
    assert dataset.ledger.num_rows == sum(dataset.ledger.outcomes.values()) == 8
    assert dataset.ledger.num_bad == 6
    assert len(dataset) == dataset.ledger.num_trained == 2
    assert list(quarantine.parent.iterdir()) == [quarantine], "nothing half-written is left"


def test_standard_input_is_no_data_set(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"^sft_dataset_name: - is standard input.*primus data convert - "):
        SFTDataset("-", tokenizer, 99)


def test_fields_of_messages_without_a_meaning_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = chat("q", "a")
    row["messages"][0]["emotion"] = "calm"
    dataset = SFTDataset(write(tmp_path / "a.jsonl", [row]), tokenizer, 99)
    assert dataset.ledger.ignored_fields == {"emotion": 1}
    assert "'emotion' (1 row)" in "\n".join(dataset.ledger.lines())


def test_a_tokenizer_without_chatml_is_warned_about_with_its_cost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain.train_from_iterator([], trainer=trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    with caplog.at_level(logging.WARNING, "primus"):
        dataset = SFTDataset(write(tmp_path / "a.jsonl", ROWS), plain, 200, supervise_end_of_turn=True)
    assert (
        "<|im_start|> and <|im_end|> are no tokens of this tokenizer, so they are plain text: 22 tokens" in caplog.text
    )
    assert trained_text(dataset, 0) == "answer 0<|im_end|>second 0<|im_end|>"


def test_the_same_files_have_the_same_fingerprint_and_other_targets_another(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    first, again = SFTDataset(path, tokenizer, 99), SFTDataset(path, tokenizer, 99)
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != SFTDataset(path, tokenizer, 99, supervise_end_of_turn=True).fingerprint
    assert first.fingerprint != SFTDataset(write(tmp_path / "b.jsonl", ROWS[1:]), tokenizer, 99).fingerprint


def test_options_reach_both_splits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    train = write(tmp_path / "a.jsonl", ROWS)
    valid = write(tmp_path / "b.jsonl", [{"traj": chat("x", "y")["messages"]}])
    options = EncodingOptions(supervise_end_of_turn=True, messages_field=("messages", "traj"))
    _, validation, _ = build_train_valid_test_datasets(
        train, tokenizer, 99, validation_dataset_name=valid, options=options
    )
    assert validation is not None
    assert trained_text(validation, 0) == "y<|im_end|>"
    assert validation.ledger.outcomes == {"validation": 1}


def test_a_formatter_may_be_a_name_or_an_object(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[20:])
    by_name = SFTDataset(path, tokenizer, 300, formatter="alpaca")
    assert trained_text(by_name, 0) == "Done 0"
    by_object = SFTDataset(path, tokenizer, 300, formatter=OpenAIMessagesFormatter())
    assert by_object.fingerprint == SFTDataset(path, tokenizer, 300, formatter="chatml").fingerprint
    with pytest.raises(ConfigError, match="there is no format 'chatlm'; did you mean 'chatml'"):
        SFTDataset(path, tokenizer, 300, formatter="chatlm")
    assert type(create_formatter("messages")) is OpenAIMessagesFormatter


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "left"}, "truncation is 'left', not one of error, drop, right"),
        ({"bad_rows": "ignore"}, "bad_rows is 'ignore', not one of error, quarantine"),
        ({"supervise_turns": "first"}, "supervise_turns is 'first', not one of all, last"),
        ({"messages_field": []}, "messages_field names no field"),
        ({"validation_fraction": -1}, "validation_fraction is -1, not at least 0 and below 1"),
        ({"validation_fraction": float("nan")}, "validation_fraction is nan"),
        ({"max_seq_length": 0}, "max_seq_length is 0, not at least 1"),
    ],
)
def test_an_option_that_does_not_exist_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ValueError, match=message):
        SFTDataset(write(tmp_path / "a.jsonl", ROWS), tokenizer, **{"max_seq_length": 64, **options})


def test_a_fraction_makes_two_splits_and_no_third(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConfigError, match="split: 'test' is neither 'train' nor 'validation'"):
        SFTDataset(path, tokenizer, 64, split="test", validation_fraction=0.5)
    with pytest.raises(ValueError, match="train_val_test_num_samples has 2 numbers, not 3"):
        build_train_valid_test_datasets(path, tokenizer, 64, (1, 0))


def test_a_file_has_no_named_splits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"sft_validation_split: .*a.jsonl is not a folder with a file per split"):
        build_train_valid_test_datasets(path, tokenizer, 99, validation_split="validation")


def test_a_folder_gives_the_files_of_a_split_and_no_others(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in ("train.jsonl", "train-heldout.jsonl", "train.jsonl.bak", "validation.jsonl"):
        write(tmp_path / name, ROWS[:1])
    assert len(SFTDataset(tmp_path, tokenizer, 99)) == 1


def test_a_file_named_twice_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConfigError, match="is named twice, and its rows would be trained twice"):
        SFTDataset([path, tmp_path / "." / "a.jsonl"], tokenizer, 99)


def test_rows_that_render_alike_fall_on_one_side(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows: list[Any] = []
    for i in range(50):
        plain, empty = chat(f"q{i}", "a"), chat(f"q{i}", "a")
        empty["messages"][1]["reasoning_content"] = ""
        tools = [{"type": "function", "function": {"name": f"f{i}"}}]
        with_system = chat("q", "a", tools=tools)
        with_system["messages"].insert(0, {"role": "system", "content": ""})
        rows += [plain, empty, chat("q", "a", tools=tools), with_system]
    path = write(tmp_path / "a.jsonl", rows)
    train, valid, _ = build_train_valid_test_datasets(path, tokenizer, 999, validation_fraction=0.5)
    assert valid is not None
    sides = [{tuple(data[i]["input_ids"].tolist()) for i in range(len(data))} for data in (train, valid)]
    assert not sides[0] & sides[1]


def test_a_row_that_the_tokenizer_fails_on_is_a_bad_row_with_its_place(tmp_path: Path, tokenizer: Tokenizer) -> None:
    class Composes:
        """Can only encode and decode, and changes some texts."""

        vocab_size = 400

        def encode(self, text: str) -> list[int]:
            return list(tokenizer.encode(text.replace("e\u0301", "\u00e9")).ids)

        def decode(self, ids: list[int]) -> str:
            return str(tokenizer.decode(ids, skip_special_tokens=False))

    path = write(tmp_path / "a.jsonl", [ROWS[0], chat("q", "cafe\u0301")])
    with pytest.raises(DataError, match=rf"{path}:2: Composes: offsets can't be recovered"):
        SFTDataset(path, Composes(), 99)
    dataset = SFTDataset(path, Composes(), 99, bad_rows="quarantine")
    assert dataset.ledger.outcomes == {"trained": 1, "bad:tokenizer": 1}


def test_a_format_that_can_not_end_a_turn_is_refused_where_the_end_is_to_be_trained(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[20:])
    with pytest.raises(ConfigError, match="has no EOS token, with which this format ends a turn"):
        SFTDataset(path, tokenizer, 300, formatter="alpaca", supervise_end_of_turn=True)


def test_a_quarantine_file_of_an_earlier_run_goes_when_the_rows_are_repaired(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path, quarantine = write(tmp_path / "a.jsonl", [*BAD, ROWS[0]]), tmp_path / "bad.jsonl"
    SFTDataset(path, tokenizer, 99, bad_rows="quarantine", quarantine_path=quarantine)
    assert quarantine.exists()
    write(path, ROWS)
    SFTDataset(path, tokenizer, 99, bad_rows="quarantine", quarantine_path=quarantine)
    assert not quarantine.exists()


def test_a_file_of_bad_rows_says_so(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", BAD)
    with pytest.raises(DataError, match=rf"{path}: all 6 rows are bad; look at them"):
        SFTDataset(path, tokenizer, 99, bad_rows="quarantine")
