# SPDX-License-Identifier: Apache-2.0
"""Whether a template uses only what strings keep their origin through.

What it uses besides is not refused: text that passes it shows when the letters of all strings are changed, and that is
then done for every conversation.
"""

from jinja2 import nodes

FILTERS = frozenset(
    {
        "abs", "batch", "bool", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby",
        "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
        "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum", "tojson",
        "trim", "unique", "upper",
    }
)  # fmt: skip
"""Filters that keep origins, or give no text."""

METHODS = frozenset(
    {
        "append", "capitalize", "count", "endswith", "extend", "find", "get", "index", "insert", "isalnum",
        "isalpha", "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper",
        "items", "join", "keys", "lower", "lstrip", "partition", "pop", "removeprefix", "removesuffix", "replace",
        "reverse", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
        "strip", "update", "upper", "values",
    }
)  # fmt: skip
"""Methods that keep origins, or give no text."""


def follows_everything(tree: nodes.Template) -> bool:
    """Whether no filter, method or operator of a template can lose the origin of a string.

    Args:
        tree: The parsed template.

    Returns:
        False if one is used that is not known to keep it, whether or not a message ever passes it.
    """
    return all(map(_is_known_filter, tree.find_all(nodes.Filter))) and all(
        map(_is_known_call, tree.find_all((nodes.Call, nodes.Mod)))
    )


def _is_known_filter(node: nodes.Filter) -> bool:
    if node.name == "map":  # by the name of a filter
        first = node.args[0] if node.args else None
        if first is not None and not (isinstance(first, nodes.Const) and first.value in FILTERS):
            return False
    return node.name in FILTERS


def _is_known_call(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Mod):  # of numbers; of strings it formats
        return isinstance(node.right, nodes.Const) and isinstance(node.right.value, int)
    assert isinstance(node, nodes.Call)
    called = node.node
    if isinstance(called, nodes.Getattr):
        # What a namespace, a loop or a macro's module has of its own is called by other names than strings have.
        return called.attr in METHODS or (isinstance(called.node, nodes.Name) and called.node.name == "loop")
    return not isinstance(called, nodes.Getitem)
