# SPDX-License-Identifier: Apache-2.0
"""Streams: the same again from every point, each conversation once in an epoch, and nothing silent."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primus.errors import DataError
from primus.sft.dataset import tokenize_files
from primus.sft.formatters import OpenAIMessagesFormatter
from primus.sft.options import EncodingOptions
from primus.sft.packing import Method
from primus.sft.sequences import SequenceArrays
from primus.sft.streaming import StreamedBatch, StreamingDataset
from primus.sft.tokenizer import SFTTokenizer
from tests.unit_tests.sft.streaming.conftest import (
    SEQ_LENGTH,
    CountingEncoder,
    Stream,
    chat,
    epoch,
    first,
    shard_encoder,
    write_lines,
)


def written(batch: StreamedBatch) -> dict[str, Any]:
    """The state as a checkpoint has it."""
    state: dict[str, Any] = json.loads(json.dumps(batch.state.to_dict()))
    return state


def facts(arrays: SequenceArrays) -> Counter[tuple[str, bytes, bytes]]:
    """The sequences, in no order."""
    return Counter(
        (arrays.origin(n), arrays[n].tokens_T.tobytes(), arrays[n].weights_T.tobytes()) for n in range(len(arrays))
    )


@pytest.mark.parametrize(
    ("packing", "shuffle_buffer", "num", "step"),
    [("best_fit", 20, 75, 2), ("sequential", 7, 90, 4), ("none", 0, 110, 6), ("none", 300, 110, 6)],
)
def test_every_point_of_the_stream_can_be_gone_on_from(
    stream: Stream, packing: Method, shuffle_buffer: int, num: int, step: int
) -> None:
    batches = first(stream(packing=packing, shuffle_buffer=shuffle_buffer), num)
    digests = [batch.digest() for batch in batches]
    assert batches[-20].state.epoch > 0, "the points are those of more than one epoch"
    assert len(set(digests)) > 0.9 * num
    for at in range(0, num - 3, step):
        again = stream(packing=packing, shuffle_buffer=shuffle_buffer, state=written(batches[at]))
        rest = first(again, 2)
        assert [batch.digest() for batch in rest] == digests[at + 1 : at + 3]
        assert written(rest[-1]) == written(batches[at + 2])
        assert [batch.state.num_batches for batch in rest] == [at + 2, at + 3]


@pytest.mark.parametrize("packing", ["best_fit", "sequential", "none"])
def test_an_epoch_has_what_the_files_have_tokenized_at_once(
    stream: Stream, files: list[Path], chatml_tokenizer: SFTTokenizer, packing: Method
) -> None:
    options = EncodingOptions(supervise_end_of_turn=True, truncation="window")
    data, _ = tokenize_files(
        files,
        formatter=OpenAIMessagesFormatter(),
        tokenizer=chatml_tokenizer,
        max_seq_length=SEQ_LENGTH,
        options=options,
    )
    whole = facts(SequenceArrays.concatenate(data.shards))
    assert data.ledger.num_truncated > 3
    dataset = stream(packing=packing, global_batch_size=1)
    orders = []
    for number in range(3):
        batches = list(epoch(dataset, number))
        assert facts(SequenceArrays.concatenate([batch.sequences for batch in batches])) == whole
        orders.append([batch.sequences.origin(0) for batch in batches])
        for batch in batches:
            assert (batch.num_positions_P <= SEQ_LENGTH).all()
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert dataset.ledger.to_dict() == data.ledger.to_dict(), "rows are counted in the first epoch"


def test_files_come_in_another_order_in_each_epoch(stream: Stream) -> None:
    dataset = stream(packing="none", shuffle_buffer=0, global_batch_size=1)
    orders = []
    for number in range(4):
        names = [batch.sequences.origin(0).split(":")[0].split("[")[0] for batch in epoch(dataset, number)]
        orders.append(tuple(dict.fromkeys(names)))
        assert len(orders[-1]) == 6
    assert len(set(orders)) > 2


def test_only_what_waits_is_tokenized_again(stream: Stream, chatml_tokenizer: SFTTokenizer) -> None:
    batches = first(stream(), 8)
    state = written(batches[5])
    waiting = [*state["incoming"], *state["shuffled"], *(item for item, _ in state["packer"]["waiting"])]
    waiting += [item for pack in state["packs"] for item in pack]
    rows = {(file, batch, tuple(rows)) for file, batch, rows, *_ in waiting}
    encoder: CountingEncoder = shard_encoder(chatml_tokenizer)
    again = stream(encoder=encoder, state=state)
    trees = len([1 for file, *_ in rows if file == 5])
    assert len(waiting) > 20
    assert 10 < len(rows) <= encoder.num_conversations <= len(rows) + trees
    assert first(again, 2)[1].digest() == batches[7].digest()


def test_another_size_of_the_global_batch_cuts_the_same_packs_elsewhere(stream: Stream) -> None:
    small = first(stream(global_batch_size=2), 30)
    packs = [batch.origins(pack) for batch in small for pack in range(len(batch))]
    state = written(small[4])
    large = first(stream(global_batch_size=5, state=state), 9)
    assert [batch.origins(pack) for batch in large for pack in range(len(batch))] == packs[10:55]


def test_ranks_take_their_parts_of_the_same_batches(stream: Stream) -> None:
    streams = [stream(global_batch_size=8) for _ in range(4)]
    for batches in zip(*(first(one, 6) for one in streams), strict=True):
        assert len({batch.digest() for batch in batches}) == 1
        whole = batches[0].targets(range(8), length=SEQ_LENGTH, pad_id=0)
        for num_ranks in (1, 2, 4):
            parts = [
                batches[rank].targets(range(rank, 8, num_ranks), length=SEQ_LENGTH, pad_id=0)
                for rank in range(num_ranks)
            ]
            for rank, part in enumerate(parts):
                assert np.array_equal(part.input_ids_BS, whole.input_ids_BS[rank::num_ranks])
                assert np.array_equal(part.loss_mask_BS, whole.loss_mask_BS[rank::num_ranks])
        assert (whole.loss_mask_BS > 0).sum() == batches[0].num_targets_P.sum() == batches[0].num_units_P.sum()
        assert len(whole.segments_C2) == len(batches[0].sequences)
        assert (whole.segments_C2[:, 1] - whole.segments_C2[:, 0]).sum() == batches[0].num_positions_P.sum()


_OTHER_PROCESS = """
import sys
from itertools import islice
from pathlib import Path
from primus.sft.options import EncodingOptions
from primus.sft.recipe import Recipe
from primus.sft.batch_encoding import ShardEncoder
from primus.sft.streaming import StreamingDataset

tokenizer, *files = sys.argv[1:]
options = EncodingOptions(supervise_end_of_turn=True, truncation="window")
recipe = Recipe(files=tuple(map(Path, files)), source=options.source, tokenizer=tokenizer, options=options)
encoder = ShardEncoder(recipe.build(), max_seq_length=96)
stream = StreamingDataset(recipe.files, encoder=encoder, source=options.source, max_seq_length=96, seed=3,
                          global_batch_size=3, shuffle_buffer=20, packing="best_fit", packing_buffer=8, batch_bytes=900)
print(*(batch.digest() for batch in islice(stream, 30)))
"""


def test_another_process_sees_the_same_batches(stream: Stream, files: list[Path], tokenizer_folder: Path) -> None:
    other = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS, str(tokenizer_folder / "tokenizer.json"), *map(str, files)],
        env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert other.stdout.split() == [batch.digest() for batch in first(stream(), 30)]


BAD = ["{not json", {"messages": [{"role": "assistent", "content": "x"}]}, {"messages": []}]


@pytest.fixture
def with_bad_rows(files: list[Path], tmp_path: Path) -> list[Path]:
    rows: list[Any] = [chat("mixed", i) for i in range(30)]
    for place, bad in zip((3, 11, 25), BAD, strict=True):
        rows.insert(place, bad)
    return [*files[:2], write_lines(tmp_path / "bad.jsonl", rows)]


def test_a_bad_row_ends_the_stream(stream: Stream, with_bad_rows: list[Path]) -> None:
    with pytest.raises(DataError, match=r"bad\.jsonl:4: not valid JSON"):
        list(islice(stream(of=with_bad_rows), 200))


def test_bad_rows_are_written_once_however_often_the_stream_is_stopped(
    stream: Stream, with_bad_rows: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "quarantine" / "train.jsonl"
    options: dict[str, Any] = {"of": with_bad_rows, "bad_rows": "quarantine", "quarantine_path": path}
    whole = stream(**options)
    batches = first(whole, 80)
    lines = path.read_bytes()
    assert [json.loads(line)["reason"] for line in lines.splitlines()] == ["not_json", "role", "empty"]
    ledger = whole.ledger
    assert ledger.num_rows == sum(ledger.outcomes.values()) == 40 + 23 + 33
    assert ledger.num_bad == 3
    dataset, taken = stream(**options), 0
    for step in (1, 2, 3, 4, 9, 12):
        ran_on = first(dataset, step + 4)  # four batches are lost with the process
        assert [batch.digest() for batch in ran_on] == [b.digest() for b in batches[taken : taken + step + 4]]
        taken += step
        dataset = stream(**options, state=written(ran_on[step - 1]))
    first(dataset, 30)
    assert path.read_bytes() == lines
    assert dataset.ledger.to_dict() == ledger.to_dict()
    stream(of=with_bad_rows[:2], bad_rows="quarantine", quarantine_path=path)
    assert not path.exists(), "a new run begins without the bad rows of another"


def test_a_state_stays_that_of_its_time(stream: Stream, with_bad_rows: list[Path]) -> None:
    lines = with_bad_rows[-1].read_text()
    with_bad_rows[-1].write_text(lines + lines)
    options: dict[str, Any] = {"of": with_bad_rows, "bad_rows": "quarantine", "shuffle_buffer": 0}
    batches = first(stream(**options), 90)
    states = [batch.state.to_dict() for batch in batches]
    num_bad = [
        sum(count for outcome, count in state["ledger"]["outcomes"].items() if outcome.startswith("bad:"))
        for state in states
    ]
    assert {0, 1, 6} <= set(num_bad) <= set(range(7))
    for state, num in zip(states, num_bad, strict=True):
        assert sum(map(len, state["ledger"]["origins"].values())) == num
    at = num_bad.index(1)
    before = json.dumps(states[at])
    first(stream(**options, state=states[at]), 89 - at)
    assert json.dumps(states[at]) == before, "a stream that goes on from a state leaves it alone"


def test_a_state_of_another_stream_is_refused(stream: Stream, files: list[Path]) -> None:
    state = written(first(stream(identity={"x": "a"}), 3)[-1])
    for options, what in (
        ({"seed": 4}, "while seed was 3, and now it is 4"),
        ({"shuffle_buffer": 21}, "while sft_shuffle_buffer was 20, and now it is 21"),
        ({"packing": "none"}, "while sft_packing was 'best_fit', and now it is 'none'"),
        ({"identity": {"x": "b"}}, r"with other settings \(x: 'a' -> 'b'\)"),
        ({"of": files[:3]}, r"while sft_dataset_name was \[\[.*, and now it is "),
    ):
        with pytest.raises(DataError, match=f"^sft_streaming: the checkpoint was written {what}.*start anew$"):
            stream(state=state, **{"identity": {"x": "a"}, **options})
    with pytest.raises(DataError, match="the state of the stream has the format 0, and this version reads 1"):
        stream(identity={"x": "a"}, state={**state, "format": 0})


def test_rows_that_changed_under_a_checkpoint_are_refused(stream: Stream, files: list[Path]) -> None:
    dataset = stream(of=files[:1], shuffle_buffer=300)
    state = written(first(dataset, 1)[0])
    content = files[0].read_text()
    written_ns = files[0].stat().st_mtime_ns
    files[0].write_text(content.replace("lines 17.", "LINES 17."))
    with pytest.raises(DataError, match="the time of the last change of each file was"):
        stream(of=files[:1], shuffle_buffer=300, state=state)
    os.utime(files[0], ns=(written_ns, written_ns))
    with pytest.raises(DataError, match=r"lines\.jsonl:18 is not what it was when the checkpoint was written"):
        stream(of=files[:1], shuffle_buffer=300, state=state)
    files[0].write_text(content[: content.index("lines 17.")].rpartition("\n")[0] + "\n" * 9000)
    state["source"]["sft_dataset_name"][0][1] = files[0].stat().st_size
    os.utime(files[0], ns=(written_ns, written_ns))
    with pytest.raises(DataError, match=r"lines\.jsonl: the rows of a conversation that was read are not there any"):
        stream(of=files[:1], shuffle_buffer=300, state=state)


def test_a_file_that_changes_between_epochs_is_refused(stream: Stream, files: list[Path]) -> None:
    dataset = stream(of=files[:1])
    first(dataset, 1)
    with files[0].open("a") as file:
        file.write(json.dumps(chat("new", 1)) + "\n")
    with pytest.raises(DataError, match=r"lines\.jsonl: the file has changed since the run began"):
        first(dataset, 100)


def test_an_epoch_without_anything_to_train_is_an_error(stream: Stream, tmp_path: Path) -> None:
    silent = {"messages": [{"role": "assistant", "content": "x", "weight": 0}]}
    path = write_lines(tmp_path / "silent.jsonl", [silent] * 3)
    with pytest.raises(DataError, match=r"no conversation is left to train \(3 rows read; 3 nothing_to_train"):
        next(iter(stream(of=[path])))


def test_what_can_not_be_read_again_is_refused(stream: Stream, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file; name at least one"):
        stream(of=[])
    with pytest.raises(DataError, match="standard input can be read only once"):
        stream(of=[Path("-")])
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        next(iter(stream(of=[tmp_path / "nowhere.jsonl"])))


@pytest.mark.parametrize("option", ["global_batch_size", "shuffle_buffer", "packing_buffer", "max_seq_length"])
def test_numbers_out_of_range_are_refused(stream: Stream, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is -1, not at least"):
        stream(**{option: -1})


def test_a_stream_of_the_hub_goes_on_where_it_was(
    stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    write_lines(tmp_path / "owner" / "name" / "train.jsonl", [chat("hub", i) for i in range(600)])
    of = [Path("hf://owner/name")]
    batches = first(stream(of=of, shuffle_buffer=50), 40)
    digests = [batch.digest() for batch in batches]
    assert batches[0].origins(0)[0].startswith("hf://owner/name[")
    for at in (0, 17, 30):
        again: StreamingDataset = stream(of=of, shuffle_buffer=50, state=written(batches[at]))
        assert [batch.digest() for batch in first(again, 9)] == digests[at + 1 : at + 10]
