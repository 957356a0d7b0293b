# SPDX-License-Identifier: Apache-2.0
"""Every key with its type, default and text: what `docs/CONFIGURATION.md` lists."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from primus.config.schema import (
    DataKeys,
    DataSource,
    LoraConfig,
    ModelKeys,
    OptimizationKeys,
    SystemKeys,
    TrainConfig,
    TrainerConfig,
)
from primus.config.unavailable import UNAVAILABLE


@dataclass(frozen=True, kw_only=True)
class KeyDescription:
    """One key of a configuration."""

    name: str
    """Dotted, as on the command line."""
    group: str
    """What the keys that it stands among are about."""
    type: str
    """For people: `whole number > 0`, `adam`, `text or list of text`."""
    default: str
    """As in YAML; `required` where there is none."""
    text: str
    """What the key does."""


def describe_keys() -> Sequence[KeyDescription]:
    """Return every key of a configuration, group by group.

    Returns:
        The keys of the run, of the trainer module, and of `lora`, in the order of the schema.
    """
    keys = _describe(TrainConfig, leave_out={"trainer"})
    grouped: set[str] = {"lora"}
    for group in (DataKeys, ModelKeys, OptimizationKeys, SystemKeys):
        keys += _describe(group)
        grouped |= group.model_fields.keys()
    keys += _describe(TrainerConfig, leave_out=grouped, group="The kind of training")
    return keys + _describe(LoraConfig, prefix="lora.")


def describe_source_keys() -> Sequence[KeyDescription]:
    """Return every key of one of the `sft_sources`, in the order of the schema."""
    return _describe(DataSource)


def keys_as_markdown() -> str:
    """Return the table of all keys that `docs/CONFIGURATION.md` holds, a heading for each group."""
    lines: list[str] = []
    group = None
    for key in (*describe_keys(), *describe_source_keys()):
        if key.group != group:
            group = key.group
            lines += ["", f"### {group}", "", "| key | type | default | |", "|---|---|---|---|"]
        lines.append(f"| `{key.name}` | {key.type} | {key.default} | {key.text} |")
    return "\n".join(lines).lstrip("\n") + "\n"


def _describe(
    model: type[BaseModel], *, group: str = "", prefix: str = "", leave_out: Collection[str] = ()
) -> list[KeyDescription]:
    unavailable = {feature.key for feature in UNAVAILABLE}
    descriptions = []
    for name, field in model.model_fields.items():
        if name in leave_out:
            continue
        default = "required" if field.is_required() else _yaml(field.default)
        text = " ".join((field.description or "").split())
        descriptions.append(
            KeyDescription(
                name=prefix + name,
                group=group or (model.__doc__ or "").partition("\n")[0].rstrip("."),
                type=_type(field.annotation) + _bounds(field.metadata),
                default=default,
                text=f"{text} So far only `{default}`." if prefix + name in unavailable else text,
            )
        )
    return descriptions


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0]) + _bounds(arguments[1:])
    if origin in (Union, UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is dict:
        return "mapping"
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mappings"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", NoneType: "null"}
    return names[annotation]


def _bounds(metadata: Sequence[object]) -> str:
    bounds = ""
    for entry in metadata:
        if isinstance(entry, FieldInfo):
            bounds += _bounds(entry.metadata)
        elif isinstance(entry, annotated_types.Gt):
            bounds += f" > {entry.gt}"
        elif isinstance(entry, annotated_types.Ge):
            bounds += f" >= {entry.ge}"
        elif isinstance(entry, annotated_types.Lt):
            bounds += f" < {entry.lt}"
    return bounds


def _yaml(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
