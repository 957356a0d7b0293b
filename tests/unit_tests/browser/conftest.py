# SPDX-License-Identifier: Apache-2.0
"""A real browser for pages that the program writes: Chromium without a window, and what went wrong in it.

A test that asks for `open_page` is skipped where Chromium or its driver is absent.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-device-scale-factor=1",
)  # fmt: skip
DESKTOP = (1200, 900)
PHONE = (360, 740)


class BrowserPage:
    """A page in the browser.

    Attributes:
        driver: Selenium's driver, for everything that has no name here.
        url: Where the page is.
    """

    def __init__(self, driver: Chrome, path: Path, *, size: tuple[int, int], scheme: str) -> None:
        self.driver = driver
        self.url = path.resolve().as_uri()
        self.resize(size)
        self.prefer(scheme)
        _drain(driver)
        driver.get(self.url)

    def find(self, selector: str) -> WebElement:
        """The only visible element that a CSS selector matches."""
        found = self.find_all(selector)
        assert len(found) == 1, f"{len(found)} visible elements match {selector}"
        return found[0]

    def find_all(self, selector: str) -> list[WebElement]:
        """The visible elements that a CSS selector matches."""
        return [element for element in self.driver.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]

    def run(self, script: str, *arguments: object) -> Any:
        """What JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is."""
        actions = ActionChains(self.driver, duration=0)
        for key in keys:
            actions = actions.send_keys(key)
        actions.perform()

    def hover(self, element: WebElement) -> None:
        """Move the pointer onto an element."""
        ActionChains(self.driver, duration=0).move_to_element(element).perform()

    def resize(self, size: tuple[int, int]) -> None:
        """Give the page a width and height, as a device of that size has them."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """Let the system prefer `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    @property
    def overflow(self) -> int:
        """How many pixels the page is wider than its window; above 0 it scrolls sideways."""
        return int(self.run("const e = document.documentElement; return e.scrollWidth - e.clientWidth"))

    def dismiss_dialog(self) -> str | None:
        """The text of an open dialog, which is closed; None if there is none."""
        try:
            dialog = self.driver.switch_to.alert
            text = dialog.text
        except NoAlertPresentException:
            return None
        dialog.dismiss()
        return text

    def forget(self) -> None:
        """Leave the page, and forget what went wrong on it."""
        self.dismiss_dialog()
        self.driver.get("about:blank")
        _drain(self.driver)

    def assert_clean(self) -> None:
        """Check that no script complained, nothing was asked of the network, and no dialog is open.

        What was seen is forgotten, so that a test may check several times.
        """
        assert self.dismiss_dialog() is None
        complaints, requests = _drain(self.driver)
        assert complaints == []
        assert [url for url in requests if url.partition("#")[0] != self.url and not url.startswith("data:")] == []


def _drain(driver: Chrome) -> tuple[list[str], list[str]]:
    """The console's messages above `info`, and the addresses that were asked for, since the last call."""
    complaints = [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]  # type: ignore[no-untyped-call]
    requests = []
    for entry in driver.get_log("performance"):  # type: ignore[no-untyped-call]
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            requests.append(str(event["params"]["request"]["url"]))
        elif event["method"] == "Network.webSocketCreated":
            requests.append(str(event["params"]["url"]))
    return complaints, requests


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Chromium, started once; tests ask for `open_page` instead."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    driver_program = shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # A dialog stays open for `assert_clean` to find.
    options.unhandled_prompt_behavior = "ignore"
    driver = Chrome(options=options, service=ChromeService(executable_path=driver_program))
    yield driver
    driver.quit()


@pytest.fixture
def open_page(browser: Chrome) -> Iterator[Callable[..., BrowserPage]]:
    """A function that opens a file: `open_page(path, size=DESKTOP, scheme="light") -> BrowserPage`.

    The last page is checked when the test ends.
    """
    opened: list[BrowserPage] = []

    def open_file(path: Path, *, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> BrowserPage:
        opened.append(BrowserPage(browser, path, size=size, scheme=scheme))
        return opened[-1]

    yield open_file
    for page in opened[-1:]:
        try:
            page.assert_clean()
        finally:
            page.forget()
