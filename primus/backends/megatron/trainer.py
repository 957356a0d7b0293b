# SPDX-License-Identifier: Apache-2.0
"""A training run, from a configuration to a trained model."""

import json
import logging
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from primus.backends.megatron.agreement.facts import require_same
from primus.backends.megatron.agreement.failures import on_all_ranks, on_unconnected_ranks
from primus.backends.megatron.agreement.samples import sample_of
from primus.backends.megatron.checkpoint.digests import read_digests
from primus.backends.megatron.checkpoint.folder import RunFacts, read_run
from primus.backends.megatron.checkpoint.start import Resume, Start, started
from primus.backends.megatron.data.batches import BatchSource, SequenceDataset
from primus.backends.megatron.data.run_data import RunData, load_run_data
from primus.backends.megatron.determinism import deterministic
from primus.backends.megatron.distributed import Process, joined_processes, place_in_run, this_process
from primus.backends.megatron.huggingface.model_folder import ModelFolder
from primus.backends.megatron.huggingface.pretrained_weights import check_pretrained
from primus.backends.megatron.planning.layout import build_layout
from primus.backends.megatron.planning.parameter_count import Vocabulary, build_vocabulary
from primus.backends.megatron.reporting.loss_curve import draw_loss_curve
from primus.backends.megatron.reporting.metrics import read_metrics
from primus.backends.megatron.reporting.recording import recorded
from primus.backends.megatron.reporting.run_page import write_run_page
from primus.backends.megatron.reporting.wandb_curves import require_wandb
from primus.backends.megatron.training_result import TrainingResult
from primus.backends.megatron.training_run import TrainingRun
from primus.config.hugging_face import read_generation, read_hugging_face_config
from primus.config.schema import ModelKeys, TrainConfig, TrainerConfig
from primus.errors import ConfigError, TrainingError
from primus.sft.formatters import TEMPLATE, read_templates
from primus.sft.streaming import IndexedStream
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer

logger = logging.getLogger("primus")


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """What training needs to know of a tokenizer."""

    name: str
    """The tokenizer's folder, file or name."""
    vocab_size: int
    """Largest id + 1."""
    adds_bos: bool
    """Whether it begins a text with BOS by itself."""
    fingerprint: str = ""
    """Hash of everything that its ids depend on; empty if it is not known."""
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    """The chat templates that conversations were rendered with, by name; none for another format."""


def run_training(config: TrainConfig, *, resume: Resume = "auto") -> TrainingResult:
    """Train a model; every process of the run calls it.

    Args:
        config: The run.
        resume: Whether it goes on from the newest checkpoint of its own folder; see `find_start`.

    Returns:
        What the run left behind.

    Raises:
        ConfigError: If no tokenizer or no data is named, or the vocabulary does not fit the model.
        DataError: If the data cannot be used.
        LayoutError: If the processes or the batch sizes do not fit together, or the processes differ in what they have.
        CheckpointError: If a checkpoint cannot be loaded or saved.
        TrainingError: If the loss is no number, or ranks differ in what they have read or in their weights.
        PrimusError: If one of these was raised on another rank before training.
    """
    place = place_in_run()
    process = on_unconnected_ranks(lambda: _checked_process(config), place=place, trainer=config.trainer)
    with started(config, process=process, resume=resume) as start:
        return _train_from(start, config, process=process)


def _checked_process(config: TrainConfig) -> Process:
    """This process, of a run that can be started on it."""
    trainer = config.trainer
    if trainer.tokenizer_model is None:
        raise ConfigError("tokenizer_model: is not set; name a tokenizer folder or file")
    if trainer.wandb_project is not None:
        require_wandb()
    if trainer.hf_path is not None:
        check_pretrained(trainer)
    process = this_process()
    build_layout(trainer, world_size=process.world_size)
    return process


def _train_from(start: Start, config: TrainConfig, *, process: Process) -> TrainingResult:
    def load() -> tuple[SFTTokenizer, RunData]:
        tokenizer = load_tokenizer(source)
        return tokenizer, load_run_data(
            config, tokenizer=tokenizer, is_first_rank=process.rank == 0, continues=start.continues
        )

    source = config.trainer.tokenizer_model
    assert source is not None, "it was looked at"
    tokenizer, data = on_unconnected_ranks(load, place=process, trainer=config.trainer)
    facts = TokenizerFacts(
        name=source,
        vocab_size=tokenizer.vocab_size,
        fingerprint=tokenizer.fingerprint,
        adds_bos=tokenizer.adds_bos and not data.writes_bos,
        chat_templates=(
            read_templates(tokenizer, file=config.trainer.sft_chat_template).by_name
            if config.trainer.sft_conversation_format == TEMPLATE
            else {}
        ),
    )
    with data.told_at_the_end(), _drawn_if_it_fails(config, process=process):
        result = train_on(
            config,
            process=process,
            train=data.train,
            validation=data.validation,
            tokenizer=facts,
            start=start,
        )
    if process.rank == 0:
        write_run_page(config, path=result.report_path)
    return result


@contextmanager
def _drawn_if_it_fails(config: TrainConfig, *, process: Process) -> Iterator[None]:
    """Write the page of what a run did before its loss became no number: one looks there for the reason."""
    try:
        yield
    except TrainingError:
        logs = config.exp_dir / "logs"
        if process.rank == 0 and read_metrics(logs / "metrics.jsonl"):
            write_run_page(config, path=logs / "report.html")
            logger.info("%s: the steps until then", logs / "report.html")
        raise


def train_on(
    config: TrainConfig,
    *,
    process: Process,
    train: SequenceDataset | IndexedStream,
    validation: SequenceDataset | None,
    tokenizer: TokenizerFacts,
    start: Start | None = None,
) -> TrainingResult:
    """Train a model on data sets that are there already; see `run_training`.

    Args:
        config: The run.
        process: This process.
        train: Training data.
        validation: Validation data, or None.
        tokenizer: What the data was tokenized with.
        start: Where the run starts; None decides it as `run_training` does.

    Returns:
        What the run left behind.
    """
    if start is None:
        with started(config, process=process, resume="auto") as found:
            return train_on(
                config, process=process, train=train, validation=validation, tokenizer=tokenizer, start=found
            )
    build_layout(config.trainer, world_size=process.world_size)
    vocabulary = build_vocabulary(
        _with_rows_of(start, config.trainer), tokenizer=tokenizer.name, num_ids=tokenizer.vocab_size
    )
    facts = _run_facts(start, config.trainer, vocabulary=vocabulary, tokenizer=tokenizer, train=train)
    with deterministic(is_on=config.trainer.deterministic_mode), joined_processes(process, config.trainer):
        _require_same_files(facts, train=train, validation=validation, start=start, trainer=config.trainer)
        run = TrainingRun(config, process=process, train=train, validation=validation, facts=facts, start=start)
        first = run.load()
        with recorded(
            config,
            is_first_rank=process.rank == 0,
            start=first,
            train_iters=run.train_iters,
            is_evaluated_again=run.owes_evaluation,
        ) as show:
            result = run.train(first, show)
    if process.rank == 0:
        draw_loss_curve(read_metrics(result.metrics_path), path=result.loss_curve_path, title=config.exp_name)
    return result


def _require_same_files(
    facts: RunFacts, *, train: BatchSource, validation: BatchSource | None, start: Start, trainer: TrainerConfig
) -> None:
    """Compare what the ranks' machines have; all ranks call it together.

    Raises:
        PrimusError: If they have different data, tokenizers, checkpoints or pretrained weights.
    """
    files: dict[str, object] = json.loads(facts.to_json())
    # Where they lie on each machine.
    del files["tokenizer_model"], files["hf_path"]
    files["names of sources"] = list(train.source_names)
    files["fingerprint of the validation data"] = None if validation is None else validation.fingerprint
    streamed: Mapping[str, object] = {}
    if isinstance(train, IndexedStream):
        del files["data_fingerprint"]
        streamed = train.source
    elif isinstance(train, Sized):
        files["training sequences"] = len(train)
    files |= on_all_ranks(lambda: _start_facts(start, trainer))
    require_same(
        {
            "give all machines the same files": files,
            "copy the files with names and times (cp -p, rsync -a), as a stream goes on only with the same": streamed,
        }
    )


def _start_facts(start: Start, trainer: TrainerConfig) -> dict[str, object]:
    """What tells the weights that a run starts from, as far as that can be seen without reading all of them."""
    if start.folder is not None:
        digests = {name: file.sha256 for name, file in read_digests(start.folder).items()}
        return {"checkpoint": start.folder.name, "files of the checkpoint": digests}
    if trainer.hf_path is not None:
        files = ModelFolder(Path(trainer.hf_path)).files
        return {"weights of hf_path": {path.name: sample_of(path) for path in files}}
    return {}


def _with_rows_of(start: Start, trainer: TrainerConfig) -> TrainerConfig:
    """The settings, with as many rows of the embedding as the checkpoint has, where the run does not say how many."""
    if start.folder is None or trainer.vocab_size is not None:
        return trainer
    return trainer.model_copy(update={"vocab_size": read_run(start.folder).vocab_size})


def _pretrained(start: Start, trainer: TrainerConfig) -> dict[str, Any]:
    """Facts of the Hugging Face model that the weights began as."""
    if start.folder is not None:
        saved = read_run(start.folder)
        # What another run has trained is that model no longer; beneath adapters it still is.
        is_same = start.continues is not None or saved.iteration == 0 or saved.lora is not None
        hf_path = saved.hf_path if is_same else None
        return {"hf_path": hf_path, "model_type": saved.model_type, "generation": saved.generation}
    if trainer.hf_path is None:
        return {}
    folder = Path(trainer.hf_path)
    model_type = read_hugging_face_config(folder).get("model_type")
    return {"hf_path": str(folder.resolve()), "model_type": model_type, "generation": read_generation(folder)}


def _run_facts(
    start: Start, trainer: TrainerConfig, *, vocabulary: Vocabulary, tokenizer: TokenizerFacts, train: BatchSource
) -> RunFacts:
    return RunFacts(
        iteration=0,
        consumed_samples=0,
        model=ModelKeys(**trainer.model_dump(include=set(ModelKeys.model_fields))),
        vocab_size=vocabulary.used,
        padded_vocab_size=vocabulary.padded,
        # A run may be exported from another folder.
        tokenizer_model=str(Path(tokenizer.name).resolve()) if Path(tokenizer.name).exists() else tokenizer.name,
        sft_conversation_format=trainer.sft_conversation_format,
        add_bos=tokenizer.adds_bos if trainer.sft_add_bos is None else trainer.sft_add_bos,
        params_dtype="bfloat16" if trainer.bf16 else "float32",
        use_distributed_optimizer=trainer.use_distributed_optimizer,
        data_fingerprint=train.fingerprint,
        seed=trainer.seed,
        global_batch_size=trainer.global_batch_size,
        sft_length_bucket=trainer.sft_length_bucket,
        chat_templates=tokenizer.chat_templates,
        sft_packing=trainer.packing,
        tokenizer_fingerprint=tokenizer.fingerprint,
        lora=trainer.lora if trainer.lora.enabled else None,
        **_pretrained(start, trainer),
    )
