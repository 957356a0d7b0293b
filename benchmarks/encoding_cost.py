# SPDX-License-Identifier: Apache-2.0
"""The cost of long conversations: processor time per token of 400 turns over that of 4 turns.

    python benchmarks/encoding_cost.py [TOKENIZER]

Both data sets hold the same turns: once in many short conversations, once in few long ones. The two are measured in
turns, and the fastest of several rounds counts, so that other load on the machine falls on both. Exits with 1 if the
ratio is above 1.3.
"""

import sys
import time
from pathlib import Path

import numpy as np

from primus.chat import Conversation, Message
from primus.sft.encoding import encode_conversation
from primus.sft.formatters import OpenAIMessagesFormatter
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer

DEMO_TOKENIZER = Path(__file__).parents[1] / "examples" / "data" / "demo-tokenizer"
LIMIT = 1.3
NUM_TURNS = 8000
ROUNDS = 7


def make_turns(num_turns: int) -> list[Message]:
    """Turns of a few dozen words, user and assistant in turn."""
    rng = np.random.default_rng(0)
    text = "I have seven green books and a goat in Oslo but no tea today, what about you? Well 你好 👍\n"
    words = text.split(" ")
    return [
        Message("user" if turn % 2 == 0 else "assistant", " ".join(rng.choice(words, size=int(rng.integers(5, 80)))))
        for turn in range(num_turns)
    ]


def seconds_per_token(conversations: list[Conversation], tokenizer: SFTTokenizer) -> float:
    """Time to render, tokenize and mask conversations, per token."""
    formatter = OpenAIMessagesFormatter()
    num_tokens = 0
    start = time.process_time()
    for conversation in conversations:
        encoded = encode_conversation(
            conversation, formatter=formatter, tokenizer=tokenizer, supervise_end_of_turn=True
        )
        num_tokens += len(encoded.weights_T)
    return (time.process_time() - start) / num_tokens


def main() -> int:
    """Measure and compare."""
    tokenizer = load_tokenizer(sys.argv[1] if len(sys.argv) > 1 else DEMO_TOKENIZER)
    turns = make_turns(NUM_TURNS)
    sets = {
        size: [Conversation(tuple(turns[start : start + size])) for start in range(0, NUM_TURNS, size)]
        for size in (4, 400)
    }
    best = dict.fromkeys(sets, float("inf"))
    for _ in range(ROUNDS):
        for size, conversations in sets.items():
            best[size] = min(best[size], seconds_per_token(conversations, tokenizer))
    ratio = best[400] / best[4]
    for size, seconds in best.items():
        print(f"{size:4d} turns: {seconds * 1e6:.2f} us per token, {1 / seconds:,.0f} tokens/s")
    print(f"ratio 400 / 4 turns: {ratio:.2f} (limit {LIMIT})")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
