# SPDX-License-Identifier: Apache-2.0
"""98 real conversations through four pairs of tokenizer and chat template, as Hugging Face tokenizes and masks them.

Their spans are those of `{% generation %}`, so with the same spans the masks must be equal, but for a token across the
edge of a span: they train it whole, this project cuts it there. docs/ORACLES.md has the figures.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit_tests.oracles.comparing import Span, control_text, mask_of, mask_of_runs, read_lines, runs_of
from tests.unit_tests.oracles.conftest import LoadShared, RenderWithSpans

BOS = {"llama3": "<|begin_of_text|>", "llama2": "<s>"}
PAIRS = [("qwen2", "qwen2_5"), ("minimind", "qwen2_5"), ("llama3", "llama3"), ("llama2", "llama3")]
NUM_CONVERSATIONS = 98
NUM_ASSISTANT_TURNS = 519


@dataclass
class Case:
    messages: list[dict[str, Any]]
    text: str
    spans: list[Span]
    oracle: dict[str, Any]


class Cases:
    """The conversations of a pair, rendered."""

    def __init__(self, folder: Path, render: RenderWithSpans) -> None:
        self._folder = folder
        self._render = render
        self._conversations = {row["id"]: row["messages"] for row in read_lines(folder / "conversations.jsonl")}

    def of(self, tokenizer: str, template: str) -> Iterator[Case]:
        for oracle in read_lines(self._folder / f"{tokenizer}__{template}_training.jsonl"):
            messages = self._conversations[oracle["id"]]
            text, spans = self._render(f"{template}_training", messages, bos_token=BOS.get(tokenizer, ""), eos_token="")
            yield Case(messages, text, spans, oracle)


@pytest.fixture(scope="module")
def cases(oracles_dir: Path, render_trl_template: RenderWithSpans) -> Cases:
    return Cases(oracles_dir / "hf_generation_masks", render_trl_template)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_texts_and_spans_are_rendered_alike(pair: tuple[str, str], cases: Cases) -> None:
    num_cases = 0
    for case in cases.of(*pair):
        assert (sha256(case.text), len(case.text)) == (case.oracle["text_sha256"], case.oracle["n_chars"])
        assert [list(span) for span in case.spans] == case.oracle["generation_spans"]
        num_cases += 1
    assert num_cases == NUM_CONVERSATIONS


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_whole_texts_have_the_same_ids(pair: tuple[str, str], cases: Cases, shared_tokenizer: LoadShared) -> None:
    tokenizer = shared_tokenizer(pair[0])
    for case in cases.of(*pair):
        ids_T = tokenizer.encode(case.text, markers=control_text(tokenizer, case.text)).ids_T
        assert sha256(json.dumps(ids_T.tolist())) == case.oracle["ids_sha256"], case.oracle["id"]


@pytest.mark.parametrize("pair", PAIRS[:3], ids="-".join)
def test_ids_and_masks_are_the_same_with_their_spans(
    pair: tuple[str, str], cases: Cases, shared_tokenizer: LoadShared
) -> None:
    tokenizer = shared_tokenizer(pair[0])
    for case in cases.of(*pair):
        encoding = tokenizer.encode(case.text, markers=control_text(tokenizer, case.text), spans=case.spans)
        assert encoding.num_splits == 0
        assert sha256(json.dumps(encoding.ids_T.tolist())) == case.oracle["ids_sha256"]
        assert runs_of(mask_of(encoding, case.spans)) == case.oracle["hf_mask_runs"], case.oracle["id"]
        assert case.oracle["inside_rule_runs"] is None


def test_where_markers_are_plain_text_only_tokens_across_the_edge_differ(
    cases: Cases, shared_tokenizer: LoadShared
) -> None:
    """Llama 2 has no `<|eot_id|>`: its `>` and the next header's `<` are one token, which Hugging Face trains."""
    tokenizer = shared_tokenizer("llama2")
    across = int(tokenizer.encode("x><").ids_T[-1])
    count: Counter[str] = Counter()
    for case in cases.of("llama2", "llama3"):
        markers = control_text(tokenizer, case.text)
        theirs = tokenizer.encode(case.text, markers=markers)
        theirs_mask_T = mask_of_runs(case.oracle["hf_mask_runs"], len(theirs.ids_T))
        inside_runs = case.oracle["inside_rule_runs"] or case.oracle["hf_mask_runs"]
        inside_T = mask_of_runs(inside_runs, len(theirs.ids_T))
        edges = np.array(case.spans).reshape(-1)
        starts_T, ends_T = theirs.offsets_T2.T
        across_T = ((starts_T < edges[:, None]) & (edges[:, None] < ends_T)).any(axis=0)

        # Theirs: the mask of "inside" plus the tokens across an edge, each of them `><`.
        assert set(theirs.ids_T[across_T].tolist()) <= {across}
        assert (theirs_mask_T == (inside_T | across_T)).all()

        # Ours: the same tokens, with `><` in two parts of which the first one is trained.
        ours = tokenizer.encode(case.text, markers=markers, spans=case.spans)
        ours_mask_T = mask_of(ours, case.spans)
        position = 0
        for token_id, is_across, trained in zip(theirs.ids_T, across_T, theirs_mask_T, strict=True):
            if is_across:
                cut = ours.ids_T[position : position + 2].tolist()
                assert tokenizer.decode(cut) == "><"
                assert ours_mask_T[position : position + 2].tolist() == [True, False]
            else:
                assert (ours.ids_T[position], ours_mask_T[position]) == (token_id, trained)
            position += 1 + bool(is_across)
        assert position == len(ours.ids_T)
        assert ours.num_splits == across_T.sum()
        count.update(cases=1, rows=bool(across_T.any()), tokens=int(across_T.sum()))
    assert count == {"cases": NUM_CONVERSATIONS, "rows": 88, "tokens": 451}


@pytest.mark.parametrize(
    ("tokenizer_name", "num_theirs", "num_ours", "num_splits"),
    [("qwen2", 56_170, 55_143, 11), ("minimind", 73_220, 72_183, 1)],
)
def test_hugging_face_trains_two_newlines_more_in_each_turn(
    tokenizer_name: str, num_theirs: int, num_ours: int, num_splits: int, cases: Cases, shared_tokenizer: LoadShared
) -> None:
    """The templates' spans begin with the header's newline and end with the one behind `<|im_end|>`.

    The first belongs to the prompt, the second is never generated. Where the answer itself begins with a newline,
    theirs and the header's are one token, which is cut in two here.
    """
    tokenizer = shared_tokenizer(tokenizer_name)
    count: Counter[str] = Counter()
    for case in cases.of(tokenizer_name, "qwen2_5"):
        assert all(case.text[start] == "\n" and case.text[:end].endswith("<|im_end|>\n") for start, end in case.spans)
        spans = [(start + 1, end - 1) for start, end in case.spans]
        encoding = tokenizer.encode(case.text, markers=control_text(tokenizer, case.text), spans=spans)
        ours_T = mask_of(encoding, spans)
        assert tokenizer.decode(encoding.ids_T[ours_T]) == "".join(case.text[start:end] for start, end in spans)
        count.update(
            turns=len(spans),
            theirs=sum(last - first for first, last in case.oracle["hf_mask_runs"]),
            ours=int(ours_T.sum()),
            splits=encoding.num_splits,
        )
    assert count == {
        "turns": NUM_ASSISTANT_TURNS,
        "theirs": num_theirs,
        "ours": num_ours,
        "splits": num_splits,
    }
    assert num_theirs - num_ours == 2 * NUM_ASSISTANT_TURNS - num_splits


@pytest.mark.parametrize(("pair", "num_typed"), [(PAIRS[0], 4), (PAIRS[1], 4), (PAIRS[2], 2)])
def test_hugging_face_takes_typed_control_text_for_control_tokens(
    pair: tuple[str, str], num_typed: int, cases: Cases, shared_tokenizer: LoadShared
) -> None:
    """One of the conversations spells control tokens; here they stay text, and the text is the same."""
    tokenizer = shared_tokenizer(pair[0])
    control_ids = set(tokenizer.control_tokens.values())
    typed_in: dict[str, int] = {}
    for case in cases.of(*pair):
        markers = control_text(tokenizer, case.text)
        contents = places_of_contents(case)
        typed = [m for m in markers if any(start <= m[0] < end for start, end in contents)]
        if typed:
            typed_in[case.oracle["id"]] = len(typed)
            own = [marker for marker in markers if marker not in typed]
            encoding = tokenizer.encode(case.text, markers=own, spans=case.spans)
            assert sum(int(token_id) in control_ids for token_id in encoding.ids_T) == len(own)
            assert tokenizer.decode(encoding.ids_T) == case.text
    assert typed_in == {"adv/specials-in-text": num_typed}


def places_of_contents(case: Case) -> list[Span]:
    """Where the contents of the messages stand in the text, one after another."""
    places = [(0, 0)]
    for message in case.messages:
        content = (message["content"] or "").strip()
        start = case.text.index(content, places[-1][1])
        places.append((start, start + len(content)))
    return places
