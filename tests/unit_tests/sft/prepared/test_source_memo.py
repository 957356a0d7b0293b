# SPDX-License-Identifier: Apache-2.0
"""Files are read again when they may have changed, and only then."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import primus.sft.prepared.source_memo
from primus.errors import DataError
from primus.sft.prepared import open_prepared, prepare_or_wait
from primus.sft.prepared.source_files import SourceFacts, describe_sources
from primus.sft.prepared.source_memo import describe_sources_once
from tests.unit_tests.sft.prepared.conftest import make_job, write_conversations


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content is read, as it happens."""
    names: list[str] = []

    def describe(files: Sequence[Path]) -> list[SourceFacts]:
        names.extend(file.name for file in files)
        return describe_sources(files)

    monkeypatch.setattr(primus.sft.prepared.source_memo, "describe_sources", describe)
    monkeypatch.setattr(primus.sft.prepared.source_memo, "_SETTLED_NS", 0)
    return names


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_conversations(tmp_path / f"{name}.jsonl", count=5, seed=seed) for seed, name in enumerate("ab")]


def describe(files: Sequence[Path], cache_dir: Path) -> list[SourceFacts]:
    time.sleep(0.02)  # a tick of the disk's clock
    found = describe_sources_once(files, cache_dir, on_message=print)
    assert found == describe_sources(files)
    return found


def test_what_has_not_changed_is_read_once(files: list[Path], tmp_path: Path, read: list[str]) -> None:
    for _ in range(3):
        describe(files, tmp_path / "cache")
    assert read == ["a.jsonl", "b.jsonl"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["sources.json"]


@pytest.mark.parametrize("how", ["other content", "other content, same size and date", "another file", "other mode"])
def test_what_may_have_changed_is_read_again(files: list[Path], tmp_path: Path, read: list[str], how: str) -> None:
    describe(files, tmp_path / "cache")
    read.clear()
    found, content = files[0].stat(), files[0].read_bytes()
    if how == "other content":
        files[0].write_bytes(content + b"\n")
    elif how == "another file":
        files[0].unlink()
        files[0].write_bytes(content)
    elif how == "other mode":
        files[0].chmod(0o600)
    else:
        files[0].write_bytes(content.swapcase())
        os.utime(files[0], ns=(found.st_atime_ns, found.st_mtime_ns))
    describe(files, tmp_path / "cache")
    assert read == ["a.jsonl"]


def test_what_was_changed_a_moment_ago_is_not_remembered(
    files: list[Path], tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(primus.sft.prepared.source_memo, "_SETTLED_NS", 60_000_000_000)
    for _ in range(2):
        describe(files, tmp_path / "cache")
    assert read == ["a.jsonl", "b.jsonl"] * 2
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "no file"])
def test_a_memory_that_can_not_be_used_is_done_without(
    files: list[Path], tmp_path: Path, read: list[str], damage: str
) -> None:
    cache = tmp_path / "cache"
    if damage == "no file":
        cache.write_text("in the way")
    else:
        describe(files, cache)
        content = bytearray((cache / "sources.json").read_bytes())
        content[-80] ^= 1
        (cache / "sources.json").write_bytes(content)
    read.clear()
    describe(files, cache)
    assert read == ["a.jsonl", "b.jsonl"]


RANK = """
import sys
from pathlib import Path
from primus.sft.prepared import open_prepared, prepare_or_wait
from tests.unit_tests.sft.prepared.conftest import make_job, use_small_shards
use_small_shards(setattr)
work = []
job = make_job(Path(sys.argv[1]), bad_rows=sys.argv[3])
try:
    folder = prepare_or_wait(job, Path(sys.argv[2]), num_workers=1, on_progress=work.append, on_message=print)
    print("opened", bool(work), open_prepared(folder).fingerprint)
except Exception as error:
    print("failed", bool(work), type(error).__name__, str(error).splitlines()[0])
"""


def run_ranks(source: Path, cache_dir: Path, bad_rows: str) -> list[str]:
    """The last line of each of four ranks."""
    root = str(Path(__file__).parents[4])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(source), str(cache_dir), bad_rows],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        for _ in range(4)
    ]
    return [rank.communicate(timeout=100)[0].splitlines()[-1] for rank in ranks]


def test_one_rank_of_a_job_prepares_and_all_open_it(tmp_path: Path) -> None:
    source = write_conversations(tmp_path / "a.jsonl", count=200)
    lines = run_ranks(source, tmp_path / "cache", "quarantine")
    folder = prepare_or_wait(make_job(source), tmp_path / "cache", num_workers=1)
    fingerprint = open_prepared(folder).fingerprint
    assert sorted(lines) == [f"opened False {fingerprint}"] * 3 + [f"opened True {fingerprint}"]


def test_ranks_that_waited_fail_with_the_one_that_worked(tmp_path: Path) -> None:
    source = write_conversations(tmp_path / "a.jsonl", count=500)
    lines = run_ranks(source, tmp_path / "cache", "error")
    with pytest.raises(DataError) as caught:
        prepare_or_wait(make_job(source, bad_rows="error"), tmp_path / "cache", num_workers=1)
    assert {line.split(" ", 2)[2] for line in lines} == {f"DataError {caught.value.problems[0]}"}
    assert any(line.startswith("failed False") for line in lines), "nobody waited"
