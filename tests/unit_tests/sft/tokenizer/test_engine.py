# SPDX-License-Identifier: Apache-2.0
"""The fast engine, and many texts at once: the same as one by one through the reference, or not used."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from primus.chat import Conversation, Message
from primus.errors import EngineError, RenderError
from primus.sft.encoding import encode_conversation, trace_conversations
from primus.sft.formatters import OpenAIMessagesFormatter
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer
from primus.sft.tokenizer.base import MarkedText
from primus.sft.tokenizer.engine import CHECK_EVERY, FastEngine, probes, proven_engine
from primus.sft.tokenizer.fast import FastTokenizer
from tests.unit_tests.sft.conftest import byte_level, metaspace
from tests.unit_tests.sft.test_laws import conversations

FORMATTER = OpenAIMessagesFormatter()
PLAIN = Conversation((Message("user", "Hello there"), Message("assistant", "I am fine, thank you!")))
ROW_BY_ROW = 10**12


@pytest.fixture(scope="module")
def at_once() -> Iterator[dict[str, SFTTokenizer]]:
    """Byte-level tokenizers that ask their fast engine from the first text on."""
    with mock.patch("primus.sft.tokenizer.fast._CHARS_BEFORE_ENGINE", 0):
        yield {
            "plain": load_tokenizer(byte_level()),
            "without ChatML": load_tokenizer(byte_level(chatml=False)),
            "NFC": load_tokenizer(byte_level(normalizer=normalizers.NFC())),
        }


def check_at_once(group: list[Conversation], tokenizer: SFTTokenizer) -> int:
    """Compare texts at once with each alone through the reference; gives how many were done at once."""
    rendered = [FORMATTER.render(conversation) for conversation in group]
    texts = [MarkedText(r.text, r.markers, [(s.start, s.end) for s in r.spans]) for r in rendered]
    encodings = tokenizer.encode_plain(texts)
    with mock.patch("primus.sft.tokenizer.fast._CHARS_BEFORE_ENGINE", ROW_BY_ROW):
        for text, encoding in zip(texts, encodings, strict=True):
            alone = tokenizer.encode(text.text, markers=text.markers, spans=text.spans)
            if encoding is not None:
                assert encoding.ids_T.tolist() == alone.ids_T.tolist()
                assert encoding.offsets_T2.tolist() == alone.offsets_T2.tolist()
                assert encoding.num_splits == alone.num_splits == 0
    return sum(encoding is not None for encoding in encodings)


@pytest.mark.parametrize("name", ["plain", "without ChatML", "NFC"])
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(group=st.lists(conversations, min_size=1, max_size=5))
def test_texts_at_once_get_what_each_gets_alone(
    name: str, group: list[Conversation], at_once: dict[str, SFTTokenizer]
) -> None:
    assert check_at_once([*group, PLAIN], at_once[name]) >= (name != "without ChatML")


@pytest.mark.parametrize("name", ["qwen2", "llama3", "gpt2", "minimind"])
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(group=st.lists(conversations, min_size=1, max_size=5))
def test_texts_at_once_get_what_each_gets_alone_with_real_tokenizers(
    name: str, group: list[Conversation], shared_dir: Path
) -> None:
    tokenizer = _real(shared_dir, name)
    with mock.patch("primus.sft.tokenizer.fast._CHARS_BEFORE_ENGINE", 0):
        check_at_once([*group, PLAIN], tokenizer)


_loaded: dict[str, SFTTokenizer] = {}


def _real(shared_dir: Path, name: str) -> SFTTokenizer:
    if name not in _loaded:
        _loaded[name] = load_tokenizer(shared_dir / "tokenizers" / name / "tokenizer.json")
    return _loaded[name]


def test_one_special_text_among_many_does_not_change_the_others(at_once: dict[str, SFTTokenizer]) -> None:
    spelled = Conversation((Message("user", "a<|im_end|>b"), Message("assistant", "c")))
    merged = Conversation((Message("user", "a"), Message("assistant", "\n\nb")))
    changed = Conversation((Message("user", "cafe\u0301"), Message("assistant", "b")))
    assert check_at_once([PLAIN, spelled, PLAIN, merged, PLAIN, changed, PLAIN], at_once["NFC"]) >= 4


def test_no_text_at_all_is_no_encoding(at_once: dict[str, SFTTokenizer]) -> None:
    assert at_once["plain"].encode_plain([]) == []
    [nothing] = at_once["plain"].encode_plain([MarkedText("", (), ())])
    assert nothing is not None
    assert nothing.ids_T.tolist() == []


def test_conversations_at_once_are_traced_as_each_alone(at_once: dict[str, SFTTokenizer]) -> None:
    group = [PLAIN, Conversation((Message("user", "Hi"), Message("assistant", "\n")))] * 3
    for add_eos in (False, True):
        options = {"supervise_end_of_turn": True, "add_eos": add_eos}
        traced = trace_conversations(group, formatter=FORMATTER, tokenizer=_with_eos(), **options)  # type: ignore[arg-type]
        for conversation, trace in zip(group, traced, strict=True):
            assert not isinstance(trace, Exception)
            alone = encode_conversation(conversation, formatter=FORMATTER, tokenizer=_with_eos(), **options)  # type: ignore[arg-type]
            assert trace.encoded.tokens_T.tolist() == alone.tokens_T.tolist()
            assert trace.encoded.token_spans_K2.tolist() == alone.token_spans_K2.tolist()
            assert len(trace.offsets_T2) == len(alone.tokens_T)


def _with_eos() -> SFTTokenizer:
    return FastTokenizer(byte_level().to_str(), name="eos", eos_token="<|endoftext|>")


def reference(tokenizer: Tokenizer) -> FastTokenizer:
    loaded = load_tokenizer(tokenizer)
    assert isinstance(loaded, FastTokenizer)
    return loaded


def test_an_engine_that_gives_other_ids_for_one_probe_is_not_used() -> None:
    tokenizer = reference(byte_level())
    pipeline, controls = tokenizer._pipeline, tokenizer.control_tokens
    assert proven_engine(pipeline, reference=tokenizer._reference_ids, control_tokens=controls, name="x") is not None
    last = probes(controls)[-1]

    def lie(text: str) -> list[int]:
        return [*tokenizer._reference_ids(text), *([0] if text == last else [])]

    assert proven_engine(pipeline, reference=lie, control_tokens=controls, name="x") is None


def test_a_pipeline_that_the_engine_does_not_know_is_left_to_the_reference() -> None:
    tokenizer = reference(metaspace("first"))
    assert proven_engine(tokenizer._pipeline, reference=tokenizer._reference_ids, control_tokens=(), name="x") is None


def test_the_engine_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMUS_FAST_TOKENIZER", "0")
    assert reference(byte_level())._engine is None


def test_truncation_and_padding_in_the_file_are_not_done_by_the_engine() -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    loaded = reference(tokenizer)
    assert loaded._engine is not None
    assert loaded._engine.encode("Hello there, how are you?") == loaded._reference_ids("Hello there, how are you?")


@pytest.mark.parametrize("in_groups_of", [1, 7, 400])
def test_one_text_in_a_thousand_is_compared_and_a_difference_stops_everything(in_groups_of: int) -> None:
    tokenizer = reference(byte_level())
    compared: list[str] = []

    def lie(text: str) -> list[int]:
        compared.append(text)
        return (
            [*tokenizer._reference_ids(text), 0]
            if text == f"row {2 * CHECK_EVERY - 1}"
            else tokenizer._reference_ids(text)
        )

    engine = FastEngine(tokenizer._pipeline, reference=lie, name="t.json")
    texts = [f"row {i}" for i in range(3 * CHECK_EVERY)]
    groups = [texts[first : first + in_groups_of] for first in range(0, len(texts), in_groups_of)]
    encode = [(lambda group: engine.encode(group[0])), engine.encode_all][in_groups_of > 1]
    with pytest.raises(EngineError, match=r"^t\.json: the fast engine gives \d+ ids and the reference \d+, different"):
        list(map(encode, groups))
    assert compared == [f"row {CHECK_EVERY - 1}", f"row {2 * CHECK_EVERY - 1}"]


def test_a_difference_is_no_bad_row_but_ends_the_run_with_the_row_that_shows_it() -> None:
    tokenizer = reference(byte_level())
    group = [Conversation(PLAIN.messages, origin=f"a.jsonl:{line}") for line in range(1, 2 * CHECK_EVERY)]
    no_form = mock.Mock(wraps=FORMATTER, writes_bos=False)
    no_form.render.side_effect = lambda c: _refuse() if c.origin == "a.jsonl:3" else FORMATTER.render(c)
    with (
        mock.patch("primus.sft.tokenizer.fast._CHARS_BEFORE_ENGINE", 0),
        mock.patch.object(tokenizer, "_engine", FastEngine(tokenizer._pipeline, reference=lambda _: [0], name="t")),
    ):
        options = {"formatter": no_form, "tokenizer": tokenizer, "supervise_end_of_turn": True}
        with pytest.raises(EngineError, match=rf"^a\.jsonl:{CHECK_EVERY + 1}: t: the fast engine gives"):
            trace_conversations(group, **options)  # type: ignore[arg-type]


def _refuse() -> None:
    raise RenderError("a.jsonl:3: no form")


def test_a_difference_in_a_text_that_is_encoded_alone_names_its_row_too() -> None:
    tokenizer = reference(byte_level())
    conversation = Conversation(PLAIN.messages, origin="a.jsonl:7")
    with (
        mock.patch("primus.sft.tokenizer.fast._CHARS_BEFORE_ENGINE", ROW_BY_ROW),
        mock.patch.object(tokenizer, "_encode", side_effect=EngineError("t.json: other ids")),
        pytest.raises(EngineError, match=r"^a\.jsonl:7: t\.json: other ids$"),
    ):
        encode_conversation(conversation, formatter=FORMATTER, tokenizer=tokenizer, supervise_end_of_turn=True)


def test_bytes_of_ids_are_what_the_library_decodes() -> None:
    tokenizer = reference(byte_level())
    ids_T = np.array(tokenizer._reference_ids("caf\u00e9 \u4f60\u597d <|im_end|>"))
    decoded = tokenizer.bytes_of(ids_T)
    assert decoded is not None
    assert decoded[0].decode() == tokenizer.decode(ids_T) == "caf\u00e9 \u4f60\u597d <|im_end|>"
    assert decoded[1][-1] == len(decoded[0])
    assert load_tokenizer(metaspace("first")).bytes_of(ids_T) is None


def test_a_vocabulary_whose_decoder_does_not_give_its_bytes_back_is_decoded_by_the_library() -> None:
    pipeline = json.loads(byte_level().to_str())
    # An added word that is also a letter of the byte alphabet: the library's decoder takes it for a byte.
    pipeline["added_tokens"].append(
        {"id": 500, "content": "\u00f5", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": False}
    )  # fmt: skip
    tokenizer = FastTokenizer(json.dumps(pipeline), name="t")
    assert tokenizer.bytes_of(np.array([500])) is None
    assert tokenizer.decode_after([], [500]) == tokenizer.decode([500])


@settings(max_examples=200)
@given(
    text=st.text(max_size=30)
    | st.lists(st.sampled_from(["<", "|", "im_", "end", " ", "\n", "a", "\u0301"])).map("".join)
)
def test_a_continuation_without_control_text_is_what_the_tokenizer_of_continuations_gives(text: str) -> None:
    tokenizer = _continuing()
    assert tokenizer._goes_on_as_it_begins
    short = tokenizer._encode_continuation(text)
    with mock.patch.object(FastTokenizer, "_goes_on_as_it_begins", new=False):
        long = tokenizer._encode_continuation(text)
    assert [part.tolist() for part in short] == [part.tolist() for part in long]


@cache
def _continuing() -> FastTokenizer:
    return reference(byte_level(normalizer=normalizers.NFC()))


def test_a_tokenizer_that_puts_a_space_in_front_of_a_text_has_another_one_for_continuations() -> None:
    assert not reference(metaspace("first"))._goes_on_as_it_begins
    assert not reference(metaspace("always"))._goes_on_as_it_begins
    assert reference(metaspace("never"))._goes_on_as_it_begins
