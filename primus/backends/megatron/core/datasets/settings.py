# SPDX-License-Identifier: Apache-2.0
"""What the data sets of a run have in common, and what must hold before any row is read."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primus.chat.reading import STDIN
from primus.errors import ConfigError
from primus.sft.dataset import EncodingOptions, TokenizedDataset, tokenize_files
from primus.sft.formatters import ConversationFormatter, create_formatter
from primus.sft.ledger import TRAINED, VALIDATION
from primus.sft.packing import Method
from primus.sft.tokenizer import SFTTokenizer

logger = logging.getLogger("primus")


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """What the splits of a data set have in common.

    Attributes:
        tokenizer: Gives the tokens.
        formatter: Gives the text.
        max_seq_length: Positions of a training sequence.
        seed: Of the order.
        options: What is a target, and what happens to rows that do not fit.
        packing: How conversations share training sequences.
    """

    tokenizer: SFTTokenizer
    formatter: ConversationFormatter
    max_seq_length: int
    seed: int
    options: EncodingOptions
    packing: Method = "none"

    def tokenize(
        self,
        files: Sequence[Path],
        *,
        validation_fraction: float = 0.0,
        quarantine_path: Path | None = None,
        is_validation: bool = False,
    ) -> tuple[TokenizedDataset, TokenizedDataset]:
        """Read and tokenize files, as `tokenize_files` does.

        Args:
            files: Data files.
            validation_fraction: Share of the rows held out, chosen by how conversations open.
            quarantine_path: Where bad rows are written; None only counts them.
            is_validation: Whether the rows are for validation or a test.

        Returns:
            The conversations that are not held out, and those that are.

        Raises:
            ConfigError: If a file is standard input, or the options do not fit the format or the tokenizer.
        """
        self.check(files)
        return tokenize_files(
            files,
            formatter=self.formatter,
            tokenizer=self.tokenizer,
            max_seq_length=self.max_seq_length,
            options=self.options,
            outcome=VALIDATION if is_validation else TRAINED,
            validation_fraction=validation_fraction,
            quarantine_path=quarantine_path,
        )

    def check(self, files: Sequence[Path]) -> None:
        """Refuse what can't be trained, before any row is read, and warn of what is probably not meant.

        Args:
            files: Data files.

        Raises:
            ConfigError: If a file is standard input, or the options do not fit the format or the tokenizer.
        """
        formatter = self.formatter
        if Path(STDIN) in files:
            raise ConfigError(
                f"sft_dataset_name: {STDIN} is standard input, which no second rank and no later run can read; write it"
                f" to a file first: primus data convert {STDIN} conversations.jsonl"
            )
        if self.options.add_bos and formatter.writes_bos:
            raise ConfigError(
                "sft_add_bos: is on, but the format writes BOS itself where it is wanted, and a second one would"
                " follow; set it to null"
            )
        if self.options.supervise_end_of_turn and not formatter.control_markers:
            raise ConfigError(
                f"{self.tokenizer.name}: has no EOS token, with which this format ends a turn, so the model would never"
                " learn to stop; take a tokenizer that has one, or turn sft_supervise_end_of_turn off"
            )
        _warn_about_markers(self.tokenizer, formatter)


def load_formatter(
    formatter: str | ConversationFormatter,
    tokenizer: SFTTokenizer,
    chat_template: str | Path | None,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> ConversationFormatter:
    """The formatter that a data set is asked for.

    Args:
        formatter: A format's name, or a formatter.
        tokenizer: The tokenizer.
        chat_template: A file with the chat template of the format `template`; None takes the tokenizer's.
        chat_template_kwargs: What the chat template is given besides the messages.

    Returns:
        The formatter.
    """
    if not isinstance(formatter, str):
        return formatter
    return create_formatter(
        formatter,
        eos_token=tokenizer.eos_token,
        tokenizer=tokenizer,
        template=chat_template,
        template_kwargs=chat_template_kwargs,
    )


def _warn_about_markers(tokenizer: SFTTokenizer, formatter: ConversationFormatter) -> None:
    missing = [marker for marker in formatter.control_markers if marker not in tokenizer.control_tokens]
    if missing:
        cost = sum(len(tokenizer.encode(marker).ids_T) for marker in missing)
        logger.warning(
            "%s: %s are no tokens of this tokenizer, so they are plain text: %d tokens in each turn instead of %d,"
            " and a"
            " server has to stop at a text instead of a token; add them as special tokens, or take a tokenizer that has"
            " them",
            tokenizer.name,
            " and ".join(missing),
            cost,
            len(missing),
        )
