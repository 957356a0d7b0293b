# SPDX-License-Identifier: Apache-2.0
"""The `primus` command, and the only place that catches `PrimusError`.

Exit codes: 0 done; 1 a fault of the program, with its traceback; 2 something the user can put right, one line per
problem; 130 stopped by Ctrl-C, without a checkpoint; 143 and 138 stopped by SIGTERM and by SIGUSR1, when training with
a checkpoint. docs/TRAINING_OPERATIONS.md has a table of them.
"""

import io
import os
import sys
from collections.abc import Sequence

from primus.cli import commands, failures
from primus.errors import PrimusError

USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: The words after `primus`; None takes those that the process was started with.

    Returns:
        The exit code.
    """
    _write_any_character()
    sys.excepthook = failures.report_exception
    try:
        return commands.run(sys.argv[1:] if arguments is None else list(arguments))
    except PrimusError as error:
        failures.report(error.problems, exit_code=USER_ERROR)
        return USER_ERROR
    except KeyboardInterrupt:
        failures.report(["interrupted"], exit_code=INTERRUPTED)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough (`primus train --dry-run | head`). Python's own flush at exit must not
        # find the broken pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        # A path that cannot be read or written is the user's to mend; an error without a path is ours.
        if error.filename is None:
            raise
        failures.report(
            [f"{error.filename}: {error.strerror}; check the path, its permissions and the disk"], exit_code=USER_ERROR
        )
        return USER_ERROR


def _write_any_character() -> None:
    """Let a terminal that lacks a character show its code instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
