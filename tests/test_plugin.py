"""A tracker that comes in a package of its own is found by its entry point and gets every point."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"

RunScript = Callable[..., subprocess.CompletedProcess[str]]

RECORD = """
import sys
import otel_tracking as ot

first = int(sys.argv[1])
tracking = ot.Tracking(log_with=["jsonl"], project_dir="outputs")
tracking.init_trackers("plugin")
for step in range(first, first + 100):
    tracking.log({"train/loss": 1 / (step + 1), "odd": float("nan" if step % 2 else "-inf")}, step=step)
path = tracking.get_tracker("jsonl", unwrap=True)
tracking.end_training()
assert tracking.receipt().complete, tracking.receipt()
print(path)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the plug-in is installed."""
    source, target = tmp_path_factory.mktemp("plugin") / "source", tmp_path_factory.mktemp("installed")
    shutil.copytree(PLUGIN, source)  # a build writes beside what it builds
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps")
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), str(source)], check=True)
    return {"PYTHONPATH": str(target)}


def points(path: str | Path) -> list[tuple[str, int, float]]:
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [(line["name"], line["step"], line["value"]) for line in lines]


def expected(steps: range) -> list[tuple[str, int, float]]:
    return [
        point
        for step in steps
        for point in (
            ("train/loss", step, 1 / (step + 1)),
            ("odd", step, math.nan if step % 2 else -math.inf),
        )
    ]


def test_the_plugin_gets_every_point_in_order(installed: dict[str, str], run_script: RunScript) -> None:
    done = run_script(RECORD, "0", env=installed)
    assert repr(points(done.stdout.strip())) == repr(expected(range(100)))


def test_a_run_goes_on_where_it_stopped(installed: dict[str, str], run_script: RunScript) -> None:
    same_run = {**installed, "OTEL_TRACKING_RUN_ID": "one"}
    run_script(RECORD, "0", env=same_run)
    done = run_script(RECORD, "100", env=same_run)
    assert repr(points(done.stdout.strip())) == repr(expected(range(200)))


def test_the_launcher_finds_the_plugin(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "from opentelemetry import metrics\n"
        "loss = metrics.get_meter('train').create_gauge('loss')\n"
        "for step in range(100):\n"
        "    loss.set(step / 3, {'training.step': step})\n"
    )
    launcher = [str(Path(sys.executable).with_name("otel-tracking")), "run", "--log-with", "jsonl"]
    environment = {**os.environ, **installed}
    subprocess.run([*launcher, "--", sys.executable, "train.py"], env=environment, check=True, timeout=120)
    (path,) = tmp_path.glob("outputs/default/*/points.jsonl")
    assert points(path) == [("loss", step, step / 3) for step in range(100)]


def test_a_retried_batch_is_stored_once(installed: dict[str, str], run_script: RunScript) -> None:
    program = """
import json
from pathlib import Path
import numpy as np
from otel_tracking.records import Batch, Kind, RunInfo, RunStatus, Series
from otel_tracking_jsonl import JsonlTracker

def batch(first):
    steps = np.arange(first, first + 10)
    series = [Series("a", "a", Kind.GAUGE)]
    return Batch(series, np.zeros(10, np.int32), steps, steps, steps / 7, positions=steps + 1)

where = Path.cwd()
tracker = JsonlTracker()
assert tracker.start(RunInfo("p", "r", "r", where, where)) == 0
tracker.write(batch(0))
position, state = tracker.confirm(), tracker.state()
assert position == 10
tracker.write(batch(10))  # stored, but the process dies before the cursor is
again = JsonlTracker()
assert again.start(RunInfo("p", "r", "r", where, where, position=position, state=state)) == 10
again.write(batch(10))
again.finish(RunStatus.FINISHED)
print(json.dumps([json.loads(line)["step"] for line in again.native.read_text().splitlines()]))
"""
    assert json.loads(run_script(program, env=installed).stdout) == list(range(20))
