# SPDX-License-Identifier: Apache-2.0
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from primus.backends.megatron.training_result import TrainingResult
from primus.errors import CheckpointError

DISTRIBUTED = {"use_distributed_optimizer": True}
OVERLAPPED = {**DISTRIBUTED, "overlap_grad_reduce": True, "overlap_param_gather": True}


def checkpoint_of(result: TrainingResult, iteration: int) -> Path:
    return result.checkpoint.with_name(f"iter_{iteration:07d}")


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("optimizer", [{}, DISTRIBUTED, OVERLAPPED], ids=["whole", "distributed", "overlapped"])
def test_a_resumed_run_repeats_the_undisturbed_one_to_the_last_bit(
    tiny: ModuleType, tmp_path: Path, optimizer: dict[str, bool], bf16: bool
) -> None:
    keys = {**optimizer, "bf16": bf16, "weight_decay": 0.1}
    whole = tiny.run_tiny(tiny.tiny_config(tmp_path / "whole", save_interval=3, **keys))
    resumed = tiny.run_tiny(tiny.tiny_config(tmp_path / "resumed", load=checkpoint_of(whole, 3), **keys))
    for name in ("lm_loss", "grad_norm", "learning_rate"):
        assert tiny.read_losses(resumed, name) == tiny.read_losses(whole, name)[3:]
    assert resumed.validation_loss == whole.validation_loss


def test_a_run_with_dropout_resumes_with_the_same_dropout(tiny: ModuleType, tmp_path: Path) -> None:
    keys = {"hidden_dropout": 0.2, "attention_dropout": 0.2}
    whole = tiny.run_tiny(tiny.tiny_config(tmp_path / "whole", save_interval=5, **keys))
    resumed = tiny.run_tiny(tiny.tiny_config(tmp_path / "resumed", load=checkpoint_of(whole, 5), **keys))
    assert tiny.read_losses(resumed) == tiny.read_losses(whole)[5:]


@pytest.mark.parametrize("optimizer", [{}, DISTRIBUTED], ids=["whole", "distributed"])
@pytest.mark.parametrize(("saved", "resumed"), [(16, 128), (128, 16)], ids=["more", "fewer"])
def test_a_run_goes_on_with_another_number_of_rows_that_stand_for_no_token(
    tiny: ModuleType, tmp_path: Path, optimizer: dict[str, bool], saved: int, resumed: int
) -> None:
    # As many as the tensor-parallel size asks for.
    keys = {**optimizer, "train_iters": 6, "weight_decay": 0.1}
    first = {**keys, "save_interval": 3, "make_vocab_size_divisible_by": saved}
    whole = tiny.run_tiny(tiny.tiny_config(tmp_path / "whole", **first))
    second = {**keys, "load": checkpoint_of(whole, 3), "make_vocab_size_divisible_by": resumed}
    found = tiny.run_tiny(tiny.tiny_config(tmp_path / "resumed", **second))
    sizes = [json.loads((run.checkpoint / "run.json").read_text())["padded_vocab_size"] for run in (whole, found)]
    assert sizes == [{16: 64, 128: 128}[each] for each in (saved, resumed)]
    for name in ("lm_loss", "grad_norm"):
        assert tiny.read_losses(found, name) == pytest.approx(tiny.read_losses(whole, name)[3:], abs=2e-6)


def test_the_same_command_completes_the_metrics_file(tiny: ModuleType, tmp_path: Path) -> None:
    whole = tiny.run_tiny(tiny.tiny_config(tmp_path, save_interval=4))
    losses, evaluations = (tiny.read_losses(whole, name) for name in ("lm_loss", "validation_loss"))
    shutil.rmtree(checkpoint_of(whole, 8))
    resumed = tiny.run_tiny(tiny.tiny_config(tmp_path))
    assert resumed.metrics_path == whole.metrics_path
    assert tiny.read_losses(resumed) == losses
    assert tiny.read_losses(resumed, "validation_loss") == evaluations
    assert tiny.read_losses(resumed, "consumed_samples")[-1] == 64


@pytest.mark.parametrize("optimizer", [{}, DISTRIBUTED])
@pytest.mark.parametrize("bf16", [False, True])
def test_fine_tuning_starts_at_step_0_from_the_loaded_weights(
    tiny: ModuleType, tmp_path: Path, optimizer: dict[str, bool], bf16: bool
) -> None:
    before = tiny.run_tiny(tiny.tiny_config(tmp_path / "before", bf16=bf16, **optimizer))
    # Other data, another batch size and another kind of optimizer state are all allowed.
    keys = {"global_batch_size": 4, "lr": 0.0, "bf16": bf16, "train_iters": 2, "finetune": True}
    after = tiny.run_tiny(
        tiny.tiny_config(tmp_path / "after", load=before.checkpoint.parent, **keys),
        train=tiny.TinySequences(10, seed=9),
    )
    assert after.iteration == 2
    assert after.validation_loss == pytest.approx(before.validation_loss, abs=1e-6)
    assert tiny.read_losses(after, "consumed_samples")[:2] == [4, 8]


def test_fine_tuning_moves_on_from_the_loaded_weights_and_not_from_random_ones(
    tiny: ModuleType, tmp_path: Path
) -> None:
    """The optimizer has copies of the weights that it was made with; they must have been replaced."""
    before = tiny.run_tiny(tiny.tiny_config(tmp_path / "before", bf16=True, **DISTRIBUTED))
    keys = {"load": before.checkpoint, "finetune": True, "train_iters": 1, "lr": 1e-5, "lr_warmup_iters": 0}
    after = tiny.run_tiny(tiny.tiny_config(tmp_path / "after", bf16=True, **DISTRIBUTED, **keys))
    assert after.validation_loss == pytest.approx(before.validation_loss, abs=0.01)


def test_hyper_parameters_are_those_of_the_configuration(tiny: ModuleType, tmp_path: Path) -> None:
    whole = tiny.run_tiny(tiny.tiny_config(tmp_path / "whole", save_interval=4))
    keys = {"lr": 0.5, "min_lr": 0.25, "lr_decay_style": "constant", "load": checkpoint_of(whole, 4)}
    for optimizer in ({}, DISTRIBUTED):
        source = whole
        if optimizer:
            source = tiny.run_tiny(tiny.tiny_config(tmp_path / "whole2", save_interval=4, **optimizer))
        keys["load"] = checkpoint_of(source, 4)
        resumed = tiny.run_tiny(tiny.tiny_config(tmp_path / f"resumed{len(optimizer)}", **keys, **optimizer))
        assert tiny.read_losses(resumed, "learning_rate") == [0.5] * 4


def test_the_folder_says_what_its_weights_belong_to(tiny: ModuleType, tmp_path: Path) -> None:
    result = tiny.run_tiny(tiny.tiny_config(tmp_path, train_iters=3, bf16=True, sft_add_bos=True))
    facts = json.loads((result.checkpoint / "run.json").read_text())
    assert facts["format_version"] == 1
    assert (facts["iteration"], facts["consumed_samples"]) == (3, 24)
    assert (facts["vocab_size"], facts["padded_vocab_size"]) == (61, 64)
    assert facts["model"]["num_query_groups"] == 2
    assert (facts["params_dtype"], facts["add_bos"]) == ("bfloat16", True)
    assert facts["tokenizer_model"] == "tiny"
    assert facts["data_fingerprint"] == tiny.TinySequences(40).fingerprint
    # Nothing in it runs code when it is read.
    torch.load(result.checkpoint / "common.pt", weights_only=True)


def test_a_checkpoint_of_another_run_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    saved = tiny.run_tiny(tiny.tiny_config(tmp_path / "saved", train_iters=2)).checkpoint
    for keys, message in (
        ({"num_layers": 3}, "was saved with num_layers 2, this run has 3; use the saved value"),
        ({"num_layers": 3, "finetune": True}, "was saved with num_layers 2"),
        ({"seed": 1}, "was saved with seed 1234, this run has 1; to continue"),
        (DISTRIBUTED, "was saved with use_distributed_optimizer False, this run has True; to continue"),
    ):
        with pytest.raises(CheckpointError, match=message):
            tiny.run_tiny(tiny.tiny_config(tmp_path / "other", load=saved, **keys))


@pytest.mark.parametrize("damage", ["common.pt", ".metadata", "__0_0.distcp", "metadata.json"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tiny: ModuleType, tmp_path: Path, damage: str, how: str) -> None:
    saved = tiny.run_tiny(tiny.tiny_config(tmp_path / "saved", train_iters=1)).checkpoint
    file = saved / damage
    file.unlink() if how == "missing" else file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(
        CheckpointError, match=rf"iter_0000001: is damaged \({re.escape(damage)} .*\); load another checkpoint"
    ) as caught:
        tiny.run_tiny(tiny.tiny_config(tmp_path / "other", load=saved))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_cannot_be_written_is_said_so(tiny: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"file: the checkpoint of step 1 cannot be written \(.*Error: .*\); check the free space"
    with pytest.raises(CheckpointError, match=message):
        tiny.run_tiny(tiny.tiny_config(tmp_path, train_iters=1, save=tmp_path / "file"))
