# SPDX-License-Identifier: Apache-2.0
"""Every shared file through the preparation with every policy: no row and no turn is lost without a word."""

from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from primus.chat.conversations import SourceOptions, read_conversations
from primus.errors import DataError
from primus.sft.dataset import tokenize_files
from primus.sft.formatters import create_formatter
from primus.sft.ledger import NOTHING_TO_TRAIN, OVERLONG, TRAINED, VALIDATION
from primus.sft.options import EncodingOptions, Truncation
from primus.sft.sequences import SequenceShards
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer
from tests.unit_tests.oracles.test_real_conversations import FILES

LENGTH = 512
# Training takes no names of roles, so the rows of these are not valid.
OTHERWISE: dict[str, dict[str, int]] = {
    "crosswoz/val_first200.json": {"role": 200},
    "smile/smile_1000.jsonl": {"role": 300},
}
FIELDS: dict[str, tuple[str, ...]] = {"tau_bench/gpt-4o-airline.json": ("messages", "traj")}


@pytest.fixture(scope="module")
def tokenizer(shared_dir: Path) -> SFTTokenizer:
    return load_tokenizer(shared_dir / "tokenizers" / "qwen2" / "tokenizer.json")


def num_answers(path: Path, source: SourceOptions) -> int:
    """Assistant turns of the conversations of a file that have a target when they are whole."""
    return sum(
        message.role == "assistant" and message.weight != 0
        for reading in read_conversations([path], source)
        for conversation in reading.conversations
        for message in conversation.messages
    )


def trained_turns(*datasets: SequenceShards) -> list[tuple[str, int]]:
    """The turns with targets of all sequences."""
    found = []
    for data in datasets:
        for index in range(len(data)):
            sequence = data[index]
            turns = sequence.turns_K[(sequence.weights_K > 0) & (sequence.token_spans_K2[:, 1] > 1)]
            found += [(sequence.origin, turn) for turn in sorted(set(turns.tolist()))]
    return found


@pytest.mark.parametrize("truncation", get_args(Truncation))
def test_rows_read_are_rows_trained_and_reasons(
    shared_dir: Path, tokenizer: SFTTokenizer, truncation: Truncation
) -> None:
    formatter = create_formatter("openai")
    longest, num_cut = 0, 0
    for name, (_, num_rows, num_conversations, reasons) in FILES.items():
        path = shared_dir / "conversations" / name
        options = EncodingOptions(
            supervise_end_of_turn=True,
            truncation=truncation,
            bad_rows="quarantine",
            messages_field=FIELDS.get(name, "messages"),
        )
        train, held_out = tokenize_files(
            [path], formatter=formatter, tokenizer=tokenizer, max_seq_length=LENGTH, options=options,
            validation_fraction=0.1,
        )  # fmt: skip
        ledger = train.ledger
        used = ledger.outcomes[TRAINED] + ledger.outcomes[VALIDATION]
        others = {what: count for what, count in ledger.outcomes.items() if what not in {TRAINED, VALIDATION}}
        assert ledger.num_rows == num_rows == used + sum(others.values()), name
        assert {what: len(origins) for what, origins in ledger.origins.items()} == others, name
        bad = Counter({what.removeprefix("bad:"): n for what, n in others.items() if what.startswith("bad:")})
        expected = Counter(OTHERWISE.get(name, reasons))
        if truncation == "error":
            bad.pop(OVERLONG, None)
        bad.pop("split", None)  # trees whose branches open differently
        assert bad == expected, name
        assert not {what for what in others if not what.startswith("bad:")} - {OVERLONG, NOTHING_TO_TRAIN}, name
        assert len(train) + len(held_out) == ledger.num_conversations + ledger.num_windows, name
        kept = ledger.num_conversations + ledger.num_dropped_branches
        assert kept == used - ledger.num_joined + ledger.num_branches + ledger.num_dropped_branches, name
        turns = trained_turns(train, held_out)
        assert len(turns) == len(set(turns)), f"{name}: a turn is trained twice"
        if truncation in {"right", "keep_last_turns", "window"} and num_conversations == num_rows:
            cut = ledger.num_untrained_turns
            assert len(turns) + cut == num_answers(path, options.source), name
            num_cut += cut
        longest = max([longest, *train.num_tokens_N.tolist(), *held_out.num_tokens_N.tolist()])
    assert longest <= LENGTH + 1
    assert num_cut > 0 or truncation in {"error", "drop"}


def test_bad_rows_stop_everything_unless_they_are_set_aside(shared_dir: Path, tokenizer: SFTTokenizer) -> None:
    formatter = create_formatter("openai")
    for name, (_, num_rows, _, reasons) in FILES.items():
        path = shared_dir / "conversations" / name
        arguments = {"formatter": formatter, "tokenizer": tokenizer, "max_seq_length": 10**6}
        options = EncodingOptions(supervise_end_of_turn=True, messages_field=FIELDS.get(name, "messages"))
        if reasons or name in OTHERWISE:
            with pytest.raises(DataError) as caught:
                tokenize_files([path], options=options, **arguments)  # type: ignore[arg-type]
            listed = len(caught.value.problems)
            assert listed == min(sum(OTHERWISE.get(name, reasons).values()), 11), name
        else:
            train, _ = tokenize_files([path], options=options, **arguments)  # type: ignore[arg-type]
            assert train.ledger.outcomes == {TRAINED: num_rows}, name
