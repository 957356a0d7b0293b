# SPDX-License-Identifier: Apache-2.0
"""A working folder with one good configuration in it, `run.yaml`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

from primus.config import load_config
from primus.errors import ConfigError

Write: TypeAlias = Callable[[str, str], Path]
Problems: TypeAlias = Callable[..., Sequence[str]]

RUN = """\
exp_name: test
modules:
  post_trainer:
    config: sft_trainer.yaml
    model: tiny_llama.yaml
    overrides:
      tokenizer_model: tokenizer
      sft_dataset_name: train.jsonl
      seq_length: 64
      global_batch_size: 4
      lr: 1e-3
      train_iters: 10
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Write:
    """Write a file of the working folder."""

    def write_file(name: str, text: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


@pytest.fixture
def problems(folder: Path) -> Problems:
    """Load a configuration that must not load, and return what is wrong with it."""

    def load(*overrides: str, path: str = "run.yaml") -> Sequence[str]:
        with pytest.raises(ConfigError) as caught:
            load_config(path, overrides=overrides)
        return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]

    return load
