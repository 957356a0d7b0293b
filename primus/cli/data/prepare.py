# SPDX-License-Identifier: Apache-2.0
"""`primus data prepare`: data files as training sequences on disk, once for all runs that are alike."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

from primus.cli.data.request import add_request_arguments, build_recipe, num_workers, requested_run
from primus.cli.logs import set_up_logging
from primus.cli.parsing import CommandParser
from primus.cli.progress import RowProgress
from primus.config.schema import TrainConfig
from primus.errors import ConfigError
from primus.sft.options import BadRows, Truncation
from primus.sft.prepared import (
    CACHE_NAME,
    Manifest,
    Plan,
    Progress,
    ShardPool,
    are_remembered,
    cache_dir_of,
    check_sources,
    early_pool,
    explain,
    find_prepared,
    jobs_of_run,
    plan_preparation,
    prepare,
    prepared_folder,
    read_ledger,
)
from primus.sft.shards import ShardJob
from primus.sft.sources import TRAIN_SPLIT

_DESCRIPTION = """Tokenize conversations once, on all cores, for every run that trains on them: Megatron's token files
and beside them what of each token is trained. A run finds what was prepared with the same files, tokenizer and options.
A command that was killed goes on where it was when it is repeated."""
_EXAMPLES = """
primus data prepare tiny-multiturn-sft.yaml
primus data prepare tiny-multiturn-sft.yaml seq_length=512 --explain
"""
# With the YAML file of a run these are keys.
_KEYS = {
    "tokenizer": "tokenizer_model",
    "format": "sft_conversation_format",
    "chat_template": "sft_chat_template",
    "seq_length": "seq_length",
    "truncation": "sft_truncation",
    "bad_rows": "sft_bad_rows",
    "validation_fraction": "sft_validation_fraction",
    "cache_dir": "sft_cache_dir",
}


def run(arguments: Sequence[str]) -> int:
    """Run `primus data prepare`.

    Args:
        arguments: The words after `primus data prepare`.

    Returns:
        The exit code.
    """
    options = _parser().parse(arguments)
    set_up_logging(verbose=False)
    config = requested_run(options)
    cache_dir, jobs = _of_files(options) if config is None else _of_run(config, options)
    if options.out is not None and len(jobs) > 1:
        raise ConfigError(
            f"--out: {options.out} is one folder, but the run has {len(jobs)} data sets ({', '.join(jobs)}); leave it"
            " away, and the cache has them"
        )
    for name, job in jobs.items():
        if len(jobs) > 1:
            print(f"{name} data:")
        if options.ray is not None and not options.explain:
            job.recipe.build().refuse_unfit()
            _prepare_on_ray(job, options.ray, lambda plan: options.out or prepared_folder(cache_dir, plan.key))
            continue
        with ExitStack() as stack:
            pool = None
            check_sources(job.recipe.files)
            if not options.explain and _is_new(job, cache_dir, options.out):
                pool = early_pool(job, num_workers=num_workers(options))
            if pool is not None:
                stack.enter_context(pool)
            plan = plan_preparation(job, cache_dir=cache_dir if options.out is None else None, on_message=_say)
            plan.encoder.refuse_unfit()
            folder = options.out or prepared_folder(cache_dir, plan.key)
            if options.explain:
                print("\n".join(explain(plan.facts, folder)))
            else:
                _prepare(plan, folder, num_workers=num_workers(options), pool=pool)
    return 0


def _is_new(job: ShardJob, cache_dir: Path, out: Path | None) -> bool:
    """Whether there is probably no such data set yet."""
    return not (are_remembered(job.recipe.files, cache_dir) if out is None else out.exists())


def _parser() -> CommandParser:
    parser = CommandParser("data prepare", description=_DESCRIPTION, examples=_EXAMPLES)
    add_request_arguments(parser)
    group = parser.add_argument_group("what is prepared, with data files")
    group.add_argument("--truncation", choices=get_args(Truncation), help="conversations that are too long (error)")
    group.add_argument("--bad-rows", choices=get_args(BadRows), help="rows that are not valid (error)")
    group.add_argument("--validation-fraction", type=float, metavar="F", help="share of the rows to hold out (0)")
    group = parser.add_argument_group("where")
    group.add_argument("--out", type=Path, metavar="DIR", help="the folder of the data set; without it, the cache")
    group.add_argument("--cache-dir", type=Path, metavar="DIR", help="the cache, for data files (output/prepared)")
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="prepare on a Ray cluster: auto, ray://HOST:PORT, or local for one of this machine; all its machines see"
        " the files and the folder under the same paths",
    )
    group.add_argument("--explain", action="store_true", help="say what is there and what differs, and do no more")
    return parser


def _of_files(options: argparse.Namespace) -> tuple[Path, dict[str, ShardJob]]:
    recipe = build_recipe(options)
    if recipe.max_seq_length is None:
        raise ConfigError("--seq-length: is missing; give the positions of a training sequence")
    fraction = 0.0 if options.validation_fraction is None else options.validation_fraction
    if not 0 <= fraction < 1:
        raise ConfigError(f"--validation-fraction: is {fraction}, not at least 0 and below 1; give a share of the rows")
    chosen = {name: value for name in ("truncation", "bad_rows") if (value := vars(options)[name]) is not None}
    recipe = replace(recipe, options=replace(recipe.options, **chosen))
    cache_dir = options.cache_dir or TrainConfig.model_fields["workspace"].default / CACHE_NAME
    return cache_dir, {TRAIN_SPLIT: ShardJob(recipe, validation_fraction=fraction)}


def _of_run(config: TrainConfig, options: argparse.Namespace) -> tuple[Path, dict[str, ShardJob]]:
    said = [name for name in _KEYS if vars(options)[name] is not None]
    if said:
        raise ConfigError(
            *(
                f"--{name.replace('_', '-')}: with the YAML file of a run it is the key {_KEYS[name]}; give"
                f" {_KEYS[name]}={vars(options)[name]}"
                for name in said
            )
        )
    return cache_dir_of(config), jobs_of_run(config.trainer, seq_length=config.trainer.seq_length)


def _prepare(plan: Plan, folder: Path, *, num_workers: int, pool: ShardPool | None) -> None:
    if (manifest := find_prepared(plan, folder)) is not None:
        print("\n".join([f"{folder}: is prepared already", *_content_lines(manifest)]))
        return
    started_s = time.monotonic()
    with _shown_progress(sum(source.num_bytes for source in plan.sources)) as show:
        manifest = prepare(plan, folder, num_workers=num_workers, pool=pool, on_progress=show, on_message=_say)
    _print_summary(plan, manifest, folder, duration_s=time.monotonic() - started_s)


def _prepare_on_ray(job: ShardJob, address: str, find_folder: Callable[[Plan], Path]) -> None:
    from primus.sft.prepared.ray_cluster import RayPreparation

    started_s = time.monotonic()
    cluster = RayPreparation(address, on_message=_say)
    num_bytes = sum(file.stat().st_size for file in job.recipe.files if file.is_file())
    with cluster.connected(), _shown_progress(num_bytes) as show:
        plan, manifest = cluster.prepare(job, find_folder, on_progress=show)
    _print_summary(plan, manifest, find_folder(plan), duration_s=time.monotonic() - started_s)


@contextmanager
def _shown_progress(total_bytes: int) -> Iterator[Callable[[Progress], None]]:
    num_rows = 0
    with RowProgress("prepared", total_bytes=total_bytes) as bar:

        def show(progress: Progress) -> None:
            nonlocal num_rows
            bar.advance(progress.num_rows - num_rows, bytes_done=progress.num_bytes)
            num_rows = progress.num_rows

        yield show


def _print_summary(plan: Plan, manifest: Manifest, folder: Path, *, duration_s: float) -> None:
    rate = f"{sum(source.num_bytes for source in plan.sources) / 1e6 / duration_s:.1f} MB/s"
    print(f"{folder}: prepared {manifest.ledger['num_rows']:,} rows in {duration_s:.1f} s ({rate})")
    print("\n".join([*_content_lines(manifest), *read_ledger(folder).lines()]))


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _content_lines(manifest: Manifest) -> list[str]:
    return [
        f"  {split}: {manifest.count(split, 'num_sequences'):,} sequences, {manifest.count(split, 'num_tokens'):,}"
        f" tokens, of which {manifest.count(split, 'num_targets'):,} are trained"
        for split in manifest.splits
    ]
