# SPDX-License-Identifier: Apache-2.0
"""`primus train`: one rank, several ranks of this machine, or a plan without training."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Literal

from primus.backends.megatron.planning.layout import build_layout
from primus.cli import failures, planning_options
from primus.cli.logs import set_up_logging
from primus.cli.parsing import CommandParser, positive_int
from primus.config import load_config
from primus.config.schema import TrainConfig
from primus.errors import ConfigError

logger = logging.getLogger("primus")

_LARGE = 100_000_000
"""Weights from which a model is meant to be pretrained."""

_DESCRIPTION = """Train a model on conversations as a YAML file says. Any key of the file, and any other key of the
trainer, can be given as key=value and then wins. Under torchrun, or another launcher that sets RANK and WORLD_SIZE,
the process is one rank of the run."""
_EXAMPLES = """
primus train --config tiny-multiturn-sft.yaml --dry-run
primus train --config tiny-multiturn-sft.yaml
primus train --config tiny-multiturn-sft.yaml --nproc-per-node 2 exp_name=two_ranks train_iters=20
primus train --config tiny-multiturn-sft.yaml --plan --gpus 2 --gpu H200
"""


def run(arguments: Sequence[str]) -> int:
    """Run `primus train`.

    Args:
        arguments: The words after `primus train`.

    Returns:
        The exit code.
    """
    options = _parser().parse(arguments)
    _check(options)
    set_up_logging(verbose=options.verbose)
    config = load_config(options.config, overrides=options.overrides)
    if options.plan:
        from primus.cli.plan import print_layouts

        machine = planning_options.machine(options, config.trainer)
        print_layouts(config, world_size=_world_size(options), machine=machine, as_json=options.json)
        return 0
    if options.dry_run or failures.current_rank() is None:
        # A rank that trains looks at all that when it can tell the others.
        build_layout(config.trainer, world_size=_world_size(options))
        if config.trainer.hf_path is not None:
            from primus.backends.megatron.huggingface.pretrained_weights import check_pretrained

            check_pretrained(config.trainer)
    if not options.dry_run and (options.nproc_per_node or 1) > 1:
        return _launch(arguments, num_ranks=options.nproc_per_node)
    _warn(config)
    if options.dry_run:
        from primus.cli.dry_run import print_plan

        machine = planning_options.machine(options, config.trainer)
        print_plan(config, world_size=_world_size(options), machine=machine)
        return 0
    failures.end_with_launcher()
    return _train(config, resume=options.resume)


def _parser() -> CommandParser:
    parser = CommandParser("train", description=_DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="YAML file; a bare name is also looked for in examples/configs/"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check configuration and data, print the plan, and train nothing"
    )
    parser.add_argument(
        "--nproc-per-node", type=positive_int, metavar="N", help="start N ranks on this machine (default: this process)"
    )
    planning_options.add(parser)
    parser.add_argument(
        "--resume",
        choices=("never", "auto", "must"),
        default="auto",
        help="go on from the newest checkpoint of this run's own folder: if there is one (auto, the default), or else"
        " refuse to start (must); never refuses a folder that a run has written to",
    )
    parser.add_argument("--verbose", action="store_true", help="log more, warnings of libraries included")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration keys, as in the file")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other.

    Raises:
        ConfigError: If they do.
    """
    problems = planning_options.problems(options)
    if options.world_size is not None and options.nproc_per_node is not None:
        problems.append("--world-size: says the same as --nproc-per-node; give one of them")
    if options.nproc_per_node is not None and failures.current_rank() is not None:
        problems.append("--nproc-per-node: RANK is set, so a launcher has started this process; leave the option out")
    if problems:
        raise ConfigError(*problems)


def _world_size(options: argparse.Namespace) -> int:
    """Ranks of the run: as asked, or as a launcher says, or one."""
    return int(options.world_size or options.nproc_per_node or failures.world_size())


def _launch(arguments: Sequence[str], *, num_ranks: int) -> int:
    """Start the ranks with the same arguments, less the option that asks for them."""
    from primus.backends.megatron.launch import launch_ranks

    outcome = launch_ranks(
        [sys.executable, "-m", "primus", "train", *_without_option(arguments, "--nproc-per-node")],
        num_ranks=num_ranks,
        launcher_variable=failures.LAUNCHER_VARIABLE,
    )
    if outcome.report:
        print(outcome.report, file=sys.stderr)
    return outcome.exit_code


def _without_option(arguments: Sequence[str], option: str) -> list[str]:
    """Drop an option and its value, in either of its forms.

    Examples:
        >>> _without_option(["--n", "2", "a=1"], "--n"), _without_option(["a=1", "--n=2"], "--n")
        (['a=1'], ['a=1'])
    """
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == option:
            next(words, None)
        elif not word.startswith(f"{option}="):
            rest.append(word)
    return rest


def _train(config: TrainConfig, *, resume: Literal["never", "auto", "must"]) -> int:
    from primus.backends.megatron.trainer import run_training

    result = run_training(config, resume=resume)
    if result.stopped_by is not None:
        code = 128 + result.stopped_by
        name = result.stopped_by.name
        report = f"stopped by {name} after step {result.iteration:,}, with a checkpoint; the same command goes on"
        failures.report([report], exit_code=code)
        return code
    if not failures.current_rank():
        print("\n".join(result.lines()))
    return 0


def _warn(config: TrainConfig) -> None:
    """Say aloud what is allowed and probably not meant."""
    trainer = config.trainer
    if not trainer.sft_supervise_end_of_turn:
        logger.warning(
            "sft_supervise_end_of_turn: is off, so the token that ends a turn is never a target; the model does not"
            " learn to stop, and talks on, as both sides, until its length runs out; turn it on"
        )
    if trainer.load is None and trainer.hf_path is None:
        from primus.backends.megatron.planning.parameter_count import count_parameters

        total = count_parameters(trainer, padded_vocab_size=trainer.vocab_size or 0).total
        if total >= _LARGE:
            logger.warning(
                "load: IS NOT SET, SO ALL %.1f BILLION WEIGHTS START AT RANDOM. Fine-tuning data does not teach a"
                " model of this size its language; unless this is a test, set hf_path to a pretrained one, or load to a"
                " checkpoint of it",
                total / 1e9,
            )
