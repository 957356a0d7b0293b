# SPDX-License-Identifier: Apache-2.0
"""Training on megatron-core; the only room that imports torch and megatron.core.

In the order a run passes through them:

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
"""

import warnings

# megatron-core warns at import, once per module, that its optional CUDA extensions are missing. The log says which
# attention and optimizer run; these lines would say it again, before any log exists.
for _message in ("Transformer Engine and Apex are not installed", "Apex is not installed"):
    warnings.filterwarnings("ignore", message=_message, category=UserWarning, module=r"megatron\.core")
