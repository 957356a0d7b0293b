# SPDX-License-Identifier: Apache-2.0
"""The commands by name. A command's module is imported when it is called, so that `--help` waits for nothing."""

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from primus import __version__
from primus.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of the `primus` program."""

    module: str
    """Module with `run(arguments) -> exit code`."""
    summary: str
    """What it does, in a line of the help."""


COMMANDS = {
    "train": Command(module="primus.cli.train", summary="train a model on conversations, or plan to (--dry-run)"),
    "data convert": Command(
        module="primus.cli.data.convert", summary="write conversations of any format as OpenAI messages"
    ),
    "data check": Command(
        module="primus.cli.data.check", summary="prove, row by row, that exactly the right tokens train"
    ),
    "data show": Command(module="primus.cli.data.show", summary="see what is trained, in the terminal or as a page"),
    "data stats": Command(
        module="primus.cli.data.stats", summary="count turns, tokens, lengths, duplicates and oddities"
    ),
    "data prepare": Command(
        module="primus.cli.data.prepare", summary="tokenize data once, for every run that trains on it"
    ),
    "data verify": Command(module="primus.cli.data.verify", summary="find any wrong byte in a prepared data set"),
    "checkpoint import-hf": Command(
        module="primus.cli.checkpoint.import_hf", summary="write a Hugging Face folder as a checkpoint"
    ),
    "checkpoint export-hf": Command(
        module="primus.cli.checkpoint.export_hf", summary="write a checkpoint as a Hugging Face folder"
    ),
}

_HELP_WORDS = ("-h", "--help", "help")


def run(arguments: Sequence[str]) -> int:
    """Call the command that the first words name.

    Args:
        arguments: The words after `primus`.

    Returns:
        The exit code.

    Raises:
        ConfigError: If they name none.
    """
    if arguments and arguments[0] in _HELP_WORDS:
        print(_help())
        return 0
    if arguments and arguments[0] == "--version":
        print(f"primus {__version__}")
        return 0
    for num_words in (2, 1):
        command = COMMANDS.get(" ".join(arguments[:num_words]))
        if command is not None:
            module = importlib.import_module(command.module)
            return int(module.run(arguments[num_words:]))
    group = {name: command for name, command in COMMANDS.items() if arguments and name.startswith(f"{arguments[0]} ")}
    if group and arguments[1:2] and arguments[1] in _HELP_WORDS:
        print("\n".join(_table(group)))
        return 0
    raise ConfigError(_no_such_command(arguments, group or COMMANDS))


def _no_such_command(arguments: Sequence[str], among: dict[str, Command]) -> str:
    names = ", ".join(f"primus {name}" for name in among)
    if not arguments:
        return f"primus: a command is missing; there are {names} (see primus --help)"
    near = difflib.get_close_matches(" ".join(arguments[:2]), COMMANDS, n=1) or difflib.get_close_matches(
        arguments[0], COMMANDS, n=1
    )
    hint = f"did you mean primus {near[0]}?" if near else f"there are {names}"
    return f"primus: there is no command {' '.join(arguments[:2])!r}; {hint}"


def _table(commands: dict[str, Command]) -> list[str]:
    width = max(len(name) for name in commands)
    return [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]


def _help() -> str:
    return "\n".join(
        [
            "usage: primus COMMAND ...",
            "",
            "Multi-turn conversations into exact training targets, and training on them with Megatron.",
            "",
            "commands:",
            *_table(COMMANDS),
            "",
            "options:",
            "  --help     this text; primus COMMAND --help for a command's own",
            "  --version  the version of the program",
            "",
            "examples:",
            "  primus train --config tiny-multiturn-sft.yaml --dry-run",
            "  primus train --config tiny-multiturn-sft.yaml train_iters=20",
        ]
    )
