# SPDX-License-Identifier: Apache-2.0
"""Packed conversations train what they train alone."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.data.batches import SequenceDataset, read_micro_batch
from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.backends.megatron.evaluation import evaluate
from primus.backends.megatron.model.gpt import build_model
from primus.sft.packing import Method, PackPlan

CPU = torch.device("cpu")
Gradients = dict[str, npt.NDArray[np.float32]]
PACKED: tuple[Method, ...] = ("sequential", "best_fit")
# The sum over the conversations of a batch; a token's loss is about 4.
LOSS = 1e-5


def outcome(
    tiny: ModuleType,
    folder: Path,
    data: SequenceDataset,
    *,
    micro_batch_size: int = 1,
    broken: bool = False,
    **keys: object,
) -> tuple[float, int, Gradients]:
    """Loss per target, targets and summed gradients of the whole data set, in micro-batches."""
    trainer = tiny.tiny_config(folder, **keys).trainer
    process = this_process()
    with joined_processes(process, trainer):
        seed_weights(7)
        (model,) = build_model(trainer, padded_vocab_size=64, device=process.device)
        model.zero_grad_buffer()
        loss, num_targets = 0.0, 0
        for start in range(0, len(data), micro_batch_size):
            indices_B = np.arange(start, min(start + micro_batch_size, len(data)))
            batch = read_micro_batch(data, indices_B, pad_to_multiple_of=8)
            segments_C2 = batch.segments_C2
            if broken and segments_C2 is not None and len(segments_C2) > 1:
                segments_C2 = segments_C2.clone()
                segments_C2[0, 1] += 1
                segments_C2[1, 0] += 1
            losses_N = model(
                batch.input_ids_BS,
                batch.position_ids_BS,
                segments_C2,
                labels_N=batch.labels_N,
                target_positions_N=batch.target_positions_N,
            )
            total = (losses_N * batch.weights_N).sum()
            total.backward()
            loss += float(total.detach())
            num_targets += len(losses_N)
        gradients = {name: parameter.main_grad.numpy().copy() for name, parameter in model.module.named_parameters()}
    return loss / num_targets, num_targets, gradients


def relative_error(found: Gradients, expected: Gradients) -> float:
    def norm(arrays: Sequence[npt.NDArray[np.float32]]) -> float:
        return float(np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in arrays)))

    assert found.keys() == expected.keys()
    return norm([found[name] - expected[name] for name in expected]) / norm(list(expected.values()))


def targets(data: SFTDataset, lengths: Sequence[int]) -> Counter[tuple[int, int, int, int, float]]:
    """Conversation, token index, input and label, and weight of every target, read off the tensors."""
    found: Counter[tuple[int, int, int, int, float]] = Counter()
    for index in range(len(data)):
        item = data[index]
        conversations = [index] if data.plan is None else data.plan.pack(index).tolist()
        bounds = item["cu_seqlens"].tolist() if "cu_seqlens" in item else [0, int(data.num_positions_N[index])]
        for conversation, first, last in zip(conversations, bounds[:-1], bounds[1:], strict=True):
            assert last - first == lengths[conversation] - 1
            assert item["position_ids"][first:last].tolist() == list(range(last - first))
            for place in range(first, last):
                if weight := float(item["loss_mask"][place]):
                    read, said = int(item["input_ids"][place]), int(item["labels"][place])
                    found[conversation, place - first + 1, read, said, weight] += 1
        assert not item["loss_mask"][bounds[-1] :].any()
    return found


@settings(max_examples=30)
@given(num=st.integers(1, 40), seed=st.integers(0, 9), room=st.integers(0, 40), method=st.sampled_from(PACKED))
def test_packed_and_alone_are_the_same_set_of_targets(
    tiny: ModuleType, num: int, seed: int, room: int, method: Method
) -> None:
    made = tiny.conversations(num, seed=seed)
    alone, packed = (tiny.dataset_of(made, packing=packing, max_seq_length=20 + room) for packing in ("none", method))
    lengths = [len(one.tokens_T) for one in made]
    expected = Counter(
        (index, token, int(one.tokens_T[token - 1]), int(one.tokens_T[token]), float(one.weights_T[token]))
        for index, one in enumerate(made)
        for token in range(1, len(one.tokens_T))
        if one.weights_T[token] > 0
    )
    assert targets(packed, lengths) == targets(alone, lengths) == expected
    assert packed.num_targets_N.sum() == packed.num_units_N.sum() == expected.total()
    assert packed.num_positions_N.sum() == sum(lengths) - num
    assert packed.num_positions_N.max() <= 20 + room


@pytest.mark.parametrize("method", PACKED)
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"micro_batch_size": 3},
        {"micro_batch_size": 2, "recompute_granularity": "full"},
        {"recompute_granularity": "selective", "qk_layernorm": True},
    ],
    ids=["alone", "three", "full", "selective"],
)
def test_packed_loss_and_gradients_are_those_of_the_conversations_alone(
    tiny: ModuleType, tmp_path: Path, method: Method, keys: dict[str, Any]
) -> None:
    made = tiny.conversations(24)
    alone, packed = (tiny.dataset_of(made, packing=packing, max_seq_length=64) for packing in ("none", method))
    expected_loss, num_targets, expected = outcome(
        tiny, tmp_path, alone, **{name: value for name, value in keys.items() if name == "qk_layernorm"}
    )
    loss, num_packed, gradients = outcome(tiny, tmp_path, packed, **keys)
    assert len(packed) < len(alone) / 3
    assert num_packed == num_targets
    assert loss == pytest.approx(expected_loss, abs=LOSS)
    assert relative_error(gradients, expected) < LOSS


def test_a_wrong_bound_changes_the_loss_and_the_gradients(tiny: ModuleType, tmp_path: Path) -> None:
    made = tiny.conversations(24)
    alone, packed = (tiny.dataset_of(made, packing=packing, max_seq_length=64) for packing in ("none", "best_fit"))
    expected_loss, _, expected = outcome(tiny, tmp_path, alone)
    loss, _, gradients = outcome(tiny, tmp_path, packed, broken=True)
    assert abs(loss - expected_loss) > 3 * LOSS
    assert relative_error(gradients, expected) > 1000 * LOSS


def test_no_token_sees_another_conversation_of_its_pack(tiny: ModuleType, tmp_path: Path) -> None:
    first, second, third = tiny.conversations(3)
    changed = tiny.conversations(1, seed=5)[0]
    changed = type(second)(
        **{
            **{name: getattr(second, name) for name in second.__dataclass_fields__},
            "tokens_T": np.resize(changed.tokens_T, len(second.tokens_T)),
        }
    )
    assert not np.array_equal(second.tokens_T, changed.tokens_T)
    trainer = tiny.tiny_config(tmp_path).trainer
    with joined_processes(this_process(), trainer):
        seed_weights(7)
        (model,) = build_model(trainer, padded_vocab_size=64, device=CPU)
        losses = []
        for middle in (second, changed):
            data = tiny.dataset_of([first, middle, third], packing="sequential", max_seq_length=64)
            assert len(data) == 1
            batch = read_micro_batch(data, np.array([0]), pad_to_multiple_of=8)
            losses.append(
                model(
                    batch.input_ids_BS,
                    batch.position_ids_BS,
                    batch.segments_C2,
                    labels_N=batch.labels_N,
                    target_positions_N=batch.target_positions_N,
                ).detach()
            )
            assert batch.segments_C2 is not None
            begins, ends = batch.segments_C2[1].tolist()
    outside = (batch.target_positions_N < begins) | (batch.target_positions_N >= ends)
    assert torch.equal(losses[0][outside], losses[1][outside])
    assert not torch.equal(losses[0][~outside], losses[1][~outside])


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_the_validation_loss_is_the_same_packed_and_alone(
    tiny: ModuleType, tmp_path: Path, joined: None, micro_batch_size: int
) -> None:
    (model,) = build_model(tiny.tiny_config(tmp_path).trainer, padded_vocab_size=64, device=CPU)
    made = tiny.conversations(30)
    losses = [
        evaluate(
            [model],
            tiny.dataset_of(made, packing=packing),
            at_most=0,
            micro_batch_size=micro_batch_size,
            pad_to_multiple_of=8,
            device=CPU,
        ).loss
        for packing in ("none", *PACKED)
    ]
    assert losses[1:] == pytest.approx([losses[0]] * 2, abs=LOSS)


def test_a_batch_is_the_items_of_the_data_set(tiny: ModuleType) -> None:
    for packing in ("none", *PACKED):
        data = tiny.dataset_of(tiny.conversations(30), packing=packing)
        indices_B = np.array([5, 2, 2])
        batch = data.batch(indices_B, length=32)
        for row, index in enumerate(indices_B.tolist()):
            item = data[index]
            assert batch.input_ids_BS[row].tolist() == item["input_ids"].tolist()
            assert batch.labels_BS[row].tolist() == item["labels"].tolist()
            assert batch.loss_mask_BS[row].tolist() == item["loss_mask"].tolist()
            assert batch.position_ids_BS[row].tolist() == item["position_ids"].tolist()
            assert ("cu_seqlens" in item) == (packing != "none")


def test_a_pack_is_named_by_its_first_conversations(tiny: ModuleType) -> None:
    data = tiny.dataset_of(tiny.conversations(12, longest=4), packing="sequential", max_seq_length=14)
    assert isinstance(data.plan, PackPlan)
    sizes = np.diff(data.plan.bounds_P1).tolist()
    assert data.origin(0).startswith("tiny.jsonl:1 + tiny.jsonl:2 + tiny.jsonl:3 + ")
    assert data.origin(0).endswith(f" + {sizes[0] - 3} more")
    with pytest.raises(IndexError, match="training sequence 12 of 12"):
        tiny.dataset_of(tiny.conversations(12), packing="none")[12]


def test_packing_is_part_of_the_fingerprint(tiny: ModuleType) -> None:
    made = tiny.conversations(12)
    ways: tuple[tuple[Method, int], ...] = (("none", 32), ("sequential", 32), ("best_fit", 32), ("best_fit", 40))
    prints = {tiny.dataset_of(made, packing=packing, max_seq_length=length).fingerprint for packing, length in ways}
    assert len(prints) == len(ways)
