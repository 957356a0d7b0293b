# SPDX-License-Identifier: Apache-2.0
"""The report as a page: one file that asks for nothing, with all text as text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from primus.chat.conversations import SourceOptions
from primus.sft.recipe import Recipe
from primus.sft.stats import StatsReport, build_report, choose_bands, compare, gather
from primus.sft.stats.drawing import short
from primus.sft.stats.page import render_page

EXAMPLES = Path(__file__).parents[4] / "examples" / "data"
EVIL = "<script>alert(1)</script>"


def report(path: Path) -> StatsReport:
    recipe = Recipe(
        files=(path,), source=SourceOptions(), tokenizer=str(EXAMPLES / "demo-tokenizer" / "tokenizer.json")
    )
    gathered = gather(recipe, bands=choose_bands(0.8), num_workers=1)
    compare(gathered, num_workers=1)
    return build_report(gathered)


class Tags(HTMLParser):
    """The tags of a page, and whether each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(report(EXAMPLES / "demo-heldout.jsonl"))


def test_the_page_is_well_formed_and_asks_for_nothing(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    names = {tag for tag, _ in tags.seen}
    assert not names & {"script", "img", "iframe", "object", "form", "base"}
    policy = next(a["content"] for tag, a in tags.seen if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert [a["href"] for tag, a in tags.seen if tag == "link"] == ["data:,"]
    assert all((a["href"] or "").startswith("#") for tag, a in tags.seen if tag == "a")
    targets = {a.get("id") for _, a in tags.seen}
    assert {(a["href"] or "")[1:] for tag, a in tags.seen if tag == "a"} <= targets
    assert not re.search(r"https?:|//[a-z]|url\(", page)


def test_every_plot_is_sound_and_says_what_it_shows(page: str) -> None:
    images = [image for image in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "aria-hidden" not in image]
    assert len(images) == 9
    for image in images:
        root = ET.fromstring(image)
        assert root.get("aria-label")
        for element in root.iter():
            for name in ("x", "y", "width", "height", "x1", "x2", "y1", "y2"):
                assert float(element.get(name, "0")) >= -1, (root.get("aria-label"), element.attrib)


@pytest.mark.parametrize("row", [
    {"messages": [{"role": "user", "content": EVIL}, {"role": "assistant", "content": f"```{EVIL}\nx", EVIL: 1}]},
    {EVIL: 1},
])  # fmt: skip
def test_text_from_the_data_stays_text(tmp_path: Path, row: object) -> None:
    folder = tmp_path / "<b>"
    folder.mkdir()
    path = folder / f"{EVIL.replace('/', '')}.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    page = render_page(report(path))
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not {tag for tag, _ in tags.seen} & {"script", "b>"}
    assert "&lt;script&gt;" in page
    assert EVIL not in page


@pytest.mark.parametrize("rows", [
    [{"nothing": 1}],
    [{"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2", "weight": 0}]}],
    [{"messages": [{"role": "assistant", "content": ""}]}],
])  # fmt: skip
def test_little_to_show_is_shown(tmp_path: Path, rows: list[object]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tags = Tags()
    tags.feed(render_page(report(path)))
    assert tags.open == []


@pytest.mark.parametrize(("number", "words"), [(0, "0"), (999, "999"), (1000, "1k"), (1500, "1.5k"), (123456, "123k")])
def test_axes_have_short_numbers(number: int, words: str) -> None:
    assert short(number) == words
