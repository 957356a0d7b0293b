# SPDX-License-Identifier: Apache-2.0
"""The parser that every command uses: argparse, but an error is one line and nothing is guessed or ignored."""

import argparse
import difflib
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from primus.errors import ConfigError

HELP_WIDTH = 100


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of one width everywhere, with the examples as they are written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=HELP_WIDTH)


class CommandParser(argparse.ArgumentParser):
    """Parser of one command.

    Args:
        command: The words after `primus` that name it.
        description: What it does.
        examples: Command lines that run as they stand.
    """

    def __init__(self, command: str, *, description: str, examples: str) -> None:
        super().__init__(
            prog=f"primus {command}",
            description=textwrap.fill(description, width=HELP_WIDTH),
            epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  "),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print.

        Args:
            message: Argparse's words.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse options and positional arguments in any order.

        Args:
            arguments: The words after the command's name.

        Returns:
            The values, by the names of the arguments.

        Raises:
            ConfigError: If an argument is missing, of the wrong type, or unknown.
        """
        # Before argparse complains that --config is missing, say that there is no --confg.
        names = [word.partition("=")[0] for word in arguments if word.startswith("-") and word != "-"]
        unknown = [name for name in names if name not in self._option_string_actions]
        if unknown:
            raise ConfigError(*(self._no_such_option(name) for name in unknown))
        namespace, rest = self.parse_known_intermixed_args(arguments)
        if rest:
            raise ConfigError(*(f"{self.prog}: {word!r} is too much; see {self.prog} --help" for word in rest))
        return namespace

    def _no_such_option(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.7)
        near = near or [option for option in self._option_string_actions if option.startswith(name)]
        key = name.lstrip("-").replace("-", "_")
        takes_keys = any(action.metavar == "key=value" for action in self._actions)
        other = (
            f"configuration keys are given as {key}=VALUE, without dashes" if takes_keys else f"see {self.prog} --help"
        )
        hint = f"did you mean {near[0]}?" if near else other
        return f"{self.prog}: there is no option {name}; {hint}"


def positive_int(text: str) -> int:
    """An integer above 0, for argparse.

    Args:
        text: What was written.

    Returns:
        The integer.

    Raises:
        argparse.ArgumentTypeError: If it is not one.
    """
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)
