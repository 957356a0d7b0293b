# SPDX-License-Identifier: Apache-2.0
"""What is prepared is what is made in memory, and the same bytes whatever happened on the way."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import primus.sft.prepared.preparation
from primus.errors import DataError
from primus.sft.dataset import TokenizedDataset, tokenize_files
from primus.sft.ledger import VALIDATION
from primus.sft.prepared import Progress, open_prepared, plan_preparation, prepare, read_manifest, verify
from primus.sft.prepared.arrays import ARRAYS, INDEX, TOKENS
from primus.sft.prepared.collected import CollectedShard
from primus.sft.prepared.partial import PartialFolder
from primus.sft.prepared.preparation import PreparationJob
from primus.sft.sequences import SequenceArrays
from primus.sft.shards import ShardJob, shard_batches
from primus.sft.workers import WorkerPool
from tests.unit_tests.sft.prepared.conftest import contents, make_job, write_conversations


class StoppedError(Exception):
    """What ends a preparation in these tests."""


def in_memory(job: ShardJob, quarantine_path: Path | None = None) -> tuple[TokenizedDataset, TokenizedDataset]:
    encoder = job.recipe.build()
    assert job.recipe.max_seq_length is not None
    return tokenize_files(
        job.recipe.files,
        formatter=encoder.formatter,
        tokenizer=encoder.tokenizer,
        max_seq_length=job.recipe.max_seq_length,
        options=job.recipe.options,
        outcome=job.outcome,
        validation_fraction=job.validation_fraction,
        quarantine_path=quarantine_path,
    )


def assert_equal(found: TokenizedDataset, expected: TokenizedDataset) -> None:
    assert found.fingerprint == expected.fingerprint
    assert found.ledger.to_dict() == expected.ledger.to_dict()
    assert found.ledger.lines() == expected.ledger.lines()
    for name in ("num_tokens_N", "num_targets_N", "num_units_N", "shard_bounds"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    for mine, theirs in zip(found.shards, expected.shards, strict=True):
        for field in fields(SequenceArrays):
            assert np.array_equal(getattr(mine, field.name), getattr(theirs, field.name)), field.name


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_prepared_is_on_the_fly(small_shards: None, conversations: Path, tmp_path: Path, num_workers: int) -> None:
    other = write_conversations(tmp_path / "other.jsonl", count=40, seed=1)
    job = make_job(conversations, other, validation_fraction=0.1)
    manifest = prepare(plan_preparation(job), tmp_path / "out", num_workers=num_workers)
    train, held_out = in_memory(job, quarantine_path=tmp_path / "bad.jsonl")
    assert len(train.shards) > 4
    assert len(held_out) > 0
    assert_equal(open_prepared(tmp_path / "out"), train)
    assert_equal(open_prepared(tmp_path / "out", "validation"), held_out)
    assert open_prepared(tmp_path / "out")[7].tokens_T.tolist() == train[7].tokens_T.tolist()
    assert (tmp_path / "out" / "quarantine.jsonl").read_bytes() == (tmp_path / "bad.jsonl").read_bytes()
    assert train.ledger.num_bad > 0
    assert manifest.ledger["num_rows"] == train.ledger.num_rows == sum(train.ledger.outcomes.values())
    assert verify(tmp_path / "out") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bad.jsonl",
        "conversations.jsonl",
        "other.jsonl",
        "out",
    ]


def test_the_number_of_processes_changes_no_byte(small_shards: None, conversations: Path, tmp_path: Path) -> None:
    plan = plan_preparation(make_job(conversations, validation_fraction=0.1))
    for num_workers in (1, 2, 3):
        prepare(plan, tmp_path / str(num_workers), num_workers=num_workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


def test_validation_data_are_a_data_set_of_their_own(small_shards: None, conversations: Path, tmp_path: Path) -> None:
    job = make_job(conversations, outcome=VALIDATION)
    prepare(plan_preparation(job), tmp_path / "out", num_workers=1)
    assert_equal(open_prepared(tmp_path / "out", "validation"), in_memory(job)[0])
    assert not (tmp_path / "out" / "train").exists()
    with pytest.raises(DataError, match="has no split 'train', only validation"):
        open_prepared(tmp_path / "out")


def stop_after(number: int) -> Callable[[Progress], None]:
    calls: list[Progress] = []

    def stop(progress: Progress) -> None:
        calls.append(progress)
        if len(calls) > number:
            raise StoppedError

    return stop


@pytest.mark.parametrize("number", [0, 1, 3, 5, 8])
def test_what_was_stopped_goes_on_behind_the_finished_shards(
    small_shards: None, conversations: Path, tmp_path: Path, number: int, prepared: Path
) -> None:
    plan = plan_preparation(make_job(conversations, validation_fraction=0.1))
    out = tmp_path / "again"
    with pytest.raises(StoppedError):
        prepare(plan, out, num_workers=1, on_progress=stop_after(number))
    assert not out.exists()
    seen: list[Progress] = []
    messages: list[str] = []
    prepare(plan, out, num_workers=1, on_progress=seen.append, on_message=messages.append)
    assert contents(out) == contents(prepared)
    num_finished = max(number - 1, 0) // 2  # the next shard shows that one is whole
    assert messages == ([f"{out}.partial: takes over {num_finished} finished shards"] if num_finished else [])
    total = len(list(open_prepared(out).shards))
    assert len(seen) <= 2 * (total - num_finished)
    assert seen[-1].num_rows == 80
    assert seen[-1].num_bytes == conversations.stat().st_size


def stopped_in_the_middle(job: ShardJob, out: Path) -> None:
    with pytest.raises(StoppedError):
        prepare(plan_preparation(job), out, num_workers=1, on_progress=stop_after(7))
    assert len(list(out.with_name(f"{out.name}.partial").glob("records/*.json"))) == 3


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("records/00001.json", "flip"),
        ("train/shard-00001/tokens.bin", "flip"),
        ("train/shard-00001/tokens.idx", "cut"),
        ("train/shard-00000/arrays.safetensors", "flip"),
        ("validation/shard-00001/tokens.bin", "remove"),
        ("quarantine/00000.jsonl", "flip"),
        ("state.json", "cut"),
        ("state.json", "remove"),
    ],
)
def test_a_damaged_remainder_is_made_again(
    small_shards: None, conversations: Path, tmp_path: Path, prepared: Path, name: str, damage: str
) -> None:
    job = make_job(conversations, validation_fraction=0.1)
    out = tmp_path / "again"
    stopped_in_the_middle(job, out)
    path = tmp_path / "again.partial" / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    prepare(plan_preparation(job), out, num_workers=1)
    assert contents(out) == contents(prepared)


def test_the_remainder_of_another_data_set_is_removed(
    small_shards: None, conversations: Path, tmp_path: Path, prepared: Path
) -> None:
    out = tmp_path / "again"
    stopped_in_the_middle(make_job(conversations, validation_fraction=0.1, truncation="right"), out)
    messages: list[str] = []
    prepare(
        plan_preparation(make_job(conversations, validation_fraction=0.1)),
        out,
        num_workers=1,
        on_message=messages.append,
    )
    assert messages == [f"{out}.partial: was begun with other options, or before a source was touched; begins anew"]
    assert contents(out) == contents(prepared)


def test_shards_made_before_a_source_was_written_are_not_trusted(
    small_shards: None, conversations: Path, tmp_path: Path, prepared: Path
) -> None:
    """They may hold what stood there in between, even if the file has its old content, size and date again."""
    job = make_job(conversations, validation_fraction=0.1)
    out = tmp_path / "again"
    content, found = conversations.read_bytes(), conversations.stat()
    stopped_in_the_middle(job, out)
    conversations.write_bytes(content)
    os.utime(conversations, ns=(found.st_atime_ns, found.st_mtime_ns))
    messages: list[str] = []
    prepare(plan_preparation(job), out, num_workers=1, on_message=messages.append)
    assert messages == [f"{out}.partial: was begun with other options, or before a source was touched; begins anew"]
    assert contents(out) == contents(prepared)


def test_a_folder_that_only_lacks_its_name_gets_it(
    small_shards: None, conversations: Path, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_preparation(make_job(conversations, validation_fraction=0.1))
    expected = contents(prepared)
    prepared.rename(tmp_path / "again.partial")
    monkeypatch.delattr(primus.sft.prepared.preparation, "_Preparation")  # nothing is to be prepared
    prepare(plan, tmp_path / "again", num_workers=1)
    assert contents(tmp_path / "again") == expected


def test_what_is_there_is_not_prepared_again(
    small_shards: None, conversations: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(primus.sft.prepared.preparation, "hold")  # it may lie where nothing can be written
    manifest = prepare(plan_preparation(make_job(conversations, validation_fraction=0.1)), prepared, num_workers=1)
    assert manifest == read_manifest(prepared)


def test_a_tokenizer_that_changes_while_it_is_used_is_refused(
    conversations: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    job = make_job(conversations)
    other = replace(job, recipe=replace(job.recipe, tokenizer=str(tokenizer_folder)))
    plan = plan_preparation(job)
    with pytest.raises(DataError, match=r": the tokenizer or the chat template changed while it was used; run"):
        prepare(plan, tmp_path / "out", num_workers=2, pool=WorkerPool(PreparationJob(other), 2))
    assert not (tmp_path / "out").exists()
    prepare(plan, tmp_path / "out", num_workers=2, pool=WorkerPool(PreparationJob(job), 2))
    assert verify(tmp_path / "out") == []


def test_another_data_set_in_its_place_is_refused(conversations: Path, prepared: Path) -> None:
    plan = plan_preparation(make_job(conversations, validation_fraction=0.2))
    with pytest.raises(DataError, match=r"prepared otherwise \(validation_fraction: 0.1 -> 0.2\); remove it"):
        prepare(plan, prepared, num_workers=1)


@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_something_else_in_its_place_is_refused_and_stays(conversations: Path, tmp_path: Path, suffix: str) -> None:
    mine = tmp_path / f"out{suffix}" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    with pytest.raises(DataError, match=r"is in the way, and .*; move it away"):
        prepare(plan_preparation(make_job(conversations)), tmp_path / "out", num_workers=1)
    assert mine.read_text() == "years of work"


def test_an_empty_folder_is_not_in_the_way(conversations: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    prepare(plan_preparation(make_job(conversations)), tmp_path / "out", num_workers=1)
    assert len(open_prepared(tmp_path / "out")) > 40


@pytest.mark.parametrize("change", ["append", "replace the file", "write it and restore it"])
def test_a_source_that_is_written_while_it_is_read_is_refused(
    small_shards: None, conversations: Path, tmp_path: Path, change: str
) -> None:
    content = conversations.read_bytes()

    def write(_: Progress) -> None:
        if change == "append":
            with conversations.open("ab") as file:
                file.write(content[: content.index(b"\n") + 1])
        elif change == "replace the file":
            (tmp_path / "new").write_bytes(content)
            (tmp_path / "new").replace(conversations)
        else:
            conversations.write_bytes(content.replace(b"pelican", b"penguin"))
            conversations.write_bytes(content)

    plan = plan_preparation(make_job(conversations))
    with pytest.raises(DataError, match=rf"{conversations}: was written while it was read .* nothing is prepared"):
        prepare(plan, tmp_path / "out", num_workers=1, on_progress=write)
    assert [path.name for path in tmp_path.iterdir()] == ["conversations.jsonl"]


def test_bad_rows_that_may_not_be_are_listed_as_on_the_fly(small_shards: None, tmp_path: Path) -> None:
    job = make_job(write_conversations(tmp_path / "a.jsonl", count=400), bad_rows="error")
    with pytest.raises(DataError) as expected:
        in_memory(job)
    with pytest.raises(DataError) as found:
        prepare(plan_preparation(job), tmp_path / "out", num_workers=1)
    assert found.value.problems == expected.value.problems
    assert len(found.value.problems) == 11
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_bad_rows_of_shards_that_were_finished_before_are_listed_too(small_shards: None, tmp_path: Path) -> None:
    job = make_job(write_conversations(tmp_path / "a.jsonl"), bad_rows="error")
    stopped_in_the_middle(job, tmp_path / "out")
    with pytest.raises(DataError) as expected:
        in_memory(job)
    with pytest.raises(DataError) as found:
        prepare(plan_preparation(job), tmp_path / "out", num_workers=1)
    assert found.value.problems == expected.value.problems


@pytest.mark.parametrize("name", ["-", "hf://owner/name"])
def test_what_can_not_be_read_twice_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"is no file, so it can't be told .*primus data convert"):
        plan_preparation(make_job(Path(name)))


def test_files_that_can_not_be_read_are_refused_before_the_tokenizer_is_loaded(tmp_path: Path) -> None:
    job = make_job(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="no such file"):
        plan_preparation(replace(job, recipe=replace(job.recipe, tokenizer="missing.json")))


def test_a_full_disk_is_told_in_a_line_and_the_finished_shards_are_kept(
    small_shards: None, conversations: Path, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_preparation(make_job(conversations, validation_fraction=0.1))
    real = os.fsync

    def full(descriptor: int) -> None:
        if "shard-00002" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            DataError, match=r"can't be written \(No space left on device\); make room .* goes on behind"
        ):
            prepare(plan, tmp_path / "out", num_workers=1)
    partial = tmp_path / "out.partial"
    assert sorted(path.name for path in (partial / "records").iterdir()) == ["00000.json", "00001.json"]
    assert sorted(path.name for path in (partial / "train").iterdir()) == ["shard-00000", "shard-00001"]
    prepare(plan, tmp_path / "out", num_workers=1)
    assert contents(tmp_path / "out") == contents(prepared)


def test_a_manifest_names_what_a_person_asks_for(prepared: Path) -> None:
    manifest: dict[str, Any] = json.loads((prepared / "manifest.json").read_text())
    assert manifest["facts"]["sources"][0]["name"].endswith("conversations.jsonl")
    assert manifest["tokenizer"].endswith("demo-tokenizer/tokenizer.json")
    data = open_prepared(prepared)
    shards = manifest["splits"]["train"]
    assert sum(shard["num_sequences"] for shard in shards) == len(data)
    assert sum(shard["num_tokens"] for shard in shards) == data.num_tokens_N.sum()
    assert sum(shard["num_targets"] for shard in shards) == data.num_targets_N.sum()
    assert data.quarantine_path == prepared / "quarantine.jsonl"


def test_two_processes_that_write_the_same_shard_leave_one_whole(conversations: Path, tmp_path: Path) -> None:
    """As on a cluster whose machine was given up for lost, and was not."""
    job = make_job(conversations)
    encoder = job.build()
    path = tmp_path / "out.partial"
    PartialFolder(path).open("key", [])

    def write(writer: str) -> None:
        shard = CollectedShard(job)
        for _, batch in shard_batches(job.recipe.files, job.recipe.source):
            shard.add(encoder.encode(batch))
        shard.write(PartialFolder(path, writer=writer), 0)

    for writer in (".first", ".second"):
        write(writer)
        PartialFolder(path, writer=".lost").new_shard_folder("train", 0)
    assert list(PartialFolder(path).open("key", [])) == [0]
    PartialFolder(path).remove_surplus(1)
    assert sorted(contents(path)) == [f"train/shard-00000/{name}" for name in (ARRAYS, TOKENS, INDEX)]
    shutil.rmtree(path)
    with pytest.raises(DataError, match=r"can't be written \(No such file or directory\)"):
        write(".late")
    assert not path.exists()
