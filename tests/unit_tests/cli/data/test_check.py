# SPDX-License-Identifier: Apache-2.0
"""`primus data check` as a person runs it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from primus.cli import main

EXAMPLES = Path(__file__).parents[4] / "examples" / "data"
TOKENIZER = str(EXAMPLES / "demo-tokenizer")
USER = {"role": "user", "content": "Hi"}
GOOD = {"messages": [USER, {"role": "assistant", "content": "Hello"}]}
SILENT = {"messages": [USER, {"role": "assistant", "content": "Hello", "weight": 0}]}


def write_rows(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def check(*arguments: str) -> int:
    return main(["data", "check", *arguments, "--tokenizer", TOKENIZER, "--workers", "1"])


def test_the_examples_of_the_repository_are_proven(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(str(EXAMPLES / "demo-heldout.jsonl")) == 0
    output = capsys.readouterr().out
    assert "200 rows checked" in output
    assert output.endswith("proven: exactly what the assistants say is trained\n")
    assert "lossless: all" in output


def test_anything_wrong_ends_with_1_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "a.jsonl", [GOOD, "{broken\n", SILENT, *[{"messages": []}] * 7])
    report = tmp_path / "out" / "report.json"
    assert check(file, "--json", str(report)) == 1
    output = capsys.readouterr().out
    assert f"{file}:2: not valid JSON" in output
    assert f"{file}:3: no token is trained" in output
    assert "... 3 more that fail 'parsed'; --json FILE writes them all" in output
    assert output.endswith(f"WRONG: do not train on this yet\nreport: {report}\n")
    facts = json.loads(report.read_text())
    assert (facts["is_wrong"], facts["num_rows"], facts["num_bad_rows"], facts["num_conversations"]) == (True, 10, 8, 2)
    assert (facts["failed"]["parsed"], facts["failed"]["targets"], facts["passed"]["targets"]) == (8, 1, 1)
    assert len(facts["failures"]) == 9
    assert facts["tokenizer"]["lost"] == {}


def test_allowed_checks_are_counted_and_do_no_harm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "a.jsonl", [GOOD, SILENT])
    assert check(file, "--allow", "targets") == 0
    output = capsys.readouterr().out
    assert "1 yes, 1 not: at least one token is trained" in output
    assert output.endswith(
        "proven but for what is allowed to fail (targets 1): exactly what the assistants say is trained\n"
    )
    assert check(file, "--allow", "target") == 2
    assert capsys.readouterr().err == "--allow: there is no check 'target'; did you mean targets?\n"


def test_nothing_is_proven_where_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "a.jsonl", ["x\n"])
    assert check(file, "--allow", "parsed") == 1
    assert capsys.readouterr().out.endswith("WRONG: there is no conversation to train on\n")


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "a.jsonl", [GOOD])
    assert check(file, "--json", str(tmp_path)) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"--json: {tmp_path} is a folder; name a file\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_tokenizer_without_the_markers_is_wrong_unless_allowed(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [GOOD])
    arguments = [file, "--format", "llama3"]
    assert check(*arguments) == 1
    assert check(*arguments, "--allow", "markers") == 0


def test_lengths_are_checked_where_they_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "a.jsonl", [GOOD])
    assert check(file, "--seq-length", "100") == 0
    assert check(file, "--seq-length", "5") == 1
    assert f"{file}:1: the conversation has " in capsys.readouterr().out


def test_a_run_is_checked_as_it_will_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["tiny-multiturn-sft.yaml", f"sft_dataset_name={EXAMPLES / 'demo-heldout.jsonl'}"]
    validation = write_rows(tmp_path / "v.jsonl", [GOOD, "[]\n"])
    more = [f"sft_validation_dataset_name={validation}", "sft_validation_split=null", "sft_validation_fraction=0"]
    assert main(["data", "check", *run, *more, "--workers", "1"]) == 1
    output = capsys.readouterr().out
    assert "202 rows checked" in output
    assert f"{validation}:2: " in output
    assert main(["data", "check", *run, "--from", "sharegpt"]) == 2
    assert "says itself how rows are read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jsonl"], "--tokenizer: is missing"),
        (["a.jsonl", "lr=1"], "lr=1: key=value goes with the YAML file of a run"),
        (["a.yaml", "b.jsonl"], "a.yaml: stands beside 1 more source"),
        (["nothing.jsonl", "--tokenizer", TOKENIZER], "nothing.jsonl: no such file"),
        (["nothing.jsonl", "--tokenizer", "nothing.json"], "nothing.json"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_two_processes_say_the_same_as_one(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [GOOD, SILENT, "[]\n"] * 40)
    outputs = []
    for workers in ("1", "2"):
        report = tmp_path / f"{workers}.json"
        words = ["-m", "primus", "data", "check", file, "--tokenizer", TOKENIZER, "--workers", workers]
        done = subprocess.run(
            [sys.executable, *words, "--json", str(report)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (1, "")
        outputs.append(json.loads(report.read_text()))
    assert outputs[0] == outputs[1]
