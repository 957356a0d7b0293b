# SPDX-License-Identifier: Apache-2.0
"""From the configuration to the data sets of a run."""

from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset, build_train_valid_test_datasets
from primus.config.schema import TrainConfig
from primus.errors import ConfigError
from primus.sft.options import build_options
from primus.sft.tokenizer import SFTTokenizer


def build_datasets(
    config: TrainConfig, *, tokenizer: SFTTokenizer, writes_quarantine: bool = True
) -> tuple[SFTDataset, SFTDataset | None]:
    """Training and validation data of a run.

    Args:
        config: The run.
        tokenizer: Its tokenizer.
        writes_quarantine: Whether this process writes the bad rows, to `quarantine/` of the run's folder; all ranks
            read the same rows, and one of them writes.

    Returns:
        Training data, and validation data or None if none is asked for.

    Raises:
        ConfigError: If no data is named.
        DataError: If the data can't be used.
    """
    keys = config.trainer
    if keys.sft_dataset_name is None:
        raise ConfigError("sft_dataset_name: is not set; name a data file")
    train, validation, _ = build_train_valid_test_datasets(
        keys.sft_dataset_name,
        tokenizer,
        keys.seq_length,
        formatter=keys.sft_conversation_format,
        chat_template=keys.sft_chat_template,
        chat_template_kwargs=keys.sft_chat_template_kwargs,
        seed=keys.seed,
        split=keys.sft_dataset_split,
        validation_dataset_name=keys.sft_validation_dataset_name,
        validation_split=keys.sft_validation_split,
        validation_fraction=keys.sft_validation_fraction,
        quarantine_dir=config.exp_dir / "quarantine" if writes_quarantine else None,
        options=build_options(keys),
        packing=keys.packing,
    )
    return train, validation
