# SPDX-License-Identifier: Apache-2.0
"""`primus checkpoint import-hf` and `export-hf`, and a run that the folder cannot start."""

from pathlib import Path

import pytest

from primus.cli.checkpoint import export_hf, import_hf
from primus.cli.train import run as train
from primus.errors import CheckpointError, ConfigError
from tests.unit_tests.backends.megatron.huggingface.pretrained_models import write_model
from tests.unit_tests.backends.megatron.huggingface.test_import_hf import same_bits, weights_in

RUN = """\
exp_name: test
modules:
  post_trainer:
    config: sft_trainer.yaml
    overrides:
      hf_path: hf
      sft_dataset_name: ${PRIMUS_EXAMPLES}/data/demo-validation.jsonl
      sft_truncation: drop
      seq_length: 512
      global_batch_size: 4
      lr: 1e-3
      train_iters: 10
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model in `hf`."""
    write_model(tmp_path / "hf", "qwen 3")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_goes_in_and_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_hf.run(["hf", "checkpoints"]) == 0
    assert capsys.readouterr().out == (
        "checkpoint: checkpoints/iter_0000000\n"
        "in a run: model: checkpoints/model.yaml, load: checkpoints, finetune: true\n"
    )
    assert export_hf.run(["checkpoints", "back"]) == 0
    assert capsys.readouterr().out == "Hugging Face folder: back\n"
    assert same_bits(weights_in(folder / "hf"), weights_in(folder / "back"))
    with pytest.raises(CheckpointError, match=r"--adapter: the checkpoint has no adapters"):
        export_hf.run(["checkpoints", "adapter", "--adapter"])


def test_what_is_no_model_is_refused_before_anything_is_imported(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: is no folder; download the model"):
        import_hf.run(["nowhere", "checkpoints"])


def test_a_run_is_planned_from_the_folder_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.yaml").write_text(RUN)
    assert train(["--config", "run.yaml", "--dry-run"]) == 0
    assert "1,030" in capsys.readouterr().out


def test_a_run_without_its_weights_is_refused_before_data_are_read(folder: Path) -> None:
    (folder / "run.yaml").write_text(RUN.replace("demo-validation", "no-such-data"))
    (folder / "hf/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"^hf: holds no model.safetensors"):
        train(["--config", "run.yaml"])
