# SPDX-License-Identifier: Apache-2.0
"""Train any PyTorch model on multi-turn conversations, in a loop of your own.

    python examples/pytorch_dataloader.py MODEL CONVERSATIONS [STEPS]

MODEL is a Hugging Face folder with a tokenizer that has a chat template; CONVERSATIONS is a file such as
examples/data/demo-train.jsonl.gz.
"""

import sys
from itertools import chain, islice, repeat

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset

model_folder, conversations, num_steps = [*sys.argv[1:], "10"][:3]
data = SFTDataset(conversations, model_folder, max_seq_length=160, formatter="template", supervise_end_of_turn=True)
loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(1234))
model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

losses = []
for batch in islice(chain.from_iterable(repeat(loader)), int(num_steps)):
    # Positions see only what is before them, so padding at the end needs no mask; the labels are shifted already.
    logits = model(batch["input_ids"]).logits
    loss_of_each = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none")
    weights = batch["loss_mask"].flatten()
    loss = (loss_of_each * weights).sum() / weights.count_nonzero()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    print(f"step {len(losses)}  loss {losses[-1]:.4f}")  # noqa: T201
