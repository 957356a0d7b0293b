# SPDX-License-Identifier: Apache-2.0
"""What a prepared data set depends on, as plain facts, and the key that they make."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from primus import __version__
from primus.sft.formatters import TEMPLATE, read_templates
from primus.sft.prepared.source_files import SourceFacts
from primus.sft.shards import ShardJob
from primus.sft.tokenizer import SFTTokenizer

FORMAT_VERSION = 2
"""Of what is written; raised whenever the files or what stands in them change."""

LOADED = ("tokenizer", "format")
"""The facts that `loaded_facts` gives."""

Facts = dict[str, Any]

_KEY_BYTES = 16
_LONGEST_SHOWN = 60
# What `rows` says already.
_SAID_OF_ROWS = ("source_format", "messages_field")


def key_facts(job: ShardJob, *, tokenizer: SFTTokenizer, sources: Sequence[SourceFacts]) -> Facts:
    """Everything that the bytes of a prepared data set depend on.

    Args:
        job: How rows become sequences.
        tokenizer: The tokenizer that the job loads.
        sources: The data files.

    Returns:
        Plain data, for a JSON file.
    """
    recipe = job.recipe
    return {
        "format_version": FORMAT_VERSION,
        "program_version": __version__,
        "sources": [source.to_dict() for source in sources],
        "rows": asdict(recipe.source),
        **loaded_facts(job, tokenizer=tokenizer),
        "options": {name: value for name, value in asdict(recipe.options).items() if name not in _SAID_OF_ROWS},
        "seq_length": recipe.max_seq_length,
        "outcome": job.outcome,
        "validation_fraction": job.validation_fraction,
    }


def loaded_facts(job: ShardJob, *, tokenizer: SFTTokenizer) -> Facts:
    """What of it every process that encodes loads for itself.

    Args:
        job: How rows become sequences.
        tokenizer: The tokenizer that the job loads.

    Returns:
        Plain data.
    """
    return {
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "adds_bos": tokenizer.adds_bos,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "special_tokens": dict(tokenizer.special_tokens),
        },
        "format": _format_facts(job, tokenizer),
    }


def _format_facts(job: ShardJob, tokenizer: SFTTokenizer) -> Facts:
    recipe = job.recipe
    facts: Facts = {"name": recipe.conversation_format}
    if recipe.conversation_format != TEMPLATE:
        return facts
    templates = read_templates(tokenizer, file=recipe.chat_template).by_name
    facts |= {"templates": templates, "variables": dict(recipe.chat_template_kwargs)}
    if any("strftime_now" in template for template in templates.values()):
        # The day is in the text that is trained, so tomorrow's is another data set.
        facts["date"] = datetime.now(tz=timezone.utc).astimezone().date().isoformat()
    return facts


def canonical(document: Any) -> str:
    """Plain data as JSON of which there is one form only."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} has no form in JSON")


def key_of(facts: Facts) -> str:
    """The key of a data set: a hash of its facts, 128 bits as text."""
    return hashlib.blake2b(canonical(facts).encode(), digest_size=_KEY_BYTES).hexdigest()


def differences(old: Facts, new: Facts) -> list[str]:
    """What differs between the facts of two data sets, for people.

    Args:
        old: The facts of one that is there.
        new: The facts of one that is wanted.

    Returns:
        A line for each fact that differs; none if the data sets are the same.

    Examples:
        >>> differences({"options": {"truncation": "error"}, "seq_length": 8}, {"options": {"truncation": "drop"}})
        ["options.truncation: 'error' -> 'drop'", 'seq_length: 8 -> not set']
    """
    before, after = (dict(_flat(json.loads(canonical(facts)))) for facts in (old, new))
    return [
        _difference(name, before.get(name, _ABSENT), after.get(name, _ABSENT))
        for name in sorted({*before, *after})
        if before.get(name, _ABSENT) != after.get(name, _ABSENT)
    ]


_ABSENT = object()
_SOURCES = "sources"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if name == _SOURCES:
            yield f"{_SOURCES} in order", [source["name"] for source in value]
            for source in value:
                yield f"{_SOURCES} {source['name']}", {"bytes": source["bytes"], "digest": source["digest"]}
        elif isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _difference(name: str, old: Any, new: Any) -> str:
    if name.startswith(f"{_SOURCES} ") and isinstance(old, dict) and isinstance(new, dict):
        return f"{name}: the content changed ({old['bytes']:,} bytes -> {new['bytes']:,} bytes)"
    return f"{name}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not set"
    if isinstance(value, dict) and "bytes" in value:
        return f"{value['bytes']:,} bytes"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(text):,} characters)"
