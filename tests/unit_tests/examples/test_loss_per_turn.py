# SPDX-License-Identifier: Apache-2.0
"""The losses that a run tells of turns against those that a script computes from the exported model."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from primus.cli import main

CHECKOUT = Path(__file__).parents[3]
EXAMPLES = CHECKOUT / "examples" / "data"
SMALL = ("num_layers=2", "hidden_size=32", "ffn_hidden_size=64", "num_attention_heads=4", "num_query_groups=2")
SHORT = (
    "train_iters=6",
    "log_interval=1",
    "lr_warmup_iters=1",
    "eval_interval=3",
    "tensorboard=false",
    "seq_length=400",
)
# A conversation with more turns than are told apart.
LONG = [
    {"role": role, "content": f"{role[0]}{number}"} for number in range(11) for role in ("user", "assistant")
]  # fmt: skip


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("loss_per_turn", CHECKOUT / "scripts" / "loss_per_turn.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on demonstration data, packed, with its model exported to `model`."""
    folder = tmp_path_factory.mktemp("run")
    lines = (EXAMPLES / "demo-validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[40:90]), encoding="utf-8")
    validation = [*lines[:30], json.dumps({"messages": LONG}) + "\n"]
    (folder / "validation.jsonl").write_text("".join(validation), encoding="utf-8")
    data = (f"sft_dataset_name={folder}/train.jsonl", f"sft_validation_dataset_name={folder}/validation.jsonl")
    packed = ("sft_packing=best_fit", "sft_length_bucket=0", "global_batch_size=4", "micro_batch_size=2")
    names = (f"workspace={folder}", "work_group=a", "user_name=b", "exp_name=c")
    arguments = ["--config", "tiny-multiturn-sft.yaml", *SMALL, *SHORT, *data, *packed, *names]
    assert main(["train", *arguments]) == 0
    assert main(["checkpoint", "export-hf", str(folder / "a/b/c/checkpoints"), str(folder / "model")]) == 0
    return folder


def test_the_loss_of_each_turn_is_that_of_the_exported_model(
    run_folder: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = run_folder / "a/b/c/logs/metrics.jsonl"
    arguments = [str(run_folder / "model"), str(run_folder / "validation.jsonl"), "--metrics", str(metrics)]
    assert script.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    # 1 to 8, and the rest; the demonstration's conversations have 6 turns at most.
    assert [line.split()[0] for line in lines] == ["turn", "1", "2", "3", "4", "5", "6", "7", "8", "9+"]
    assert int(lines[-1].split()[1]) > int(lines[-2].split()[1])
    # A loss that is wrong is seen.
    line = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
    line["validation_loss_by_turn"]["3"]["loss"] += 2e-5
    (run_folder / "wrong.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert script.main([*arguments[:3], str(run_folder / "wrong.jsonl")]) == 1
    assert "a loss differs by 2.0" in capsys.readouterr().err


def test_what_is_told_apart_adds_up_to_the_whole(run_folder: Path) -> None:
    lines = map(json.loads, (run_folder / "a/b/c/logs/metrics.jsonl").read_text(encoding="utf-8").splitlines())
    num_lines = 0
    for line in lines:
        kind, loss = ("validation_", line["validation_loss"]) if "validation_loss" in line else ("", line["lm_loss"])
        for dimension in ("turn", "role", "source"):
            groups = line[f"{kind}loss_by_{dimension}"].values()
            targets = sum(group["targets"] for group in groups)
            mean = sum(group["loss"] * group["targets"] for group in groups) / targets
            # Every weight is 1, so the mean over all targets is the loss that is trained.
            assert mean == pytest.approx(loss, rel=1e-9)
            assert targets == line.get("supervised_tokens", targets)
        num_lines += 1
    assert num_lines == 6 + 2
