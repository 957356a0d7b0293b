# SPDX-License-Identifier: Apache-2.0
"""Two ranks that are stopped by a signal, to their launcher or to one of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from primus.config.places import EXAMPLES

CHECKOUT = Path(__file__).parents[3]
KEYS = (
    *("num_layers=1", "hidden_size=32", "ffn_hidden_size=64", "num_attention_heads=2", "train_iters=100000"),
    *("log_interval=1", "tensorboard=false", "num_workers=0", "eval_interval=0", "sft_length_bucket=0"),
    *("micro_batch_size=2", "global_batch_size=4", f"sft_dataset_name={EXAMPLES / 'data' / 'demo-validation.jsonl'}"),
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("who", ["launcher", "rank"])
def test_both_ranks_save_and_stop_after_the_same_step(tmp_path: Path, who: str) -> None:
    command = [sys.executable, "-m", "primus", "train", "--config", "tiny-multiturn-sft.yaml", *KEYS]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(
            [*command, "--nproc-per-node", "2"], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
        metrics = tmp_path / "output/primus/user/tiny-multiturn-sft/logs/metrics.jsonl"
        until_s = time.monotonic() + 180
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < until_s:
            time.sleep(0.1)
        ranks = psutil.Process(launcher.pid).children()
        os.kill(launcher.pid if who == "launcher" else ranks[1].pid, signal.SIGTERM)
        code = launcher.wait(timeout=180)
    said = (tmp_path / "log").read_text()
    assert code == 128 + signal.SIGTERM, said
    assert "Traceback" not in said
    last = json.loads(metrics.read_text().splitlines()[-1])["iteration"]
    assert f"step {last}: SIGTERM came; the run stops here" in said
    assert said.splitlines()[-1].startswith("stopped by SIGTERM")
    run = metrics.parents[1] / "checkpoints" / f"iter_{last:07d}" / "run.json"
    assert json.loads(run.read_text())["iteration"] == last
    assert not psutil.wait_procs(ranks, timeout=10)[1]
