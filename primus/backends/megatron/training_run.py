# SPDX-License-Identifier: Apache-2.0
"""The steps of a run: its model, optimizer and data in this process, and what is done with them in which order.

Shapes: G sequences of a global batch.
"""

import dataclasses
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from primus.backends.megatron.agreement.weights import require_equal_replicas
from primus.backends.megatron.blame import describe_broken_validation
from primus.backends.megatron.checkpoint.folder import RunFacts, read_run
from primus.backends.megatron.checkpoint.saving import CheckpointSaver
from primus.backends.megatron.checkpoint.start import Start
from primus.backends.megatron.checkpoint.state import load_checkpoint
from primus.backends.megatron.data.batches import IntArray, MicroBatch, SequenceDataset
from primus.backends.megatron.data.loading import AHEAD_PER_WORKER, MicroBatchLoader
from primus.backends.megatron.distributed import Process, seed_dropout, seed_weights
from primus.backends.megatron.evaluation import evaluate, parameters_gathered
from primus.backends.megatron.huggingface.start import load_pretrained
from primus.backends.megatron.model.gpt import build_model
from primus.backends.megatron.optimizer import build_optimizer, build_scheduler
from primus.backends.megatron.planning.layout import num_steps, width_multiple
from primus.backends.megatron.reporting.metrics import (
    EvaluationMetrics,
    Metrics,
    StepMetrics,
)
from primus.backends.megatron.step import StepOutcome, TrainingStep
from primus.backends.megatron.stopping import StopRequest, stop_signals_noted
from primus.backends.megatron.training_result import TrainingResult
from primus.backends.megatron.utilization import UtilizationMeter, log_memory_estimate
from primus.config.schema import TrainConfig, TrainerConfig
from primus.errors import TrainingError
from primus.sft.order import SequenceOrder
from primus.sft.streaming import IndexedStream

logger = logging.getLogger("primus")


class TrainingRun:
    """The model, its optimizer and its data in this process, and the steps that are made with them."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        process: Process,
        train: SequenceDataset | IndexedStream,
        validation: SequenceDataset | None,
        facts: RunFacts,
        start: Start,
    ) -> None:
        trainer = config.trainer
        self._config = config
        self._trainer = trainer
        self._process = process
        self._train = train
        self._validation = validation
        self._facts = facts
        self._start = start
        self._newest_checkpoint = start.folder
        self._stream = train if isinstance(train, IndexedStream) else None
        global_batch, self.train_iters = _steps(trainer, train)
        # Each batch is asked for twice: when it is loaded ahead, and when it is trained.
        self._global_batch = lru_cache(maxsize=2 + AHEAD_PER_WORKER * trainer.num_workers)(global_batch)
        if process.rank == 0:
            log_memory_estimate(
                trainer, vocab_size=facts.vocab_size, device=process.device, world_size=process.world_size
            )
        seed_weights(trainer.seed)
        self._model = build_model(
            trainer,
            padded_vocab_size=facts.padded_vocab_size,
            device=process.device,
            vocab_size=facts.vocab_size,
        )
        self._optimizer = build_optimizer(trainer, self._model)
        self._scheduler = build_scheduler(trainer, self._optimizer, train_iters=self.train_iters)
        self._step = TrainingStep(
            model=self._model,
            optimizer=self._optimizer,
            scheduler=self._scheduler,
            dataset=train,
            micro_batch_size=trainer.micro_batch_size,
            pad_to_multiple_of=width_multiple(trainer),
            device=process.device,
        )
        self._meter = UtilizationMeter(
            trainer, vocab_size=facts.vocab_size, device=process.device, world_size=process.world_size
        )

    def load(self) -> int:
        """Load what the run starts from; all ranks call it together.

        Returns:
            The number of steps that were made.

        Raises:
            CheckpointError: If it can't be loaded.
            TrainingError: If ranks that must have the same weights have different ones.
        """
        start = self._load()
        is_drawn = self._start.folder is None and self._trainer.hf_path is None
        require_equal_replicas(
            self._model,
            when=f"step {start}",
            remedy=(
                "their devices draw different random numbers, so take devices of one kind, or load weights"
                if is_drawn
                else "give all machines the same files to start from"
            ),
            among_tensor_ranks=True,
        )
        return start

    def _load(self) -> int:
        if self._start.folder is None:
            if self._trainer.hf_path is not None:
                load_pretrained(
                    Path(self._trainer.hf_path),
                    model=self._model,
                    optimizer=self._optimizer,
                    keys=self._facts.model,
                    vocab_size=self._facts.vocab_size,
                )
            return 0
        start = load_checkpoint(
            self._start.folder,
            model=self._model,
            optimizer=self._optimizer,
            run=self._facts,
            weights_only=self._start.weights_only,
        )
        self._scheduler.step(increment=start)
        return start

    def train(self, start: int, show: Callable[[Metrics], None]) -> TrainingResult:
        """Make the steps from `start` to the last one, or to the one after which a signal stops all ranks."""
        logs = self._config.exp_dir / "logs"
        if start >= self.train_iters:
            logger.warning("step %d is reached already, and the run has %d; nothing to do", start, self.train_iters)
        saver = CheckpointSaver(
            self._save_dir,
            keep=self._trainer.most_recent_k,
            in_background=self._trainer.async_save,
            on_saved=self._note_saved,
        )
        with self._loader(start) as loader, saver, stop_signals_noted() as request:
            try:
                progress = self._make_steps(start, show, loader=loader, saver=saver, request=request)
            except TrainingError:
                # All ranks are here, and what is being written is of a step before.
                saver.finish()
                raise
            saver.finish()
        outcome, validation_loss, iteration, stopped_by = progress
        assert self._newest_checkpoint is not None, "a step was made, or there was none left to make"
        return TrainingResult(
            iteration=iteration,
            lm_loss=None if outcome is None else outcome.lm_loss,
            validation_loss=validation_loss,
            checkpoint=self._newest_checkpoint,
            metrics_path=logs / "metrics.jsonl",
            loss_curve_path=logs / "loss_curve.png",
            report_path=logs / "report.html",
            stopped_by=stopped_by,
        )

    def _make_steps(
        self,
        start: int,
        show: Callable[[Metrics], None],
        *,
        loader: MicroBatchLoader,
        saver: CheckpointSaver,
        request: StopRequest,
    ) -> "_Progress":
        outcome, clock = None, _Clock()
        validation_loss = self._evaluate(start, show) if self.owes_evaluation else None
        for index in range(start, self.train_iters):
            iteration, is_last = index + 1, index + 1 == self.train_iters
            batch_G = self._global_batch(index)
            tokens = int(self._train.num_positions_of(batch_G).sum())
            with clock.measuring(tokens=tokens):
                outcome = self._make_step(batch_G, loader, iteration=iteration)
            if _is_due(iteration, self._trainer.check_weight_hash_across_dp_replicas_interval):
                self._compare_replicas(iteration)
            clock.flops += self._meter.flops_of(self._train, batch_G, num_targets=outcome.num_targets)
            if is_last or iteration % self._trainer.log_interval == 0:
                show(self._step_metrics(outcome, iteration=iteration, clock=clock))
                clock = _Clock()
            saver.poll()
            stop = None if is_last else request.agreed(self._process.device)
            is_evaluated = is_last or _is_due(iteration, self._trainer.eval_interval)
            if is_evaluated and stop is None:
                validation_loss = self._evaluate(iteration, show)
            if stop is not None or is_last or _is_due(iteration, self._trainer.save_interval):
                # Who sent the signal may not wait for an evaluation, so it is made when the run goes on.
                self._save(iteration, loader=loader, saver=saver, owes_evaluation=is_evaluated and stop is not None)
            if stop is not None:
                saver.finish()
                logger.warning("step %d: %s came; the run stops here, and goes on from there", iteration, stop.name)
                return _Progress(outcome, validation_loss, iteration, stop)
        return _Progress(outcome, validation_loss, max(start, self.train_iters), None)

    def _loader(self, start: int) -> MicroBatchLoader:
        batches = map(self._global_batch, range(start, self.train_iters))
        return MicroBatchLoader(
            self._train,
            chain.from_iterable(map(self._step.own_micro_batches, batches)),
            pad_to_multiple_of=width_multiple(self._trainer),
            device=self._process.device,
            num_workers=self._trainer.num_workers,
        )

    @property
    def _save_dir(self) -> Path:
        return self._trainer.save or self._config.exp_dir / "checkpoints"

    def _make_step(self, batch_G: IntArray, micro_batches: Iterator[MicroBatch], *, iteration: int) -> StepOutcome:
        if _draws_random_numbers(self._trainer):
            seed_dropout(self._trainer.seed, iteration=iteration)
        outcome = self._step.run(batch_G, micro_batches, iteration=iteration)
        if outcome.grad_norm is None:
            logger.warning("step %d: the gradient overflowed, so the step changed no weight", iteration)
        return outcome

    def _compare_replicas(self, iteration: int) -> None:
        with parameters_gathered(self._model):
            require_equal_replicas(
                self._model,
                when=f"step {iteration}",
                remedy="test the devices there, and go on from a checkpoint of a step where they were equal",
            )

    def _step_metrics(self, outcome: StepOutcome, *, iteration: int, clock: "_Clock") -> StepMetrics:
        utilization = self._meter.utilization(flops=clock.flops, seconds=clock.seconds)
        return StepMetrics(
            iteration=iteration,
            lm_loss=outcome.lm_loss,
            loss_by_turn=outcome.breakdown["turn"],
            loss_by_role=outcome.breakdown["role"],
            loss_by_source=outcome.breakdown["source"],
            grad_norm=outcome.grad_norm,
            learning_rate=outcome.learning_rate,
            consumed_samples=iteration * self._trainer.global_batch_size,
            supervised_tokens=outcome.num_targets,
            tokens=clock.newest_tokens,
            fill=clock.newest_tokens / outcome.num_places,
            tokens_per_second=clock.tokens / clock.seconds,
            step_time_s=clock.seconds / clock.steps,
            tflops_per_device=utilization.tflops_per_device,
            mfu=utilization.mfu,
            peak_memory_bytes=utilization.peak_memory_bytes,
            batch_hash=outcome.batch_hash,
        )

    def _evaluate(self, iteration: int, show: Callable[[Metrics], None]) -> float | None:
        if self._validation is None:
            return None
        found = evaluate(
            self._model,
            self._validation,
            at_most=self._trainer.eval_iters * self._trainer.global_batch_size,
            micro_batch_size=self._trainer.micro_batch_size,
            pad_to_multiple_of=width_multiple(self._trainer),
            device=self._process.device,
        )
        if not math.isfinite(found.loss):
            blame = describe_broken_validation(
                self._model,
                self._validation,
                found.broken_E,
                pad_to_multiple_of=width_multiple(self._trainer),
                device=self._process.device,
            )
            raise TrainingError(f"step {iteration}: the validation loss is {found.loss}{blame}")
        show(
            EvaluationMetrics(
                iteration=iteration,
                validation_loss=found.loss,
                validation_loss_by_turn=found.breakdown["turn"],
                validation_loss_by_role=found.breakdown["role"],
                validation_loss_by_source=found.breakdown["source"],
                consumed_samples=iteration * self._trainer.global_batch_size,
            )
        )
        return found.loss

    @property
    def owes_evaluation(self) -> bool:
        """Whether the run begins with the evaluation that a signal came before."""
        folder = self._start.continues
        return folder is not None and read_run(folder).owes_evaluation

    def _save(self, iteration: int, *, loader: MicroBatchLoader, saver: CheckpointSaver, owes_evaluation: bool) -> None:
        facts = dataclasses.replace(
            self._facts,
            iteration=iteration,
            consumed_samples=iteration * self._trainer.global_batch_size,
            owes_evaluation=owes_evaluation,
        )
        # The checkpoint's writers are forked.
        loader.settle()
        with parameters_gathered(self._model):
            saver.save(
                self._model,
                self._optimizer,
                run=facts,
                data_state=None if self._stream is None else json.dumps(self._stream.state(iteration)),
            )

    def _note_saved(self, folder: Path, iteration: int) -> None:
        self._newest_checkpoint = folder
        logger.info("step %d | saved %s", iteration, folder)


class _Progress(NamedTuple):
    """What the steps came to."""

    outcome: StepOutcome | None
    validation_loss: float | None
    iteration: int
    stopped_by: signal.Signals | None


def _steps(trainer: TrainerConfig, train: SequenceDataset | IndexedStream) -> tuple[Callable[[int], IntArray], int]:
    """What gives the sequences of a step, and the number of steps."""
    if isinstance(train, IndexedStream):
        assert trainer.train_iters is not None, "a rule of the configuration"
        return train.global_batch, trainer.train_iters
    order = SequenceOrder(
        train.num_positions_of(np.arange(len(train))) if trainer.sft_length_bucket else np.zeros(len(train), np.int8),
        seed=trainer.seed,
        global_batch_size=trainer.global_batch_size,
        length_bucket=trainer.sft_length_bucket,
        sources=train.shares,
    )
    return order.global_batch, num_steps(trainer, num_sequences=order.sequences_per_epoch)


def _draws_random_numbers(trainer: TrainerConfig) -> bool:
    lora_dropout = trainer.lora.dropout if trainer.lora.enabled else 0.0
    return bool(trainer.attention_dropout or trainer.hidden_dropout or lora_dropout)


def _is_due(iteration: int, interval: int) -> bool:
    return interval > 0 and iteration % interval == 0


class _Clock:
    """Time and tokens of the steps since the last line of the metrics file."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens = 0
        self.newest_tokens = 0
        self.flops = 0
        self.steps = 0

    @contextmanager
    def measuring(self, *, tokens: int) -> Iterator[None]:
        """Count the block as a step that trains so many tokens."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start
        self.tokens += tokens
        self.newest_tokens = tokens
        self.steps += 1
