# SPDX-License-Identifier: Apache-2.0
"""Training on megatron-core; the only room that imports torch and megatron.core.

In the order a run passes through them:

    datasets        the configuration -> training and validation data; core/datasets/sft_dataset has SFTDataset
    layout          processes, micro-batches, steps: integers only
    distributed     this process's rank and device; process groups; tear-down
    cpu             what megatron-core needs where there is no accelerator
    model           Megatron's GPTModel from the model keys
    attention       the attention and normalisation modules of that model
    batches         sequences in their seeded order -> micro-batches of one data-parallel rank
    loss            the masked per-token loss, as Megatron's schedules want it
    optimizer       AdamW, gradient clipping, learning-rate schedule
    evaluation      mean loss per supervised token over the validation split
    checkpoint      save and load the weights and the optimizer; checkpoint_folder is what stands around them
    metrics         metrics.jsonl and TensorBoard; loss_curve draws the first
    progress        what a person sees meanwhile
    trainer         the run itself, from a configuration to a trained model

Before a run `plan`, with `memory` and `parameter_count`, says what it will be, and `launch` starts several processes.
After it `hf_export` makes a Hugging Face folder of a checkpoint.
"""

import warnings

# At import megatron-core says in a dozen warnings that its optional CUDA extensions are missing, and that it uses parts
# of its own that are deprecated. The log says which attention runs; the rest is nothing that a user can change.
warnings.filterwarnings(
    "ignore", message=".*Apex (is|are) not installed", category=UserWarning, module=r"megatron\.core"
)
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"megatron\.core")
