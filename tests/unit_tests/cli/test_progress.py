# SPDX-License-Identifier: Apache-2.0
"""What is seen of work on rows: lines in a log, a bar on a terminal, nothing of it on standard output."""

import os
import pty
import subprocess
import sys

import pytest

from primus.cli import progress
from primus.cli.progress import RowProgress


def test_a_log_has_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with RowProgress("converted", total_bytes=400) as shown:
        shown.advance(100, bytes_done=100)
        monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
        shown.advance(1000, bytes_done=200)
    captured = capsys.readouterr()
    assert captured.err == "1,100 rows converted (50 %)\n"
    assert captured.out == ""


def test_without_a_known_end_there_is_no_share(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with RowProgress("checked") as shown:
        shown.advance(7)
    assert capsys.readouterr().err == "7 rows checked\n"


@pytest.mark.parametrize(("total", "part"), [("None", "70 rows converted"), ("400", " 50%")])
def test_a_terminal_shows_a_moving_line(total: str, part: str) -> None:
    code = (
        "import time; from primus.cli.progress import RowProgress\n"
        f"with RowProgress('converted', total_bytes={total}) as shown:\n"
        "    shown.advance(70, bytes_done=200); time.sleep(0.3)\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=theirs, stdout=subprocess.PIPE, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        seen = b""
        while chunk := _read(ours):
            seen += chunk
        assert process.stdout is not None
        assert process.stdout.read() == b""
    os.close(ours)
    assert part in seen.decode()
    assert "70 rows converted" in seen.decode()


def _read(terminal: int) -> bytes:
    """What a terminal shows next, nothing when its program has ended."""
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says that nobody is at the other end
        return b""
