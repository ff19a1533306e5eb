"""docs/conventions.md lists the names that the code gives, and no others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME
from opentelemetry.semconv.attributes import exception_attributes

import otel_tracking as ot
from otel_tracking.reading import read_run
from otel_tracking.records import Kind, Rank
from otel_tracking.resource import resource
from otel_tracking.span_records import STEP_ATTRIBUTE
from otel_tracking.steps import STEP_ALIASES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "conventions.md").read_text()
OURS = re.compile(r"(training|otel_tracking)\.[a-z_]+|_?(training|otel_tracking)/[a-z_]+|(time|errors)/")
MODULES = {"otel_tracking.json", "otel_tracking.sidecar_process", "otel_tracking.system"}


def section(title: str) -> list[list[str]]:
    """The rows of a section's table, as cells."""
    _, _, after = PAGE.partition(f"## {title}\n")
    body = after.partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in body.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


def names(title: str) -> set[str]:
    return {row[0].strip("`") for row in section(title)}


def strings() -> Iterator[str]:
    """Every text in the code that is no docstring."""
    for folder in ("otel_tracking", "exporters"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if (
                    isinstance(node, ast.Constant)
                    and isinstance(node.value, str)
                    and id(node) not in documented
                ):
                    yield node.value


def test_every_name_of_ours_is_listed_and_used() -> None:
    used = {text for text in strings() if OURS.fullmatch(text)} - MODULES
    listed = names("Attributes of ours") | names("Metrics of ours") | names("Names in trackers' own places")
    assert {re.sub(r"<.*>", "", name) for name in listed} == used


def test_ranks_are_as_listed() -> None:
    rows = {row[0].strip("`"): row for row in section("Attributes of ours")}
    made = Rank().attributes() | {STEP_ATTRIBUTE: 1}
    for name, value in made.items():
        assert rows[name][1] == type(value).__name__
        assert rows[name][2] == "development"
    assert {f"`{alias}`" for alias in STEP_ALIASES} <= set(re.findall(r"`\w+`", rows[STEP_ATTRIBUTE][3]))
    assert set(made) | {"training.run_id"} == set(rows)


def test_what_opentelemetry_defines_is_spelled_as_there() -> None:
    defined = {
        SERVICE_NAME,
        "host.name",
        exception_attributes.EXCEPTION_TYPE,
        exception_attributes.EXCEPTION_MESSAGE,
        exception_attributes.EXCEPTION_STACKTRACE,
    }
    assert names("What OpenTelemetry defines, and is used as it stands") == defined
    assert resource("bert", Rank())[SERVICE_NAME] == "bert"


def test_metrics_are_as_listed(tmp_path: Path) -> None:
    tracking = ot.Tracking(project_dir=tmp_path, run_id="run")
    tracking.init_trackers("p")
    with pytest.raises(ValueError, match="no"), trace.get_tracer("t").start_as_current_span("step"):
        raise ValueError("no")
    tracking.end_training()
    series = {each.name: each for each in read_run(tmp_path / "p" / "run").series}
    listed = {row[0].strip("`").replace("<span name>", "step"): row for row in section("Metrics of ours")}
    for name, kind in (("time/step", Kind.GAUGE), ("errors/step", Kind.COUNTER)):
        assert series[name].kind is kind
        assert listed[name][1] == kind.value
        assert listed[name][2].strip("`") == series[name].unit
        assert listed[name][3] == "development"
