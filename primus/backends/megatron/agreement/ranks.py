# SPDX-License-Identifier: Apache-2.0
"""The ranks' answers to one question, and who gives another one than the rest."""

import socket
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

import torch

A = TypeVar("A", bound=Hashable)

_MAX_NAMED = 3


class RankName(NamedTuple):
    """Which rank, and where a person finds it."""

    rank: int
    """Its number in the run."""
    host: str
    """The name of its machine."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


def this_rank() -> RankName:
    """The name of this rank; its process group is connected."""
    return RankName(torch.distributed.get_rank(), socket.gethostname())


def answers_of_all(own: A) -> list[tuple[RankName, A]]:
    """Tell every rank what each of them answers, in order; all ranks call it together."""
    everyone: list[tuple[RankName, A]] = [(this_rank(), own)] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, (this_rank(), own))
    return everyone


def dissenters(answers: Sequence[tuple[RankName, A]]) -> list[RankName]:
    """Which ranks do not answer what most answer.

    Args:
        answers: The answers of some ranks, at least one.

    Returns:
        The ranks, in order; where two answers are equally common, those that do not answer as the first rank does.

    Examples:
        >>> a, b, c = (RankName(number, "node") for number in range(3))
        >>> [dissenter.rank for dissenter in dissenters([(a, 7), (b, 5), (c, 5)])]
        [0]
        >>> [dissenter.rank for dissenter in dissenters([(a, 7), (b, 5)])]
        [1]
    """
    counts = Counter(answer for _, answer in answers)
    usual = max(counts, key=counts.__getitem__)
    return [name for name, answer in answers if answer != usual]


def name_ranks(names: Sequence[RankName]) -> str:
    """The first of some ranks, and how many more there are."""
    named = ", ".join(map(str, names[:_MAX_NAMED]))
    num_more = len(names) - _MAX_NAMED
    return f"{named} and {num_more} more" if num_more > 0 else named
