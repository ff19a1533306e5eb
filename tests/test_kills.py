"""A run that is killed again and again is one whole run in every tracker in the end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_tracking.runs import find_runs, receipt
from tests import readback
from tests.exporters.test_tensorboard_server import Server, wait_for

pytestmark = pytest.mark.mlflow_database("out")

COMMAND = str(Path(sys.executable).with_name("otel-tracking"))
SERIES = ("loss", "acc")

TRAIN = """
import sys, time
import otel_tracking as ot

first = int(sys.argv[1])
tracking = ot.Tracking(log_with=["tensorboard", "mlflow", "wandb"], project_dir="out", run_id="run")
tracking.init_trackers("p", config={"lr": 0.1})
for step in range(first, first + 100_000):
    tracking.log({"loss": 1 / (step + 1), "acc": float(step)}, step=step)
    print(step, flush=True)
    time.sleep(0.001)
"""


def sidecars(run: Path) -> list[int]:
    """The processes that deliver a run."""
    found = subprocess.run(
        ["pgrep", "-f", f"otel_tracking.sidecar_process {run}"], capture_output=True, text=True, check=False
    )
    return [int(line) for line in found.stdout.split()]


def train_and_kill(tmp_path: Path, delivery: str, first: int, seconds: float, *, sidecar_too: bool) -> int:
    """The first step that was not acknowledged."""
    with subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(first)],
        cwd=tmp_path,
        env={**os.environ, "OTEL_TRACKING_DELIVERY": delivery},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as trainer:
        assert trainer.stdout is not None
        line = trainer.stdout.readline()
        assert int(line) == first
        with contextlib.suppress(subprocess.TimeoutExpired):
            trainer.wait(seconds)
        victims = sidecars(tmp_path / "out" / "p" / "run") if sidecar_too else []
        os.killpg(trainer.pid, signal.SIGKILL)
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        said = [line, *trainer.stdout.read().split(b"\n")]
        assert trainer.wait() == -signal.SIGKILL
    return 1 + max(int(step) for step in said if step.strip())


@pytest.mark.parametrize("delivery", ["thread", "process"])
def test_killed_again_and_again(tmp_path: Path, size: Callable[[int, int], int], delivery: str) -> None:
    rng = random.Random(7)
    run = tmp_path / "out" / "p" / "run"
    run.mkdir(parents=True)
    server = Server(tmp_path / "out", "true")
    acknowledged = 0
    try:
        for number in range(size(2, 30)):
            seconds = rng.choice([rng.uniform(0, 1), rng.uniform(1, 8)])
            # A step whose acknowledgement was cut off may be recorded all the same.
            recorded = readback.journal(run)["loss"] if acknowledged else []
            first = recorded[-1].step + 1 if recorded else 0
            acknowledged = train_and_kill(tmp_path, delivery, first, seconds, sidecar_too=number % 2 == 0)
        done = subprocess.run(
            [COMMAND, "sync", "run", "--project-dir", "out"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        recorded = readback.journal(run)["loss"]
        steps = [point.step for point in recorded]
        assert steps == list(range(len(steps)))
        assert len(steps) >= acknowledged
        (found,) = find_runs(tmp_path / "out")
        assert receipt(found).complete
        (in_mlflow,) = readback.mlflow_runs(tmp_path / "out", "p")
        stored = {
            "tensorboard": readback.tensorboard(run),
            "wandb": readback.wandb(run),
            "mlflow": readback.mlflow_points(tmp_path / "out", in_mlflow),
        }
        for name, series in stored.items():
            for tag in SERIES:
                assert sorted(point.step for point in series[tag]) == steps, (name, tag)
        assert [point.step for point in stored["tensorboard"]["loss"]] == steps
        assert [point.value for point in stored["wandb"]["loss"]] == [point.value for point in recorded]
        assert in_mlflow.info.status == "KILLED"
        # The server keeps a sample of 1,000 of a series, and the last one.
        wait_for(steps[-1], lambda: server.steps("p/run", "loss")[-1])
        if len(steps) <= 1000:
            assert server.steps("p/run", "loss") == steps
    finally:
        server.close()
