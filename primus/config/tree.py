# SPDX-License-Identifier: Apache-2.0
"""Settings as they were written: every value knows its file and line until it is validated."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a line of a file, or the command line."""

    file: Path | None = None
    """None is the command line."""
    line: int | None = None
    """Counted from 1; None means the file as a whole."""

    def __str__(self) -> str:
        if self.file is None:
            return "command line"
        return str(self.file) if self.line is None else f"{self.file}:{self.line}"

    @property
    def folder(self) -> Path:
        """The folder that relative names in this place start from."""
        return Path() if self.file is None else self.file.parent


COMMAND_LINE = Origin()


@dataclass(frozen=True)
class Scalar:
    """One value, still as text: the field it is meant for decides whether `8` is a number."""

    text: str | None
    """None is YAML's null."""
    origin: Origin
    is_quoted: bool = False
    """Quoted text is never null."""

    def __str__(self) -> str:
        if self.text is None:
            return "null"
        return self.text if _is_number(self.text) else repr(self.text)


@dataclass(frozen=True)
class Items:
    """A list. Merging replaces it as a whole."""

    items: tuple["Node", ...]
    origin: Origin

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.items))}]"


@dataclass(frozen=True)
class Section:
    """A mapping. Merging goes into it key by key."""

    children: Mapping[str, "Node"]
    origin: Origin

    def __str__(self) -> str:
        return f"{{{', '.join(f'{key}: {child}' for key, child in self.children.items())}}}"

    def find(self, key: str) -> "Node | None":
        """Return the value of a dotted key, or None where there is no such value."""
        node: Node | None = self
        for name in key.split("."):
            if not isinstance(node, Section):
                return None
            node = node.children.get(name)
        return node

    def keep(self, keys: Container[str]) -> "Section":
        """Return this section with the named children only."""
        return replace(self, children={key: child for key, child in self.children.items() if key in keys})

    def drop(self, keys: Container[str]) -> "Section":
        """Return this section without the named children."""
        return replace(self, children={key: child for key, child in self.children.items() if key not in keys})


Node: TypeAlias = Scalar | Items | Section


def merge(base: Node, over: Node) -> Node:
    """Return `base` with `over` written on top of it: mappings key by key, anything else replaced.

    Args:
        base: What was there.
        over: What wins.

    Returns:
        A new tree. Every value keeps its own origin.
    """
    if not isinstance(base, Section) or not isinstance(over, Section):
        return over
    return merge_sections(base, over)


def merge_sections(base: Section, over: Section) -> Section:
    """Return `base` with the keys of `over` written on top of it, as `merge` does."""
    children = dict(base.children)
    for key, child in over.children.items():
        children[key] = merge(children[key], child) if key in children else child
    return Section(children, over.origin)


def plain_data(node: Node) -> object:
    """Return text, None, lists and dictionaries, without origins."""
    if isinstance(node, Scalar):
        return node.text
    if isinstance(node, Items):
        return [plain_data(item) for item in node.items]
    return {key: plain_data(child) for key, child in node.children.items()}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
