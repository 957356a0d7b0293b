# SPDX-License-Identifier: Apache-2.0
"""The page of rows: nothing in a row becomes markup, and the browser may run only what belongs to the page."""

import base64
import hashlib
import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from primus.chat import Conversation, Message
from primus.sft.encoding import trace_conversation
from primus.sft.formatters import OpenAIMessagesFormatter
from primus.sft.tokenizer import SFTTokenizer
from primus.sft.views import ConversationView, RowProblem, render_page, view_conversation
from primus.sft.views.page import embedded_json

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & <!-- \u2028 ]]>"
DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def view(conversation: Conversation, tokenizer: SFTTokenizer, *, max_seq_length: int | None = None) -> ConversationView:
    traced = trace_conversation(
        conversation, formatter=OpenAIMessagesFormatter(), tokenizer=tokenizer, supervise_end_of_turn=True
    )
    return view_conversation(traced, tokenizer=tokenizer, max_seq_length=max_seq_length)


def rows_of(page: str) -> list[dict[str, Any]]:
    [data] = DATA.findall(page)
    rows: list[dict[str, Any]] = json.loads(data)["rows"]
    return rows


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from([EVIL, "<", "\u2029", "&lt;"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_embedded_json_is_the_same_data_and_no_markup(value: Any) -> None:
    text = embedded_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


def test_what_a_row_says_is_only_in_the_data(chatml_tokenizer: SFTTokenizer) -> None:
    row = view(Conversation((Message("user", EVIL), Message("assistant", EVIL)), origin=EVIL), chatml_tokenizer)
    plain = render_page([view(Conversation((Message("assistant", "a"),)), chatml_tokenizer)])
    page = render_page([row, RowProblem(EVIL, EVIL)])
    assert DATA.sub("", page) == DATA.sub("", plain)
    assert [shown["origin"] for shown in rows_of(page)] == [EVIL, EVIL]
    assert rows_of(page)[1]["problem"] == EVIL


def test_facts_and_title_are_escaped(chatml_tokenizer: SFTTokenizer) -> None:
    page = render_page([], title=EVIL, facts=[(EVIL, EVIL)])
    assert "alert(1)</script>" not in page
    assert page.count("&lt;img src=x onerror=alert(2)&gt;") == 3


def test_a_row_in_the_page_is_the_view(chatml_tokenizer: SFTTokenizer) -> None:
    talk = Conversation((Message("user", "Hi \U0001f389"), Message("assistant", "Hello", weight=0.1)), origin="a:1")
    row = view(talk, chatml_tokenizer, max_seq_length=25)
    [shown] = rows_of(render_page([row], max_seq_length=25))
    assert shown["ids"] == row.ids_T.tolist()
    starts = [sum(shown["steps"][: t + 1]) for t in range(len(shown["steps"]))]
    ends = [start + width for start, width in zip(starts, shown["widths"], strict=True)]
    assert [list(pair) for pair in zip(starts, ends, strict=True)] == row.offsets_T2.tolist()
    assert [kind for kind, length in shown["kinds"] for _ in range(length)] == list(row.kinds)
    weights = [weight for weight, length in shown["weights"] for _ in range(length)]
    assert weights == [0.1 if weight else 0 for weight in row.weights_T.tolist()]
    assert {int(token): bytes.fromhex(data) for token, data in shown["bytes"].items()} == row.bytes
    assert (shown["text"], shown["cut"], tuple(shown["notes"])) == (row.text, row.cut, row.notes)


def test_the_policy_allows_the_style_and_the_script_of_the_page_and_nothing_else() -> None:
    page = render_page([RowProblem("a:1", "no")])
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    policy = policy.replace("&#39;", "'")
    for name, element in (("style-src", "style"), ("script-src", "script")):
        [content] = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_the_page_refers_to_nothing_outside_and_uses_no_sink_for_markup() -> None:
    page = render_page([])
    assert re.findall(r"\b(?:https?:)?//[a-z]", DATA.sub("", page)) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", page) == []


def test_the_same_rows_give_the_same_page(chatml_tokenizer: SFTTokenizer) -> None:
    talk = Conversation((Message("assistant", "a"),))
    assert render_page([view(talk, chatml_tokenizer)]) == render_page([view(talk, chatml_tokenizer)])
