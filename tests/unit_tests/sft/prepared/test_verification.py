# SPDX-License-Identifier: Apache-2.0
"""Any wrong byte in a prepared data set is found, in any kind of file; what can be seen at once is refused at once."""

import json
import random
import re
from pathlib import Path

import pytest

from primus.errors import DataError
from primus.sft.prepared import open_prepared, verify
from primus.sft.prepared.manifest import write_sealed

KINDS = [
    "manifest.json",
    "ledger.json",
    "quarantine.jsonl",
    "train/shard-00001/tokens.bin",
    "train/shard-00001/tokens.idx",
    "train/shard-00001/arrays.safetensors",
    "validation/shard-00000/arrays.safetensors",
]


def test_every_kind_of_file_is_tried_here(prepared: Path) -> None:
    assert verify(prepared) == []
    assert {path.name for path in prepared.rglob("*") if path.is_file()} == {Path(kind).name for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found(prepared: Path, kind: str) -> None:
    path = prepared / kind
    content = path.read_bytes()
    rng = random.Random(kind)
    places = {0, len(content) - 1, *rng.sample(range(len(content)), 20)}
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        [problem] = verify(prepared)
        assert problem.startswith(f"{path}: "), problem
        assert "\n" not in problem
    path.write_bytes(content)
    assert verify(prepared) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_off_is_found_also_when_it_is_opened(prepared: Path, kind: str) -> None:
    path = prepared / kind
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    [problem] = verify(prepared)
    assert problem.startswith(f"{path}: ")
    for split in ("train", "validation"):
        with pytest.raises(DataError, match=re.escape(str(path))):
            open_prepared(prepared, split)


def test_a_truncated_file_of_tokens_is_refused_with_both_sizes(prepared: Path) -> None:
    path = prepared / "train" / "shard-00001" / "tokens.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(
        DataError, match=rf"tokens.bin: has {len(content) - 5:,} bytes instead of {len(content):,}; pre"
    ):
        open_prepared(prepared)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_missing_file_is_found_also_when_it_is_opened(prepared: Path, kind: str) -> None:
    (prepared / kind).unlink()
    assert verify(prepared) == [f"{prepared / kind}: is missing"]
    with pytest.raises(DataError, match=r"can't be found \(No such file or directory\); prepare it again"):
        open_prepared(prepared)


@pytest.mark.parametrize("name", ["notes.txt", "train/shard-00000/tokens.bin.part", "train/shard-00099"])
def test_what_does_not_belong_there_is_found(prepared: Path, name: str) -> None:
    if name.endswith("99"):
        (prepared / name).mkdir()
    else:
        (prepared / name).write_text("?")
    assert verify(prepared) == [f"{prepared / name}: does not belong to the data set; remove it"]


def test_every_problem_has_its_line(prepared: Path) -> None:
    (prepared / KINDS[1]).unlink()
    (prepared / KINDS[3]).write_bytes(b"x")
    (prepared / "more").write_bytes(b"x")
    assert len(verify(prepared)) == 3


def test_a_manifest_that_contradicts_itself_is_found(prepared: Path) -> None:
    path = prepared / "manifest.json"
    document = json.loads(path.read_text())
    del document["seal"]
    write_sealed(path, document)
    assert verify(prepared) == []
    write_sealed(path, {**document, "key": "0" * 32})
    assert verify(prepared) == [f"{path}: its key is not that of its facts"]
    write_sealed(path, {**document, "fingerprints": {**document["fingerprints"], "train": "0" * 32}})
    assert verify(prepared) == [f"{path}: the fingerprint of the split train is not that of its shards"]
    with pytest.raises(DataError, match="its shards are not those that its fingerprint names"):
        open_prepared(prepared)


def test_another_version_and_another_folder_are_refused(prepared: Path, tmp_path: Path) -> None:
    document = json.loads((prepared / "manifest.json").read_text())
    del document["seal"]
    write_sealed(prepared / "manifest.json", {**document, "facts": {**document["facts"], "format_version": 1}})
    with pytest.raises(DataError, match="format version 1 can't be read, only 2"):
        open_prepared(prepared)
    for check in (open_prepared, verify):
        with pytest.raises(DataError, match=r"is not a prepared data set \(it has no manifest.json\)"):
            check(tmp_path)
