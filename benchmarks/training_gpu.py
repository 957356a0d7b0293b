# SPDX-License-Identifier: Apache-2.0
"""What training reaches on one GPU: tokens per second, useful operations, memory, and whether the loss is right.

    scripts/gpu_check [--model llama3.2_1B.yaml] [--seq-length 8192] [--steps 12] [--only NAME ...] [--output FILE]

Each layout that fits on one GPU trains in a process of its own, in bfloat16 unless its name says otherwise, from random
weights, on synthetic conversations (log-normal, median a twentieth of a pack, sigma 0.9; the assistant wrote
60 %). Figures are medians over the steps behind the first ones, in which kernels are chosen and compiled.

A useful token is a position that is not padding, and useful operations are those that these tokens need: nothing that
is computed again, no logits where there is no target, and attention within each conversation only (see
primus/backends/megatron/planning/flops.py). Their share is that of the rate which products of bfloat16 matrices reach
on the same GPU, measured first.

The losses of one pack are those of the first step from the same weights: in float32 on the CPU, and on the GPU.

Where there is no GPU, `--tiny` runs all of it on the CPU, with a model that tells nothing about speed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from training_cpu import make_conversations  # type: ignore[import-not-found]  # it lies beside this file

from primus.config.schema import TrainConfig

SEED, PAD = 1234, 0
NUM_CONVERSATIONS = 4000
PRESETS = Path(__file__).parents[1] / "primus" / "config" / "presets" / "models"
TINY_MODEL = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
}
TINY_LENGTH = 256
GIB = 2**30
COLUMNS = (
    "layout", "useful tokens/s", "ms a step", "fill", "useful TFLOP/s", "of the products", "peak memory, GiB",
    "first loss",
)  # fmt: skip
TITLES = (f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to train."""

    keys: dict[str, Any] = field(default_factory=dict)
    """What it sets besides the model."""
    packs: int = 8
    """Packs of a step."""
    is_timed: bool = True
    """Whether it is to tell how fast it is; if not, one step is enough."""
    on_cpu: bool = False
    """Whether it runs on the CPU, also where there is a GPU."""


LAYOUTS = {
    "packed": Layout(),
    "packed, 2 at once": Layout(keys={"micro_batch_size": 2}),
    "packed, distributed optimizer": Layout(keys={"use_distributed_optimizer": True}),
    "packed, attention recomputed": Layout(keys={"recompute_granularity": "selective"}),
    "packed, all recomputed": Layout(keys={"recompute_granularity": "full"}),
    "packed, LoRA": Layout(keys={"lora": {"enabled": True}}),
    # As many tokens in a step as about eight packs have.
    "padded, 16 at once": Layout(
        keys={"sft_packing": "none", "micro_batch_size": 16, "global_batch_size": 112, "sft_length_bucket": 1120}
    ),
    "one pack, float32 on the CPU": Layout(keys={"bf16": False}, packs=1, is_timed=False, on_cpu=True),
    "one pack, float32": Layout(keys={"bf16": False}, packs=1, is_timed=False),
    "one pack": Layout(packs=1, is_timed=False),
}


def run_layout(layout: Layout, *, model: dict[str, Any], seq_length: int, steps: int, folder: Path) -> None:
    """Train in this process; the metrics file says how it went.

    Args:
        layout: How.
        model: The model's keys.
        seq_length: Positions of a pack.
        steps: How many steps.
        folder: Gets the output of the run.
    """
    import logging  # noqa: PLC0415

    from primus.backends.megatron.core.datasets.training_sequences import TrainingSequences  # noqa: PLC0415
    from primus.backends.megatron.distributed import this_process  # noqa: PLC0415
    from primus.backends.megatron.replacement import replaced  # noqa: PLC0415
    from primus.backends.megatron.step import StepOutcome, TrainingStep  # noqa: PLC0415
    from primus.backends.megatron.trainer import TokenizerFacts, train_on  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keys = {
        **model,
        "seq_length": seq_length,
        "sft_packing": "best_fit",
        "micro_batch_size": 1,
        "global_batch_size": layout.packs,
        "train_iters": steps + 1,
        "lr": 1e-5,
        "lr_warmup_iters": 0,
        "lr_decay_style": "constant",
        "seed": SEED,
        "tensorboard": False,
        **layout.keys,
    }
    config = TrainConfig(exp_name="run", workspace=folder, trainer=keys)
    conversations = make_conversations(
        NUM_CONVERSATIONS, median=seq_length // 20, longest=seq_length // 2, vocabulary=model["vocab_size"]
    )
    data = TrainingSequences(
        conversations, packing=config.trainer.packing, max_seq_length=seq_length, pad_id=PAD, seed=SEED
    )
    original, made = TrainingStep.run, 0

    def run(step: TrainingStep, *args: Any, **options: Any) -> StepOutcome:
        nonlocal made
        if made == steps:
            # Behind the last step a checkpoint would be written.
            raise SystemExit(0)
        made += 1
        return original(step, *args, **options)

    with replaced(TrainingStep, "run", run):
        tokenizer = TokenizerFacts(name="none", vocab_size=model["vocab_size"], adds_bos=False)
        train_on(config, process=this_process(), train=data, validation=None, tokenizer=tokenizer)


def matmul_tflops(device: str, *, size: int) -> float:
    """Measure the rate of products of square bfloat16 matrices.

    Args:
        device: Where.
        size: Rows and columns.

    Returns:
        10^12 operations per second, of the fastest of five rounds.
    """
    import torch  # noqa: PLC0415

    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    num_products, best = 20 if device == "cuda" else 2, 0.0
    for _ in range(5):
        wait()
        began_s = time.perf_counter()
        for _ in range(num_products):
            torch.matmul(left, right)
        wait()
        best = max(best, 2 * size**3 * num_products / (time.perf_counter() - began_s) / 1e12)
    return best


def read_run(folder: Path) -> list[dict[str, Any]]:
    """The steps of a run's metrics file."""
    (path,) = folder.rglob("metrics.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def row_of(name: str, steps: list[dict[str, Any]], *, matmul: float) -> str:
    """A line of the table.

    Args:
        name: The layout's.
        steps: Its steps.
        matmul: The rate of matrix products.

    Returns:
        The line, in Markdown.
    """
    if not LAYOUTS[name].is_timed:
        return f"| {name} | | | | | | | {steps[0]['lm_loss']:.5f} |"
    later = steps[len(steps) // 3 :]

    def median(key: str) -> float:
        return float(np.median([step[key] for step in later]))

    tflops = median("tflops_per_device")
    cells = [
        name,
        f"{median('tokens_per_second'):,.0f}",
        f"{1000 * median('step_time_s'):,.0f}",
        f"{100 * median('fill'):.1f} %",
        f"{tflops:,.1f}",
        f"{100 * tflops / matmul:.1f} %",
        f"{max(step['peak_memory_bytes'] for step in steps) / GIB:.1f}",
        f"{steps[0]['lm_loss']:.5f}",
    ]
    return f"| {' | '.join(cells)} |"


def check(options: argparse.Namespace, *, folder: Path) -> int:
    """Run the layouts, each in a process of its own, and write the table.

    Args:
        options: The command line.
        folder: For the output of the runs.

    Returns:
        How many layouts failed.
    """
    import torch  # noqa: PLC0415

    has_gpu = torch.cuda.is_available()
    if not has_gpu and not options.tiny:
        print("scripts/gpu_check: there is no GPU; start it where one is, or try it out with --tiny", file=sys.stderr)
        sys.exit(2)
    matmul = matmul_tflops("cuda" if has_gpu else "cpu", size=8192 if has_gpu else 256)
    device = torch.cuda.get_device_name() if has_gpu else "CPU, which tells nothing about speed"
    model_name = "a tiny Llama" if options.tiny else options.model
    length = TINY_LENGTH if options.tiny else options.seq_length
    setup = f"{device}, torch {torch.__version__}; {model_name}, packs of {length:,} positions"
    lines = [f"{setup}; products of bfloat16 matrices {matmul:,.1f} TFLOP/s", "", *TITLES]
    print("\n".join(lines), flush=True)
    reasons, num_failed = [], 0
    for number, (name, layout) in enumerate(LAYOUTS.items()):
        if options.only and name not in options.only:
            continue
        run_folder = folder / str(number)
        run_folder.mkdir()
        no_gpu = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""} if layout.on_cpu else {}
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--run", name, "--folder", str(run_folder)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **no_gpu},
        )
        if done.returncode:
            num_failed += 1
            last_line = (done.stderr.strip().splitlines() or ["no word"])[-1]
            lines.append(f"| {name} | failed: {last_line} | | | | | | |")
        else:
            lines.append(row_of(name, read_run(run_folder), matmul=matmul))
            reasons += [f"{name}: {line}" for line in done.stderr.splitlines() if line.startswith("model: ")]
        print(lines[-1], flush=True)
    print("\n" + "\n".join(reasons))
    if options.output is not None:
        options.output.write_text("\n".join([*lines, "", *(f"- {reason}" for reason in reasons), ""]), encoding="utf-8")
    return num_failed


def main() -> None:
    """Read the command line, and check."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama3.2_1B.yaml", help="a model preset")
    parser.add_argument("--seq-length", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=12, help="steps of each layout")
    parser.add_argument("--only", nargs="+", choices=LAYOUTS, metavar="NAME", help="these layouts only")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that everything runs")
    parser.add_argument("--output", type=Path, help="write the table to this file, in Markdown")
    parser.add_argument("--run", choices=LAYOUTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        layout = LAYOUTS[options.run]
        model = TINY_MODEL if options.tiny else yaml.safe_load((PRESETS / options.model).read_text(encoding="utf-8"))
        run_layout(
            layout,
            model=model,
            seq_length=TINY_LENGTH if options.tiny else options.seq_length,
            steps=options.steps if layout.is_timed else 1,
            folder=options.folder,
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(min(check(options, folder=Path(temporary)), 1))


if __name__ == "__main__":
    main()
