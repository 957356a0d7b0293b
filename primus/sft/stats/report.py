# SPDX-License-Identifier: Apache-2.0
"""From what was found to the named figures of the report."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from primus.sft.recipe import Recipe
from primus.sft.stats.counts import MAX_TURN_INDEX, Counts
from primus.sft.stats.distribution import Distribution, Occurrences
from primus.sft.stats.figures import (
    FORMAT_VERSION,
    ROLES,
    Bin,
    Code,
    Copies,
    Coverage,
    Group,
    Kind,
    NearDuplicates,
    RoleTokens,
    StatsReport,
    Summary,
    TurnTokens,
)  # fmt: skip
from primus.sft.stats.gathering import Gathered
from primus.sft.stats.lengths import candidates, coverage, histogram, weigh
from primus.sft.stats.shingles import SHINGLE_WORDS
from primus.sft.stats.signal_kinds import SIGNALS

_MAX_CLUSTERS = 20
_MAX_MEMBERS = 5


def build_report(gathered: Gathered, *, seq_lengths: Iterable[int] = ()) -> StatsReport:
    """Put what was found into a report.

    Args:
        gathered: What was found.
        seq_lengths: Candidate lengths; none takes powers of two. The one of the recipe is always there.

    Returns:
        The report.
    """
    counts, recipe = gathered.counts, gathered.recipe
    asked = list(seq_lengths)
    own = [recipe.max_seq_length] if recipe.max_seq_length else []
    lengths = candidates(counts.lengths, asked=asked + own, default=not asked)
    num_tokens, num_targets = counts.tokens.total, counts.targets.total
    return StatsReport(
        format_version=FORMAT_VERSION,
        **_about(recipe),
        num_rows=counts.num_rows,
        num_conversations=counts.num_conversations,
        bad_rows=_kinds(counts.bad_rows),
        bad_conversations=_kinds(counts.bad_conversations),
        ignored_fields=dict(counts.ignored_fields.most_common()),
        messages=_summary(counts.messages),
        messages_histogram=[Bin(low=n, high=n + 1, count=count) for n, count in sorted(counts.messages.counts.items())],
        assistant_messages=_summary(counts.assistant_messages),
        num_tokens=num_tokens,
        num_targets=num_targets,
        target_share=_share(num_targets, num_tokens),
        tokens=_summary(counts.tokens),
        targets=_summary(counts.targets),
        target_percent=_summary(counts.target_shares),
        target_percent_histogram=_percent_bins(counts.target_shares),
        roles=_roles(counts),
        outside_tokens=counts.outside_tokens,
        num_splits=counts.num_splits,
        by_turn=_by_turn(counts),
        lengths_histogram=[Bin(low=a, high=b, count=n) for a, b, n in histogram(counts.lengths.conversations.counts)],
        coverage=[Coverage(length=n, conversations=c, targets=t) for n, c, t in coverage(counts.lengths)],
        seq_lengths=[weigh(counts.lengths, length) for length in lengths],
        letters=_by_count(counts.letters),
        main_scripts=_by_count(counts.main_scripts),
        code=Code(
            num_conversations=counts.code.conversations,
            num_blocks=counts.code.blocks,
            character_share=_share(counts.code.code_characters, counts.code.characters),
            languages=_by_count(counts.code.languages),
        ),
        copies=[_copies(gathered, of) for of in gathered.firsts],
        near_duplicates=_near(gathered),
        signals=_signals(counts),
        num_refusals=counts.num_refusals,
    )


def _about(recipe: Recipe) -> dict[str, Any]:
    return {
        "files": [str(file) for file in recipe.files],
        "tokenizer": recipe.tokenizer,
        "conversation_format": recipe.conversation_format,
        "seq_length": recipe.max_seq_length,
    }


def _summary(distribution: Distribution) -> Summary:
    p10, p50, p90, p99 = distribution.quantiles((0.1, 0.5, 0.9, 0.99))
    return Summary(
        num=distribution.num, total=distribution.total, mean=distribution.mean, min=distribution.min, p10=p10, p50=p50,
        p90=p90, p99=p99, max=distribution.max,
    )  # fmt: skip


def _percent_bins(shares: Distribution) -> list[Bin]:
    """Ten bins of ten percent; 100 % stands in the last."""
    bins = [0] * 10
    for percent, count in shares.counts.items():
        bins[min(percent // 10, 9)] += count
    return [Bin(low=10 * i, high=10 * i + 10, count=count) for i, count in enumerate(bins)]


def _kinds(occurrences: Mapping[str, Occurrences]) -> list[Kind]:
    ordered = sorted(occurrences.items(), key=lambda item: (-item[1].num, item[0]))
    return [Kind(name=name, num=o.num, num_conversations=o.num_conversations, origins=o.origins) for name, o in ordered]


def _signals(counts: Counts) -> list[Kind]:
    kinds = []
    for signal in SIGNALS:
        found = counts.signals.get(signal.name, Occurrences())
        kinds.append(
            Kind(
                name=signal.name, num=found.num, num_conversations=found.num_conversations, origins=found.origins,
                title=signal.title, definition=signal.definition,
            )
        )  # fmt: skip
    return kinds


def _roles(counts: Counts) -> list[RoleTokens]:
    names = [*ROLES, *sorted(set(counts.messages_per_role) - set(ROLES))]
    roles = []
    for role in names:
        if counts.messages_per_role[role]:
            per_message = counts.message_tokens.get(role, Distribution())
            overhead = counts.overhead_tokens[role]
            roles.append(
                RoleTokens(
                    role=role, num_messages=counts.messages_per_role[role], content_tokens=per_message.total,
                    overhead_tokens=overhead, share=_share(per_message.total + overhead, counts.tokens.total),
                    per_message=_summary(per_message), num_rewritten=counts.not_located[role],
                )
            )  # fmt: skip
    return roles


def _by_turn(counts: Counts) -> list[TurnTokens]:
    return [
        TurnTokens(
            index=index, and_later=index == MAX_TURN_INDEX, num_messages=dict(sorted(turn.messages.items())),
            content_tokens=dict(sorted(turn.content_tokens.items())), overhead_tokens=turn.overhead_tokens.total(),
        )
        for index, turn in sorted(counts.by_turn.items())
    ]  # fmt: skip


def _copies(gathered: Gathered, of: str) -> Copies:
    firsts_N = gathered.firsts[of]
    firsts_N = firsts_N[firsts_N >= 0]
    distinct, sizes = np.unique(firsts_N, return_counts=True)
    largest = sorted((-int(sizes[i]), int(distinct[i])) for i in np.flatnonzero(sizes > 1))[:_MAX_CLUSTERS]
    all_N = gathered.firsts[of]
    return Copies(
        of=of, num_compared=len(firsts_N), num_distinct=len(distinct), num_copies=len(firsts_N) - len(distinct),
        num_groups=int((sizes > 1).sum()),
        groups=[
            _group(gathered, -size, np.flatnonzero(all_N == first)[:_MAX_MEMBERS].tolist()) for size, first in largest
        ],
    )  # fmt: skip


def _near(gathered: Gathered) -> NearDuplicates | None:
    bands, clusters = gathered.bands, gathered.clusters
    if bands is None:
        return None
    num_in_clusters = sum(len(members) for members in clusters.members)
    firsts_N = gathered.firsts["conversation"]
    return NearDuplicates(
        threshold=bands.threshold, shingle_words=SHINGLE_WORDS, num_bands=bands.num_bands, rows=bands.rows,
        found_at_threshold=bands.candidate_probability(bands.threshold), num_compared=len(np.unique(firsts_N)),
        num_comparisons=clusters.num_comparisons, min_jaccard=clusters.min_jaccard,
        num_clusters=len(clusters.members), num_in_clusters=num_in_clusters,
        num_removable=num_in_clusters - len(clusters.members),
        clusters=[_group(gathered, len(m), m[:_MAX_MEMBERS]) for m in clusters.members[:_MAX_CLUSTERS]],
    )  # fmt: skip


def _group(gathered: Gathered, size: int, first_members: Iterable[int]) -> Group:
    return Group(size=size, origins=gathered.origins(first_members))


def _by_count(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
