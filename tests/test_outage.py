"""A tracking server that is gone for a while: nothing is lost or doubled, and no other tracker notices."""

from __future__ import annotations

import contextlib
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
    EventFileLoader,
)

from otel_tracking.cursor import Cursor
from otel_tracking.runs import find_runs, receipt
from tests import readback
from tests.mlflow_server import MLflowServer

COMMAND = str(Path(sys.executable).with_name("otel-tracking"))
BEFORE = 4.0
"""Seconds of training before the server goes."""
DEADLINE = 240

# 1,000 points a second.
TRAIN = """
import sys, time
import otel_tracking as ot

uri, first = sys.argv[1], int(sys.argv[2])
tracking = ot.Tracking(["tensorboard", "mlflow"], project_dir="out", run_id="run", delivery="process")
tracking.init_trackers("p", config={"lr": 0.1}, init_kwargs={"mlflow": {"tracking_uri": uri}})
begun = time.monotonic()
step = first
while True:
    tracking.log({f"m{n}": step + n / 10 for n in range(10)}, step=step)
    step += 1
    time.sleep(max(0.0, begun + (step - first) / 100 - time.monotonic()))
"""


@pytest.fixture
def server(tmp_path: Path, mlflow_template: Path) -> Iterator[MLflowServer]:
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(mlflow_template, folder / "mlflow.db")
    made = MLflowServer(folder)
    made.start()
    yield made
    made.kill()


class Delay:
    """How far TensorBoard is behind, by its own loader, sampled while this is open."""

    def __init__(self, run: Path) -> None:
        self.samples: list[tuple[float, float]] = []
        self._run = run
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        loaders: dict[Path, EventFileLoader] = {}
        newest = 0.0
        while not self._stop.wait(0.2):
            for path in self._run.glob("events.out.tfevents.*"):
                loader = loaders.setdefault(path, EventFileLoader(str(path)))
                for event in loader.Load():
                    newest = max(newest, event.wall_time)
            if newest:
                self.samples.append((time.time(), time.time() - newest))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def median(self, begin: float, end: float) -> float:
        return statistics.median(delay for at, delay in self.samples if begin < at < end)


def sidecar(run: Path) -> int:
    found = subprocess.run(
        ["pgrep", "-f", f"otel_tracking.sidecar_process {run}"], capture_output=True, text=True, check=False
    )
    return int(found.stdout.split()[0])


def anonymous(pid: int) -> float:
    """RssAnon, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def delivered(run: Path, tracker: str) -> int:
    cursor = Cursor.load(run / "cursors" / f"rank-00000-{tracker}.json")
    return 0 if cursor is None else cursor.delivered


@contextlib.contextmanager
def training(directory: Path, uri: str, first: int) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", TRAIN, uri, str(first)], cwd=directory, start_new_session=True
    ) as trainer:
        try:
            yield trainer
        finally:
            trainer.kill()


@pytest.mark.parametrize("restarted", [False, True], ids=["trainer goes on", "trainer restarted"])
def test_a_server_that_is_gone_for_a_while(
    server: MLflowServer,
    tmp_path: Path,
    size: Callable[[int, int], int],
    restarted: bool,
    record_property: Callable[[str, object], None],
) -> None:
    outage = size(4, 60)
    run = tmp_path / "out" / "p" / "run"
    delay = Delay(run)
    with contextlib.ExitStack() as stack:
        trainer = stack.enter_context(training(tmp_path, server.url, 0))
        deadline = time.monotonic() + DEADLINE
        while not delivered(run, "mlflow"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        begun = time.time()
        time.sleep(BEFORE)
        processes = {"trainer": trainer.pid, "sidecar": sidecar(run)}
        before = {name: anonymous(pid) for name, pid in processes.items()}
        gone = time.time()
        server.kill()
        time.sleep(outage / 2)
        if restarted:
            trainer.send_signal(signal.SIGTERM)
            assert trainer.wait(5) == -signal.SIGTERM
            last = readback.journal(run)["m0"][-1].step
            trainer = stack.enter_context(training(tmp_path, server.url, last + 1))
        time.sleep(outage / 2)
        back = time.time()
        if not restarted:
            after = {name: anonymous(pid) for name, pid in processes.items()}
            growth = {name: after[name] - before[name] for name in processes}
            record_property("growth in MiB", growth)
            print("RssAnon grew by MiB:", growth)
            assert max(growth.values()) < 64
        behind = delivered(run, "tensorboard") - delivered(run, "mlflow")
        assert behind > outage * 300
        server.start()
        up = time.monotonic()
        while delivered(run, "mlflow") < delivered(run, "tensorboard") - 3000:
            assert time.monotonic() < up + DEADLINE
            time.sleep(0.2)
        caught_up = time.monotonic() - up
        print(f"{behind} points behind, caught up after {caught_up:.1f} s")
        assert caught_up < 60
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    medians = delay.median(begun, gone), delay.median(gone, back)
    delay.close()
    print("TensorBoard's delay in seconds, before and during:", medians)
    if not restarted:
        assert medians[1] < 1.5 * medians[0] + 0.2
    done = subprocess.run(
        [COMMAND, "sync", "run", "--project-dir", "out"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (found,) = find_runs(tmp_path / "out")
    assert receipt(found).complete
    recorded = readback.journal(run)
    steps = [point.step for point in recorded["m0"]]
    assert steps == list(range(len(steps)))
    assert len(steps) > (outage + BEFORE) * 60
    (in_mlflow,) = readback.mlflow_runs(tmp_path / "out", "p")
    in_trackers = {
        "tensorboard": readback.tensorboard(run),
        "mlflow": readback.mlflow_points(tmp_path / "out", in_mlflow),
    }
    for tracker, points in in_trackers.items():
        for n in range(10):
            assert [point.step for point in points[f"m{n}"]] == steps, (tracker, n)
    assert [p.value for p in in_trackers["mlflow"]["m3"]] == [p.value for p in recorded["m3"]]
