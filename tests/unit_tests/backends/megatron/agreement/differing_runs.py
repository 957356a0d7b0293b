# SPDX-License-Identifier: Apache-2.0
"""Runs of two ranks of which the second differs in something; as a program, one of the ranks.

What a rank has to say about each run is written to `<folder>/<rank>.json`, and to nobody else.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import megatron.core
import torch
from megatron.core import parallel_state
from safetensors.torch import load_file, save_file

from primus.backends.megatron import trainer
from primus.backends.megatron.agreement import folders
from primus.backends.megatron.agreement.failures import on_unconnected_ranks
from primus.backends.megatron.agreement.weights import require_equal_replicas
from primus.backends.megatron.checkpoint.start import started
from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.backends.megatron.model.gpt import build_model
from primus.backends.megatron.replacement import replaced
from primus.backends.megatron.step import StepOutcome, TrainingStep
from primus.backends.megatron.trainer import run_training
from primus.config.hugging_face import model_keys_of, read_hugging_face_config
from primus.errors import PrimusError
from tests.unit_tests.backends.megatron import tiny_run as tiny
from tests.unit_tests.backends.megatron.huggingface.pretrained_models import DEMO_TOKENIZER, write_model

PROCESS = this_process()
IS_SECOND = PROCESS.rank == 1
ROW = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
TENSOR = {"tensor_model_parallel_size": 2}
PIPELINE = {"pipeline_model_parallel_size": 2}
CONTEXT = {"context_parallel_size": 2}
OVERLAPPED = {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}


def some_settings(folder: Path) -> None:
    lora = {"enabled": True, "target_modules": ["linear_fc1"]} if IS_SECOND else {}
    tiny.run_tiny(tiny.tiny_config(folder, lr=0.5 if IS_SECOND else 0.01, lora=lora))


def many_settings(folder: Path) -> None:
    others: dict[str, object] = {f"lr_{name}": 3 for name in ("warmup_iters", "decay_iters")}
    others |= {f"sft_{name}": 16 for name in ("pad_to_multiple_of", "length_bucket")}
    others |= {"weight_decay": 0.1, "clip_grad": 2.0, "seed": 2, "log_interval": 3, "eval_iters": 1, "save_interval": 1}
    tiny.run_tiny(tiny.tiny_config(folder, **(others if IS_SECOND else {})))


def resuming(folder: Path) -> None:
    with started(tiny.tiny_config(folder), process=PROCESS, resume="never" if IS_SECOND else "auto"):
        pass


def software(folder: Path) -> None:
    with replaced(megatron.core, "__version__", "0.15.0" if IS_SECOND else megatron.core.__version__):
        tiny.run_tiny(tiny.tiny_config(folder))


def devices(folder: Path) -> None:
    process = dataclasses.replace(PROCESS, device=torch.device("cuda")) if IS_SECOND else PROCESS
    with started(tiny.tiny_config(folder), process=process, resume="auto"):
        pass


def own_places(folder: Path) -> None:
    """Each machine has the same files in folders of its own, loads them its own way, and sees one workspace."""
    own = folder / f"machine {PROCESS.rank}"
    write_model(own / "hf", "llama 3")
    (own / "train.jsonl").write_text(f"{ROW}\n" * 8)
    folder.joinpath(f"link {PROCESS.rank}").symlink_to(folder)
    keys = model_keys_of(read_hugging_face_config(own / "hf"), origin="hf")
    os.chdir(own)
    run_training(
        tiny.tiny_config(
            folder / f"link {PROCESS.rank}",
            **{
                **keys,
                "hf_path": "hf",
                "tokenizer_model": "hf",
                "sft_dataset_name": "train.jsonl",
                "num_workers": PROCESS.rank,
                "sft_cache_dir": own / "prepared",
                "seq_length": 64,
            },
        )
    )


def streams(folder: Path) -> None:
    """The files are the same, and their times are not."""
    own = folder / f"machine {PROCESS.rank}"
    own.mkdir(parents=True)
    (own / "train.jsonl").write_text(f"{ROW}\n" * 8)
    os.utime(own / "train.jsonl", ns=(0, 10**9 * (1 + PROCESS.rank)))
    os.chdir(own)
    keys = {"tokenizer_model": str(DEMO_TOKENIZER), "sft_dataset_name": "train.jsonl", "sft_streaming": True}
    run_training(tiny.tiny_config(folder, **keys, eval_interval=0, vocab_size=None))


def local_disks(folder: Path) -> None:
    own = folder / f"machine {PROCESS.rank}"
    own.mkdir(parents=True)
    os.chdir(own)
    with replaced(folders, "_WAIT_S", 0.3):
        tiny.run_tiny(tiny.tiny_config(Path("output")))


def local_checkpoints(folder: Path) -> None:
    os.chdir(folder.parent / "local disks" / f"machine {PROCESS.rank}")
    with replaced(folders, "_WAIT_S", 0.3):
        tiny.run_tiny(tiny.tiny_config(folder, save=Path("saved")))


def bad_row(folder: Path) -> None:
    """The second machine's file has a row that is no conversation."""
    own = folder / f"machine {PROCESS.rank}"
    own.mkdir(parents=True)
    rows = [ROW] * 8 + ["{}"] * IS_SECOND
    (own / "train.jsonl").write_text("\n".join(rows))
    os.chdir(own)
    trainer_keys = {"tokenizer_model": str(DEMO_TOKENIZER), "sft_dataset_name": "train.jsonl", "vocab_size": None}
    run_training(tiny.tiny_config(folder, **trainer_keys))


def missing_model(folder: Path) -> None:
    own = folder / f"machine {PROCESS.rank}" / "hf"
    write_model(own, "llama 3")
    if IS_SECOND:
        (own / "model.safetensors").unlink()
    os.chdir(own.parent)
    keys = model_keys_of(read_hugging_face_config(own), origin="hf")
    run_training(tiny.tiny_config(folder, **{**keys, "hf_path": "hf", "tokenizer_model": "hf"}))


def too_few_devices(folder: Path) -> None:
    with replaced(torch.cuda, "is_available", lambda: IS_SECOND), replaced(torch.cuda, "device_count", lambda: 1):
        run_training(tiny.tiny_config(folder, tokenizer_model=str(DEMO_TOKENIZER)))


def unreadable(folder: Path) -> None:
    def work() -> None:
        if IS_SECOND:
            (folder / "nothing").read_text()

    on_unconnected_ranks(work, place=PROCESS, trainer=tiny.tiny_config(folder).trainer)


def training_data(folder: Path) -> None:
    tiny.run_tiny(tiny.tiny_config(folder), train=tiny.TinySequences(44 if IS_SECOND else 40))


def validation_data(folder: Path) -> None:
    tiny.run_tiny(tiny.tiny_config(folder), validation=tiny.TinySequences(13, seed=2 if IS_SECOND else 1))


def checkpoints(folder: Path) -> None:
    """Each machine has a checkpoint of its own run, whole, under the same name."""
    for machine in range(2):
        config = tiny.tiny_config(folder / f"machine {machine}", train_iters=2, seed=machine, eval_interval=0)
        tiny.run_tiny(config, validation=None)
    os.chdir(folder / f"machine {PROCESS.rank}")
    load = Path("primus/user/tiny/checkpoints")
    tiny.run_tiny(tiny.tiny_config(folder / "run", load=load, finetune=True))


def pretrained_models(folder: Path) -> None:
    """Each machine has another model of the same sizes."""
    own = folder / f"machine {PROCESS.rank}" / "hf"
    write_model(own, "llama 3")
    if IS_SECOND:
        weights = load_file(own / "model.safetensors")
        save_file(
            {name: weight * 1.01 for name, weight in weights.items()}, own / "model.safetensors", {"format": "pt"}
        )
    os.chdir(own.parent)
    keys = model_keys_of(read_hugging_face_config(own), origin="hf")
    tiny.run_tiny(tiny.tiny_config(folder / "run", **{**keys, "hf_path": "hf"}))


def weights_at_the_start(folder: Path) -> None:
    """The pretrained weights differ where their samples do not show it."""
    with replaced(trainer, "sample_of", lambda _: "the same"):
        pretrained_models(folder)


def lost_model(folder: Path) -> None:
    """The second machine loses its model when both have looked at it."""
    own = folder / f"machine {PROCESS.rank}" / "hf"
    write_model(own, "llama 3")
    os.chdir(own.parent)
    keys = model_keys_of(read_hugging_face_config(own), origin="hf")
    if IS_SECOND:
        (own / "model.safetensors").unlink()
    tiny.run_tiny(tiny.tiny_config(folder, **{**keys, "hf_path": "hf"}))


def lost_checkpoint(folder: Path) -> None:
    """What `load` names is on the first machine only."""
    own = folder / f"machine {PROCESS.rank}"
    own.mkdir(parents=True)
    if not IS_SECOND:
        (own / "start").symlink_to(folder.parent / "checkpoints/machine 0/primus/user/tiny/checkpoints")
    os.chdir(own)
    tiny.run_tiny(tiny.tiny_config(folder, load=Path("start"), finetune=True))


def changing_data(folder: Path, **layout: object) -> None:
    """Sequence 5 changes in one token, after the data were compared."""
    data = tiny.TinySequences(40)
    if IS_SECOND:
        data.rows[5]["labels"][3] ^= 1
    tiny.run_tiny(tiny.tiny_config(folder, num_workers=0, train_iters=5, eval_interval=0, **layout), train=data)


def weights_of_replicas(
    folder: Path, *, bit: int | None, name: str, among_tensor_ranks: bool = False, **keys: object
) -> None:
    """One bit of one weight differs, or the order of its rows."""
    settings = tiny.tiny_config(folder, **keys).trainer
    with joined_processes(PROCESS, settings):
        seed_weights(settings.seed)
        model = build_model(settings, padded_vocab_size=64, device=PROCESS.device)
        require_equal_replicas(model, when="step 7", remedy="mend it", among_tensor_ranks=True)
        if IS_SECOND:
            weight = dict(model[0].module.named_parameters())[name]
            if bit is None:
                weight.data = weight.data.flip(0)
            else:
                flip(weight, bit=bit)
        require_equal_replicas(model, when="step 8", remedy="mend it", among_tensor_ranks=among_tensor_ranks)


def flip(weight: torch.Tensor, *, bit: int) -> None:
    numbers = weight.detach().view(torch.int16 if weight.element_size() == 2 else torch.int32)
    numbers.view(-1)[0] ^= 1 << bit


def faulty_device(folder: Path, **keys: object) -> None:
    """One weight of the second replica changes in one bit after the fourth step."""
    step = TrainingStep.run

    def run(self: TrainingStep, *args: Any, iteration: int, **options: Any) -> StepOutcome:
        outcome = step(self, *args, iteration=iteration, **options)
        if IS_SECOND and iteration == 4:
            flip(dict(self.model[0].module.named_parameters())["decoder.final_layernorm.weight"], bit=3)
        return outcome

    interval = {"check_weight_hash_across_dp_replicas_interval": 2}
    with replaced(TrainingStep, "run", run):
        tiny.run_tiny(tiny.tiny_config(folder, **interval, **keys))


def whole(folder: Path, **keys: object) -> None:
    """Nothing differs."""
    save = folder / "saved"
    keys = {"check_weight_hash_across_dp_replicas_interval": 1, "save": save, "load": save, **keys}
    tiny.run_tiny(tiny.tiny_config(folder, **keys))


Run = tuple[Callable[..., None], dict[str, Any]]
NORM = "decoder.layers.1.pre_mlp_layernorm.weight"
OUTPUT = "output_layer.weight"
QKV = "decoder.layers.0.self_attention.linear_qkv.weight"
RUNS: Mapping[str, Run] = {
    "settings": (some_settings, {}),
    "many settings": (many_settings, {}),
    "resuming": (resuming, {}),
    "software": (software, {}),
    "devices": (devices, {}),
    "own places": (own_places, {}),
    "streams": (streams, {}),
    "local disks": (local_disks, {}),
    "local checkpoints": (local_checkpoints, {}),
    "bad row": (bad_row, {}),
    "missing model": (missing_model, {}),
    "too few devices": (too_few_devices, {}),
    "unreadable": (unreadable, {}),
    "training data": (training_data, {}),
    "validation data": (validation_data, {}),
    "checkpoints": (checkpoints, {}),
    "pretrained models": (pretrained_models, {}),
    "weights at the start": (weights_at_the_start, {}),
    "lost model": (lost_model, {}),
    "lost checkpoint": (lost_checkpoint, {}),
    "batch, tensor": (changing_data, TENSOR),
    "batch, pipeline": (changing_data, PIPELINE),
    "batch, context": (changing_data, CONTEXT),
    "batch, data": (changing_data, {}),
    "replicas": (weights_of_replicas, {"bit": 0, "name": QKV}),
    "bf16 replicas": (weights_of_replicas, {"bit": 15, "name": QKV, "bf16": True}),
    "context replicas": (weights_of_replicas, {"bit": 31, "name": QKV, **CONTEXT}),
    "rows of replicas": (weights_of_replicas, {"bit": None, "name": QKV}),
    "tied": (weights_of_replicas, {"bit": 1, "name": OUTPUT, **PIPELINE, "untie_embeddings_and_output_weights": False}),
    "not tied": (weights_of_replicas, {"bit": 1, "name": OUTPUT, **PIPELINE}),
    "norms of tensor ranks": (weights_of_replicas, {"bit": 1, "name": NORM, "among_tensor_ranks": True, **TENSOR}),
    "norms while training": (weights_of_replicas, {"bit": 1, "name": NORM, **TENSOR}),
    "parts of tensor ranks": (weights_of_replicas, {"bit": 1, "name": QKV, "among_tensor_ranks": True, **TENSOR}),
    "parts of pipeline ranks": (weights_of_replicas, {"bit": 1, "name": QKV, "among_tensor_ranks": True, **PIPELINE}),
    "faulty device": (faulty_device, {}),
    "faulty device, distributed optimizer": (faulty_device, {"use_distributed_optimizer": True}),
    "nothing": (whole, {}),
    "nothing, distributed optimizer": (whole, OVERLAPPED),
    "nothing, tensor": (whole, {**TENSOR, "sequence_parallel": True}),
    "nothing, pipeline": (whole, {**PIPELINE, "num_layers": 4, "virtual_pipeline_model_parallel_size": 2}),
    "nothing, context": (whole, {**CONTEXT, "sft_packing": "best_fit"}),
}


def outcome_of(run: Run, folder: Path) -> list[str]:
    """The kind of the error and its lines, or nothing."""
    work, keys = run
    with ExitStack() as stack:
        stack.callback(os.chdir, Path.cwd())
        try:
            work(folder, **keys)
        except PrimusError as exc:
            return [type(exc).__name__, *exc.problems]
        except OSError as exc:
            return [type(exc).__name__, str(exc)]
    assert not parallel_state.model_parallel_is_initialized()
    return []


if __name__ == "__main__":
    root = Path(sys.argv[1])
    outcomes = {name: outcome_of(run, root / name) for name, run in RUNS.items()}
    (root / f"{PROCESS.rank}.json").write_text(json.dumps(outcomes))
