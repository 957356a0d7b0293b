# SPDX-License-Identifier: Apache-2.0
"""Files that extend other files, read into one tree."""

from pathlib import Path

from primus.config.places import find_file
from primus.config.strict_yaml import read_yaml
from primus.config.tree import Items, Node, Scalar, Section, merge_sections
from primus.config.variables import expand_scalar
from primus.errors import ConfigError


def read_document(path: Path, *, library: Path) -> Section:
    """Return a file merged onto the files that it extends.

    Args:
        path: The file.
        library: The folder of the package where bare names in `extends` are looked for, after the file's own folder.

    Returns:
        Its tree without `extends`. Of several extended files the later wins, and the file itself wins over all.

    Raises:
        ConfigError: If a file cannot be read, or extends itself.
    """
    return _read(path, library=library, opened=())


def name_of_file(node: Node, *, key: str) -> tuple[str, Scalar]:
    """Return the file name that a value holds, and the value it was read from.

    Args:
        node: The value; its variables are filled in.
        key: Its name, for the error.

    Returns:
        The name, and the scalar for its origin.

    Raises:
        ConfigError: If the value is not text.
    """
    if isinstance(node, Scalar):
        filled = expand_scalar(node, key=key)
        if isinstance(filled, Scalar) and filled.text:
            return filled.text, filled
    raise ConfigError(f"{node.origin}: {key}: {node} is not the name of a file; write one, for example base.yaml")


def _read(path: Path, *, library: Path, opened: tuple[Path, ...]) -> Section:
    real = path.resolve()
    section = read_yaml(path)
    merged = Section({}, section.origin)
    extended = section.find("extends")
    bases = () if extended is None else extended.items if isinstance(extended, Items) else (extended,)
    for base in bases:
        name, scalar = name_of_file(base, key="extends")
        folder = scalar.origin.folder
        file = find_file(name, where=f"{scalar.origin}: extends", folder=folder, library=library)
        chain = (*opened, real, file.resolve())
        if file.resolve() in chain[:-1]:
            loop = " -> ".join(link.name for link in chain[chain.index(file.resolve()) :])
            raise ConfigError(f"{scalar.origin}: extends: {loop} is a circle; remove one of them")
        merged = merge_sections(merged, _read(file, library=library, opened=(*opened, real)))
    return merge_sections(merged, section.drop({"extends"}))
