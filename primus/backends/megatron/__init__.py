# SPDX-License-Identifier: Apache-2.0
"""Training on megatron-core; the only room that imports torch and megatron.core.

In the order a run passes through them:

    data/           the configuration -> data sets -> micro-batches of a rank; core/datasets has SFTDataset
    planning/       processes, memory, steps, before anything starts: integers only
    distributed     this process's rank and device; process groups; tear-down
    cpu             what megatron-core needs where there is no accelerator
    model/          Megatron's GPTModel from the model keys, with the attention and normalisation of its layers
    loss            the masked per-token loss, as Megatron's schedules want it
    optimizer       AdamW, gradient clipping, learning-rate schedule
    step            one optimizer step
    evaluation      mean loss per supervised token over the validation split
    checkpoint/     save and load the weights and the optimizer, and the folder around them
    blame           which conversations have a loss that is no number
    reporting/      metrics.jsonl, TensorBoard, W&B, the page of a run, and what a person sees meanwhile
    determinism     the same bits every time, also on a GPU
    stopping        a signal stops all ranks after the same step
    utilization     useful operations per second, their share of the peak rate, peak memory
    training_run    the steps of a run, in this process
    trainer         the run itself, from a configuration to a trained model
    launch          several processes on this machine
    huggingface/    a Hugging Face folder of a checkpoint
"""

import warnings

# At import megatron-core says in a dozen warnings that its optional CUDA extensions are missing, and that it uses parts
# of its own that are deprecated. The log says which attention runs; the rest is nothing that a user can change.
warnings.filterwarnings(
    "ignore", message=".*Apex (is|are) not installed", category=UserWarning, module=r"megatron\.core"
)
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"megatron\.core")
