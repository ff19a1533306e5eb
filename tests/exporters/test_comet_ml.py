"""Comet beyond the contract: what importing it does to others, logins, archives of earlier starts."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_tracking.errors import ConfigurationError
from otel_tracking.records import RunStatus
from otel_tracking_exporters.comet_ml import CometMLTracker
from tests.given import T0, batch, run_info

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def messages(archive: Path) -> list[dict[str, Any]]:
    with zipfile.ZipFile(archive) as file:
        return [json.loads(line)["payload"] for line in file.read("messages.json").decode().splitlines()]


def archives(place: Path) -> list[Path]:
    return sorted((place / "project" / "run-1" / "comet").glob("*.zip"))


IMPORTED = """
import os, sys
from torch.utils.tensorboard import SummaryWriter
import sklearn.linear_model
before = SummaryWriter.add_scalar, sklearn.linear_model.LinearRegression.fit, sys.excepthook
import otel_tracking_exporters.comet_ml
assert (SummaryWriter.add_scalar, sklearn.linear_model.LinearRegression.fit, sys.excepthook) == before
assert "COMET_DISABLE_AUTO_LOGGING" not in os.environ
import mlflow
assert "comet" not in mlflow.log_metric.__module__
print("as it was")
"""


def test_importing_it_changes_nothing(run_script: Run) -> None:
    """`import comet_ml` itself patches what it finds."""
    assert run_script(IMPORTED).stdout == "as it was\n"


def test_without_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMET_START_ONLINE")
    with pytest.raises(ConfigurationError, match="set COMET_API_KEY, or run offline with COMET_START"):
        CometMLTracker().start(run_info(tmp_path))


def test_points_have_their_own_times(tmp_path: Path) -> None:
    tracker = CometMLTracker()
    tracker.start(run_info(tmp_path))
    tracker.write(batch([("a", 5, 0.5), ("a", -3, 0.25)]))
    assert tracker.confirm(flush=True) == 2
    tracker.finish(RunStatus.FAILED)
    (archive,) = archives(tmp_path)
    found = messages(archive)
    metrics = [
        (m["metric"]["step"], m["metric"]["metricValue"], m["local_timestamp"])
        for m in found
        if m.get("metric", {}).get("metricName") == "a"
    ]
    assert metrics == [
        (5, 0.5, (T0 + 10**9) // 10**6),
        (-3, 0.25, (T0 + 2 * 10**9) // 10**6),
    ]
    assert [m["value"] for m in found if m.get("key") == "otel_tracking.status"] == ["failed"]


@pytest.mark.parametrize("status", [RunStatus.FINISHED, RunStatus.FAILED, RunStatus.KILLED])
def test_a_bad_end_is_a_crash(tmp_path: Path, status: RunStatus) -> None:
    """As by Comet's own excepthook: `comet upload` says so, too. Also where it is not known why."""
    tracker = CometMLTracker()
    tracker.start(run_info(tmp_path))
    tracker.finish(status)
    (archive,) = archives(tmp_path)
    with zipfile.ZipFile(archive) as file:
        about = json.loads(file.read("experiment.json"))
    message = {"failed": "the run failed", "killed": "the run was killed"}.get(status)
    assert about["customer_error_reported"] == (message is not None)
    assert about["customer_error_message"] == message


def test_an_earlier_archive_is_retired(tmp_path: Path) -> None:
    first = CometMLTracker()
    first.start(run_info(tmp_path))
    state = dict(first.state())
    first.finish(RunStatus.KILLED)
    again = CometMLTracker()
    assert again.start(run_info(tmp_path, position=1, state=state)) == 0
    again.finish(RunStatus.FINISHED)
    assert len(archives(tmp_path)) == 1
    assert len(list((tmp_path / "project" / "run-1" / "comet-retired").iterdir())) == 1


def test_a_wrong_argument(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Comet refused its arguments"):
        CometMLTracker().start(run_info(tmp_path, options={"experiment_key": "too short"}))
