# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for messages of the OpenAI format."""

from hypothesis import strategies as st

# What templates, markers and masks have got wrong before: edges, markers in text, every script, characters of 4 bytes.
_PIECES = [
    "", " ", "\n", "\n\n", "\t", "a", "Hello", "<|im_end|>", "<|im_start|>assistant\n", "<think>", "</tool_call>",
    "{{ x }}", "{% if %}", "你好", "مرحبا", "e\u0301", "👍🏽", "👩\u200d👧", "\x00", "\r\n", '"', "\\n", "&lt;",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(_PIECES) | st.text(max_size=5), max_size=6).map("".join)
_ARGUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXTS, values, max_size=3),
    max_leaves=6,
)
_CALLS = st.lists(
    st.fixed_dictionaries({"name": TEXTS, "arguments": st.dictionaries(TEXTS, _ARGUMENTS, max_size=3)}).map(
        lambda function: {"type": "function", "function": function}
    ),
    max_size=2,
)
_ASSISTANT = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXTS},
    optional={"tool_calls": _CALLS, "reasoning_content": TEXTS},
)
_OTHER = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool"]), "content": TEXTS})
MESSAGES = st.lists(_OTHER | _ASSISTANT, min_size=1, max_size=8)
TOOLS = st.lists(st.dictionaries(TEXTS, _ARGUMENTS, max_size=3), max_size=2)
