# SPDX-License-Identifier: Apache-2.0
"""`primus data verify`: whether a prepared data set is what was written."""

import time
from collections.abc import Sequence
from pathlib import Path

from primus.cli.parsing import CommandParser
from primus.sft.prepared import read_manifest, verify

WRONG = 1

_DESCRIPTION = """Read all of a prepared data set, and compare every file with the manifest. Exits with 1 if a byte is
another one than was written, or a file is missing or one too many."""
_EXAMPLES = """
primus data verify output/prepared/demo
"""


def run(arguments: Sequence[str]) -> int:
    """Run `primus data verify`.

    Args:
        arguments: The words after `primus data verify`.

    Returns:
        The exit code: 0 if everything is right, else 1.
    """
    parser = CommandParser("data verify", description=_DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of a prepared data set")
    folder: Path = parser.parse(arguments).folder
    started_s = time.monotonic()
    if problems := verify(folder):
        print("\n".join(problems))
        print(f"WRONG: {len(problems)} problems; do not train on {folder}")
        return WRONG
    files = read_manifest(folder).all_files()
    num_bytes, duration_s = sum(facts.num_bytes for facts in files.values()), time.monotonic() - started_s
    print(f"{folder}: all {num_bytes:,} bytes of {len(files) + 1} files are right ({duration_s:.1f} s)")
    return 0
