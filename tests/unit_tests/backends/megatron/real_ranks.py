# SPDX-License-Identifier: Apache-2.0
"""Real ranks, started by torchrun."""

import os
import signal
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[4]


def run_ranks(program: str | Path, argument: str, *, num_ranks: int, timeout_s: float, is_silent: bool = True) -> None:
    """Run a program as several ranks, and expect that all goes well.

    Nothing of a run that goes well is said on standard error, by us or by what we build on; `is_silent` sees to that.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    launcher = subprocess.Popen(
        [*torchrun, str(program), argument],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = launcher.communicate(timeout=timeout_s)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.communicate()
    assert launcher.returncode == 0, said[-4000:]
    assert not (said and is_silent), said[-4000:]
