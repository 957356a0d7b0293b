# SPDX-License-Identifier: Apache-2.0
"""scripts/gpu_check where there is no GPU: everything but the speed."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).parents[2]


def gpu_check(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CHECKOUT / "scripts" / "gpu_check"), *words],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.fixture
def training_gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program behind it."""
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("training_gpu", CHECKOUT / "benchmarks" / "training_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look themselves up.
    monkeypatch.setitem(sys.modules, "training_gpu", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_layouts_run_and_their_table_is_written(tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    done = gpu_check(
        "--tiny", "--steps", "3", "--only", "packed", "one pack, float32 on the CPU", "--output", str(output)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = output.read_text(encoding="utf-8")
    assert re.search(
        r"^\| packed \| [\d,]+ \| [\d,]+ \| 9\d\.\d % \| .* % \| \d\.\d \| 6\.\d{5} \|$", written, re.MULTILINE
    )
    assert re.search(r"^\| one pack, float32 on the CPU \|( \|){6} 6\.\d{5} \|$", written, re.MULTILINE)
    assert "- packed: model: attention by torch scaled_dot_product_attention" in written


def test_a_row_tells_the_medians_of_the_steps_behind_the_first_ones(training_gpu: ModuleType) -> None:
    step = {"tokens_per_second": 60_000.4, "step_time_s": 0.5, "fill": 0.999, "tflops_per_device": 300.0}
    step |= {"peak_memory_bytes": 3 * 2**30, "lm_loss": 9.0}
    first = {**step, "tokens_per_second": 1.0, "tflops_per_device": 1.0, "lm_loss": 10.0}
    row = training_gpu.row_of("packed", [first, step, step], matmul=750.0)
    assert row == "| packed | 60,000 | 500 | 99.9 % | 300.0 | 40.0 % | 3.0 | 10.00000 |"
    assert training_gpu.row_of("one pack", [first], matmul=750.0) == "| one pack | | | | | | | 10.00000 |"


def test_products_of_matrices_have_a_rate(training_gpu: ModuleType) -> None:
    assert training_gpu.matmul_tflops("cpu", size=64) > 0


@pytest.mark.slow
def test_without_a_gpu_it_says_what_to_do() -> None:
    done = gpu_check()
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "scripts/gpu_check: there is no GPU; start it where one is, or try it out with --tiny"
    ]
