"""A run that nobody ends: in all trackers at once, the exit of the interpreter delivers and closes it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from otel_tracking import discovery
from otel_tracking.capabilities import Feature, Level
from tests.contract.stored import readers
from tests.readback import double

Run = Callable[..., "subprocess.CompletedProcess[str]"]

PROGRAM = """
import otel_tracking as ot

tracking = ot.Tracking(log_with="all", project_dir="runs", run_id="the-run")
tracking.init_trackers("contract", config={"lr": 0.5})
for step in range(100):
    tracking.log({"loss": step / 4}, step=step)
raise RuntimeError("boom")
"""


def test_the_interpreter_ends(run_script: Run, tmp_path: Path) -> None:
    """Some trackers' packages close runs in exit handlers of their own, which come first or last."""
    places = {"TRACKIO_DIR": str(tmp_path / "trackio"), "CLEARML_CACHE_DIR": str(tmp_path / "clearml")}
    done = run_script(PROGRAM, env=places, check=False)
    assert done.returncode == 1, done.stderr
    for tracker, reader in readers().items():
        stored = reader.read(tmp_path)
        found = [(point.step, double(point.value)) for point in stored.points[reader.name("loss")]]
        assert sorted(found) == [(step, step / 4) for step in range(100)], tracker
        declaration = discovery.declaration(tracker)
        assert declaration is not None
        if tracker == "wandb":
            assert stored.status == "1"
        elif declaration.of(Feature.STATUS).level is not Level.NOT_STORED and tracker != "tensorboard":
            assert stored.status == "failed", tracker
