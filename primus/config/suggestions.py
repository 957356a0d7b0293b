# SPDX-License-Identifier: Apache-2.0
"""What someone probably meant by a name that does not exist."""

import difflib
from collections.abc import Collection, Mapping
from types import MappingProxyType

SAME_MEANING: Mapping[str, str] = MappingProxyType(
    {
        "batch_size": "global_batch_size",
        "cutoff_len": "seq_length",
        "gradient_accumulation_steps": "global_batch_size",
        "head_dim": "kv_channels",
        "keep_latest_k": "most_recent_k",
        "intermediate_size": "ffn_hidden_size",
        "learning_rate": "lr",
        "lr_scheduler_type": "lr_decay_style",
        "max_grad_norm": "clip_grad",
        "max_length": "seq_length",
        "max_seq_length": "seq_length",
        "max_steps": "train_iters",
        "num_epochs": "sft_num_epochs",
        "num_hidden_layers": "num_layers",
        "num_key_value_heads": "num_query_groups",
        "num_train_epochs": "sft_num_epochs",
        "output_dir": "workspace",
        "per_device_train_batch_size": "micro_batch_size",
        "resume_from_checkpoint": "load",
        "rms_norm_eps": "norm_epsilon",
        "rope_theta": "rotary_base",
        "save_steps": "save_interval",
        "save_total_limit": "most_recent_k",
        "sequence_len": "seq_length",
        "train_file": "sft_dataset_name",
        "warmup_steps": "lr_warmup_iters",
    }
)
"""Names that other trainers use, and the key here that means the same."""


def nearest(name: str, known: Collection[str]) -> str | None:
    """Return the known name that looks most like a name, or None if none does.

    Args:
        name: What was written.
        known: What could have been meant.

    Returns:
        One of `known`; the same letters in another case come first.

    Examples:
        >>> nearest("num_layer", ["num_layers", "lr"])
        'num_layers'
    """
    exact = {candidate.lower(): candidate for candidate in known}
    if name.lower() in exact:
        return exact[name.lower()]
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return matches[0] if matches else None
