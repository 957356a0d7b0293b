#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compute the loss of each assistant turn of conversations from an exported model, and compare it with a run's own.

    scripts/loss_per_turn.py MODEL conversations.jsonl --metrics logs/metrics.jsonl

It shares no code with the training: the model and its chat template are those of transformers, the answers are found by
rendering the messages before them, and each conversation is computed by itself. What it finds for a run's validation
file is what the run's last evaluation found.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

# Turns that are told apart; those behind stand together.
NUM_APART = 8

Message = dict[str, str]


def answers(messages: Sequence[Message], *, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and the characters of each answer with the token that ends it."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    places = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
            answer = message["content"] + tokenizer.eos_token
            if not text.startswith(prompt + answer):
                raise ValueError(f"the chat template does not write {answer!r} behind the messages before it")
            places.append((len(prompt), len(prompt) + len(answer)))
    return text, places


def losses_of_turns(
    messages: Sequence[Message], *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[float]]:
    """The loss of each token of each answer of a conversation."""
    text, places = answers(messages, tokenizer=tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids_T = torch.tensor(encoded["input_ids"])
    log_probs_TV = model(ids_T[None]).logits[0].double().log_softmax(-1)
    for start, end in places:
        tokens = [t for t, (first, _) in enumerate(encoded["offset_mapping"]) if start <= first < end]
        # Token t is predicted where token t - 1 is read.
        yield [-log_probs_TV[t - 1, ids_T[t]].item() for t in tokens]


def loss_per_turn(
    path: Path, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, tuple[float, int]]:
    """The mean loss of the 1st, 2nd, ... answers of a file's conversations, and how many tokens they have."""
    losses: dict[str, list[float]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        turns = losses_of_turns(json.loads(line)["messages"], model=model, tokenizer=tokenizer)
        for number, found in enumerate(turns, start=1):
            losses[str(number) if number <= NUM_APART else f"{NUM_APART + 1}+"] += found
    return {name: (sum(losses[name]) / len(losses[name]), len(losses[name])) for name in sorted(losses)}


def last_evaluation(path: Path) -> Mapping[str, tuple[float, int]]:
    """What the last evaluation of a run found for each turn."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    by_turn = [line["validation_loss_by_turn"] for line in lines if "validation_loss_by_turn" in line][-1]
    return {name: (group["loss"], group["targets"]) for name, group in by_turn.items()}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a Hugging Face folder with a model and its tokenizer")
    parser.add_argument(
        "conversations", type=Path, help="a JSONL file with the messages of a conversation in each line"
    )
    parser.add_argument("--metrics", type=Path, help="the metrics.jsonl of a run whose validation file it is")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest difference (default: 1e-5)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the losses; 1 if they are not those of the run."""
    options = parse_arguments(arguments)
    for path in (options.model, options.conversations, options.metrics):
        if path is not None and not path.exists():
            print(
                f"{path}: does not exist; give a model, a file of conversations, and a run's metrics", file=sys.stderr
            )
            return 2
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    with torch.inference_mode():
        found = loss_per_turn(options.conversations, model=model, tokenizer=tokenizer)
    told = {} if options.metrics is None else last_evaluation(options.metrics)
    print(f"turn {'targets':>9} {'loss':>12}" + (f" {'of the run':>12} {'difference':>11}" if told else ""))
    for name, (loss, targets) in found.items():
        same = f" {told[name][0]:12.8f} {abs(told[name][0] - loss):11.1e}" if name in told else ""
        print(f"{name:>4} {targets:9,} {loss:12.8f}{same}")
    if not told:
        return 0
    if {name: targets for name, (_, targets) in found.items()} != {
        name: targets for name, (_, targets) in told.items()
    }:
        print(f"{options.metrics}: has other turns or other numbers of targets", file=sys.stderr)
        return 1
    largest = max(abs(told[name][0] - loss) for name, (loss, _) in found.items())
    if not largest <= options.tolerance:
        print(f"{options.metrics}: a loss differs by {largest:.2e}, more than {options.tolerance}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
