# SPDX-License-Identifier: Apache-2.0
"""`primus data prepare` and `primus data verify` as a person runs them, and as a machine ends them."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from primus.cli import main
from primus.sft.prepared import open_prepared, verify
from tests.unit_tests.sft.prepared.conftest import TOKENIZER, contents, write_conversations

CHECKOUT = Path(__file__).parents[4]
SMALL_SHARDS = CHECKOUT / "tests" / "unit_tests" / "sft" / "prepared" / "run_small_shards.py"
OPTIONS = ["--tokenizer", TOKENIZER, "--seq-length", "300", "--truncation", "drop", "--bad-rows", "quarantine"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_conversations(tmp_path / "a.jsonl")


def prepare(*arguments: object) -> int:
    return main(["data", "prepare", *map(str, arguments), *OPTIONS])


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SMALL_SHARDS), *map(str, arguments)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=100
    )


def data_sets(cache: Path) -> list[Path]:
    return [path.parent for path in cache.glob("*/manifest.json")]


def test_it_says_what_was_prepared_and_then_that_it_is(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert prepare(source, "--out", out) == 0
    data = open_prepared(out)
    content = (
        f"  train: {len(data):,} sequences, {data.num_tokens_N.sum():,} tokens, of which"
        f" {data.num_targets_N.sum():,} are trained\n"
    )
    output = capsys.readouterr().out
    assert re.match(rf"{out}: prepared 80 rows in \d+\.\d s \(\d+\.\d MB/s\)\n", output)
    assert output.split("\n", 1)[1] == content + "\n".join(data.ledger.lines()) + "\n"
    assert prepare(source, "--out", out) == 0
    assert capsys.readouterr().out == f"{out}: is prepared already\n{content}"


def test_the_cache_is_beside_the_runs_of_this_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare("a.jsonl") == 0
    [folder] = data_sets(tmp_path / "output" / "prepared")
    assert re.fullmatch(r"[0-9a-f]{32}", folder.name)
    assert open_prepared(folder).manifest.key == folder.name
    assert prepare("a.jsonl", "--cache-dir", "elsewhere") == 0
    assert (tmp_path / "elsewhere" / folder.name).is_dir()


def test_explain_names_the_nearest_and_what_differs(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"

    def explain(*arguments: str) -> str:
        assert prepare(source, "--cache-dir", cache, "--explain", *arguments) == 0
        return capsys.readouterr().out

    assert re.fullmatch(r"\S+: is not prepared; \S+/cache holds no other data set\n", explain())
    assert prepare(source, "--cache-dir", cache) == 0
    assert (
        prepare(source, "--cache-dir", cache, "--validation-fraction", "0.5", "--format", "qwen", "--think", "split")
        == 0
    )
    capsys.readouterr()
    near, far = sorted(data_sets(cache), key=lambda path: len(open_prepared(path).manifest.splits))
    assert explain() == f"{near}: is prepared\n"
    assert explain("--validation-fraction", "0.5").endswith(
        f"the nearest is {near}, from which it differs in\n  validation_fraction: 0.0 -> 0.5\n"
    )
    assert explain("--validation-fraction", "0.4", "--format", "qwen", "--think", "split").endswith(
        f"the nearest is {far}, from which it differs in\n  validation_fraction: 0.5 -> 0.4\n"
    )
    write_conversations(source, seed=3)
    assert f"  sources {source}: the content changed (" in explain()


def test_a_run_and_the_command_prepare_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").symlink_to(CHECKOUT / "examples")
    monkeypatch.chdir(tmp_path)
    validation = "sft_validation_dataset_name=examples/data/demo-validation.jsonl"
    words = ["tiny-multiturn-sft.yaml", "sft_dataset_name=examples/data/demo-heldout.jsonl", validation, "workspace=w"]
    assert main(["data", "prepare", *words]) == 0
    output = capsys.readouterr().out
    assert output.startswith("train data:\nw/prepared/")
    assert "\nvalidation data:\nw/prepared/" in output
    splits = {tuple(open_prepared_splits(folder)) for folder in data_sets(tmp_path / "w" / "prepared")}
    assert splits == {("train",), ("validation",)}
    assert main(["data", "prepare", *words, "sft_cache_dir=c", "--explain"]) == 0
    assert capsys.readouterr().out.count("\nc/") == 2
    assert main(["data", "prepare", *words, "--out", "o"]) == 2
    assert "--out: o is one folder, but the run has 2 data sets (train, validation)" in capsys.readouterr().err


def open_prepared_splits(folder: Path) -> list[str]:
    from primus.sft.prepared import read_manifest  # noqa: PLC0415

    return list(read_manifest(folder).splits)


def test_options_of_data_files_are_keys_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "tiny-multiturn-sft.yaml", "--seq-length", "9", "--bad-rows", "error"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "--seq-length: with the YAML file of a run it is the key seq_length; give seq_length=9",
        "--bad-rows: with the YAML file of a run it is the key sft_bad_rows; give sft_bad_rows=error",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizer", TOKENIZER], "--seq-length: is missing"),
        (
            ["--tokenizer", TOKENIZER, "--seq-length", "9", "--validation-fraction", "1"],
            "--validation-fraction: is 1.0",
        ),
        (["--seq-length", "9"], "--tokenizer: is missing"),
    ],
)
def test_what_is_missing_is_said(
    source: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "prepare", str(source), *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_cluster_needs_ray(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert prepare(source, "--out", tmp_path / "out", "--ray", "auto") == 2
    message = r"--ray: needs Ray \(ray\S* is not installed\); install the extra: pip install 'primus\[ray\]'\n"
    assert re.fullmatch(message, capsys.readouterr().err)


def test_verify_ends_with_1_and_a_line_for_each_wrong_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert prepare(source, "--out", out) == 0
    capsys.readouterr()
    assert main(["data", "verify", str(out)]) == 0
    assert re.fullmatch(rf"{out}: all [\d,]+ bytes of 6 files are right \(\d\.\d s\)\n", capsys.readouterr().out)
    tokens = out / "train" / "shard-00000" / "tokens.bin"
    content = bytearray(tokens.read_bytes())
    content[100] ^= 1
    tokens.write_bytes(content)
    (out / "ledger.json").unlink()
    assert main(["data", "verify", str(out)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{out}/ledger.json: is missing",
        f"{tokens}: has other bytes than were written",
        f"WRONG: 2 problems; do not train on {out}",
    ]
    assert main(["data", "verify", str(tmp_path)]) == 2
    assert "is not a prepared data set" in capsys.readouterr().err


def kill_at_random(num_kills: int, source: Path, out: Path, *, rng: random.Random, duration_s: float) -> None:
    """Start the command again and again, and end it with everything it started."""
    num_killed = 0
    while num_killed < num_kills:
        num_workers = rng.choice([1, 2, 3])
        words = command("data", "prepare", source, "--out", out, "--workers", num_workers, *OPTIONS)
        process = subprocess.Popen(
            words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        if rng.random() < 0.8:  # the others end it while it still starts
            while process.poll() is None and not out.with_name(f"{out.name}.partial").exists():
                time.sleep(0.002)
        try:
            process.wait(rng.uniform(0, duration_s))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            num_killed += 1
        if out.exists():
            assert verify(out) == []
            if num_killed < num_kills:  # finished too early: once more from the start
                for path in sorted(out.rglob("*"), reverse=True):
                    path.unlink() if path.is_file() else path.rmdir()
                out.rmdir()


def check_kills(num_kills: int, num_rows: int, tmp_path: Path) -> None:
    source = write_conversations(tmp_path / "a.jsonl", count=num_rows)
    expected, out = tmp_path / "expected", tmp_path / "out"
    started_s = time.monotonic()
    assert run("data", "prepare", source, "--out", expected, "--workers", 2, *OPTIONS).returncode == 0
    duration_s = 0.7 * (time.monotonic() - started_s)
    kill_at_random(num_kills, source, out, rng=random.Random(num_kills), duration_s=duration_s)
    done = run("data", "prepare", source, "--out", out, "--workers", 2, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(expected)
    assert verify(out) == []
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "expected", "out"}


def test_killed_5_times_it_still_prepares_the_same_bytes(tmp_path: Path) -> None:
    check_kills(5, 80, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_50_times_it_still_prepares_the_same_bytes(tmp_path: Path) -> None:
    check_kills(50, 400, tmp_path)


def test_three_at_once_prepare_it_once(tmp_path: Path) -> None:
    source = write_conversations(tmp_path / "a.jsonl", count=200)
    out = tmp_path / "out"
    words = command("data", "prepare", source, "--out", out, "--workers", 1, *OPTIONS)
    processes = [
        subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert verify(out) == []
    waited = [error for _, error in outputs if "waiting for process" in error]
    for error in waited:
        assert re.search(
            rf"{out}.lock: waiting for process ({'|'.join(str(p.pid) for p in processes)}) on \S+\n", error
        )
    assert len(open_prepared(out).ledger.lines()) > 1


IN_A_SPACE_OF_ITS_OWN = ["unshare", "--mount", "--map-root-user", "sh", "-c"]


def in_own_mounts(script: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell script that may mount: nobody else sees it, and it is gone with the shell."""
    try:
        able = subprocess.run(
            [*IN_A_SPACE_OF_ITS_OWN, "mount -t tmpfs -o size=64k none /mnt"], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("needs the command unshare, to mount a small disk")
    if able.returncode:
        pytest.skip(f"needs a user who may mount in a space of his own ({able.stderr.decode().strip()})")
    return subprocess.run(
        [*IN_A_SPACE_OF_ITS_OWN, script], capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=100
    )


def test_a_full_disk_is_told_in_a_line_and_with_more_room_it_goes_on(tmp_path: Path) -> None:
    source = write_conversations(tmp_path / "a.jsonl", count=300)
    small, expected, copy = tmp_path / "small", tmp_path / "expected", tmp_path / "copy"
    small.mkdir()
    assert run("data", "prepare", source, "--out", expected, *OPTIONS).returncode == 0
    size = sum(map(len, contents(expected).values()))
    words = " ".join(f"'{word}'" for word in command("data", "prepare", source, "--out", small / "out", *OPTIONS))
    done = in_own_mounts(
        f"""
        mount -t tmpfs -o size={size // 2048}k none {small}
        {words}; echo "first: $?"
        mount -o remount,size=64m {small}
        {words}; echo "second: $?"
        cp -r {small}/out {copy}; ls {small}
        """
    )
    assert "first: 2\n" in done.stdout, (done.stdout, done.stderr)
    [problem, taken_over] = [line for line in done.stderr.splitlines() if "MB/s" not in line]
    assert re.search(
        r"small/out.partial\S*: can't be written \(No space left on device\); make room there and", problem
    )
    assert re.search(r"out.partial: takes over \d+ finished shards", taken_over)
    assert done.stdout.endswith("second: 0\nout\n")
    assert contents(copy) == contents(expected)


def test_a_disk_that_can_not_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    source = write_conversations(tmp_path / "a.jsonl")
    (tmp_path / "disk").mkdir()
    words = " ".join(command("data", "prepare", source, "--out", tmp_path / "disk" / "out", *OPTIONS))
    done = in_own_mounts(f"mount -t tmpfs -o ro none {tmp_path / 'disk'}; {words}; echo $?")
    assert done.stdout == "2\n"
    assert done.stderr == (
        f"{tmp_path}/disk/out.lock: can't be written (Read-only file system); name a folder that can be written with"
        " --out, or with workspace or sft_cache_dir\n"
    )


def test_what_lies_on_a_disk_that_can_not_be_written_is_found(tmp_path: Path) -> None:
    source = write_conversations(tmp_path / "a.jsonl")
    out = tmp_path / "disk" / "out"
    assert run("data", "prepare", source, "--out", out, *OPTIONS).returncode == 0
    words = " ".join(command("data", "prepare", source, "--out", out, *OPTIONS))
    done = in_own_mounts(f"mount --bind {out} {out}; mount -o remount,ro,bind {out}; touch {out}/x; {words}")
    assert "Read-only file system" in done.stderr
    assert done.stdout.startswith(f"{out}: is prepared already\n")
