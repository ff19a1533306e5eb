"""A run is gone on with: by name, by directory, by a checkpoint; and goes back to a step."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

import otel_tracking as ot
from otel_tracking.testing import RecordingTracker
from otel_tracking_exporters._wandb_file import read_wandb
from tests import readback

pytestmark = pytest.mark.mlflow_database("out")

RunScript = Callable[..., subprocess.CompletedProcess[str]]

TRAIN = """
import json, os, signal, sys
import otel_tracking as ot

first, last, resume, rewind, kill = json.loads(sys.argv[1])
tracking = ot.Tracking(log_with=["tensorboard", "mlflow", "wandb"], project_dir="out")
tracking.init_trackers("p", config={"lr": 0.1}, resume=resume, resume_from_step=rewind)
for step in range(first, last):
    tracking.log({"loss": 1 / (step + 1), "acc": {"a": float(step), "b": -float(step)}}, step=step)
print(tracking.run_id)
if kill:
    assert tracking.flush(60)
    for step in range(last, last + 20):
        tracking.log({"loss": 1 / (step + 1), "acc": {"a": float(step), "b": -float(step)}}, step=step)
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
tracking.end_training(timeout=60)
receipt = tracking.receipt()
assert receipt.complete, receipt
print(json.dumps({name: dict(t.not_stored) for name, t in receipt.trackers.items()}))
"""


def train(run_script: RunScript, *arguments: Any, check: bool = True) -> list[str]:
    done = run_script(TRAIN, json.dumps(arguments), check=check)
    assert check or done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.splitlines()


def stored_steps(run: Path, tag: str = "loss") -> list[int]:
    return [point.step for point in readback.tensorboard(run).get(tag, [])]


def test_a_killed_run_goes_on_as_one_run_in_every_tracker(run_script: RunScript, tmp_path: Path) -> None:
    (run_id,) = train(run_script, 0, 60, None, None, True, check=False)
    again, _ = train(run_script, 80, 100, run_id, None, False)
    assert again == run_id
    out = tmp_path / "out"
    assert [path.name for path in (out / "p").iterdir()] == [run_id]
    run = out / "p" / run_id
    steps = list(range(100))
    assert stored_steps(run) == stored_steps(run, "acc/b") == steps
    (in_mlflow,) = readback.mlflow_runs(out, "p")
    assert [p.step for p in readback.mlflow_points(out, in_mlflow)["loss"]] == steps
    assert in_mlflow.info.status == "FINISHED"
    assert [point.step for point in readback.wandb(run)["loss"]] == steps
    assert read_wandb(readback.wandb_file(run)).exit_code == 0


def test_going_back_to_a_step_leaves_nothing_stale_in_tensorboard(
    run_script: RunScript, tmp_path: Path
) -> None:
    (run_id,) = train(run_script, 0, 60, None, None, True, check=False)
    _, said = train(run_script, 50, 70, str(tmp_path / "out" / "p" / run_id), 50, False)
    run = tmp_path / "out" / "p" / run_id
    # 0-59 and the 20 after them were recorded before the kill, of which 50 and later are void.
    assert stored_steps(run) == stored_steps(run, "acc/a") == list(range(70))
    assert {
        name: count
        for name, reasons in json.loads(said).items()
        for reason, count in reasons.items()
        if "recorded before a rewind" in reason
    } == {"mlflow": 1, "wandb": 1}
    everything = [*range(80), *range(50, 70)]
    assert [point.step for point in readback.wandb(run)["loss"]] == everything
    assert [point.step for point in readback.journal(run)["loss"]] == everything


def test_back_to_the_beginning_and_charts_are_there_again(run_script: RunScript, tmp_path: Path) -> None:
    (run_id,) = train(run_script, 0, 5, None, None, True, check=False)
    train(run_script, 0, 3, run_id, 0, False)
    run = tmp_path / "out" / "p" / run_id
    assert stored_steps(run) == [0, 1, 2]
    events = EventAccumulator(str(run), size_guidance={"tensors": 0}).Reload()
    assert [event.step for event in events.Tensors("acc/b")] == [0, 1, 2]
    assert len(events.Tensors("custom_scalars__config__")) == 1
    assert events.SummaryMetadata("_hparams_/session_start_info")


class TestWithTrackersInMemory:
    """One process; each run has a tracker of its own."""

    def run(self, tmp_path: Path, **init: Any) -> tuple[ot.Tracking, RecordingTracker]:
        tracker = RecordingTracker()
        tracking = ot.Tracking(log_with=tracker, project_dir=tmp_path / "out")
        tracking.init_trackers("p", **init)
        return tracking, tracker

    def test_a_rewind_comes_in_order(self, tmp_path: Path) -> None:
        tracking, tracker = self.run(tmp_path)
        tracking.log({"a": 1}, step=7)
        tracking.rewind(-3)
        tracking.log({"a": 2}, step=-3)
        tracking.end_training()
        assert [rewind.step for rewind in tracker.rewinds] == [-3]
        first, second = tracker.points("a")
        assert first.position < tracker.rewinds[0].position < second.position
        assert tracking.receipt().complete
        assert tracking.receipt().recorded == 2

    @pytest.mark.parametrize("step", [1.0, True, "3", 2**63, None])
    def test_a_step_is_an_integer(self, tmp_path: Path, step: Any) -> None:
        tracking, _ = self.run(tmp_path)
        with pytest.raises(ot.ConfigurationError, match="an integer is needed"):
            tracking.rewind(step)
        tracking.end_training()

    def test_what_is_not_there_is_not_resumed(self, tmp_path: Path) -> None:
        tracking, _ = self.run(tmp_path)
        tracking.end_training()
        with pytest.raises(ot.RunNotFound, match=f"no run 'lost' in .*{tracking.run_id}"):
            tracking.init_trackers("p", resume="lost")
        with pytest.raises(ot.ConfigurationError, match="no run of the project 'q'"):
            tracking.init_trackers("q", resume=tracking.run_directory)
        for hostile in ("..", "", "a\x00b", "../../etc"):
            with pytest.raises(ot.ConfigurationError):
                tracking.init_trackers("p", resume=hostile)

    def test_a_run_elsewhere_is_resumed_where_it_lies(self, tmp_path: Path) -> None:
        tracking, _ = self.run(tmp_path)
        tracking.end_training()
        there = tracking.run_directory
        assert there is not None
        other = ot.Tracking(log_with=RecordingTracker(), project_dir=tmp_path / "elsewhere")
        other.init_trackers("p", resume=there)
        other.end_training()
        assert (other.run_id, other.run_directory) == (tracking.run_id, there)

    def test_a_checkpoint_names_the_run(self, tmp_path: Path) -> None:
        tracking, _ = self.run(tmp_path)
        tracking.log({"a": 1}, step=1)
        state = json.loads(json.dumps(tracking.state_dict()))
        tracking.end_training()
        tracker = RecordingTracker()
        later = ot.Tracking(log_with=tracker, project_dir=tmp_path / "out")
        later.load_state_dict(state)
        with pytest.raises(ot.ConfigurationError, match="project 'p', and not of 'q'"):
            later.init_trackers("q")
        later.init_trackers("p", resume_from_step=1)
        later.log({"a": 2}, step=1)
        later.end_training()
        assert later.run_id == tracking.run_id
        assert [point.value for point in tracker.points("a")] == [2]
        assert later.receipt().recorded == 2

    def test_a_checkpoint_that_comes_late_ends_the_run_that_began(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tracking, _ = self.run(tmp_path)
        state = tracking.state_dict()
        tracking.end_training()
        later, tracker = self.run(tmp_path, config={"lr": 1})
        begun = later.state_dict()["run_id"]
        assert begun != state["run_id"]
        later.load_state_dict(state)
        assert f"the run {begun} is ended" in caplog.text
        later.load_state_dict(state)  # by now it is that run
        assert caplog.text.count("is ended") == 1
        later.log({"a": 1}, step=1)
        later.end_training()
        assert later.run_id == tracking.run_id
        assert tracker.config == {"lr": 1}
        assert len(tracker.points("a")) == 1

    @pytest.mark.parametrize("state", [{}, {"version": 2, "project": "p", "run_id": "x"}, [], None])
    def test_what_is_no_state_is_refused(self, tmp_path: Path, state: Any) -> None:
        with pytest.raises(ot.ConfigurationError, match="nothing that state_dict"):
            ot.Tracking(project_dir=tmp_path).load_state_dict(state)


def test_checkpoints_of_accelerate_hold_the_run(run_script: RunScript, tmp_path: Path) -> None:
    source = """
import sys
from accelerate import Accelerator
import otel_tracking as ot

accelerator = Accelerator(cpu=True)
tracking = ot.Tracking(log_with="tensorboard", project_dir="out")
accelerator.register_for_checkpointing(tracking)
if "resume" in sys.argv:
    accelerator.load_state("checkpoint")
tracking.init_trackers("p")
tracking.log({"loss": len(sys.argv)}, step=len(sys.argv))
if "resume" not in sys.argv:
    accelerator.save_state("checkpoint")
tracking.end_training()
print(tracking.run_id)
"""
    first = run_script(source).stdout.split()[-1]
    assert run_script(source, "resume").stdout.split()[-1] == first
    assert stored_steps(tmp_path / "out" / "p" / first) == [1, 2]


def test_ranks_resume_together(run_script: RunScript, tmp_path: Path) -> None:
    source = """
import sys
import otel_tracking as ot

tracking = ot.Tracking(log_with="tensorboard", project_dir="out", ranks="all")
tracking.init_trackers("p", resume=sys.argv[1] if len(sys.argv) > 1 else None)
tracking.log({"loss": 1.0}, step=len(sys.argv))
tracking.end_training()
"""
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    env = {"OTEL_TRACKING_RUN_ID": "first", "OMP_NUM_THREADS": "1"}
    run_script(source, launcher=launcher, env=env)
    run_script(source, "first", launcher=launcher)
    for rank in (0, 1):
        assert stored_steps(tmp_path / "out" / "p" / "first" / f"rank-{rank}") == [1, 2]
    assert [path.name for path in (tmp_path / "out" / "p").iterdir()] == ["first"]
