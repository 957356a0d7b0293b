# SPDX-License-Identifier: Apache-2.0
"""Every real conversation of a format that is read today, through every lossless tokenizer.

What is trained decodes to what the assistant said, and where no token was cut the ids are those that the `tokenizers`
library gives the whole text at once.
"""

import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from primus.chat import Conversation, parse_conversation, read_rows
from primus.sft.encoding import encode_conversation
from primus.sft.formatters import IM_END, AlpacaFormatter, OpenAIMessagesFormatter, create_formatter
from primus.sft.formatters.openai import assistant_text
from primus.sft.tokenizer import SFTTokenizer
from tests.unit_tests.oracles.comparing import control_text
from tests.unit_tests.oracles.conftest import LoadShared

# Conversations in each file; 2,731 in all.
FILES = {
    "litgpt_fixtures/alpaca.json": 23,
    "litgpt_fixtures/dolly.json": 12,
    "llama_factory/alpaca_en_demo.json": 999,
    "llama_factory/alpaca_zh_demo.json": 1000,
    "llama_factory/identity.json": 91,
    "llama_factory/kto_en_demo.json": 300,
    "swift_tiny/alpaca.jsonl": 3,
    "swift_tiny/chatml.jsonl": 3,
    "tau_bench/gpt-4o-airline.json": 100,
    "xtuner/mllm_sft_text_example_data.jsonl": 200,
}
FORMATTER = OpenAIMessagesFormatter()
LOSSLESS = ["llama3", "gpt2", "minimind"]


@pytest.fixture(scope="module")
def conversations(shared_dir: Path) -> list[Conversation]:
    parsed = [
        parse_conversation(row.value, origin=row.origin, messages_field=("messages", "traj"))
        for file in FILES
        for row in read_rows(shared_dir / "conversations" / file)
    ]
    assert len(parsed) == sum(FILES.values()) == 2731
    return parsed


def test_every_file_has_its_conversations(shared_dir: Path) -> None:
    count = Counter(
        {file: sum(row.error is None for row in read_rows(shared_dir / "conversations" / file)) for file in FILES}
    )
    assert count == FILES


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
    assert len(changed) == 9


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
        ("gpt2", 403),
        ("deepseek-coder", 30),
        ("llama2", 403),
        ("mistral-v3", 408),
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
