# SPDX-License-Identifier: Apache-2.0
"""Where the library's log messages go."""

import logging
import warnings

from primus.cli import failures


def set_up_logging(*, verbose: bool) -> None:
    """Send log messages to stderr: those of rank 0, and the errors of the other ranks.

    Args:
        verbose: Also show what other libraries say, and their warnings, which are about their own callers.
    """
    if not verbose:
        warnings.simplefilter("ignore")
    is_first = not failures.current_rank()
    logging.basicConfig(format="%(message)s", level=logging.INFO if verbose and is_first else logging.ERROR, force=True)
    level = logging.DEBUG if verbose else logging.INFO
    logging.getLogger("primus").setLevel(level if is_first else logging.ERROR)
