# SPDX-License-Identifier: Apache-2.0
"""Which keys exist in which place of a configuration, and what to say about one that does not."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

from primus.config.schema import LoraConfig, TrainConfig, TrainerConfig
from primus.config.suggestions import SAME_MEANING, nearest
from primus.config.tree import COMMAND_LINE, Node, Section
from primus.config.variables import join

Place: TypeAlias = Literal["run", "module", "trainer", "lora"]

RUN_KEYS = frozenset(TrainConfig.model_fields) - {"framework", "trainer"}
MODULE_KEYS = frozenset({"framework", "config", "model"})

_KEYS: Mapping[Place, frozenset[str]] = MappingProxyType(
    {
        "run": RUN_KEYS | {"modules"},
        "module": MODULE_KEYS | {"overrides"},
        "trainer": frozenset(TrainerConfig.model_fields),
        "lora": frozenset(LoraConfig.model_fields),
    }
)
_WHERE: Mapping[Place, str] = MappingProxyType(
    {
        "run": "at the top level of the file",
        "module": "in the module, beside `overrides`",
        "trainer": "under `overrides`",
        "lora": "under `lora`",
    }
)


def known_keys(section: Section, *, place: Place, inside: str = "", problems: list[str]) -> Section:
    """Return a section without the keys that do not exist.

    Args:
        section: What was written.
        place: What kind of section it is. `lora` inside a trainer is looked through, too.
        inside: Dotted name of the section, for problems.
        problems: Takes one entry for each unknown key.

    Returns:
        The section with its known keys.
    """
    children: dict[str, Node] = {}
    for key, node in section.children.items():
        if key not in _KEYS[place]:
            given_directly = node.origin == COMMAND_LINE and place == "trainer"
            advice = _advice(key, place=place, given_directly=given_directly)
            problems.append(f"{node.origin}: {join(inside, key)}: unknown key; {advice}")
        elif key == "lora" and isinstance(node, Section):
            children[key] = known_keys(node, place="lora", inside=key, problems=problems)
        else:
            children[key] = node
    return Section(children, section.origin)


def _advice(key: str, *, place: Place, given_directly: bool) -> str:
    if given_directly and (key.startswith("--") or key in {"modules", "overrides", "extends"}):
        return "on the command line a key is given by its own name, for example lr=1e-5 or lora.dim=8"
    if "." in key:
        return "dots are for the command line; in a file, write the inner key below the outer one"
    everywhere = frozenset().union(*_KEYS.values())
    here = frozenset().union(*(_KEYS[name] for name in (("run", "module", place) if given_directly else (place,))))
    meant = key if key in everywhere else SAME_MEANING.get(key) or nearest(key, here) or nearest(key, everywhere)
    if meant is None:
        return "docs/CONFIGURATION.md lists all keys"
    home: Place = place if meant in _KEYS[place] else next(name for name in _KEYS if meant in _KEYS[name])
    is_here = home == place or (given_directly and home in {"run", "module"})
    if meant == key:
        return f"it belongs {_WHERE[home]}"
    return f"did you mean '{meant}'?" if is_here else f"did you mean '{meant}', which belongs {_WHERE[home]}?"
