"""MLflow's own pages show a step of the training as a trace, its spans nested, and where it failed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow import MlflowClient
from opentelemetry import trace

import otel_tracking as ot
from otel_tracking.span_records import RecordedSpan
from tests.browser.page import Page
from tests.mlflow_server import MLflowServer

# Of the table: what its columns are called, and the cells of its rows.
HEADS = "return [...document.querySelectorAll('[role=columnheader]')].map(head => head.innerText.trim())"
ROWS = """
const cells = row => [...row.querySelectorAll("[role=cell]")].map(cell => cell.innerText.trim());
const rows = [...document.querySelectorAll("[role=row]")].map(cells).filter(row => row.length);
return rows.length === 3 && rows;
"""
# A click on the row that has a text, in one of its columns.
OPEN = """
const [text, column] = arguments;
const texts = [...document.querySelectorAll("[role=cell]")].filter(cell => cell.innerText.trim() === text);
texts[0].closest("[role=row]").querySelectorAll("[role=cell]")[column].querySelector("span span").click();
return true;
"""
# Of each span: its id, its name, where its icon begins, and the colour of its name.
SPANS = """
const nodes = [...document.querySelectorAll("[data-testid^=timeline-tree-node-]")];
return nodes.length === 5 && nodes.map(node => {
    const id = node.dataset.testid.replace("timeline-tree-node-", "");
    const title = node.querySelector(`[data-testid=span-title-row-${id}] span`);
    const icon = node.querySelector(`[data-testid=span-icon-${id}]`);
    return [id, title.innerText, icon.getBoundingClientRect().left, getComputedStyle(title).color];
});
"""


class Recorded(NamedTuple):
    url: str
    """Of the experiment's page."""
    spans: list[RecordedSpan]


@pytest.fixture(scope="module")
def recorded(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("mlflow-page")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    server = MLflowServer(folder)
    try:
        server.start()
        tracking = ot.Tracking("mlflow", project_dir=folder, run_id="run")
        tracking.init_trackers("training", init_kwargs={"mlflow": {"tracking_uri": server.url}})
        for step in range(2):
            train(step)
        with pytest.raises(ValueError, match="no gradient"):
            train(2)
        tracking.end_training()
        assert tracking.receipt().complete
        experiment = MlflowClient(server.url).get_experiment_by_name("training")
        assert experiment is not None
        url = f"{server.url}/#/experiments/{experiment.experiment_id}"
        yield Recorded(url, ot.read_spans(folder / "training" / "run"))
    finally:
        server.kill()


def train(step: int) -> None:
    tracer = trace.get_tracer("train")
    with tracer.start_as_current_span("train step", attributes={"training.step": step}):
        with tracer.start_as_current_span("load"):
            pass
        with tracer.start_as_current_span("forward"), tracer.start_as_current_span("attention"):
            pass
        with tracer.start_as_current_span("backward"):
            if step == 2:
                raise ValueError("no gradient")


def test_a_step_that_failed_is_found_and_its_spans_are_nested(page: Page, recorded: Recorded) -> None:
    page.open(f"{recorded.url}/traces")
    rows: list[list[str]] = page.until(ROWS)
    heads = page.until(HEADS)
    state = heads.index("State")
    assert sorted(row[state] for row in rows) == ["Error", "OK", "OK"]
    listed = {row[heads.index("Input")]: row[state] for row in rows}
    names = [json.dumps({"name": "train step", "training.step": step}) for step in range(3)]
    assert listed == dict(zip(names, ("OK", "OK", "Error"), strict=True))

    page.until(OPEN, "Error", heads.index("Time"))
    shown: list[tuple[str, str, float, str]] = page.until(SPANS)
    (failed,) = (span for span in recorded.spans if span.step == 2 and not span.parent_id)
    spans = [span for span in recorded.spans if span.trace_id == failed.trace_id]
    by_id = {f"{span.span_id:016x}": span for span in spans}
    assert {id_: name for id_, name, _, _ in shown} == {id_: span.name for id_, span in by_id.items()}
    # The deeper a span, the more to the right it begins, below the one that it lies in.
    indents = sorted({left for _, _, left, _ in shown})
    assert [(name, indents.index(left)) for _, name, left, _ in shown] == [
        ("train step", 0),
        ("load", 1),
        ("forward", 1),
        ("attention", 2),
        ("backward", 1),
    ]
    colours = {name: colour for _, name, _, colour in shown}
    assert colours["train step"] == colours["backward"]
    assert colours["backward"] not in {colours[name] for name in ("load", "forward", "attention")}
    page.until("return ['ValueError', 'no gradient'].every(text => document.body.innerText.includes(text))")
