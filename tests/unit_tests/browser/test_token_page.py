# SPDX-License-Identifier: Apache-2.0
"""The page of `primus data show` in a browser: everything that can be clicked, pressed, searched and read."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from primus.chat import parse_conversation
from primus.sft.encoding import trace_conversation
from primus.sft.formatters import OpenAIMessagesFormatter
from primus.sft.tokenizer import load_tokenizer
from primus.sft.views import ConversationView, render_page, view_conversation
from tests.unit_tests.browser.conftest import PHONE, BrowserPage

Open = Callable[..., BrowserPage]

CHECKOUT = Path(__file__).parents[3]
TOKENIZER = CHECKOUT / "examples" / "data" / "demo-tokenizer"
EVIL = "<script>window.__pwned=1;alert(1)</script></script><img src=x onerror='window.__pwned=1;alert(2)'>"
SEQ_LENGTH = 250
ROWS: list[Any] = [
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "You can call me David.\n\nReally."},
     {"role": "assistant", "content": "Sure, you are David."}, {"role": "user", "content": "Who am I?"},
     {"role": "assistant", "content": "You are David.", "weight": 0.5},
     {"role": "assistant", "content": "David said that, too.", "weight": 0}],
    [{"role": "user", "content": EVIL}, {"role": "assistant", "content": f"As text: {EVIL} <|im_end|>"}],
    [{"role": "user", "content": "no answer"}],
    [{"role": "user", "content": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u202eabc\u200b \u4f60\u597d\tend"},
     {"role": "assistant", "content": "\u4f60\u597d\uff0c\u4e16\u754c \U0001f389 " + "long " * 150}],
    [{"role": "user", "content": "Who are you, Maria?"}, {"role": "assistant", "content": "I am Maria."}],
]  # fmt: skip
BAD_ROW = 2


@pytest.fixture(scope="module")
def views() -> dict[int, ConversationView]:
    """What Python makes of the rows, by index."""
    tokenizer = load_tokenizer(TOKENIZER)
    found = {}
    for index, messages in enumerate(ROWS):
        if index != BAD_ROW:
            traced = trace_conversation(
                parse_conversation({"messages": messages}, origin=f"rows.jsonl:{index + 1}"),
                formatter=OpenAIMessagesFormatter(), tokenizer=tokenizer, supervise_end_of_turn=True,
            )  # fmt: skip
            found[index] = view_conversation(traced, tokenizer=tokenizer, max_seq_length=SEQ_LENGTH)
    return found


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that the command writes."""
    folder = tmp_path_factory.mktemp("page")
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in ROWS), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "primus", "data", "show", str(source), "--tokenizer", str(TOKENIZER), "--html",
         str(folder / "page.html"), "--seq-length", str(SEQ_LENGTH)],
        check=True, capture_output=True, timeout=100,
    )  # fmt: skip
    return folder / "page.html"


def row_name(page: BrowserPage) -> str:
    return page.find("h1").text.rpartition("/")[2]


def go_to(page: BrowserPage, index: int) -> None:
    """Open a row by its address."""
    page.run(f"location.hash = '#{index + 1}'")
    wait_for(page, f"document.querySelector('h1').textContent.endsWith('rows.jsonl:{index + 1}')")


def wait_for(page: BrowserPage, script: str) -> Any:
    """What JavaScript says as soon as it is something."""

    def ask(_: object) -> Any:
        return page.run(f"return {script}")

    return WebDriverWait(page.driver, 10).until(ask)


def tokens(page: BrowserPage, selector: str = "") -> list[int]:
    """The tokens that are in the page, by their places."""
    found: list[int] = page.run(
        "return [...document.querySelectorAll('#turns .t' + arguments[0])].map(e => Number(e.dataset.t))", selector
    )
    return found


def card(page: BrowserPage) -> dict[str, str]:
    """What the card of a token says, by its names."""
    assert len(page.find_all("#card")) == 1
    facts: dict[str, str] = page.run(
        "return Object.fromEntries([...document.querySelectorAll('#card dt')]"
        ".map(e => [e.innerText, e.nextElementSibling.innerText]))"
    )
    return facts


def search(page: BrowserPage, text: str) -> str:
    """Search, and what is said about the matches."""
    page.run("const s = document.getElementById('search'); s.value = ''; document.getElementById('matches').value = ''")
    page.find("#search").send_keys(text)
    return str(
        WebDriverWait(page.driver, 10).until(lambda _: page.run("return document.getElementById('matches').value"))
    )


def test_buttons_and_keys_lead_from_row_to_row(open_page: Open, page_path: Path) -> None:
    page = open_page(page_path)
    assert (row_name(page), page.find("#where").text) == ("rows.jsonl:1", "Row 1 of 5")
    assert not page.find("#previous").is_enabled()
    page.find("#next").click()
    assert row_name(page) == "rows.jsonl:2"
    page.press("j")
    assert page.find(".problem").text.endswith("so there is nothing to train; drop the row")
    page.press("j", "j", "j")
    assert row_name(page) == "rows.jsonl:5"
    assert not page.find("#next").is_enabled()
    page.press("k")
    page.find("#previous").click()
    assert page.find("#where").text == "Row 3 of 5"
    page.find('#row-list button[data-row="1"]').click()
    assert row_name(page) == "rows.jsonl:2"
    assert page.find('[aria-current="true"] .number').text == "2"
    assert page.run("return location.hash") == "#2"
    page.assert_clean()


def test_an_address_leads_to_its_row(open_page: Open, page_path: Path) -> None:
    page = open_page(page_path)
    go_to(page, 3)
    assert page.find("#where").text == "Row 4 of 5"


def test_the_text_of_the_page_is_the_text_of_the_row(
    open_page: Open, page_path: Path, views: dict[int, ConversationView]
) -> None:
    page = open_page(page_path)
    for index, view in views.items():
        go_to(page, index)
        shown = page.run("return [...document.querySelectorAll('#turns .t:not(.part)')].map(e => e.textContent)")
        expected = [token.own_text if token.end > token.start else token.text for token in view.tokens()]
        assert [re.sub(r"[\u200b\u200d\u202e]", "", text) for text in expected if text] == [
            re.sub(r"ZWSP|RLO|ZWJ|\u200d", "", text) for text in shown
        ]
        assert tokens(page, ".trained") == [token.index for token in view.tokens() if token.weight]
        assert tokens(page, ".trained.other") == [token.index for token in view.tokens() if token.weight not in (0, 1)]
        assert tokens(page, ".control") == [token.index for token in view.tokens() if token.kind == "control"]
        assert tokens(page, ".out") == [token.index for token in view.tokens() if token.is_cut]
        facts = [element.text for element in page.find_all(".stats dd")]
        assert facts[:2] == [str(view.num_tokens), str(view.num_trained)]
        assert bool(page.find_all(".cut")) == (view.cut is not None)


@pytest.mark.parametrize("way", ["hover", "focus", "click"])
def test_the_card_of_a_token_says_what_python_says(
    open_page: Open, page_path: Path, views: dict[int, ConversationView], way: str
) -> None:
    page = open_page(page_path)
    for index in (0, 3):
        go_to(page, index)
        view = views[index]
        every = list(view.tokens())
        for token in (every[0], every[1], *every[20:80:9], every[-1]):
            element = page.find(f'#turns .t[data-t="{token.index}"]')
            page.run("arguments[0].scrollIntoView({block: 'center'})", element)
            if way == "hover":
                page.hover(element)
            else:
                page.run(f"arguments[0].{way}()", element)
            facts = card(page)
            section = view.sections[token.section]
            assert facts["token"] == f"{token.index} (0 to {view.num_tokens - 1})"
            assert facts["id"] == str(token.id)
            assert facts["characters"] == f"[{token.start}, {token.end})"
            assert facts["turn"] == f"{section.turn}, {section.role}"
            assert facts["trained"] == (f"yes, weight {token.weight:g}" if token.weight else "no, weight 0")
            if token.predicted_at is None:
                assert facts["predicted"].startswith("never")
            else:
                before = every[token.predicted_at]
                assert facts["target of" if token.weight else "label of"].startswith(f"position {before.index}, after")
                assert facts["target of" if token.weight else "label of"].endswith(f"id {before.id}")
            follower = every[token.index + 1] if token.index + 1 < len(every) else None
            if follower is not None and not follower.is_cut:
                said = f"id {follower.id}, " + (f"weight {follower.weight:g}" if follower.weight else "not trained")
                assert facts["predicts"].endswith(said)
            else:
                assert facts["predicts"].startswith("nothing")
            if token.bytes is not None:
                assert facts["bytes"].startswith(token.bytes.hex(" ").upper())
            if way == "click":
                page.find("#card button").click()
                assert not page.find_all("#card button")


def test_a_card_can_be_closed(open_page: Open, page_path: Path) -> None:
    page = open_page(page_path)
    page.find('#turns .t[data-t="3"]').click()
    assert page.find_all("#card button")
    page.hover(page.find('#turns .t[data-t="9"]'))
    assert card(page)["token"].startswith("3 ")
    page.press(Keys.ESCAPE)
    assert not page.find_all("#card")


def test_arrows_walk_through_the_tokens_and_tab_passes_by(
    open_page: Open, page_path: Path, views: dict[int, ConversationView]
) -> None:
    page = open_page(page_path)
    here = "return Number(document.activeElement.dataset.t)"
    page.run("document.getElementById('filter-weight').focus()")
    page.press(Keys.TAB)
    assert page.run(here) == 0
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert page.run(here) == 1
    assert card(page)["token"].startswith("1 ")
    section = views[0].sections[0]
    page.press(Keys.END)
    assert page.run(here) == section.last - 1
    page.press(Keys.HOME)
    assert page.run(here) == section.first
    page.press(Keys.ARROW_DOWN)
    down = page.run(here)
    assert down > section.first
    page.press(Keys.ARROW_UP)
    assert page.run(here) == section.first
    page.press(" ")
    assert page.find_all("#card button")
    page.press(Keys.TAB)
    assert page.run("return document.activeElement.matches('.t')") is False
    assert len(page.run("return [...document.querySelectorAll('#turns [tabindex=\"0\"]')]")) == 1


def test_keys_lead_to_trained_stretches(open_page: Open, page_path: Path, views: dict[int, ConversationView]) -> None:
    page = open_page(page_path)
    weights = views[0].weights_T
    begins = [t for t in range(1, len(weights)) if weights[t] > 0 and weights[t - 1] == 0]
    here = "return Number(document.activeElement.dataset.t)"
    page.press("t")
    assert page.run(here) == begins[0]
    page.press("t")
    assert page.run(here) == begins[1]
    page.press("T")
    assert page.run(here) == begins[0]


def test_filters_leave_what_they_ask_for(open_page: Open, page_path: Path, views: dict[int, ConversationView]) -> None:
    page = open_page(page_path)
    every = list(views[0].tokens())
    role = {token.index: views[0].sections[token.section].role for token in every}
    turn = {token.index: views[0].sections[token.section].turn for token in every}
    weight = Select(page.find("#filter-weight"))
    assert [option.text for option in weight.options] == ["all", "trained", "context (0)", "exactly 0.5", "exactly 1"]
    for choice, keep in (
        ("trained", [t.index for t in every if t.weight]), ("context (0)", [t.index for t in every if not t.weight]),
        ("exactly 0.5", [t.index for t in every if t.weight == 0.5]), ("all", [t.index for t in every]),
    ):  # fmt: skip
        Select(page.find("#filter-weight")).select_by_visible_text(choice)
        assert tokens(page) == keep
    page.find('[data-role="assistant"]').click()
    assert tokens(page) == [t for t in role if role[t] == "assistant"]
    page.find('[data-role="user"]').click()
    assert tokens(page) == [t for t in role if role[t] in ("assistant", "user")]
    Select(page.find("#filter-turn")).select_by_value("2")
    assert tokens(page) == [t for t in turn if turn[t] == 2]
    assert page.find("#shown").text == f"{len(tokens(page))} of {len(every)} tokens"
    Select(page.find("#filter-turn")).select_by_value("0")
    assert tokens(page) == []
    assert page.find(".nothing").text == "No token of this row passes the filter."
    page.find("#clear").click()
    assert tokens(page) == [t.index for t in every]
    Select(page.find("#filter-weight")).select_by_value("trained")
    page.find("#next").click()
    assert tokens(page) == [t.index for t in views[1].tokens() if t.weight]


def test_search_counts_matches_and_leads_to_them(
    open_page: Open, page_path: Path, views: dict[int, ConversationView]
) -> None:
    page = open_page(page_path)
    count = sum(view.text.lower().count("david") for view in views.values())
    assert count > 3
    assert search(page, "dAVID") == f"1 / {count}"
    places = []
    for number in range(1, count + 1):
        assert page.find("#matches").text == f"{number} / {count}"
        now = tokens(page, ".found.now")
        assert "David" in "".join(token.text for token in views[0].tokens(now[0], now[-1] + 1))
        places.append(now[0])
        page.press(Keys.ENTER)
    assert places == sorted(set(places))
    assert page.find("#matches").text == f"1 / {count}"
    page.find("#previous-match").click()
    page.find("#next-match").click()
    page.find("#next-match").click()
    assert page.find("#matches").text == f"2 / {count}"
    assert search(page, "Maria") == "1 / 2"
    assert row_name(page) == "rows.jsonl:5"
    assert page.find("#row-list .found").text == "2"
    assert search(page, "nowhere at all") == "none"
    assert tokens(page, ".found") == []


def test_search_finds_token_ids_and_text_over_several_tokens(
    open_page: Open, page_path: Path, views: dict[int, ConversationView]
) -> None:
    page = open_page(page_path)
    token_id = int(views[3].ids_T[-4])
    count = sum(int((view.ids_T == token_id).sum()) for view in views.values())
    assert search(page, f"#{token_id}") == f"1 / {count}"
    view = views[3]
    assert search(page, "\u597d\uff0c\u4e16\u754c \U0001f389 lo") == "1 / 1"
    start = view.text.index("\u597d\uff0c")
    end = start + len("\u597d\uff0c\u4e16\u754c \U0001f389 lo")
    assert tokens(page, ".found.now") == [t.index for t in view.tokens() if t.start < end and t.end > start]


def test_search_looks_only_at_what_the_filter_leaves(
    open_page: Open, page_path: Path, views: dict[int, ConversationView]
) -> None:
    page = open_page(page_path)
    Select(page.find("#filter-weight")).select_by_value("trained")
    trained = sum("David" in token.text for token in views[0].tokens() if token.weight)
    assert search(page, "David") == f"1 / {trained}"


def test_the_text_of_a_message_is_never_markup(open_page: Open, page_path: Path) -> None:
    page = open_page(page_path)
    page.press("j")
    assert row_name(page) == "rows.jsonl:2"
    text = page.run("return document.getElementById('turns').textContent")
    assert text.count(EVIL) == 2
    assert page.run("return document.querySelectorAll('#turns script, #turns img').length") == 0
    page.find("#search").send_keys(EVIL)
    page.hover(page.find_all("#turns .t")[8])
    time.sleep(0.3)
    assert page.run("return window.__pwned === undefined") is True
    page.assert_clean()


def test_the_policy_holds_back_what_would_come_from_outside(open_page: Open, page_path: Path) -> None:
    page = open_page(page_path)
    page.run("const i = document.createElement('img'); i.src = 'missing.png'; document.body.append(i)")
    with pytest.raises(AssertionError, match="has been blocked"):
        page.assert_clean()
    page.forget()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_system_and_its_button(open_page: Open, page_path: Path, scheme: str) -> None:
    page = open_page(page_path, scheme=scheme)
    other = {"light": "dark", "dark": "light"}[scheme]
    theme = "return document.documentElement.dataset.theme"
    back = "return getComputedStyle(document.body).backgroundColor"
    first = page.run(back)
    assert page.run(theme) == scheme
    page.find("#theme").click()
    assert page.run(theme) == other
    assert page.run(back) != first
    page.press("d")
    assert page.run(back) == first


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(open_page: Open, page_path: Path, scheme: str) -> None:
    page = open_page(page_path, scheme=scheme)
    for index in range(len(ROWS)):
        go_to(page, index)
        assert page.run(CONTRASTS) == []


# WCAG 2.2, success criterion 1.4.3: 4.5 to 1, of every text with the colour behind it.
CONTRASTS = """
const parse = (color) => (color.match(/[\\d.]+/g) || []).map(Number);
const light = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const color = parse(getComputedStyle(e).backgroundColor);
    if (color.length === 3 || color[3] === 1) return color;
  }
  return [255, 255, 255];
};
const bad = new Set();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('script, :disabled')) continue;
  const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(behind(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) bad.add(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
}
return [...bad];
"""


def test_whitespace_is_visible_until_it_is_not(open_page: Open, page_path: Path) -> None:
    page = open_page(page_path)
    mark = "return getComputedStyle(document.querySelector('#turns .s'), '::before').content"
    assert "\u00b7" in page.run(mark)
    assert page.find("#whitespace").get_attribute("aria-pressed") == "true"
    page.find("#whitespace").click()
    assert page.run(mark) == "none"
    page.press("w")
    assert "\u00b7" in page.run(mark)


def test_help_lists_the_keys(open_page: Open, page_path: Path) -> None:
    page = open_page(page_path)
    page.press("?")
    keys = {element.text for element in page.find_all("dialog kbd")}
    assert {"j", "k", "t", "T", "n", "N", "w", "d", "r", "/", "?", "Esc", "Space"} <= keys
    page.press(Keys.ESCAPE)
    assert not page.find_all("dialog")
    page.find("#help").click()
    page.find("#close-help").click()
    assert not page.find_all("dialog")


def test_a_phone_needs_no_sideways_scrolling(open_page: Open, page_path: Path) -> None:
    page = open_page(page_path, size=PHONE)
    for row in range(len(ROWS)):
        assert page.overflow <= 0, row
        if row != BAD_ROW:
            page.run("document.querySelector('#turns .t').click()")
            box = page.find("#card").rect
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE[0]
            page.press(Keys.ESCAPE)
        page.press("j")
    assert not page.find_all("#row-list")
    page.find("#where").click()
    assert page.overflow <= 0
    page.find('#row-list button[data-row="0"]').click()
    assert row_name(page) == "rows.jsonl:1"
    assert not page.find_all("#row-list")
    page.press("?")
    assert page.overflow <= 0


def test_fifty_long_rows_are_quick(open_page: Open, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    words = [message["content"] for messages in ROWS[:2] for message in messages if message["role"] == "user"]
    messages = [
        {"role": role, "content": " ".join([*words, f"row {row} turn {turn}"] * 3)}
        for row in range(50) for turn in range(12) for role in ("user", "assistant")
    ]  # fmt: skip
    rows = []
    for row in range(50):
        traced = trace_conversation(
            parse_conversation({"messages": messages[24 * row : 24 * row + 24]}, origin=f"long.jsonl:{row + 1}"),
            formatter=OpenAIMessagesFormatter(), tokenizer=tokenizer, supervise_end_of_turn=True,
        )  # fmt: skip
        rows.append(view_conversation(traced, tokenizer=tokenizer))
    assert min(row.num_tokens for row in rows) > 4000
    path = tmp_path / "long.html"
    path.write_text(render_page(rows), encoding="utf-8")
    page = open_page(path)
    times = page.run(
        """
        const times = [];
        for (let i = 0; i < 5; i++) {
          const begin = performance.now();
          document.getElementById("next").click();
          document.body.getBoundingClientRect();
          times.push(performance.now() - begin);
        }
        return times;
        """
    )
    assert min(times) < 500  # 80 ms on a machine that does other things, too
