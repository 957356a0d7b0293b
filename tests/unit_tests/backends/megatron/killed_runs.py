# SPDX-License-Identifier: Apache-2.0
"""As a program: tiny runs that are killed at random moments and continued, until all of them are done.

The processes are forked from this one, which has imported everything, so that a run takes a second.
"""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.unit_tests.backends.megatron.tiny_run import run_tiny, tiny_config

KEYS: dict[str, Any] = {"save_interval": 4, "eval_interval": 0, "sft_packing": "best_fit"}


def start(folder: Path, *, num_ranks: int, keys: dict[str, Any]) -> list[int]:
    """Fork the ranks of a run, and give their process ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(num_ranks):
        pid = os.fork()
        if pid == 0:
            _be_a_rank(folder, rank=rank, num_ranks=num_ranks, port=port, keys=keys)
        pids.append(pid)
    return pids


def _be_a_rank(folder: Path, *, rank: int, num_ranks: int, port: int, keys: dict[str, Any]) -> None:
    places = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": num_ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    if num_ranks > 1:
        os.environ.update({name: str(value) for name, value in places.items()})
    code = 1
    try:
        run_tiny(tiny_config(folder, **KEYS, train_iters=int(sys.argv[4]), **keys), validation=None)
        code = 0
    finally:
        if code:
            (folder / f"rank_{rank}.txt").write_text(traceback.format_exc())
        # What this process has of the one that it was forked from is not its to close.
        os._exit(code)


def ended(pids: list[int]) -> bool:
    """Whether all of the processes have ended well; leaves if one of them has not."""
    states = [os.waitpid(pid, os.WNOHANG) for pid in pids]
    for pid, state in list(zip(pids, states, strict=True)):
        if state[0]:
            pids.remove(pid)
        if state[0] and state[1]:
            for other in pids:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"process {pid} ended with {state[1]}: {[p.read_text() for p in Path().glob('*/rank_*.txt')]}")
    return not pids


def hashes(folder: Path) -> list[tuple[int, str]]:
    """The steps of a run and their batches, as its metrics file has them."""
    lines = (folder / "primus" / "user" / "tiny" / "logs" / "metrics.jsonl").read_text().splitlines()
    return [(line["iteration"], line["batch_hash"]) for line in map(json.loads, lines)]


def undisturbed(folder: Path) -> float:
    """Make the run that nobody kills, and give its seconds."""
    began_s = time.monotonic()
    pids = start(folder, num_ranks=1, keys={"num_workers": 0})
    while not ended(pids):
        time.sleep(0.005)
    return time.monotonic() - began_s


def killed(folder: Path, draw: random.Random, *, longest_s: float, num_kills: int) -> list[dict[str, Any]]:
    """Kill a run again and again, and let it go on with other ranks and threads, until it is done."""
    kills: list[dict[str, Any]] = []
    while True:
        num_ranks, num_workers = draw.choice([1, 1, 2]), draw.randint(0, 4)
        keys: dict[str, Any] = {"num_workers": num_workers, "micro_batch_size": draw.choice([1, 2, 4])}
        keys["async_save"], keys["most_recent_k"] = draw.random() < 0.5, draw.choice([None, 1, 2])
        pids = start(folder, num_ranks=num_ranks, keys=keys)
        until_s = time.monotonic() + (draw.uniform(0, longest_s * num_ranks) if len(kills) < num_kills else 600)
        while time.monotonic() < until_s:
            if ended(pids):
                return kills
            time.sleep(0.001)
        for pid in draw.sample(pids, len(pids)):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        kills.append({"num_ranks": num_ranks, **keys})


def main() -> None:
    """Print what the undisturbed run and the killed ones trained, and how they were killed."""
    wanted, seed = int(sys.argv[2]), int(sys.argv[3])
    os.chdir(sys.argv[1])
    Path("undisturbed").mkdir()
    draw = random.Random(seed)
    longest_s = undisturbed(Path("undisturbed"))
    kills: list[dict[str, Any]] = []
    runs: list[list[tuple[int, str]]] = []
    while len(kills) < wanted:
        folder = Path(f"killed_{len(runs)}")
        folder.mkdir()
        kills += killed(folder, draw, longest_s=longest_s, num_kills=wanted - len(kills))
        runs.append(hashes(folder))
    json.dump({"expected": hashes(Path("undisturbed")), "found": runs, "kills": kills}, sys.stdout)


if __name__ == "__main__":
    main()
