#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make the demo's conversations and its tokenizer: `python scripts/make_demo_data.py`.

A conversation tells a few facts, perhaps corrects them, and asks for them later, so that no answer can be guessed from
the last question. Everything follows from one seed: the same files, byte for byte, on every machine.

What is held out are combinations of values. A combination is reserved by its CRC32, no training conversation holds a
reserved one, and every held-out conversation holds one that its last answer is about. All single values are trained.
Within a thread the combination is ordered (`Lima`, corrected to `Oslo`), between two threads it is one value of each.
Colours with a language are never reserved, because a translation has to be seen.
"""

import argparse
import gzip
import itertools
import json
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

T = TypeVar("T")

SEED = 20_240
NUM_TRAIN, NUM_VALIDATION, NUM_HELDOUT, NUM_SINGLE_TURN = 6_000, 300, 200, 50
VOCAB_SIZE = 1024
DATA_FOLDER = Path(__file__).resolve().parent.parent / "examples" / "data"

MIN_USER_TURNS, MAX_USER_TURNS = 3, 6
NUM_THREADS_WEIGHTS = {1: 30, 2: 45, 3: 25}
KIND_WEIGHTS = {"name": 10, "city": 10, "colour": 10, "dinner": 6, "pet": 10, "list": 15, "count": 30}
LANGUAGE_KINDS = ("name", "city", "colour")
LANGUAGE_SHARE, CORRECTION_SHARE, SMALL_TALK_SHARE, SAY_AGAIN_SHARE = 0.15, 0.5, 0.2, 0.08
EARLIER_QUESTION_SHARE = 0.8
MAX_COUNT = 12
RESERVED_IN_THREAD_PERCENT, RESERVED_ACROSS_THREADS_PERCENT = 8, 5

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# The values and the sentences, as [user, assistant]. No value has two meanings, so that whoever reads `Lima` knows that
# it is a city; an answer is a function of the question's wording and the values, so that there is one right answer.
LANGUAGE = json.loads((DATA_FOLDER / "demo-language.json").read_text(encoding="utf-8"))
VALUES: dict[str, list[str]] = LANGUAGE["values"]
TELL: dict[str, list[list[str]]] = LANGUAGE["tell"]
ASK: dict[str, list[list[str]]] = LANGUAGE["ask"]


class Exchange(NamedTuple):
    """A user turn and the assistant's answer, with the kind of thread and the values that the answer is about."""

    user: str
    assistant: str
    kind: str = ""
    values: tuple[str, ...] = ()


class Thread(NamedTuple):
    """One subject of a conversation."""

    told: list[list[Exchange]]
    """Exchanges in order; those of an inner list stay together."""
    question: Exchange
    combination: tuple[str, ...]
    """Every value told, in order."""
    values: tuple[str, ...]
    """The values that hold at the end."""


class Conversation(NamedTuple):
    """What was said, and whether a reserved combination is in it."""

    exchanges: list[Exchange]
    holds_reserved: bool
    asks_for_reserved: bool
    """The last answer is about a value of a reserved combination."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns in the OpenAI format."""
        return [
            {"role": role, "content": content}
            for exchange in self.exchanges
            for role, content in (("user", exchange.user), ("assistant", exchange.assistant))
        ]


class Draw:
    """Random choices that are the same in every Python: of `random`, only `random()` promises to stay as it is."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        """True, so often."""
        return self._random.random() < probability

    def one(self, values: Sequence[T]) -> T:
        """Any of the values."""
        return values[int(self._random.random() * len(values))]

    def some(self, values: Iterable[T], *, number: int) -> list[T]:
        """Different ones of the values, in random order."""
        left = list(values)
        return [left.pop(int(self._random.random() * len(left))) for _ in range(number)]

    def weighted(self, weights: Mapping[T, int]) -> T:
        """One of the keys, each as often as its weight says."""
        return self.one([value for value, weight in weights.items() for _ in range(weight)])


def is_reserved(*values: str, percent: int) -> bool:
    """Whether this combination of two or more values is kept out of training, as `percent` of them are."""
    return len(values) > 1 and zlib.crc32("|".join(values).encode()) % 100 < percent


def counted(noun: str, number: int) -> str:
    """`1 book`, `2 books`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def draw_fact(draw: Draw, *, kind: str, language: str | None) -> Thread:
    """A name, city, colour or dinner: told, perhaps corrected, and asked for in `language` (None is English)."""
    user, assistant = draw.one(TELL[kind])
    value, other = draw.some(VALUES[kind], number=2)
    told = [Exchange(user.format(value), assistant.format(value), kind, (value,))]
    combination = [value]
    if draw.chance(CORRECTION_SHARE):
        value = other
        user, assistant = draw.one(LANGUAGE["correct"])
        told.append(Exchange(user.format(value), assistant.format(value), kind, (value,)))
        combination.append(value)
    user, assistant = draw.one(LANGUAGE["languages"][language]["ask"][kind] if language else ASK[kind])
    spoken = LANGUAGE["languages"][language]["colours"].get(value, value) if language else value
    question = Exchange(user, assistant.format(spoken), kind, (value,))
    return Thread([told], question, tuple(combination), (value,))


def draw_pet(draw: Draw) -> Thread:
    """An animal and its name."""
    values = {kind: draw.one(VALUES[kind]) for kind in ("animal", "pet")}
    told, question = (
        Exchange(user.format(**values), assistant.format(**values), "pet", tuple(values.values()))
        for user, assistant in (draw.one(TELL["pet"]), draw.one(ASK["pet"]))
    )
    return Thread([[told]], question, question.values, question.values)


def draw_list(draw: Draw) -> Thread:
    """Something to eat, to drink and to wear, one of which is asked for by its use."""
    items = {use: draw.one(VALUES[use]) for use in draw.some(("eat", "drink", "wear"), number=3)}
    values = tuple(items.values())
    spoken = [f"a {item}" if use == "wear" else item for use, item in items.items()]
    user, assistant = draw.one(TELL["list"])
    told = Exchange(user.format(*spoken), assistant.format(*spoken), "list", values)
    use = draw.one(list(items))
    user, assistant = draw.one(ASK[use])
    return Thread([[told]], Exchange(user, assistant.format(items[use]), "list", (items[use],)), values, values)


def draw_count(draw: Draw) -> Thread:
    """A number of things that changes once or twice."""
    noun, number = draw.one(VALUES["noun"]), draw.one(range(2, 10))
    user, assistant = draw.one(TELL["count"])
    told = [[Exchange(user.format(counted(noun, number)), assistant.format(counted(noun, number)), "count", (noun,))]]
    combination = [noun, str(number)]
    for _ in range(draw.one((1, 1, 2))):
        step = draw.one(range(1, 4))
        signs = [sign for sign in (1, -1) if 1 <= number + sign * step <= MAX_COUNT]
        sign = draw.one(signs)
        user, assistant = draw.one(LANGUAGE["more" if sign > 0 else "fewer"])
        number += sign * step
        told.append([Exchange(user.format(step), assistant.format(counted(noun, number)), "count", (noun,))])
        combination.append(f"{sign * step:+d}")
    user, assistant = draw.one(ASK["count"])
    question = Exchange(user.format(f"{noun}s"), assistant.format(counted(noun, number)), "count", (noun,))
    return Thread(told, question, tuple(combination), (noun,))


def draw_threads(draw: Draw, *, language: str | None) -> list[Thread]:
    """One to three threads of different kinds; beside another language than English, one or two."""
    weights = {kind: KIND_WEIGHTS[kind] for kind in (LANGUAGE_KINDS if language else KIND_WEIGHTS)}
    others = {"pet": draw_pet, "list": draw_list, "count": draw_count}
    threads = []
    for _ in range(min(draw.weighted(NUM_THREADS_WEIGHTS), 2 if language else 3)):
        kind = draw.weighted(weights)
        del weights[kind]
        threads.append(others[kind](draw) if kind in others else draw_fact(draw, kind=kind, language=language))
    return threads


def reserved_combinations(threads: Sequence[Thread]) -> Iterator[tuple[set[str], tuple[str, ...]]]:
    """Every reserved combination, after the kinds of the one or two threads that it is in."""
    for thread in threads:
        if is_reserved(*thread.combination, percent=RESERVED_IN_THREAD_PERCENT):
            yield {thread.question.kind}, thread.combination
    for one, other in itertools.combinations(sorted(threads, key=lambda thread: thread.question.kind), 2):
        for pair in itertools.product(one.values, other.values):
            if is_reserved(*pair, percent=RESERVED_ACROSS_THREADS_PERCENT):
                yield {one.question.kind, other.question.kind}, pair


def draw_conversation(draw: Draw) -> Conversation:
    """A conversation of any length: everything is told, then some of it is asked for."""
    language = draw.one(list(LANGUAGE["languages"])) if draw.chance(LANGUAGE_SHARE) else None
    threads = draw_threads(draw, language=language)
    told: list[list[Exchange]] = []
    left = [list(thread.told) for thread in threads]
    while any(left):
        told.append(draw.one([thread for thread in left if thread]).pop(0))
    if draw.chance(SMALL_TALK_SHARE):
        told.insert(draw.one(range(len(told))) + 1, [Exchange(*draw.one(LANGUAGE["small_talk"]))])
    if language:
        told.append([Exchange(*draw.one(LANGUAGE["languages"][language]["change"]))])
    exchanges = list(itertools.chain.from_iterable(told))

    *earlier, last = draw.some(threads, number=len(threads))
    exchanges += [thread.question for thread in earlier if draw.chance(EARLIER_QUESTION_SHARE)]
    say_again = draw.chance(SAY_AGAIN_SHARE)
    if not (say_again and exchanges[-1].values and draw.chance(0.5)):
        exchanges.append(last.question)
    if say_again:
        exchanges.append(exchanges[-1]._replace(user=draw.one(LANGUAGE["say_again"])))

    asked = exchanges[-1]
    reserved = list(reserved_combinations(threads))
    asks_for_reserved = any(
        asked.kind in kinds and (len(kinds) == 1 or not set(asked.values).isdisjoint(combination))
        for kinds, combination in reserved
    )
    return Conversation(exchanges, bool(reserved), asks_for_reserved)


def conversations(*, seed: int = SEED) -> Iterator[Conversation]:
    """Different conversations of three to six user turns, without end."""
    draw = Draw(seed)
    seen: set[str] = set()
    while True:
        conversation = draw_conversation(draw)
        text = render(conversation.messages)
        if MIN_USER_TURNS <= len(conversation.exchanges) <= MAX_USER_TURNS and text not in seen:
            seen.add(text)
            yield conversation


def split_conversations() -> tuple[list[Conversation], list[Conversation], list[Conversation]]:
    """The train, validation and held-out conversations."""
    train: list[Conversation] = []
    reserved: list[Conversation] = []
    for conversation in conversations():
        if not conversation.holds_reserved and len(train) < NUM_TRAIN:
            train.append(conversation)
        elif conversation.asks_for_reserved and len(reserved) < NUM_HELDOUT + NUM_VALIDATION:
            reserved.append(conversation)
        if len(train) + len(reserved) == NUM_TRAIN + NUM_HELDOUT + NUM_VALIDATION:
            break
    return train, reserved[NUM_HELDOUT:], reserved[:NUM_HELDOUT]


def single_turn_rows(train: Sequence[Conversation]) -> Iterator[dict[str, str]]:
    """Alpaca-style rows of the training conversations with one thread; every other one tells its facts in `input`."""
    for number, conversation in enumerate(
        conversation
        for conversation in train
        if len({exchange.kind for exchange in conversation.exchanges}) == 1
        and conversation.exchanges[-1].user not in LANGUAGE["say_again"]
    ):
        *told, asked = conversation.exchanges
        facts = " ".join(exchange.user for exchange in told)
        if number % 2:
            yield {"instruction": f"{facts} {asked.user}", "input": "", "output": asked.assistant}
        else:
            yield {"instruction": asked.user, "input": facts, "output": asked.assistant}


def cut_history(train: Iterable[Conversation]) -> Iterator[Conversation]:
    """Every exchange as a conversation of its own: the same words, and no turn to look anything up in."""
    for conversation in train:
        for exchange in conversation.exchanges:
            yield conversation._replace(exchanges=[exchange])


def render(messages: Iterable[Mapping[str, str]]) -> str:
    """The text of a conversation, as CHAT_TEMPLATE writes it."""
    return "".join(f"{START}{message['role']}\n{message['content']}{END}\n" for message in messages)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE tokenizer whose first three tokens are the ChatML tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in (PAD, START, END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": None,
    "eos_token": END,
    "pad_token": PAD,
    "unk_token": None,
    "additional_special_tokens": [START],
    "clean_up_tokenization_spaces": False,
    "model_max_length": 512,
    "chat_template": CHAT_TEMPLATE,
}


def json_lines(rows: Iterable[object]) -> str:
    """One JSON value per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path: Path, content: str | bytes) -> None:
    """Write beside `path` and rename, so that a file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    unfinished.replace(path)


def message_lines(conversations: Iterable[Conversation]) -> str:
    """The conversations as JSONL in the OpenAI messages format."""
    return json_lines({"messages": conversation.messages} for conversation in conversations)


def write_demo_data(folder: Path) -> None:
    """Write every file of the demo into `folder`."""
    train, validation, heldout = split_conversations()
    # No time and no name in the header, so that the bytes are the same on every run.
    write(folder / "demo-train.jsonl.gz", gzip.compress(message_lines(train).encode(), mtime=0))
    write(folder / "demo-validation.jsonl", message_lines(validation))
    write(folder / "demo-heldout.jsonl", message_lines(heldout))
    write(folder / "demo-alpaca.jsonl", json_lines(itertools.islice(single_turn_rows(train), NUM_SINGLE_TURN)))

    tokenizer = train_tokenizer(render(conversation.messages) for conversation in train)
    config = json.dumps(TOKENIZER_CONFIG, indent=2, ensure_ascii=False)
    write(folder / "demo-tokenizer" / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write(folder / "demo-tokenizer" / "tokenizer_config.json", config + "\n")


def main() -> None:
    """Make the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DATA_FOLDER, help="folder to write to (default: %(default)s)")
    parser.add_argument(
        "--without-history", type=Path, metavar="FILE", help="write only the training conversations, cut into exchanges"
    )
    options = parser.parse_args()
    if options.without_history:
        write(options.without_history, message_lines(cut_history(split_conversations()[0])))
    else:
        write_demo_data(options.output)


if __name__ == "__main__":
    main()
