# SPDX-License-Identifier: Apache-2.0
"""`primus data show`: the rows that are asked for, in the terminal or in a page."""

import gzip
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from primus.cli import main

CHECKOUT = Path(__file__).parents[4]
DATA = CHECKOUT / "examples" / "data"
TOKENIZER = str(DATA / "demo-tokenizer")
GOOD = {"messages": [{"role": "user", "content": "Who am I?"}, {"role": "assistant", "content": "You are David."}]}
BAD = {"messages": [{"role": "user", "content": "Who am I?"}]}


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever terminal the tests run in."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A good row, a bad one, a good one."""
    path = tmp_path / "rows.jsonl"
    other = {"messages": [*GOOD["messages"], {"role": "assistant", "content": "Oscar", "weight": 0.5}]}
    path.write_text("".join(json.dumps(row) + "\n" for row in (GOOD, BAD, other)), encoding="utf-8")
    return path


def show(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["data", "show", *map(str, arguments), "--tokenizer", TOKENIZER])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_first_row_is_shown(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = show(capsys, rows)
    assert (code, err) == (0, "")
    assert out == (
        "\u27e6trained\u27e7  \u00abcontrol token\u00bb  space \u00b7 newline \u21b5\n"
        "\n"
        f"{rows}:1\n"
        "  18 tokens, 5 trained (28%), 2 turns\n"
        "turn 0 user: 9 tokens, context\n"
        "  \u00ab<|im_start|>\u00bbuser\u21b5\n"
        "  Who\u00b7am\u00b7I?\u00ab<|im_end|>\u00bb\u21b5\n"
        "turn 1 assistant: 9 tokens, 5 trained, weight 1\n"
        "  \u00ab<|im_start|>\u00bbassistant\u21b5\n"
        "  \u27e6You\u00b7are\u00b7David.\u00ab<|im_end|>\u00bb\u27e7\u21b5\n"
        "the first row, and there are more; --row picks others, --limit takes more\n"
    )


@pytest.mark.parametrize("row", ["3", "rows.jsonl:3", "{}:3"])
def test_a_row_is_named_by_its_number_or_its_place(rows: Path, capsys: pytest.CaptureFixture[str], row: str) -> None:
    code, out, _ = show(capsys, rows, "--row", row.format(rows))
    assert code == 0
    assert f"\n{rows}:3\n" in out
    assert "turn 2 assistant: 7 tokens, 3 trained, weight 0.5\n" in out
    assert "rows.jsonl:1" not in out


def test_rows_are_shown_in_the_order_of_the_file(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = show(capsys, rows, "--row", "3", "--row", "1")
    assert re.findall(r"^.*rows\.jsonl:(\d)$", out, re.MULTILINE) == ["1", "3"]


def test_a_bad_row_is_shown_in_its_place(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = show(capsys, rows, "--limit", 3)
    assert code == 0
    titles = re.findall(r"^.*rows\.jsonl:(\d)$", out, re.MULTILINE)
    assert titles == ["1", "2", "3"]
    assert "none of the 1 messages is the assistant's" in " ".join(out.split())


def test_rows_that_are_all_bad_are_an_error(rows: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for options in ([], ["--html", tmp_path / "page.html"]):
        code, out, err = show(capsys, rows, "--row", 2, *options)
        assert (code, out) == (2, "")
        assert err.startswith(f"{rows}:2: none of the 1 messages is the assistant's")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--row", "9"], "--row 9: does not exist, there are 3 rows; ask for one of them\n"),
        (["--row", "rows.jsonl:9", "--row", "1"], "--row rows.jsonl:9: does not exist, there are 3 rows"),
        (["--row", "0"], "--row 0: is neither a number from 1 on nor FILE:LINE; write one\n"),
        (["--row", "first"], "--row first: is neither a number from 1 on nor FILE:LINE; write one\n"),
        (["--limit", "0"], "primus data show: argument --limit: '0' is not a number above 0; see primus data show"),
        (["--html", "a.html", "--ids", "--full"], "--full and --ids: go with the terminal, and a page shows all"),
        (["--colour", "blue"], "primus data show: argument --colour: invalid choice: 'blue'"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    rows: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = show(capsys, rows, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_row_of_a_table_of_turns_is_its_conversation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [
        {"conversation_id": name, "role": role, "content": text}
        for name, text in (("a", "one"), ("b", "two")) for role in ("user", "assistant")
    ]  # fmt: skip
    path = tmp_path / "turns.jsonl"
    path.write_text("".join(json.dumps(turn) + "\n" for turn in turns), encoding="utf-8")
    for row in ("3", "4", "turns.jsonl:4"):
        code, out, _ = show(capsys, path, "--row", row)
        assert code == 0
        assert "\u27e6two\u00ab" in out
        assert "one" not in out


def test_an_empty_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.json").write_text("[]")
    code, _, err = show(capsys, tmp_path / "empty.json")
    assert (code, err) == (2, f"{tmp_path}/empty.json: the file has no rows; a data file needs at least one\n")


def test_a_line_for_each_token(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = show(capsys, rows, "--ids")
    assert re.search(r"^ +11 +201 +58-59 +-  \u21b5$", out, re.MULTILINE)
    assert re.search(r"^ +12 +\d+ +59-62 +1  \u27e6You\u27e7$", out, re.MULTILINE)
    assert re.search(r"^ +16 +2 +\d+-\d+ +1  \u27e6<\|im_end\|>\u27e7  control$", out, re.MULTILINE)


def test_where_a_sequence_ends_is_marked(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = show(capsys, rows, "--seq-length", 13)
    assert "--- what fits seq_length 13 ends here; the rest is cut off (4 tokens)\n" in out
    assert "turn 1 assistant: 9 tokens, context; cut off, so nothing of it is trained\n" in out
    assert "\u27e6You" not in out


def test_long_turns_are_abbreviated_unless_all_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join(f"line {number}\n" for number in range(40))
    path = tmp_path / "long.jsonl"
    messages = [{"role": "user", "content": lines}, {"role": "assistant", "content": "Yes."}]
    path.write_text(json.dumps({"messages": messages * 40}), encoding="utf-8")
    _, out, _ = show(capsys, path)
    assert "  ... 34 lines; --full prints them\n" in out
    assert re.search(r"^\.\.\. 50 more turns of [\d,]+ tokens, [\d,]+ trained; --full prints them$", out, re.MULTILINE)
    _, out, _ = show(capsys, path, "--full")
    assert "..." not in out
    assert out.count("line\u00b720\u21b5\n") == 40


def test_colours_are_for_terminals_unless_asked_for(rows: Path) -> None:
    def run(*arguments: str, **environment: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "primus", "data", "show", str(rows), "--tokenizer", TOKENIZER, *arguments],
            env={"PATH": "/usr/bin", "PYTHONIOENCODING": "utf-8", "COLUMNS": "80", **environment}, cwd=CHECKOUT,
            capture_output=True, text=True, encoding="utf-8", check=True, timeout=100,
        ).stdout  # fmt: skip

    assert "\x1b" not in run()
    always = run("--colour", "always")
    assert "\x1b[30;42mYou\u00b7are\u00b7David.\x1b[0m\x1b[4;30;42m<|im_end|>\x1b[0m" in always
    assert "\u27e6" not in always


@pytest.mark.parametrize("columns", ["40", "80", "100"])
def test_lines_fit_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    path = tmp_path / "rows.jsonl"
    answer = (
        "\u4f60\u597d\uff0c\u4e16\u754c\u3002" * 30
        + "\U0001f389\U0001f468\u200d\U0001f469\u200d\U0001f467 \x1b[31m" * 9
    )
    messages = [{"role": "user", "content": "word " * 50}, {"role": "assistant", "content": answer}]
    path.write_text(json.dumps({"messages": messages}), encoding="utf-8")
    _, out, _ = show(capsys, path, "--full")
    from rich.cells import cell_len  # noqa: PLC0415

    body = [line for line in out.splitlines() if not line.startswith(str(path.parent))]
    assert max(cell_len(line) for line in body) <= int(columns)
    assert "\x1b" not in out
    assert "\\x1b[31m" in out


def test_a_page_is_written_whole_and_says_so(rows: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, out, _ = show(capsys, rows, "--html", page)
    assert (code, out) == (0, f"{page}: 3 rows, 1 of them not valid; open it in a browser\n")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "rows.jsonl"]


def test_a_page_holds_the_first_fifty_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, out, _ = show(capsys, DATA / "demo-heldout.jsonl", "--html", tmp_path / "page.html")
    assert out.splitlines() == [
        f"{tmp_path / 'page.html'}: 50 rows; open it in a browser",
        "the first 50 rows, and there are more; --row picks others, --limit takes more",
    ]


def test_a_page_in_a_folder_that_is_not_there_is_one_line(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = show(capsys, rows, "--html", "nowhere/page.html")
    assert code == 2
    assert re.fullmatch(r"nowhere/page\.html\.\d+\.part: No such file or directory; check the path.*\n", err)


def test_the_rows_of_a_run_are_shown_as_it_trains_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CHECKOUT)
    source = tmp_path / "train.jsonl.gz"
    with gzip.open(DATA / "demo-train.jsonl.gz", "rt", encoding="utf-8") as lines:
        source.write_bytes(gzip.compress("".join(lines.readline() for _ in range(3)).encode()))
    code = main(
        ["data", "show", "tiny-multiturn-sft.yaml", f"sft_dataset_name={source}", "sft_supervise_turns=last",
         f"tokenizer_model={TOKENIZER}"]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert out.count("\u27e6") == 2  # the legend, and the last turn
    assert "context; only the last turn is trained (sft_supervise_turns: last)" in " ".join(out.split())


def test_the_commands_of_the_guide_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(CHECKOUT / "examples")
    guide = (CHECKOUT / "docs" / "SEEING_WHAT_IS_TRAINED.md").read_text(encoding="utf-8")
    commands = re.findall(r"^primus (data show .*?)(?: +#.*)?$", guide, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    assert (tmp_path / "page.html").exists()
    capsys.readouterr()
