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

from primus.backends.megatron.agreement.ranks import RankName, answers_of_all, are_alike, dissenters, name_some
from primus.backends.megatron.model.initialisation import EMBEDDING, name_in_whole_model
from primus.errors import TrainingError

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PIECE = 1 << 22

Group = tuple[str, int, int]
"""Ranks that have weights in common: what they are to each other, and their two other places in the layout."""


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
    split = {group: answers for group, answers in by_group.items() if not are_alike(answers)}
    if not split:
        return
    kind = next(iter(split))[0]
    odd, concerned = (
        sorted({rank for group, answers in split.items() if group[0] == kind for rank in ranks_of(answers)})
        for ranks_of in (dissenters, _ranks)
    )
    first = next(iter(split))
    sums = [dict(answer) for _, answer in answers_of_all(tuple(own.get(first, {}).items())) if answer]
    names = [name for name in sums[0] if len({answer.get(name) for answer in sums}) > 1]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    others = "each other's" if odd == concerned else f"those of the other {kind}"
    raise TrainingError(
        f"{when}: the weights of {name_some(odd)} are not {others} ({names[0]}{more}), though {kind} have the same;"
        f" {remedy}"
    )


def _ranks(answers: Sequence[tuple[RankName, str]]) -> list[RankName]:
    return [rank for rank, _ in answers]


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
    tensor, stage, replica = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
    )
    groups: dict[Group, Mapping[str, int]] = {("replicas", tensor, stage): sums}
    if among_tensor_ranks:
        groups["tensor-parallel ranks", replica, stage] = {
            name: total for name, total in sums.items() if not getattr(parameters[name], "tensor_model_parallel", False)
        }
    if EMBEDDING in sums and model[0].module.share_embeddings_and_output_weights:
        groups["ends of a pipeline", tensor, replica] = {EMBEDDING: sums[EMBEDDING]}
    return groups


def _sum_of_bits(parameter: Tensor) -> Tensor:
    """A sum of a weight's numbers, taken for whole numbers, each times an odd number of its place.

    One flipped bit changes it, and so do two parts that are swapped. It is made in pieces, since PyTorch copies what
    it adds up in more bits.
    """
    flat = parameter.detach().reshape(-1).view(_BITS[parameter.element_size()])
    factors = torch.arange(1, 2 * min(_PIECE, len(flat)), 2, dtype=torch.int64, device=flat.device)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for number, piece in enumerate(torch.split(flat, _PIECE)):
        total += (piece * factors[: len(piece)]).sum() * (2 * number + 1)
    return total


def _digest(sums: Mapping[str, int]) -> str:
    return hashlib.blake2b(json.dumps(list(sums.items())).encode(), digest_size=16).hexdigest()
