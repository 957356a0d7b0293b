# SPDX-License-Identifier: Apache-2.0
"""What the data sets of a run have in common, and what must hold before any row is read."""

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
from primus.sft.recipe import Encoder
from primus.sft.tokenizer import SFTTokenizer


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
        if Path(STDIN) in files:
            raise ConfigError(
                f"sft_dataset_name: {STDIN} is standard input, which no second rank and no later run can read; write it"
                f" to a file first: primus data convert {STDIN} conversations.jsonl"
            )
        Encoder(self.tokenizer, self.formatter, self.options).refuse_unfit()


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
