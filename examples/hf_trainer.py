# SPDX-License-Identifier: Apache-2.0
"""Train with Hugging Face's Trainer on multi-turn conversations.

    python examples/hf_trainer.py MODEL CONVERSATIONS [STEPS]

MODEL is a Hugging Face folder with a tokenizer that has a chat template; CONVERSATIONS is a file such as
examples/data/demo-train.jsonl.gz. It needs `accelerate`.
"""

import sys

import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset

IGNORED = -100


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Align the labels with the tokens: the models of `transformers` shift them by one themselves."""
    batch = default_collate(rows)
    targets = torch.where(batch["loss_mask"] > 0, batch["labels"], IGNORED)
    tokens = torch.cat([batch["input_ids"][:, :1], batch["labels"]], dim=1)
    return {"input_ids": tokens, "labels": torch.cat([torch.full_like(tokens[:, :1], IGNORED), targets], dim=1)}


model_folder, conversations, num_steps = [*sys.argv[1:], "10"][:3]
settings = TrainingArguments(
    output_dir="trainer-output",
    per_device_train_batch_size=8,
    max_steps=int(num_steps),
    learning_rate=1e-3,
    lr_scheduler_type="constant",
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    remove_unused_columns=False,  # `collate` needs the loss mask
)
trainer = Trainer(
    model=AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32),
    args=settings,
    train_dataset=SFTDataset(
        conversations, model_folder, max_seq_length=160, formatter="template", supervise_end_of_turn=True
    ),
    data_collator=collate,
)
trainer.train()
losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
