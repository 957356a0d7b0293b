# SPDX-License-Identifier: Apache-2.0
"""Every error that a user can cause.

    PrimusError
    ├── ConfigError            the YAML or the command line
    ├── DataError              what is in a data file
    │   ├── ConversationError  a row is not a valid conversation
    │   ├── RenderError        the format has no form for a conversation
    │   ├── TokenizerError     a tokenizer cannot do what is asked
    │   └── EngineError        a fast engine gives other ids than the reference; nothing goes on
    ├── LayoutError            a parallel layout that cannot run
    ├── CheckpointError        a checkpoint that cannot be read or written
    └── TrainingError          training that cannot go on

A message has the form `<origin>: <what is wrong, with the value and the limit>; <what to do>`. The command line prints
it on one line and exits with 2. Misuse of a function is a `ValueError`, not one of these.
"""

from collections.abc import Sequence


class PrimusError(Exception):
    """The base of every error that a user can cause.

    Args:
        *problems: The messages, one per problem, each complete on its own line.

    Attributes:
        problems: The messages, one per problem, each complete on its own line.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems


class ConfigError(PrimusError):
    """The configuration cannot be used; all its problems are listed at once."""


class DataError(PrimusError):
    """A data file, or a row in it, cannot be used."""


class ConversationError(DataError):
    """A row is not a valid conversation.

    Args:
        *problems: The messages.
        reason: A short, stable name of the rule that was broken, for counting.

    Attributes:
        reason: A short, stable name of the rule that was broken, for counting.
    """

    def __init__(self, *problems: str, reason: str = "invalid") -> None:
        super().__init__(*problems)
        self.reason = reason


class RenderError(ConversationError):
    """A valid conversation that the chosen format has no form for."""


class TokenizerError(DataError):
    """A tokenizer cannot be loaded, or cannot do what is asked of it."""


class EngineError(DataError):
    """A fast tokenizer engine gives other ids than the reference, so none of its ids can be trusted.

    Args:
        *problems: The messages.
        index: Which of the texts that were encoded together shows it, from 0.

    Attributes:
        index: Which of the texts that were encoded together shows it, from 0.
    """

    def __init__(self, *problems: str, index: int = 0) -> None:
        super().__init__(*problems)
        self.index = index


class LayoutError(PrimusError):
    """A parallel layout that cannot run."""


class CheckpointError(PrimusError):
    """A checkpoint cannot be read or written."""


class TrainingError(PrimusError):
    """Training cannot go on."""
