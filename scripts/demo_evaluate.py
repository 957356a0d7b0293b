#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ask an exported model the last question of every held-out conversation, and count the exact answers.

An answer counts when its text is exactly the expected one and the model ended it by itself. `--without-history` gives
the model the last question alone: what it still answers then, it did not take from the conversation.
"""

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

MAX_NEW_TOKENS = 40
BATCH_SIZE = 50

Message = dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What the model answered to what it was asked."""

    asked: Sequence[Message]
    expected: str
    text: str
    stopped: bool

    @property
    def exact(self) -> bool:
        """The expected text, ended by the model itself."""
        return self.stopped and self.text == self.expected

    def lines(self) -> list[str]:
        """The conversation for people; `...` is an answer without an end."""
        lines = [f"  {message['role']:>9}: {message['content']}" for message in self.asked]
        expected = "" if self.exact else f"   (expected: {self.expected})"
        return [*lines, f"  {'model':>9}: {self.text}{'' if self.stopped else ' ...'}{expected}"]


def read_conversations(path: Path) -> list[list[Message]]:
    """The conversations of a JSONL file; each ends with the answer to be given."""
    return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]


def until_end(new_tokens: Sequence[int], *, eos_ids: Collection[int]) -> tuple[list[int], bool]:
    """The tokens before the first end token, and whether there is one: `[7, 8, 2, 0]` with end token 2 is `[7, 8]`."""
    for position, token in enumerate(new_tokens):
        if token in eos_ids:
            return list(new_tokens[:position]), True
    return list(new_tokens), False


def answer(
    conversations: Sequence[list[Message]],
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    with_history: bool,
) -> list[Answer]:
    """The model's greedy answers to the last question of each conversation."""
    eos = model.generation_config.eos_token_id
    eos_ids = {eos} if isinstance(eos, int) else set(eos or ())
    answers = []
    for start in range(0, len(conversations), BATCH_SIZE):
        batch = conversations[start : start + BATCH_SIZE]
        asked = [messages[:-1] if with_history else messages[-2:-1] for messages in batch]
        inputs = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        output_BS = model.generate(
            **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        prompt_length = inputs["input_ids"].shape[1]
        for conversation, turns, new_tokens in zip(batch, asked, output_BS[:, prompt_length:].tolist(), strict=True):
            tokens, stopped = until_end(new_tokens, eos_ids=eos_ids)
            answers.append(Answer(turns, conversation[-1]["content"], tokenizer.decode(tokens), stopped))
    return answers


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a Hugging Face folder with a model and its tokenizer")
    parser.add_argument("heldout", type=Path, help="a JSONL file of conversations that end with the expected answer")
    parser.add_argument("--without-history", action="store_true", help="give the model the last question alone")
    parser.add_argument("--minimum", type=float, default=0.0, help="fail if a smaller share is answered exactly")
    parser.add_argument("--maximum", type=float, default=1.0, help="fail if a larger share is answered exactly")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="conversations to show (default: 3)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the share and a few conversations; 1 if the share is not within the limits."""
    options = parse_arguments(arguments)
    for path in (options.model, options.heldout):
        if not path.exists():
            print(f"{path}: does not exist; give a trained model's folder and a file of conversations", file=sys.stderr)
            return 2
    conversations = read_conversations(options.heldout)
    if not conversations:
        print(f"{options.heldout}: holds no conversation; give a file with one in each line", file=sys.stderr)
        return 2
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    with_history = not options.without_history
    with torch.inference_mode():
        answers = answer(conversations, model=model, tokenizer=tokenizer, with_history=with_history)
    for shown in answers[: options.show]:
        print("\n".join(shown.lines()), end="\n\n")
    num_exact = sum(answer.exact for answer in answers)
    num_stopped = sum(answer.stopped for answer in answers)
    share = num_exact / len(answers)
    print(
        f"{'with history' if with_history else 'last question alone'}: {num_exact} of {len(answers)} answered exactly "
        f"({share:.1%}), {num_stopped} stopped by themselves"
    )
    if not options.minimum <= share <= options.maximum:
        limit = f"below {options.minimum:.1%}" if share < options.minimum else f"above {options.maximum:.1%}"
        print(f"{options.model}: {share:.1%} of the answers are exact, {limit}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
