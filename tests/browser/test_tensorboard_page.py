"""TensorBoard's own page has a chart of how long the spans of a name took."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace

import otel_tracking as ot
from tests.browser.page import Page

# What the cards of charts are called.
CARDS = "return [...document.querySelectorAll('card-view .tag')].map(tag => tag.title).sort()"


@pytest.fixture
def tensorboard(tmp_path: Path) -> Iterator[str]:
    tracking = ot.Tracking("tensorboard", project_dir=tmp_path, run_id="run")
    tracking.init_trackers("p")
    tracer = trace.get_tracer("train")
    for step in range(3):
        with (
            tracer.start_as_current_span("train step", attributes={"training.step": step}),
            tracer.start_as_current_span("forward"),
        ):
            tracking.log({"loss": 1 / (step + 1)}, step=step)
    tracking.end_training()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path)]
    command += ["--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        found = (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in process.stdout)
        try:
            yield next(match[0] for match in found if match)
        finally:
            process.kill()


def test_spans_have_charts(page: Page, tensorboard: str) -> None:
    page.open(f"{tensorboard}#timeseries")
    page.until(f"const cards = (() => {{ {CARDS} }})(); return cards.length >= 3 && cards")
    assert page.until(CARDS) == ["loss", "time/forward", "time/train step"]
