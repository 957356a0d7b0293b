# SPDX-License-Identifier: Apache-2.0
"""Texts that are written beside others are the texts that are written alone."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat.messages import Conversation, Message, ToolCall
from primus.errors import RenderError
from primus.sft.formatters import NAMED_FORMATTERS, ConversationFormatter, create_formatter
from primus.sft.formatters.rendered import BatchFormatter, TextBatch

MESSAGES = st.builds(Message, st.sampled_from(["system", "user", "tool"]), st.text(max_size=5)) | st.builds(
    Message,
    st.just("assistant"),
    st.text(max_size=5),
    tool_calls=st.sampled_from([(), (), (ToolCall("f", "{}"),)]),
    reasoning=st.sampled_from([None, None, "", "so"]),
    weight=st.sampled_from([None, 0.0, 0.5]),
)
CONVERSATIONS = st.builds(
    lambda messages, tools: Conversation((*messages, Message("assistant", "a")), tools=tools, origin="a:1"),
    st.lists(MESSAGES, max_size=5),
    st.sampled_from([(), (), ('{"name": "f"}',)]),
)


def add_alone(formatter: ConversationFormatter, conversation: Conversation, batch: TextBatch) -> None:
    batch.add(formatter.render(conversation))


def refused_by(write: Callable[..., None], *arguments: object) -> str | None:
    try:
        write(*arguments)
    except RenderError as exc:
        return str(exc)
    return None


@pytest.mark.parametrize("name", ["openai", *NAMED_FORMATTERS])
@given(conversations=st.lists(CONVERSATIONS, max_size=3))
def test_a_text_beside_others_has_the_same_numbers_as_alone(name: str, conversations: list[Conversation]) -> None:
    formatter = create_formatter(name)
    assert isinstance(formatter, BatchFormatter)
    quick, slow = TextBatch(), TextBatch()
    for conversation in conversations:
        refusal = refused_by(add_alone, formatter, conversation, slow)
        assert refused_by(type(formatter).render_into, formatter, conversation, quick) == refusal
        assert vars(quick) == vars(slow)
