# SPDX-License-Identifier: Apache-2.0
"""From the configuration of a run to its data sets: prepared once, alone or mixed."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.data.datasets import build_datasets
from primus.config.schema import TrainConfig
from primus.errors import ConfigError, DataError
from primus.sft.tokenizer import load_tokenizer
from tests.unit_tests.sft.conftest import byte_level

WORDS = ("sun", "moon", "star", "rain", "snow", "wind", "leaf", "root")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    for name, num in (("a", 40), ("b", 10)):
        rows = [chat(f"{name}{n} {WORDS[n % 8]}", f"{WORDS[n % 7]} " * (1 + n % 5)) for n in range(num)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def build(workspace: Path, **keys: Any) -> tuple[SFTDataset, SFTDataset | None]:
    small = {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 1, "lr": 0.1}
    batch = {"seq_length": 96, "global_batch_size": 8, "train_iters": 1}
    tokenizer = str(workspace / "tokenizer.json")
    config = TrainConfig(
        exp_name="run", workspace=workspace / "out", trainer={**small, **batch, "tokenizer_model": tokenizer, **keys}
    )
    return build_datasets(config, tokenizer=load_tokenizer(tokenizer))


def sources(workspace: Path, **shares: dict[str, float]) -> list[dict[str, Any]]:
    return [{"dataset_name": str(workspace / f"{name}.jsonl"), **share} for name, share in shares.items()]


def epochs_of(data: SFTDataset, num: int) -> Counter[str]:
    """How often each training sequence comes in the first epochs."""
    order = data.order(global_batch_size=5)
    assert order.sequences_per_epoch * num % 5 == 0
    steps = range(order.sequences_per_epoch * num // 5)
    return Counter(Path(data.origin(index)).name for step in steps for index in order.global_batch(step).tolist())


def test_prepared_data_are_those_that_are_tokenized_on_the_fly(workspace: Path) -> None:
    train, validation = build(workspace, sft_dataset_name=str(workspace / "a.jsonl"), sft_validation_fraction=0.3)
    assert validation is not None
    assert train.ledger is validation.ledger
    for split, prepared in (("train", train), ("validation", validation)):
        alone = SFTDataset(
            workspace / "a.jsonl", workspace / "tokenizer.json", 96, split, supervise_end_of_turn=True,
            validation_fraction=0.3,
        )  # fmt: skip
        assert prepared.fingerprint == alone.fingerprint
        assert len(prepared) == len(alone)
        for index in range(len(alone)):
            assert all((prepared[index][name] == tensor).all() for name, tensor in alone[index].items())
            assert prepared.origin(index) == alone.origin(index)
    again, _ = build(workspace, sft_dataset_name=str(workspace / "a.jsonl"), sft_validation_fraction=0.3)
    assert again.fingerprint == train.fingerprint
    assert len(list((workspace / "out/prepared").glob("*/manifest.json"))) == 1


def test_sources_come_as_often_as_their_epochs_say(workspace: Path) -> None:
    train, _ = build(workspace, sft_sources=sources(workspace, a={"epochs": 0.5}, b={"epochs": 3}))
    assert len(train) == 50
    counts = epochs_of(train, 2)
    assert counts == {f"a.jsonl:{n}": 1 for n in range(1, 41)} | {f"b.jsonl:{n}": 6 for n in range(1, 11)}


def test_sources_come_in_proportion_to_their_weights(workspace: Path) -> None:
    train, _ = build(workspace, sft_sources=sources(workspace, a={"weight": 1}, b={"weight": 1}))
    counts = epochs_of(train, 4)
    assert counts == {f"a.jsonl:{n}": 1 for n in range(1, 41)} | {f"b.jsonl:{n}": 4 for n in range(1, 11)}


def test_packs_hold_conversations_of_one_source_each_once(workspace: Path) -> None:
    train, _ = build(workspace, sft_sources=sources(workspace, a={}, b={}), sft_packing="best_fit")
    assert train.plan is not None
    assert train.shares is not None
    assert sorted(train.plan.items_N.tolist()) == list(range(50))
    packs = [set(train.plan.pack(index).tolist()) for index in range(len(train))]
    first_of_b = train.shares[0].num_items
    assert set().union(*packs[:first_of_b]) == set(range(40))
    assert set().union(*packs[first_of_b:]) == set(range(40, 50))
    assert len(packs) == sum(share.num_items for share in train.shares) < 50


def test_the_weight_of_a_source_is_in_its_loss_mask(workspace: Path) -> None:
    train, _ = build(workspace, sft_sources=sources(workspace, a={}, b={"loss_weight": 0.25}))
    assert set(np.unique(train[0]["loss_mask"].numpy())) == {0.0, 1.0}
    assert set(np.unique(train[45]["loss_mask"].numpy())) == {0.0, 0.25}


def test_what_is_held_out_comes_from_every_source(workspace: Path) -> None:
    train, validation = build(workspace, sft_sources=sources(workspace, a={}, b={}), sft_validation_fraction=0.3)
    assert validation is not None
    names = {Path(validation.origin(index)).name.split(":")[0] for index in range(len(validation))}
    assert names == {"a.jsonl", "b.jsonl"}
    assert len(train) + len(validation) == 50 == train.ledger.num_rows


def test_mixtures_have_fingerprints_of_their_own(workspace: Path) -> None:
    shares: list[dict[str, dict[str, float]]] = [
        {"a": {"epochs": 1}, "b": {"epochs": 2}},
        {"a": {"epochs": 2}, "b": {"epochs": 1}},
        {"a": {}, "b": {}},
    ]
    prints = {build(workspace, sft_sources=sources(workspace, **share))[0].fingerprint for share in shares}
    assert len(prints) == 3


def test_a_file_in_two_sources_is_refused(workspace: Path) -> None:
    twice = [*sources(workspace, a={}), *sources(workspace, a={"epochs": 2})]
    with pytest.raises(ConfigError, match=r"a\.jsonl is in source 1 and in source 2"):
        build(workspace, sft_sources=twice)


def test_bad_rows_are_copied_to_the_run(workspace: Path) -> None:
    (workspace / "a.jsonl").write_text(f"{(workspace / 'a.jsonl').read_text()}no json\n")
    with pytest.raises(DataError, match=r"a\.jsonl:41: not valid JSON"):
        build(workspace, sft_dataset_name=str(workspace / "a.jsonl"))
    train, _ = build(workspace, sft_dataset_name=str(workspace / "a.jsonl"), sft_bad_rows="quarantine")
    assert train.ledger.num_bad == 1
    quarantine = workspace / "out/primus/user/run/quarantine/train.jsonl"
    assert json.loads(quarantine.read_text())["reason"] == "not_json"
    (workspace / "a.jsonl").write_text((workspace / "b.jsonl").read_text())
    build(workspace, sft_dataset_name=str(workspace / "a.jsonl"), sft_bad_rows="quarantine")
    assert not quarantine.exists()
