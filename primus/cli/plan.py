# SPDX-License-Identifier: Apache-2.0
"""`primus train --plan`: the layouts of a run on a number of GPUs, the fastest that fits first."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from primus.backends.megatron.data.datasets import build_datasets
from primus.backends.megatron.planning.devices import GIB, GPUS, GPUS_PER_NODE, NETWORK_BYTES_PER_S, Machine
from primus.backends.megatron.planning.plan import build_run_shape
from primus.backends.megatron.planning.search import USABLE_SHARE, Candidate, search_layouts
from primus.backends.megatron.planning.step_time import LINK_SHARE
from primus.config.schema import TrainConfig
from primus.errors import ConfigError, LayoutError
from primus.sft.tokenizer import load_tokenizer

_MOST_ROWS = 12
"""Layouts of a table; each differs from the others in tensor, pipeline or context parallel size."""

_REMEDIES = "take more GPUs, shorter sequences (seq_length), or adapters (lora)"

_HEADER = "   TP  PP  VPP  CP   DP  micro-batch x passes  recompute   GiB  step, s  tokens/s  MFU  other time"


def print_layouts(config: TrainConfig, *, world_size: int, machine: Machine | None, as_json: bool) -> None:
    """Print the layouts that fit, and the overrides of the fastest.

    Args:
        config: The run; its own layout does not matter.
        world_size: GPUs.
        machine: Their kind, if it is known.
        as_json: Print one JSON object with all layouts, and nothing else.

    Raises:
        ConfigError: If the GPUs are not known, or the data is a stream.
        LayoutError: If no layout fits.
    """
    if machine is None:
        raise ConfigError(
            f"--plan: there is no GPU here, and none is named; add --gpu with one of "
            f"{', '.join(gpu.name for gpu in GPUS)}, or --gpu-memory"
        )
    if config.trainer.sft_streaming:
        raise ConfigError(
            "--plan: needs the lengths of all data, and a stream is read while it is trained; add sft_streaming=false"
        )
    tokenizer = load_tokenizer(config.trainer.tokenizer_model or "")
    train, validation = build_datasets(config, tokenizer=tokenizer, writes_quarantine=False)
    run, _, _ = build_run_shape(config, train=train, validation=validation)
    candidates = search_layouts(run, world_size=world_size, gpu=machine.gpu, memory_gib=machine.memory_gib)
    fitting = [candidate for candidate in candidates if candidate.fits(machine.memory_gib)]
    if as_json:
        print(json.dumps(_as_json(candidates, world_size=world_size, machine=machine)))
        return
    if not fitting:
        raise LayoutError(_nothing_fits(candidates, world_size=world_size, machine=machine))
    print("\n".join([*_table(fitting, len(candidates), world_size=world_size, machine=machine), *_best(fitting[0])]))


def nearest_layouts(own: Candidate, candidates: Sequence[Candidate], *, memory_gib: float) -> list[str]:
    """A table of the layouts that fit and differ least from one that does not.

    Args:
        own: The layout that does not fit.
        candidates: All layouts.
        memory_gib: Memory of a GPU.

    Returns:
        The lines; a sentence if no layout fits.
    """
    fitting = [candidate for candidate in candidates if candidate.fits(memory_gib)]
    if not fitting:
        return [f"  no layout of so many GPUs fits; {_REMEDIES}"]

    def distance(candidate: Candidate) -> tuple[int, float]:
        changed = sum(candidate.overrides[name] != value for name, value in own.overrides.items())
        return changed, candidate.time.total

    nearest = sorted(fitting, key=distance)[:3]
    return [
        "nearest layouts that fit",
        *(f"  {' '.join(_changed(own, candidate))}  ({_memory_and_time(candidate)})" for candidate in nearest),
    ]


def _changed(own: Candidate, candidate: Candidate) -> list[str]:
    return [f"{name}={_yaml(value)}" for name, value in candidate.overrides.items() if own.overrides[name] != value]


def _memory_and_time(candidate: Candidate) -> str:
    return f"{candidate.memory.total / GIB:.0f} GiB, {candidate.time.total:.3g} s per step"


def _table(fitting: Sequence[Candidate], num_possible: int, *, world_size: int, machine: Machine) -> list[str]:
    best_of: dict[tuple[int, int, int], Candidate] = {}
    for candidate in fitting:
        sizes = candidate.sizes
        best_of.setdefault((sizes.tensor, sizes.pipeline, sizes.context), candidate)
    shown = list(best_of.values())[:_MOST_ROWS]
    of_all = f"{len(fitting)} of {num_possible} possible ones fit"
    return [
        f"layouts on {world_size} x {machine.name}, {machine.memory_gib:g} GiB each: {of_all}",
        "the fastest of each tensor, pipeline and context parallel size",
        _HEADER,
        *(_table_row(candidate) for candidate in shown),
        "",
        *(f"  {line}" for line in _assumptions(machine)),
    ]


def _table_row(candidate: Candidate) -> str:
    sizes, memory, time = candidate.sizes, candidate.memory.total / GIB, candidate.time
    chunks = sizes.virtual_pipeline if sizes.virtual_pipeline > 1 else "-"
    return (
        f"  {sizes.tensor:>3} {sizes.pipeline:>3} {chunks:>4} {sizes.context:>3} {sizes.data:>4}"
        f"{candidate.micro_batch_size:>14} x {candidate.layout.num_micro_batches:<5} {_recompute(candidate):>9}"
        f"{memory:>6.0f} {time.total:>8.3g} {candidate.tokens_per_second:>9,.0f} {100 * candidate.mfu:>3.0f}%"
        f"  {_spent_on(candidate)}"
    )


def _recompute(candidate: Candidate) -> str:
    again = candidate.recompute
    if again.granularity != "full":
        return "-"
    return f"{again.num_layers} layers" if again.method == "block" else "all"


def _spent_on(candidate: Candidate) -> str:
    """What takes the most time besides computing."""
    time = asdict(candidate.time)
    del time["compute"]
    name, seconds = max(time.items(), key=lambda item: item[1])
    share = seconds / candidate.time.total
    return f"{name} {share:.0%}" if share >= 0.01 else ""


def _assumptions(machine: Machine) -> list[str]:
    gpu = machine.gpu
    peak = f"{gpu.peak_tflops:,g}"
    link, network = gpu.link_bytes_per_s / 1e9, NETWORK_BYTES_PER_S / 1e9
    return [
        f"Memory may be filled to {USABLE_SHARE:.0%}. Matrix products run at {gpu.matmul_share:.0%} of {peak} TFLOP/s,",
        f"links at {LINK_SHARE:.0%} of {link:,.0f} GB/s in a node of {GPUS_PER_NODE}, {network:.0f} GB/s beyond it.",
        "Times are for comparing layouts.",
    ]


def _best(candidate: Candidate) -> list[str]:
    return [
        "",
        "overrides of the fastest",
        *(f"  {name}: {_yaml(value)}" for name, value in candidate.overrides.items()),
    ]


def _yaml(value: object) -> str:
    """A value as YAML has it."""
    return json.dumps(value).strip('"')


def _nothing_fits(candidates: Sequence[Candidate], *, world_size: int, machine: Machine) -> str:
    where = f"{world_size} x {machine.name} of {machine.memory_gib:g} GiB"
    if not candidates:
        return (
            f"--plan: the run has no possible layout on {world_size} GPUs; change their number, global_batch_size or "
            "seq_length"
        )
    least = min(candidates, key=lambda candidate: candidate.memory.total).memory.total / GIB
    return (
        f"--plan: no layout fits on {where}: the smallest takes {least:.0f} GiB, and {USABLE_SHARE:.0%} of the memory "
        f"is {USABLE_SHARE * machine.memory_gib:.0f}; {_REMEDIES}"
    )


def _as_json(candidates: Sequence[Candidate], *, world_size: int, machine: Machine) -> dict[str, Any]:
    return {
        "gpus": world_size,
        "gpu": None if machine.is_assumed else machine.gpu.name,
        "memory_gib": machine.memory_gib,
        "assumptions": {
            "usable_memory_share": USABLE_SHARE,
            "peak_tflops": machine.gpu.peak_tflops,
            "matmul_share": machine.gpu.matmul_share,
            "link_bytes_per_s": machine.gpu.link_bytes_per_s,
            "link_share": LINK_SHARE,
            "gpus_per_node": GPUS_PER_NODE,
            "network_bytes_per_s_per_gpu": NETWORK_BYTES_PER_S,
        },
        "layouts": [
            {
                "overrides": dict(candidate.overrides),
                "data_parallel_size": candidate.sizes.data,
                "num_micro_batches": candidate.layout.num_micro_batches,
                "fits": candidate.fits(machine.memory_gib),
                "memory_bytes": {**asdict(candidate.memory), "total": candidate.memory.total},
                "step_time_s": {**asdict(candidate.time), "total": candidate.time.total},
                "tokens_per_second": candidate.tokens_per_second,
                "mfu": candidate.mfu,
            }
            for candidate in candidates
        ],
    }
