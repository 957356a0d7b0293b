# SPDX-License-Identifier: Apache-2.0
"""The page of a run in a browser."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from primus.backends.megatron.reporting.run_page import render_run_page
from primus.sft.ledger import TRAINED, Ledger
from tests.unit_tests.browser.conftest import PHONE, BrowserPage

EVIL = "<script>alert(1)</script>"


def told(loss: float) -> dict[str, Any]:
    groups = {
        "turn": {str(number): loss * (1 + number / 8) for number in range(1, 9)} | {"9+": 2.5 * loss},
        "role": {"assistant": loss, "assistant_end_of_turn": loss / 300},
        "source": {"a-source-with-quite-a-long-name": loss, EVIL: loss / 2, "math": loss / 3},
    }
    return {
        f"loss_by_{dimension}": {name: {"loss": value, "targets": 12_345_678} for name, value in each.items()}
        for dimension, each in groups.items()
    }


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a long run with many turns and sources."""
    lines: list[dict[str, Any]] = []
    for iteration in range(10, 12_010, 10):
        loss = 0.2 + 9 / math.sqrt(iteration) * (1 + 0.2 * math.sin(iteration))
        lines.append(
            {
                "iteration": iteration, "lm_loss": loss, **told(loss), "grad_norm": 1 + loss, "learning_rate": 1e-5,
                "consumed_samples": 64 * iteration, "supervised_tokens": 21, "tokens": 90, "fill": 0.9, "mfu": 0.41,
                "tokens_per_second": 123_456.0, "step_time_s": 0.25, "batch_hash": "0" * 16,
            }
        )  # fmt: skip
        if iteration % 1000 == 0:
            by_group = {f"validation_{name}": value for name, value in told(loss).items()}
            lines.append({"iteration": iteration, "validation_loss": loss, **by_group, "consumed_samples": 0})
    ledger = Ledger()
    for number in range(9):
        ledger.record(TRAINED if number < 3 else "overlong", origin=f"{'long-name-' * 9}{EVIL}.jsonl:{number + 1}")
    ledgers = {"train": ledger.to_dict()}
    page = tmp_path_factory.mktemp("run") / "report.html"
    facts = {"Data": "x" * 300, "Model": "32 layers"}
    page.write_text(render_run_page(lines, ledgers=ledgers, facts=facts, title=f"run {EVIL}"), encoding="utf-8")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_clean_and_readable(open_page: Callable[..., BrowserPage], run_page: Path, scheme: str) -> None:
    page = open_page(run_page, scheme=scheme)
    page.assert_clean()
    assert page.overflow == 0
    assert page.run("return document.scripts.length") == 0
    assert len(page.find_all("figure svg[role=img]")) == 2 + 6 + 4
    # Each curve has a colour of its own, and the page has one that differs from its ink.
    strokes = page.run(
        "return [...document.querySelectorAll('svg .line:not(.faint)')].map(p => getComputedStyle(p).stroke)"
    )
    assert len(set(strokes)) >= 9 + 2 + 3
    assert "none" not in strokes
    back, ink = page.run("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (back, ink)]
    assert abs(brightness[0] - brightness[1]) > 400
    assert (brightness[0] > brightness[1]) == (scheme == "light")


def test_a_phone_shows_it_without_scrolling_sideways(open_page: Callable[..., BrowserPage], run_page: Path) -> None:
    page = open_page(run_page, size=PHONE)
    assert page.overflow == 0
    page.assert_clean()


def test_no_curve_leaves_its_picture(open_page: Callable[..., BrowserPage], run_page: Path) -> None:
    page = open_page(run_page)
    outside = page.run(
        """
        return [...document.querySelectorAll('figure svg[role=img]')].filter(svg => {
          const whole = svg.getBoundingClientRect();
          return [...svg.querySelectorAll('path, rect, text')].some(part => {
            const box = part.getBoundingClientRect();
            return box.left < whole.left - 1 || box.right > whole.right + 1
              || box.top < whole.top - 1 || box.bottom > whole.bottom + 1;
          });
        }).map(svg => svg.getAttribute('aria-label'));
        """
    )
    assert outside == []
