# SPDX-License-Identifier: Apache-2.0
"""The program from outside: exit codes, one line per problem, nothing guessed, nothing ignored."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

import primus
from primus.cli.commands import COMMANDS

CHECKOUT = Path(__file__).parents[3]
TINY = "tiny-multiturn-sft.yaml"
EMPTY: Mapping[str, str] = MappingProxyType({})


def run(*arguments: str, environment: Mapping[str, str] = EMPTY) -> subprocess.CompletedProcess[str]:
    """Run `primus` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "primus", *arguments],
        cwd=CHECKOUT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def refuse(*arguments: str, environment: Mapping[str, str] = EMPTY) -> list[str]:
    """Run a command line that is wrong; gives the lines on stderr."""
    done = run(*arguments, environment=environment)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


def test_help_lists_every_command_in_a_line() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name, command in COMMANDS.items():
        assert f"  {name}" in done.stdout
        assert command.summary in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_help_and_version_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from primus.cli import main; main(['--help']); main(['--version']);"
        "heavy = {'torch', 'megatron', 'transformers', 'numpy', 'pydantic'} & sys.modules.keys();"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"primus {primus.__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_its_usage_and_examples(command: str) -> None:
    done = run(*command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: primus {command} ")
    examples = done.stdout.partition("examples:\n")[2].splitlines()
    assert examples
    assert all(line.startswith(f"  primus {command} ") for line in examples)
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_help_of_a_group_lists_its_commands() -> None:
    assert "checkpoint export-hf" in run("checkpoint", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "primus: a command is missing; there are primus train, primus data convert ... (see primus --help)"),
        (["trains"], "primus: there is no command 'trains'; did you mean primus train?"),
        (["checkpoint", "export"], "primus: there is no command 'checkpoint export'; did you mean primus checkpoint"),
        (["xyz"], "primus: there is no command 'xyz'; there are primus train, primus data convert"),
        (["train"], "primus train: the following arguments are required: --config; see primus train --help"),
        (["train", "--confg", TINY], "primus train: there is no option --confg; did you mean --config?"),
        (["train", "--conf", TINY], "primus train: there is no option --conf; did you mean --config?"),
        (["train", "--config", TINY, "--lr=1"], "there is no option --lr; configuration keys are given as lr=VALUE"),
        (
            ["train", "--config", TINY, "--train-iters", "9"],
            "no option --train-iters ... given as train_iters=VALUE",
        ),
        (["train", "--config", TINY, "--nproc-per-node", "0"], "--nproc-per-node: '0' is not a number above 0"),
        (
            ["train", "--config", TINY, "--world-size", "2"],
            "--world-size: only plans for that many ranks; add --dry-run",
        ),
        (["train", "--config", "absent.yaml"], "there is no file 'absent.yaml'"),
        (["train", "--config", TINY, "lrr=1"], "command line: lrr: unknown key; did you mean 'lr'"),
        (["train", "--config", TINY, "lr=fast"], "command line: lr: 'fast' is not a number"),
        (
            ["train", "--config", TINY, "--nproc-per-node=5"],
            "24 is not a multiple of micro_batch_size 24 x 5 data-parallel",
        ),
        (["checkpoint", "export-hf", "a"], "primus checkpoint export-hf: the following arguments are required: DIR"),
        (["checkpoint", "export-hf", "a", "b", "c"], "primus checkpoint export-hf: 'c' is too much"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_one_line_and_exit_2(arguments: list[str], problem: str) -> None:
    (line,) = refuse(*arguments)
    assert all(part in line for part in problem.split(" ... ")), line


def test_a_key_and_its_value_as_two_words_are_both_refused() -> None:
    lines = refuse("train", "--config", TINY, "lr", "3")
    assert [line.split(" is not key=value")[0] for line in lines] == ["command line: 'lr'", "command line: '3'"]


def test_all_problems_are_listed_at_once() -> None:
    lines = refuse("train", "--config", TINY, "lrr=3", "seq_length=x", "sft_truncation=left")
    assert len(lines) == 3


def test_options_that_contradict_each_other_are_refused() -> None:
    lines = refuse(
        "train", "--config", TINY, "--dry-run", "--world-size", "2", "--nproc-per-node", "2", environment={"RANK": "0"}
    )
    assert len(lines) == 2
    assert lines[0].startswith("--world-size: says the same as --nproc-per-node")
    assert lines[1].startswith("--nproc-per-node: RANK is set, so a launcher has started this process")


def test_a_fault_of_the_program_is_a_traceback_and_exit_1() -> None:
    code = (
        "import sys; from primus.cli import commands, main;"
        "commands.run = lambda arguments: 1 / 0; sys.exit(main(['train']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_ctrl_c_is_a_short_line_and_exit_130() -> None:
    code = (
        "import os, signal, sys; from primus.cli import commands, main;"
        "commands.run = lambda arguments: os.kill(os.getpid(), signal.SIGINT); sys.exit(main(['train']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_reader_that_stops_reading_is_no_error() -> None:
    code = (
        "import sys; from primus.cli import commands, main;"
        "commands.run = lambda arguments: [print('x' * 1000) for _ in range(1000)] and 0; sys.exit(main(['train']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_a_terminal_without_a_character_shows_its_code() -> None:
    code = (
        "import sys; from primus.cli import commands, main;"
        "commands.run = lambda arguments: print('\\u27e6') or 0; sys.exit(main(['train']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        env={"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "\\u27e6\n")


def test_a_folder_that_cannot_be_made_is_one_line_and_exit_2() -> None:
    done = run("train", "--config", TINY, "workspace=/dev/null/x", "train_iters=1", "lr_warmup_iters=0", "num_layers=1")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("/dev/null/")
    assert "Not a directory; check the path, its permissions and the disk" in last
