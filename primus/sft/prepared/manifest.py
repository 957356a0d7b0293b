# SPDX-License-Identifier: Apache-2.0
"""What a prepared data set holds: the one file that says whether the others are right.

The text of a manifest follows from what it says, and it holds the digest of that text, so any other byte in it shows.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from primus.errors import DataError
from primus.sft.ledger import Ledger
from primus.sft.prepared.arrays import REDO, ShardCounts
from primus.sft.prepared.disk import FileFacts, replace_file
from primus.sft.prepared.key import FORMAT_VERSION, Facts

MANIFEST = "manifest.json"
LEDGER = "ledger.json"
QUARANTINE = "quarantine.jsonl"

_FORMAT = "primus prepared data"
_SEAL = b',\n "seal": "'
_END = b"\n}\n"
_Content = TypeVar("_Content")


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """A shard of a split.

    Attributes:
        counts: How much it holds.
        digest: Digest of its sequences, as `SequenceArrays.digest` gives it.
        files: What each of its files must be.
    """

    counts: ShardCounts
    digest: str
    files: Mapping[str, FileFacts]

    def to_dict(self) -> dict[str, Any]:
        """The facts as plain data."""
        files = {name: facts.to_dict() for name, facts in self.files.items()}
        return {**asdict(self.counts), "digest": self.digest, "files": files}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "ShardFacts":
        """The facts that plain data tell."""
        return cls(
            counts=ShardCounts(**{name: int(document[name]) for name in ShardCounts.__dataclass_fields__}),
            digest=str(document["digest"]),
            files={name: FileFacts.from_dict(facts) for name, facts in document["files"].items()},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a prepared data set holds.

    Attributes:
        key: The hash of `facts`.
        facts: Everything that the data set depends on.
        tokenizer: The name of its tokenizer.
        splits: The shards of each split.
        fingerprints: The fingerprint of each split.
        ledger: The counts of the ledger, without the origins.
        files: What each file must be that belongs to no shard.
    """

    key: str
    facts: Facts
    tokenizer: str
    splits: Mapping[str, tuple[ShardFacts, ...]]
    fingerprints: Mapping[str, str]
    ledger: Mapping[str, Any]
    files: Mapping[str, FileFacts] = field(default_factory=dict)

    def all_files(self) -> dict[str, FileFacts]:
        """What each file must be, by its path inside the folder."""
        shards = {
            f"{shard_folder(split, number)}/{name}": facts
            for split, shards in self.splits.items()
            for number, shard in enumerate(shards)
            for name, facts in shard.files.items()
        }
        return {**self.files, **shards}

    def count(self, split: str, what: str) -> int:
        """The sum of a count over the shards of a split.

        Args:
            split: The split.
            what: Name of a field of `ShardCounts`.

        Returns:
            The sum.
        """
        return sum(int(getattr(shard.counts, what)) for shard in self.splits[split])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "format": _FORMAT,
            "key": self.key,
            "facts": self.facts,
            "tokenizer": self.tokenizer,
            "fingerprints": dict(self.fingerprints),
            "ledger": dict(self.ledger),
            "files": {name: facts.to_dict() for name, facts in self.files.items()},
            "splits": {split: [shard.to_dict() for shard in shards] for split, shards in self.splits.items()},
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "Manifest":
        """The manifest that plain data tell."""
        return cls(
            key=str(document["key"]),
            facts=dict(document["facts"]),
            tokenizer=str(document["tokenizer"]),
            splits={
                split: tuple(ShardFacts.from_dict(shard) for shard in shards)
                for split, shards in document["splits"].items()
            },
            fingerprints=dict(document["fingerprints"]),
            ledger=dict(document["ledger"]),
            files={name: FileFacts.from_dict(facts) for name, facts in document["files"].items()},
        )


def shard_folder(split: str, number: int) -> str:
    """The path of a shard inside the folder of a data set."""
    return f"{split}/shard-{number:05}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared data set.

    Args:
        folder: The folder of the data set.

    Returns:
        The manifest.

    Raises:
        DataError: If there is none, it is damaged, or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder}: is not a prepared data set (it has no {MANIFEST}); make one with"
                        " primus data prepare")  # fmt: skip
    return read_sealed(path, _manifest_of)


def _manifest_of(document: dict[str, Any]) -> Manifest:
    manifest = Manifest.from_dict(document)
    version = manifest.facts["format_version"]
    if version != FORMAT_VERSION:
        raise DataError(f"format version {version} can't be read, only {FORMAT_VERSION}")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a data set whose files are all there."""
    write_sealed(folder / MANIFEST, manifest.to_dict())


def write_sealed(path: Path, document: dict[str, Any], *, writer: str = "") -> None:
    """Write plain data with the digest of their text.

    Args:
        path: The file; written beside and renamed.
        document: The data.
        writer: Who writes, where several may write the same.
    """
    replace_file(path, [_sealed((json.dumps(document, indent=1) + "\n").encode())], writer=writer)


def read_sealed(path: Path, build: Callable[[dict[str, Any]], _Content]) -> _Content:
    """Read what `write_sealed` wrote.

    Args:
        path: The file.
        build: Makes something of the data.

    Returns:
        What was made.

    Raises:
        DataError: If any byte of the file is another one than was written.
    """
    try:
        text = path.read_bytes()
        body = text.rpartition(_SEAL)[0]
        if _sealed(body + _END) != text:
            raise DataError("its bytes are not those that were written")
        return build(json.loads(text))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError) as exc:
        raise DataError(f"{path}: is damaged ({type(exc).__name__}: {exc}); {REDO}") from exc


def _sealed(text: bytes) -> bytes:
    """The text of an object with its own digest as one more member."""
    return text.removesuffix(_END) + _SEAL + hashlib.sha256(text).hexdigest().encode() + b'"' + _END


def ledger_from(document: Mapping[str, Any]) -> Ledger:
    """The ledger that `Ledger.to_dict` gave; without origins, if they were left away."""
    ledger = Ledger()
    for name, value in document.items():
        setattr(ledger, name, type(getattr(ledger, name))(value))
    return ledger
