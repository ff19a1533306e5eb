"""`otel-tracking sync`: a journal goes into trackers later, as it would have gone then."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_tracking.records import RunStatus
from otel_tracking.runs import RunOnDisk, find_runs, receipt
from otel_tracking_exporters._wandb_file import read_wandb
from tests import readback
from tests.damage import unseal

RunScript = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = str(Path(sys.executable).with_name("otel-tracking"))
TRACKERS = ("tensorboard", "mlflow", "wandb")

TRAIN = """
import math, os, signal, sys
import otel_tracking as ot
from opentelemetry import metrics

trackers = [name for name in sys.argv[1].split(",") if name]
tracking = ot.Tracking(log_with=trackers, project_dir="outputs", run_id="run", run_name="first")
tracking.init_trackers("p", config={"lr": 0.1, "layers": [1, 2], "none": None})
counter = metrics.get_meter("m").create_counter("samples")
for step in range(300):
    tracking.log({"loss": 1 / (step + 1), "acc": {"a": step, "b": -step}}, step=step)
    counter.add(3, {"training.step": step, "kind": "image"})
tracking.log({"odd": math.nan, "Train/Loss": math.inf, "note": "some text"}, step=5)
tracking.log({"loss": 7.0}, step=1, log_kwargs={"tensorboard": {"walltime": 12.5}})
if "kill" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
tracking.end_training(timeout=60)
"""
POINTS = 300 * 4 + 3


def sync(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "sync", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def only(project_dir: Path) -> RunOnDisk:
    (run,) = find_runs(project_dir)
    return run


def stored(project_dir: Path) -> dict[str, object]:
    """All that three trackers hold of the one run in there."""
    run = project_dir / "p" / "run"
    (in_mlflow,) = readback.mlflow_runs(project_dir, "p")
    file = read_wandb(readback.wandb_file(run))
    return {
        "tensorboard": readback.tensorboard(run),
        "wandb": [
            {name: repr(value) for name, value in row.items() if name != "_runtime"} for row in file.history
        ],
        "mlflow": readback.mlflow_points(project_dir, in_mlflow),
        "names": (file.run.display_name, file.run.run_id, in_mlflow.info.run_name),
        "configs": (file.config, in_mlflow.data.params),
        "ends": (file.exit_code, in_mlflow.info.status),
    }


def files_of(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_what_is_delivered_later_is_what_would_have_been_delivered_then(
    run_script: RunScript, tmp_path: Path
) -> None:
    run_script(TRAIN, ",".join(TRACKERS))
    later = tmp_path / "later" / "p" / "run"
    later.mkdir(parents=True)
    there = tmp_path / "outputs" / "p" / "run"
    shutil.copytree(there / "journal", later / "journal")
    shutil.copy(there / "run.json", later)

    to = [word for name in TRACKERS for word in ("--to", name)]
    done = sync(str(later), *to, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{POINTS:,} points recorded" in done.stderr
    assert stored(tmp_path / "later") == stored(tmp_path / "outputs")
    found = receipt(only(tmp_path / "later"))
    assert found.complete
    assert {name: t.state for name, t in found.trackers.items()} == dict.fromkeys(
        sorted(TRACKERS), "finished"
    )

    before = files_of(tmp_path / "later")
    again = sync(str(later), *to, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert files_of(tmp_path / "later") == before


def test_offline_is_one_switch_for_all_trackers(run_script: RunScript, tmp_path: Path) -> None:
    run_script(TRAIN, "tensorboard,mlflow", "kill", env={"OTEL_TRACKING_DELIVERY": "off"}, check=False)
    assert not list((tmp_path / "outputs").rglob("*tfevents*"))
    assert not (tmp_path / "outputs" / "mlflow.db").exists()
    found = receipt(only(tmp_path / "outputs"))
    assert {name: t.pending for name, t in found.trackers.items()} == {
        "tensorboard": POINTS,
        "mlflow": POINTS,
    }

    done = sync("ru", cwd=tmp_path)  # the beginning of its id
    assert done.returncode == 0, done.stderr
    found = receipt(only(tmp_path / "outputs"))
    assert {name: t.delivered for name, t in found.trackers.items()} == {
        "tensorboard": POINTS,
        "mlflow": POINTS,
    }
    (in_mlflow,) = readback.mlflow_runs(tmp_path / "outputs", "p")
    assert in_mlflow.info.status == "KILLED"


def test_a_directory_that_was_moved_is_synced_where_it_is(run_script: RunScript, tmp_path: Path) -> None:
    run_script(TRAIN, "tensorboard,mlflow", env={"OTEL_TRACKING_DELIVERY": "off"})
    moved = (tmp_path / "outputs").rename(tmp_path / "moved")
    done = sync("--all", cwd=tmp_path)
    assert "there are no runs" in done.stderr
    done = sync("--all", "--project-dir", "moved", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "outputs").exists()
    assert len(readback.tensorboard(moved / "p" / "run")["loss"]) == 301
    assert len(readback.mlflow_runs(moved, "p")) == 1


def test_a_run_is_followed_while_it_is_recorded(tmp_path: Path) -> None:
    source = """
import os, signal, sys
import otel_tracking as ot
tracking = ot.Tracking(log_with="tensorboard", project_dir="outputs", run_id="run", delivery="off")
tracking.init_trackers("p")
for line in sys.stdin:
    for step in range(int(line), int(line) + 10):
        tracking.log({"loss": float(step)}, step=step)
    print("recorded", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = tmp_path / "outputs" / "p" / "run"

    def steps() -> list[int]:
        return (
            [point.step for point in readback.tensorboard(run).get("loss", [])]
            if any(run.glob("*tfe*"))
            else []
        )

    def until(count: int) -> None:
        deadline = time.monotonic() + 60
        while steps() != list(range(count)):
            assert time.monotonic() < deadline, steps()
            time.sleep(0.1)

    with subprocess.Popen(
        [sys.executable, "-c", source], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdin is not None
        assert trainer.stdout is not None
        trainer.stdin.write("0\n")
        trainer.stdin.flush()
        assert trainer.stdout.readline() == "recorded\n"
        left_alone = sync("run", cwd=tmp_path)
        assert left_alone.returncode == 1
        assert "pending 10" in left_alone.stderr
        with subprocess.Popen(
            [COMMAND, "sync", "run", "--follow"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        ) as follower:
            until(10)
            trainer.stdin.write("10\n")
            trainer.stdin.flush()
            until(20)
            assert follower.poll() is None
            trainer.stdin.close()
            _, said = follower.communicate(timeout=60)
        assert follower.returncode == 0, said
    assert trainer.returncode == -signal.SIGKILL
    assert receipt(only(tmp_path / "outputs")).trackers["tensorboard"].state == RunStatus.KILLED


def test_ranks_go_to_a_tracker_that_is_new_to_them(run_script: RunScript, tmp_path: Path) -> None:
    source = """
import otel_tracking as ot
tracking = ot.Tracking(project_dir="outputs", ranks="all")
tracking.init_trackers("p")
tracking.log({"rank": float(tracking.rank.rank)}, step=1)
tracking.end_training()
"""
    env = {"OTEL_TRACKING_RUN_ID": "run"}
    run_script(source, launcher=("-m", "torch.distributed.run", "--nproc-per-node", "2"), env=env)
    run = tmp_path / "outputs" / "p" / "run"
    nothing = sync("run", cwd=tmp_path)
    assert "no tracker is to get this run" in nothing.stderr
    assert sync("run", "--to", "tensorboard", "--ranks", "all", cwd=tmp_path).returncode == 0
    for rank in (0, 1):
        ((point,),) = readback.tensorboard(run / f"rank-{rank}").values()
        assert point.value == readback.bits(float(rank))
    assert sync("run", "--to", "mlflow", cwd=tmp_path).returncode == 0
    (main,) = readback.mlflow_runs(tmp_path / "outputs", "p")
    assert main.data.metrics == {"rank": 0.0}


def test_a_journal_that_is_gone_or_odd_is_said_and_others_are_synced(
    run_script: RunScript, tmp_path: Path
) -> None:
    run_script(TRAIN, "tensorboard", env={"OTEL_TRACKING_DELIVERY": "off"})
    good = tmp_path / "outputs" / "p" / "run"
    bad = good.with_name("bad")
    shutil.copytree(good, bad)
    (bad / "run.json").write_text(
        json.dumps({**json.loads((good / "run.json").read_text()), "run_id": "bad"})
    )
    segment = next(bad.rglob("*.segment"))
    data = bytearray(segment.read_bytes())
    data[8:12] = (99).to_bytes(4, "little")
    segment.write_bytes(data)
    unseal(bad)
    done = sync("--all", cwd=tmp_path)
    assert done.returncode == 1
    assert "journal version 99" in done.stderr
    (run,) = find_runs(tmp_path / "outputs", "run")
    assert receipt(run).complete


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "name one run, or give --all"),
        (["x", "--all"], "name one run, or give --all"),
        (["x"], "there is no run 'x'"),
        (["x", "--to", "tensorbord"], "Did you mean 'tensorboard'"),
        (["x", "--ranks", "some"], "some"),
    ],
)
def test_what_can_not_be_done_is_said(arguments: list[str], text: str, tmp_path: Path) -> None:
    done = sync(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
