# SPDX-License-Identifier: Apache-2.0
"""Plain facts that are the same on every rank, or the run does not begin."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import megatron.core
import torch

import primus
from primus.backends.megatron.agreement.ranks import RankName, answers_of_all, name_some, this_rank
from primus.backends.megatron.distributed import Process, on_first_rank
from primus.config.schema import TrainConfig
from primus.errors import LayoutError

_OF_EACH_MACHINE = frozenset(
    {
        # Where something lies; what lies there is compared.
        *("dataset_name", "hf_path", "load", "save", "sft_cache_dir", "sft_chat_template", "sft_dataset_name"),
        *("sft_validation_dataset_name", "tokenizer_model", "workspace"),
        # No number of the run depends on these.
        *("num_workers", "sft_peak_tflops", "tensorboard", "wandb_exp_name", "wandb_project", "wandb_save_dir"),
    }
)
_MAX_LISTED = 8
_MAX_LETTERS = 100

Remedy = str
"""What to do about facts that differ."""
_Answer = tuple[str, Remedy]
_NOTHING: _Answer = ("not there", "")


def require_same_settings(config: TrainConfig, *, process: Process, resume: str) -> None:
    """Compare configuration, software and kind of device; all ranks call it together, before they read any data.

    Where files lie may be said differently on each machine, and so may how they are read.

    Args:
        config: The run, as this rank has it.
        process: This process.
        resume: Whether it goes on from a checkpoint.

    Raises:
        LayoutError: As for `require_same`.
    """
    dumped = config.model_dump(mode="json")
    trainer = dumped.pop("trainer")
    settings = {
        name: value
        for name, value in _flat({**dumped, **trainer, "--resume": resume})
        if _OF_EACH_MACHINE.isdisjoint(name.split("."))
    }
    require_same(
        {
            "start all ranks with the same configuration": settings,
            "install the same on all machines": {
                "version of primus": primus.__version__,
                "version of torch": str(torch.__version__),
                "version of megatron-core": megatron.core.__version__,
            },
            "give every rank the same kind of device": {"device": process.device.type},
        }
    )


def require_same(facts: Mapping[Remedy, Mapping[str, object]]) -> None:
    """Compare facts; all ranks call it together, connected.

    Args:
        facts: What to do if they differ, and what this rank has under their names: plain JSON data.

    Raises:
        LayoutError: If ranks have different facts; on all ranks, a line for each fact.
    """
    own = {
        name: (json.dumps(value, sort_keys=True), remedy)
        for remedy, part in facts.items()
        for name, value in _flat(part)
    }
    first, expected = on_first_rank(lambda: (this_rank(), own))
    # Nearly always nothing, however many facts there are.
    differing = tuple(
        (name, own.get(name, _NOTHING))
        for name in sorted(own.keys() | expected.keys())
        if own.get(name) != expected.get(name)
    )
    by_fact: dict[str, dict[_Answer, list[RankName]]] = defaultdict(lambda: defaultdict(list))
    for rank, differences in answers_of_all(differing):
        for name, answer in differences:
            by_fact[name][answer].append(rank)
    if by_fact:
        raise LayoutError(*_problems(by_fact, expected=expected, first=first))


def _problems(
    by_fact: Mapping[str, Mapping[_Answer, Sequence[RankName]]],
    *,
    expected: Mapping[str, _Answer],
    first: RankName,
) -> Sequence[str]:
    """A line for each fact, as far as a person reads."""
    problems = []
    for name, answers in by_fact.items():
        value, _ = expected.get(name, _NOTHING)
        others = name_some(f"{_shortened(other)} on {name_some(ranks)}" for (other, _), ranks in answers.items())
        [(_, remedy), *_] = [expected[name]] if name in expected else answers
        problems.append(f"{name}: is {_shortened(value)} on {first}, and {others}; {remedy}")
    num_more = len(problems) - _MAX_LISTED
    if num_more > 0:
        return [*problems[:_MAX_LISTED], f"{num_more} more: differ as well; see to those above first"]
    return problems


def _flat(facts: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Each fact by itself, so that a message shows the one entry of a long list that differs."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield from _flat(dict(zip(map(str, range(len(value))), value, strict=True)), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_LETTERS else f"{text[:_MAX_LETTERS]}..."
