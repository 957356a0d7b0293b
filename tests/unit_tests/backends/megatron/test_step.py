# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from primus.backends.megatron.model.gpt import build_model
from primus.backends.megatron.optimizer import build_optimizer, build_scheduler
from primus.backends.megatron.step import TrainingStep
from primus.errors import TrainingError

pytestmark = pytest.mark.usefixtures("joined")


@pytest.fixture
def step(tiny: ModuleType, tmp_path: Path) -> TrainingStep:
    trainer = tiny.tiny_config(tmp_path).trainer
    model = build_model(trainer, padded_vocab_size=64, device=torch.device("cpu"))
    optimizer = build_optimizer(trainer, model)
    return TrainingStep(
        model=model,
        optimizer=optimizer,
        scheduler=build_scheduler(trainer, optimizer, train_iters=8),
        dataset=tiny.TinySequences(40),
        micro_batch_size=2,
        pad_to_multiple_of=8,
        device=torch.device("cpu"),
    )


def test_a_step_reports_the_mean_over_the_targets_of_the_global_batch(tiny: ModuleType, step: TrainingStep) -> None:
    batch_G = np.arange(8)
    outcome = step.run(batch_G, tiny.micro_batches_of(step, batch_G), iteration=1)
    assert outcome.num_targets == step.dataset.num_units_of(batch_G).sum()
    # Weights of 0.5 lower the loss of a model that knows nothing below that of guessing.
    assert 1.5 < outcome.lm_loss < np.log(61)
    assert outcome.grad_norm is not None
    assert outcome.learning_rate == 0.005


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_sequences(
    tiny: ModuleType, step: TrainingStep, poison: float
) -> None:
    for index in (3, 6):
        step.dataset.rows[index]["loss_mask"][0] = poison  # type: ignore[attr-defined]
    before = [parameter.clone() for parameter in step.model[0].parameters()]
    message = (
        f"step 5: the loss is {poison} because of 2 of the global batch's 8 sequences; "
        r"look at tiny.jsonl:4, tiny.jsonl:7 \(batch [0-9a-f]{16}\)$"
    )
    with pytest.raises(TrainingError, match=message):
        step.run(np.arange(8), tiny.micro_batches_of(step, np.arange(8)), iteration=5)
    assert all(torch.equal(old, new) for old, new in zip(before, step.model[0].parameters(), strict=True))


def test_a_conversation_inside_a_pack_is_named(tiny: ModuleType, step: TrainingStep) -> None:
    made = tiny.conversations(60)
    # A token that no other conversation has.
    made[17].tokens_T[0] = 62
    data = tiny.dataset_of(made, packing="best_fit")
    packed = replace(step, dataset=data)
    whole = next(iter(packed.model[0].parameters()))
    assert whole.shape[0] == 64, "the embedding"
    with torch.no_grad():
        whole[62] = float("nan")
    batch_G = np.arange(2 * (len(data) // 2))
    origins = [origin for index in batch_G.tolist() for origin in data.origins(index)]
    assert "tiny.jsonl:18" in origins
    assert len(origins) > 2 * len(batch_G)
    message = rf"is nan because of 1 of the global batch's {len(origins)} conversations; look at tiny.jsonl:18 \("
    with pytest.raises(TrainingError, match=message):
        packed.run(batch_G, tiny.micro_batches_of(packed, batch_G), iteration=5)


def test_a_broken_model_is_told_from_broken_sequences(tiny: ModuleType, step: TrainingStep) -> None:
    with torch.no_grad():
        next(iter(step.model[0].parameters())).fill_(float("nan"))
    message = (
        "step 5: the loss is nan, with every one of the global batch's sequences; lower lr, .*: "
        "tiny.jsonl:1, .* and 2 more"
    )
    with pytest.raises(TrainingError, match=message):
        step.run(np.arange(10), tiny.micro_batches_of(step, np.arange(10)), iteration=5)


def test_a_gradient_that_is_no_number_stops_the_run(tiny: ModuleType, step: TrainingStep) -> None:
    parameter = next(iter(step.model[0].parameters()))
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        TrainingError, match=r"step 5: the norm of the gradient is (nan|inf), though the loss is .*; lower"
    ):
        step.run(np.arange(8), tiny.micro_batches_of(step, np.arange(8)), iteration=5)
