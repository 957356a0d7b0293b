# SPDX-License-Identifier: Apache-2.0
"""Every key with its type, default and text: what `docs/CONFIGURATION.md` lists."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from primus.config.schema import (
    DataKeys,
    LoraConfig,
    ModelKeys,
    OptimizationKeys,
    SystemKeys,
    TrainConfig,
    TrainerConfig,
)


@dataclass(frozen=True, kw_only=True)
class KeyDescription:
    """One key of a configuration."""

    name: str
    """Dotted, as on the command line."""
    group: str
    """The keys that it stands among: the first line of its class's docstring."""
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
    keys += _describe(TrainerConfig, leave_out=grouped)
    return keys + _describe(LoraConfig, prefix="lora.")


def _describe(model: type[BaseModel], *, prefix: str = "", leave_out: set[str] | None = None) -> list[KeyDescription]:
    group = (model.__doc__ or "").partition("\n")[0]
    return [
        KeyDescription(
            name=prefix + name,
            group=group,
            type=_field_type(field),
            default="required" if field.is_required() else _yaml(field.default),
            text=" ".join((field.description or "").split()),
        )
        for name, field in model.model_fields.items()
        if name not in (leave_out or ())
    ]


def _field_type(field: FieldInfo) -> str:
    return _type(field.annotation) + _bounds(field.metadata)


def _type(annotation: Any) -> str:  # noqa: ANN401 - any type expression
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0]) + _bounds(arguments[1:])
    if origin in (Union, UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
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
