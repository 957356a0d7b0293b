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

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse options and positional arguments in any order.

        Raises:
            ConfigError: If an argument is missing, of the wrong type, or unknown.
        """
        namespace, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            raise ConfigError(*(self._unknown(word) for word in unknown))
        return namespace

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        if not name.startswith("-"):
            return f"{self.prog}: {word!r} is one argument too many; see {self.prog} --help"
        near = difflib.get_close_matches(name, self._option_string_actions, n=1)
        key = name.lstrip("-").replace("-", "_")
        hint = f"did you mean {near[0]}?" if near else f"configuration keys are given as {key}=VALUE, without dashes"
        return f"{self.prog}: there is no option {name}; {hint}"


def positive_int(text: str) -> int:
    """An integer above 0, for argparse.

    Raises:
        argparse.ArgumentTypeError: If it is not one.
    """
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)
