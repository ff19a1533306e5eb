"""`otel-tracking run`: exit codes, signals, and what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import readback

COMMAND = str(Path(sys.executable).with_name("otel-tracking"))

RECORD = """
import os, signal, sys, time
from opentelemetry import metrics

loss = metrics.get_meter("train").create_gauge("loss")
for step in range(1000):
    loss.set(float(step), {"training.step": step})
"""


def launch(tmp_path: Path, ending: str, *options: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "train.py"
    script.write_text(RECORD + ending)
    return subprocess.run(
        [COMMAND, "run", *options, "--", sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )


def only_run(tmp_path: Path) -> Path:
    (description,) = tmp_path.glob("outputs/*/*/run.json")
    return description.parent


def losses(tmp_path: Path) -> list[int]:
    return [p.step for p in readback.tensorboard(only_run(tmp_path))["loss"]]


@pytest.mark.mlflow_database("outputs")
@pytest.mark.parametrize(
    ("ending", "code", "status"),
    [
        ("", 0, "finished"),
        ("sys.exit(3)", 3, "failed"),
        ("raise RuntimeError('no')", 1, "failed"),
        ("os._exit(4)", 4, "failed"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL, "killed"),
    ],
)
def test_however_the_program_ends(tmp_path: Path, ending: str, code: int, status: str) -> None:
    done = launch(tmp_path, ending, "--log-with", "tensorboard,mlflow", "--project", "train")
    assert done.returncode == code, done.stderr
    assert done.stderr.count("delivered 1,000  pending 0  dropped 0") == 2, done.stderr
    assert losses(tmp_path) == list(range(1000))
    (run,) = readback.mlflow_runs(tmp_path / "outputs", "train")
    assert run.info.status == status.upper()
    assert len(readback.mlflow_points(tmp_path / "outputs", run)["loss"]) == 1000


def test_a_signal_reaches_the_program(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(RECORD + "print('ready', flush=True)\ntime.sleep(60)\n")
    command = [COMMAND, "run", "--log-with", "tensorboard", "--", sys.executable, str(script)]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "ready\n"
        launcher.send_signal(signal.SIGTERM)
        _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGTERM, errors
    assert losses(tmp_path) == list(range(1000))


def test_a_program_that_records_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [COMMAND, "run", "--", sys.executable, "-c", "print('hello')"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert "nothing was recorded" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_tracker_that_does_not_exist(tmp_path: Path) -> None:
    done = launch(tmp_path, "", "--log-with", "tensorbord")
    assert done.returncode == 2
    assert "Did you mean 'tensorboard'?" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_ranks_that_do_not_parse(tmp_path: Path) -> None:
    done = launch(tmp_path, "", "--ranks", "every")
    assert done.returncode == 2
    assert "unknown rank policy 'every'" in done.stderr


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    done = subprocess.run(
        [COMMAND, "run", "--", "no-such-command"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 127
    assert "no-such-command can't be run" in done.stderr


def test_the_same_run_id_goes_on(tmp_path: Path) -> None:
    for _ in range(2):
        done = launch(tmp_path, "", "--log-with", "tensorboard", "--run-id", "again")
        assert done.returncode == 0, done.stderr
    assert "2,000 points recorded" in done.stderr
    assert losses(tmp_path) == [*range(1000), *range(1000)]


def test_names_from_outside_do_not_reach_the_terminal(tmp_path: Path) -> None:
    done = launch(tmp_path, "", "--project", "\x1b[2J\u202e../../x", "--log-with", "tensorboard")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr
    assert "\u202e" not in done.stderr
    run = only_run(tmp_path)
    assert run.parent.parent == tmp_path / "outputs"


def test_a_missing_package_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("raise ImportError('no wandb here')")
    script = tmp_path / "train.py"
    script.write_text(RECORD)
    done = subprocess.run(
        [COMMAND, "run", "--log-with", "wandb,tensorboard", "--", sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Tried adding logger wandb, but package is unavailable in the system.") == 1
    assert losses(tmp_path) == list(range(1000))


def test_the_program_starts_at_once(tmp_path: Path) -> None:
    """Nothing of a tracker is imported before the program runs."""
    started = time.monotonic()
    program = (
        "import sys; print([m for m in ('torch', 'mlflow', 'wandb', 'tensorboard') if m in sys.modules])"
    )
    done = subprocess.run(
        [COMMAND, "run", "--log-with", "all", "--", sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "[]\n"
    assert time.monotonic() > started
