# SPDX-License-Identifier: Apache-2.0
"""The report: everything that was found as named figures, for a terminal, a JSON file or a page.

The names of the fields are the keys of the JSON file.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from primus.sft.recipe import Recipe
from primus.sft.stats.counts import MAX_TURN_INDEX, Counts
from primus.sft.stats.distribution import Distribution, Occurrences
from primus.sft.stats.gathering import Gathered
from primus.sft.stats.lengths import SequenceLength, candidates, coverage, histogram, weigh
from primus.sft.stats.shingles import SHINGLE_WORDS
from primus.sft.stats.signal_kinds import SIGNALS

FORMAT_VERSION = 1

ROLES = ("system", "user", "assistant", "tool")

_MAX_CLUSTERS = 20
_MAX_MEMBERS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A distribution in a few figures, all exact.

    Attributes:
        num: How many numbers.
        total: Their sum.
        mean: Their mean.
        min: The smallest.
        p10: The smallest number that 10 % of the numbers do not exceed.
        p50: The same for 50 %: the median.
        p90: The same for 90 %.
        p99: The same for 99 %.
        max: The largest.
    """

    num: int
    total: int
    mean: float
    min: int
    p10: int
    p50: int
    p90: int
    p99: int
    max: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Something that was counted, and where it stands.

    Attributes:
        name: Its stable name.
        num: How often it occurs: in how many messages, or (of bad rows) how many rows.
        num_conversations: In how many conversations.
        origins: The first places.
        title: Its name for people.
        definition: What it is.
    """

    name: str
    num: int
    num_conversations: int
    origins: list[str]
    title: str = ""
    definition: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleTokens:
    """The tokens of a role.

    Attributes:
        role: The role.
        num_messages: Its messages.
        content_tokens: Tokens of what it says; for the assistant with reasoning and calls.
        overhead_tokens: Tokens of the format around it: headers, markers, tool definitions.
        share: Both, as a share of all tokens.
        per_message: Content tokens of a message.
        num_rewritten: Messages whose content the format does not write as it is; all their tokens but the markers are
            counted as content.
    """

    role: str
    num_messages: int
    content_tokens: int
    overhead_tokens: int
    share: float
    per_message: Summary
    num_rewritten: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnTokens:
    """The messages that stand at one place of their conversations.

    Attributes:
        index: The place, from 0.
        and_later: Whether all later places are counted here, too.
        num_messages: Messages, by role.
        content_tokens: Tokens of their contents, by role.
        overhead_tokens: Tokens around them, of all roles.
    """

    index: int
    and_later: bool
    num_messages: dict[str, int]
    content_tokens: dict[str, int]
    overhead_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """A bin of a histogram: numbers from `low` to below `high`."""

    low: int
    high: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """What sequences of a length hold.

    Attributes:
        length: Positions.
        conversations: Share of the conversations with a target that fit whole.
        targets: Share of the targets that are kept if longer ones are cut on the right.
    """

    length: int
    conversations: float
    targets: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Copies:
    """Exact copies of one kind of text.

    Attributes:
        of: What is compared: `conversation` (the roles, texts, calls and tools), `first_user_message`, or `answers`
            (all assistant texts of a conversation, in order). Whitespace and case count.
        num_compared: Conversations that have one.
        num_distinct: Different ones.
        num_copies: Conversations whose one stands in an earlier conversation.
        num_groups: Different ones that stand in two conversations or more.
        groups: The largest groups.
    """

    of: str
    num_compared: int
    num_distinct: int
    num_copies: int
    num_groups: int
    groups: list["Group"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Conversations that are equal or alike.

    Attributes:
        size: How many.
        origins: The first of them.
    """

    size: int
    origins: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicates:
    """Conversations that are alike and not equal.

    Attributes:
        threshold: The Jaccard index of their shingles from which two conversations are alike.
        shingle_words: Words of a shingle.
        num_bands: Bands of the sketch.
        rows: MinHashes of a band.
        found_at_threshold: Probability that two conversations just at the threshold become candidates. A pair that is
            more alike is found more surely; what is found is exact.
        num_compared: Distinct conversations.
        num_comparisons: Pairs whose Jaccard index was computed.
        min_jaccard: The smallest index that connected two conversations.
        num_clusters: Clusters.
        num_in_clusters: Distinct conversations in them.
        num_removable: Conversations that would go if one of each cluster stayed.
        clusters: The largest clusters.
    """

    threshold: float
    shingle_words: int
    num_bands: int
    rows: int
    found_at_threshold: float
    num_compared: int
    num_comparisons: int
    min_jaccard: float
    num_clusters: int
    num_in_clusters: int
    num_removable: int
    clusters: list[Group]


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """Fenced code in what user and assistant say.

    Attributes:
        num_conversations: Conversations with a block.
        num_blocks: Blocks.
        character_share: Characters of code over all characters of their contents.
        languages: Blocks by the first word behind their opening fence, the most frequent first.
    """

    num_conversations: int
    num_blocks: int
    character_share: float
    languages: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class StatsReport:
    """Everything that was found.

    Attributes:
        format_version: Of these keys.
        files: The data files.
        tokenizer: The tokenizer.
        conversation_format: The conversation format.
        seq_length: The sequence length that was asked for; None if none was.
        num_rows: Rows read.
        num_conversations: Conversations that were rendered and tokenized; all figures below are about these.
        bad_rows: Rows that are no valid conversation, by the rule that was broken.
        bad_conversations: Valid conversations that can't be rendered or tokenized.
        ignored_fields: Conversations with message fields that have no meaning here, by field.
        messages: Messages per conversation.
        messages_histogram: Conversations by their number of messages.
        assistant_messages: Assistant messages per conversation.
        num_tokens: All tokens.
        num_targets: Trained tokens.
        target_share: Their share.
        tokens: Tokens per conversation.
        targets: Trained tokens per conversation.
        target_percent: Trained tokens of a conversation over its tokens, in whole percent, rounded down.
        target_percent_histogram: Conversations by that percentage.
        roles: Tokens by role.
        outside_tokens: Tokens that belong to no message: BOS, EOS, a system turn of the format's own.
        num_splits: Tokens that were cut because they crossed the edge of an assistant turn.
        by_turn: Tokens by the place of the message.
        lengths_histogram: Conversations with a target by their positions (tokens - 1).
        coverage: What sequences of growing length hold.
        seq_lengths: What each candidate length would do.
        letters: Letters by script; digits, marks and emoji have none.
        main_scripts: Conversations by the script of most of their letters; `none` without letters.
        code: Fenced code.
        copies: Exact duplicates.
        near_duplicates: Near duplicates; None if they were not looked for.
        signals: Oddities, each with its definition; those that do not occur, too.
        num_refusals: Assistant messages that begin like a refusal, by a heuristic.
    """

    format_version: int
    files: list[str]
    tokenizer: str
    conversation_format: str
    seq_length: int | None
    num_rows: int
    num_conversations: int
    bad_rows: list[Kind]
    bad_conversations: list[Kind]
    ignored_fields: dict[str, int]
    messages: Summary
    messages_histogram: list[Bin]
    assistant_messages: Summary
    num_tokens: int
    num_targets: int
    target_share: float
    tokens: Summary
    targets: Summary
    target_percent: Summary
    target_percent_histogram: list[Bin]
    roles: list[RoleTokens]
    outside_tokens: int
    num_splits: int
    by_turn: list[TurnTokens]
    lengths_histogram: list[Bin]
    coverage: list[Coverage]
    seq_lengths: list[SequenceLength]
    letters: dict[str, int]
    main_scripts: dict[str, int]
    code: Code
    copies: list[Copies]
    near_duplicates: NearDuplicates | None
    signals: list[Kind]
    num_refusals: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for a JSON file."""
        return asdict(self)


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
