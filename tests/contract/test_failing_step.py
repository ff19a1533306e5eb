"""A training step that fails: each tracker that can show it does, and has the last values before it.

Programs that record with OpenTelemetry's API alone, into all trackers at once. Where nobody catches the
exception nobody ends the run either: the exit of the interpreter delivers and closes it, among handlers of
the trackers' packages that come first or last.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import otel_tracking as ot
from otel_tracking import discovery
from otel_tracking.capabilities import Feature, Level
from otel_tracking.final_error import TAG
from tests import readback
from tests.contract import failing_program as program
from tests.contract.media_files import clearml_session
from tests.contract.place import Place
from tests.contract.stored import Stored, readers
from tests.readback import bits

PROGRAM: Final = Path(program.__file__)
ROOT: Final = Path(__file__).parents[2]
COMMAND: Final = Path(sys.executable).with_name("otel-tracking")
TRACKERS: Final = sorted(discovery.known())
READERS: Final = readers()
EXCEPTION: Final = f"FloatingPointError: {program.REASON}"
PASSED: Final = ("backward", "train step")
"""Spans that the exception passes through, inner ones first."""

ENDINGS: Final = ("launched", "uncaught", "caught")
"""Under `otel-tracking run`, with a `Tracking`, and with one whose loop goes on."""


@dataclass(frozen=True)
class Ended:
    """A run, and what its program said."""

    place: Place
    code: int
    output: str
    caught: bool
    read: Callable[[str], Stored]
    """What a tracker has of it."""

    @property
    def traceback(self) -> str:
        """What Python printed at the program's end."""
        found = re.search(r"Traceback \(most recent call last\):\n(?:  .*\n)+.*", self.output)
        assert found is not None, self.output
        return found[0]


def start(root: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a directory of its own, which trackers' own directories are in."""
    root.mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TRACKIO_DIR": str(root / "trackio"),
        "CLEARML_CACHE_DIR": str(root / "clearml"),
    }
    return subprocess.run(
        list(map(str, command)),
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Ended]]:
    """By ending."""
    root = tmp_path_factory.mktemp("failing-step")
    options = ("--log-with", "all", "--project-dir", "runs", "--project", "launched")
    commands = {
        "alone": (COMMAND, "run", *options, "--", sys.executable, PROGRAM, "alone"),
        "tracked": (sys.executable, PROGRAM, "tracked"),
    }
    with ThreadPoolExecutor() as at_once:
        alone, tracked = at_once.map(lambda name: start(root / name, *commands[name]), commands)
    found = {}
    for ending in ENDINGS:
        name, done = ("alone", alone) if ending == "launched" else ("tracked", tracked)
        projects = root / name / "runs"
        (directory,) = (projects / ending).iterdir()
        place = Place(root / name, projects, ending, directory.name)
        read = functools.cache(functools.partial(read_tracker, place))
        found[ending] = Ended(place, done.returncode, done.stderr, ending == "caught", read)
    yield found
    shutil.rmtree(root)


def read_tracker(place: Place, tracker: str) -> Stored:
    return READERS[tracker].read_run(place.root, place.runs.name, place.project, place.run_id)


@pytest.fixture(params=ENDINGS)
def run(request: pytest.FixtureRequest, runs: Mapping[str, Ended]) -> Ended:
    return runs[request.param]


@pytest.mark.parametrize("ending", ["launched", "uncaught"])
def test_the_program_dies_as_it_would_without_us(runs: Mapping[str, Ended], ending: str) -> None:
    run = runs[ending]
    assert run.code == 1, run.output
    assert run.traceback.endswith(f"\n{EXCEPTION}")
    for found in ot.read_spans(run.place.run):
        assert (found.step == program.FAILING and found.name in PASSED) == (found.status == "error")


def wanted(run: Ended) -> dict[str, list[tuple[int, float]]]:
    """By tag: steps and values in the order in which the program recorded them, the failing step's too."""
    last = program.STEPS if run.caught else program.FAILING + 1
    points: dict[str, list[tuple[int, float]]] = {
        "train/loss": [(step, program.loss_at(step)) for step in range(last)],
        "norm/layer.3": [(step, step / 4) for step in range(last)],
        "samples": [(step, float(program.BATCH * (step + 1))) for step in range(last)],
        **{f"errors/{name}": [(program.FAILING, 1.0)] for name in PASSED},
    }
    for span in ot.read_spans(run.place.run):
        assert span.step is not None
        points.setdefault(f"time/{span.name}", []).append((span.step, (span.end - span.start) / 1e9))
    for name in ("forward", *PASSED):
        assert [step for step, _ in points[f"time/{name}"]] == list(range(last))
    return points


@pytest.mark.parametrize("tracker", TRACKERS)
def test_every_value_is_there_once(run: Ended, tracker: str) -> None:
    """Those of the failing step as well: what it recorded before, its spans' times, and that they failed."""
    reader = READERS[tracker]
    expected = {
        reader.name(tag): [(step, bits(reader.value(value))) for step, value in points]
        for tag, points in wanted(run).items()
    }
    stored = {name: [(p.step, p.value) for p in points] for name, points in run.read(tracker).points.items()}
    if not reader.ordered:
        stored = {name: sorted(points) for name, points in stored.items()}
    assert stored == expected


@pytest.mark.parametrize("tracker", TRACKERS)
def test_the_status_is_the_runs(run: Ended, tracker: str) -> None:
    """Not the step's: one that is caught is no end."""
    declaration = discovery.declaration(tracker)
    assert declaration is not None
    status = "finished" if run.caught else "failed"
    if declaration.of(Feature.STATUS).level is Level.NOT_STORED or (
        tracker == "tensorboard" and run.place.project == "launched"
    ):
        status = ""
    elif tracker == "wandb":  # an exit code
        status = "0" if run.caught else "1"
    assert run.read(tracker).status == status


@pytest.mark.parametrize("tracker", TRACKERS)
def test_why_the_run_failed_is_a_text(run: Ended, tracker: str) -> None:
    """As Python prints it, at the step that failed."""
    texts = [(e.name, e.step, e.content) for e in run.read(tracker).media if e.form == "text"]
    assert texts == ([] if run.caught else [(TAG, program.FAILING, run.traceback)])


_NO_PLACE: Final = {"tensorboard", "wandb", "dvclive"}
"""Trackers that have none for why a run failed, but for texts."""
_WHOLE: Final = {"aim", "swanlab"}
"""Those that take a traceback there."""


@pytest.mark.parametrize("tracker", TRACKERS)
def test_why_the_run_failed_is_where_the_tracker_has_it(run: Ended, tracker: str) -> None:
    failure = run.read(tracker).failure
    if run.caught or tracker in _NO_PLACE:
        assert failure == ""
    else:
        assert failure == (run.traceback if tracker in _WHOLE else EXCEPTION)


def test_the_console_of_clearml_has_the_traceback(run: Ended) -> None:
    lines = (clearml_session(run.place) / "log.jsonl").read_text().splitlines()
    errors = [event["msg"] for line in lines for event in json.loads(line) if event["level"] == "error"]
    assert errors == ([] if run.caught else [run.traceback])


def test_the_trace_of_that_step_failed(run: Ended) -> None:
    """In MLflow, with the exception as an event of each span that it passed through."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.place.runs}/mlflow.db")
    (found,) = readback.mlflow_runs(run.place.runs, run.place.project)
    traces = client.search_traces(run_id=found.info.run_id, locations=[found.info.experiment_id])
    states = {}
    for trace in traces:
        (root,) = (span for span in trace.data.spans if span.parent_id is None)
        step = root.attributes["training.step"]
        states[step] = trace.info.state.value
        assert sorted(span.name for span in trace.data.spans) == sorted(("forward", *PASSED))
        for span in trace.data.spans:
            if step == program.FAILING and span.name in PASSED:
                assert (span.status.status_code.value, span.status.description) == ("ERROR", EXCEPTION)
                (event,) = span.events
                assert event.name == "exception"
                assert event.attributes["exception.type"] == "FloatingPointError"
                assert event.attributes["exception.message"] == program.REASON
                assert event.attributes["exception.stacktrace"].endswith(f"{EXCEPTION}\n")
            else:
                assert (span.status.status_code.value, span.events) == ("UNSET", [])
    last = program.STEPS if run.caught else program.FAILING + 1
    assert states == {step: "ERROR" if step == program.FAILING else "OK" for step in range(last)}
