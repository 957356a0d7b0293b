# SPDX-License-Identifier: Apache-2.0
"""What must hold between keys.

A rule names the keys that it reads, the one to blame first, and says what is wrong. It is not asked where one of its
keys is wrong by itself.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from primus.config.layout_rules import (
    pipeline_ranks_share_the_layers,
    recomputed_blocks_fill_a_chunk,
    tensor_ranks_share_the_layers,
    virtual_stages_share_the_layers,
)
from primus.config.schema import LoraConfig, TrainerConfig

Complaint: TypeAlias = Callable[[TrainerConfig], str | None]


class Rule(NamedTuple):
    """A condition on several keys."""

    keys: tuple[str, ...]
    """The keys that it reads; the message is about the first that was written."""
    complaint: Complaint
    """Says what is wrong and what to do, or None."""


RULES: list[Rule] = []


def _rule(*keys: str) -> Callable[[Complaint], Complaint]:
    def add(complaint: Complaint) -> Complaint:
        RULES.append(Rule(keys, complaint))
        return complaint

    return add


def broken_rules(trainer: TrainerConfig, *, wrong: frozenset[str]) -> Sequence[tuple[Rule, str]]:
    """Return the rules that do not hold, each with what is wrong.

    Args:
        trainer: The settings; keys in `wrong` may be missing.
        wrong: Keys without a usable value; rules that read one of them are left out.

    Returns:
        In the order of the rules.
    """
    asked = [rule for rule in RULES if wrong.isdisjoint(rule.keys)]
    return [(rule, complaint) for rule in asked if (complaint := rule.complaint(trainer)) is not None]


@_rule("sft_dataset_name", "sft_sources")
def _some_data(t: TrainerConfig) -> str | None:
    if t.sft_dataset_name and t.sft_sources:
        return "is given, and sft_sources too; keep one, and move the files of the other into it"
    if t.sft_dataset_name or t.sft_sources:
        return None
    return "is missing; give the file or files to train on, for example sft_dataset_name=train.jsonl"


@_rule("sft_sources")
def _shares_of_one_kind(t: TrainerConfig) -> str | None:
    shares = [(source.epochs is not None, source.weight is not None) for source in t.sft_sources]
    if (True, True) in shares:
        return f"source {shares.index((True, True)) + 1} has epochs and weight; keep one of them"
    weighted = [has_weight for _, has_weight in shares]
    if any(weighted) and not all(weighted):
        return f"source {weighted.index(False) + 1} has no weight, and others have; give each a weight, or each epochs"
    return None


@_rule("sft_sources", "sft_dataset_split", "sft_source_format", "sft_messages_field", "sft_validation_split")
def _sources_speak_for_themselves(t: TrainerConfig) -> str | None:
    if not t.sft_sources:
        return None
    own = {
        "sft_dataset_split": t.sft_dataset_split != "train",
        "sft_source_format": t.sft_source_format != "auto",
        "sft_messages_field": t.sft_messages_field != "messages",
        "sft_validation_split": t.sft_validation_split is not None,
    }
    names = [name for name, is_given in own.items() if is_given]
    if not names:
        return None
    return f"each source says for itself what {' and '.join(names)} would say for all; take that out"


@_rule("tokenizer_model")
def _a_tokenizer(t: TrainerConfig) -> str | None:
    if t.tokenizer_model:
        return None
    return (
        "is missing; give a folder or name for AutoTokenizer, a tokenizer.json or a SentencePiece .model, "
        "for example tokenizer_model=Qwen/Qwen2.5-7B"
    )


@_rule("sft_validation_dataset_name", "sft_validation_split", "sft_validation_fraction")
def _one_validation_source(t: TrainerConfig) -> str | None:
    given = {
        "sft_validation_dataset_name": t.sft_validation_dataset_name is not None,
        "sft_validation_split": t.sft_validation_split is not None,
        "sft_validation_fraction": t.sft_validation_fraction > 0,
    }
    names = [name for name, is_given in given.items() if is_given]
    if len(names) < 2:
        return None
    return f"{' and '.join(names)} are given together; keep one, and set the others to null (the fraction to 0)"


@_rule("hidden_size", "num_attention_heads", "kv_channels")
def _heads_share_the_width(t: TrainerConfig) -> str | None:
    if t.kv_channels is not None or t.hidden_size % t.num_attention_heads == 0:
        return None
    return (
        f"{t.hidden_size} is not divisible by num_attention_heads, {t.num_attention_heads}; "
        "change one of them, or set kv_channels"
    )


@_rule("kv_channels", "hidden_size", "num_attention_heads")
def _rotary_pairs(t: TrainerConfig) -> str | None:
    width = t.kv_channels or t.hidden_size // t.num_attention_heads
    if width % 2 == 0:
        return None
    return f"a head is {width} wide, and rotary positions turn pairs of channels; make it even"


@_rule("num_query_groups", "num_attention_heads")
def _groups_share_the_heads(t: TrainerConfig) -> str | None:
    if t.num_query_groups is None or t.num_attention_heads % t.num_query_groups == 0:
        return None
    return f"{t.num_query_groups} does not divide num_attention_heads, {t.num_attention_heads}; change one of them"


@_rule("seq_length", "max_position_embeddings")
def _sequences_fit_the_positions(t: TrainerConfig) -> str | None:
    if t.seq_length <= t.max_position_embeddings:
        return None
    return f"{t.seq_length} is more than max_position_embeddings, {t.max_position_embeddings}; shorten the sequences"


@_rule("seq_length", "context_parallel_size", "sequence_parallel", "tensor_model_parallel_size")
def _ranks_share_sequences_evenly(t: TrainerConfig) -> str | None:
    factors = {
        "2 x context_parallel_size": 2 * t.context_parallel_size if t.context_parallel_size > 1 else 1,
        "tensor_model_parallel_size": t.tensor_model_parallel_size if t.sequence_parallel else 1,
    }
    shared = math.prod(factors.values())
    if t.seq_length % shared == 0:
        return None
    names = " x ".join(name for name, factor in factors.items() if factor > 1)
    above = -(-t.seq_length // shared) * shared
    nearest = f"{above - shared} or {above}" if above > shared else f"{above}"
    return f"{t.seq_length} is not a multiple of {names} = {shared}, of which each rank has a part; set it to {nearest}"


_rule("tensor_model_parallel_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size")(
    tensor_ranks_share_the_layers
)
_rule("pipeline_model_parallel_size", "num_layers")(pipeline_ranks_share_the_layers)
_rule("virtual_pipeline_model_parallel_size", "pipeline_model_parallel_size", "num_layers")(
    virtual_stages_share_the_layers
)
_rule(
    "recompute_num_layers",
    "recompute_method",
    "recompute_granularity",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "num_layers",
)(recomputed_blocks_fill_a_chunk)


@_rule("sft_chat_template", "sft_chat_template_kwargs", "sft_conversation_format")
def _template_goes_with_its_format(t: TrainerConfig) -> str | None:
    if t.sft_conversation_format == "template" or not (t.sft_chat_template or t.sft_chat_template_kwargs):
        return None
    return (
        f"is for sft_conversation_format: template, and that is {t.sft_conversation_format!r}; change it, or take the"
        " chat template out"
    )


@_rule("sft_turn_schedule", "sft_supervise_turns")
def _a_schedule_needs_turns(t: TrainerConfig) -> str | None:
    if t.sft_turn_schedule == "uniform" or t.sft_supervise_turns == "all":
        return None
    return (
        f"{t.sft_turn_schedule} weighs several turns of a conversation, and sft_supervise_turns: last leaves one; set"
        " one of them to its default"
    )


@_rule("sft_turn_schedule_start", "sft_turn_schedule")
def _only_a_line_has_a_start(t: TrainerConfig) -> str | None:
    if t.sft_turn_schedule_start is None or t.sft_turn_schedule == "linear":
        return None
    return f"is for sft_turn_schedule: linear, and that is {t.sft_turn_schedule}; change it, or set this to null"


@_rule("sft_turn_schedule", "sft_turn_schedule_decay")
def _exponential_schedules_decay(t: TrainerConfig) -> str | None:
    if t.sft_turn_schedule != "exponential" or t.sft_turn_schedule_decay is not None:
        return None
    return "exponential needs sft_turn_schedule_decay; give the factor from each trained turn to the one before it"


@_rule("sft_turn_schedule_decay", "sft_turn_schedule")
def _nothing_else_decays(t: TrainerConfig) -> str | None:
    if t.sft_turn_schedule_decay is None or t.sft_turn_schedule == "exponential":
        return None
    return f"is for sft_turn_schedule: exponential, and that is {t.sft_turn_schedule}; change it, or set this to null"


@_rule("sft_add_bos", "sft_conversation_format")
def _chat_templates_write_bos(t: TrainerConfig) -> str | None:
    if not t.sft_add_bos or t.sft_conversation_format in {"openai", "messages", "chatml", "alpaca"}:
        return None
    return (
        f"is true, but the format {t.sft_conversation_format!r} writes BOS itself where it is wanted, and a second one"
        " would follow; set sft_add_bos to null"
    )


@_rule("sft_length_bucket", "sft_packing", "enable_packed_sequences")
def _packed_sequences_are_of_one_length(t: TrainerConfig) -> str | None:
    if not t.sft_length_bucket or t.packing == "none":
        return None
    return (
        f"{t.sft_length_bucket} sorts conversations by length, and packed sequences (sft_packing {t.packing}) have one;"
        " set it to 0"
    )


@_rule("sft_shuffle_buffer", "sft_streaming")
def _only_streams_have_a_buffer(t: TrainerConfig) -> str | None:
    if t.sft_streaming or t.sft_shuffle_buffer is None:
        return None
    return "is for sft_streaming, which is off; prepared data is shuffled as a whole, so set this to null"


@_rule("sft_streaming", "sft_sources", "sft_validation_fraction", "sft_length_bucket", "sft_num_epochs")
def _streams_see_a_part_at_a_time(t: TrainerConfig) -> str | None:
    instead = {
        "sft_sources": (bool(t.sft_sources), "name files with sft_dataset_name"),
        "sft_validation_fraction": (t.sft_validation_fraction > 0, "name files to validate on"),
        "sft_length_bucket": (t.sft_length_bucket > 0, "pack sequences (sft_packing)"),
        "sft_num_epochs": (t.sft_num_epochs is not None, "give train_iters"),
    }
    given = {name: remedy for name, (is_given, remedy) in instead.items() if is_given}
    if not t.sft_streaming or not given:
        return None
    return f"true excludes {' and '.join(given)}, which need all the data at once; {' and '.join(given.values())}"


@_rule("sft_loss_normalizer", "sft_truncation")
def _windows_share_no_vote(t: TrainerConfig) -> str | None:
    if t.sft_loss_normalizer != "conversation" or t.sft_truncation != "window":
        return None
    return (
        "conversation gives each conversation one vote, and sft_truncation: window makes several sequences of one,"
        " which come in different steps; set it to turn, or sft_truncation to keep_last_turns"
    )


@_rule("sft_sources")
def _one_source_has_no_share(t: TrainerConfig) -> str | None:
    if len(t.sft_sources) != 1 or t.sft_sources[0].weight is None:
        return None
    return "there is one source, and its weight is a share among several; leave it away"


@_rule("hf_path", "load", "finetune")
def _weights_come_from_one_place(t: TrainerConfig) -> str | None:
    if t.hf_path is None or t.load is None or not t.finetune:
        return None
    return "is given, and load with finetune too, and each has weights to begin with; set one of them to null"


@_rule("lora.target_modules", "lora")
def _adapters_have_layers(t: TrainerConfig) -> str | None:
    known = LoraConfig.model_fields["target_modules"].default
    unknown = [name for name in t.lora.target_modules if name not in known]
    if not t.lora.enabled or (t.lora.target_modules and not unknown):
        return None
    wrong = f"{', '.join(unknown)} is no layer that can have an adapter" if unknown else "names no layer"
    return f"{wrong}; there are {', '.join(known)}"


@_rule("train_iters", "sft_num_epochs")
def _one_length_of_training(t: TrainerConfig) -> str | None:
    if t.train_iters is None and t.sft_num_epochs is None:
        return "neither train_iters nor sft_num_epochs is given; give one of them"
    if t.train_iters is not None and t.sft_num_epochs is not None:
        return f"{t.train_iters} is given, and sft_num_epochs, {t.sft_num_epochs:g}, too; set one of them to null"
    return None


@_rule("global_batch_size", "micro_batch_size")
def _whole_micro_batches(t: TrainerConfig) -> str | None:
    if t.global_batch_size % t.micro_batch_size == 0:
        return None
    return f"{t.global_batch_size} is not divisible by micro_batch_size, {t.micro_batch_size}; change one of them"


@_rule("min_lr", "lr")
def _the_rate_falls(t: TrainerConfig) -> str | None:
    return None if t.min_lr <= t.lr else f"{t.min_lr:g} is more than lr, {t.lr:g}; lower it"


@_rule("lr_warmup_iters", "train_iters")
def _warm_up_ends_before_training(t: TrainerConfig) -> str | None:
    if t.train_iters is None or t.lr_warmup_iters < t.train_iters:
        return None
    return f"{t.lr_warmup_iters} is not less than train_iters, {t.train_iters}; shorten the warm-up"


@_rule("lr_warmup_iters", "lr_decay_iters")
def _warm_up_ends_before_the_decay(t: TrainerConfig) -> str | None:
    # Megatron's OptimizerParamScheduler asserts it, equality included.
    if t.lr_decay_iters is None or t.lr_warmup_iters < t.lr_decay_iters:
        return None
    return f"{t.lr_warmup_iters} is not less than lr_decay_iters, {t.lr_decay_iters}; shorten the warm-up"


@_rule("lr_decay_style", "lr_wsd_decay_iters")
def _wsd_has_a_last_phase(t: TrainerConfig) -> str | None:
    if t.lr_decay_style != "WSD" or t.lr_wsd_decay_iters is not None:
        return None
    return "WSD needs lr_wsd_decay_iters; give the steps of its last phase"


@_rule("lr_wsd_decay_iters", "lr_decay_style", "lr_decay_iters", "train_iters")
def _the_last_phase_fits(t: TrainerConfig) -> str | None:
    if t.lr_decay_style != "WSD" or t.lr_wsd_decay_iters is None:
        return None
    name, steps = ("lr_decay_iters", t.lr_decay_iters) if t.lr_decay_iters else ("train_iters", t.train_iters)
    if steps is not None and t.lr_wsd_decay_iters > steps:
        return f"{t.lr_wsd_decay_iters} is more than {name}, {steps}; shorten the last phase"
    return None


@_rule("overlap_param_gather", "use_distributed_optimizer", "overlap_grad_reduce")
def _gathering_needs_shards(t: TrainerConfig) -> str | None:
    needs = {
        "use_distributed_optimizer": t.use_distributed_optimizer,
        "overlap_grad_reduce": t.overlap_grad_reduce,
    }
    missing = [name for name, is_on in needs.items() if not is_on]
    if not t.overlap_param_gather or not missing:
        return None
    return f"true needs {' and '.join(missing)}; turn that on, or this off"


@_rule("sequence_parallel", "tensor_model_parallel_size")
def _sequence_parallel_needs_tensor_parallel(t: TrainerConfig) -> str | None:
    if not t.sequence_parallel or t.tensor_model_parallel_size > 1:
        return None
    return "true needs tensor_model_parallel_size of 2 or more; raise that, or turn this off"


@_rule("recompute_granularity", "recompute_method", "recompute_num_layers")
def _only_full_recomputation_is_divided(t: TrainerConfig) -> str | None:
    if t.recompute_granularity == "full" or (t.recompute_method is None and t.recompute_num_layers is None):
        return None
    value = t.recompute_granularity or "null"
    return (
        f"recompute_method and recompute_num_layers are for recompute_granularity full, which is {value}; "
        "set them to null, or that to full"
    )
