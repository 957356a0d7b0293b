# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from primus.backends.megatron.blame import describe_broken_validation
from primus.backends.megatron.evaluation import evaluate, evaluation_micro_batches
from primus.backends.megatron.model.gpt import build_model
from primus.errors import TrainingError

CPU = torch.device("cpu")


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize(
    ("num_sequences", "micro_batch_size", "at_most"), [(13, 4, 0), (1, 4, 0), (13, 5, 7), (8, 1, 0)]
)
def test_the_loss_is_exactly_that_of_each_target_once(
    tiny: ModuleType, tmp_path: Path, num_sequences: int, micro_batch_size: int, at_most: int
) -> None:
    (model,) = build_model(tiny.tiny_config(tmp_path, hidden_dropout=0.5).trainer, padded_vocab_size=64, device=CPU)
    data = tiny.TinySequences(num_sequences, seed=2)
    found = evaluate(
        [model], data, at_most=at_most, micro_batch_size=micro_batch_size, pad_to_multiple_of=8, device=CPU
    )
    assert model.training
    chosen = range(num_sequences) if not at_most else [i * num_sequences // at_most for i in range(at_most)]
    losses, num_targets = 0.0, 0
    # Targets with an odd label are what the assistant says in the first turn, and the others end the last one.
    groups: dict[str, list[float]] = {"assistant": [], "assistant_end_of_turn": []}
    model.eval()
    for row in (data[index] for index in chosen):
        with torch.no_grad():
            log_probs_SV = model(row["input_ids"][None], None, None)[0].double().log_softmax(-1)
        losses_S = -log_probs_SV[torch.arange(32), row["labels"]]
        losses += float((losses_S * row["loss_mask"]).sum())
        num_targets += int((row["loss_mask"] > 0).sum())
        for name, is_odd in (("assistant", True), ("assistant_end_of_turn", False)):
            groups[name] += losses_S[(row["loss_mask"] > 0) & ((row["labels"] % 2 == 1) == is_odd)].tolist()
    assert found.loss == pytest.approx(losses / num_targets, rel=1e-6)
    told = {name: (group.loss, group.targets) for name, group in found.breakdown["role"].items()}
    means = {name: (float(np.mean(values)), len(values)) for name, values in groups.items() if values}
    assert told.keys() == means.keys()
    assert all(told[name] == pytest.approx(mean, rel=1e-6) for name, mean in means.items())
    assert list(found.breakdown["turn"]) == [{"assistant": "1"}.get(name, "9+") for name in means]
    assert found.breakdown["source"]["tiny"].targets == num_targets


@pytest.mark.usefixtures("joined")
def test_sequences_without_a_unit_are_refused_with_an_advice(tiny: ModuleType, tmp_path: Path) -> None:
    (model,) = build_model(tiny.tiny_config(tmp_path).trainer, padded_vocab_size=64, device=CPU)
    data = tiny.dataset_of(tiny.conversations(4), packing="none", units=0)
    with pytest.raises(TrainingError, match=r"^validation: the sequences .* raise eval_iters, or set it to 0"):
        evaluate([model], data, at_most=2, micro_batch_size=2, pad_to_multiple_of=8, device=CPU)


def test_a_validation_loss_that_is_no_number_ends_the_run_in_one_line(tiny: ModuleType, tmp_path: Path) -> None:
    config = tiny.tiny_config(tmp_path, lr=1e30, min_lr=1e30, lr_warmup_iters=0, clip_grad=0.0, eval_interval=1)
    said = r"^step 1: the validation loss is (nan|inf)(, with every one| because of \d+) of the broken batches' .* tiny"
    with pytest.raises(TrainingError, match=said):
        tiny.run_tiny(config)


@pytest.mark.usefixtures("joined")
def test_conversations_that_make_the_validation_loss_no_number_are_named(tiny: ModuleType, tmp_path: Path) -> None:
    (model,) = build_model(tiny.tiny_config(tmp_path).trainer, padded_vocab_size=64, device=CPU)
    data = tiny.TinySequences(13, seed=2)
    for index in (3, 11):
        data.rows[index]["loss_mask"][0] = float("nan")
    found = evaluate([model], data, at_most=0, micro_batch_size=4, pad_to_multiple_of=8, device=CPU)
    assert np.isnan(found.loss)
    assert {3, 11} <= set(found.broken_E.tolist())
    num_broken = len(found.broken_E)
    assert num_broken <= 8
    said = describe_broken_validation([model], data, found.broken_E, pad_to_multiple_of=8, device=CPU)
    assert said == (f" because of 2 of the broken batches' {num_broken} sequences; look at tiny.jsonl:4, tiny.jsonl:12")


@given(num=st.integers(1, 40), micro=st.integers(1, 7), ranks=st.integers(1, 5))
def test_the_ranks_share_the_sequences_out_whatever_their_number(
    tiny: ModuleType, num: int, micro: int, ranks: int
) -> None:
    data = tiny.TinySequences(num)
    shares = [
        evaluation_micro_batches(
            data, at_most=0, micro_batch_size=micro, data_parallel_rank=rank, data_parallel_size=ranks
        )
        for rank in range(ranks)
    ]
    assert sorted(index for share in shares for part in share for index in part) == list(range(num))
    assert all(0 < len(part) <= micro for share in shares for part in share)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
