# SPDX-License-Identifier: Apache-2.0
"""Two real ranks of which one differs: both say how, before a weight has changed, and nobody waits."""

import importlib.metadata
import json
import re
import socket
from pathlib import Path

import pytest

from tests.unit_tests.backends.megatron.real_ranks import run_ranks

PROGRAM = Path(__file__).with_name("differing_runs.py")
HOST = socket.gethostname()
Outcomes = list[dict[str, list[str]]]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of two ranks were made."""
    folder = tmp_path_factory.mktemp("differing")
    run_ranks(PROGRAM, str(folder), num_ranks=2, timeout_s=280, is_silent=False)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> Outcomes:
    """What each rank said of each run."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def said(outcomes: Outcomes, name: str) -> list[str]:
    """What both ranks said: the same."""
    first, second = (outcome[name] for outcome in outcomes)
    assert first == second
    return [line.replace(HOST, "node") for line in first]


def test_settings_that_differ_are_told_with_both_values(outcomes: Outcomes) -> None:
    both = "on rank 0 on node, and {} on rank 1 on node; start all ranks with the same configuration"
    assert said(outcomes, "settings") == [
        "LayoutError",
        "lora.enabled: is false " + both.format("true"),
        'lora.target_modules.0: is "linear_qkv" ' + both.format('"linear_fc1"'),
        'lora.target_modules.1: is "linear_proj" ' + both.format("not there"),
        'lora.target_modules.2: is "linear_fc1" ' + both.format("not there"),
        'lora.target_modules.3: is "linear_fc2" ' + both.format("not there"),
        "lr: is 0.01 " + both.format("0.5"),
    ]
    [_, *lines] = said(outcomes, "many settings")
    assert lines[8:] == ["2 more: differ as well; see to those above first"]
    assert said(outcomes, "resuming")[1:] == ["--resume: is " + '"auto" ' + both.format('"never"')]


def test_software_and_devices_that_differ_are_told(outcomes: Outcomes) -> None:
    version = importlib.metadata.version("megatron-core")
    [kind, line] = said(outcomes, "software")
    assert kind == "LayoutError"
    assert line == (
        f'version of megatron-core: is "{version}" on rank 0 on node, and "0.15.0" on rank 1 on node; '
        "install the same on all machines"
    )
    assert said(outcomes, "devices")[1:] == [
        'device: is "cpu" on rank 0 on node, and "cuda" on rank 1 on node; give every rank the same kind of device'
    ]


@pytest.mark.parametrize(
    ("name", "key", "path"),
    # A folder for checkpoints is made when there is one; until then, what is above it is looked at.
    [("local disks", "workspace", "/output/primus/user/tiny"), ("local checkpoints", "save", "")],
)
def test_a_folder_that_only_one_machine_sees_is_refused(
    folder: Path, outcomes: Outcomes, name: str, key: str, path: str
) -> None:
    local = folder / "local disks"
    assert said(outcomes, name) == [
        "LayoutError",
        (
            f"{local}/machine 0{path}: what rank 0 on node writes there is not seen by rank 1 on node, which looked in"
            f" {local}/machine 1{path}; set {key} to a folder on a disk that all machines share"
        ),
    ]
    assert not list(folder.rglob(".shared-*"))


@pytest.mark.parametrize(
    ("name", "kind", "beginning"),
    [
        ("bad row", "DataError", "train.jsonl:9: "),
        ("missing model", "CheckpointError", "hf: holds no model.safetensors and no model.safetensors.index.json; "),
        ("too few devices", "LayoutError", "environment: process 1 of this machine has no GPU, there are 1; "),
        ("lost model", "CheckpointError", "hf: holds no model.safetensors and no model.safetensors.index.json; "),
        ("lost checkpoint", "CheckpointError", "start: holds neither run.json nor "),
        ("unreadable", "FileNotFoundError", ""),
    ],
)
def test_what_fails_on_one_rank_before_training_ends_the_other_at_once(
    folder: Path, outcomes: Outcomes, name: str, kind: str, beginning: str
) -> None:
    first, [second_kind, *second] = (outcome[name] for outcome in outcomes)
    assert second_kind == kind
    if name == "unreadable":
        assert first == [
            "PrimusError",
            f"rank 1 on {HOST}: {folder}/unreadable/nothing: No such file or directory; see to it on that machine",
        ]
        return
    assert second[0].startswith(beginning)
    assert first == ["PrimusError", *(f"rank 1 on {HOST}: {line}" for line in second)]


def test_data_that_differ_are_told(outcomes: Outcomes) -> None:
    remedy = "give all machines the same files"
    assert said(outcomes, "training data") == [
        "LayoutError",
        f'data_fingerprint: is "tiny-40-0-32" on rank 0 on node, and "tiny-44-0-32" on rank 1 on node; {remedy}',
        f"training sequences: is 40 on rank 0 on node, and 44 on rank 1 on node; {remedy}",
    ]
    [_, line] = said(outcomes, "validation data")
    assert line.startswith(
        'fingerprint of the validation data: is "tiny-13-1-32" on rank 0 on node, and "tiny-13-2-32" '
    )


def test_checkpoints_and_models_that_differ_are_told(outcomes: Outcomes) -> None:
    [_, *lines] = said(outcomes, "checkpoints")
    assert any(line.startswith("files of the checkpoint.__0_0.distcp: is ") for line in lines)
    assert any(line.startswith("files of the checkpoint.run.json: is ") for line in lines)
    [_, *lines] = said(outcomes, "pretrained models")
    assert [line.partition(":")[0] for line in lines] == ["weights of hf_path.model.safetensors"]
    [kind, line] = said(outcomes, "weights at the start")
    assert kind == "TrainingError"
    assert re.fullmatch(
        r"step 0: the weights of rank 0 on node, rank 1 on node are not each other's \(\S+ and \d+ more\), though"
        r" replicas have the same; give all machines the same files to start from",
        line,
    )


def test_files_of_each_machine_may_lie_elsewhere(outcomes: Outcomes) -> None:
    assert said(outcomes, "own places") == []


def test_a_stream_that_could_not_go_on_is_refused_at_the_start(outcomes: Outcomes) -> None:
    [kind, line] = said(outcomes, "streams")
    assert kind == "LayoutError"
    assert line == (
        "the time of the last change of each file.0: is 1000000000 on rank 0 on node, and 2000000000 on rank 1 on node;"
        " copy the files with names and times (cp -p, rsync -a), as a stream goes on only with the same"
    )


@pytest.mark.parametrize("layout", ["tensor", "pipeline", "context"])
def test_ranks_that_share_a_model_and_read_different_sequences_stop_before_the_step(
    folder: Path, outcomes: Outcomes, layout: str
) -> None:
    kind, line = said(outcomes, f"batch, {layout}")
    assert kind == "TrainingError"
    found = re.fullmatch(
        r"step (\d): rank 0 on node, rank 1 on node, which share a model, read different sequences, so the step is not"
        r" made; see whether .*; sequences: ((?:tiny.jsonl:\d+(?:, )?){8})",
        line,
    )
    assert found is not None, line
    assert "tiny.jsonl:6" in found[2].split(", ")
    metrics = (folder / f"batch, {layout}/primus/user/tiny/logs/metrics.jsonl").read_text().splitlines()
    assert len(metrics) == int(found[1]) - 1
    # Replicas each read sequences of their own.
    assert said(outcomes, "batch, data") == []


def test_one_bit_of_a_replica_is_seen(outcomes: Outcomes) -> None:
    qkv, norm = "decoder.layers.0.self_attention.linear_qkv.weight", "decoder.layers.1.pre_mlp_layernorm.weight"
    whose = "the weights of rank 0 on node, rank 1 on node are not each other's"
    for name in ("replicas", "bf16 replicas", "context replicas", "rows of replicas"):
        assert said(outcomes, name) == [
            "TrainingError",
            f"step 8: {whose} ({qkv}), though replicas have the same; mend it",
        ]
    assert said(outcomes, "tied")[1:] == [
        f"step 8: {whose} (embedding.word_embeddings.weight), though ends of a pipeline have the same; mend it"
    ]
    assert said(outcomes, "norms of tensor ranks")[1:] == [
        f"step 8: {whose} ({norm}), though tensor-parallel ranks have the same; mend it"
    ]
    for name in ("not tied", "norms while training", "parts of tensor ranks", "parts of pipeline ranks"):
        assert said(outcomes, name) == []


@pytest.mark.parametrize("name", ["faulty device", "faulty device, distributed optimizer"])
def test_a_device_that_changes_a_weight_is_found_at_the_next_comparison(
    folder: Path, outcomes: Outcomes, name: str
) -> None:
    assert said(outcomes, name) == [
        "TrainingError",
        (
            "step 4: the weights of rank 0 on node, rank 1 on node are not each other's"
            " (decoder.final_layernorm.weight), though replicas have the same; test the devices there, and go on from a"
            " checkpoint of a step where they were equal"
        ),
    ]
    assert (folder / name / "primus/user/tiny/logs/metrics.jsonl").read_text().count('"lm_loss"') == 3


@pytest.mark.parametrize("layout", ["", ", distributed optimizer", ", tensor", ", pipeline", ", context"])
def test_ranks_that_agree_train(folder: Path, outcomes: Outcomes, layout: str) -> None:
    assert said(outcomes, f"nothing{layout}") == []
    metrics = (folder / f"nothing{layout}/primus/user/tiny/logs/metrics.jsonl").read_text()
    assert metrics.count('"batch_hash"') == 8
