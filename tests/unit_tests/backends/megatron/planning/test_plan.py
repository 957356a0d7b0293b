# SPDX-License-Identifier: Apache-2.0
"""The plan of a run says what the run then does: as many tokens and steps."""

import json
from pathlib import Path
from typing import Any

import pytest

from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.data.batches import rank_micro_batches, read_micro_batch
from primus.backends.megatron.planning.devices import choose_machine
from primus.backends.megatron.planning.plan import Plan, build_plan
from primus.config import load_config
from primus.config.schema import TrainConfig
from primus.errors import LayoutError

CHECKOUT = Path(__file__).parents[5]
DATA = CHECKOUT / "examples/data"


def conversation(*answers: str) -> dict[str, Any]:
    messages = [message for answer in answers for message in ({"role": "user", "content": "Hi"}, assistant(answer))]
    return {"messages": messages}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    answers = [["Yes."] * (1 + number % 5) for number in range(23)]
    path.write_text("".join(json.dumps(conversation(*turns)) + "\n" for turns in answers))
    return path


def plan_of(rows: Path, *overrides: str, world_size: int = 1) -> tuple[Plan, TrainConfig, SFTDataset]:
    keys = [
        f"sft_dataset_name={rows}",
        "sft_validation_dataset_name=null",
        f"tokenizer_model={DATA / 'demo-tokenizer'}",
        "global_batch_size=4",
        "micro_batch_size=2",
        "train_iters=7",
        "lr_warmup_iters=0",
    ]
    config = load_config("tiny-multiturn-sft.yaml", overrides=[*keys, *overrides])
    data = SFTDataset(
        str(rows), config.trainer.tokenizer_model, config.trainer.seq_length, packing=config.trainer.packing
    )
    return build_plan(config, train=data, validation=None, world_size=world_size), config, data


def test_the_padding_share_is_that_of_the_micro_batches_of_the_run(rows: Path) -> None:
    plan, config, data = plan_of(rows, world_size=2)
    keys = config.trainer
    order = data.order(global_batch_size=4, length_bucket=keys.sft_length_bucket)
    places = positions = 0
    for step in range(plan.num_steps):
        for rank in range(2):
            for batch_B in rank_micro_batches(
                order.global_batch(step), micro_batch_size=2, data_parallel_rank=rank, data_parallel_size=2
            ):
                batch = read_micro_batch(data, batch_B, pad_to_multiple_of=keys.sft_pad_to_multiple_of)
                places += batch.input_ids_BS.numel()
                positions += int(data.num_positions_N[batch_B].sum())
                assert batch.input_ids_BS.size(1) <= plan.widest
    assert plan.padding_share == pytest.approx(1 - positions / places)


def test_tokens_steps_and_epochs_are_those_of_the_data(rows: Path) -> None:
    plan, _, data = plan_of(rows)
    assert plan.train.num_sequences == 23
    assert plan.train.num_positions == sum(
        int(data[i]["labels"].size(0) > 0) * n for i, n in enumerate(data.num_positions_N)
    )
    assert plan.train.num_targets == sum(int((data[i]["loss_mask"] > 0).sum()) for i in range(23))
    assert plan.num_steps == 7
    assert plan.num_epochs == pytest.approx(28 / 23)
    by_epochs, _, _ = plan_of(rows, "train_iters=null", "sft_num_epochs=2")
    assert by_epochs.num_steps == 12


def test_the_plan_of_packs_says_how_full_they_are(rows: Path) -> None:
    alone, _, _ = plan_of(rows)
    plan, config, data = plan_of(
        rows, "enable_packed_sequences=true", "sft_num_epochs=1", "train_iters=null", "sft_length_bucket=0"
    )
    assert data.plan is not None
    assert plan.train.num_conversations == alone.train.num_sequences == 23
    assert plan.train.num_sequences == len(data) < 23
    assert (plan.train.num_positions, plan.train.num_targets) == (alone.train.num_positions, alone.train.num_targets)
    assert plan.num_steps == -(-len(data) // 4)
    fill = alone.train.num_positions / (len(data) * config.trainer.seq_length)
    (line,) = [line for line in plan.lines() if "training sequences" in line]
    assert f"23 conversations, best_fit packing, fill {100 * fill:.2f} %" in line
    assert max(map(len, plan.lines())) <= 100


def test_a_batch_that_the_ranks_cannot_share_is_refused(rows: Path) -> None:
    with pytest.raises(LayoutError, match=r"global_batch_size: 4 is not a multiple of micro_batch_size 2 x 3"):
        plan_of(rows, world_size=3)


def test_the_plan_fits_100_columns_even_for_a_large_model(rows: Path) -> None:
    plan, _, _ = plan_of(rows)
    large = load_config(
        "llama3_8B-multiturn-sft.yaml",
        overrides=[f"tokenizer_model={DATA / 'demo-tokenizer'}", f"sft_dataset_name={rows}", "hidden_size=65536"],
    )
    data = SFTDataset(str(rows), large.trainer.tokenizer_model, large.trainer.seq_length)
    machine = choose_machine(name=None, memory_gib=1234.5, peak_tflops=None, local=None)
    lines = build_plan(large, train=data, validation=data, world_size=32, machine=machine).lines()
    assert max(map(len, lines + plan.lines())) <= 100
    text = "\n".join(lines)
    for what in (
        "parameters",
        "padded to",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "at work",
        "supervised",
        "does NOT fit",
    ):
        assert what in text


def test_numbers_of_the_plan_stand_under_each_other(rows: Path) -> None:
    plan, _, _ = plan_of(rows)
    ends = {len(line[:40].rstrip()) for line in plan.lines() if line.startswith("  ")}
    assert ends == {40}
    assert any("623,488" in line for line in plan.lines())
