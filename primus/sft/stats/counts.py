# SPDX-License-Identifier: Apache-2.0
"""What is counted: sums and distributions that add up, so that any cut of the rows into batches gives the same."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from primus.chat.messages import Conversation
from primus.sft.stats.code_blocks import find_code_blocks
from primus.sft.stats.distribution import Distribution, Occurrences
from primus.sft.stats.signals import REFUSAL
from primus.sft.stats.token_counts import ConversationTokens
from primus.sft.stats.writing import count_scripts

MAX_TURN_INDEX = 99
"""Messages from this index on are counted together."""


@dataclass(slots=True)
class LengthCounts:
    """Conversations with a target by their lengths: all that truncation, padding and packing depend on.

    A conversation of T tokens takes T - 1 positions, and fits a sequence of at least as many.

    Attributes:
        conversations: Positions of each conversation.
        turns: Trained turns, by the positions of their conversation.
        targets: Trained tokens, by the positions of their conversation.
        turns_by_end: Trained turns, by the positions up to their end: the shortest sequence that holds them whole.
        targets_by_end: Trained tokens, by the same of their turn.
        first_end: The same of each conversation's earliest trained turn.
        kept_positions: What a sequence of at least as many positions keeps more of all conversations, cut on the right,
            than a shorter one does.
    """

    conversations: Distribution = field(default_factory=Distribution)
    turns: Counter[int] = field(default_factory=Counter)
    targets: Counter[int] = field(default_factory=Counter)
    turns_by_end: Counter[int] = field(default_factory=Counter)
    targets_by_end: Counter[int] = field(default_factory=Counter)
    first_end: Counter[int] = field(default_factory=Counter)
    kept_positions: Counter[int] = field(default_factory=Counter)

    def add(self, tokens: ConversationTokens) -> None:
        """Count a conversation."""
        if not tokens.trained_turns:
            return
        positions = tokens.num_tokens - 1
        self.conversations.add(positions)
        self.turns[positions] += len(tokens.trained_turns)
        self.targets[positions] += tokens.num_targets
        for turn in tokens.trained_turns:
            self.turns_by_end[turn.end - 1] += 1
            self.targets_by_end[turn.end - 1] += turn.num_targets
        self.first_end[min(turn.end for turn in tokens.trained_turns) - 1] += 1
        kept = 0
        for end in sorted({*(turn.end - 1 for turn in tokens.trained_turns), positions}):
            self.kept_positions[end] += end - kept
            kept = end

    def merge(self, other: "LengthCounts") -> None:
        """Add what was counted in rows that follow."""
        _merge_fields(self, other)


@dataclass(slots=True)
class TurnCounts:
    """The messages that stand at one place of their conversations.

    Attributes:
        messages: How many of each role.
        content_tokens: Tokens of their contents, by role.
        overhead_tokens: Tokens around them, by role.
    """

    messages: Counter[str] = field(default_factory=Counter)
    content_tokens: Counter[str] = field(default_factory=Counter)
    overhead_tokens: Counter[str] = field(default_factory=Counter)

    def merge(self, other: "TurnCounts") -> None:
        """Add what was counted in rows that follow."""
        _merge_fields(self, other)


@dataclass(slots=True)
class CodeCounts:
    """Fenced code in what user and assistant say.

    Attributes:
        conversations: Conversations with a block.
        blocks: Blocks.
        characters: Characters of the contents.
        code_characters: Of these, those in blocks.
        languages: Blocks by the first word of their opening fence.
    """

    conversations: int = 0
    blocks: int = 0
    characters: int = 0
    code_characters: int = 0
    languages: Counter[str] = field(default_factory=Counter)

    def merge(self, other: "CodeCounts") -> None:
        """Add what was counted in rows that follow."""
        _merge_fields(self, other)


@dataclass(slots=True)
class Counts:
    """Everything that adds up.

    Attributes:
        num_rows: Rows that were read.
        bad_rows: Rows that are no valid conversation, by the rule that was broken.
        bad_conversations: Valid conversations that can't be rendered or tokenized, by the rule that was broken. They
            are in none of the other counts.
        ignored_fields: Conversations with fields of messages that have no meaning here.
        messages_per_role: Messages by role.
        messages: Messages per conversation.
        assistant_messages: Assistant messages per conversation.
        tokens: Tokens per conversation.
        targets: Trained tokens per conversation.
        target_shares: Trained tokens over tokens of a conversation, in whole percent, rounded down.
        outside_tokens: Tokens that belong to no message.
        not_located: Messages whose content the format rewrote, by role.
        message_tokens: Content tokens per message, by role.
        overhead_tokens: Tokens around the content of messages, by role.
        by_turn: The messages at each place; those at `MAX_TURN_INDEX` and later are together.
        lengths: Conversations by their lengths.
        letters: Letters by script.
        main_scripts: Conversations by the script of most of their letters.
        code: Fenced code.
        signals: Oddities.
        num_refusals: Assistant messages that look like refusals.
        num_splits: Tokens that were cut because they crossed the edge of an assistant turn.
    """

    num_rows: int = 0
    bad_rows: dict[str, Occurrences] = field(default_factory=dict)
    bad_conversations: dict[str, Occurrences] = field(default_factory=dict)
    ignored_fields: Counter[str] = field(default_factory=Counter)
    messages_per_role: Counter[str] = field(default_factory=Counter)
    messages: Distribution = field(default_factory=Distribution)
    assistant_messages: Distribution = field(default_factory=Distribution)
    tokens: Distribution = field(default_factory=Distribution)
    targets: Distribution = field(default_factory=Distribution)
    target_shares: Distribution = field(default_factory=Distribution)
    outside_tokens: int = 0
    not_located: Counter[str] = field(default_factory=Counter)
    message_tokens: dict[str, Distribution] = field(default_factory=dict)
    overhead_tokens: Counter[str] = field(default_factory=Counter)
    by_turn: dict[int, TurnCounts] = field(default_factory=dict)
    lengths: LengthCounts = field(default_factory=LengthCounts)
    letters: Counter[str] = field(default_factory=Counter)
    main_scripts: Counter[str] = field(default_factory=Counter)
    code: CodeCounts = field(default_factory=CodeCounts)
    signals: dict[str, Occurrences] = field(default_factory=dict)
    num_refusals: int = 0
    num_splits: int = 0

    @property
    def num_conversations(self) -> int:
        """Conversations that were counted."""
        return self.tokens.num

    def add_tokens(self, tokens: ConversationTokens) -> None:
        """Count the tokens of a conversation."""
        self.tokens.add(tokens.num_tokens)
        self.targets.add(tokens.num_targets)
        self.target_shares.add(100 * tokens.num_targets // tokens.num_tokens)
        self.outside_tokens += tokens.num_outside
        self.lengths.add(tokens)
        for turn in tokens.turns:
            self.message_tokens.setdefault(turn.role, Distribution()).add(turn.num_content)
            self.overhead_tokens[turn.role] += turn.num_overhead
            self.not_located[turn.role] += not turn.is_located
            place = self.by_turn.setdefault(min(turn.turn, MAX_TURN_INDEX), TurnCounts())
            place.messages[turn.role] += 1
            place.content_tokens[turn.role] += turn.num_content
            place.overhead_tokens[turn.role] += turn.num_overhead

    def add_texts(self, conversation: Conversation) -> None:
        """Count messages, scripts and code of a conversation."""
        roles = Counter(message.role for message in conversation.messages)
        self.messages_per_role.update(roles)
        self.messages.add(len(conversation.messages))
        self.assistant_messages.add(roles["assistant"])
        self.ignored_fields.update(conversation.ignored_fields)
        letters = count_scripts("\n".join(f"{m.reasoning or ''}\n{m.content}" for m in conversation.messages))
        self.letters.update(letters)
        self.main_scripts[max(letters, key=lambda name: (letters[name], name)) if letters else "none"] += 1
        blocks = [(m, find_code_blocks(m.content)) for m in conversation.messages if m.role in ("user", "assistant")]
        self.code.characters += sum(len(message.content) for message, _ in blocks)
        self.code.code_characters += sum(block.num_chars for _, block in blocks)
        self.code.conversations += any(block.languages for _, block in blocks)
        for _, block in blocks:
            self.code.blocks += len(block.languages)
            self.code.languages.update(block.languages)

    def add_signals(self, found: Mapping[str, list[int | None]], origin: str) -> None:
        """Count the oddities of a conversation."""
        for name, turns in found.items():
            if name == REFUSAL:
                self.num_refusals += len(turns)
                continue
            place = origin if turns[0] is None else f"{origin} turn {turns[0]}"
            self.signals.setdefault(name, Occurrences()).add(place, times=len(turns))

    def merge(self, other: "Counts") -> None:
        """Add what was counted in rows that follow."""
        _merge_fields(self, other)


def _merge_fields(into: object, other: object) -> None:
    """Add the fields of one object to those of another, each as its kind is added."""
    for spec in fields(into):  # type: ignore[arg-type]
        mine, theirs = getattr(into, spec.name), getattr(other, spec.name)
        if isinstance(mine, int):
            setattr(into, spec.name, mine + theirs)
        elif isinstance(mine, Counter):
            mine.update(theirs)
        elif isinstance(mine, dict):
            _merge_named(mine, theirs)
        else:
            mine.merge(theirs)


def _merge_named(into: dict[object, object], other: Mapping[object, object]) -> None:
    for name, value in other.items():
        if name in into:
            into[name].merge(value)  # type: ignore[attr-defined]
        else:
            into[name] = value
