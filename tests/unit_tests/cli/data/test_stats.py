# SPDX-License-Identifier: Apache-2.0
"""`primus data stats`: what it prints and writes, and what it refuses."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from primus.chat.conversations import SourceOptions
from primus.cli import main
from primus.cli.data.stats_tables import report_tables
from primus.sft.recipe import Recipe
from primus.sft.stats import build_report, choose_bands, compare, gather

CHECKOUT = Path(__file__).parents[4]
DATA = CHECKOUT / "examples" / "data"
TOKENIZER = str(DATA / "demo-tokenizer" / "tokenizer.json")
HELDOUT = str(DATA / "demo-heldout.jsonl")


def stats(*arguments: str) -> int:
    return main(["data", "stats", *arguments, "--workers", "1"])


def test_the_figures_stand_on_the_screen_in_json_and_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "new" / "r.json", tmp_path / "r.html"
    assert (
        stats(HELDOUT, "--tokenizer", TOKENIZER, "--seq-length", "90", "--json", str(files[0]), "--html", str(files[1]))
        == 0
    )
    out, err = capsys.readouterr()
    assert err == ""
    written = json.loads(files[0].read_text(encoding="utf-8"))
    page = files[1].read_text(encoding="utf-8")
    [own] = [w for w in written["seq_lengths"] if w["seq_length"] == 90]
    assert out.startswith(f"200 rows, 200 conversations, {written['num_tokens']:,} tokens, of which")
    for number in (written["num_targets"], own["packed_sequences"], written["roles"][1]["overhead_tokens"]):
        assert f"{number:,}" in out
        assert f"{number:,}" in page
    assert "* 90" in out
    assert out.endswith(f"written: {files[0]}\nwritten: {files[1]}\n")
    assert "\x1b" not in out
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["r.html", "r.json"]


def test_lengths_that_are_asked_for_take_the_place_of_the_default(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    stats(HELDOUT, "--tokenizer", TOKENIZER, "--seq-lengths", "64,32, 64", "--json", str(path))
    assert [w["seq_length"] for w in json.loads(path.read_text())["seq_lengths"]] == [32, 64]


def test_the_file_of_a_run_says_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    path = tmp_path / "r.json"
    config = ["tiny-multiturn-sft.yaml", f"sft_dataset_name={HELDOUT}", "sft_supervise_turns=last", "seq_length=100"]
    assert stats(*config, "--json", str(path), "--near-threshold", "0") == 0
    report = json.loads(path.read_text())
    assert report["seq_length"] == 100
    assert report["near_duplicates"] is None
    assert report["seq_lengths"][-1]["right_lost_turns"] == 0
    assert sum(w["seq_length"] == 100 for w in report["seq_lengths"]) == 1
    assert report["num_targets"] < report["roles"][1]["content_tokens"] / 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([HELDOUT], "--tokenizer: is missing"),
        ([HELDOUT, "--tokenizer", TOKENIZER, "--seq-lengths", "0"], "'0' is not a list such as 2048,4096"),
        ([HELDOUT, "--tokenizer", TOKENIZER, "--seq-lengths", "12,"], "'12,' is not a list such as 2048,4096"),
        ([HELDOUT, "--tokenizer", TOKENIZER, "--near-threshold", "80"], "'80' is not a number from 0 to 1"),
        ([HELDOUT, "--tokenizer", TOKENIZER, "--near-threshold", "nan"], "'nan' is not a number from 0 to 1"),
        ([HELDOUT, "--tokenizer", TOKENIZER, "--json", HELDOUT], "is a source, and would be overwritten"),
        ([HELDOUT, "--tokenizer", TOKENIZER, "--json", str(DATA)], "is a folder; name a file in it"),
        ([HELDOUT, "--tokenizer", TOKENIZER, "--json", "x", "--html", "./x"], "is the file of --json, too"),
        (["-", "--tokenizer", TOKENIZER], "standard input can't be read twice"),
    ],
)
def test_what_can_not_be_done_is_said_in_a_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(HELDOUT).read_bytes()
    assert stats(*arguments) == 2
    out, err = capsys.readouterr()
    assert complaint in err
    assert (out, err.count("\n")) == ("", 1)
    assert Path(HELDOUT).read_bytes() == before


def test_rows_of_which_none_is_valid_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "[bold]a.jsonl"
    path.write_text('{"nothing": 1}\n', encoding="utf-8")
    assert stats(str(path), "--tokenizer", TOKENIZER) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 row, 0 conversations, 0 tokens")
    assert "bad rows: 1 fields ([bold]a.jsonl:1)" in out


def test_a_name_changes_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "\x1b[31mred\n.jsonl"
    path.write_text('{"nothing": 1}\n', encoding="utf-8")
    assert stats(str(path), "--tokenizer", TOKENIZER) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[31mred\n.jsonl:1" in out


@pytest.mark.parametrize("width", [80, 100])
def test_the_tables_fit_their_width(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe(files=(Path(HELDOUT), DATA / "demo-alpaca.jsonl"), source=SourceOptions(), tokenizer=TOKENIZER)
    gathered = gather(recipe, bands=choose_bands(0.8), num_workers=1)
    compare(gathered, num_workers=1)
    console = Console(width=width, highlight=False)
    for part in report_tables(build_report(gathered)):
        console.print(part)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 60
    assert max(map(cell_len, lines)) <= width
    assert not any("\u2026" in line for line in lines), "a number is cut"


def test_a_terminal_gets_colours_and_a_file_gets_none() -> None:
    arguments = [sys.executable, "-m", "primus", "data", "stats", HELDOUT, "--tokenizer", TOKENIZER, "--workers", "1"]
    theirs, ours = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "90"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(arguments, stdout=ours, stderr=ours, stdin=ours, env=environment, cwd=CHECKOUT) as process:
        os.close(ours)
        shown = b""
        try:
            while chunk := os.read(theirs, 65536):
                shown += chunk
        except OSError:  # Linux tells the end of a terminal so
            pass
        os.close(theirs)
    assert process.returncode == 0
    assert b"\x1b[1m" in shown
    assert b"200 rows counted" in shown
