# SPDX-License-Identifier: Apache-2.0
"""Values into their types, one key at a time, so that one bad key hides no other."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from primus.config.suggestions import nearest
from primus.config.tree import Section, plain_data


@dataclass(frozen=True)
class Validated:
    """The values of a section by key, and what is wrong with the others."""

    values: Mapping[str, Any]
    """Typed values of the keys that are given and right."""
    problems: Sequence[str]
    """One line for each key that is given and wrong."""
    wrong: frozenset[str]
    """The keys of the problems."""


def validate_section(section: Section, model: type[BaseModel]) -> Validated:
    """Return the values of a section in the types of a model's fields.

    Args:
        section: Known keys only, with variables filled in.
        model: Declares the type of every key.

    Returns:
        What is right and what is wrong. Missing keys are neither.
    """
    adapters = _adapters(model)
    values: dict[str, Any] = {}
    problems: list[str] = []
    wrong: set[str] = set()
    for key, node in section.children.items():
        try:
            values[key] = adapters[key].validate_python(plain_data(node))
        except ValidationError as error:
            wrong.add(key)
            problems.extend(_describe(section, key, error.errors(), model=model))
    return Validated(values, problems, frozenset(wrong))


@cache
def _adapters(model: type[BaseModel]) -> Mapping[str, TypeAdapter[Any]]:
    return {
        name: TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]  # a type made at run time
        for name, field in model.model_fields.items()
    }


def _describe(section: Section, key: str, errors: Sequence[ErrorDetails], *, model: type[BaseModel]) -> list[str]:
    by_place: dict[str, list[ErrorDetails]] = defaultdict(list)
    problems = []
    for error in errors:
        if _is_of_element(error):
            problems.append(_describe_in_list(section, key, error, known=_keys_of_elements(model, key)))
            continue
        # pydantic's path goes on with the branch of a union or the index of a list; stop where the tree stops.
        place = key
        for name in error["loc"]:
            if section.find(f"{place}.{name}") is None:
                break
            place = f"{place}.{name}"
        by_place[place].append(error)
    for place, found in by_place.items():
        node = section.find(place)
        assert node is not None
        problems.append(f"{node.origin}: {place}: {node} {_complaint(str(node), found)}")
    return problems


def _is_of_element(error: ErrorDetails) -> bool:
    """Whether an error is inside of a mapping in a list."""
    return len(error["loc"]) > 1 and isinstance(error["loc"][0], int) and isinstance(error["loc"][1], str)


def _describe_in_list(section: Section, key: str, error: ErrorDetails, *, known: Sequence[str]) -> str:
    node = section.find(key)
    assert node is not None
    index, name = error["loc"][:2]
    place = f"{node.origin}: {key}[{index}].{name}:"
    if error["type"] == "missing":
        return f"{place} is missing; write it"
    if error["type"] == "extra_forbidden":
        similar = nearest(str(name), known)
        advice = f"did you mean {similar!r}?" if similar else f"there are {', '.join(known)}"
        return f"{place} is no key; {advice}"
    return f"{place} {error['input']!r:.80} {_complaint(str(error['input']), [error])}"


def _keys_of_elements(model: type[BaseModel], key: str) -> Sequence[str]:
    """The keys that the mappings in a list may have."""
    element = get_args(model.model_fields[key].annotation)[0]
    return list(element.model_fields)


def _complaint(value: str, errors: Sequence[ErrorDetails]) -> str:
    if errors[0]["loc"] and isinstance(errors[0]["loc"][0], int) and errors[0]["type"].startswith("model"):
        return "has an element that is no mapping; write each as {dataset_name: ...}"
    if len(errors) > 1:  # the one union of the schema
        return "is neither text nor a list of texts; write one of the two"
    kind, context = errors[0]["type"], errors[0].get("ctx", {})
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        if len(choices) == 1:
            return f"is not available; only {choices[0]} is"
        similar = nearest(value.strip("'"), choices)
        advice = f"did you mean '{similar}'?" if similar else "choose one of them"
        return f"is not one of {', '.join(choices)}; {advice}"
    if kind == "value_error":
        return str(context["error"])
    texts = {
        "greater_than": "is not greater than {gt:g}; choose a larger value",
        "greater_than_equal": "is less than {ge:g}; choose a larger value",
        "less_than": "is not less than {lt:g}; choose a smaller value",
        "finite_number": "is not a finite number; write one",
        "string_type": "is not text; write text",
        "path_type": "is not a path; write one",
        "tuple_type": "is not a list; write one, for example [a, b]",
    }
    if kind in texts:
        return texts[kind].format(**context)
    families = {
        "int": "is not a whole number; write one, for example 8",
        "float": "is not a number; write one, for example 1e-5",
        "bool": "is neither true nor false; write one of the two",
        "dict": "is not a mapping; write its keys below it, one `key: value` per line",
        "model": "is not a mapping; write its keys below it, one `key: value` per line",
    }
    return families[kind.split("_")[0]]
