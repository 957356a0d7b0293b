# SPDX-License-Identifier: Apache-2.0
"""A true row of every format, with everything in it that the format has; tests change and compare them."""

from typing import Any

from primus.chat.formats import ColumnMap, SourceOptions

WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}

OPENAI: dict[str, Any] = {
    "id": 7,
    "tools": [{"type": "function", "function": WEATHER}],
    "parallel_tool_calls": False,
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Rain in Zürich?"}], "name": "ann"},
        {"role": "assistant", "content": None, "reasoning_content": "Look.", "tool_calls": [CALL], "weight": 0},
        {"role": "tool", "content": "no", "tool_call_id": "c1", "name": "weather"},
        {"role": "assistant", "content": "<think>\nDry.\n</think>\n\nNo.", "weight": 1},
    ],
}
SHAREGPT: dict[str, Any] = {
    "system": "Be brief.",
    "tools": '[{"name": "weather"}]',
    "conversations": [
        {"from": "human", "value": "Rain?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Bern"}}'},
        {"from": "observation", "value": "no"},
        {"from": "gpt", "value": "No.", "train": True},
    ],
}
PAIRS: dict[str, Any] = {"system": "s", "conversation": [{"human": "a", "assistant": "b"}]}
BARE: list[Any] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
ANTHROPIC: dict[str, Any] = {
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "tools": [{"name": "weather", "description": "d", "input_schema": WEATHER["parameters"]}],
    "messages": [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Look.", "signature": "x"},
            {"type": "text", "text": "One moment."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bern"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "is_error": False, "content": [
                {"type": "text", "text": "no"},
            ]},
            {"type": "text", "text": "Well?"},
        ]},
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
    ],
}  # fmt: skip
LLAMAFACTORY: dict[str, Any] = {
    "tools": '[{"name": "weather"}]',
    "messages": [
        {"role": "user", "content": [{"type": "text", "value": "Rain?"}], "loss_weight": 0.0},
        {"role": "assistant", "loss_weight": 0.5, "content": [
            {"type": "reasoning", "value": "Look."},
            {"type": "tool_call", "value": '{"name": "weather", "arguments": {}}'},
        ]},
        {"role": "tool", "content": [{"type": "text", "value": "no"}]},
        {"role": "assistant", "content": [{"type": "text", "value": "No."}], "loss_weight": 1.0},
    ],
}  # fmt: skip
XTUNER: dict[str, Any] = {
    "conversation": [
        {"system": "Be brief.", "input": "a", "output": "b", "output_with_loss": False},
        {"input": "c", "output": "d"},
    ]
}
TOOLTALK: dict[str, Any] = {
    "name": "x",
    "conversation": [
        {"index": 0, "role": "user", "text": "Log in."},
        {"index": 1, "role": "assistant", "text": "Done.", "apis": [
            {"request": {"api_name": "Login", "parameters": {"user": "ann"}}, "response": {"ok": True},
             "exception": None},
        ]},
    ],
}  # fmt: skip
SWE_AGENT: dict[str, Any] = {
    "environment": "e",
    "trajectory": [{"action": "ls"}],
    "history": [
        {"role": "system", "content": "s", "agent": "primary"},
        {"role": "assistant", "content": "demo", "agent": "primary", "is_demo": True},
        {"role": "user", "content": "go", "agent": "primary"},
        {
            "role": "assistant",
            "content": "I look.\n```\nls\n```",
            "thought": "I look.",
            "action": "ls",
            "agent": "primary",
        },
        {"role": "tool", "content": "a.txt", "agent": "primary", "tool_call_ids": ["c1"]},
        {"role": "assistant", "content": "done", "agent": "primary"},
    ],
}
OASST: dict[str, Any] = {
    "message_tree_id": "t",
    "prompt": {"role": "prompter", "text": "Hi", "lang": "en", "replies": [
        {"role": "assistant", "text": "A", "rank": 1, "replies": []},
        {"role": "assistant", "text": "B", "rank": 0, "deleted": False, "review_result": True, "replies": [
            {"role": "prompter", "text": "Go on", "replies": [{"role": "assistant", "text": "C", "replies": []}]},
            {"role": "prompter", "text": "Unanswered", "replies": []},
        ]},
    ]},
}  # fmt: skip
HH: dict[str, Any] = {
    "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:  d ",
    "rejected": "\n\nHuman: a",
}
HH_CUT: dict[str, Any] = {"prompt": "\n\nHuman: a\n\nAssistant:", "completion": " b"}
ALPACA: dict[str, Any] = {
    "instruction": "Add.",
    "input": "2 2",
    "output": "4",
    "system": "s",
    "history": [["a", "b"]],
    "category": "math",
}
COMPLETION: dict[str, Any] = {
    "prompt": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
    "completion": [{"role": "assistant", "content": "d"}],
}
CHOSEN: dict[str, Any] = {"system": "s", "question": "q", "chosen": "good", "rejected": "bad"}
QUESTIONS: dict[str, Any] = {"question_id": 81, "turns": ["a", "b"], "reference": ["x"]}
TABLE: list[dict[str, Any]] = [
    {"conversation_id": 1, "turn": 0, "role": "user", "content": "a"},
    {"conversation_id": 1, "turn": 1, "role": "assistant", "content": "b", "weight": "0"},
    {"conversation_id": 1, "turn": 2, "role": "user", "content": "c"},
    {"conversation_id": 1, "turn": 3, "role": "assistant", "content": "d"},
]
FLAT_TREE: list[dict[str, Any]] = [
    {"message_id": "m1", "parent_id": None, "message_tree_id": "m1", "role": "prompter", "text": "Hi", "rank": None},
    {"message_id": "m2", "parent_id": "m1", "message_tree_id": "m1", "role": "assistant", "text": "A", "rank": 1},
    {"message_id": "m3", "parent_id": "m1", "message_tree_id": "m1", "role": "assistant", "text": "B", "rank": 0},
]
MAPPED: dict[str, Any] = {
    "meta": {"persona": "s", "lang": "de"},
    "dialog": [{"who": "client", "says": {"text": "a"}}, {"who": "counselor", "says": {"text": "b"}, "keep": 1.0}],
}
COLUMN_MAP = ColumnMap(
    messages="dialog",
    role="who",
    content="says.text",
    weight="keep",
    system="meta.persona",
    roles={"client": "user", "counselor": "assistant"},
)
MAPPED_TURNS = [{"thread": {"id": 4}, "who": "client", "says": "a"}, {"thread": {"id": 4}, "who": "bot", "says": "b"}]
TURNS_MAP = ColumnMap(conversation="thread.id", role="who", content="says", roles={"client": "user"})

# The format's name as it is recognised, rows that belong together, and options.
SEEDS: list[tuple[str, list[Any], SourceOptions]] = [
    ("openai", [OPENAI], SourceOptions()),
    ("openai", [OPENAI], SourceOptions(think="split", roles={"bot": "assistant"})),
    ("openai", [BARE], SourceOptions()),
    ("sharegpt", [SHAREGPT], SourceOptions()),
    ("sharegpt", [PAIRS], SourceOptions()),
    ("anthropic", [ANTHROPIC], SourceOptions()),
    ("llamafactory", [LLAMAFACTORY], SourceOptions()),
    ("xtuner", [XTUNER], SourceOptions()),
    ("tooltalk", [TOOLTALK], SourceOptions()),
    ("swe_agent", [SWE_AGENT], SourceOptions()),
    ("oasst", [OASST], SourceOptions()),
    ("oasst", [OASST], SourceOptions(oasst="best")),
    ("oasst", FLAT_TREE, SourceOptions()),
    ("hh", [HH], SourceOptions()),
    ("hh", [HH_CUT], SourceOptions()),
    ("alpaca", [ALPACA], SourceOptions()),
    ("prompt_completion", [COMPLETION], SourceOptions()),
    ("prompt_completion", [CHOSEN], SourceOptions()),
    ("questions", [QUESTIONS], SourceOptions()),
    ("turns", TABLE, SourceOptions()),
    ("columns", [MAPPED], SourceOptions(column_map=COLUMN_MAP)),
    ("columns", MAPPED_TURNS, SourceOptions(column_map=TURNS_MAP)),
]
