# SPDX-License-Identifier: Apache-2.0
"""How rows become training sequences: plain values from which any process builds the same formatter and tokenizer."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from primus.chat.conversations import SourceOptions
from primus.chat.messages import Conversation
from primus.errors import ConfigError, ConversationError
from primus.sft.encoding import TracedConversation, trace_conversations
from primus.sft.formatters import ConversationFormatter, create_formatter
from primus.sft.options import EncodingOptions
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer
from primus.sft.tokenizer.fast import FastTokenizer

logger = logging.getLogger("primus")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a data set is made from and how.

    Attributes:
        files: Data files.
        source: How their rows are read.
        tokenizer: Anything that `load_tokenizer` takes by name.
        conversation_format: Name of the format.
        chat_template: File of the chat template, for the format `template`; None takes the tokenizer's.
        chat_template_kwargs: Variables for the chat template.
        max_seq_length: Positions of a training sequence; None if any length will do.
        options: What is a target, and what happens to rows that do not fit.
        loaded: The tokenizer, if it is loaded already; goes to other processes with the recipe.
    """

    files: tuple[Path, ...]
    source: SourceOptions
    tokenizer: str
    conversation_format: str = "openai"
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_seq_length: int | None = None
    options: EncodingOptions = field(default_factory=lambda: EncodingOptions(supervise_end_of_turn=True))
    loaded: SFTTokenizer | None = field(default=None, compare=False, repr=False)

    def with_loaded(self, tokenizer: SFTTokenizer) -> "Recipe":
        """The same recipe, for other processes that shall not load the tokenizer again.

        Args:
            tokenizer: The tokenizer of the recipe.

        Returns:
            The recipe with the tokenizer, if one of its kind can be sent to them.
        """
        return replace(self, loaded=tokenizer) if isinstance(tokenizer, FastTokenizer) else self

    def build(self) -> "Encoder":
        """The formatter and the tokenizer, loaded.

        Returns:
            What turns conversations into training sequences.

        Raises:
            TokenizerError: If the tokenizer can't be used.
            ConfigError: If there is no such format.
        """
        tokenizer = self.loaded or load_tokenizer(self.tokenizer)
        formatter = create_formatter(
            self.conversation_format,
            eos_token=tokenizer.eos_token,
            tokenizer=tokenizer,
            template=self.chat_template,
            template_kwargs=self.chat_template_kwargs,
        )
        return Encoder(tokenizer, formatter, self.options)

    def build_for_many(self) -> "Encoder":
        """The same as `build` gives, with everything loaded that many conversations need.

        Returns:
            What turns conversations into training sequences.

        Raises:
            TokenizerError: As `build` does.
            ConfigError: As `build` does.
        """
        encoder = self.build()
        encoder.tokenizer.warm_up()
        return encoder


@dataclass(frozen=True, slots=True)
class Encoder:
    """What turns conversations into training sequences.

    Attributes:
        tokenizer: The tokenizer.
        formatter: The formatter.
        options: What is a target.
    """

    tokenizer: SFTTokenizer
    formatter: ConversationFormatter
    options: EncodingOptions

    @property
    def add_bos(self) -> bool | None:
        """Whether a sequence begins with BOS; None does what the tokenizer does by itself."""
        return False if self.options.add_bos is None and self.formatter.writes_bos else self.options.add_bos

    def refuse_unfit(self) -> None:
        """Refuse options that do not fit the format or the tokenizer, and warn of what is probably not meant.

        Raises:
            ConfigError: If BOS would stand twice, or no turn would have an end that can be trained.
        """
        if self.options.add_bos and self.formatter.writes_bos:
            raise ConfigError(
                "sft_add_bos: is on, but the format writes BOS itself where it is wanted, and a second one would"
                " follow; set it to null"
            )
        if self.options.supervise_end_of_turn and not self.formatter.control_markers:
            raise ConfigError(
                f"{self.tokenizer.name}: has no EOS token, with which this format ends a turn, so the model would never"
                " learn to stop; take a tokenizer that has one, or turn sft_supervise_end_of_turn off"
            )
        missing = [m for m in self.formatter.control_markers if m not in self.tokenizer.control_tokens]
        if missing:
            cost = sum(len(self.tokenizer.encode(marker).ids_T) for marker in missing)
            logger.warning(
                "%s: %s are no tokens of this tokenizer, so they are plain text: %d tokens in each turn instead of %d,"
                " and a server has to stop at a text instead of a token; add them as special tokens, or take a"
                " tokenizer that has them",
                self.tokenizer.name,
                " and ".join(missing),
                cost,
                len(missing),
            )

    def trace(self, conversation: Conversation) -> TracedConversation:
        """Render and tokenize a conversation, whatever its length.

        Args:
            conversation: The conversation.

        Returns:
            Its tokens, what of them is trained, and the text.

        Raises:
            ConversationError: If the format has no form for it, or it can't be encoded exactly.
        """
        [traced] = self.trace_all([conversation])
        if isinstance(traced, ConversationError):
            raise traced
        return traced

    def trace_all(self, conversations: Sequence[Conversation]) -> list[TracedConversation | ConversationError]:
        """Render and tokenize many conversations, faster than one by one.

        Args:
            conversations: The conversations.

        Returns:
            For each what `trace` gives, or the error that it raises.
        """
        return trace_conversations(
            conversations,
            formatter=self.formatter,
            tokenizer=self.tokenizer,
            supervise_end_of_turn=self.options.supervise_end_of_turn,
            supervise_turns=self.options.supervise_turns,
            add_bos=self.options.add_bos,
            add_eos=self.options.add_eos,
        )
