# SPDX-License-Identifier: Apache-2.0
"""Everything that is written and shown of a run while it goes on, on its first rank."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from primus.backends.megatron.reporting.metrics import Curves, Metrics, metrics_writer
from primus.backends.megatron.reporting.progress import reporter
from primus.backends.megatron.reporting.tensorboard_curves import tensorboard_curves
from primus.backends.megatron.reporting.wandb_curves import wandb_curves
from primus.config.schema import TrainConfig


@contextmanager
def recorded(
    config: TrainConfig, *, is_first_rank: bool, start: int, train_iters: int, is_evaluated_again: bool = False
) -> Iterator[Callable[[Metrics], None]]:
    """Write metrics down and show them, on the first rank; on the others do neither.

    Args:
        config: The run.
        is_first_rank: Whether this process is the first rank.
        start: Steps that were made before.
        train_iters: Steps of the run.
        is_evaluated_again: Whether the evaluation after step `start` is made now.

    Yields:
        What takes the metrics.
    """
    if not is_first_rank:
        yield lambda _: None
        return
    with ExitStack() as stack:
        curves = [stack.enter_context(each) for each in _curves(config, start=start)]
        path = config.exp_dir / "logs" / "metrics.jsonl"
        writer = stack.enter_context(
            metrics_writer(path, start=start, curves=curves, is_evaluated_again=is_evaluated_again)
        )
        shown = stack.enter_context(reporter(start=start, train_iters=train_iters))

        def show(metrics: Metrics) -> None:
            writer.write(metrics)
            shown.show(metrics)

        yield show


def _curves(config: TrainConfig, *, start: int) -> Iterator[AbstractContextManager[Curves]]:
    trainer = config.trainer
    if trainer.tensorboard:
        yield tensorboard_curves(config.exp_dir / "tensorboard", start=start)
    if trainer.wandb_project is not None:
        yield wandb_curves(
            project=trainer.wandb_project,
            name=trainer.wandb_exp_name or config.exp_name,
            folder=trainer.wandb_save_dir or config.exp_dir,
            settings=trainer.model_dump(mode="json"),
            id_file=config.exp_dir / "logs" / "wandb_run_id",
            resumes=start > 0,
        )
