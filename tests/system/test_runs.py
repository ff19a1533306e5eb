"""System metrics of runs: asked for by argument or variable, on one rank of a node, while the run lasts."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import otel_tracking as ot
from otel_tracking import tracking as tracking_module
from otel_tracking.process import Process
from otel_tracking.records import RunStatus
from otel_tracking.system import host
from otel_tracking.system import sampler as sampler_module

RunScript = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    made = Process()
    monkeypatch.setattr(made, "install", lambda: None)
    monkeypatch.setattr(tracking_module, "process", lambda: made)
    monkeypatch.setattr(sampler_module, "_FIRST", 3600)
    monkeypatch.setattr(sampler_module, "_STOP_TIMEOUT", 60)
    monkeypatch.setattr(host, "_SHORTEST", 0)
    yield made
    made.end(RunStatus.FINISHED, 5)
    made.recorder.close(RunStatus.FINISHED)
    atexit.unregister(made._at_exit)


def samplers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "otel-tracking-system"]


def system_series(run: Path) -> set[str]:
    return {series.name for series in ot.read_run(run).series if series.name.startswith("system/")}


def record(run_id: str, **options: object) -> tuple[set[str], int]:
    """(series under `system/` of a run of that many options, samplers while it was recorded)"""
    tracking = ot.Tracking(run_id=run_id, **options)  # type: ignore[arg-type]
    tracking.init_trackers("p")
    tracking.log({"loss": 1.0})
    running = len(samplers())
    tracking.end_training()
    return system_series(Path("outputs", "p", run_id)), running


def test_off_by_default() -> None:
    assert record("r") == (set(), 0)


def test_an_argument_beats_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACKING_SYSTEM_METRICS", "3600")
    assert record("off", system_metrics="off") == (set(), 0)
    found, running = record("variable")
    assert running == 1
    assert {"system/cpu.utilization", "system/memory.usage", "system/process.memory.usage"} <= found
    monkeypatch.setenv("OTEL_TRACKING_SYSTEM_METRICS", "off")
    assert record("argument", system_metrics=3600) == (found, 1)


@pytest.mark.parametrize("value", [0, -1, "often", float("nan"), True])
def test_what_is_no_interval_is_an_error(value: object) -> None:
    with pytest.raises(ot.ConfigurationError, match="system_metrics"):
        ot.Tracking(system_metrics=value)  # type: ignore[arg-type]


def test_each_run_of_a_process_has_its_own_and_it_ends_with_the_run() -> None:
    tracking = ot.Tracking(system_metrics=3600)
    for run in ("first", "second"):
        tracking.init_trackers(run)
        assert len(samplers()) == 1
        directory = Path("outputs", run, str(tracking.run_id))
        if run == "second":
            tracking.end_training()
            for thread in samplers():
                thread.join(60)
            assert samplers() == []
            assert system_series(directory)
    (first,) = Path("outputs", "first").iterdir()
    data = ot.read_run(first)
    assert data.of("system/process.memory.usage").values.tolist()[0] > 1 << 20
    assert len(data.of("system/process.memory.usage")) == 1
    shares = data.of("system/cpu.utilization").values
    assert len(shares)
    assert ((shares >= 0) & (shares <= 1)).all()


@pytest.mark.parametrize(("local_rank", "running"), [("0", 1), ("1", 0)])
def test_one_rank_of_a_node_samples(monkeypatch: pytest.MonkeyPatch, local_rank: str, running: int) -> None:
    for name, value in {"RANK": local_rank, "WORLD_SIZE": "2", "LOCAL_RANK": local_rank}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    found, samplers = record("r", ranks="all", system_metrics=3600)
    assert (bool(found), samplers) == (bool(running), running)


FORK = """
import os, sys, threading
import otel_tracking as ot
from otel_tracking.system import forking, sampler

# It imports packages, which takes as long as it takes.
forking._LONGEST = sampler._STOP_TIMEOUT = 60

def samplers():
    return [t for t in threading.enumerate() if t.name == "otel-tracking-system"]

tracking = ot.Tracking(system_metrics=3600, run_id="parent")
tracking.init_trackers("p")
assert len(samplers()) == 1
child = os.fork()
if not child:
    assert not samplers()
    tracking.end_training()  # the parent's: nothing happens
    own = ot.Tracking(system_metrics=3600, run_id="child")
    own.init_trackers("p")
    assert len(samplers()) == 1
    own.end_training()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
tracking.log({"loss": 1.0})
"""


def test_a_forked_child_samples_only_for_a_run_of_its_own(run_script: RunScript, tmp_path: Path) -> None:
    run_script(FORK)
    for run in ("parent", "child"):
        data = ot.read_run(tmp_path / "outputs" / "p" / run)
        assert len(data.of("system/process.memory.usage")) >= 1


def test_a_program_that_knows_only_opentelemetry(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "from opentelemetry import metrics\n"
        "metrics.get_meter('train').create_gauge('loss').set(1.0, {'training.step': 3})\n"
    )
    done = subprocess.run(
        [str(Path(sys.executable).with_name("otel-tracking")), "run", "--", sys.executable, str(script)],
        env={**os.environ, "OTEL_TRACKING_SYSTEM_METRICS": "3600"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("outputs/*/*")
    assert "system/memory.usage" in system_series(run)
    assert ot.read_run(run).of("loss").steps.tolist() == [3]
