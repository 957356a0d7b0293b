# SPDX-License-Identifier: Apache-2.0
"""The plan of a run says what the run then does: as many weights, bytes, tokens and steps."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor

from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.data.batches import rank_micro_batches, read_micro_batch
from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.backends.megatron.model.gpt import build_model
from primus.backends.megatron.optimizer import build_optimizer
from primus.backends.megatron.planning.memory import MemoryEstimate, ParallelSizes, Recompute, estimate_memory
from primus.backends.megatron.planning.parameter_count import count_parameters, padded_vocab_size
from primus.backends.megatron.planning.plan import Plan, build_plan
from primus.config import load_config
from primus.config.schema import ModelKeys, TrainConfig, TrainerConfig
from primus.errors import LayoutError

CHECKOUT = Path(__file__).parents[5]
DATA = CHECKOUT / "examples/data"

MegatronModel: TypeAlias = Any  # megatron-core has no types

TINY: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 224,
    "num_attention_heads": 4,
    "num_query_groups": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"untie_embeddings_and_output_weights": False},
    "every head its own keys": {"num_query_groups": None},
    "qwen 2": {"add_qkv_bias": True},
    "qwen 3": {"qk_layernorm": True, "kv_channels": 32},
}


def trainer_of(**keys: object) -> TrainerConfig:
    return TrainerConfig(**{**TINY, "seq_length": 64, "global_batch_size": 2, "lr": 1e-4, **keys})


@contextmanager
def model_of(trainer: TrainerConfig, *, num_rows: int) -> Iterator[MegatronModel]:
    process = this_process()
    with joined_processes(process, trainer):
        seed_weights(1)
        yield build_model(trainer, padded_vocab_size=num_rows, device=process.device)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_counted_weights_are_those_of_the_model(shape: str) -> None:
    trainer = trainer_of(**SHAPES[shape])
    with model_of(trainer, num_rows=384) as model:
        built = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(trainer, padded_vocab_size=384).total == built


@pytest.mark.parametrize(
    ("config", "total"),
    [("llama3_8B-multiturn-sft.yaml", 8_030_261_248), ("qwen2.5_7B-multiturn-sft.yaml", 7_615_616_512)],
)
def test_published_models_have_their_published_number_of_weights(config: str, total: int) -> None:
    keys = ["tokenizer_model=any", "sft_dataset_name=any.jsonl"]
    trainer = load_config(config, overrides=keys).trainer
    assert trainer.vocab_size is not None
    num_rows = padded_vocab_size(
        trainer.vocab_size, divisible_by=trainer.make_vocab_size_divisible_by, tensor_parallel=1
    )
    assert num_rows == trainer.vocab_size
    assert count_parameters(trainer, padded_vocab_size=num_rows).total == total


def test_ranks_of_a_model_hold_all_of_it_between_them() -> None:
    whole = count_parameters(trainer_of(), padded_vocab_size=256)
    halves = whole.on_one_rank(tensor_parallel=2, pipeline_parallel=1)
    norms = 2 * 2 * 64 + 64
    assert 2 * halves == whole.total + norms
    stage = whole.on_one_rank(tensor_parallel=1, pipeline_parallel=2)
    assert 2 * stage == whole.total + 64  # the final norm is on the last stage only, and this is the fullest one


def memory_of(
    trainer: TrainerConfig,
    *,
    num_rows: int,
    num_targets: int,
    tensor: int = 1,
    context: int = 1,
    data: int = 1,
    is_packed: bool = False,
) -> MemoryEstimate:
    return estimate_memory(
        trainer,
        parameters=count_parameters(trainer, padded_vocab_size=num_rows),
        padded_vocab_size=num_rows,
        sizes=ParallelSizes(tensor=tensor, context=context, data=data),
        micro_batch_size=trainer.micro_batch_size,
        num_micro_batches=1,
        seq_length=trainer.seq_length,
        num_targets=num_targets,
        bf16=trainer.bf16,
        use_distributed_optimizer=trainer.use_distributed_optimizer,
        recompute=Recompute(granularity=trainer.recompute_granularity),
        is_packed=is_packed,
    )


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("use_distributed_optimizer", [False, True])
def test_estimated_weights_gradients_and_optimizer_are_what_is_allocated(
    *, bf16: bool, use_distributed_optimizer: bool
) -> None:
    trainer = trainer_of(bf16=bf16, use_distributed_optimizer=use_distributed_optimizer)
    with model_of(trainer, num_rows=384) as model:
        optimizer = build_optimizer(trainer, [model])
        for parameter in model.parameters():
            parameter.main_grad.fill_(1e-3)
        optimizer.step()
        weights = sum(parameter.nbytes for parameter in model.parameters())
        gradients = sum(parameter.main_grad.nbytes for parameter in model.parameters())
        updated = [weight for group in optimizer.param_groups for weight in group["params"]]
        kept = sum(weight.nbytes for weight in updated) if bf16 else 0  # in float32 these are the model's own
        for part in getattr(optimizer, "chained_optimizers", [optimizer]):
            states = part.optimizer.state.values()
            kept += sum(state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes for state in states)
    estimate = memory_of(trainer, num_rows=384, num_targets=1)
    assert (estimate.weights, estimate.gradients) == (weights, gradients)
    assert kept == estimate.optimizer


def saved_bytes(
    model: MegatronModel, *, num_rows: int, micro_batch_size: int, seq_length: int, is_packed: bool = False
) -> int:
    """Bytes of all tensors that the backward pass will read, weights not counted, each once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor
        return tensor

    tokens_BS = torch.randint(0, num_rows, (micro_batch_size, seq_length))
    targets_N = torch.arange(micro_batch_size * seq_length)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # The loss is held until the bytes are counted: freed memory would be given out, and counted, again.
        segments_C2 = torch.tensor([[0, 20], [20, seq_length]], dtype=torch.int32) if is_packed else None
        positions_BS = torch.arange(seq_length).expand(micro_batch_size, -1)
        loss = model(tokens_BS, positions_BS, segments_C2, labels_N=tokens_BS.flatten(), target_positions_N=targets_N)
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("shape", ["llama", "qwen 2"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_estimated_activations_are_what_the_backward_pass_keeps(shape: str, *, bf16: bool, is_packed: bool) -> None:
    # Of several packed sequences the values are copied, and the result that they were part of is not kept.
    num = 1 if is_packed else 2
    trainer = trainer_of(**SHAPES[shape], micro_batch_size=num, bf16=bf16)
    with model_of(trainer, num_rows=512) as model:
        measured = saved_bytes(model, num_rows=512, micro_batch_size=num, seq_length=64, is_packed=is_packed)
    estimate = memory_of(trainer, num_rows=512, num_targets=64, is_packed=is_packed)
    # PyTorch's RMSNorm on a CPU keeps its input and the normalised input, both in float32; its GPU kernel keeps the
    # input as it is. For each of the five norms that is one tensor more, in bfloat16 two of twice the size.
    norms = 5 * num * 64 * 64 * (2 * 4 - 2 if bf16 else 4)
    # The bfloat16 logits are gone when the loss has its float32 copy of them.
    logits = estimate.logits * 4 // 6 if bf16 else estimate.logits
    assert estimate.activations + logits + norms == pytest.approx(measured, rel=0.03)


def test_full_recomputation_keeps_one_residual_per_layer() -> None:
    trainer = trainer_of(micro_batch_size=2, num_layers=8)
    with_all = memory_of(trainer, num_rows=512, num_targets=64)
    again = replace(Recompute(), granularity="full", method="uniform", num_layers=1)
    estimate = estimate_memory(
        trainer,
        parameters=count_parameters(trainer, padded_vocab_size=512),
        padded_vocab_size=512,
        sizes=ParallelSizes(),
        micro_batch_size=2,
        num_micro_batches=1,
        seq_length=64,
        num_targets=64,
        bf16=False,
        use_distributed_optimizer=False,
        recompute=again,
    )
    residual = 2 * 64 * 64 * 4
    layer = (with_all.activations - 2 * residual) // 8
    assert estimate.activations == 8 * residual + layer + 2 * residual


def test_ranks_share_what_their_layout_shares() -> None:
    alone = memory_of(trainer_of(use_distributed_optimizer=True), num_rows=512, num_targets=64)
    two = memory_of(trainer_of(use_distributed_optimizer=True), num_rows=512, num_targets=64, data=2)
    assert two.optimizer == alone.optimizer // 2
    assert (two.weights, two.activations, two.logits) == (alone.weights, alone.activations, alone.logits)
    halves = memory_of(trainer_of(), num_rows=512, num_targets=64, tensor=2)
    assert halves.logits == alone.logits // 2
    assert alone.weights // 2 < halves.weights < alone.weights
    assert alone.activations // 2 < halves.activations < alone.activations
    assert memory_of(trainer_of(), num_rows=512, num_targets=64, context=2).activations == alone.activations // 2


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
    lines = build_plan(large, train=data, validation=data, world_size=128).lines()
    assert max(map(len, lines + plan.lines())) <= 100
    text = "\n".join(lines)
    for what in ("parameters", "padded to", "weights", "gradients", "optimizer", "activations", "logits", "supervised"):
        assert what in text


def test_numbers_of_the_plan_stand_under_each_other(rows: Path) -> None:
    plan, _, _ = plan_of(rows)
    ends = {len(line[:40].rstrip()) for line in plan.lines() if line.startswith("  ")}
    assert ends == {40}
    assert any("623,488" in line for line in plan.lines())


def test_model_keys_alone_are_enough_to_count() -> None:
    keys = ModelKeys(num_layers=1, hidden_size=8, ffn_hidden_size=16, num_attention_heads=2)
    count = count_parameters(keys, padded_vocab_size=16)
    attention, mlp, norms, embeddings = 4 * 8 * 8, 3 * 8 * 16, 3 * 8, 2 * 16 * 8
    assert count.total == np.sum([attention, mlp, norms, embeddings])
