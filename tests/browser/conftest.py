"""A real browser, Chromium without a window, for tests of what others' pages show of a run.

Where there is none the tests are skipped; with `OTEL_TRACKING_TEST_BROWSER=required`, as in CI, they fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests.browser.page import LIMIT, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = f"no {', '.join(NAMES)} with its chromedriver on PATH: apt-get install chromium chromium-driver"
# Pages reach this machine and nothing else, whatever proxy there is.
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1600,1000",
)


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The one page of the browser."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        without_browser()
    options = ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(switch)
    with pytest.MonkeyPatch.context() as patch:  # the driver's address is looked at for a proxy once
        patch.setenv("no_proxy", "localhost,127.0.0.1")
        chrome = Chrome(options, Service(driver))
    with chrome:
        chrome.set_page_load_timeout(LIMIT)
        chrome.set_script_timeout(LIMIT)
        yield Page(chrome)


def without_browser() -> NoReturn:
    outcome: Callable[[str], NoReturn] = pytest.skip
    if os.environ.get("OTEL_TRACKING_TEST_BROWSER") == "required":
        outcome = pytest.fail
    outcome(MISSING)
