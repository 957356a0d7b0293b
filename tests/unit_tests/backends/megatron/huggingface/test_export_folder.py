# SPDX-License-Identifier: Apache-2.0
"""An export appears where it was asked for, and replaces nothing but an export."""

import shutil
from pathlib import Path

import pytest

from primus.backends.megatron.huggingface.export import export_hf
from primus.backends.megatron.huggingface.export_folder import check_output, keep_sources, written_beside
from primus.backends.megatron.huggingface.import_hf import import_hf
from primus.errors import CheckpointError
from tests.unit_tests.backends.megatron.huggingface.pretrained_models import write_model


def write(output: Path, text: str) -> None:
    with written_beside(output) as folder:
        (folder / "config.json").write_text(text)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "nowhere").symlink_to("disk/new")
    for text in ("one", "two"):
        write(tmp_path / "link", text)
        write(tmp_path / "nowhere", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real/config.json").read_text() == text
        assert (tmp_path / "nowhere").is_symlink()
        assert (tmp_path / "disk/new/config.json").read_text() == text
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "real", "link", "nowhere"}
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["new"]


def test_the_folder_that_one_is_in_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for text in ("one", "two"):
        write(Path(), text)
        assert Path("config.json").read_text() == (tmp_path / "here/config.json").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_force_replaces_an_export_and_nothing_that_looks_like_one(tmp_path: Path) -> None:
    write(tmp_path / "export", "one")
    check_output(tmp_path / "export", force=True)
    (tmp_path / "model").mkdir()
    shutil.copyfile(tmp_path / "export/config.json", tmp_path / "model/config.json")
    with pytest.raises(
        CheckpointError, match=r"model: is no export \(it has no \.primus-export\), so --force does not"
    ):
        check_output(tmp_path / "model", force=True)


def test_force_does_not_replace_what_an_export_is_made_from(tmp_path: Path) -> None:
    write_model(tmp_path / "hf", "qwen 3")
    import_hf(tmp_path / "hf", output=tmp_path / "checkpoints")
    export_hf(tmp_path / "checkpoints", output=tmp_path / "base")
    import_hf(tmp_path / "base", output=tmp_path / "again")
    with pytest.raises(CheckpointError, match=r"base: holds .*/base, which the run was made from; name another folder"):
        export_hf(tmp_path / "again", output=tmp_path / "base", force=True)
    export_hf(tmp_path / "again", output=tmp_path / "other", tokenizer=str(tmp_path / "hf"))
    export_hf(tmp_path / "again", output=tmp_path / "other", tokenizer=str(tmp_path / "hf"), force=True)
    with pytest.raises(CheckpointError, match=r"out: holds out/tokenizer.json, which the run was made from"):
        keep_sources(Path("out"), sources=[Path("elsewhere"), Path("out/tokenizer.json")])
