#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kill runs at random moments, let the same command go on, and compare with a run that nobody kills.

    python scripts/kill_runs.py                                  every layout, 20 kills each, 200 steps
    python scripts/kill_runs.py --layouts tp2,tp2+dist --kills 5 --steps 60

Each attempt is `primus train` with the same arguments, its ranks killed with SIGKILL at a random moment: while it
starts, loads, trains, evaluates, saves, or writes a checkpoint in the background. Some attempts lose all ranks at once,
others one rank first. At the end the metrics file must equal that of the undisturbed run, to the last bit of every
number that is not a measurement of the machine. A line is printed for each layout; the exit code is 1 if one differs.

The ranks are forked from this process, which has imported everything, so that an attempt starts in a fraction of a
second.
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

with warnings.catch_warnings():
    # megatron-core's, about itself
    warnings.simplefilter("ignore")
    import primus.backends.megatron.trainer  # noqa: F401 - so that no attempt has to import it
    from primus.backends.megatron.reporting.continuation import MEASURED_FIELDS
    from primus.cli import main as primus_command

_TP2, _PP2, _CP2 = "tensor_model_parallel_size=2", "pipeline_model_parallel_size=2", "context_parallel_size=2"
_PLAIN: dict[str, tuple[int, tuple[str, ...]]] = {
    "1": (1, ()),
    "dp2": (2, ()),
    "tp2": (2, (_TP2,)),
    "tp2sp": (2, (_TP2, "sequence_parallel=true")),
    "pp2": (2, (_PP2,)),
    "pp2vpp2": (2, (_PP2, "virtual_pipeline_model_parallel_size=2")),
    "cp2": (2, (_CP2,)),
    "dp2tp2": (4, (_TP2,)),
    "tp2pp2": (4, (_TP2, _PP2)),
    "dp2cp2": (4, (_CP2,)),
}
_DISTRIBUTED = ("use_distributed_optimizer=true",)
LAYOUTS = {
    **_PLAIN,
    **{f"{name}+dist": (ranks, (*keys, *_DISTRIBUTED)) for name, (ranks, keys) in _PLAIN.items()},
    "dp2+overlap": (2, (*_DISTRIBUTED, "overlap_grad_reduce=true", "overlap_param_gather=true")),
}
"""Ranks and keys, by name."""

_KEYS = (
    *("num_layers=4", "hidden_size=32", "ffn_hidden_size=64", "num_attention_heads=4", "num_query_groups=2"),
    *("seq_length=128", "sft_truncation=right", "global_batch_size=8", "micro_batch_size=2", "sft_length_bucket=0"),
    *("lr_warmup_iters=3", "weight_decay=0.1", "log_interval=1", "tensorboard=false", "num_workers=1"),
    *("sft_dataset_name=rows.jsonl", "sft_validation_dataset_name=heldout.jsonl"),
    *("save_interval=5", "eval_interval=20", "most_recent_k=2"),
)
_WAIT_S = 3600.0


class Kill(NamedTuple):
    """One kill."""

    num_lines: int
    """Lines that the attempt had added to the metrics file."""
    is_writing: bool
    """Whether a checkpoint was being written."""
    is_one_first: bool
    """Whether one rank was killed some time before the others."""


class Killed(NamedTuple):
    """A run that was killed again and again."""

    folder: Path
    kills: list[Kill]


class Layout(NamedTuple):
    """What is run."""

    name: str
    ranks: int
    keys: tuple[str, ...]
    steps: int


def make_folder(folder: Path) -> Path:
    """A folder to run in, with its data."""
    folder.mkdir(parents=True)
    rows = (CHECKOUT / "examples/data/demo-validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(rows[:-9]), encoding="utf-8")
    (folder / "heldout.jsonl").write_text("".join(rows[-9:]), encoding="utf-8")
    return folder


def start(folder: Path, layout: Layout, *more: str) -> list[int]:
    """Fork the ranks of an attempt, and give their process ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["train", "--config", "tiny-multiturn-sft.yaml", *_KEYS, f"train_iters={layout.steps}", *layout.keys]
    pids = []
    for rank in range(layout.ranks):
        pid = os.fork()
        if pid == 0:
            if layout.ranks > 1:
                places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": layout.ranks, "MASTER_PORT": port}
                os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(n) for name, n in places.items()}})
            _be_a_rank(folder, rank, [*arguments, *more])
        pids.append(pid)
    return pids


def _be_a_rank(folder: Path, rank: int, arguments: list[str]) -> None:
    code = 1
    try:
        os.chdir(folder)
        log = os.open(f"rank_{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = primus_command(arguments)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # What this process has of the one that it was forked from is not its to close.
        os._exit(code)


def reap(pids: list[int]) -> list[int]:
    """Take the processes that have ended out of the list, and give their exit codes; -n for signal n."""
    codes = []
    for pid in tuple(pids):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            pids.remove(pid)
            codes.append(os.waitstatus_to_exitcode(status))
    return codes


def kill(pids: list[int]) -> None:
    """Kill processes, and wait until they are gone."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    while pids:
        reap(pids)
        time.sleep(0.001)


def run_until(pids: list[int], *, seconds: float, folder: Path) -> bool:
    """Let an attempt run for so long.

    Args:
        pids: Its ranks; those that have ended are taken out.
        seconds: How long.
        folder: Where its logs are.

    Returns:
        Whether it came to its end before.

    Raises:
        SystemExit: If a rank failed by itself.
    """
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        failed = [code for code in reap(pids) if code]
        if failed:
            kill(pids)
            logs = "\n".join(path.read_text(encoding="utf-8")[-3000:] for path in sorted(folder.glob("rank_*.log")))
            sys.exit(f"{folder}: a rank ended with {failed[0]}\n{logs}")
        if not pids:
            return True
        time.sleep(0.002)
    return False


def output_of(folder: Path) -> Path:
    """Where the run in a folder writes to."""
    return folder / "output" / "primus" / "user" / "tiny-multiturn-sft"


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics file, without what is measured of the machine."""
    path = output_of(folder) / "logs" / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [{name: value for name, value in json.loads(line).items() if name not in MEASURED_FIELDS} for line in lines]


def num_lines_of(folder: Path) -> int:
    """Lines of the metrics file, the last one perhaps cut off."""
    path = output_of(folder) / "logs" / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


def made_steps(folder: Path) -> int:
    """Steps that the newest checkpoint of a run has behind it."""
    path = output_of(folder) / "checkpoints" / "latest_checkpointed_iteration.txt"
    return int(path.read_text(encoding="utf-8")) if path.is_file() else 0


def undisturbed(folder: Path, layout: Layout) -> tuple[float, float]:
    """Make the run that nobody kills; gives the seconds until its first step, and those of all its steps."""
    make_folder(folder)
    began_s, first_s = time.monotonic(), 0.0
    pids = start(folder, layout)
    while not run_until(pids, seconds=0.02, folder=folder):
        if not first_s and num_lines_of(folder):
            first_s = time.monotonic()
        if time.monotonic() - began_s > _WAIT_S:
            kill(pids)
            sys.exit(f"{folder}: has not ended after {_WAIT_S:.0f} s")
    return first_s - began_s, time.monotonic() - first_s


def killed(
    folder: Path, layout: Layout, draw: random.Random, *, num_kills: int, start_s: float, steps_s: float
) -> Killed:
    """Kill a run so many times, and then let it come to its end; where it ends before, it was killed less often."""
    make_folder(folder)
    kills: list[Kill] = []
    while True:
        before = num_lines_of(folder)
        pids = start(folder, layout, f"async_save={str(draw.random() < 0.5).lower()}")
        if len(kills) == num_kills:
            if not run_until(pids, seconds=_WAIT_S, folder=folder):
                kill(pids)
                sys.exit(f"{folder}: has not ended after {_WAIT_S:.0f} s")
            return Killed(folder, kills)
        # On average an attempt makes a little less than its share of the steps that are left.
        share_s = steps_s * (1 - made_steps(folder) / layout.steps) / (num_kills - len(kills) + 1)
        moment_s = draw.uniform(0, start_s) if draw.random() < 0.2 else start_s + draw.uniform(0, 1.7 * share_s)
        if run_until(pids, seconds=moment_s, folder=folder):
            return Killed(folder, kills)
        is_writing = bool(list((output_of(folder) / "checkpoints").glob(".iter_*")))
        is_one_first = layout.ranks > 1 and draw.random() < 0.3
        if is_one_first:
            victim = draw.choice(pids)
            os.kill(victim, signal.SIGKILL)
            time.sleep(draw.uniform(0, 0.5))
        kill(pids)
        kills.append(Kill(max(num_lines_of(folder) - before, 0), is_writing, is_one_first))


def kill_layout(folder: Path, layout: Layout, *, num_kills: int, seed: str) -> str:
    """Kill runs in a layout so many times in all.

    Args:
        folder: Where the runs are made.
        layout: The layout.
        num_kills: How many times.
        seed: What the moments are drawn from.

    Returns:
        What was done, in a line.

    Raises:
        SystemExit: If a run's metrics are not those of the undisturbed one, or it left something behind.
    """
    draw = random.Random(f"{seed} {layout.name}")
    start_s, steps_s = undisturbed(folder / "undisturbed", layout)
    expected = metrics_of(folder / "undisturbed")
    assert [line["iteration"] for line in expected if "lm_loss" in line] == list(range(1, layout.steps + 1))
    kills: list[Kill] = []
    num_runs = 0
    while len(kills) < num_kills:
        missing = num_kills - len(kills)
        run = killed(folder / f"killed_{num_runs}", layout, draw, num_kills=missing, start_s=start_s, steps_s=steps_s)
        kills += run.kills
        num_runs += 1
        compare(metrics_of(run.folder), expected, folder=run.folder, seed=seed)
    return (
        f"{layout.name:<14} {layout.steps} steps, {len(kills)} kills of {num_runs} runs"
        f" ({sum(not kill.num_lines for kill in kills)} before the first step,"
        f" {sum(kill.is_writing for kill in kills)} while a checkpoint was written,"
        f" {sum(kill.is_one_first for kill in kills)} of one rank first): equal to the last bit"
    )


def compare(found: list[dict[str, Any]], expected: list[dict[str, Any]], *, folder: Path, seed: str) -> None:
    """Compare a run with the undisturbed one.

    Args:
        found: Its metrics.
        expected: Those of the undisturbed one.
        folder: Its folder, for messages.
        seed: What the moments of the kills were drawn from, for messages.

    Raises:
        SystemExit: If they differ.
    """
    if found != expected:
        pairs = zip(found, expected, strict=False)
        first = next((f"{mine}\n{other}" for mine, other in pairs if mine != other), f"{len(found)}, {len(expected)}")
        sys.exit(f"{folder}: seed {seed}: differs from the undisturbed run:\n{first}")
    checkpoints = sorted(path.name for path in (output_of(folder) / "checkpoints").iterdir())
    if len(checkpoints) != 3:
        sys.exit(f"{folder}: seed {seed}: two checkpoints are kept, and there are {checkpoints}")


def main() -> None:
    """Kill runs in each of the layouts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="names, with commas between them")
    parser.add_argument("--kills", type=int, default=20, help="in each layout")
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--packed", action="store_true", help="several conversations in a sequence")
    parser.add_argument("--bf16", action="store_true", help="in bfloat16")
    parser.add_argument("--seed", default=str(time.time_ns()), help="of the moments; one of the clock by default")
    parser.add_argument("--folder", type=Path, help="an empty one to run in, which stays; by default one that goes")
    options = parser.parse_args()
    more = (*(["enable_packed_sequences=true"] * options.packed), *(["bf16=true"] * options.bf16))
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.layouts.split(","):
            ranks, keys = LAYOUTS[name]
            began_s = time.monotonic()
            layout = Layout(name, ranks, (*keys, *more), options.steps)
            folder = (options.folder or Path(temporary)).resolve() / name
            line = kill_layout(folder, layout, num_kills=options.kills, seed=options.seed)
            print(f"{line}, {time.monotonic() - began_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
