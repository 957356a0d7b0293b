# SPDX-License-Identifier: Apache-2.0
"""The ranks' answers to one question, and who gives another one than the rest."""

import socket
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
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


def are_alike(answers: Sequence[tuple[RankName, A]]) -> bool:
    """Whether some ranks answer the same."""
    return len({answer for _, answer in answers}) <= 1


def dissenters(answers: Sequence[tuple[RankName, A]]) -> list[RankName]:
    """Which ranks do not answer what most answer.

    Args:
        answers: The answers of some ranks.

    Returns:
        The ranks, in order; where there is no answer that more than half of them give, all: nobody knows who is right.

    Examples:
        >>> a, b, c = (RankName(number, "node") for number in range(3))
        >>> [dissenter.rank for dissenter in dissenters([(a, 7), (b, 5), (c, 5)])]
        [0]
        >>> [dissenter.rank for dissenter in dissenters([(a, 7), (b, 5)])]
        [0, 1]
    """
    counts = Counter(answer for _, answer in answers)
    [(usual, count), *_] = counts.most_common(1)
    is_known = 2 * count > len(answers)
    return [name for name, answer in answers if answer != usual or not is_known]


def name_some(names: Iterable[object]) -> str:
    """The first of some things, and how many more there are."""
    listed = list(map(str, names))
    num_more = len(listed) - _MAX_NAMED
    return ", ".join(listed[:_MAX_NAMED]) + (f" and {num_more} more" if num_more > 0 else "")
