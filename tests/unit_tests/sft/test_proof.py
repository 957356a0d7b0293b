# SPDX-License-Identifier: Apache-2.0
"""Every check of the proof finds the fault that it is there for, and nothing where there is none."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from primus.chat import Conversation, Message, ToolCall
from primus.chat.conversations import SourceOptions, read_batches
from primus.sft.dataset import EncodingOptions
from primus.sft.encoding import TracedConversation
from primus.sft.formatters import CharSpan, OpenAIMessagesFormatter, RenderedConversation, create_formatter
from primus.sft.proof import CHECKS, Check, ProofJob, Prover
from primus.sft.recipe import Encoder, Recipe
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer
from primus.sft.verdict import PROBES, judge_tokenizer
from primus.sft.workers import map_batches
from tests.unit_tests.sft.test_laws import conversations

GOOD = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "Hello there"),
        Message("assistant", "I am fine"),
        Message("user", "and now? <|im_end|>"),
        Message("assistant", "now too"),
    ),
    origin="a.jsonl:1",
)


def prover(tokenizer: SFTTokenizer, *, max_seq_length: int | None = None, **options: Any) -> Prover:
    chosen = EncodingOptions(**{"supervise_end_of_turn": True, **options})
    return Prover(Encoder(tokenizer, OpenAIMessagesFormatter(), chosen), max_seq_length=max_seq_length)


def broken(prover: Prover, break_it: Callable[[TracedConversation], TracedConversation]) -> Counter[Check]:
    """The checks that fail for a conversation whose tokens have been tampered with."""
    traced = prover._encoder.trace(GOOD)
    assert prover.check(GOOD, traced) == []
    return Counter(failure.check for failure in prover.check(GOOD, break_it(traced)))


def test_a_good_conversation_fails_no_check(chatml_tokenizer: SFTTokenizer) -> None:
    assert prover(chatml_tokenizer, max_seq_length=500).prove(GOOD) == []


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(conversation=conversations)
def test_no_conversation_fails_a_check_but_where_answers_merge_with_their_header(
    conversation: Conversation, chatml_tokenizer: SFTTokenizer
) -> None:
    failures = prover(chatml_tokenizer).prove(conversation)
    has_split = prover(chatml_tokenizer)._encoder.trace(conversation).encoded.num_splits > 0
    assert {failure.check for failure in failures} <= ({"prompt"} if has_split else set())


@pytest.mark.parametrize("shift", [-1, 1])
def test_targets_that_are_off_by_one_are_found(shift: int, chatml_tokenizer: SFTTokenizer) -> None:
    def move(trace: TracedConversation) -> TracedConversation:
        spans = trace.encoded.token_spans_K2 + shift
        return replace(trace, encoded=replace(trace.encoded, token_spans_K2=spans))

    found = broken(prover(chatml_tokenizer), move)
    assert found["content"] == 4  # two answers and two ends


def test_a_format_that_writes_something_else_than_the_answer_is_found(chatml_tokenizer: SFTTokenizer) -> None:
    def shorten(trace: TracedConversation) -> TracedConversation:
        spans = list(trace.rendered.spans)
        spans[0] = replace(spans[0], end=spans[0].end - 3)
        encoded = trace.encoded
        first = encoded.token_spans_K2.copy()
        first[0, 1] = np.searchsorted(trace.offsets_T2[:, 0], spans[0].end)
        return replace(
            trace, rendered=replace(trace.rendered, spans=tuple(spans)), encoded=replace(encoded, token_spans_K2=first)
        )

    assert broken(prover(chatml_tokenizer), shorten)["content"] >= 1


def test_a_turn_without_a_trained_end_is_found(chatml_tokenizer: SFTTokenizer) -> None:
    def untrain(trace: TracedConversation) -> TracedConversation:
        weights = np.where(trace.encoded.is_end_K & (trace.encoded.turns_K == 2), 0, trace.encoded.weights_K)
        return replace(trace, encoded=replace(trace.encoded, weights_K=weights.astype(np.float32)))

    assert broken(prover(chatml_tokenizer), untrain) == {"stop": 1, "content": 1}  # its weight is another, too
    without = prover(chatml_tokenizer, supervise_end_of_turn=False)
    assert without.prove(GOOD) == []


def test_a_control_token_made_of_content_is_found(chatml_tokenizer: SFTTokenizer) -> None:
    """As a tokenizer that is left alone encodes the user's `<|im_end|>`."""

    def let_it_in(trace: TracedConversation) -> TracedConversation:
        start = trace.rendered.text.index("? <|im_end|>") + 2
        inside = (trace.offsets_T2[:, 0] >= start) & (trace.offsets_T2[:, 1] <= start + len("<|im_end|>"))
        [first, *_], last = np.flatnonzero(inside).tolist(), int(np.flatnonzero(inside)[-1])
        control = chatml_tokenizer.control_tokens["<|im_end|>"]
        tokens = np.concatenate([trace.encoded.tokens_T[:first], [control], trace.encoded.tokens_T[last + 1 :]])
        place = [[start, start + len("<|im_end|>")]]
        offsets = np.concatenate([trace.offsets_T2[:first], place, trace.offsets_T2[last + 1 :]])
        return replace(trace, offsets_T2=offsets, encoded=replace(trace.encoded, tokens_T=tokens))

    assert broken(prover(chatml_tokenizer), let_it_in)["control"] == 1


def test_a_marker_that_is_plain_text_is_found(chatml_tokenizer: SFTTokenizer) -> None:
    def take_away(trace: TracedConversation) -> TracedConversation:
        tokens = np.where(np.arange(len(trace.encoded.tokens_T)) == 0, 5, trace.encoded.tokens_T)
        return replace(trace, encoded=replace(trace.encoded, tokens_T=tokens))

    assert broken(prover(chatml_tokenizer), take_away)["control"] == 1


class ForgetsHistory(OpenAIMessagesFormatter):
    """Writes earlier answers in capitals in a prompt, as no server of the format does."""

    is_turn_by_turn = False

    def render_prompt(self, conversation: Conversation, turn: int) -> RenderedConversation:
        messages = tuple(
            replace(m, content=m.content.upper()) if m.role == "assistant" else m for m in conversation.messages
        )
        return super().render_prompt(replace(conversation, messages=messages), turn)


def test_a_prompt_that_is_no_prefix_of_the_text_is_found(chatml_tokenizer: SFTTokenizer) -> None:
    encoder = Encoder(chatml_tokenizer, ForgetsHistory(), EncodingOptions(supervise_end_of_turn=True))
    [failure] = Prover(encoder, max_seq_length=None).prove(GOOD)
    assert failure.check == "prompt"
    assert failure.message.startswith("a.jsonl:1: turn 4: a server's prompt reads 'AM FINE<|im_end|>")


def test_a_prompt_whose_tokens_are_no_prefix_is_found(chatml_tokenizer: SFTTokenizer) -> None:
    """The newline that begins the first answer merges with the header's newline when a server encodes the history."""
    merging = replace(GOOD, messages=(*GOOD.messages[:2], Message("assistant", "\n\nfine"), *GOOD.messages[3:]))
    checked = prover(chatml_tokenizer)
    assert checked._encoder.trace(merging).encoded.num_splits == 1
    [failure] = checked.prove(merging)
    assert (failure.check, failure.message.split(":")[2]) == ("prompt", " turn 4")

    def other_header(trace: TracedConversation) -> TracedConversation:
        first = int(trace.encoded.token_spans_K2[0, 0])
        tokens = trace.encoded.tokens_T.copy()
        tokens[first - 1] += 1
        return replace(trace, encoded=replace(trace.encoded, tokens_T=tokens))

    assert broken(checked, other_header)["prompt"] == 1


def test_a_conversation_without_targets_and_one_that_is_too_long_are_found(chatml_tokenizer: SFTTokenizer) -> None:
    silent = Conversation((Message("user", "a"), Message("assistant", "b", weight=0.0)), origin="a.jsonl:2")
    assert [failure.check for failure in prover(chatml_tokenizer).prove(silent)] == ["targets"]
    num_tokens = len(prover(chatml_tokenizer)._encoder.trace(GOOD).encoded.tokens_T)
    assert prover(chatml_tokenizer, max_seq_length=num_tokens - 1).prove(GOOD) == []
    [failure] = prover(chatml_tokenizer, max_seq_length=num_tokens - 2).prove(GOOD)
    assert failure.message.startswith(f"a.jsonl:1: the conversation has {num_tokens} tokens, but seq_length")
    assert prover(chatml_tokenizer, max_seq_length=5, truncation="right").prove(GOOD) == []


CALL = ToolCall("add", '{"a": 1}')
KINDS = {
    "plain": Message("assistant", "fine"),
    "with reasoning": Message("assistant", "fine", reasoning="a thought"),
    "with a call": Message("assistant", "One moment.", tool_calls=(CALL,)),
    "of a call alone": Message("assistant", "", tool_calls=(CALL,)),
}
Spans = Callable[[RenderedConversation], tuple[CharSpan, ...]]


def _first(rendered: RenderedConversation, **changes: Any) -> tuple[CharSpan, ...]:
    return (replace(rendered.spans[0], **changes), *rendered.spans[1:])


MUTATIONS: dict[str, Spans] = {
    "begins in the user's turn": lambda r: _first(r, start=r.text.index("Hi")),
    "begins in the header": lambda r: _first(r, start=r.spans[0].start - 3),
    "begins one late": lambda r: _first(r, start=r.spans[0].start + 1),
    "ends one early": lambda r: _first(r, end=r.spans[0].end - 1),
    "has no target": lambda r: r.spans[2:],
    "has another weight": lambda r: _first(r, weight=0.01),
    "has no weight": lambda r: _first(r, weight=0.0),
    "all have another weight": lambda r: tuple(replace(span, weight=0.01) for span in r.spans),
}


class Mutated(OpenAIMessagesFormatter):
    """Says something wrong about what is trained, while its prompts are right."""

    def __init__(self, mutate: Spans) -> None:
        self._mutate = mutate

    def render(self, conversation: Conversation) -> RenderedConversation:
        rendered = super().render(conversation)
        return replace(rendered, spans=self._mutate(rendered))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mask_that_is_wrong_is_found_whatever_the_answer_consists_of(
    kind: str, mutation: str, chatml_tokenizer: SFTTokenizer
) -> None:
    two = Conversation((Message("user", "Hi"), KINDS[kind], Message("user", "and"), Message("assistant", "bye")))
    options = EncodingOptions(supervise_end_of_turn=True)
    for mutate, is_wrong in ((MUTATIONS[mutation], True), ((lambda r: r.spans), False)):
        encoder = Encoder(chatml_tokenizer, Mutated(mutate), options)
        assert bool(Prover(encoder, max_seq_length=None).prove(two)) == is_wrong


def test_a_turn_of_weight_0_that_is_trained_is_found(chatml_tokenizer: SFTTokenizer) -> None:
    silent = Message("assistant", "bad", weight=0.0)
    two = Conversation((Message("user", "Hi"), silent, Message("user", "and"), Message("assistant", "bye")))
    encoder = Encoder(
        chatml_tokenizer,
        Mutated(lambda r: tuple(replace(span, weight=1.0) for span in r.spans)),
        EncodingOptions(supervise_end_of_turn=True),
    )
    problems = [f.message for f in Prover(encoder, max_seq_length=None).prove(two)]
    assert "turn 1: its content has weight 1, but the data says 0" in problems[0]
    assert prover(chatml_tokenizer, supervise_turns="last").prove(GOOD) == []


TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def template_prover(source: str, tokenizer: SFTTokenizer, folder: Path) -> Prover:
    path = folder / "template.jinja"
    path.write_text(source)
    formatter = create_formatter("template", tokenizer=tokenizer, template=path)
    return Prover(Encoder(tokenizer, formatter, EncodingOptions(supervise_end_of_turn=True)), max_seq_length=None)


def test_an_answer_that_a_template_leaves_out_is_found(chatml_tokenizer: SFTTokenizer, tmp_path: Path) -> None:
    last_only = "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}" + TURN + "{% endif %}{% endfor %}"
    failures = template_prover(last_only + PROMPT, chatml_tokenizer, tmp_path).prove(GOOD)
    assert {f.check for f in failures} == {"content"}
    assert "turn 2: the format writes nothing of this answer" in failures[0].message


def test_context_and_thoughts_that_a_template_leaves_out_are_counted(
    chatml_tokenizer: SFTTokenizer, tmp_path: Path
) -> None:
    assistants_only = (
        "{% for m in messages %}{% if m.role == 'assistant' %}" + TURN + "{% endif %}{% endfor %}" + PROMPT
    )
    thinking = {"role": "assistant", "content": "b", "reasoning_content": "hm"}
    row = {"messages": [{"role": "user", "content": "question"}, thinking]}
    file = write_rows(tmp_path / "a.jsonl", [row, row])
    [batch] = read_batches((file,), SourceOptions())
    proof = template_prover(assistants_only, chatml_tokenizer, tmp_path).prove_batch(batch)
    assert (proof.failures, proof.left_out) == ((), {"context": 2, "reasoning": 2})


def test_a_prompt_that_a_template_refuses_is_a_failure_of_the_row(
    chatml_tokenizer: SFTTokenizer, tmp_path: Path
) -> None:
    first = "{{ '' if messages[0].role == 'user' or messages | length > 1 else raise_exception('say something') }}"
    source = first + "{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT
    begins = Conversation((Message("assistant", "Hello"), Message("user", "Hi"), Message("assistant", "So?")))
    [failure] = template_prover(source, chatml_tokenizer, tmp_path).prove(begins)
    assert failure.check == "prompt"
    assert "turn 0: a server can't ask for this turn" in failure.message


def test_answers_of_unknown_tokens_are_found(shared_dir: Path) -> None:
    bert = load_tokenizer(shared_dir / "tokenizers" / "bert-cased" / "tokenizer.json")
    chinese = Conversation((Message("user", "a"), Message("assistant", "\u4f60\u597d \U0001f44d")))
    problems = [f.message for f in prover(bert).prove(chinese) if f.check == "content"]
    assert any("'[UNK]', for characters that the vocabulary lacks" in problem for problem in problems)
    assert not [f for f in prover(bert).prove(GOOD) if f.check == "content"]


def test_rows_and_conversations_are_counted_apart(tmp_path: Path, tokenizer_folder: Path) -> None:
    tree = {
        "message_tree_id": "t",
        "prompt": {
            "text": "q", "role": "prompter",
            "replies": [{"text": text, "role": "assistant", "replies": []} for text in ("a", "b", "c")],
        },
    }  # fmt: skip
    turns = [{"conversation_id": "1", "role": role, "content": "x"} for role in ("user", "assistant")]
    bad = [{"conversation_id": "2", "role": role, "content": "x"} for role in ("user", "user", "user")]
    file = write_rows(tmp_path / "a.jsonl", [tree, *turns, *bad])
    recipe = Recipe(files=(file,), source=SourceOptions(), tokenizer=str(tokenizer_folder / "tokenizer.json"))
    proofs = list(map_batches(ProofJob(recipe), read_batches(recipe.files, recipe.source), num_workers=1))
    assert sum(proof.num_rows for proof in proofs) == 6
    assert sum(proof.num_bad_rows for proof in proofs) == 3
    assert sum(proof.num_conversations for proof in proofs) == 4
    assert sum(proof.passed["parsed"] + proof.failed["parsed"] for proof in proofs) == 6
    assert sum(proof.passed["content"] for proof in proofs) == 4


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_a_batch_counts_every_row_and_every_check(tmp_path: Path, tokenizer_folder: Path) -> None:
    good = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    two_turns = {"messages": good["messages"] * 2}
    silent = {"messages": [good["messages"][0], {"role": "assistant", "content": "x", "weight": 0}]}
    file = write_rows(tmp_path / "a.jsonl", [good, "{broken\n", two_turns, silent, good])
    recipe = Recipe(files=(file,), source=SourceOptions(), tokenizer=str(tokenizer_folder / "tokenizer.json"))
    [proof] = map_batches(ProofJob(recipe), read_batches(recipe.files, recipe.source), num_workers=1)
    assert proof.num_rows == 5
    assert [(failure.origin, failure.check) for failure in proof.failures] == [
        (f"{file}:2", "parsed"),
        (f"{file}:4", "targets"),
    ]
    checks = {check: 4 for check in CHECKS if check != "length"} | {"targets": 3}
    assert proof.passed == checks
    assert (len(proof.lengths_N), proof.num_turns) == (4, 4)
    assert (proof.num_bad_rows, proof.num_conversations, proof.failed) == (1, 4, {"parsed": 1, "targets": 1})
    alpaca = Recipe(files=(file,), source=SourceOptions(), tokenizer=recipe.tokenizer, conversation_format="alpaca")
    [proof] = map_batches(ProofJob(alpaca), read_batches(recipe.files, recipe.source), num_workers=1)
    assert [(failure.origin, failure.check) for failure in proof.failures if failure.check == "rendered"] == [
        (f"{file}:3", "rendered")
    ]
    assert (proof.passed["parsed"], proof.passed["rendered"], proof.passed["tokenized"]) == (4, 3, 3)


def test_many_at_once_find_what_each_alone_finds(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": text}] * 2}
        for i, text in enumerate(["fine", "\n\nmerges", "caf\u00e9", "", "<|im_end|>"])
    ]
    file = write_rows(tmp_path / "a.jsonl", rows)
    recipe = Recipe(files=(file,), source=SourceOptions(), tokenizer=str(tokenizer_folder / "tokenizer.json"))
    [batch] = read_batches(recipe.files, recipe.source)
    prover = Prover(recipe.build(), max_seq_length=None)
    alone = [f for reading in batch.readings() for c in reading.conversations for f in prover.prove(c)]
    assert list(prover.prove_batch(batch).failures) == alone != []


def test_the_verdict_says_what_a_tokenizer_lacks_and_loses(
    chatml_tokenizer: SFTTokenizer, lossless_tokenizers: dict[str, SFTTokenizer], shared_dir: Path
) -> None:
    formatter = OpenAIMessagesFormatter()
    good = judge_tokenizer(chatml_tokenizer, formatter, puts_bos=False)
    assert (good.problems, good.lost, good.markers) == ([], {}, {"<|im_start|>": True, "<|im_end|>": True})
    bare = judge_tokenizer(lossless_tokenizers["byte-level without ChatML"], formatter, puts_bos=False)
    assert len(bare.problems) == 2
    assert "'<|im_start|>' is no single control token" in bare.problems[0]
    for name in ("metaspace first", "metaspace always"):
        lost = judge_tokenizer(lossless_tokenizers[name], formatter, puts_bos=False).lost
        assert set(lost) == {"the symbol of a space (U+2581)"}
    assert set(PROBES) >= set(lost)


def test_the_verdict_on_real_tokenizers(shared_dir: Path) -> None:
    lost = {}
    for name in ("qwen2", "llama3", "bert-cased", "t5-small", "claude-legacy"):
        recipe = Recipe(
            files=(), source=SourceOptions(), tokenizer=str(shared_dir / "tokenizers" / name / "tokenizer.json")
        )
        encoder = recipe.build()
        lost[name] = set(judge_tokenizer(encoder.tokenizer, encoder.formatter, puts_bos=False).lost)
    assert lost["llama3"] == set()
    assert lost["qwen2"] == {"combining marks (NFC)"}
    assert lost["claude-legacy"] == {"combining marks (NFC)", "compatibility characters (NFKC)"}
    assert {"newlines", "tabs", "spaces", "code"} <= lost["bert-cased"]
    assert {"newlines", "Chinese, Japanese, Korean", "emoji"} <= lost["t5-small"]


def test_alpaca_is_proven_too(chatml_tokenizer: SFTTokenizer) -> None:
    single = Conversation((Message("user", "Say hi"), Message("assistant", "hi")))
    formatter = create_formatter("alpaca", eos_token="<|im_end|>")
    encoder = Encoder(chatml_tokenizer, formatter, EncodingOptions(supervise_end_of_turn=True))
    assert Prover(encoder, max_seq_length=None).prove(single) == []
    assert isinstance(encoder.trace(single).rendered.spans[0], CharSpan)
