# SPDX-License-Identifier: Apache-2.0
"""`primus data convert` from outside: nothing lost, the same bytes every time, and nothing half-written."""

import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from primus.chat import read_rows
from primus.chat.conversations import BATCH_BYTES
from primus.cli.data import convert
from primus.errors import ConfigError, DataError, PrimusError

CHECKOUT = Path(__file__).parents[4]

OPENAI = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
ALPACA = {"instruction": "Say", "input": "hi", "output": "hi"}
SHAREGPT = {"conversations": [{"from": "human", "value": "你好\u2028"}, {"from": "gpt", "value": "Hi"}], "id": 7}
CALLS = {
    "messages": [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": {"zone": "UTC"}}}]},
        {"role": "tool", "content": "12:00"},
        {"role": "assistant", "content": "Noon."},
    ],
    "tools": [{"type": "function", "function": {"name": "now"}}],
}
BAD = {"messages": [{"role": "user", "content": "and then?"}]}
UNTIDY = {
    "messages": [
        {"role": "assistant", "content": "Welcome!"},
        {"role": "user", "content": " a "},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d\n"},
    ]
}
GREETING = {"messages": [{"role": "assistant", "content": "Welcome!"}, {"role": "user", "content": "Hi"}]}


def write(path: Path, rows: Sequence[Any], *, more: bytes = b"") -> Path:
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows) + more)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refuse(*arguments: object) -> list[str]:
    with pytest.raises(PrimusError) as refused:
        convert.run([str(argument) for argument in arguments])
    return list(refused.value.problems)


def run(*arguments: object) -> None:
    assert convert.run([str(argument) for argument in arguments]) == 0


def primus(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "primus", "data", "convert", *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=100,
        **options,
    )


def ledger(target: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(f"{target}.ledger.json").read_text("utf-8"))
    return document


# --- what is written ---


def test_rows_of_different_formats_become_messages_line_by_line(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", [OPENAI, ALPACA, SHAREGPT]), tmp_path / "out" / "all.jsonl"
    run(source, target)
    assert target.read_text("utf-8") == (
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'
        '{"messages": [{"role": "user", "content": "Say\\n\\nhi", "input_start": 5},'
        ' {"role": "assistant", "content": "hi"}]}\n'
        '{"messages": [{"role": "user", "content": "你好\u2028"}, {"role": "assistant", "content": "Hi"}]}\n'
    )


def test_what_was_found_and_what_became_of_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", [OPENAI, ALPACA, OPENAI, SHAREGPT, BAD], more=b"{broken\n")
    target = tmp_path / "out.jsonl"
    run(source, target, "--bad-rows", "quarantine")
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        f"{source}: openai (3 rows), alpaca (1 row), sharegpt (1 row), unknown (1 row) ",
        "6 rows read 4 converted: written as messages ",
        f"1 bad:no_assistant: quarantined ({source}:5) ",
        f"1 bad:not_json: quarantined ({source}:6) ",
        "4 conversations written",
        f"written: {target}",
        f"ledger: {target}.ledger.json",
        f"bad rows: {target}.bad.jsonl",
    ):
        assert part in printed, part


def test_the_ledger_names_every_row_that_is_not_written(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [BAD, OPENAI, SHAREGPT, BAD])
    target = tmp_path / "out.jsonl"
    run(source, target, "--bad-rows", "quarantine", "--strip", "--roles", "x=user")
    document = ledger(target)
    assert document["sources"] == [str(source)]
    assert (document["num_rows"], document["num_conversations"]) == (4, 2)
    assert document["outcomes"] == {"bad:no_assistant": 2, "converted": 2}
    assert document["origins"] == {"bad:no_assistant": [f"{source}:1", f"{source}:4"]}
    assert document["ignored_fields"] == {"id": 1}
    assert document["formats"] == {str(source): {"openai": 3, "sharegpt": 1}}
    assert (document["options"]["strip"], document["options"]["roles"]) == (True, "x=user")
    assert document["fix_ups"] == {"strip": {"messages": 1, "conversations": 1}}


def test_the_quarantine_holds_the_rows_as_they_stand(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [BAD, OPENAI], more=b'{"a": \xff}\n')
    target = tmp_path / "out.jsonl"
    run(source, target, "--bad-rows", "quarantine")
    first, second = (row.value for row in read_rows(f"{target}.bad.jsonl"))
    assert (first["origin"], first["reason"], first["row"]) == (f"{source}:1", "no_assistant", BAD)
    assert first["error"].startswith(f"{source}:1: none of the 1 messages is the assistant's")
    assert (second["origin"], second["reason"], second["raw"]) == (f"{source}:3", "not_json", '{"a": \\xff}')


def test_a_quarantine_of_an_earlier_run_goes_when_its_rows_are_repaired(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", [BAD, OPENAI]), tmp_path / "out.jsonl"
    run(source, target, "--bad-rows", "quarantine")
    write(source, [OPENAI, OPENAI])
    run(source, target, "--force")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.ledger.json"]


def test_what_is_written_converts_to_itself(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [OPENAI, ALPACA, SHAREGPT, CALLS, UNTIDY])
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    run(source, first)
    run(first, second)
    assert first.read_bytes() == second.read_bytes()
    assert ledger(second)["ignored_fields"] == {}


@pytest.mark.parametrize(("name", "times"), [("out.jsonl", 4000), ("out.jsonl.gz", 9), ("out.jsonl.zst", 9)])
def test_the_bytes_depend_on_the_rows_and_options_alone(name: str, times: int, tmp_path: Path) -> None:
    fields = {f"field {number}": number for number in range(5)}
    source = write(tmp_path / "in.jsonl", [OPENAI, ALPACA | fields, SHAREGPT, BAD, CALLS] * times)
    assert times < 1000 or source.stat().st_size > 2 * BATCH_BYTES
    folders = [tmp_path / str(number) for number in range(2)]
    for folder, workers, seed in zip(folders, (1, 2), "01", strict=True):
        folder.mkdir()
        done = primus(
            source, name, "--bad-rows", "quarantine", "--workers", workers,
            cwd=folder, env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(CHECKOUT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    written = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert sorted(written[0]) == [name, f"{name}.bad.jsonl", f"{name}.ledger.json"]
    assert written[0] == written[1]
    if name.endswith(".gz"):
        assert written[0][name][4:8] == bytes(4), "the time, which two quick runs may have in common"


@pytest.mark.parametrize(
    ("name", "decompress"), [("o.jsonl.gz", gzip.decompress), ("o.jsonl.zst", zstandard.ZstdDecompressor)]
)
def test_a_compressed_target_holds_the_same_lines(name: str, decompress: Any, tmp_path: Path) -> None:
    source, plain, packed = write(tmp_path / "in.jsonl", [OPENAI] * 9), tmp_path / "o.jsonl", tmp_path / name
    run(source, plain)
    run(source, packed)
    assert [row.value for row in read_rows(packed)] == [row.value for row in read_rows(plain)]
    assert packed.stat().st_size < plain.stat().st_size


def test_several_sources_and_patterns_are_written_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [ALPACA])
    write(tmp_path / "a.jsonl", [OPENAI])
    write(tmp_path / "z.json", [])
    (tmp_path / "z.json").write_text(json.dumps([SHAREGPT]), encoding="utf-8")
    target = tmp_path / "out.jsonl.gz"
    run(tmp_path / "z.json", tmp_path / "*.jsonl", target)
    first_words = [row.value["messages"][0]["content"][:2] for row in read_rows(target)]
    assert first_words == ["你好", "Hi", "Sa"]


def test_standard_input_and_output_make_a_filter() -> None:
    rows = b"".join(json.dumps(row).encode() + b"\n" for row in (SHAREGPT, OPENAI))
    done = primus("-", "-", input=rows)
    assert done.returncode == 0
    assert [json.loads(line)["messages"][1]["content"] for line in done.stdout.splitlines()] == ["Hi", "Hello"]
    assert b"2 conversations written" in done.stderr


def test_tools_can_be_rendered_into_the_contents(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", [CALLS]), tmp_path / "out.jsonl"
    run(source, target, "--tools", "render")
    (row,) = read_rows(target)
    assert list(row.value) == ["messages"]
    assert [message["role"] for message in row.value["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert row.value["messages"][2] == {
        "role": "assistant",
        "content": '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>',
    }
    assert row.value["messages"][3]["content"] == "<tool_response>\n12:00\n</tool_response>"


def test_rendered_tools_are_counted_and_a_lost_order_is_a_bad_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = [{"id": name, "function": {"name": "now", "arguments": {}}} for name in "AB"]
    answers = [{"role": "tool", "content": name, "tool_call_id": name} for name in "BA"]
    turned = {"messages": [{"role": "user", "content": "When?"}, {"role": "assistant", "tool_calls": calls}, *answers]}
    source, target = write(tmp_path / "in.jsonl", [CALLS, turned, OPENAI, CALLS]), tmp_path / "out.jsonl"
    run(source, target)
    assert ledger(target)["fix_ups"] == {}
    problem = refuse(source, target, "--force", "--tools", "render")[0]
    assert problem.startswith(
        f"{source}:2: turn 2 (tool) answers the call 'B', but as text it is read as the answer of"
    )
    capsys.readouterr()
    run(source, target, "--force", "--tools", "render", "--bad-rows", "quarantine", "--strip")
    document = ledger(target)
    assert document["outcomes"] == {"converted": 3, "bad:tool_order": 1}
    assert document["fix_ups"] == {"render_tools": {"messages": 6, "conversations": 2}}
    assert "  render_tools: 6 messages with tools written as text, in 2 conversations\n" in capsys.readouterr().out


def test_fix_ups_are_made_only_when_named_and_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", [UNTIDY, OPENAI, GREETING])
    run(source, tmp_path / "same.jsonl")
    assert [row.value for row in read_rows(tmp_path / "same.jsonl")] == [UNTIDY, OPENAI, GREETING]
    capsys.readouterr()
    target = tmp_path / "out.jsonl"
    run(source, target, "--strip", "--drop-empty-turns", "--drop-leading-assistant", "--merge-consecutive")
    assert [row.value["messages"] for row in read_rows(target)] == [
        [{"role": "user", "content": "a\n\nb\n\nc"}, {"role": "assistant", "content": "d"}],
        OPENAI["messages"],
    ]
    assert ledger(target)["fix_ups"] == {
        "strip": {"messages": 2, "conversations": 1},
        "drop_empty_turns": {"messages": 1, "conversations": 1},
        "drop_leading_assistant": {"messages": 1, "conversations": 1},
        "merge_consecutive": {"messages": 2, "conversations": 1},
    }
    assert ledger(target)["origins"] == {"nothing_left": [f"{source}:3"]}
    printed = capsys.readouterr().out
    assert f"1 nothing_left: dropped, for the fix-ups leave nothing to train ({source}:3)" in " ".join(printed.split())
    assert "merge_consecutive: 2 messages joined to the one before, in 1 conversation\n" in printed


def test_branches_of_a_tree_are_counted_apart_from_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replies = [{"role": "assistant", "text": text, "rank": i, "replies": []} for i, text in enumerate(["a", "b", "c"])]
    tree = {"message_tree_id": "1", "prompt": {"role": "prompter", "text": "Hi", "replies": replies}}
    source, target = write(tmp_path / "in.jsonl", [tree, OPENAI]), tmp_path / "out.jsonl"
    run(source, target)
    document = ledger(target)
    assert (document["num_rows"], document["num_conversations"], document["num_branches"]) == (2, 4, 2)
    assert "4 conversations = 2 rows that are used + 2 further branches of trees" in capsys.readouterr().out
    run(source, target, "--force", "--oasst", "best")
    assert ledger(target)["num_conversations"] == 2


def test_rows_that_are_turns_are_counted_apart_from_conversations(tmp_path: Path) -> None:
    rows = [{"conversation_id": c, "role": r, "content": f"{c}{r}"} for c in "ab" for r in ("user", "assistant")]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    run(source, target)
    document = ledger(target)
    assert (document["num_rows"], document["num_conversations"], document["num_joined"]) == (4, 2, 2)


def test_a_column_map_says_where_everything_stands(tmp_path: Path) -> None:
    rows = [{"dialog": [{"who": "client", "says": "Hi"}, {"who": "yes", "says": "Hello"}]}]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    columns = tmp_path / "map.yaml"
    columns.write_text("messages: dialog\nrole: who\ncontent: says\nroles:\n  client: user\n  yes: assistant\n")
    run(source, target, "--column-map", columns)
    assert [row.value for row in read_rows(target)] == [OPENAI]


def test_roles_and_fields_can_have_names_of_their_own(tmp_path: Path) -> None:
    rows = [{"chat": [{"role": "client", "content": "Hi"}, {"role": "bot", "content": "Hello"}]}]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    run(source, target, "--roles", "client=user,bot=assistant", "--messages-field", "dialog,chat")
    assert [row.value for row in read_rows(target)] == [OPENAI]


# --- what is refused ---


def test_a_bad_row_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", [OPENAI, *[BAD] * 12, OPENAI]), tmp_path / "out.jsonl"
    problems = refuse(source, target)
    assert len(problems) == 12
    assert problems[0].startswith(f"{source}:2: none of the 1 messages is the assistant's")
    assert problems[9].startswith(f"{source}:11: ")
    assert problems[10] == "... 2 more of 14 rows are bad"
    assert problems[11] == (
        f"{target}: is not written; give --bad-rows quarantine to set bad rows aside and convert the rest"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_error_leaves_what_an_earlier_run_wrote(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", [OPENAI]), tmp_path / "out.jsonl"
    run(source, target)
    write(source, [OPENAI, BAD])
    before = contents(tmp_path)
    refuse(source, target, "--force")
    assert contents(tmp_path) == before


def test_unknown_roles_and_fields_come_with_the_option_that_names_them(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "client", "content": "Hi"}, {"role": "assistant", "content": "a"}]}, {"dialog": []}]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    in_part = write(tmp_path / "part.jsonl", [*rows, OPENAI])
    for arguments in ([source, target, "--bad-rows", "quarantine"], [source, target], [in_part, target], [source, "-"]):
        problems = refuse(*arguments)
        assert problems[2].startswith("other names of roles are given with --roles, such as --roles client=user")
        assert problems[3] == "fields with other names are given with --messages-field, or with --column-map"
        assert len(problems) == 5


def test_when_no_row_gives_a_conversation_nothing_is_written(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", [BAD, GREETING, BAD, BAD]), tmp_path / "out.jsonl"
    options = ["--bad-rows", "quarantine", "--drop-leading-assistant"]
    *listed, summary = refuse(source, target, *options)
    assert [problem.partition(": none of the 1 messages")[0] for problem in listed] == [
        f"{source}:{line}" for line in (1, 3, 4)
    ]
    assert summary == (
        f"{target}: is not written, nor anything beside it, for none of 4 rows gave a conversation;"
        f" 3 bad:no_assistant ({source}:1, {source}:3, ...); 1 nothing_left ({source}:2)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_run_that_gives_nothing_leaves_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", [OPENAI, BAD]), tmp_path / "out.jsonl"
    run(source, target, "--bad-rows", "quarantine")
    write(source, [BAD, BAD])
    before = contents(tmp_path)
    assert len(before) == 4
    refuse(source, target, "--force", "--bad-rows", "quarantine")
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_what_an_earlier_run_wrote(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", [ALPACA, BAD]), tmp_path / "out.jsonl.gz"
    run(source, target, "--bad-rows", "quarantine")
    write(source, [SHAREGPT, {"x": 1}])
    before = contents(tmp_path)
    # The only thing to be written is what compression holds back until the end: the size of files is limited below it.
    limited = f"ulimit -f 0; trap '' XFSZ; exec {sys.executable} -m primus data convert {source} {target} --force"
    done = subprocess.run(
        ["bash", "-c", f"{limited} --bad-rows quarantine"],
        capture_output=True, check=False, timeout=100, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode != 0
    assert b"File too large" in done.stderr
    assert contents(tmp_path) == before


def test_an_existing_target_is_replaced_only_by_force(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [OPENAI])
    target = write(tmp_path / "out.jsonl", [BAD])
    assert refuse(source, target) == [f"{target}: exists; give --force to replace it, or the target another name"]
    assert target.read_bytes() == json.dumps(BAD).encode() + b"\n"
    run(source, target, "--force")
    assert [row.value for row in read_rows(target)] == [OPENAI]
    assert refuse(source, target) == [
        f"{target}, {target}.ledger.json: exist; give --force to replace them, or the target another name"
    ]


@pytest.mark.parametrize("name", ["out.jsonl.bad.jsonl", "out.jsonl.ledger.json"])
@pytest.mark.parametrize("content", [[OPENAI], [BAD]])
def test_files_beside_a_target_are_replaced_only_by_force(name: str, content: list[Any], tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", content), tmp_path / "out.jsonl"
    other = write(tmp_path / name, [{"repaired": True}])
    before = contents(tmp_path)
    assert refuse(source, target, "--bad-rows", "quarantine") == [
        f"{other}: exists; give --force to replace it, or the target another name"
    ]
    missing = tmp_path / "missing.jsonl"
    assert "exists" in refuse(missing, target)[0], "before anything is read"
    assert contents(tmp_path) == before
    other.unlink()
    other.mkdir()
    (problem,) = refuse(source, target, "--force")
    assert problem == f"{other}: is a folder, and a file is written there; give the target another name"


@pytest.mark.parametrize("name", ["in.jsonl", "../{folder}/in.jsonl", "link.jsonl", "in"])
def test_a_source_is_never_overwritten(name: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [OPENAI])
    (tmp_path / "link.jsonl").symlink_to(source)
    bad = write(tmp_path / "in.jsonl.bad.jsonl", [OPENAI])
    if name == "in":  # the quarantine of this target is the source
        sources, target = [bad], source
    else:
        sources, target = [source], tmp_path / name.format(folder=tmp_path.name)
    (problem,) = refuse(*sources, target, "--force")
    assert problem.endswith("is read and would be overwritten; give the target another name")
    assert [row.value for row in read_rows(source)] == [OPENAI]
    assert [row.value for row in read_rows(bad)] == [OPENAI]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["{}"], "primus data convert: the following arguments are required: TARGET; see primus data convert --help"),
        (["{}", "out.json"], "out.json: is no name for a target; end it with .jsonl, .jsonl.gz, .jsonl.zst, or"),
        (["{}", ".jsonl"], ".jsonl: is no name for a target"),
        (["{}", "a.jsonl", "--from", "shargpt"], "--from: there is no format 'shargpt'; did you mean sharegpt?"),
        (["{}", "a.jsonl", "--from", "columns"], "--from columns: needs a map of the columns; give it with"),
        (["{}", "a.jsonl", "--from", "alpaca", "--column-map", "m.yaml"], "--column-map: says how rows are"),
        (["{}", "a.jsonl", "--column-map", "m.yaml"], "m.yaml: cannot be read: No such file or directory; check the"),
        (["{}", "a.jsonl", "--roles", "client"], "--roles: 'client' is not NAME=ROLE; write for example client=user"),
        (["{}", "a.jsonl", "--roles", "a=user,a=tool"], "--roles: 'a' is given twice; give it one role"),
        (["{}", "a.jsonl", "--roles", "a=boss"], "--roles: 'a' is mapped to 'boss', not to one of system, user,"),
        (["{}", "a.jsonl", "--messages-field", ","], "--messages-field: names no field; give its name"),
        (["{}", "-", "--bad-rows", "quarantine"], "--bad-rows quarantine: writes a file beside TARGET, and - has none"),
        (["{}", "a.jsonl", "--merge"], "there is no option --merge; did you mean --merge-consecutive?"),
        (["{}", "a.jsonl", "--shuffle"], "there is no option --shuffle; see primus data convert --help"),
        (["{}", "{}", "a.jsonl"], "is named twice"),
        (["no.jsonl", "a.jsonl"], "no.jsonl: no such file; check the path"),
        (["no-*.jsonl", "a.jsonl"], "no-*.jsonl: no file matches the pattern"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_command_line_is_refused_before_anything_is_written(
    arguments: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "in.jsonl", [OPENAI])
    (found,) = refuse(*(argument.format(source) for argument in arguments))
    assert problem in found
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_folder_is_no_target(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [OPENAI])
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(ConfigError, match="is a folder; name a file in it"):
        convert.run([str(source), str(tmp_path / "a.jsonl"), "--force"])


def test_a_damaged_file_leaves_nothing(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(json.dumps(OPENAI).encode() + b"\n" for _ in range(5000)))
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(packed[:-10])
    with pytest.raises(DataError, match="the gz data is damaged"):
        convert.run([str(source), str(tmp_path / "out.jsonl")])
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl.gz"]


# --- what is interrupted ---

ENDLESS = (
    "import json, sys, time\n"
    f"line = {json.dumps(json.dumps({'question': 'x' * 10_000, 'answer': 'y'}))} + '\\n'\n"
    "while True:\n"
    "    sys.stdout.write(line * 200); sys.stdout.flush(); time.sleep(0.02)\n"
)


def start_endless(target: object, *options: str) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """Convert what never ends."""
    feed = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert feed.stdout is not None
    conversion = subprocess.Popen(
        [sys.executable, "-m", "primus", "data", "convert", "-", str(target), *options],
        stdin=feed.stdout,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    feed.stdout.close()
    return feed, conversion


def wait_for_part(folder: Path) -> Path:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in folder.glob("*.part"):
            if path.stat().st_size > 0:
                return path
        time.sleep(0.02)
    raise AssertionError("nothing was written")


def children(process: subprocess.Popen[bytes]) -> set[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False
    )
    return {int(line) for line in listed.stdout.split()}


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(") ")[2][0] != "Z"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_conversion_leaves_only_a_part(workers: str, tmp_path: Path) -> None:
    feed, conversion = start_endless(tmp_path / "out.jsonl", "--workers", workers)
    started: set[int] = set()
    try:
        part = wait_for_part(tmp_path)
        started = children(conversion)
        assert bool(started) == (workers == "2")
        conversion.kill()
        assert conversion.wait(timeout=30) == -signal.SIGKILL
        assert [path.name for path in tmp_path.iterdir()] == [part.name]
        assert re.fullmatch(r"out\.jsonl\.\d+\.part", part.name)
        deadline = time.monotonic() + 20
        while any(map(is_running, started)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(is_running, started)), "processes of the conversion outlive it"
    finally:
        for pid in filter(is_running, started):
            os.kill(pid, signal.SIGKILL)
        feed.kill()
        conversion.kill()
        feed.wait()
        conversion.communicate()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_cleans_up_and_says_one_word(workers: str, tmp_path: Path) -> None:
    feed, conversion = start_endless(tmp_path / "out.jsonl", "--workers", workers)
    try:
        wait_for_part(tmp_path)
        os.killpg(conversion.pid, signal.SIGINT)
        out, error = conversion.communicate(timeout=30)
        assert (conversion.returncode, out, error) == (130, b"", b"interrupted\n")
        assert list(tmp_path.iterdir()) == []
    finally:
        feed.kill()
        conversion.kill()
        feed.wait()
        conversion.communicate()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reader_that_has_enough_ends_the_conversion_quietly(workers: str) -> None:
    feed, conversion = start_endless("-", "--workers", workers)
    try:
        assert conversion.stdout is not None
        assert conversion.stderr is not None
        assert conversion.stdout.readline().startswith(b'{"messages"')
        conversion.stdout.close()
        assert conversion.stderr.read() == b""
        assert conversion.wait(timeout=30) == 141
    finally:
        feed.kill()
        conversion.kill()
        feed.wait()
        conversion.wait()
        assert conversion.stderr is not None
        conversion.stderr.close()


def test_the_examples_of_the_help_run_as_they_stand(tmp_path: Path) -> None:
    examples = primus("--help").stdout.decode().partition("examples:\n")[2].splitlines()
    assert len(examples) == 3
    (tmp_path / "examples").symlink_to(CHECKOUT / "examples")
    for example in examples:
        words = shlex.split(example)
        assert words[:3] == ["primus", "data", "convert"]
        done = primus(*words[3:], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(CHECKOUT)})
        assert done.returncode == 0, done.stderr
