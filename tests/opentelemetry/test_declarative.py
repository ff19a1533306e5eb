"""`OTEL_CONFIG_FILE` names trackers as exporters, with their options; a meter provider it can't name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from otel_tracking.reading import read_run
from tests import readback

INSTRUMENT = str(Path(sys.executable).with_name("opentelemetry-instrument"))

CONFIGURATION = """
file_format: "1.0"
resource:
  attributes:
    - name: service.name
      value: bert
meter_provider:
  readers:
    - periodic:
        interval: 3600000
        exporter:
          tensorboard:
            project: declared
            project_dir: kept
            run_name: first
tracer_provider:
  processors:
    - batch:
        exporter:
          tensorboard:
            project: declared
            project_dir: kept
            run_name: first
"""
PROGRAM = """
from opentelemetry import metrics, trace

loss = metrics.get_meter("train").create_gauge("loss")
for step in range(5):
    with trace.get_tracer("train").start_as_current_span("epoch", attributes={"training.step": step}):
        loss.set(step / 4)
"""


@pytest.mark.parametrize("distro", ["distro", "otel_tracking"])
def test_trackers_by_a_configuration_file(tmp_path: Path, distro: str) -> None:
    (tmp_path / "otel.yaml").write_text(CONFIGURATION)
    (tmp_path / "train.py").write_text(PROGRAM)
    done = subprocess.run(
        [INSTRUMENT, sys.executable, "train.py"],
        cwd=tmp_path,
        env={
            **os.environ,
            "OTEL_CONFIG_FILE": "otel.yaml",
            "OTEL_PYTHON_DISTRO": distro,
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Failed" not in done.stderr
    (run,) = (tmp_path / "kept" / "declared").iterdir()
    points = readback.tensorboard(run)
    assert [readback.double(point.value) for point in points["loss"]] == [1.0]
    # Of the spans that we record ourselves, the durations reach the SDK's metrics too, once a collect.
    durations = [[p.step for p in points[tag]] for tag in points if tag.startswith("time/epoch")]
    assert [0, 1, 2, 3, 4] in durations
    assert len(durations) == (2 if distro == "otel_tracking" else 1)
    journals = list(tmp_path.glob("outputs/*/*/run.json"))
    assert len(journals) == (distro == "otel_tracking")  # the variable asks for every point as well
    for journal in journals:
        assert read_run(journal.parent).of("loss").steps.tolist() == [0, 1, 2, 3, 4]
