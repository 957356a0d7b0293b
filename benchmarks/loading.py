# SPDX-License-Identifier: Apache-2.0
"""Packed batches from prepared data: tokens per second of one core, and how soon a run has its first one.

    python benchmarks/loading.py [--conversations 10000000] [--folder DIR]

Conversations are made synthetically, with lengths drawn with a fixed seed (log-normal, median 400, sigma 0.9, at most
4,097 tokens) and one to four trained turns, and written in the format of `primus data prepare`. Of the small data set
the tokens are on the disk; of the large one the files of tokens have their size and hold nothing, since how soon a run
starts does not depend on what they hold. Both are packed by best fit into sequences of 4,096 positions.

Each figure is that of a new process on one core: by the clock, by the processor's time, and of the fastest piece of two
steps, which is what the machine can do while nobody else uses it. Speed is that of tensors as Megatron's batch has them
(`input_ids`, `labels`, `loss_mask`, `position_ids`, `cu_seqlens`), in the order of a run, padding not counted: in a
first pass, which maps the pages of the files, and in a second one. `micro-batch` is all that training reads: the same,
with the places of the targets looked up, and with the hash of the batch besides.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from primus.sft.dataset import fingerprint_of
from primus.sft.ledger import Ledger
from primus.sft.packing_cache import PACKING
from primus.sft.prepared.arrays import TOKENS, ShardCounts, write_shard
from primus.sft.prepared.disk import FileFacts, write_file
from primus.sft.prepared.key import FORMAT_VERSION, key_of
from primus.sft.prepared.manifest import LEDGER, Manifest, ShardFacts, shard_folder, write_manifest
from primus.sft.sequences import SequenceArrays, bounds_of

IntArray = npt.NDArray[np.int64]

CAPACITY, GLOBAL_BATCH, SEED = 4096, 16, 1234
PER_SHARD = 25_000
NUM_SMALL, NUM_STEPS = 200_000, 1000
STEPS_OF_A_PIECE = 2


def make_shard(number: int, *, num: int) -> SequenceArrays:
    """Synthetic conversations.

    Args:
        number: Number of the shard; each has others.
        num: Conversations.

    Returns:
        Their arrays.
    """
    rng = np.random.default_rng(number)
    lengths_N = rng.lognormal(np.log(400), 0.9, num).clip(16, CAPACITY + 1).astype(np.int64)
    # A turn is a piece of content and its end; turns take up to an eighth of the conversation each.
    num_turns_N = rng.integers(1, 5, num)
    starts_M = np.repeat(lengths_N, num_turns_N) * (2 * _counted(num_turns_N) + 1) // 8
    stops_M = starts_M + np.repeat(lengths_N, num_turns_N) // 8
    spans_K2 = np.stack([starts_M, stops_M - 1, stops_M - 1, stops_M], axis=1).reshape(-1, 2)
    num_targets_N = np.add.reduceat(stops_M - starts_M, bounds_of(num_turns_N)[:-1])
    num_pieces = len(spans_K2)
    return SequenceArrays(
        tokens_T=rng.integers(0, 150_000, lengths_N.sum(), dtype=np.int32),
        token_bounds_N1=bounds_of(lengths_N),
        token_spans_K2=spans_K2.astype(np.int32),
        turns_K=np.repeat(2 * _counted(num_turns_N) + 1, 2).astype(np.int32),
        is_end_K=np.arange(num_pieces) % 2 == 1,
        weights_K=np.ones(num_pieces, dtype=np.float32),
        span_bounds_N1=bounds_of(2 * num_turns_N),
        num_targets_N=num_targets_N.astype(np.int32),
        num_units_N=num_targets_N.astype(np.int32),
        content_hashes_N16=np.zeros((num, 16), dtype=np.uint8),
        origins_P=np.frombuffer(b"a.jsonl:1" * num, dtype=np.uint8),
        origin_bounds_N1=np.arange(num + 1) * 9,
    )


def _counted(nums_N: IntArray) -> IntArray:
    """0, 1, 2, ... for each of the numbers."""
    bounds_N1 = bounds_of(nums_N)
    counted: IntArray = np.arange(bounds_N1[-1]) - np.repeat(bounds_N1[:-1], nums_N)
    return counted


def make_data(folder: Path, *, num: int, with_tokens: bool) -> None:
    """Write a prepared data set.

    Args:
        folder: Its folder.
        num: Conversations.
        with_tokens: Whether its tokens are on the disk, or files of the same size that hold nothing.
    """
    shards = []
    for number, start in enumerate(range(0, num, PER_SHARD)):
        arrays = make_shard(number, num=min(PER_SHARD, num - start))
        counts, digest, path = ShardCounts.of(arrays), f"shard {number}", folder / shard_folder("train", number)
        path.mkdir(parents=True)
        if with_tokens:
            files = write_shard(path, arrays)
        else:
            num_bytes = arrays.tokens_T.nbytes
            nothing = np.zeros(0, dtype=np.int32)
            files = {
                **write_shard(path, dataclasses.replace(arrays, tokens_T=nothing)),
                TOKENS: FileFacts(num_bytes, ""),
            }
            os.truncate(path / TOKENS, num_bytes)
        shards.append(ShardFacts(counts=counts, digest=digest, files=files))
    ledger = Ledger()
    text = json.dumps(ledger.to_dict(), indent=1) + "\n"
    facts = {"format_version": FORMAT_VERSION, "made by": "benchmarks/loading.py", "conversations": num}
    manifest = Manifest(
        key=key_of(facts),
        facts=facts,
        tokenizer="none",
        splits={"train": tuple(shards)},
        fingerprints={"train": fingerprint_of([shard.digest for shard in shards], num_sequences=num)},
        ledger={name: value for name, value in ledger.to_dict().items() if name != "origins"},
        files={LEDGER: write_file(folder / LEDGER, [text.encode()])},
    )
    write_manifest(folder, manifest)


def measure_start(folder: Path, *, step: int) -> None:
    """Print the seconds from nothing to the first batch.

    Args:
        folder: The data set.
        step: The step to go on from.
    """
    began_s = time.perf_counter()
    from primus.backends.megatron.core.datasets.training_sequences import TrainingSequences  # noqa: PLC0415
    from primus.backends.megatron.data.batches import read_micro_batch  # noqa: PLC0415
    from primus.sft.prepared import open_prepared  # noqa: PLC0415

    imported_s, began_cpu_s = time.perf_counter(), time.process_time()
    prepared = open_prepared(folder)
    opened_s = time.perf_counter()
    data = TrainingSequences(prepared, packing="best_fit", max_seq_length=CAPACITY, pad_id=0, seed=SEED)
    packed_s = time.perf_counter()
    batch_G = data.order(global_batch_size=GLOBAL_BATCH).global_batch(step)
    batch = read_micro_batch(data, batch_G, pad_to_multiple_of=8, places_B=np.arange(GLOBAL_BATCH))
    ready_s = time.perf_counter()
    times = {
        "imports": imported_s - began_s,
        "open": opened_s - imported_s,
        "pack plan": packed_s - opened_s,
        "order and first batch": ready_s - packed_s,
        "together without imports": ready_s - imported_s,
        "the same, CPU": time.process_time() - began_cpu_s,
    }
    print(json.dumps({"times": times, "hash": batch.content_hash, "packs": len(data)}))


def measure_speed(folder: Path) -> None:
    """Print the tokens per second of batches of several sizes.

    Args:
        folder: The data set.
    """
    import torch  # noqa: PLC0415

    from primus.backends.megatron.core.datasets.training_sequences import TrainingSequences  # noqa: PLC0415
    from primus.backends.megatron.data.batches import read_micro_batch  # noqa: PLC0415
    from primus.backends.megatron.data.loading import keep_freed_memory  # noqa: PLC0415
    from primus.sft.prepared import open_prepared  # noqa: PLC0415

    torch.set_num_threads(1)
    keep_freed_memory()
    prepared = open_prepared(folder)
    data = TrainingSequences(prepared, packing="best_fit", max_seq_length=CAPACITY, pad_id=0, seed=SEED)
    order = data.order(global_batch_size=GLOBAL_BATCH)
    num_steps = min(NUM_STEPS, len(data) // GLOBAL_BATCH)
    batches = [order.global_batch(step) for step in range(num_steps)]
    num_tokens = sum(int(data.num_positions_of(batch_G).sum()) for batch_G in batches)

    def tensors(batch_B: IntArray) -> object:
        return [torch.from_numpy(array) for array in data.batch(batch_B, length=CAPACITY)]

    def micro_batch(batch_B: IntArray) -> object:
        return read_micro_batch(data, batch_B, pad_to_multiple_of=8)

    def hashed(batch_B: IntArray) -> object:
        return read_micro_batch(data, batch_B, pad_to_multiple_of=8, places_B=np.arange(len(batch_B)))

    def speed(load: Callable[[IntArray], object], size: int) -> list[float]:
        began_cpu_s = time.process_time()
        times_s = [time.perf_counter()]
        for batch_G in batches:
            for batch_B in batch_G.reshape(-1, size):
                load(batch_B)
            times_s.append(time.perf_counter())
        cpu_s = time.process_time() - began_cpu_s
        fastest_s = np.diff(times_s[::STEPS_OF_A_PIECE]).min() * num_steps / STEPS_OF_A_PIECE
        return [num_tokens / duration_s / 1e6 for duration_s in (times_s[-1] - times_s[0], cpu_s, fastest_s)]

    speeds = {"tensors, 16 packs at once, first pass": speed(tensors, 16)}
    speeds |= {f"tensors, {size} packs at once": speed(tensors, size) for size in (16, 8, 4, 2, 1)}
    speeds["micro-batch, 4 packs"] = speed(micro_batch, 4)
    speeds["micro-batch, 4 packs, hashed"] = speed(hashed, 4)
    num_conversations = len(prepared) / len(data)
    print(json.dumps({"speeds": speeds, "tokens": num_tokens, "conversations per pack": num_conversations}))


def _in_new_process(*words: str) -> dict[str, object]:
    """Run this program on one core, and give what it prints."""
    core = str(min(os.sched_getaffinity(0)))
    done = subprocess.run(  # noqa: S603
        ["taskset", "-c", core, sys.executable, "-W", "ignore", __file__, *words],  # noqa: S607
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    outcome: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def _show_start(what: str, outcome: dict[str, object]) -> None:
    times = outcome["times"]
    assert isinstance(times, dict)
    print(f"  {what:<44}" + "".join(f"{seconds:>10.3f}" for seconds in times.values()))


def main() -> None:
    """Make the data sets, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="keep the data sets here, and use those that are here")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, folder = options.measure
        if what == "speed":
            measure_speed(Path(folder))
        else:
            measure_start(Path(folder), step=int(what))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        small, large = root / "small", root / f"large-{options.conversations}"
        for path, num, with_tokens in ((small, NUM_SMALL, True), (large, options.conversations, False)):
            if not path.exists():
                make_data(path, num=num, with_tokens=with_tokens)
        print(f"one core of {os.cpu_count()}, numpy {np.__version__}")
        outcome = _in_new_process("--measure", "speed", str(small))
        speeds = outcome["speeds"]
        assert isinstance(speeds, dict)
        print(f"\n{outcome['tokens']:,} tokens, {outcome['conversations per pack']:.1f} conversations a pack")
        print(f"  {'million tokens/s':<44}{'clock':>10}{'CPU':>10}{'fastest':>10}")
        for name, columns in speeds.items():
            print(f"  {name:<44}" + "".join(f"{value:>10.1f}" for value in columns))
        print(f"\nseconds to the first batch of {options.conversations:,} conversations")
        print(f"  {'':<44}" + "".join(f"{name:>10}" for name in ("imports", "open", "plan", "batch", "sum*", "CPU*")))
        shutil.rmtree(large / PACKING, ignore_errors=True)
        _show_start("step 0, the pack plan is not there yet", _in_new_process("--measure", "0", str(large)))
        for step in (0, 1_000_000, 0, 1_000_000):
            _show_start(f"step {step:,}", _in_new_process("--measure", str(step), str(large)))
        print("  * without imports")


if __name__ == "__main__":
    main()
