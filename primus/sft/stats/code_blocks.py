# SPDX-License-Identifier: Apache-2.0
"""Fenced code blocks in a text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*(.*)")


@dataclass(frozen=True, slots=True)
class CodeBlocks:
    """The fenced code of a text.

    Attributes:
        languages: The first word behind each opening fence, in lower case; empty where there is none.
        num_chars: Characters of the lines between the fences, line ends included.
        is_unclosed: Whether the last block has no closing fence.
        prose: The lines that are not code, fences left out, joined by line feeds.
    """

    languages: tuple[str, ...]
    num_chars: int
    is_unclosed: bool
    prose: str


def find_code_blocks(text: str) -> CodeBlocks:
    r"""Find fenced code blocks as CommonMark does, but at any indentation.

    A fence is a line that begins with three or more backticks or tildes, with no backtick behind backticks; the block
    ends at a line of at least as many of them and nothing else.

    Args:
        text: The text.

    Returns:
        What was found.

    Examples:
        >>> find_code_blocks("Look:\n```python\nx = 1\n```\nDone.")
        CodeBlocks(languages=('python',), num_chars=6, is_unclosed=False, prose='Look:\nDone.')
    """
    if "```" not in text and "~~~" not in text:
        return CodeBlocks((), 0, is_unclosed=False, prose=text)
    languages: list[str] = []
    prose: list[str] = []
    num_chars = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        mark, info = _fence(line)
        if fence:
            if mark.startswith(fence) and not info:
                fence = ""
            else:
                num_chars += len(line)
        elif mark and "`" not in info * (mark[0] == "`"):
            fence = mark
            languages.append((info.split() or [""])[0].lower())
        else:
            prose.append(line.rstrip("\r\n"))
    return CodeBlocks(tuple(languages), num_chars, is_unclosed=bool(fence), prose="\n".join(prose))


def _fence(line: str) -> tuple[str, str]:
    """The fence that a line begins with, and what stands behind it."""
    match = _FENCE.match(line)
    return (match.group(1), match.group(2).strip()) if match else ("", "")


def prose_lines(text: str) -> Iterator[str]:
    """The lines of a text that are not code and not blank, stripped.

    Args:
        text: The text.

    Yields:
        The lines.
    """
    for line in find_code_blocks(text).prose.splitlines():
        if line.strip():
            yield line.strip()
