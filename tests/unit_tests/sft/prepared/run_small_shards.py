# SPDX-License-Identifier: Apache-2.0
"""`primus` with shards of a few kilobytes, for processes that tests start and end."""

import sys

from primus.cli import main
from tests.unit_tests.sft.prepared.conftest import use_small_shards

if __name__ == "__main__":
    use_small_shards(setattr)
    sys.exit(main(sys.argv[1:]))
