# SPDX-License-Identifier: Apache-2.0
"""`python -m primus` is the `primus` command."""

import sys

from primus.cli import main

if __name__ == "__main__":
    sys.exit(main())
