# SPDX-License-Identifier: Apache-2.0
"""Files of every kind, and streams out of them."""

import gzip
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from primus.chat.conversations import ConversationBatch
from primus.sft.batch_encoding import EncodedBatch, ShardEncoder
from primus.sft.formatters import OpenAIMessagesFormatter
from primus.sft.options import BadRows, EncodingOptions
from primus.sft.recipe import Encoder
from primus.sft.streaming import StreamedBatch, StreamingDataset
from primus.sft.tokenizer import SFTTokenizer

SEQ_LENGTH = 96
BATCH_BYTES = 900

Stream = Callable[..., StreamingDataset]


class CountingEncoder(ShardEncoder):
    """Knows how many conversations it has encoded."""

    num_conversations = 0

    def encode(self, batch: ConversationBatch) -> EncodedBatch:
        encoded = super().encode(batch)
        self.num_conversations += sum(len(reading.conversations) for reading in batch.readings())
        return encoded


def chat(name: str, number: int) -> dict[str, Any]:
    """A conversation of one to five exchanges; some do not fit in a sequence."""
    turns = [
        {"role": role, "content": f"{name} {number}.{turn} " + "very " * ((7 * number + turn) % 5) + "well"}
        for turn in range(1 + number * number % 5)
        for role in ("user", "assistant")
    ]
    return {"messages": turns}


def write_lines(path: Path, rows: list[Any]) -> Path:
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Lines, compressed lines, a list, a table, conversations whose turns are rows, and trees."""
    (tmp_path / "list.json").write_text(json.dumps([chat("list", i) for i in range(17)]))
    rows = [{"instruction": f"table {i}", "output": f"It is {i}."} for i in range(11)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    turns = [
        {"conversation_id": f"c{c}", "turn": turn, "role": role, "content": f"turn {c}.{turn}"}
        for c in range(9)
        for turn, role in enumerate(("user", "assistant") * (1 + c % 2))
    ]
    trees = [
        {
            "message_tree_id": f"t{i}",
            "prompt": {
                "text": f"tree {i}", "role": "prompter",
                "replies": [{"text": f"branch {i}.{k}", "role": "assistant", "replies": []} for k in range(2)],
            },
        }
        for i in range(5)
    ]  # fmt: skip
    return [
        write_lines(tmp_path / "lines.jsonl", [chat("lines", i) for i in range(40)]),
        write_lines(tmp_path / "packed.jsonl.gz", [chat("packed", i) for i in range(23)]),
        tmp_path / "list.json",
        tmp_path / "table.parquet",
        write_lines(tmp_path / "turns.jsonl", turns),
        write_lines(tmp_path / "trees.jsonl", trees),
    ]


@pytest.fixture
def stream(files: list[Path], chatml_tokenizer: SFTTokenizer) -> Stream:
    """Makes a stream of the files; small buffers are full most of the time."""

    def make(
        *,
        of: list[Path] | None = None,
        bad_rows: BadRows = "error",
        encoder: ShardEncoder | None = None,
        **options: Any,
    ) -> StreamingDataset:
        defaults = {
            "max_seq_length": SEQ_LENGTH, "global_batch_size": 3, "seed": 3, "shuffle_buffer": 20,
            "packing": "best_fit", "packing_buffer": 8, "batch_bytes": BATCH_BYTES,
        }  # fmt: skip
        return StreamingDataset(
            files if of is None else of,
            encoder=encoder or shard_encoder(chatml_tokenizer),
            source=EncodingOptions().source,
            bad_rows=bad_rows,
            **{**defaults, **options},
        )

    return make


def shard_encoder(tokenizer: SFTTokenizer) -> CountingEncoder:
    options = EncodingOptions(supervise_end_of_turn=True, truncation="window")
    return CountingEncoder(Encoder(tokenizer, OpenAIMessagesFormatter(), options), max_seq_length=SEQ_LENGTH)


def first(dataset: StreamingDataset, num: int) -> list[StreamedBatch]:
    return list(islice(dataset, num))


def epoch(dataset: StreamingDataset, number: int = 0) -> Iterator[StreamedBatch]:
    """The batches of one pack of an epoch, of a stream with one pack in a batch."""
    for batch in dataset:
        # The packs that are ready when the epoch ends belong to it.
        if batch.state.epoch == number + 1 and not batch.state.packs:
            yield batch
            return
        if batch.state.epoch == number or (batch.state.epoch == number + 1 and not batch.state.num_sequences):
            yield batch
