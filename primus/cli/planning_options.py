# SPDX-License-Identifier: Apache-2.0
"""The options of `primus train` that plan without training: --plan, --gpus, --gpu, --gpu-memory, --json."""

import argparse

from primus.backends.megatron.planning.devices import GPUS, Machine, choose_machine
from primus.cli.parsing import positive_int
from primus.config.schema import TrainerConfig


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument(
        "--plan", action="store_true", help="print the layouts that fit, the fastest first, and train nothing"
    )
    parser.add_argument(
        "--world-size",
        "--gpus",
        type=positive_int,
        metavar="N",
        help="with --dry-run or --plan: ranks, or GPUs, to plan for, on all machines",
    )
    parser.add_argument(
        "--gpu", metavar="NAME", help=f"with them: kind of GPU, one of {', '.join(gpu.name for gpu in GPUS)}"
    )
    parser.add_argument(
        "--gpu-memory", type=_gibibytes, metavar="GIB", help="with them: memory of a GPU (default: of that kind)"
    )
    parser.add_argument("--json", action="store_true", help="with --plan: print all layouts as one JSON object")


def problems(options: argparse.Namespace) -> list[str]:
    """Say what is wrong with the options together.

    Args:
        options: The parsed options.

    Returns:
        A message for each problem.
    """
    found = []
    is_planned = options.dry_run or options.plan
    if options.world_size is not None and not is_planned:
        found.append("--world-size: only plans for that many ranks; add --dry-run or --plan, or use --nproc-per-node")
    if (options.gpu is not None or options.gpu_memory is not None) and not is_planned:
        name = "--gpu" if options.gpu is not None else "--gpu-memory"
        found.append(f"{name}: only plans for such a GPU; add --dry-run or --plan, or leave it out")
    if options.json and not options.plan:
        found.append("--json: is for --plan; add it, or leave --json out")
    if options.plan and options.dry_run:
        found.append("--plan: compares all layouts, and --dry-run looks at one; give one of them")
    return found


def machine(options: argparse.Namespace, trainer: TrainerConfig) -> Machine | None:
    """Decide which GPUs to plan for.

    Args:
        options: The parsed options.
        trainer: The trainer module of the run.

    Returns:
        The GPUs that are named, or those of this machine; None if neither is there.

    Raises:
        ConfigError: If there is no such kind of GPU.
    """
    from primus.backends.megatron.utilization import local_gpu

    return choose_machine(
        name=options.gpu,
        memory_gib=options.gpu_memory,
        peak_tflops=trainer.sft_peak_tflops,
        local=None if options.gpu is not None else local_gpu(),
    )


def _gibibytes(text: str) -> float:
    """A number of gibibytes above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
