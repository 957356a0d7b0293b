# SPDX-License-Identifier: Apache-2.0
"""`primus train --dry-run`: read everything, check everything, print the plan, train nothing."""

import sys
import textwrap
from collections.abc import Sequence
from itertools import pairwise

from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.data.datasets import build_datasets, build_stream
from primus.backends.megatron.planning.devices import Machine
from primus.backends.megatron.planning.plan import Plan, build_plan
from primus.backends.megatron.planning.search import search_layouts
from primus.cli.parsing import HELP_WIDTH
from primus.cli.plan import nearest_layouts
from primus.cli.preview import preview
from primus.config.schema import TrainConfig
from primus.sft.streaming import StreamedBatch
from primus.sft.tokenizer import load_tokenizer

# Conversations of a packed sequence that are shown; the rest is counted.
_MOST_CONVERSATIONS = 3


def print_plan(config: TrainConfig, *, world_size: int, machine: Machine | None) -> None:
    """Print the ledger, the plan and one training sequence.

    Args:
        config: The run.
        world_size: Ranks to plan for.
        machine: Their GPUs, if they are known.
    """
    tokenizer = load_tokenizer(config.trainer.tokenizer_model or "")
    if config.trainer.sft_streaming:
        stream, _, _ = build_stream(config, tokenizer=tokenizer, state=None, writes_quarantine=False)
        print("\n".join(_first_batch(next(iter(stream)))))
        return
    train, validation = build_datasets(config, tokenizer=tokenizer, writes_quarantine=False)
    plan = build_plan(config, train=train, validation=validation, world_size=world_size, machine=machine)
    for title, data in (("rows", train), ("validation rows", validation)):
        if data is not None and (data is train or data.ledger is not train.ledger):
            print("\n".join([title, *_wrapped(data.ledger.lines())]))
    print("\n".join([*plan.lines(), *_nearest_layouts(plan)]))
    print("\n".join(_first_sequence(train)))


def _nearest_layouts(plan: Plan) -> list[str]:
    """What would fit, if the GPUs are known and the plan does not."""
    machine, own = plan.machine, plan.candidate
    if machine is None or own is None or plan.fits:
        return []
    found = search_layouts(plan.run, world_size=plan.layout.world_size, gpu=machine.gpu, memory_gib=machine.memory_gib)
    return nearest_layouts(own, found, memory_gib=machine.memory_gib)


def _first_batch(batch: StreamedBatch) -> list[str]:
    """What can be said of a stream before it is read."""
    counts = (
        f"{len(batch)} sequences with {len(batch.sequences)} conversations,"
        f" {int(batch.num_positions_P.sum()):,} positions, {int(batch.num_targets_P.sum()):,} of them trained"
    )
    return [
        "stream: it is read while it is trained, so there is no plan; sft_streaming=false gives one",
        f"first global batch: {counts}",
        *(f"  {', '.join(batch.origins(pack)[:_MOST_CONVERSATIONS])}" for pack in range(min(len(batch), 3))),
    ]


def _wrapped(lines: Sequence[str]) -> list[str]:
    """Lines of at most 100 columns, the rest of a long one indented below it; paths stay whole."""
    wrapper = textwrap.TextWrapper(
        width=HELP_WIDTH, initial_indent="  ", subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False
    )
    return [part for line in lines for part in wrapper.wrap(line)]


def _first_sequence(train: SFTDataset) -> list[str]:
    in_colour = sys.stdout.isatty()
    sequence = train[0]
    what = "on green" if in_colour else "between \u27e6 and \u27e7"
    bounds = sequence["cu_seqlens"].tolist() if "cu_seqlens" in sequence else [0, int(train.num_positions_N[0])]
    lines = [f"first sequence ({train.origin(0)}); what is trained stands {what}"]
    for number, (first, last) in enumerate(pairwise(bounds), 1):
        if number > 1:
            lines.append(f"  -- conversation {number} of {len(bounds) - 1} in this sequence")
        if number > _MOST_CONVERSATIONS:
            lines[-1] = f"  -- {len(bounds) - number} more of {len(bounds) - 1} conversations in this sequence"
            break
        lines += preview(
            input_ids_S=sequence["input_ids"][first:last].tolist(),
            labels_S=sequence["labels"][first:last].tolist(),
            loss_mask_S=sequence["loss_mask"][first:last].tolist(),
            num_positions=last - first,
            tokenizer=train.tokenizer,
            in_colour=in_colour,
        )
    return lines
