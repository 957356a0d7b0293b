# SPDX-License-Identifier: Apache-2.0
"""What is to be prepared: the job, its sources as they are now, and the key that they make."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from primus.sft.prepared.key import Facts, key_facts, key_of
from primus.sft.prepared.source_files import (
    SourceFacts,
    Stamp,
    check_sources,
    describe_sources,
    stamps_of,
)
from primus.sft.prepared.source_memo import describe_sources_once
from primus.sft.recipe import Encoder
from primus.sft.shards import ShardJob

Describe = Callable[[Sequence[Path]], list[SourceFacts]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be prepared, and its key.

    Attributes:
        job: How rows become sequences.
        sources: The data files, as they are now.
        stamps: What the file system said of them before they were read.
        strict_stamps: The same, with everything that can have changed.
        facts: Everything that the data set depends on.
        encoder: The formatter and the tokenizer, loaded.
        key: The hash of the facts.
    """

    job: ShardJob
    sources: tuple[SourceFacts, ...]
    stamps: tuple[Stamp, ...]
    strict_stamps: tuple[Stamp, ...]
    facts: Facts
    encoder: Encoder
    key: str


def plan_preparation(
    job: ShardJob,
    *,
    cache_dir: Path | None = None,
    on_message: Callable[[str], None] = lambda _: None,
    describe: Describe = describe_sources,
    encoder: Encoder | None = None,
) -> Plan:
    """Find out what a data set depends on: reads all its sources, and loads the tokenizer.

    Args:
        job: How rows become sequences.
        cache_dir: Where the content of sources that have not changed is remembered; None reads them all.
        on_message: Is told which process reads them while this one waits.
        describe: Reads them, where nothing is remembered.
        encoder: What the job's recipe builds, if it is there already.

    Returns:
        The plan.

    Raises:
        DataError: If a source can't be read, or can't be read twice.
        TokenizerError: If the tokenizer can't be used.
    """
    files = job.recipe.files
    check_sources(files)
    stamps, strict_stamps = (tuple(stamps_of(files, is_strict=is_strict)) for is_strict in (False, True))
    with ThreadPoolExecutor(1) as thread:
        sources = (
            thread.submit(describe, files)
            if cache_dir is None
            else thread.submit(describe_sources_once, files, cache_dir, on_message=on_message)
        )
        encoder = encoder or job.recipe.build()
        facts = key_facts(job, tokenizer=encoder.tokenizer, sources=sources.result())
    return Plan(
        job=job,
        sources=tuple(sources.result()),
        stamps=stamps,
        strict_stamps=strict_stamps,
        facts=facts,
        encoder=encoder,
        key=key_of(facts),
    )
