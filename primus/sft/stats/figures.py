# SPDX-License-Identifier: Apache-2.0
"""The named figures of a report. The names of the fields are the keys of the JSON file."""

from dataclasses import asdict, dataclass
from os.path import commonpath
from pathlib import PurePath
from typing import Any

from primus.sft.stats.lengths import SequenceLength

FORMAT_VERSION = 1

ROLES = ("system", "user", "assistant", "tool")

COPY_NAMES = {
    "conversation": "whole conversations",
    "first_user_message": "first user messages",
    "answers": "all answers of a conversation",
}
"""What exact duplicates are looked for in, in words."""


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

    @property
    def folder(self) -> str:
        """The folder that all files lie in, with a slash behind it; empty if there is none, or only the root."""
        heads = [str(PurePath(file).parent) for file in self.files]
        if not heads or len({PurePath(head).is_absolute() for head in heads}) > 1:
            return ""
        folder = commonpath(heads)
        return f"{folder}/" if folder.strip("./") else ""

    def place(self, origin: str) -> str:
        """Where something stands, without the folder that all files lie in.

        Args:
            origin: The whole origin.

        Returns:
            What is left of it.
        """
        return origin.removeprefix(self.folder)


def percent(share: float) -> str:
    """A share for people: never 0 for something, never 100 for less than all.

    Args:
        share: From 0 to 1.

    Returns:
        The words.

    Examples:
        >>> [percent(share) for share in (0, 0.00001, 0.123, 0.99999, 1)]
        ['0 %', '<0.1 %', '12.3 %', '>99.9 %', '100 %']
    """
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    if share < 0.001:
        return "<0.1 %"
    return ">99.9 %" if share > 0.999 else f"{100 * share:.1f} %"
