# SPDX-License-Identifier: Apache-2.0
"""Pack plans beside the data set that they are of, since making one takes longer than opening ten million sequences.

    <folder>/<method>-<capacity>-<fingerprint>/
      items.npy     `PackPlan.items_N`
      bounds.npy    `PackPlan.bounds_P1`
      plan.json     what the plan is of, and digests of both files

A plan is a pure function of the data set, so a stored one is only ever as good as a new one: one that is damaged, or of
something else, is made again.

N: sequences of the data set. P: packs.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from primus.sft.packing import Method, PackPlan, pack_sequences

logger = logging.getLogger("primus")

PACKING = "packing"
"""The folder of the plans inside a prepared data set; it is no part of the data set."""

# Another number, and plans are made again: for another layout of the files, or another result of `pack_sequences`.
_FORMAT_VERSION = 1
_ARRAYS = ("items.npy", "bounds.npy")
_FACTS = "plan.json"


def stored_plan(
    lengths_N: Callable[[], npt.NDArray[np.integer]],
    *,
    num_sequences: int,
    capacity: int,
    method: Method,
    fingerprint: str,
    folder: Path,
) -> PackPlan:
    """The pack plan of a data set, from the disk if it is there, else made and stored.

    Args:
        lengths_N: Gives the positions of each sequence; called only if the plan must be made.
        num_sequences: Sequences of the data set, N.
        capacity: Positions of a pack.
        method: As for `pack_sequences`.
        fingerprint: Hash of the data set; lengths that differ have another one.
        folder: Where plans are stored. One that can't be written to is logged, and the plan is not stored.

    Returns:
        The plan that `pack_sequences` makes.
    """
    about = {
        "format_version": _FORMAT_VERSION,
        "fingerprint": fingerprint,
        "method": method,
        "capacity": capacity,
        "num_sequences": num_sequences,
    }
    path = folder / f"{method}-{capacity}-{fingerprint[:12]}"
    if path.is_dir():
        try:
            return _read(path, about)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            logger.warning("%s: is not the pack plan of this data set (%s); it is made again", path, exc)
    plan = pack_sequences(lengths_N(), capacity=capacity, method=method)
    try:
        _write(path, about, plan)
    except OSError as exc:
        logger.info("%s: the pack plan can't be stored (%s); the next run makes it again", path, exc.strerror)
    return plan


def _read(path: Path, about: dict[str, Any]) -> PackPlan:
    facts = json.loads((path / _FACTS).read_bytes())
    if not isinstance(facts, dict):
        raise TypeError(f"{_FACTS} holds no object")
    digests, fill = facts.pop("digests"), float(facts.pop("fill"))
    if facts != about:
        raise ValueError("it was made of other sequences, or in another way")
    for name in _ARRAYS:
        if _digest(path / name) != digests[name]:
            raise ValueError(f"{name} has other bytes than were written")
    items_N, bounds_P1 = (np.asarray(np.load(path / name, mmap_mode="r", allow_pickle=False)) for name in _ARRAYS)
    return PackPlan(items_N, bounds_P1, fill)


def _write(path: Path, about: dict[str, Any], plan: PackPlan) -> None:
    """Write the files, and give their folder its name when all of them are on the disk."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        # Half as much to read and to verify, up to two billion sequences.
        small = np.int32 if len(plan.items_N) <= np.iinfo(np.int32).max else np.int64
        arrays = {
            name: array.astype(small) for name, array in zip(_ARRAYS, (plan.items_N, plan.bounds_P1), strict=True)
        }
        for name, array in arrays.items():
            with (part / name).open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        facts = {**about, "fill": plan.fill, "digests": {name: _digest(part / name) for name in _ARRAYS}}
        with (part / _FACTS).open("w", encoding="utf-8") as file_of_facts:
            file_of_facts.write(json.dumps(facts, indent=2) + "\n")
            file_of_facts.flush()
            os.fsync(file_of_facts.fileno())
        # Another process may have been faster; its plan is the same.
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _digest(path: Path) -> str:
    """Hash of a file's bytes, read from where they are mapped."""
    return hashlib.blake2b(np.memmap(path, dtype=np.uint8, mode="r"), digest_size=16).hexdigest()
