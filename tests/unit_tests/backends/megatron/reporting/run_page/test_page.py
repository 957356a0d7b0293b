# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path
from typing import Any

import pytest

from primus.backends.megatron.reporting.run_page import render_run_page, write_run_page
from primus.config.schema import TrainConfig
from primus.sft.ledger import TRAINED, Ledger, write_ledgers

EVIL = "<script>alert(1)</script>"


def lines(
    num_steps: int, *, evaluations: bool = True, sources: tuple[str, ...] = ("chat", EVIL)
) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for iteration in range(1, num_steps + 1):
        loss = 4.0 / iteration
        groups = {
            "turn": {"1": loss, "2": 1.5 * loss, "9+": 2 * loss},
            "role": {"assistant": loss, "assistant_end_of_turn": loss / 100},
            "source": dict.fromkeys(sources, loss),
        }
        told = {
            f"loss_by_{dimension}": {name: {"loss": value, "targets": 7} for name, value in each.items()}
            for dimension, each in groups.items()
        }
        made.append(
            {
                "iteration": iteration, "lm_loss": loss, **told, "grad_norm": 1.0, "learning_rate": 1e-3,
                "consumed_samples": 8 * iteration, "supervised_tokens": 21, "tokens": 90, "fill": 0.9,
                "tokens_per_second": 1234.0, "step_time_s": 0.25, "batch_hash": "0" * 16,
            }
        )  # fmt: skip
        if evaluations and iteration % 2 == 0:
            by_group = {f"validation_{name}": value for name, value in told.items()}
            made.append({"iteration": iteration, "validation_loss": loss, **by_group, "consumed_samples": 0})
    return made


def ledger_of(*, bad: int) -> dict[str, Any]:
    ledger = Ledger()
    ledger.record(TRAINED, origin="a.jsonl:1")
    for number in range(bad):
        ledger.record("bad:role", origin=f"{EVIL}.jsonl:{number + 2}")
    return ledger.to_dict()


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.split("</style>")[1]).split())


def test_the_page_tells_the_losses_and_what_was_trained() -> None:
    page = render_run_page(lines(8), ledgers={"train": ledger_of(bad=7)}, facts={"Model": EVIL}, title="my run")
    text = text_of(page)
    assert "Training loss 0.5000 of the last step Validation loss 0.5000 the best of 4" in text
    assert "Steps 8 64 sequences" in text
    assert "Tokens per second 1,234" in text
    # The rows of the turns: training, targets, validation, targets.
    assert "9+ 1.0000 7 1.0000 7" in text
    assert "the end of its turns 0.0050 7 0.0050 7" in text
    assert "train: 8 rows, 0 conversations used" in text
    assert "bad:role quarantined 7 87.5%" in text
    assert "jsonl:2" in text
    assert "and 2 more" in text
    # Loss and learning rate; two for each of turns, roles and sources; gradient, speed and fill.
    assert page.count('role="img"') == 2 + 6 + 3


def test_text_from_outside_stays_text() -> None:
    page = render_run_page(lines(4), ledgers={EVIL: ledger_of(bad=1)}, facts={EVIL: EVIL}, title=EVIL)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6


@pytest.mark.parametrize(("num_steps", "evaluations"), [(0, False), (1, False), (2, True), (400, False)])
def test_a_page_is_written_of_any_run(num_steps: int, evaluations: bool) -> None:
    page = render_run_page(
        lines(num_steps, evaluations=evaluations, sources=("chat",)), ledgers={}, facts={}, title="short"
    )
    assert ("No step was logged." in page) == (num_steps == 0)
    assert ("mean of the last 10 lines" in page) == (num_steps == 400)
    assert "nan" not in text_of(page)
    assert "The folder has no ledger." in page


def test_the_page_of_a_run_is_made_of_the_files_in_its_folder(tmp_path: Path) -> None:
    trainer = {
        "num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4, "seq_length": 32,
        "global_batch_size": 8, "lr": 0.01, "tokenizer_model": "tok",
        "sft_sources": [{"dataset_name": "a.jsonl"}, {"dataset_name": ["b.jsonl", "c.jsonl"]}],
    }  # fmt: skip
    config = TrainConfig(exp_name="run", workspace=tmp_path, trainer=trainer)
    logs = config.exp_dir / "logs"
    logs.mkdir(parents=True)
    (logs / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(4)))
    write_ledgers({"train": Ledger()}, path=logs / "ledger.json")
    write_run_page(config, path=logs / "report.html")
    text = text_of((logs / "report.html").read_text(encoding="utf-8"))
    assert "Data a.jsonl, b.jsonl+c.jsonl Tokenizer tok" in text
    assert "2 layers, hidden_size 32, 4 heads, float32" in text
    assert "train: 0 rows" in text
    assert sorted(path.name for path in logs.iterdir()) == ["ledger.json", "metrics.jsonl", "report.html"]
