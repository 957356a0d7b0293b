# SPDX-License-Identifier: Apache-2.0
"""A file, its presets and the command line, laid on top of each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from primus.config.documents import name_of_file, read_document
from primus.config.keys import MODULE_KEYS, RUN_KEYS, known_keys
from primus.config.places import EXAMPLE_CONFIGS, MODEL_PRESETS, TRAINER_PRESETS, find_file
from primus.config.strict_yaml import parse_value
from primus.config.tree import COMMAND_LINE, Node, Origin, Scalar, Section, merge_sections
from primus.config.variables import join
from primus.errors import ConfigError


class Layers(NamedTuple):
    """What was written, merged; variables are not filled in yet."""

    run: Section
    """The keys of the run, `framework` included."""
    trainer: Section
    """The keys of the one trainer module: trainer preset, model preset, `overrides`, command line."""


def read_layers(file: Path, *, overrides: Sequence[str], problems: list[str]) -> Layers:
    """Return the settings of a file with its presets, and of the command line on top.

    Args:
        file: The YAML file.
        overrides: `key=value` of the command line.
        problems: Takes one entry for each unknown key and each override that is not `key=value`.

    Returns:
        Known keys only.

    Raises:
        ConfigError: If a file is missing or is not YAML, or if there is not exactly one trainer module; with the
            problems up to there.
    """
    command_line = _command_line(overrides, problems)
    document = known_keys(read_document(file, library=EXAMPLE_CONFIGS), place="run", problems=problems)
    name, module = _trainer_module(document, problems)
    module = known_keys(module, place="module", inside=f"modules.{name}", problems=problems)
    module = merge_sections(module, command_line.keep(MODULE_KEYS))

    trainer = _presets(module, problems)
    trainer = merge_sections(trainer, _section(module, "overrides", problems, inside=f"modules.{name}"))
    trainer = merge_sections(trainer, command_line.drop(RUN_KEYS | MODULE_KEYS))
    run = merge_sections(document.keep(RUN_KEYS), module.keep({"framework"}))
    return Layers(
        run=merge_sections(run, command_line.keep(RUN_KEYS)),
        trainer=known_keys(trainer, place="trainer", problems=problems),
    )


def _command_line(overrides: Sequence[str], problems: list[str]) -> Section:
    merged = Section({}, COMMAND_LINE)
    for override in overrides:
        key, equals, text = override.partition("=")
        names = key.split(".")
        if not equals or not all(names):
            problems.append(f"{COMMAND_LINE}: '{override}' is not key=value; write for example lr=1e-5 or lora.dim=8")
            continue
        try:
            node: Node = parse_value(text, key=key, origin=COMMAND_LINE)
        except ConfigError as error:
            problems.extend(error.problems)
            continue
        for name in reversed(names):
            node = Section({name: node}, COMMAND_LINE)
        assert isinstance(node, Section)
        merged = merge_sections(merged, node)
    return merged


def _trainer_module(document: Section, problems: list[str]) -> tuple[str, Section]:
    modules = _section(document, "modules", problems)
    trainers = [name for name in modules.children if "trainer" in name]
    for name, node in modules.children.items():
        if name not in trainers:
            problems.append(f"{node.origin}: modules.{name}: unknown module; the one module has 'trainer' in its name")
    if len(trainers) != 1:
        found = ", ".join(f"{name} ({modules.children[name].origin})" for name in trainers) or "none"
        raise ConfigError(
            *problems,
            f"{modules.origin}: modules: there must be one module with 'trainer' in its name, and there is: {found}; "
            "keep one, for example post_trainer",
        )
    return trainers[0], _section(modules, trainers[0], problems, inside="modules")


def _presets(module: Section, problems: list[str]) -> Section:
    merged = Section({}, module.origin)
    is_complete = True
    for key, library in (("config", TRAINER_PRESETS), ("model", MODEL_PRESETS)):
        node = module.find(key)
        if node is None:
            continue
        try:
            name, scalar = name_of_file(node, key=key)
            file = find_file(name, where=f"{scalar.origin}: {key}", folder=scalar.origin.folder, library=library)
            merged = merge_sections(merged, read_document(file, library=library))
        except ConfigError as error:
            problems.extend(error.problems)
            is_complete = False
    if not is_complete:  # every key of the preset would be reported as missing
        raise ConfigError(*problems)
    return merged


def _section(parent: Section, key: str, problems: list[str], inside: str = "") -> Section:
    node = parent.find(key)
    if isinstance(node, Section):
        return node
    if node is None:
        return Section({}, Origin(parent.origin.file))
    if not isinstance(node, Scalar) or node.text is not None:  # `overrides:` with nothing below it is empty
        problems.append(f"{node.origin}: {join(inside, key)}: {node} is not a mapping; write its keys below it")
    return Section({}, node.origin)
