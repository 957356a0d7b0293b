# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
from pathlib import Path

import pytest

from primus.backends.megatron.checkpoint.digests import (
    DIGESTS_FILE,
    damages,
    digest_of,
    leave_digest,
    read_digests,
    take_digests,
    write_digests,
)
from primus.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "b").write_bytes(bytes(3_000_000))
    write_digests(tmp_path, known={})
    return tmp_path


def test_each_file_has_its_size_and_hash(folder: Path) -> None:
    assert set(read_digests(folder)) == {"a", "b"}
    assert read_digests(folder)["a"] == (7, hashlib.sha256(b"weights").hexdigest())
    assert read_digests(folder)["b"] == digest_of(folder / "b")
    assert damages(folder, "ab", digests=read_digests(folder)) == []


def test_what_became_of_each_file_is_said(folder: Path) -> None:
    digests = read_digests(folder)
    (folder / "a").unlink()
    changed = bytearray((folder / "b").read_bytes())
    changed[2_000_000] ^= 1
    (folder / "b").write_bytes(changed)
    assert damages(folder, "ab", digests=digests) == ["a is missing", "b does not hold what was written"]
    (folder / "b").write_bytes(changed[:-1])
    assert damages(folder, "b", digests=digests) == ["b has 2,999,999 bytes, 3,000,000 were written"]


def test_digests_that_writers_left_are_taken_and_gone(tmp_path: Path) -> None:
    for name in ("__0_0.distcp", "__0_1.distcp", "__10_0.distcp"):
        (tmp_path / name).write_text(name)
        leave_digest(tmp_path / name)
    own = take_digests(tmp_path, prefix="__0_")
    assert own == {name: digest_of(tmp_path / name) for name in ("__0_0.distcp", "__0_1.distcp")}
    assert sorted(path.name for path in tmp_path.glob("*.sha256")) == ["__10_0.distcp.sha256"]
    # What is known is not read again.
    (tmp_path / "__0_0.distcp").write_text("changed since")
    write_digests(tmp_path, known=own)
    assert damages(tmp_path, ["__0_0.distcp"], digests=read_digests(tmp_path)) != []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "files.json: is missing"),
        ('{"files": {', r"files.json: cannot be read \("),
        ("[]", "cannot be read"),
        ('{"files": {"a": {"size": 7}}}', "cannot be read"),
    ],
)
def test_digests_that_cannot_be_read_are_refused(folder: Path, content: str | None, message: str) -> None:
    path = folder / DIGESTS_FILE
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_digests(folder)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_the_digests_is_damage_too(folder: Path) -> None:
    document = json.loads((folder / DIGESTS_FILE).read_text())
    document["files"]["a"]["sha256"] = "0" + document["files"]["a"]["sha256"][1:]
    (folder / DIGESTS_FILE).write_text(json.dumps(document))
    assert damages(folder, "ab", digests=read_digests(folder)) == ["a does not hold what was written"]
