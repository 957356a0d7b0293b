# SPDX-License-Identifier: Apache-2.0
"""`${NAME}` and `${NAME:default}` in values.

Variables are filled in after everything is merged, so that one that is overridden need not be set.
"""

import os
import re
from collections.abc import Mapping

from primus.config.places import EXAMPLES
from primus.config.strict_yaml import parse_value
from primus.config.tree import Items, Node, Origin, Scalar, Section
from primus.errors import ConfigError

_REFERENCE = re.compile(r"(?P<escape>\$?)\$\{(?P<inside>[^{}]*)(?P<close>\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def expand_section(section: Section, *, inside: str = "", problems: list[str]) -> Section:
    """Return a section with the variables of its values filled in.

    An unquoted value that has variables is read again as a value on the command line is: `${LOAD:null}` is null
    unless LOAD is set, and `${FILES}` may hold `[a.jsonl, b.jsonl]`, but no mapping. `$${` stands for `${` itself.

    Args:
        section: What was written.
        inside: Dotted name of the section, for problems.
        problems: Takes one entry for each value whose variables cannot be filled in.

    Returns:
        The section without those values.
    """
    children = {
        name: _expand(node, key=join(inside, name), problems=problems) for name, node in section.children.items()
    }
    return Section({name: node for name, node in children.items() if node is not None}, section.origin)


def expand_scalar(scalar: Scalar, *, key: str) -> Node:
    """Return one value with its variables filled in, as `expand_section` does.

    Args:
        scalar: The value.
        key: Its dotted name, for the error.

    Returns:
        The value; the same one if it has no variables.

    Raises:
        ConfigError: If a variable without a default is not set, a reference is not well-formed, or the result is a
            mapping.
    """
    if scalar.text is None or "${" not in scalar.text:
        return scalar
    variables = {"PRIMUS_EXAMPLES": str(EXAMPLES), **os.environ}
    text = _REFERENCE.sub(lambda match: _value(match, variables, key=key, origin=scalar.origin), scalar.text)
    if scalar.is_quoted:
        return Scalar(text, scalar.origin, is_quoted=True)
    node = parse_value(text, key=key, origin=scalar.origin)
    if isinstance(node, Section):
        raise ConfigError(
            f"{scalar.origin}: {key}: its variable holds the mapping {node}; write the mapping in the file"
        )
    return node


def _expand(node: Node, *, key: str, problems: list[str]) -> Node | None:
    if isinstance(node, Section):
        return expand_section(node, inside=key, problems=problems)
    if isinstance(node, Items):
        items = [_expand(item, key=key, problems=problems) for item in node.items]
        filled = tuple(item for item in items if item is not None)
        return Items(filled, node.origin) if len(filled) == len(items) else None
    try:
        return expand_scalar(node, key=key)
    except ConfigError as error:
        problems.extend(error.problems)
        return None


def join(*names: str) -> str:
    """Return the dotted name of a key inside another; empty names are left out."""
    return ".".join(name for name in names if name)


def _value(match: re.Match[str], variables: Mapping[str, str], *, key: str, origin: Origin) -> str:
    if match["escape"]:
        return match[0].removeprefix("$")
    name, colon, default = match["inside"].partition(":")
    if not match["close"] or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{origin}: {key}: '{match.string}' is not a well-formed variable; write ${{NAME}} or ${{NAME:default}}, "
            "without braces in the default, or $${ for the text itself"
        )
    if name in variables:
        return variables[name]
    if colon:
        return default
    raise ConfigError(
        f"{origin}: {key}: the environment variable {name} is not set; "
        f"set it, or give {key} another value (on the command line: {key}=VALUE)"
    )
