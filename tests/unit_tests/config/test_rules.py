# SPDX-License-Identifier: Apache-2.0
from typing import cast

import pytest

from primus.config import TrainerConfig, load_config
from primus.config.rules import RULES, Rule, broken_rules
from tests.unit_tests.config.conftest import RUN, Problems, Write


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            "sft_dataset_name=null",
            (
                "sft_dataset_name: is missing; give the file or files to train on, "
                "for example sft_dataset_name=train.jsonl"
            ),
        ),
        (
            "tokenizer_model=null",
            (
                "tokenizer_model: is missing; give a folder or name for AutoTokenizer, a tokenizer.json or a "
                "SentencePiece .model, for example tokenizer_model=Qwen/Qwen2.5-7B"
            ),
        ),
        (
            "sft_validation_fraction=0.1 sft_validation_split=test",
            (
                "sft_validation_split: sft_validation_split and sft_validation_fraction are given together; "
                "keep one, and set the others to null (the fraction to 0)"
            ),
        ),
        (
            "hidden_size=130",
            "hidden_size: 130 is not divisible by num_attention_heads, 4; change one of them, or set kv_channels",
        ),
        (
            "hidden_size=132",
            "hidden_size: a head is 33 wide, and rotary positions turn pairs of channels; make it even",
        ),
        ("kv_channels=5", "kv_channels: a head is 5 wide, and rotary positions turn pairs of channels; make it even"),
        ("num_query_groups=3", "num_query_groups: 3 does not divide num_attention_heads, 4; change one of them"),
        ("seq_length=513", "seq_length: 513 is more than max_position_embeddings, 512; shorten the sequences"),
        (
            "seq_length=510 context_parallel_size=2",
            (
                "seq_length: 510 is not a multiple of 2 x context_parallel_size = 4, of which each rank has a part; "
                "set it to 508 or 512"
            ),
        ),
        (
            "seq_length=500 context_parallel_size=2 tensor_model_parallel_size=2 sequence_parallel=true",
            (
                "seq_length: 500 is not a multiple of 2 x context_parallel_size x tensor_model_parallel_size = 8, of "
                "which each rank has a part; set it to 496 or 504"
            ),
        ),
        (
            "seq_length=3 tensor_model_parallel_size=4 sequence_parallel=true num_query_groups=4",
            (
                "seq_length: 3 is not a multiple of tensor_model_parallel_size = 4, of which each rank has a part; "
                "set it to 4"
            ),
        ),
        (
            "tensor_model_parallel_size=3",
            (
                "tensor_model_parallel_size: 3 does not divide num_attention_heads, 4, and ffn_hidden_size, 256, of "
                "which each rank has a part; set it to 2 or 4"
            ),
        ),
        (
            "tensor_model_parallel_size=4 num_query_groups=2",
            (
                "tensor_model_parallel_size: 4 does not divide num_query_groups, 2, of which each rank has a part; set "
                "it to 2"
            ),
        ),
        (
            "pipeline_model_parallel_size=3 num_layers=8",
            (
                "pipeline_model_parallel_size: 3 does not divide num_layers, 8, of which each rank has a part; set "
                "it to 2 or 4"
            ),
        ),
        (
            "virtual_pipeline_model_parallel_size=2",
            (
                "virtual_pipeline_model_parallel_size: 2 needs pipeline_model_parallel_size of 2 or more; raise "
                "that, or set this to null"
            ),
        ),
        (
            "virtual_pipeline_model_parallel_size=1 pipeline_model_parallel_size=3",
            (
                "virtual_pipeline_model_parallel_size: 1 is one chunk on each pipeline rank, which null means; set "
                "it to null"
            ),
        ),
        (
            "virtual_pipeline_model_parallel_size=3 pipeline_model_parallel_size=2 num_layers=8",
            (
                "virtual_pipeline_model_parallel_size: 3 does not divide the layers of a pipeline rank, 4; set it to "
                "2 or 4, or to null"
            ),
        ),
        (
            "virtual_pipeline_model_parallel_size=2 pipeline_model_parallel_size=2 num_layers=2",
            "virtual_pipeline_model_parallel_size: 2 does not divide the layers of a pipeline rank, 1; set it to null",
        ),
        (
            "recompute_granularity=full recompute_num_layers=3 pipeline_model_parallel_size=2 num_layers=8",
            (
                "recompute_num_layers: 3 does not divide the 4 layers that a rank has in one piece, which "
                "recompute_method uniform cuts into blocks; set it to 2 or 4"
            ),
        ),
        (
            "sft_packing=sequential sft_length_bucket=8",
            (
                "sft_length_bucket: 8 sorts conversations by length, and packed sequences (sft_packing sequential) "
                "have one; set it to 0"
            ),
        ),
        (
            "sft_turn_schedule=linear sft_supervise_turns=last",
            (
                "sft_turn_schedule: linear weighs several turns of a conversation, and sft_supervise_turns: last "
                "leaves one; set one of them to its default"
            ),
        ),
        (
            "sft_turn_schedule_start=0.5",
            (
                "sft_turn_schedule_start: is for sft_turn_schedule: linear, and that is uniform; change it, or set "
                "this to null"
            ),
        ),
        (
            "sft_turn_schedule=exponential",
            (
                "sft_turn_schedule: exponential needs sft_turn_schedule_decay; give the factor from each trained turn "
                "to the one before it"
            ),
        ),
        (
            "sft_turn_schedule=linear sft_turn_schedule_decay=0.5",
            (
                "sft_turn_schedule_decay: is for sft_turn_schedule: exponential, and that is linear; change it, or set "
                "this to null"
            ),
        ),
        (
            "sft_shuffle_buffer=0",
            (
                "sft_shuffle_buffer: is for sft_streaming, which is off; prepared data is shuffled as a whole, so set "
                "this to null"
            ),
        ),
        ("train_iters=null", "train_iters: neither train_iters nor sft_num_epochs is given; give one of them"),
        (
            "sft_num_epochs=2.5 train_iters=10",
            "train_iters: 10 is given, and sft_num_epochs, 2.5, too; set one of them to null",
        ),
        (
            "micro_batch_size=3 global_batch_size=4",
            "global_batch_size: 4 is not divisible by micro_batch_size, 3; change one of them",
        ),
        ("min_lr=0.01", "min_lr: 0.01 is more than lr, 0.001; lower it"),
        ("lr_warmup_iters=10", "lr_warmup_iters: 10 is not less than train_iters, 10; shorten the warm-up"),
        (
            "lr_warmup_iters=5 lr_decay_iters=5",
            "lr_warmup_iters: 5 is not less than lr_decay_iters, 5; shorten the warm-up",
        ),
        (
            "lr_decay_style=WSD",
            "lr_decay_style: WSD needs lr_wsd_decay_iters; give the steps of its last phase",
        ),
        (
            "lr_decay_style=WSD lr_wsd_decay_iters=11",
            "lr_wsd_decay_iters: 11 is more than train_iters, 10; shorten the last phase",
        ),
        (
            "lr_decay_style=WSD lr_wsd_decay_iters=9 lr_decay_iters=8",
            "lr_wsd_decay_iters: 9 is more than lr_decay_iters, 8; shorten the last phase",
        ),
        (
            "overlap_param_gather=true",
            (
                "overlap_param_gather: true needs use_distributed_optimizer and overlap_grad_reduce; "
                "turn that on, or this off"
            ),
        ),
        (
            "overlap_param_gather=true use_distributed_optimizer=true",
            "overlap_param_gather: true needs overlap_grad_reduce; turn that on, or this off",
        ),
        (
            "recompute_granularity=selective recompute_method=block",
            (
                "recompute_granularity: recompute_method and recompute_num_layers are for recompute_granularity full, "
                "which is selective; set them to null, or that to full"
            ),
        ),
        (
            "recompute_num_layers=2",
            (
                "recompute_num_layers: recompute_method and recompute_num_layers are for recompute_granularity full, "
                "which is null; set them to null, or that to full"
            ),
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(problems: Problems, overrides: str, problem: str) -> None:
    assert problems(*overrides.split()) == [f"command line: {problem}"]


@pytest.mark.parametrize(
    "overrides",
    [
        "hidden_size=130 kv_channels=32",
        "seq_length=512",
        "train_iters=null sft_num_epochs=2 lr_warmup_iters=50",
        "lr_warmup_iters=9",
        "min_lr=1e-3",
        "lr_decay_style=WSD lr_wsd_decay_iters=10",
        "overlap_param_gather=true use_distributed_optimizer=true overlap_grad_reduce=true",
        "recompute_granularity=full",
        "recompute_granularity=full recompute_method=block recompute_num_layers=1",
        "recompute_granularity=selective",
        "sft_turn_schedule=linear sft_turn_schedule_start=0",
        "sft_turn_schedule=exponential sft_turn_schedule_decay=0.5",
        "sft_supervise_turns=last sft_loss_normalizer=turn",
        "sft_validation_fraction=0.1",
        "sft_validation_dataset_name=[a,b]",
    ],
)
def test_keys_at_the_edge_of_a_rule_are_accepted(overrides: str) -> None:
    load_config("run.yaml", overrides=overrides.split())


def test_a_broken_rule_names_the_line_of_the_key_that_was_set(write: Write, problems: Problems) -> None:
    write("run.yaml", RUN + "      micro_batch_size: 3\n      lr_decay_style: WSD\n")
    assert [problem.split(": ")[:2] for problem in problems()] == [
        ["run.yaml:10", "global_batch_size"],
        ["run.yaml:14", "lr_decay_style"],
    ]


def test_a_missing_key_of_a_rule_names_the_file(write: Write, problems: Problems) -> None:
    write("run.yaml", RUN.replace("      train_iters: 10\n", ""))
    assert problems() == ["run.yaml: train_iters: neither train_iters nor sft_num_epochs is given; give one of them"]


def test_sequence_parallelism_needs_tensor_parallelism() -> None:
    trainer = load_config("run.yaml").trainer.model_copy(update={"sequence_parallel": True})
    assert [complaint for _, complaint in broken_rules(trainer, wrong=frozenset())] == [
        "true needs tensor_model_parallel_size of 2 or more; raise that, or turn this off"
    ]
    together = trainer.model_copy(update={"tensor_model_parallel_size": 2})
    assert not broken_rules(together, wrong=frozenset())


def test_streams_exclude_what_needs_all_the_data_at_once() -> None:
    trainer = load_config("run.yaml").trainer.model_copy(update={"sft_streaming": True, "sft_shuffle_buffer": 9})
    assert not broken_rules(trainer, wrong=frozenset())
    more = {"sft_validation_fraction": 0.1, "sft_length_bucket": 8, "sft_num_epochs": 2.0, "train_iters": None}
    [(_, complaint)] = broken_rules(trainer.model_copy(update=more), wrong=frozenset())
    assert complaint == (
        "true excludes sft_validation_fraction and sft_length_bucket and sft_num_epochs, which need all the data at"
        " once; name files to validate on and pack sequences (sft_packing) and give train_iters"
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.complaint.__name__)
def test_a_rule_reads_only_the_keys_that_it_names(rule: Rule) -> None:
    read: set[str] = set()

    class Spy:
        def __getattr__(self, name: str) -> object:
            read.add(name)
            return getattr(trainer, name)

    trainer = load_config("run.yaml", overrides=["lr_decay_style=WSD", "lr_wsd_decay_iters=1"]).trainer
    rule.complaint(cast(TrainerConfig, Spy()))
    keys = rule.keys
    assert read <= set(keys)
    assert {key.partition(".")[0] for key in keys} <= TrainerConfig.model_fields.keys()


def test_a_wrong_key_does_not_hide_a_broken_rule_of_others(problems: Problems) -> None:
    assert problems("hidden_size=wide", "micro_batch_size=3", "num_attention_heads=0") == [
        "command line: hidden_size: 'wide' is not a whole number; write one, for example 8",
        "command line: num_attention_heads: 0 is not greater than 0; choose a larger value",
        "run.yaml:10: global_batch_size: 4 is not divisible by micro_batch_size, 3; change one of them",
    ]


@pytest.mark.parametrize(
    ("overrides", "packing"),
    [
        ("", "none"),
        ("enable_packed_sequences=true", "best_fit"),
        ("sft_packing=sequential", "sequential"),
        ("enable_packed_sequences=true sft_packing=sequential", "sequential"),
    ],
)
def test_packing_is_asked_for_by_either_key(write: Write, overrides: str, packing: str) -> None:
    config = load_config(write("packed.yaml", RUN), overrides=overrides.split())
    assert config.trainer.packing == packing
