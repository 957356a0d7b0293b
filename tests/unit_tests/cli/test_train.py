# SPDX-License-Identifier: Apache-2.0
"""`primus train` and `primus checkpoint export-hf` as a person uses them, each in processes of its own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from primus.cli import train
from primus.config import load_config

CHECKOUT = Path(__file__).parents[3]
TINY = ("--config", "tiny-multiturn-sft.yaml")
SMALL = ("num_layers=1", "hidden_size=32", "ffn_hidden_size=64", "num_attention_heads=2", "seq_length=64")
SHORT = ("global_batch_size=4", "micro_batch_size=2", "train_iters=2", "lr_warmup_iters=0", "tensorboard=false")


def row(number: int) -> str:
    messages = [
        {"role": "user", "content": f"I have {number} coins."},
        {"role": "assistant", "content": f"Okay, {number} coins."},
        {"role": "user", "content": "Thank you!"},
        {"role": "assistant", "content": "You are welcome."},
    ]
    return json.dumps({"messages": messages})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands run: a file of 20 conversations is in it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "rows.jsonl").write_text("".join(f"{row(number)}\n" for number in range(20)))
    return folder


def primus(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `primus` in a folder."""
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-m", "primus", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def keys(*more: str, data: str = "rows.jsonl", name: str = "run") -> Sequence[str]:
    validation = ("sft_validation_dataset_name=null", "sft_validation_fraction=0.2")
    return (*TINY, *SMALL, *SHORT, f"sft_dataset_name={data}", *validation, f"exp_name={name}", *more)


@pytest.fixture(scope="module")
def dry_run(folder: Path) -> subprocess.CompletedProcess[str]:
    return primus(folder, "train", *keys(name="planned"), "--dry-run", "--world-size", "2")


def test_a_dry_run_prints_ledger_plan_and_a_sequence_and_writes_nothing(
    folder: Path, dry_run: subprocess.CompletedProcess[str]
) -> None:
    assert (dry_run.returncode, dry_run.stderr) == (0, "")
    assert "\n  20 rows read\n" in dry_run.stdout
    assert re.search(r"\n  ranks +2  data parallel 2 x tensor 1", dry_run.stdout)
    assert "\u27e6You are welcome.<|im_end|>\u27e7\u21b5\n" in dry_run.stdout
    assert max(map(len, dry_run.stdout.splitlines())) <= 100
    assert not (folder / "output/primus/user/planned").exists()


def test_a_dry_run_shows_each_conversation_of_a_pack_from_its_first_token(folder: Path) -> None:
    done = primus(
        folder, "train", *keys("enable_packed_sequences=true", "seq_length=300", "sft_length_bucket=0"), "--dry-run"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(
        r"\n  training sequences +\d+  \d+ conversations, best_fit packing, fill \d+\.\d+ %\n", done.stdout
    )
    shown = done.stdout.partition("\nfirst sequence")[2]
    num = int(re.findall(r"conversation 2 of (\d+) in this sequence", shown)[0])
    assert num > 4
    assert f"\n  -- {num - 3} more of {num} conversations in this sequence\n" in shown
    assert shown.count("  <|im_start|>user") == shown.count("  <|im_start|>assistant") == 2 * 3


def test_a_dry_run_takes_the_world_size_of_a_launcher(folder: Path) -> None:
    done = primus(folder, "train", *keys(), "--dry-run", RANK="0", WORLD_SIZE="3", LOCAL_RANK="0")
    assert done.returncode == 2
    assert "global_batch_size: 4 is not a multiple of micro_batch_size 2 x 3 data-parallel ranks = 6" in done.stderr


def test_a_dry_run_finds_what_training_would_stumble_over(folder: Path) -> None:
    (folder / "broken.jsonl").write_text(f"{row(1)}\n" * 16 + '{"messages": [\n')
    done = primus(folder, "train", *keys(data="broken.jsonl"), "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("broken.jsonl:17: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_run_that_is_probably_not_meant_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    large = ("hidden_size=2048", "ffn_hidden_size=8192", "num_layers=32", "num_attention_heads=16")
    train._warn(load_config(TINY[1], overrides=["sft_supervise_end_of_turn=false", *large]))
    off, random = caplog.messages
    assert off.startswith("sft_supervise_end_of_turn: is off, so the token that ends a turn is never a target; ")
    assert random.startswith("load: IS NOT SET, SO ALL 2.1 BILLION WEIGHTS START AT RANDOM.")
    caplog.clear()
    train._warn(load_config(TINY[1]))
    train._warn(load_config(TINY[1], overrides=[*large, "load=somewhere"]))
    assert caplog.messages == []


@pytest.fixture(scope="module")
def trained(folder: Path) -> subprocess.CompletedProcess[str]:
    return primus(folder, "train", *keys())


def losses(folder: Path, name: str) -> list[float]:
    path = folder / "output/primus/user" / name / "logs/metrics.jsonl"
    metrics = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["lm_loss"] for line in metrics if "lm_loss" in line]


def test_training_ends_with_losses_and_paths(folder: Path, trained: subprocess.CompletedProcess[str]) -> None:
    assert trained.returncode == 0, trained.stderr
    lines = dict(re.split(r" {2,}| (?=\d|output)", line, maxsplit=1) for line in trained.stdout.splitlines())
    assert float(lines["loss"]) == pytest.approx(losses(folder, "run")[-1], abs=1e-4)
    assert float(lines["validation loss"]) > 0
    assert (folder / lines["checkpoint"] / "run.json").is_file()
    assert (folder / lines["metrics"]).is_file()


@pytest.mark.slow
def test_two_ranks_are_started_and_compute_the_same(folder: Path, trained: subprocess.CompletedProcess[str]) -> None:
    done = primus(folder, "train", *keys(name="two"), "--nproc-per-node", "2")
    assert done.returncode == 0, done.stderr
    assert losses(folder, "two") == pytest.approx(losses(folder, "run"), abs=1e-5)
    assert done.stdout.replace("user/two", "user/run") == trained.stdout


@pytest.mark.slow
def test_an_error_of_two_ranks_is_shown_once(folder: Path) -> None:
    done = primus(folder, "train", *keys(data="absent.jsonl"), "--nproc-per-node=2")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("absent.jsonl: no such file")


@pytest.mark.slow
def test_a_run_that_breaks_names_conversations_and_leaves_its_page(folder: Path) -> None:
    broken = keys("lr=3e38", "min_lr=3e38", "clip_grad=0.0", "eval_interval=1", "log_interval=1", name="broken")
    done = primus(folder, "train", *broken, "--nproc-per-node=2")
    assert (done.returncode, done.stdout) == (2, "")
    *_, page, error = done.stderr.splitlines()
    assert error.startswith("step 1: the validation loss is nan")
    assert " the broken batches' " in error
    assert re.search(r" rows\.jsonl:\d+", error)
    assert page == "output/primus/user/broken/logs/report.html: the steps until then"
    assert 'id="loss"' in (folder / "output/primus/user/broken/logs/report.html").read_text()


def test_the_trained_model_is_exported_by_another_process(
    folder: Path, trained: subprocess.CompletedProcess[str]
) -> None:
    assert trained.returncode == 0
    checkpoints = "output/primus/user/run/checkpoints"
    done = primus(folder, "checkpoint", "export-hf", checkpoints, "exported")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hugging Face folder: exported\n", "")
    assert (folder / "exported/model.safetensors").is_file()
    again = primus(folder, "checkpoint", "export-hf", checkpoints, "exported")
    assert again.returncode == 2
    assert again.stderr == "exported: the folder is not empty; name another one, or pass --force to replace it\n"


def test_a_folder_that_holds_no_checkpoint_is_one_line(folder: Path) -> None:
    done = primus(folder, "checkpoint", "export-hf", ".", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        ".: holds neither run.json nor latest_checkpointed_iteration.txt; name an iter_* folder"
    )
    assert len(done.stderr.splitlines()) == 1
