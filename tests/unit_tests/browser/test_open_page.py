# SPDX-License-Identifier: Apache-2.0
"""What the tests of pages rely on: a page that does wrong is found out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit_tests.browser.conftest import PHONE, BrowserPage


def write(path: Path, body: str) -> Path:
    path.write_text(f"<!doctype html><meta charset=utf-8><title>t</title>{body}", encoding="utf-8")
    return path


def test_a_quiet_page_is_clean(open_page: Callable[..., BrowserPage], tmp_path: Path) -> None:
    page = open_page(write(tmp_path / "page.html", "<p id=a>text</p><p hidden>more</p><script>console.log(1)</script>"))
    assert page.find("#a").text == "text"
    assert page.overflow == 0
    page.assert_clean()


@pytest.mark.parametrize(
    "body",
    [
        "<script>throw new Error('no')</script>",
        "<script>console.error('no')</script>",
        "<img src=other.png>",
        "<img src=http://127.0.0.1:9/pixel.png>",
        "<script>fetch('http://127.0.0.1:9/')</script>",
        "<script>new WebSocket('ws://127.0.0.1:9/')</script>",
        "<link rel=stylesheet href=style.css>",
        "<script>setTimeout(() => alert(1))</script>",
    ],
)
def test_a_page_that_does_wrong_is_not(open_page: Callable[..., BrowserPage], tmp_path: Path, body: str) -> None:
    page = open_page(write(tmp_path / "page.html", body))
    with pytest.raises(AssertionError):
        stay_clean(page)
    page.forget()


def stay_clean(page: BrowserPage) -> None:
    for _ in range(100):  # a request takes a moment
        page.assert_clean()


def test_a_wide_page_overflows_a_phone(open_page: Callable[..., BrowserPage], tmp_path: Path) -> None:
    page = open_page(write(tmp_path / "page.html", "<meta name=viewport content='width=device-width'>"
                           "<div style='width:500px'>wide</div>"), size=PHONE)  # fmt: skip
    assert page.overflow > 100
