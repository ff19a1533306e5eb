"""All nine trackers in one process: they start and end in time, and none disturbs the program or another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OFFLINE_SWITCHES = {"WANDB_MODE", "COMET_START_ONLINE", "CLEARML_OFFLINE_MODE", "SWANLAB_MODE"}

PROGRAM = """
import json, logging, signal, sys, threading, time, traceback
import otel_tracking as ot

def hook(*error): traceback.print_exception(*error)
def handler(number, frame): pass
sys.excepthook = hook
signal.signal(signal.SIGTERM, handler)
before = (sys.excepthook, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
          threading.excepthook, sys.stdout, sys.stderr, sys.stdin)
logger = logging.getLogger().handlers[:]

begun = time.monotonic()
tracking = ot.Tracking(log_with="all", project_dir="runs")
made = time.monotonic() - begun
begun = time.monotonic()
tracking.init_trackers("together", config={"lr": 0.1})
called = time.monotonic() - begun
waited = {}
for name in sorted(tracking.receipt().trackers):
    asked = time.monotonic()
    tracking.get_tracker(name)
    waited[name] = time.monotonic() - asked
started = time.monotonic() - begun

# Somebody else's use of two of them: neither may land in a third.
from torch.utils.tensorboard import SummaryWriter
import mlflow
mlflow.set_tracking_uri("sqlite:///own.db")
with mlflow.start_run():
    mlflow.log_metric("own", 1.0)
writer = SummaryWriter("own")
writer.add_scalar("own", 1.0, 0)
writer.close()

for step in range(100):
    tracking.log({"loss": 1 / (step + 1)}, step=step)
begun = time.monotonic()
tracking.end_training()
ended = time.monotonic() - begun
after = (sys.excepthook, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
         threading.excepthook, sys.stdout, sys.stderr, sys.stdin)
receipt = tracking.receipt()
print(json.dumps({
    "made": made, "called": called, "waited": waited, "started": started, "ended": ended, "at": time.time(),
    "same": [a is b for a, b in zip(before, after)],
    "handlers": logging.getLogger().handlers == logger,
    "delivered": {name: tracker.delivered for name, tracker in receipt.trackers.items()},
    "alive": [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()],
}))
"""


def _messages(archive: Path) -> bytes:
    import zipfile

    with zipfile.ZipFile(archive) as file:
        return file.read("messages.json")


def run_with_packets_dropped(program: str, directory: Path, environ: dict[str, str]) -> dict[str, Any]:
    """What a program says in a network of its own that answers nothing."""
    script = directory / "script.py"
    script.write_text(program)
    # What is sent to any other machine comes back to this one, which drops it: there is no answer, ever.
    setup = (
        "ip link set lo up && ip addr add 10.9.9.1/24 dev lo && ip route add default via 10.9.9.2 dev lo && "
        f"exec {sys.executable} {script}"
    )
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", setup],
        cwd=directory,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_none_disturbs_another_or_hangs_when_packets_are_dropped(
    tmp_path: Path, size: Callable[[int, int], int]
) -> None:
    """No call of the program waits for a tracker's server, and nor does its exit."""
    said = run_with_packets_dropped(PROGRAM, tmp_path, os.environ | {"WANDB_ERROR_REPORTING": "true"})
    exited = time.time() - said["at"]
    assert len(said["delivered"]) == 9
    assert set(said["delivered"].values()) == {100}
    assert all(said["same"])
    assert said["handlers"]
    assert said["alive"] == []
    assert said["called"] < 5  # `init_trackers` returns before trackers have started
    # `make soak` runs it alone.
    assert said["made"] + said["started"] < size(60, 15), said
    assert max(*said["waited"].values(), exited) < size(60, 15), said
    assert said["ended"] < size(60, 20), said
    (archive,) = (tmp_path / "runs" / "together").rglob("*.zip")
    assert b'"own"' not in _messages(archive)


ONLINE = """
import json, os, time
import otel_tracking.tracking
import otel_tracking as ot
from otel_tracking.errors import NotStarted

ONLINE = ["clearml", "comet_ml", "swanlab", "wandb"]
otel_tracking.tracking._FAILING_TIMEOUT = float(os.environ["PATIENCE"])
tracking = ot.Tracking(log_with=[*ONLINE, "tensorboard"], project_dir="runs")
took = {}

def timed(name, call):
    begun = time.monotonic()
    try:
        return call()
    except NotStarted as error:
        refused[name] = str(error)
    finally:
        took[name] = time.monotonic() - begun

refused = {}
timed("init_trackers", lambda: tracking.init_trackers("alone"))
for name in tracking.receipt().trackers:
    timed(name, lambda: tracking.get_tracker(name))
for step in range(100):
    tracking.log({"loss": 1 / (step + 1)}, step=step)
timed("end_training", tracking.end_training)
delivered = {name: tracker.delivered for name, tracker in tracking.receipt().trackers.items()}
print(json.dumps({"took": took, "refused": refused, "delivered": delivered, "ended": time.time()}))
"""


def test_nothing_hangs_online_when_packets_are_dropped(
    tmp_path: Path, size: Callable[[int, int], int]
) -> None:
    """Of four trackers that want their servers, and would wait for minutes: no call does, nor the exit."""
    server = "http://10.77.0.9"
    environ = {k: v for k, v in os.environ.items() if k not in OFFLINE_SWITCHES} | {
        "WANDB_API_KEY": 40 * "0",
        "COMET_API_KEY": 25 * "a",
        "CLEARML_API_ACCESS_KEY": "key",
        "CLEARML_API_SECRET_KEY": "secret",
        "CLEARML_API_HOST": f"{server}:8008",
        "CLEARML_WEB_HOST": f"{server}:8080",
        "CLEARML_FILES_HOST": f"{server}:8081",
        "SWANLAB_API_KEY": 21 * "a",
        "PATIENCE": str(size(3, 10)),
    }
    said = run_with_packets_dropped(ONLINE, tmp_path, environ)
    exited = time.time() - said["ended"]
    assert max(*said["took"].values(), exited) < size(60, 15), said
    assert set(said["refused"]) == {"clearml", "comet_ml", "swanlab", "wandb"}
    assert said["delivered"] == {**dict.fromkeys(said["refused"], 0), "tensorboard": 100}
