# SPDX-License-Identifier: Apache-2.0
"""The jobs for Slurm and Kubernetes: syntax, commands, and the sbatch script with Slurm's commands played."""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from primus.cli.train import _parser
from primus.config.places import EXAMPLES

SBATCH = EXAMPLES / "slurm" / "train.sbatch"
JOB = EXAMPLES / "kubernetes" / "train.yaml"
CHECKOUT = Path(__file__).parents[3]

SLURM = {
    # Takes its own option off, and becomes the command, on this machine.
    "srun": 'echo $$ > "$STEP"; shift; exec "$@"',
    "scontrol": '[[ $1 == show ]] && echo localhost || echo "$@" >> "$CALLS"',
    "scancel": 'echo "$@" >> "$CALLS"; kill -TERM "$(cat "$STEP")"',
}
KEYS = (
    *("num_layers=1", "hidden_size=32", "ffn_hidden_size=64", "num_attention_heads=2", "train_iters=100000"),
    *(
        "log_interval=1",
        "tensorboard=false",
        "num_workers=0",
        "eval_interval=0",
        "sft_length_bucket=0",
        "micro_batch_size=2",
    ),
    *("global_batch_size=4", f"sft_dataset_name={EXAMPLES / 'data' / 'demo-validation.jsonl'}"),
)


def test_the_sbatch_script_has_the_syntax_of_bash() -> None:
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(JOB.read_text(encoding="utf-8")))


def test_the_pods_find_each_other_and_save_in_time() -> None:
    service, job = documents()
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    (container,) = pod["containers"]
    words = shlex.split(container["args"][0])
    option = dict(itertools.pairwise(words))
    assert int(option["--nnodes"]) == job["spec"]["completions"]
    assert int(option["--nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert option["--rdzv-endpoint"] == f"{job['metadata']['name']}-0.{pod['subdomain']}:29500"
    assert int(option["--shutdown-timeout"]) < pod["terminationGracePeriodSeconds"]


def test_the_commands_are_those_of_primus() -> None:
    (container,) = documents()[1]["spec"]["template"]["spec"]["containers"]
    script = SBATCH.read_text(encoding="utf-8").replace("\\\n", " ").replace('"$@" &', "")
    (line,) = (line for line in script.splitlines() if "-m primus" in line)
    for command in (container["args"][0], line):
        arguments = shlex.split(command.partition("-m primus train ")[2])
        options = _parser().parse(arguments)
        assert options.resume == "auto"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_sbatch_script_saves_when_its_time_is_over_and_is_queued_again(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, body in SLURM.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(CHECKOUT),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "machines",
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "PRIMUS_PYTHON": sys.executable,
        "CALLS": str(tmp_path / "calls"),
        "STEP": str(tmp_path / "step"),
    }
    command = ["bash", str(SBATCH), "tiny-multiturn-sft.yaml", *KEYS]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        metrics = tmp_path / "output/primus/user/tiny-multiturn-sft/logs/metrics.jsonl"
        until_s = time.monotonic() + 120
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < until_s:
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        code = job.wait(timeout=120)
    said = (tmp_path / "log").read_text()
    assert code == 0, said
    assert "put back into the queue" in said
    assert (tmp_path / "calls").read_text().splitlines()[-1] == f"requeue {os.getpid()}"
    last = json.loads(metrics.read_text().splitlines()[-1])["iteration"]
    checkpoint = metrics.parents[1] / "checkpoints" / f"iter_{last:07d}" / "run.json"
    assert json.loads(checkpoint.read_text())["iteration"] == last
