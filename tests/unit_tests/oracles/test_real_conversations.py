# SPDX-License-Identifier: Apache-2.0
"""Every real conversation in every format, and its way through every lossless tokenizer.

Rows are conversations or in the ledger with a reason; a converted row converts to itself. What is trained decodes to
what the assistant said, and where no token was cut the ids are those that the `tokenizers` library gives the whole text
at once.
"""

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from primus.chat import Conversation, parse_conversation, read_rows
from primus.chat.conversations import Reading, SourceOptions, read_conversations
from primus.chat.formats import ColumnMap, detect_formats
from primus.chat.writing import to_row
from primus.sft.encoding import encode_conversation
from primus.sft.formatters import IM_END, AlpacaFormatter, OpenAIMessagesFormatter, create_formatter
from primus.sft.formatters.openai import assistant_text
from primus.sft.tokenizer import SFTTokenizer
from tests.unit_tests.oracles.comparing import control_text
from tests.unit_tests.oracles.conftest import LoadShared

# File: format that was found, rows, conversations, reasons of the rows that are none.
FILES: dict[str, tuple[str, int, int, dict[str, int]]] = {
    "bfcl/BFCL_v4_multi_turn_base.json": ("questions", 200, 0, {"no_answers": 200}),
    "bfcl/possible_answer/BFCL_v4_multi_turn_base.json": ("questions", 200, 0, {"no_questions": 200}),
    "crosswoz/val_first200.json": ("openai", 200, 200, {}),
    "emollm/data_first400.json": ("xtuner", 400, 400, {}),
    "emollm/tiangou_first600.json": ("xtuner", 600, 600, {}),
    "fastchat/dummy_conversation.json": ("sharegpt", 500, 500, {}),
    "fastchat/mt_bench_question.jsonl": ("questions", 80, 0, {"no_answers": 80}),
    "hh_rlhf/harmless-base_test.jsonl": ("hh", 750, 750, {}),
    "litgpt_fixtures/alpaca.json": ("alpaca", 23, 23, {}),
    "litgpt_fixtures/dolly.json": ("alpaca", 12, 12, {}),
    "litgpt_fixtures/longform_val.json": ("alpaca", 9, 9, {}),
    "llama_factory/alpaca_en_demo.json": ("alpaca", 999, 999, {}),
    "llama_factory/alpaca_zh_demo.json": ("alpaca", 1000, 1000, {}),
    "llama_factory/dataset_info.json": ("unknown", 104, 0, {"fields": 104}),
    "llama_factory/glaive_toolcall_en_demo.json": ("sharegpt", 300, 300, {}),
    "llama_factory/identity.json": ("alpaca", 91, 91, {}),
    "llama_factory/kto_en_demo.json": ("openai", 300, 150, {"rejected_answer": 150}),
    "llama_factory/v1_sft_demo.jsonl": ("llamafactory", 500, 500, {}),
    "oasst/en_100_tree.jsonl": ("oasst", 100, 546, {}),
    "sharegpt_zh/sharegpt_zh_1K_format.jsonl": ("sharegpt", 500, 500, {}),
    "smile/smile_1000.jsonl": ("openai", 300, 300, {}),
    "swe_agent/ctf__crypto__BabyEncryption.traj": ("swe_agent", 1, 1, {}),
    "swe_agent/ctf__crypto__BabyTimeCapsule.traj": ("swe_agent", 1, 1, {}),
    "swe_agent/ctf__crypto__eps.traj": ("swe_agent", 1, 1, {}),
    "swe_agent/ctf__crypto__katy.traj": ("swe_agent", 1, 1, {}),
    "swe_agent/ctf__forensics__flash.traj": ("swe_agent", 1, 1, {}),
    "swe_agent/ctf__misc__networking_1.traj": ("swe_agent", 1, 1, {}),
    "swe_agent/ctf__pwn__warmup.traj": ("swe_agent", 1, 1, {}),
    "swe_agent/ctf__rev__rock.traj": ("swe_agent", 1, 1, {}),
    "swe_agent/ctf__web__i_got_id_demo.traj": ("swe_agent", 1, 1, {}),
    "swift_tiny/alpaca.csv": ("alpaca", 3, 3, {}),
    "swift_tiny/alpaca.jsonl": ("alpaca", 3, 3, {}),
    "swift_tiny/alpaca2.csv": ("alpaca", 3, 3, {}),
    "swift_tiny/chatml.jsonl": ("openai", 3, 3, {}),
    "swift_tiny/conversations.jsonl": ("sharegpt", 3, 3, {}),
    "swift_tiny/sharegpt.jsonl": ("sharegpt", 3, 3, {}),
    "swift_tiny/swift_multi.json": ("alpaca", 3, 3, {}),
    "swift_tiny/swift_multi.jsonl": ("alpaca", 3, 3, {}),
    "swift_tiny/swift_pre.csv": ("unknown", 3, 0, {"fields": 3}),
    "swift_tiny/swift_pre.jsonl": ("unknown", 3, 0, {"fields": 3}),
    "swift_tiny/swift_single.csv": ("alpaca", 3, 3, {}),
    "swift_tiny/swift_single.jsonl": ("alpaca", 3, 3, {}),
    "tau_bench/gpt-4o-airline.json": ("openai", 100, 100, {}),
    "tooltalk/tooltalk_all.jsonl": ("tooltalk", 50, 50, {}),
    "xtuner/mllm_sft_text_example_data.jsonl": ("openai", 200, 200, {}),
    "xtuner/openai_sft.jsonl": ("openai", 128, 128, {}),
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "crosswoz/val_first200.json": {"roles": {"usr": "user", "sys": "assistant"}},
    "smile/smile_1000.jsonl": {"roles": {"client": "user", "counselor": "assistant"}},
    "tau_bench/gpt-4o-airline.json": {"messages_field": ("messages", "traj")},
}
# Those whose tokens are compared; the others take minutes.
TOKENIZED = [
    "fastchat/dummy_conversation.json", "litgpt_fixtures/alpaca.json", "litgpt_fixtures/dolly.json",
    "llama_factory/alpaca_en_demo.json", "llama_factory/glaive_toolcall_en_demo.json",
    "llama_factory/alpaca_zh_demo.json", "llama_factory/identity.json", "llama_factory/kto_en_demo.json",
    "swift_tiny/alpaca.jsonl", "swift_tiny/chatml.jsonl", "tau_bench/gpt-4o-airline.json",
    "tooltalk/tooltalk_all.jsonl", "xtuner/mllm_sft_text_example_data.jsonl",
]  # fmt: skip
FORMATTER = OpenAIMessagesFormatter()
LOSSLESS = ["llama3", "gpt2", "minimind"]


def options_of(file: str) -> SourceOptions:
    return SourceOptions(**OPTIONS.get(file, {}))


def read(shared_dir: Path, file: str, options: SourceOptions | None = None) -> list[Reading]:
    return list(read_conversations([shared_dir / "conversations" / file], options or options_of(file)))


@pytest.fixture(scope="module")
def conversations(shared_dir: Path) -> list[Conversation]:
    parsed = [c for file in TOKENIZED for reading in read(shared_dir, file) for c in reading.conversations]
    assert len(parsed) == sum(FILES[file][2] for file in TOKENIZED) == 3431
    return parsed


def test_no_file_is_forgotten(shared_dir: Path) -> None:
    folder = shared_dir / "conversations"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_every_row_is_a_conversation_or_in_the_ledger_with_its_reason(file: str, shared_dir: Path) -> None:
    options = options_of(file)
    rows = list(read_rows(shared_dir / "conversations" / file))
    readings = read(shared_dir, file)
    assert [row for reading in readings for row in reading.rows] == rows
    reasons = Counter(reading.error.reason for reading in readings if reading.error)
    [name] = detect_formats(rows, options)
    assert (name, len(rows), sum(len(r.conversations) for r in readings), reasons) == FILES[file]
    assert all(bool(reading.conversations) != bool(reading.error) for reading in readings)
    branches = sum(len(reading.conversations) - 1 for reading in readings if reading.conversations)
    assert len(rows) == FILES[file][2] - branches + sum(reasons.values())


@pytest.mark.parametrize("file", [file for file, facts in FILES.items() if facts[2]])
def test_a_converted_row_converts_to_itself(file: str, shared_dir: Path) -> None:
    for reading in read(shared_dir, file):
        for conversation in reading.conversations:
            line = json.dumps(to_row(conversation), ensure_ascii=False)
            back = parse_conversation(json.loads(line))
            assert back == conversation, reading.origin
            assert json.dumps(to_row(back), ensure_ascii=False) == line


def test_a_transcript_can_be_written_again_from_its_conversation(shared_dir: Path) -> None:
    """So nothing of it is lost, nor any turn invented where a text has `Human:` in it."""
    names = {"user": "Human", "assistant": "Assistant"}
    for reading in read(shared_dir, "hh_rlhf/harmless-base_test.jsonl"):
        [conversation] = reading.conversations
        text = "".join(f"\n\n{names[m.role]}: {m.content}" for m in conversation.messages)
        assert text == reading.rows[0].value["chosen"]


def test_every_answer_of_a_tree_is_in_a_branch_and_the_best_branch_follows_the_ranks(shared_dir: Path) -> None:
    def answers(node: dict[str, Any]) -> set[str]:
        own = {node["text"]} if node["role"] == "assistant" else set()
        return own.union(*(answers(reply) for reply in node["replies"]))

    best = read(shared_dir, "oasst/en_100_tree.jsonl", SourceOptions(oasst="best"))
    for reading, one in zip(read(shared_dir, "oasst/en_100_tree.jsonl"), best, strict=True):
        tree = reading.rows[0].value["prompt"]
        said = {m.content for c in reading.conversations for m in c.messages if m.role == "assistant"}
        assert said == answers(tree)
        [conversation] = one.conversations
        assert conversation in reading.conversations
        ranks = {reply["text"]: reply.get("rank") for reply in tree["replies"]}
        assert ranks[conversation.messages[1].content] in (0, None)


@pytest.mark.parametrize(
    ("entry", "file"),
    [
        ("identity", "llama_factory/identity.json"),
        ("alpaca_en_demo", "llama_factory/alpaca_en_demo.json"),
        ("glaive_toolcall_en_demo", "llama_factory/glaive_toolcall_en_demo.json"),
        ("kto_en_demo", "llama_factory/kto_en_demo.json"),
    ],
)
def test_an_entry_of_dataset_info_reads_its_file_as_it_is_recognised(entry: str, file: str, shared_dir: Path) -> None:
    entries = json.loads((shared_dir / "conversations/llama_factory/dataset_info.json").read_text())
    mapped = read(shared_dir, file, SourceOptions(column_map=ColumnMap.from_mapping(entries[entry])))
    recognised = read(shared_dir, file)
    assert [r.conversations for r in mapped] == [r.conversations for r in recognised]
    assert [r.error and r.error.reason for r in mapped] == [r.error and r.error.reason for r in recognised]


def targets(conversation: Conversation, tokenizer: SFTTokenizer) -> list[str]:
    """The text of each trained piece, decoded on its own."""
    encoded = encode_conversation(
        conversation, formatter=FORMATTER, tokenizer=tokenizer, supervise_end_of_turn=True, add_bos=False
    )
    return [tokenizer.decode(encoded.tokens_T[first:last]) for first, last in encoded.token_spans_K2]


def said(conversation: Conversation) -> list[str]:
    turns = [assistant_text(message) for message in conversation.messages if message.role == "assistant"]
    return [piece for turn in turns for piece in (turn, IM_END)]


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer_name", LOSSLESS)
def test_what_is_trained_decodes_to_what_the_assistant_said(
    tokenizer_name: str, conversations: list[Conversation], shared_tokenizer: LoadShared
) -> None:
    tokenizer = shared_tokenizer(tokenizer_name)
    for conversation in conversations:
        assert targets(conversation, tokenizer) == said(conversation), conversation.origin


@pytest.mark.slow
def test_deepseek_coders_file_can_not_decode_the_letters_that_it_lists_as_added_tokens(
    conversations: list[Conversation], shared_tokenizer: LoadShared, shared_dir: Path
) -> None:
    """They are letters of its byte alphabet, so its own decoder makes single bytes of them; the ids are right."""
    tokenizer = shared_tokenizer("deepseek-coder")
    reference = Tokenizer.from_file(str(shared_dir / "tokenizers/deepseek-coder/tokenizer.json"))
    letters = {token.content for token in reference.get_added_tokens_decoder().values() if len(token.content) == 1}
    assert letters == set("õ÷ÁýÀÿøúþüùöû")
    changed = {c.origin for c in conversations if targets(c, tokenizer) != said(c)}
    assert changed == {c.origin for c in conversations if letters & set("".join(said(c)))}
    assert len(changed) == 10


@pytest.mark.slow
def test_qwens_tokenizer_changes_the_text_to_nfc_and_nothing_else(
    conversations: list[Conversation], shared_tokenizer: LoadShared
) -> None:
    tokenizer = shared_tokenizer("qwen2")
    for conversation in conversations:
        expected = [unicodedata.normalize("NFC", piece) for piece in said(conversation)]
        assert targets(conversation, tokenizer) == expected, conversation.origin


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokenizer_name", "num_cut"),
    [
        ("qwen2", 0),
        ("minimind", 0),
        # Without ChatML tokens a marker is text, and a token such as `.<` goes across the edge of a turn.
        ("gpt2", 477),
        ("deepseek-coder", 106),
        ("llama2", 476),
        ("mistral-v3", 480),
    ],
)
def test_where_nothing_is_cut_the_ids_are_those_of_the_whole_text(
    tokenizer_name: str,
    num_cut: int,
    conversations: list[Conversation],
    shared_tokenizer: LoadShared,
    shared_dir: Path,
) -> None:
    tokenizer = shared_tokenizer(tokenizer_name)
    ids: dict[str, list[int]] = {}
    cut = 0
    for conversation in conversations[::3]:
        rendered = FORMATTER.render(conversation)
        spans = [(span.start, span.end) for span in rendered.spans]
        encoding = tokenizer.encode(rendered.text, markers=rendered.markers, spans=spans)
        own = [m for m in rendered.markers if rendered.text[m[0] : m[1]] in tokenizer.control_tokens]
        assert control_text(tokenizer, rendered.text) == own  # nobody typed a control token
        if encoding.num_splits:
            cut += 1
        else:
            ids[rendered.text] = encoding.ids_T.tolist()
    assert cut == num_cut
    assert len(ids) > 500
    reference = Tokenizer.from_file(str(shared_dir / "tokenizers" / tokenizer_name / "tokenizer.json"))
    encodings = reference.encode_batch_fast(list(ids), add_special_tokens=False)
    assert list(ids.values()) == [encoding.ids for encoding in encodings]


@pytest.mark.slow
def test_alpaca_prompts_train_the_response_and_its_end(
    conversations: list[Conversation], shared_tokenizer: LoadShared
) -> None:
    tokenizer = shared_tokenizer("llama3")
    formatter = create_formatter("alpaca", eos_token="<|eot_id|>")
    assert isinstance(formatter, AlpacaFormatter)
    single = [c for c in conversations if [m.role for m in c.messages] == ["user", "assistant"] and not c.tools]
    assert len(single) > 2000
    for conversation in single:
        encoded = encode_conversation(
            conversation, formatter=formatter, tokenizer=tokenizer, supervise_end_of_turn=True
        )
        trained = encoded.tokens_T[encoded.assistant_mask_T]
        assert tokenizer.decode(trained) == conversation.messages[-1].content + "<|eot_id|>", conversation.origin
