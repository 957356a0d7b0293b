# SPDX-License-Identifier: Apache-2.0
"""What a run leaves for W&B where there is no network and no key; skipped where the package is not installed."""

import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from primus.backends.megatron.reporting.wandb_curves import require_wandb
from primus.errors import ConfigError

SECRET = "a-secret-of-forty-letters-0123456789abcd"
PROGRAM = """
import logging, sys
from pathlib import Path
from primus.backends.megatron.reporting.wandb_curves import wandb_curves

logging.basicConfig(level=logging.INFO, format="%(message)s")
folder = Path(sys.argv[1])
settings = {"lr": 0.1, "load": "s3://me:SECRET@host/checkpoint", "seed": 1234}
for resumes, iterations in ((False, (2, 4, 6)), (True, (4, 6, 8))):
    with wandb_curves(
        project="a-project", name="a-run", folder=folder, settings=settings, id_file=folder / "id", resumes=resumes
    ) as curves:
        print("SECRET")
        for iteration in iterations:
            curves.add({"lm_loss": 1 / iteration, "loss_by_turn/1": 0.5}, iteration=iteration)
""".replace("SECRET", SECRET)


def run(folder: Path, **environment: str) -> str:
    """Run the program without a key; what it says."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB") and key != "HOME"}
    path = os.pathsep.join([str(Path(__file__).parents[5]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), f"--token={SECRET}"],
        env={**kept, "PYTHONPATH": path, "HOME": str(folder / "home"), "SOME_TOKEN": SECRET, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    return done.stderr


def records(path: Path) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format: blocks of 32 KiB, each piece with its length and its kind."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def read(path: Path) -> tuple[Any, list[tuple[Any, ...]]]:
    """The run of a file, and the points that were logged: iteration and the values."""
    from wandb.proto import wandb_internal_pb2  # noqa: PLC0415  # an extra

    run_of_file: Any = None
    points: list[tuple[Any, ...]] = []
    for data in records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            run_of_file = record.run
        if record.HasField("history"):
            values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            points.append((values["iteration"], values["lm_loss"], values["loss_by_turn/1"]))
    return run_of_file, points


@pytest.mark.parametrize("environment", [{"WANDB_MODE": "offline"}, {}])
def test_a_run_without_a_network_and_without_a_key_is_written_to_files(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    pytest.importorskip("wandb")
    said = run(tmp_path, **environment)
    assert said.count("W&B can't be reached (No API key configured") == (0 if environment else 2)
    assert said.count("W&B: offline; send it later with: wandb sync ") == 2
    folders = [Path(folder) for folder in re.findall(r"wandb sync (.*)", said)]
    assert all(folder.parent == tmp_path / "wandb" for folder in folders)
    runs = [read(next(folder.glob("*.wandb"))) for folder in folders]
    # A run that goes on is the same run.
    assert {run.run_id for run, _ in runs} == {(tmp_path / "id").read_text().strip()}
    first, points = runs[0]
    assert (first.project, first.display_name) == ("a-project", "a-run")
    assert {update.key: update.value_json for update in first.config.update}["load"] == '"s3://***@host/checkpoint"'
    assert points == [(str(i), repr(1 / i), "0.5") for i in (2, 4, 6)]
    assert runs[1][1] == [(str(i), repr(1 / i), "0.5") for i in (4, 6, 8)]


def test_nothing_of_the_environment_the_command_line_and_the_output_is_told(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run(tmp_path, WANDB_MODE="offline")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_a_run_that_asks_for_a_package_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primus.backends.megatron.reporting.wandb_curves.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"^wandb_project: the package wandb is not installed; install it with pip"):
        require_wandb()
