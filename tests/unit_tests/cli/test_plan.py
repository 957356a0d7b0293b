# SPDX-License-Identifier: Apache-2.0
"""`primus train --plan`, and what `--dry-run` says of GPUs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from primus.cli import main
from primus.config.places import EXAMPLES

LLAMA = "llama3_8B-multiturn-sft.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    turn = "It is a long way to Lima, and a duck needs a jacket for it. " * 4
    rows = [
        {"messages": [{"role": "user", "content": f"Go {n}"}, {"role": "assistant", "content": turn}] * 3}
        for n in range(60)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def keys(folder: Path, *more: str) -> list[str]:
    tokenizer = EXAMPLES / "data" / "demo-tokenizer"
    return [f"tokenizer_model={tokenizer}", f"sft_dataset_name={folder / 'rows.jsonl'}", f"workspace={folder}", *more]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["train", "--config", LLAMA, *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_plan_names_layouts_that_fit_and_the_overrides_of_the_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "--plan", "--gpus", "8", "--gpu", "H100", *keys(folder))
    assert code == 0
    assert re.search(r"^layouts on 8 x H100, 79 GiB each: \d+ of \d+ possible ones fit$", out, re.MULTILINE)
    rows = re.findall(r"^ +(\d+) +(\d+) +[\d-]+ +(\d+) +(\d+) +\d+ x \d+", out, re.MULTILINE)
    assert len(rows) > 5
    assert all(int(t) * int(p) * int(c) * int(d) == 8 for t, p, c, d in rows)
    assert len({row[:3] for row in rows}) == len(rows)
    overrides = yaml.safe_load(out.partition("overrides of the fastest\n")[2])
    assert str(overrides["tensor_model_parallel_size"]) == rows[0][0]
    assert "Times are for comparing" in out
    assert max(map(len, out.splitlines())) <= 100
    # The overrides are a run's, and fit where they were said to.
    again = [f"{name}={'null' if value is None else json.dumps(value)}" for name, value in overrides.items()]
    code, out, _ = run(capsys, "--dry-run", "--gpus", "8", "--gpu", "H100", *keys(folder, *again))
    assert code == 0
    assert re.search(r"^  fits +\d+%  of 71 GiB", out, re.MULTILINE)


def test_a_plan_as_json_has_all_layouts_and_what_is_assumed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--plan", "--json", "--gpus", "4", "--gpu-memory", "100", *keys(folder))
    assert code == 0
    plan: dict[str, Any] = json.loads(out)
    assert (plan["gpus"], plan["gpu"], plan["memory_gib"]) == (4, None, 100)
    assert plan["assumptions"]["usable_memory_share"] == 0.9
    for layout in plan["layouts"]:
        parts = layout["memory_bytes"]
        names = ("weights", "gradients", "optimizer", "activations", "temporary")
        assert parts["total"] == sum(parts[name] for name in names)
        assert layout["fits"] == (parts["total"] <= 90 * 2**30)
        times = dict(layout["step_time_s"])
        assert times.pop("total") == pytest.approx(sum(times.values()))
    assert [layout["fits"] for layout in plan["layouts"]] == sorted(
        (layout["fits"] for layout in plan["layouts"]), reverse=True
    )


def test_a_plan_in_which_nothing_fits_says_what_would_help(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--plan", "--gpus", "1", "--gpu", "H100", *keys(folder))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "--plan: no layout fits on 1 x H100 of 79 GiB: the smallest takes 1" in err
    assert "take more GPUs" in err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--plan", "--gpus", "8"], "--plan: there is no GPU here, and none is named; add --gpu with one of A100"),
        (["--plan", "--gpu", "H201"], "--gpu: 'H201' is not known; did you mean H20"),
        (["--plan", "--dry-run"], "--plan: compares all layouts, and --dry-run looks at one"),
        (["--json"], "--json: is for --plan"),
        (["--gpu", "H200"], "--gpu: only plans for such a GPU; add --dry-run or --plan"),
        (["--gpus", "8"], "--world-size: only plans for that many ranks; add --dry-run or --plan"),
        (["--plan", "--gpu-memory", "none"], "'none' is not a number above 0"),
        (["--plan", "--gpu", "H200", "sft_streaming=true", "sft_validation_fraction=0"], "--plan: needs the lengths"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    words: list[str], problem: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["sft_num_epochs=null", "train_iters=30"] if "sft_streaming=true" in words else []
    code, out, err = run(capsys, *words, *keys(folder, *more))
    assert (code, out) == (2, "")
    assert problem in err
    assert err.count("\n") == 1


def test_a_dry_run_that_does_not_fit_names_the_nearest_layouts_that_do(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "--dry-run", "--gpus", "8", "--gpu", "H100", *keys(folder))
    assert code == 0
    assert re.search(r"^  does NOT fit +1\d\d%  of 71 GiB, nine tenths", out, re.MULTILINE)
    nearest = out.partition("nearest layouts that fit\n")[2].splitlines()[:3]
    assert all(re.fullmatch(r"  (\w+=\S+ )+ \(\d+ GiB, \S+ s per step\)", line) for line in nearest), nearest
    changes = nearest[0].split("(")[0].split()
    code, out, _ = run(capsys, "--dry-run", "--gpus", "8", "--gpu", "H100", *keys(folder, *changes))
    assert code == 0
    assert re.search(r"^  fits ", out, re.MULTILINE)


def test_a_dry_run_without_a_gpu_says_nothing_of_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--dry-run", "--gpus", "8", *keys(folder))
    assert code == 0
    assert "leave a tenth for what is not estimated" in out
    assert "fit" not in out.partition("memory of a rank")[2].partition("first sequence")[0]
