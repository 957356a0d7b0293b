# SPDX-License-Identifier: Apache-2.0
"""Packing: how fast, and how full the packs are, next to TRL's `pack_dataset` and a plain first-fit decreasing.

    python benchmarks/packing.py [--items 1000000 10000000] [--sigma 1.0]

The lengths are drawn with a fixed seed, log-normal and clipped into the window: chats (median 400, window 4096) and
what agents do (median 6000, window 16384). Each packer packs the beginning of the same lengths: `best_fit` all of them,
the online packer with a buffer of 1,024 the first million, and the slow ones as many as they end with in a moment; the
table has the number. First-fit decreasing looks through all packs with numpy, item by item.

TRL packs rows of tokens, not lengths. It is given rows of one byte per token, that stay in memory, which is as fast as
it can be, and packs them as its trainer does (in batches of 1,000 rows) and all at once. Needs `pip install
'trl==1.16.0' datasets` beside the project, and is left out where they are missing.

`bound` is the fill that no packer can exceed, with as few packs as the lower bound L2 of Martello and Toth (1990,
"Lower bounds and reduction procedures for the bin packing problem") allows.
"""

import argparse
import importlib.util
import os
import resource
import tempfile
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from primus.sft.packing import OnlinePacker, pack_sequences

IntArray = npt.NDArray[np.int64]
Packer = Callable[[IntArray, int], int]
"""Packs lengths into packs of so many positions, and gives the number of packs."""

DISTRIBUTIONS = {"chats": (400, 4096), "agents": (6000, 16_384)}
OTHER_SIGMAS = (0.5, 0.8, 1.0, 1.2, 1.5)
NUM_ONLINE, BUFFER_SIZE = 1_000_000, 1024
NUM_FIRST_FIT = 50_000
NUM_TRL_TOKENS = 100_000_000
TRL_BATCH = 1000


def draw_lengths(name: str, *, num: int, sigma: float) -> IntArray:
    """Lengths of a distribution.

    Args:
        name: Which.
        num: How many.
        sigma: Standard deviation of their logarithms.

    Returns:
        Shape [num], from 1 to the window.
    """
    median, window = DISTRIBUTIONS[name]
    drawn = np.random.default_rng(0).lognormal(np.log(median), sigma, num)
    lengths: IntArray = drawn.clip(1, window).astype(np.int64)
    return lengths


def fewest_packs(lengths_N: IntArray, *, capacity: int) -> int:
    """A number of packs that no packing can do with less than: the bound L2.

    For each length k up to half a pack: longer items than `capacity - k` have a pack of their own, other longer ones
    than half a pack, too, and what is at least k long and has no room beside these needs further packs.

    Args:
        lengths_N: The lengths.
        capacity: Positions of a pack.

    Returns:
        The number.
    """
    counts = np.bincount(lengths_N, minlength=capacity + 1)
    num_up_to = np.cumsum(counts)
    sum_up_to = np.cumsum(counts * np.arange(capacity + 1))
    half = capacity // 2
    k = np.arange(1, half + 1)
    num_large = num_up_to[-1] - num_up_to[half]
    room = (num_up_to[capacity - k] - num_up_to[half]) * capacity - (sum_up_to[capacity - k] - sum_up_to[half])
    small = sum_up_to[half] - sum_up_to[k - 1]
    return int(num_large + np.maximum(-(-(small - room) // capacity), 0).max())


def pack_best_fit(lengths_N: IntArray, capacity: int) -> int:
    """Pack them all at once; return the number of packs."""
    return len(pack_sequences(lengths_N, capacity=capacity, method="best_fit"))


def pack_online(lengths_N: IntArray, capacity: int) -> int:
    """Pack a stream; return the number of packs."""
    packer = OnlinePacker[int](capacity, BUFFER_SIZE)
    num_packs = 0
    for item, length in enumerate(lengths_N.tolist()):
        num_packs += len(packer.add(item, length))
    return num_packs + len(packer.flush())


def pack_first_fit_decreasing(lengths_N: IntArray, capacity: int) -> int:
    """Pack the longest first, each into the first pack with room for it; return the number of packs."""
    rooms = np.full(len(lengths_N), capacity)
    num_packs = 0
    for length in np.sort(lengths_N)[::-1].tolist():
        pack = int(np.argmax(rooms[: num_packs + 1] >= length))
        rooms[pack] -= length
        num_packs = max(num_packs, pack + 1)
    return num_packs


def trl_packer(lengths_N: IntArray, *, batch_size: int) -> Packer:
    """Prepare rows for TRL.

    Args:
        lengths_N: Their lengths.
        batch_size: How many rows it packs at a time.

    Returns:
        What packs these rows.
    """
    import pyarrow as pa  # noqa: PLC0415
    from datasets import Dataset, disable_progress_bars  # noqa: PLC0415
    from trl import pack_dataset  # noqa: PLC0415

    disable_progress_bars()
    ends = np.cumsum(lengths_N)
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    tokens = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(ends[-1], dtype=np.int8)))
    rows = Dataset(pa.table({"input_ids": tokens}))
    keywords = {"batch_size": batch_size, "keep_in_memory": True}

    def pack(_: IntArray, capacity: int) -> int:
        return len(pack_dataset(rows, capacity, strategy="bfd", map_kwargs=keywords))

    return pack


def show(packer: str, lengths_N: IntArray, *, capacity: int, pack: Packer) -> None:
    """Time a packer and print its line.

    Args:
        packer: What it is called.
        lengths_N: What it packs.
        capacity: Positions of a pack.
        pack: The packer.
    """
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    num_packs = pack(lengths_N, capacity)
    duration_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    fill = lengths_N.sum() / (num_packs * capacity)
    bound = lengths_N.sum() / (fewest_packs(lengths_N, capacity=capacity) * capacity)
    million_per_s = len(lengths_N) / duration_s / 1e6
    print(
        f"  {packer:<40}{len(lengths_N):>12,}{duration_s:>9.2f} s{cpu_s:>7.2f} s{million_per_s:>9.3f}"
        f"{num_packs:>12,}{fill:>10.3%}{bound:>10.3%}",
        flush=True,
    )


def compare(name: str, *, sizes: list[int], sigma: float, with_trl: bool) -> None:
    """Print the lines of a distribution.

    Args:
        name: Which.
        sizes: How many lengths `best_fit` packs.
        sigma: Standard deviation of their logarithms.
        with_trl: Whether TRL can be imported.
    """
    median, capacity = DISTRIBUTIONS[name]
    lengths_N = draw_lengths(name, num=max(*sizes, NUM_ONLINE), sigma=sigma)
    print(f"\n{name}: median {median}, sigma {sigma}, window {capacity}")
    print(f"  {'':<40}{'items':>12}{'time':>11}{'CPU':>9}{'M/s':>9}{'packs':>12}{'fill':>10}{'bound':>10}")
    for size in sizes:
        show("best_fit", lengths_N[:size], capacity=capacity, pack=pack_best_fit)
    show(f"online, buffer of {BUFFER_SIZE:,}", lengths_N[:NUM_ONLINE], capacity=capacity, pack=pack_online)
    show("first-fit decreasing, plain", lengths_N[:NUM_FIRST_FIT], capacity=capacity, pack=pack_first_fit_decreasing)
    if with_trl:
        rows = lengths_N[: np.searchsorted(np.cumsum(lengths_N), NUM_TRL_TOKENS)]
        for batch_size, how in ((TRL_BATCH, f"batches of {TRL_BATCH:,}"), (len(rows), "all at once")):
            pack = trl_packer(rows, batch_size=batch_size)
            show(f"TRL pack_dataset bfd, {how}", rows, capacity=capacity, pack=pack)


def show_sigmas() -> None:
    """Print how full `best_fit` is for narrower and wider distributions."""
    print(f"\nbest_fit of {NUM_ONLINE:,} by sigma: fill (bound)")
    for name, (_, capacity) in DISTRIBUTIONS.items():
        cells = []
        for sigma in OTHER_SIGMAS:
            lengths_N = draw_lengths(name, num=NUM_ONLINE, sigma=sigma)
            plan = pack_sequences(lengths_N, capacity=capacity, method="best_fit")
            bound = lengths_N.sum() / (fewest_packs(lengths_N, capacity=capacity) * capacity)
            cells.append(f"{sigma}: {plan.fill:.3%} ({bound:.3%})")
        print(f"  {name:<8}", "   ".join(cells))


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--sigma", type=float, default=1.0)
    options = parser.parse_args()
    missing = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
    print(f"{len(os.sched_getaffinity(0))} cores, numpy {np.__version__}")
    if missing:
        print(f"TRL is left out: {' and '.join(missing)} missing; pip install 'trl==1.16.0' datasets")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HF_HOME": folder, "HF_HUB_OFFLINE": "1"}
        for name in DISTRIBUTIONS:
            compare(name, sizes=options.items, sigma=options.sigma, with_trl=not missing)
    show_sigmas()
    print(f"\nlargest memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
