"""What a test does with a page: open it, wait for what should appear, ask it."""

from __future__ import annotations

from typing import Any

from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome
from selenium.webdriver.support.wait import WebDriverWait

LIMIT = 60
"""Seconds that a page has for anything."""

_ANSWER = """
const answered = arguments[arguments.length - 1];
(async function () { %s })(...arguments).then(
    value => answered({ value }),
    error => answered({ error: `${error}` }),
);
"""


class Page:
    """The one page of a browser."""

    def __init__(self, driver: Chrome) -> None:
        self._driver = driver

    def open(self, url: str) -> None:
        self._driver.get(url)

    def until(self, script: str, *args: Any) -> Any:
        """What the script returns, once that is something.

        Raises:
            AssertionError: It never was; what the page shows and said is in the message.
        """
        try:
            return WebDriverWait(self._driver, LIMIT, poll_frequency=0.1).until(
                lambda driver: driver.execute_script(script, *args)
            )
        except TimeoutException:
            shown = self._driver.execute_script("return document.body.innerText")
            said = [entry["message"] for entry in self._driver.get_log("browser")]  # type: ignore[no-untyped-call]
            raise AssertionError("\n".join([f"not within {LIMIT} s: {script}", shown, *said])) from None

    def answer(self, script: str, *args: Any) -> Any:
        """What the body of an asynchronous function returns; `arguments` has the others.

        Raises:
            AssertionError: With what it threw.
        """
        answer = self._driver.execute_async_script(_ANSWER % script, *args)
        assert "error" not in answer, answer["error"]
        return answer.get("value")
