# SPDX-License-Identifier: Apache-2.0
"""Each fix-up does what it says and no more, and says what it did."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat import Conversation, Message, ToolCall
from primus.chat.fixups import NOTHING_LEFT, FixUps, Repaired, repair
from primus.errors import ConversationError

CALL = (ToolCall("f", "{}"),)


def system(content: str) -> Message:
    return Message("system", content)


def user(content: str, **fields: Any) -> Message:
    return Message("user", content, **fields)


def assistant(content: str, **fields: Any) -> Message:
    return Message("assistant", content, **fields)


def tool(content: str) -> Message:
    return Message("tool", content)


def repaired(*messages: Message, **fix_ups: bool) -> tuple[tuple[Message, ...], dict[str, int]]:
    result = repair(Conversation(messages), FixUps(**fix_ups))
    return result.conversation.messages, dict(result.counts)


def test_without_a_name_nothing_is_changed() -> None:
    conversation = Conversation((assistant(" "), user(" a "), user(""), assistant("b "), assistant("c")))
    result = repair(conversation, FixUps())
    assert result.conversation is conversation
    assert not result.counts


def test_what_is_in_order_is_the_same_object() -> None:
    conversation = Conversation((system("s"), user("a"), assistant("b"), user("c"), assistant("d")))
    every = FixUps(strip=True, drop_empty_turns=True, drop_leading_assistant=True, merge_consecutive=True)
    assert repair(conversation, every).conversation is conversation


# --- strip ---


def test_strip_takes_white_space_from_both_ends_of_every_content_and_from_nothing_else() -> None:
    messages, counts = repaired(
        system("\n s\t"),
        user("a  b"),
        assistant("\u3000b\r\n", reasoning=" r ", tool_calls=CALL),
        tool("  t\n"),
        strip=True,
    )
    assert messages == (
        system("s"),
        user("a  b"),
        assistant("b", reasoning=" r ", tool_calls=CALL),
        tool("t"),
    )
    assert counts == {"strip": 3}


@pytest.mark.parametrize(
    ("content", "start", "stripped", "new_start"),
    [
        (" do\n\nwith this\n", 5, "do\n\nwith this", 4),
        ("do\n\n with", 4, "do\n\n with", 4),
        (" \n\nwith this", 3, "with this", None),
        ("do\n\n  ", 4, "do", None),
        ("do \n\nwith ", 5, "do \n\nwith", 5),
    ],
)
def test_strip_moves_the_start_of_an_input_along(
    content: str, start: int, stripped: str, new_start: int | None
) -> None:
    messages, _ = repaired(user(content, input_start=start), assistant("b"), strip=True)
    assert messages[0] == user(stripped, input_start=new_start)


# --- drop empty turns ---


def test_an_empty_turn_is_dropped_and_its_partner_stays() -> None:
    messages, counts = repaired(
        system(" "), user("a"), assistant("\n"), user("\t"), user("b"), assistant("c"), drop_empty_turns=True
    )
    assert messages == (user("a"), user("b"), assistant("c"))
    assert counts == {"drop_empty_turns": 3}


def test_turns_that_say_something_without_content_are_not_empty() -> None:
    given_messages = (user("a"), assistant("", tool_calls=CALL), tool(""), assistant("", reasoning="hm"))
    assert repaired(*given_messages, drop_empty_turns=True) == (given_messages, {})


def test_blank_reasoning_says_nothing() -> None:
    messages, _ = repaired(user("a"), assistant("", reasoning=" \n"), assistant("b"), drop_empty_turns=True)
    assert messages == (user("a"), assistant("b"))


# --- drop leading assistant ---


@pytest.mark.parametrize(
    ("leading", "kept", "count"),
    [
        ((assistant("Hello!"),), (), 1),
        ((system("s"), assistant("Hello!")), (system("s"),), 1),
        ((assistant("", tool_calls=CALL), tool("t"), assistant("Hello!")), (), 3),
        ((assistant("Hello!"), system("s")), (system("s"),), 1),
        ((), (), 0),
    ],
)
def test_what_the_assistant_says_before_the_first_user_is_dropped(
    leading: tuple[Message, ...], kept: tuple[Message, ...], count: int
) -> None:
    rest = (user("a"), assistant("b"), assistant("c"))
    messages, counts = repaired(*leading, *rest, drop_leading_assistant=True)
    assert messages == (*kept, *rest)
    assert counts == ({"drop_leading_assistant": count} if count else {})


def test_without_a_user_nothing_leads() -> None:
    given_messages = (system("Tell a story."), assistant("Once upon a time"))
    assert repaired(*given_messages, drop_leading_assistant=True) == (given_messages, {})


# --- merge consecutive ---


def test_neighbours_of_one_role_are_joined_by_a_blank_line() -> None:
    messages, counts = repaired(
        system("s"),
        system("t"),
        user("a"),
        user("b"),
        user("c"),
        assistant("d"),
        assistant("e"),
        merge_consecutive=True,
    )
    assert messages == (system("s\n\nt"), user("a\n\nb\n\nc"), assistant("d\n\ne"))
    assert counts == {"merge_consecutive": 4}


def test_an_empty_content_adds_no_blank_line() -> None:
    messages, _ = repaired(user(""), user("a"), user(""), user("b"), assistant("c"), merge_consecutive=True)
    assert messages == (user("a\n\nb"), assistant("c"))


def test_reasoning_before_and_calls_behind_stay_in_their_places() -> None:
    messages, _ = repaired(
        user("a"), assistant("b", reasoning="r"), assistant("", tool_calls=CALL), tool("t"), merge_consecutive=True
    )
    assert messages == (user("a"), assistant("b", reasoning="r", tool_calls=CALL), tool("t"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (assistant("b", tool_calls=CALL), assistant("c")),
        (assistant("b"), assistant("c", reasoning="r")),
        (assistant("b", weight=0), assistant("c")),
        (assistant("b", weight=0), assistant("c", weight=1)),
        (assistant("b", name="x"), assistant("c", name="y")),
        (user("b", name="x"), user("c")),
        (tool("b"), tool("c")),
        (user("b", tool_call_id="1"), user("c")),
    ],
)
def test_neighbours_that_differ_in_what_counts_stay_apart(first: Message, second: Message) -> None:
    given_messages = (user("a", name="somebody"), first, second, assistant("end", name="else"))
    assert repaired(*given_messages, merge_consecutive=True) == (given_messages, {})


def test_equal_weights_and_names_are_kept() -> None:
    messages, _ = repaired(
        user("a"), assistant("b", weight=0.5, name="x"), assistant("c", weight=0.5, name="x"), merge_consecutive=True
    )
    assert messages[1] == assistant("b\n\nc", weight=0.5, name="x")


def test_a_merged_turn_has_no_input_of_its_own() -> None:
    messages, _ = repaired(user("a\n\nb", input_start=3), user("c"), assistant("d"), merge_consecutive=True)
    assert messages[0] == user("a\n\nb\n\nc")


# --- together ---


def test_each_finds_what_the_ones_before_it_leave_behind() -> None:
    messages, counts = repaired(
        user(" "), assistant("Hello!"), user("a "), assistant(""), user("b"), assistant("c"),
        strip=True, drop_empty_turns=True, drop_leading_assistant=True, merge_consecutive=True,
    )  # fmt: skip
    assert messages == (user("a\n\nb"), assistant("c"))
    assert counts == {"strip": 2, "drop_empty_turns": 2, "drop_leading_assistant": 1, "merge_consecutive": 1}


@pytest.mark.parametrize(
    ("messages", "fix_up"),
    [
        ((user("a"), assistant(" ")), "drop_empty_turns"),
        ((assistant("Hello!"), user("a")), "drop_leading_assistant"),
        ((user(""), assistant("")), "drop_empty_turns"),
        ((assistant("Hello!"), user("a"), assistant("b", weight=0)), "drop_leading_assistant"),
    ],
)
def test_a_conversation_in_which_nothing_to_train_is_left_is_refused(
    messages: tuple[Message, ...], fix_up: str
) -> None:
    match = rf"^a\.jsonl:3: nothing to train is left after {fix_up}; leave a fix-up out to keep it$"
    with pytest.raises(ConversationError, match=match) as refused:
        repair(Conversation(messages, origin="a.jsonl:3"), FixUps(**{fix_up: True}))
    assert refused.value.reason == NOTHING_LEFT


def test_what_was_never_trained_is_no_matter_of_the_fix_ups() -> None:
    messages, _ = repaired(user("a "), assistant("b", weight=0), strip=True)
    assert messages == (user("a"), assistant("b", weight=0))


CONTENTS = st.sampled_from(["", " ", "a", " a\n", "b\n\nc", "\n\n"])
MESSAGES = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user", "tool"]), CONTENTS),
    st.builds(
        Message,
        st.just("assistant"),
        CONTENTS,
        tool_calls=st.sampled_from([(), CALL]),
        reasoning=st.sampled_from([None, "r"]),
        weight=st.sampled_from([None, 0.0, 1.0]),
    ),
    st.builds(
        lambda first, second: Message("user", f"{first}\n\n{second}", input_start=len(first) + 2),
        CONTENTS,
        CONTENTS.filter(bool),
    ),
)
CONVERSATIONS = st.builds(
    lambda messages, last: Conversation((*messages, last), tools=("{}",), origin="here", ignored_fields=("x",)),
    st.lists(MESSAGES, max_size=6),
    st.builds(Message, st.just("assistant"), CONTENTS),
)
FIX_UPS = st.builds(
    FixUps,
    strip=st.booleans(),
    drop_empty_turns=st.booleans(),
    drop_leading_assistant=st.booleans(),
    merge_consecutive=st.booleans(),
)


def repair_if_possible(conversation: Conversation, fix_ups: FixUps) -> Repaired | None:
    try:
        return repair(conversation, fix_ups)
    except ConversationError as refused:
        if refused.reason != NOTHING_LEFT:
            raise
        return None


@given(conversation=CONVERSATIONS, fix_ups=FIX_UPS)
def test_a_repaired_conversation_needs_no_further_repair_and_lost_no_word(
    conversation: Conversation, fix_ups: FixUps
) -> None:
    result = repair_if_possible(conversation, fix_ups)
    if result is None:
        return
    once = result.conversation
    again = repair(once, fix_ups)
    assert again.conversation is once
    assert not again.counts
    assert set(result.counts) <= set(fix_ups.names)
    assert replace(once, messages=conversation.messages) == conversation
    assert (once.origin, once.ignored_fields) == (conversation.origin, conversation.ignored_fields)
    if not fix_ups.drop_leading_assistant:
        said, kept = ("".join("".join(m.content for m in c.messages).split()) for c in (conversation, once))
        assert said == kept
        assert sum((m.tool_calls for m in once.messages), ()) == sum((m.tool_calls for m in conversation.messages), ())
