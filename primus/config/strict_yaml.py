# SPDX-License-Identifier: Apache-2.0
"""YAML into trees, stricter than YAML: one value per key, plain data only, and text stays text.

YAML itself turns `no` into false, `1e-5` into text and `017` into 15. Here a scalar keeps its text, and the type of the
field that it is for decides; only an unquoted null is told apart.
"""

from pathlib import Path

import yaml

from primus.config.tree import Items, Node, Origin, Scalar, Section
from primus.errors import ConfigError

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_STANDARD = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(_STANDARD + name for name in ("str", "int", "float", "bool", "null", "timestamp", "map", "seq"))


def read_yaml(path: Path) -> Section:
    """Return the mapping that a YAML file holds.

    Args:
        path: The file, in UTF-8.

    Returns:
        Its tree, with the line of every value.

    Raises:
        ConfigError: If the file cannot be read, is not YAML, holds something other than one mapping, gives a key twice
            or uses tags or merge keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    node = _parse(text, Origin(path))
    if not isinstance(node, Section):
        found = "is empty" if isinstance(node, Scalar) and not node.text else f"holds {node}"
        raise ConfigError(f"{path}: {found}, which is not a mapping; write keys and values, one `key: value` per line")
    return node


def parse_value(text: str, *, key: str, origin: Origin) -> Node:
    """Return the value that was given outside a file: on the command line or by a variable.

    Lists, mappings and quoted text are written as in YAML. Anything else is taken as it stands, so that `a: b`, `#1` or
    `*.jsonl` need no quotes.

    Args:
        text: What was given; `null`, `~` and nothing at all are null.
        key: Its dotted name, for the error.
        origin: Where it was given.

    Returns:
        Its tree.

    Raises:
        ConfigError: If it begins as a list, a mapping or quoted text and is not valid YAML.
    """
    text = text.strip()
    if text.startswith(("[", "{", "'", '"')):
        return _parse(text, origin, what=f"{key}: {text!r} is ")
    return Scalar(None if text in _NULLS else text, origin)


def _parse(text: str, origin: Origin, *, what: str = "") -> Node:
    reader = _Reader(origin)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        node = Scalar(None, origin) if root is None else reader.node(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = _at(origin, mark)
        column = f" at column {mark.column + 1}" if mark else ""
        advice = "check indentation and quotes"
        raise ConfigError(f"{where}: {what}not valid YAML{column}: {error.problem}; {advice}") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        reason = " ".join(str(error).split())
        raise ConfigError(f"{origin}: {what}not valid YAML: {reason}; remove the character") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: {what}nested too deeply; flatten its lists and mappings") from error
    if reader.problems:
        raise ConfigError(*reader.problems)
    return node


def _at(origin: Origin, mark: yaml.Mark | None) -> Origin:
    return Origin(origin.file, mark.line + 1) if mark and origin.file else origin


class _Reader:
    """Turns PyYAML's nodes into ours and collects what is refused."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.problems: list[str] = []
        self._open: list[yaml.Node] = []

    def node(self, node: yaml.Node) -> Node:
        origin = _at(self.origin, node.start_mark)
        if any(node is outer for outer in self._open):
            self.problems.append(f"{origin}: an alias stands inside its own anchor; write the value out")
            return Scalar(None, origin)
        if node.tag not in _PLAIN_TAGS:
            tag = node.tag.replace(_STANDARD, "!!")
            self.problems.append(f"{origin}: the tag '{tag}' is not supported; write a plain value")
        self._open.append(node)
        try:
            return self._converted(node, origin)
        finally:
            self._open.pop()

    def _converted(self, node: yaml.Node, origin: Origin) -> Node:
        if isinstance(node, yaml.MappingNode):
            return Section(self._children(node), origin)
        if isinstance(node, yaml.SequenceNode):
            return Items(tuple(self.node(item) for item in node.value), origin)
        assert isinstance(node, yaml.ScalarNode)
        is_quoted = node.style is not None
        is_null = not is_quoted and node.value in _NULLS
        return Scalar(None if is_null else node.value, origin, is_quoted=is_quoted)

    def _children(self, node: yaml.MappingNode) -> dict[str, Node]:
        children: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            origin = _at(self.origin, key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(f"{origin}: a key is a list or a mapping; keys are plain names")
                continue
            key = key_node.value
            if key_node.tag == _STANDARD + "merge":
                self.problems.append(f"{origin}: {key}: merge keys are not supported; use `extends`")
                continue
            if key in children:
                self.problems.append(f"{origin}: {key}: the key is given twice, first on line {lines[key]}; keep one")
            lines.setdefault(key, key_node.start_mark.line + 1)
            children[key] = self.node(value_node)
        return children
