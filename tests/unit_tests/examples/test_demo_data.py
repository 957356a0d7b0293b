# SPDX-License-Identifier: Apache-2.0
"""The demo's files: made by their script, nothing leaks between them, and no answer can be had without the history."""

import gzip
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "examples" / "data"
FILES = ("demo-train.jsonl.gz", "demo-validation.jsonl", "demo-heldout.jsonl", "demo-alpaca.jsonl")

VALUES = json.loads((DATA / "demo-language.json").read_text(encoding="utf-8"))["values"]
SORT_OF_VALUE = {value: sort for sort, values in VALUES.items() for value in values}
THREAD_OF_SORT = {"animal": "pet", "eat": "list", "drink": "list", "wear": "list", "noun": "count"}

Messages = list[dict[str, str]]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make_demo_data = load_script("make_demo_data")
demo_evaluate = load_script("demo_evaluate")


def read_text(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()


def read_conversations(name: str) -> list[Messages]:
    return [json.loads(line)["messages"] for line in read_text(DATA / name).splitlines()]


@pytest.fixture(scope="module")
def train() -> list[Messages]:
    return read_conversations("demo-train.jsonl.gz")


@pytest.fixture(scope="module")
def validation() -> list[Messages]:
    return read_conversations("demo-validation.jsonl")


@pytest.fixture(scope="module")
def heldout() -> list[Messages]:
    return read_conversations("demo-heldout.jsonl")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DATA / "demo-tokenizer")


def test_the_script_makes_the_committed_files_again(tmp_path: Path) -> None:
    # Another process with another hash seed: nothing may depend on the order of a set.
    subprocess.run(
        [sys.executable, ROOT / "scripts" / "make_demo_data.py", "--output", tmp_path],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    for name in (*FILES, "demo-tokenizer/tokenizer_config.json"):
        # Not the bytes of the gzip file: they differ between versions of zlib.
        assert read_text(tmp_path / name) == read_text(DATA / name), name
    # Nor the layout of tokenizer.json, which differs between versions of tokenizers.
    made, committed = (
        json.loads(read_text(folder / "demo-tokenizer" / "tokenizer.json"))["model"] for folder in (tmp_path, DATA)
    )
    assert made["vocab"] == committed["vocab"]
    assert made["merges"] == committed["merges"]


def test_roles_alternate_and_the_last_turn_is_the_assistants(
    train: list[Messages], validation: list[Messages], heldout: list[Messages]
) -> None:
    for messages in itertools.chain(train, validation, heldout):
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert 3 <= len(roles) // 2 <= 6
        assert all(message["content"].strip() == message["content"] != "" for message in messages)


def test_no_conversation_is_in_two_files_or_twice_in_one(
    train: list[Messages], validation: list[Messages], heldout: list[Messages]
) -> None:
    assert (len(train), len(validation), len(heldout)) == (
        make_demo_data.NUM_TRAIN,
        make_demo_data.NUM_VALIDATION,
        make_demo_data.NUM_HELDOUT,
    )
    conversations = [json.dumps(messages) for messages in itertools.chain(train, validation, heldout)]
    assert len(set(conversations)) == len(conversations)


def told_values(messages: Messages) -> dict[str, list[str]]:
    """The values that the user told, per thread and in order, read from the text alone."""
    told: dict[str, list[str]] = defaultdict(list)
    for message in messages[::2]:
        text = message["content"]
        for word in re.findall(r"\w+", text):
            value = word if word in SORT_OF_VALUE else word.removesuffix("s")
            if value in SORT_OF_VALUE:
                thread = THREAD_OF_SORT.get(SORT_OF_VALUE[value], SORT_OF_VALUE[value])
                if value not in told[thread]:
                    told[thread].append(value)
            elif word.isdigit():
                fewer = text.startswith(("I lost", "I gave"))
                told["count"].append(
                    word if text.startswith(("I have", "I counted")) else f"{'-' if fewer else '+'}{word}"
                )
    if told["count"]:
        noun = next(value for value in told["count"] if value in SORT_OF_VALUE)
        told["count"] = [noun, *(value for value in told["count"] if value != noun)]
    if told["pet"]:
        told["pet"].sort(key=lambda value: SORT_OF_VALUE[value])  # the animal, then its name
    return {thread: values for thread, values in told.items() if values}


def reserved_combinations(messages: Messages) -> Iterator[tuple[str, ...]]:
    """The reserved combinations of a conversation, by the rule that the module docstring of the script states."""
    told = told_values(messages)
    for values in told.values():
        if len(values) > 1 and zlib.crc32("|".join(values).encode()) % 100 < 8:
            yield tuple(values)
    now = {
        thread: values if thread in ("pet", "list") else values[:1] if thread == "count" else values[-1:]
        for thread, values in told.items()
    }
    for one, other in itertools.combinations(sorted(now), 2):
        for pair in itertools.product(now[one], now[other]):
            if zlib.crc32("|".join(pair).encode()) % 100 < 5:
                yield pair


def test_no_reserved_combination_is_in_training_and_one_is_in_every_heldout_conversation(
    train: list[Messages], validation: list[Messages], heldout: list[Messages]
) -> None:
    assert [messages for messages in train if any(reserved_combinations(messages))] == []
    assert [messages for messages in heldout + validation if not any(reserved_combinations(messages))] == []


def test_every_value_is_trained(train: list[Messages]) -> None:
    told = {value for messages in train for values in told_values(messages).values() for value in values}
    assert set(SORT_OF_VALUE) <= told


def test_no_heldout_answer_can_be_had_from_the_last_question(train: list[Messages], heldout: list[Messages]) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for messages in train:
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            answers[question["content"]][answer["content"]] += 1
    assert all(len(answers[messages[-2]["content"]]) > 1 for messages in heldout)
    # The best that a model without history can learn is the commonest answer to every question.
    best = sum(answers[messages[-2]["content"]].most_common(1)[0][0] == messages[-1]["content"] for messages in heldout)
    assert best / len(heldout) < 0.1


def test_the_conversations_can_be_cut_into_their_exchanges(train: list[Messages], tmp_path: Path) -> None:
    path = tmp_path / "without-history.jsonl"
    subprocess.run(
        [sys.executable, ROOT / "scripts" / "make_demo_data.py", "--without-history", path, "--output", tmp_path],
        check=True,
    )
    cut = [json.loads(line)["messages"] for line in read_text(path).splitlines()]
    assert list(itertools.chain(*cut)) == list(itertools.chain(*train))
    assert {len(messages) for messages in cut} == {2}
    assert list(tmp_path.iterdir()) == [path]


def test_the_single_turn_rows_are_whole_and_answer_from_what_the_row_says() -> None:
    rows = [json.loads(line) for line in read_text(DATA / "demo-alpaca.jsonl").splitlines()]
    assert len(rows) == make_demo_data.NUM_SINGLE_TURN
    assert all(set(row) == {"instruction", "input", "output"} for row in rows)
    assert {bool(row["input"]) for row in rows} == {True, False}
    assert all(row["instruction"] and row["output"] for row in rows)


def test_the_chatml_tokens_are_single_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert [tokenizer.encode(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [[0], [1], [2]]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    assert len(tokenizer) == 1024


def test_the_tokenizer_gives_back_any_text(tokenizer: PreTrainedTokenizerBase) -> None:
    for text in ("Where do I live?", "Weiß, marrón, à", " two  spaces\n\n\ttab", "漢字 🙂 e\u0301", "user 12345"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_chat_template_writes_chatml(tokenizer: PreTrainedTokenizerBase, heldout: list[Messages]) -> None:
    messages = [{"role": "user", "content": " Hi. "}, {"role": "assistant", "content": "Hello.\n"}]
    rendered = "<|im_start|>user\n Hi. <|im_end|>\n<|im_start|>assistant\nHello.\n<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == rendered
    assert tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\n Hi. <|im_end|>\n<|im_start|>assistant\n"
    )
    for conversation in heldout[:20]:
        assert tokenizer.apply_chat_template(conversation, tokenize=False) == make_demo_data.render(conversation)


def test_a_conversation_is_short(tokenizer: PreTrainedTokenizerBase, train: list[Messages]) -> None:
    longest = max(train, key=lambda messages: len(make_demo_data.render(messages)))
    assert len(tokenizer.encode(make_demo_data.render(longest))) <= 168


def test_an_answer_counts_when_it_is_exact_and_ended_by_the_model() -> None:
    asked = [{"role": "user", "content": "Who am I?"}]
    assert demo_evaluate.Answer(asked, "You are Ada.", "You are Ada.", stopped=True).exact
    assert not demo_evaluate.Answer(asked, "You are Ada.", "You are Ada.", stopped=False).exact
    assert not demo_evaluate.Answer(asked, "You are Ada.", "You are Ben.", stopped=True).exact
    assert demo_evaluate.Answer(asked, "You are Ada.", "You are", stopped=False).lines() == [
        "       user: Who am I?",
        "      model: You are ...   (expected: You are Ada.)",
    ]


def test_an_answer_ends_before_the_first_end_token() -> None:
    assert demo_evaluate.until_end([7, 8, 2, 0, 0], eos_ids={2}) == ([7, 8], True)
    assert demo_evaluate.until_end([2], eos_ids={2}) == ([], True)
    assert demo_evaluate.until_end([7, 8], eos_ids={2}) == ([7, 8], False)


CITIES = ("Oslo", "Lima", "Riga", "Dakar")


@pytest.fixture(scope="module")
def model_and_questions(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase
) -> tuple[Path, Path]:
    """An exported model that knows four conversations by heart, and these, which end with the same question."""
    folder = tmp_path_factory.mktemp("model")
    conversations = [
        [
            {"role": "user", "content": f"My home is in {city}."},
            {"role": "assistant", "content": "I see."},
            {"role": "user", "content": "Where do I live?"},
            {"role": "assistant", "content": f"You live in {city}."},
        ]
        for city in CITIES
    ]
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    input_ids = torch.tensor([tokenizer.encode(make_demo_data.render(messages)) for messages in conversations])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, questions


def test_a_model_that_answers_from_the_history_passes(
    model_and_questions: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, questions = model_and_questions
    assert demo_evaluate.main([str(folder), str(questions), "--minimum", "1.0", "--show", "1"]) == 0
    output = capsys.readouterr().out
    assert "with history: 4 of 4 answered exactly (100.0%), 4 stopped by themselves" in output
    assert output.count("model: You live in Oslo.") == 1


def test_without_the_history_the_same_model_fails(
    model_and_questions: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, questions = model_and_questions
    arguments = [str(folder), str(questions), "--without-history", "--show", "0"]
    assert demo_evaluate.main([*arguments, "--maximum", "0.3"]) == 0
    capsys.readouterr()
    assert demo_evaluate.main([*arguments, "--minimum", "0.9"]) == 1
    captured = capsys.readouterr()
    assert "last question alone: " in captured.out
    assert re.fullmatch(r".*: \d+\.\d% of the answers are exact, below 90\.0%\n", captured.err)


def test_a_share_above_the_maximum_fails(
    model_and_questions: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, questions = model_and_questions
    assert demo_evaluate.main([str(folder), str(questions), "--maximum", "0.3"]) == 1
    assert capsys.readouterr().err.endswith("100.0% of the answers are exact, above 30.0%\n")


def test_a_missing_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo_evaluate.main([str(tmp_path / "nothing"), str(DATA / "demo-heldout.jsonl")]) == 2
    assert re.fullmatch(r".*nothing: does not exist; .*\n", capsys.readouterr().err)


def test_an_empty_file_is_one_line(
    model_and_questions: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").touch()
    assert demo_evaluate.main([str(model_and_questions[0]), str(tmp_path / "empty.jsonl")]) == 2
    assert re.fullmatch(r".*empty.jsonl: holds no conversation; .*\n", capsys.readouterr().err)
