# SPDX-License-Identifier: Apache-2.0
"""Train with Megatron-LM's own `pretrain_gpt.py` on multi-turn conversations.

In a checkout of Megatron-LM, with its arguments, and these among them:

    torchrun --nproc-per-node 8 /path/to/examples/megatron_lm.py \
        --train-data-path conversations.jsonl --tokenizer-type HuggingFaceTokenizer --tokenizer-model MODEL \
        --calculate-per-token-loss --no-create-attention-mask-in-dataloader ...

Everything but the data is Megatron-LM's.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))  # Megatron-LM's modules lie beside each other
import pretrain_gpt
from megatron.core.enums import ModelType
from megatron.training import get_args, pretrain

from primus.backends.megatron.core.datasets.megatron_samples import MegatronSamples, megatron_samples
from primus.backends.megatron.core.datasets.sft_dataset import build_train_valid_test_datasets
from primus.sft.dataset import EncodingOptions


def train_valid_test_datasets_provider(
    train_val_test_num_samples: Sequence[int],
    vp_stage: int | None = None,  # noqa: ARG001 - Megatron-LM passes it by name
) -> tuple[MegatronSamples | None, ...]:
    """The data sets; the same on every rank."""
    args = get_args()
    assert args.calculate_per_token_loss, "without --calculate-per-token-loss short answers would weigh more"
    datasets = build_train_valid_test_datasets(
        args.train_data_path,
        args.tokenizer_model,
        args.seq_length,
        train_val_test_num_samples,
        formatter="template",
        seed=args.seed,
        validation_dataset_name=args.valid_data_path,
        test_dataset_name=args.test_data_path,
        options=EncodingOptions(supervise_end_of_turn=True),
        packing="best_fit" if args.sft else "none",
    )
    return megatron_samples(
        datasets, train_val_test_num_samples, create_attention_mask=args.create_attention_mask_in_dataloader
    )


if __name__ == "__main__":
    pretrain(
        train_valid_test_datasets_provider,
        partial(pretrain_gpt.model_provider, pretrain_gpt.gpt_builder),
        ModelType.encoder_or_decoder,
        pretrain_gpt.forward_step,
    )
