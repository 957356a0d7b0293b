# SPDX-License-Identifier: Apache-2.0
"""Training sequences as Megatron-LM's training loop reads them.

`pretrain()` of Megatron-LM asks a provider for three data sets, and how many samples of each it will read. Its sampler
then goes through them from the first to the last, once. So a data set has as many samples as it is asked for, and they
are in the order of training.

S: positions of a training sequence. C: conversations of one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from primus.backends.megatron.core.datasets.training_sequences import TrainingSequences
from primus.errors import ConfigError


class MegatronSamples(Dataset[dict[str, Tensor]]):
    """So many samples of some training sequences, shuffled, epoch behind epoch, as `primus train` reads them.

    Sample `i` is always the same, so a run that goes on from a checkpoint reads on where it was, with any number of
    ranks.

    Args:
        data: The training sequences.
        num_samples: How many samples there are; they may be more than there are sequences.
        create_attention_mask: Whether samples have a causal mask, as Megatron-LM expects them to have unless it is
            started with `--no-create-attention-mask-in-dataloader`. Its fused attention reads none.

    Raises:
        ConfigError: If targets have weights: Megatron-LM divides a loss by the sum of the weights, and not by the
            number of targets. Or if a mask is asked for and conversations share sequences: Megatron-LM keeps them apart
            by `cu_seqlens`.
    """

    def __init__(self, data: TrainingSequences, num_samples: int, *, create_attention_mask: bool = False) -> None:
        if not has_plain_weights(data):
            raise ConfigError(
                "loss_mask: the targets have weights, and Megatron-LM's loss function divides by their sum; train with"
                " primus train, or leave out the weights"
            )
        if create_attention_mask and data.is_packed:
            raise ConfigError(
                "create_attention_mask: packed conversations are kept apart by cu_seqlens, and not by a mask; start"
                " Megatron-LM with --no-create-attention-mask-in-dataloader"
            )
        self.data = data
        self._num_samples = num_samples
        self._create_attention_mask = create_attention_mask
        self._order = data.order(global_batch_size=1)

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One sample.

        Args:
            index: Which one, from 0.

        Returns:
            `tokens`, `labels`, `loss_mask` and `position_ids` as `SFTDataset` has them, shape [S], and
            `attention_mask`, shape [1, S, S], True where a position may not be attended to, if it is asked for. If
            conversations share sequences, also what `megatron/training/datasets/sft_dataset.py` of Megatron-LM gives:
            `cu_seqlens`, int32 of shape [C + 1] or, with padding as one more conversation, [C + 2], and `max_seqlen`.
        """
        if not 0 <= index < self._num_samples:
            raise IndexError(f"sample {index} of {self._num_samples}")
        sequence = self.data[int(self._order.global_batch(index)[0])]
        sample = {"tokens": sequence.pop("input_ids"), **sequence}
        if "cu_seqlens" in sample:
            bounds = sample["cu_seqlens"]
            if bounds[-1] < self.data.max_seq_length:
                # A kernel leaves what belongs to no conversation as it finds it.
                bounds = torch.cat([bounds, bounds.new_tensor([self.data.max_seq_length])])
            sample |= {"cu_seqlens": bounds, "max_seqlen": bounds.diff().max()}
        if self._create_attention_mask:
            positions = torch.arange(self.data.max_seq_length)
            sample["attention_mask"] = (positions[None] > positions[:, None]).unsqueeze(0)
        return sample


def has_plain_weights(data: TrainingSequences) -> bool:
    """Whether every target counts once, and is divided by once."""
    weights = [np.isin(shard.weights_K, (0, 1)).all() for shard in data.data.shards]
    return all(weights) and np.array_equal(data.num_units_N, data.num_targets_N)


def megatron_samples(
    datasets: Sequence[TrainingSequences | None],
    train_val_test_num_samples: Sequence[int],
    *,
    create_attention_mask: bool = False,
) -> tuple[MegatronSamples | None, ...]:
    """What a provider of Megatron-LM returns.

    Args:
        datasets: Training, validation and test data, of `build_train_valid_test_datasets`; None where there is none.
        train_val_test_num_samples: Samples that are asked for of each.
        create_attention_mask: As for `MegatronSamples`.

    Returns:
        The samples of each data set, in the same order; None where there is none or no sample is asked for.

    Raises:
        ConfigError: As for `MegatronSamples`.
    """
    return tuple(
        None
        if data is None or not num_samples
        else MegatronSamples(data, num_samples, create_attention_mask=create_attention_mask)
        for data, num_samples in zip(datasets, train_val_test_num_samples, strict=True)
    )
