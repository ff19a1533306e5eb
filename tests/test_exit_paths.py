"""However a process ends: nothing is lost, nothing is doubled, trackers say how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_tracking.runs import RunOnDisk, find_runs, receipt
from otel_tracking.sidecar import is_running
from tests.plugin_site import Site
from tests.test_process import FILE_TRACKER

pytestmark = pytest.mark.mlflow_database("out")

RunScript = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = str(Path(sys.executable).with_name("otel-tracking"))
DEADLINE = 60

TRAIN = """
import os, signal, sys, threading, time
import otel_tracking as ot
from otel_tracking.sidecar import is_running

# Who is started in the background by a shell ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)

def train(tracking, steps=range(100)):
    for step in steps:
        tracking.log({"a": float(step)}, step=step)

def begun():
    tracking = ot.Tracking(log_with="file", project_dir="out")
    tracking.init_trackers("p")
    if tracking.run_directory and os.environ["OTEL_TRACKING_DELIVERY"] == "process":
        # Who dies before it is up leaves all to `sync`.
        while not is_running(tracking.run_directory):
            time.sleep(0.01)
    return tracking

def main():
    tracking = begun()
    train(tracking)
"""

ENDINGS: dict[str, tuple[str, str, int]] = {
    # What follows in `main`, how trackers say that the run ended, and the exit code.
    "returns": ("", "finished", 0),
    "exits with 0": ("sys.exit(0)", "finished", 0),
    "exits with 3": ("sys.exit(3)", "failed", 3),
    "raises": ("raise ValueError", "failed", 1),
    "Ctrl-C": ("os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)", "killed", -signal.SIGINT),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)", "killed", -signal.SIGTERM),
    "SIGTERM with a handler of the user's": (
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "    tracking.flush()\n"
        "    assert signal.getsignal(signal.SIGTERM).__name__ == '<lambda>'\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)",
        "failed",
        7,
    ),
    "os._exit": ("os._exit(0)", "killed", 0),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", "killed", -signal.SIGKILL),
    "no memory": (
        "import resource\n    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))\n    bytearray(2**35)",
        "failed",
        1,
    ),
    "a forked child exits": (
        "if os.fork() == 0:\n        train(tracking)\n        sys.exit(5)\n    os.wait()",
        "finished",
        0,
    ),
    "a forked child leaves": (
        "if os.fork() == 0:\n        train(tracking)\n        os._exit(5)\n    os.wait()",
        "finished",
        0,
    ),
    "a forked child is left behind": (
        "if os.fork() == 0:\n        train(tracking)\n        time.sleep(5)\n        os._exit(0)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)",
        "killed",
        -signal.SIGKILL,
    ),
    "a spawned child": (
        "import multiprocessing\n"
        "    child = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(0.1,))\n"
        "    child.start()\n    child.join()",
        "finished",
        0,
    ),
    "workers that load data": (
        "from torch.utils.data import DataLoader\n"
        "    for _ in DataLoader(list(range(8)), num_workers=2):\n        pass",
        "finished",
        0,
    ),
    "workers that load data, and a kill": (
        "from torch.utils.data import DataLoader\n"
        # Workers may outlive the kill, and must not keep the output open that this test reads to its end.
        "    quiet = lambda _: (os.close(1), os.close(2))\n"
        "    for _ in DataLoader(list(range(8)), num_workers=2, worker_init_fn=quiet):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)",
        "killed",
        -signal.SIGKILL,
    ),
}

REASONS = {
    "exits with 3": "SystemExit: 3",
    "raises": "ValueError",
    "SIGTERM with a handler of the user's": "SystemExit: 7",
    "no memory": "MemoryError",
}
"""Why the run failed, where it did."""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    site = Site(tmp_path / "site")
    site.install("file", FILE_TRACKER, target="FileTracker")
    return {"PYTHONPATH": str(site.directory)}


def stored(tmp_path: Path, event: str) -> list[dict[str, Any]]:
    lines = (tmp_path / "out" / "stored.jsonl").read_text().splitlines()
    return [line for text in lines if (line := json.loads(text))["event"] == event]


def stored_steps(tmp_path: Path) -> list[int]:
    return [step for line in stored(tmp_path, "points") for step in line["steps"]]


def only(tmp_path: Path) -> RunOnDisk:
    (run,) = find_runs(tmp_path / "out")
    return run


def wait_for_sidecar(run: RunOnDisk) -> None:
    deadline = time.monotonic() + DEADLINE
    while is_running(run.directory):
        assert time.monotonic() < deadline, (run.directory / "sidecar.log").read_text()
        time.sleep(0.05)


def settle(tmp_path: Path, env: dict[str, str], delivery: str) -> None:
    """A sidecar needs nobody; what a dead process leaves otherwise, `sync` delivers."""
    if delivery == "process":
        wait_for_sidecar(only(tmp_path))
    else:
        subprocess.run(
            [COMMAND, "sync", "--all", "--project-dir", "out"],
            cwd=tmp_path,
            env={**os.environ, **env},
            check=True,
            timeout=DEADLINE,
        )


@pytest.mark.parametrize("delivery", ["thread", "process"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_lost(
    run_script: RunScript, tmp_path: Path, env: dict[str, str], ending: str, delivery: str
) -> None:
    code, status, exit_code = ENDINGS[ending]
    source = f'{TRAIN}    {code}\n\nif __name__ == "__main__":\n    main()\n'
    done = run_script(source, env={**env, "OTEL_TRACKING_DELIVERY": delivery}, check=False)
    assert done.returncode == exit_code, done.stderr
    settle(tmp_path, env, delivery)
    steps = stored_steps(tmp_path)
    if exit_code == -signal.SIGKILL:  # what comes again after a kill, this tracker has twice
        steps = sorted(set(steps))
    assert steps == list(range(100))
    assert [line["status"] for line in stored(tmp_path, "finish")] == [status]
    assert [line["reason"] for line in stored(tmp_path, "finish")] == [REASONS.get(ending, "")]
    assert receipt(only(tmp_path)).complete


@pytest.mark.parametrize("delivery", ["thread", "process"])
@pytest.mark.parametrize("launch", ["notebook_launcher(child, num_processes=1)", "debug_launcher(child)"])
def test_launchers_of_accelerate(
    run_script: RunScript, tmp_path: Path, env: dict[str, str], launch: str, delivery: str
) -> None:
    source = f"""{TRAIN}
def child():
    tracking = begun()
    train(tracking)
    tracking.end_training()

if __name__ == "__main__":
    from accelerate import debug_launcher, notebook_launcher
    {launch}
"""
    run_script(source, env={**env, "OTEL_TRACKING_DELIVERY": delivery})
    settle(tmp_path, env, delivery)
    assert stored_steps(tmp_path) == list(range(100))
    assert [line["status"] for line in stored(tmp_path, "finish")] == ["finished"]


@pytest.mark.parametrize("method", ["start", "write", "finish"])
@pytest.mark.parametrize("fault", ["threading.Event().wait()", "1 / 0"], ids=["hangs", "raises"])
def test_a_tracker_that_gets_nowhere_holds_up_neither_the_exit_nor_its_sidecar_for_good(
    run_script: RunScript, tmp_path: Path, method: str, fault: str
) -> None:
    site = Site(tmp_path / "site")
    site.install("file", FILE_TRACKER, target="FileTracker")
    stuck = f"""
import threading
from otel_tracking.testing import RecordingTracker

class Stuck(RecordingTracker):
    name = "stuck"
    patience = 1.0
    def {method}(self, *args):
        {fault}
"""
    site.install("stuck", stuck, target="Stuck")
    source = TRAIN.replace('log_with="file"', 'log_with=["file", "stuck"]') + "\nmain()\n"
    env = {
        "PYTHONPATH": str(site.directory),
        "OTEL_TRACKING_DELIVERY": "process",
        "OTEL_TRACKING_END_TIMEOUT": "3",
    }
    done = run_script(source, env=env)
    if method != "finish":
        assert "stuck: 100 of 100 points are not delivered" in done.stderr
    assert stored_steps(tmp_path) == list(range(100))
    wait_for_sidecar(only(tmp_path))  # it gives up, too
    found = receipt(only(tmp_path))
    assert (found.trackers["file"].state, found.trackers["stuck"].state) == ("finished", "unfinished")


def test_a_sidecar_that_is_killed_is_no_loss(
    run_script: RunScript, tmp_path: Path, env: dict[str, str]
) -> None:
    source = f"""{TRAIN}
    assert tracking.flush()
    import subprocess
    subprocess.run(["pkill", "-KILL", "-f", "otel_tracking.sidecar_process .*" + tracking.run_id], check=True)
    train(tracking, range(100, 200))
    assert not tracking.flush(5)

main()
"""
    done = run_script(source, env={**env, "OTEL_TRACKING_DELIVERY": "process"})
    assert "100 of 200 points are not delivered" in done.stderr
    settle(tmp_path, env, "thread")
    assert stored_steps(tmp_path) == list(range(200))


def test_a_run_goes_on_while_its_sidecar_still_works(
    run_script: RunScript, tmp_path: Path, env: dict[str, str]
) -> None:
    write = "written = super().write(batch)"
    slow = FILE_TRACKER.replace(write, f"__import__('time').sleep(0.2); {write}")
    site = Site(tmp_path / "slow")
    site.install("file", slow, target="FileTracker")
    settings = {
        "PYTHONPATH": str(site.directory),
        "OTEL_TRACKING_DELIVERY": "process",
        "OTEL_TRACKING_RUN_ID": "same",
    }
    killed = f"{TRAIN}    os.kill(os.getpid(), signal.SIGKILL)\n\nmain()\n"
    run_script(killed, env=settings, check=False)
    assert is_running(only(tmp_path).directory)
    again = TRAIN.replace("range(100)", "range(100, 200)") + "\nmain()\n"
    run_script(again, env=settings)
    wait_for_sidecar(only(tmp_path))
    assert stored_steps(tmp_path) == list(range(200))
    assert stored(tmp_path, "finish")[-1]["status"] == "finished"
    assert receipt(only(tmp_path)).complete


def test_no_trackers_code_runs_in_the_trainer(run_script: RunScript, tmp_path: Path) -> None:
    source = """
import sys
import otel_tracking as ot

for delivery in ("process", "off"):
    tracking = ot.Tracking(log_with=["tensorboard", "mlflow", "wandb"], project_dir="out", delivery=delivery)
    tracking.init_trackers("p")
    tracking.log({"a": 1.0}, step=1)
    tracking.end_training()
assert not {"tensorboard", "mlflow", "wandb", "torch", "otel_tracking_exporters"} & sys.modules.keys()
for wrong in ("tensorbord", ot.Tracker):
    try:
        ot.Tracking(log_with=wrong, project_dir="out", delivery="process")
    except ot.ConfigurationError as error:
        print(error)
try:
    ot.Tracking(log_with="tensorboard", delivery="off")
except ot.LoggingDirectoryRequired as error:
    print(error)
"""
    said = run_script(source).stdout
    assert "Did you mean 'tensorboard'" in said
    assert "logging_dir" in said
    first, second = sorted(find_runs(tmp_path / "out"), key=lambda run: run.description["created"])
    assert receipt(first).complete
    assert (first.directory / "sidecar.log").exists()
    assert not receipt(second).complete


def test_native_handles_beside_a_sidecar(run_script: RunScript, tmp_path: Path) -> None:
    source = """
import otel_tracking as ot

tracking = ot.Tracking(log_with=["tensorboard", "mlflow", "wandb"], project_dir="out", delivery="process")
tracking.init_trackers("p")
tracking.log({"a": 1.0}, step=1)
tracking.get_tracker("tensorboard").writer.add_scalar("native", 2.0, 3)
tracking.get_tracker("mlflow").run.set_tag("native", "yes")
try:
    tracking.get_tracker("wandb")
except ot.NativeHandleUnavailable as error:
    print(error)
tracking.end_training(timeout=60)
assert tracking.receipt().complete, tracking.receipt()
"""
    said = run_script(source).stdout
    assert "Use delivery='thread'" in said
    from tests import readback

    run = only(tmp_path).directory
    assert [point.step for point in readback.tensorboard(run)["a"]] == [1]
    assert [point.step for point in readback.tensorboard(run / "native")["native"]] == [3]
    (in_mlflow,) = readback.mlflow_runs(tmp_path / "out", "p")
    assert in_mlflow.data.tags["native"] == "yes"
    assert in_mlflow.info.status == "FINISHED"


def test_the_launcher_waits_for_the_sidecar(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal\n"
        "from opentelemetry import metrics\n"
        "gauge = metrics.get_meter('m').create_gauge('loss')\n"
        "for step in range(100):\n"
        "    gauge.set(step, {'training.step': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    options = ["--log-with", "tensorboard", "--project-dir", "out", "--project", "p", "--delivery", "process"]
    done = subprocess.run(
        [COMMAND, "run", *options, "--", sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    assert "delivered 100  pending 0" in done.stderr
    assert "[killed]" in done.stderr
