# SPDX-License-Identifier: Apache-2.0
"""Data sets that are prepared once and opened in a moment.

    <folder>/                         named by its key in a cache, or as a person likes
      manifest.json                   what the data set is made from, and what each file must be; sealed by a digest
      ledger.json                     what became of every row, with where those stand that are not used
      quarantine.jsonl                rows that are not valid, if they are set aside and there are any
      train/shard-00000/              and validation/ where rows are held out
        tokens.bin                    token ids, int32, one sequence behind another
        tokens.idx                    Megatron's index of them: each sequence is a document
        arrays.safetensors            everything else of `SequenceArrays`

A shard is made from 64 batches of rows and from nothing else, so it is the same whoever makes it, and a data set has
the same bytes whatever the number of processes and however often they were killed. A folder has its name only when all
of it is on the disk; until then it is `<folder>.partial`, and `<folder>.lock` says which process works on it.
"""

from primus.sft.prepared.cache import CACHE_NAME, cache_dir_of, explain, prepared_folder
from primus.sft.prepared.dataset import PreparedDataset, open_prepared, read_ledger
from primus.sft.prepared.key import differences
from primus.sft.prepared.manifest import Manifest, read_manifest
from primus.sft.prepared.planning import Plan, plan_preparation
from primus.sft.prepared.preparation import (
    Progress,
    ShardPool,
    early_pool,
    find_prepared,
    prepare,
    prepare_or_wait,
)
from primus.sft.prepared.run_data import jobs_of_run
from primus.sft.prepared.source_files import check_sources
from primus.sft.prepared.source_memo import are_remembered
from primus.sft.prepared.verification import verify

__all__ = [
    "CACHE_NAME",
    "Manifest",
    "Plan",
    "PreparedDataset",
    "Progress",
    "ShardPool",
    "are_remembered",
    "cache_dir_of",
    "check_sources",
    "differences",
    "early_pool",
    "explain",
    "find_prepared",
    "jobs_of_run",
    "open_prepared",
    "plan_preparation",
    "prepare",
    "prepare_or_wait",
    "prepared_folder",
    "read_ledger",
    "read_manifest",
    "verify",
]
