# SPDX-License-Identifier: Apache-2.0
"""Whether ranks that must have the same weights have them, to the last bit.

Data-parallel replicas begin alike and are given the same gradients, so they stay alike. If they do not, a file or a
device is not what it should be, and nothing else would show it: each replica's loss looks right.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from primus.backends.megatron.agreement.ranks import RankName, answers_of_all, dissenters, name_ranks
from primus.backends.megatron.model.initialisation import name_in_whole_model
from primus.errors import TrainingError

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Group = tuple[str, int, int]
"""Ranks that have something in common: what they share out, and their two other places in the layout."""


def require_equal_replicas(
    model: Sequence[DistributedDataParallel], *, when: str, remedy: str, among_tensor_ranks: bool = False
) -> None:
    """Compare the weights of data-parallel replicas; all ranks call it together.

    Args:
        model: The chunks of the model on this rank, with their parameters gathered.
        when: What the message begins with.
        remedy: What to do if they differ.
        among_tensor_ranks: Also compare what each tensor-parallel rank has whole. While training, on a GPU, rounding
            may part these, since each computes the gradients of its own.

    Raises:
        TrainingError: If they differ; on all ranks, with a weight and the ranks that have another than most.
    """
    own = _sums_by_group(model, among_tensor_ranks=among_tensor_ranks)
    digests = tuple((group, _digest(sums)) for group, sums in own.items())
    by_group: dict[Group, list[tuple[RankName, str]]] = defaultdict(list)
    for rank, answer in answers_of_all(digests):
        for group, digest in answer:
            by_group[group].append((rank, digest))
    split = next((group for group, answers in by_group.items() if len({digest for _, digest in answers}) > 1), None)
    if split is None:
        return
    blamed = dissenters(by_group[split])
    sums = [dict(answer) for _, answer in answers_of_all(tuple(own.get(split, {}).items())) if answer]
    names = [name for name in sums[0] if len({answer.get(name) for answer in sums}) > 1]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    raise TrainingError(
        f"{when}: the weights of {name_ranks(blamed)} are not those of the other replicas ({names[0]}{more}); {remedy}"
    )


def _sums_by_group(
    model: Sequence[DistributedDataParallel], *, among_tensor_ranks: bool
) -> Mapping[Group, Mapping[str, int]]:
    """The weights' sums that this rank has in common with other ranks."""
    parameters = {
        name_in_whole_model(name, chunk.module): parameter
        for chunk in model
        for name, parameter in chunk.module.named_parameters()
    }
    totals = torch.stack([_sum_of_bits(parameter) for parameter in parameters.values()]).tolist()
    sums = dict(zip(parameters, totals, strict=True))
    tensor, stage = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
    )
    groups: dict[Group, Mapping[str, int]] = {("data", tensor, stage): sums}
    if among_tensor_ranks:
        replica = parallel_state.get_data_parallel_rank(with_context_parallel=True)
        groups["tensor", replica, stage] = {
            name: total for name, total in sums.items() if not getattr(parameters[name], "tensor_model_parallel", False)
        }
    return groups


def _sum_of_bits(parameter: Tensor) -> Tensor:
    """The sum of a weight's numbers, taken for whole numbers: one flipped bit changes it."""
    return parameter.detach().contiguous().view(_BITS[parameter.element_size()]).sum(dtype=torch.int64)


def _digest(sums: Mapping[str, int]) -> str:
    return hashlib.blake2b(json.dumps(list(sums.items())).encode(), digest_size=16).hexdigest()
