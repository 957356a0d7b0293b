# SPDX-License-Identifier: Apache-2.0
"""The options that say how rows are read as conversations."""

import argparse
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from primus.chat.formats import AUTO, FORMATS, ColumnMap, SourceOptions
from primus.chat.formats.options import OasstBranches, Think
from primus.cli.parsing import CommandParser
from primus.config.strict_yaml import read_yaml
from primus.config.tree import plain_data
from primus.errors import ConfigError

_COLUMNS = "columns"


def add_source_arguments(parser: CommandParser) -> None:
    """Add the arguments that say how rows are read.

    Args:
        parser: The command's parser.
    """
    group = parser.add_argument_group("how rows are read")
    group.add_argument(
        "--from",
        dest="source_format",
        metavar="FORMAT",
        default=AUTO,
        help=f"the format of the rows: {', '.join(FORMATS)} (default: each row is recognised)",
    )
    group.add_argument(
        "--messages-field", metavar="F,...", default="messages", help="the field, or fields, with a row's messages"
    )
    group.add_argument(
        "--roles", metavar="NAME=ROLE,...", default="", help="names of roles, such as client=user,counselor=assistant"
    )
    group.add_argument("--column-map", type=Path, metavar="YAML", help="where the parts of a conversation stand")
    group.add_argument("--conversation-id", metavar="F", help="the column that joins rows of one turn each")
    group.add_argument(
        "--oasst", choices=get_args(OasstBranches), default="all", help="the branches of a tree (default: all)"
    )
    group.add_argument(
        "--think",
        choices=get_args(Think),
        default="keep",
        help="leave <think>...</think> in the content, or split it off as reasoning (default: keep)",
    )


def build_source_options(options: argparse.Namespace) -> SourceOptions:
    """How rows are read, as the arguments say.

    Args:
        options: The parsed arguments.

    Returns:
        The options.

    Raises:
        ConfigError: If a format or a role does not exist, or the column map can't be used.
    """
    source_format = options.source_format
    if source_format not in (AUTO, *FORMATS):
        near = difflib.get_close_matches(source_format, FORMATS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {AUTO}, {', '.join(FORMATS)}"
        raise ConfigError(f"--from: there is no format {source_format!r}; {hint}")
    if options.column_map is not None and source_format not in (AUTO, _COLUMNS):
        raise ConfigError(f"--column-map: says how rows are read, and so does --from {source_format}; give one of them")
    if source_format == _COLUMNS and options.column_map is None:
        raise ConfigError(f"--from {_COLUMNS}: needs a map of the columns; give it with --column-map")
    messages_fields = tuple(name for name in options.messages_field.split(",") if name)
    if not messages_fields:
        raise ConfigError("--messages-field: names no field; give its name")
    try:
        return SourceOptions(
            format=source_format if options.column_map is None else _COLUMNS,
            messages_field=messages_fields[0] if len(messages_fields) == 1 else messages_fields,
            roles=_roles(options.roles),
            oasst=options.oasst,
            think=options.think,
            column_map=None if options.column_map is None else read_column_map(options.column_map),
            conversation_id=options.conversation_id,
        )
    except ValueError as exc:
        raise ConfigError(f"--{exc}; see --help") from exc


def read_column_map(path: Path) -> ColumnMap:
    """The column map that a YAML file holds; text needs no quotes in it.

    Args:
        path: The file.

    Returns:
        The column map.

    Raises:
        ConfigError: If it can't be read, or is not valid.
    """
    mapping = plain_data(read_yaml(path))
    assert isinstance(mapping, Mapping)
    flags = {"true": True, "false": False}
    # The only part that is not a name: LLaMA-Factory's mark of preference data.
    ranking = (
        {"ranking": flags.get(str(mapping["ranking"]).lower(), mapping["ranking"])} if "ranking" in mapping else {}
    )
    return ColumnMap.from_mapping({**mapping, **ranking}, origin=str(path))


def _roles(text: str) -> dict[str, str]:
    roles: dict[str, str] = {}
    for pair in filter(None, text.split(",")):
        name, is_pair, role = pair.partition("=")
        if not is_pair or not name:
            raise ConfigError(f"--roles: {pair!r} is not NAME=ROLE; write for example client=user")
        if name in roles:
            raise ConfigError(f"--roles: {name!r} is given twice; give it one role")
        roles[name] = role
    return roles
