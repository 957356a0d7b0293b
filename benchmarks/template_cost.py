# SPDX-License-Identifier: Apache-2.0
"""The cost of spans in chat templates: milliseconds per conversation, next to the render alone.

    python benchmarks/template_cost.py [TEMPLATE.jinja ...]

Without arguments it takes `chatml.jinja` of this project and, where the trl package is installed, templates of
Llama 3.2, Qwen3, gpt-oss and Gemma 4. Conversations have 10, 100 and 400 messages; every other set of them is harder:
answers begin with thinking that templates drop from the history, so that a third render is needed. The fastest of
several rounds counts.
"""

import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

import primus.sft.formatters
from primus.chat import Conversation, Message
from primus.sft.formatters.template import TemplateFormatter, render_template, template_messages

SIZES = (10, 100, 400)
ROUNDS = 7
NAMES = ("llama3_2", "qwen3", "gptoss", "gemma4_v5")


def make_conversation(num_messages: int, *, thinks: bool) -> Conversation:
    """Messages of about 370 characters, user and assistant in turn."""
    rng = np.random.default_rng(0)
    text = "I have seven green books and a goat in Oslo but no tea today, what about you? Well 你好 👍\n"
    words = text.split(" ")
    messages = []
    for turn in range(num_messages):
        text = " ".join(rng.choice(words, size=int(rng.integers(50, 110))))
        is_answer = turn % 2 == 1
        content = f"<think>\n{text[:40]}\n</think>\n\n{text}" if thinks and is_answer else text
        messages.append(Message("assistant" if is_answer else "user", content))
    return Conversation(tuple(messages))


def milliseconds(call: Callable[[], object]) -> float:
    """Processor time of a call, the fastest of several."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best * 1000


def templates() -> dict[str, str]:
    """The templates to measure, by name."""
    if len(sys.argv) > 1:
        return {path: Path(path).read_text(encoding="utf-8") for path in sys.argv[1:]}
    folder = Path(primus.sft.formatters.__file__).parent
    found = {"chatml": (folder / "chatml.jinja").read_text(encoding="utf-8")}
    spec = importlib.util.find_spec("trl")
    if spec is not None and spec.submodule_search_locations:
        shipped = Path(spec.submodule_search_locations[0]) / "chat_templates"
        found |= {name: (shipped / f"{name}.jinja").read_text(encoding="utf-8") for name in NAMES}
    return found


def main() -> None:
    """Measure and print a table."""
    print("template     messages characters    render      spans  spans, thinking  renders")
    for name, source in templates().items():
        start = time.process_time()
        formatter = TemplateFormatter(source, origin=name)
        made = (time.process_time() - start) * 1000
        for size in SIZES:
            easy, hard = (make_conversation(size, thinks=thinks) for thinks in (False, True))
            messages = template_messages(easy.messages)
            num_characters = len(formatter.render(easy).text)
            plain = milliseconds(partial(render_template, source, messages, special_tokens={}))
            with_spans = milliseconds(partial(formatter.render, easy))
            before = formatter.num_renders
            formatter.render(hard)
            num_renders = formatter.num_renders - before
            thinking = milliseconds(partial(formatter.render, hard))
            print(
                f"{name:12} {size:8} {num_characters:10} {plain:6.2f} ms {with_spans:6.2f} ms {thinking:13.2f} ms"
                f" {num_renders:8}"
            )
        print(f"{name:12} made in {made:.0f} ms")


if __name__ == "__main__":
    main()
