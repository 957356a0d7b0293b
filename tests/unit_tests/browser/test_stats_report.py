# SPDX-License-Identifier: Apache-2.0
"""The page of `primus data stats` in a browser."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from primus.cli import main
from tests.unit_tests.browser.conftest import PHONE, BrowserPage

DATA = Path(__file__).parents[3] / "examples" / "data"
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the demo data and of rows whose text and place try to be markup."""
    folder = tmp_path_factory.mktemp("stats")
    evil = folder / f"{'very-long-name-' * 8}<script>alert(2)<.jsonl"
    messages = [{"role": "user", "content": EVIL}, {"role": "assistant", "content": f" ```{EVIL}\n" + "x" * 3000}]
    rows = [{"messages": messages}, {EVIL: 1}, {"messages": [*messages, {"role": "user", "content": "y", EVIL: 1}]}]
    evil.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page = folder / "report.html"
    sources = [str(DATA / "demo-heldout.jsonl"), str(evil)]
    tokenizer = str(DATA / "demo-tokenizer" / "tokenizer.json")
    assert main(["data", "stats", *sources, "--tokenizer", tokenizer, "--seq-length", "100", "--workers", "1",
                 "--html", str(page)]) == 0  # fmt: skip
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_opens_clean_and_readable(open_page: Callable[..., BrowserPage], report: Path, scheme: str) -> None:
    page = open_page(report, scheme=scheme)
    page.assert_clean()
    assert page.overflow == 0
    assert len(page.find_all("figure svg[role=img]")) == 9
    assert page.find("h2#lengths").text == "Lengths"
    back, ink = page.run("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (back, ink)]
    assert abs(brightness[0] - brightness[1]) > 400
    assert (brightness[0] > brightness[1]) == (scheme == "light")


def test_text_from_the_data_stays_text(open_page: Callable[..., BrowserPage], report: Path) -> None:
    page = open_page(report)
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.run("return document.scripts.length") == 0
    assert EVIL in page.run("return document.body.textContent")
    assert "<script>alert(2)<.jsonl:1" in page.run("return document.body.textContent")
    page.assert_clean()


def test_a_phone_shows_it_without_scrolling_sideways(open_page: Callable[..., BrowserPage], report: Path) -> None:
    page = open_page(report, size=PHONE)
    assert page.overflow == 0
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.overflow == 0
    smallest = page.run(
        "return Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))"
    )
    assert smallest >= 9
    page.assert_clean()


def test_no_name_on_an_axis_lies_on_another(open_page: Callable[..., BrowserPage], report: Path) -> None:
    for size in (PHONE, (1200, 900)):
        page = open_page(report, size=size)
        overlaps = page.run(
            """
            const found = [];
            for (const svg of document.querySelectorAll('figure svg[role=img]')) {
              const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
              boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
                const beside = p.left >= q.right || q.left >= p.right;
                if (!beside && p.top + 4 < q.bottom && q.top + 4 < p.bottom) found.push([a, b]);
              }));
            }
            return found;
            """
        )
        assert overlaps == []


def test_the_links_lead_to_their_sections(open_page: Callable[..., BrowserPage], report: Path) -> None:
    page = open_page(report)
    for link in page.find_all("nav a"):
        link.click()
        target = str(link.get_attribute("href")).partition("#")[2]
        top = page.run("return document.getElementById(arguments[0]).getBoundingClientRect().top", target)
        is_at_end = page.run("return innerHeight + scrollY >= document.documentElement.scrollHeight - 1")
        assert 0 <= top < 120 or is_at_end
    page.assert_clean()
