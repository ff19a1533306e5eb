"""The facade: the tutorial's words and errors, what `log` takes, handles, ranks, and how runs end.

In this process a test has a recorder of its own and the global providers are left alone; what a
process does only once (providers, exit, fork) is tested in scripts, in test_process.py.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.metrics import CallbackOptions, Observation
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

import otel_tracking as ot
from otel_tracking import tracking as tracking_module
from otel_tracking.blank import Blank
from otel_tracking.final_error import status_of
from otel_tracking.journal.entries import Entry
from otel_tracking.journal.stream import Points, RecordStream
from otel_tracking.process import Process
from otel_tracking.records import RunStatus
from otel_tracking.testing import RecordingTracker
from tests.plugin_site import Site


class Second(RecordingTracker):
    name = "second"


class NeedsDirectory(RecordingTracker):
    name = "needs_directory"
    requires_logging_directory = True


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    made = Process()
    monkeypatch.setattr(made, "install", lambda: None)
    monkeypatch.setattr(tracking_module, "process", lambda: made)
    yield made
    made.end(RunStatus.FINISHED, 5)
    made.recorder.close(RunStatus.FINISHED)
    atexit.unregister(made._at_exit)


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


@pytest.fixture
def without_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker `absent` is installed, and the package it drives is not."""
    site = Site(tmp_path / "site")
    site.install("absent", "import a_package_that_is_not_installed")
    monkeypatch.syspath_prepend(site.directory)


# What may be asked for


def test_the_tutorials_words(tmp_path: Path) -> None:
    tracker, second = RecordingTracker(), Second()
    tracking = ot.Tracking(log_with=[tracker, second], project_dir=tmp_path)
    tracking.init_trackers("bert", config={"lr": 0.1}, init_kwargs={"second": {"entity": "me"}})
    for step in range(3):
        tracking.log({"train/loss": 1.0 / (step + 1)}, step=step)
    tracking.log(
        {"eval": {"accuracy": 0.5, "note": "good"}}, step=3, log_kwargs={"second": {"commit": False}}
    )
    tracking.log_text({"sample": "text"}, step=3)
    tracking.end_training()
    for each in (tracker, second):
        assert [(p.tag, p.step, p.value) for p in each.points()] == [
            ("train/loss", 0, 1.0),
            ("train/loss", 1, 0.5),
            ("train/loss", 2, 1.0 / 3),
            ("eval/accuracy", 3, 0.5),
        ]
        assert [(t.tag, t.text, t.step) for t in each.texts] == [
            ("eval/note", "good", 3),
            ("sample", "text", 3),
        ]
        assert each.config == {"lr": 0.1}
        assert each.status is RunStatus.FINISHED
    assert tracker.run is not None
    assert second.run is not None
    assert (dict(tracker.run.options), dict(second.run.options)) == ({}, {"entity": "me"})
    assert [dict(o) for b in second.batches for o in b.options.values()] == [{"commit": False}]
    assert not any(b.options for b in tracker.batches)
    receipt = tracking.receipt()
    assert receipt.complete
    assert (receipt.run_id, receipt.recorded) == (tracking.run_id, 4)
    assert tracking.run_directory == tmp_path / "bert" / tracking.run_id


@pytest.mark.parametrize(
    "log_with", ["tensorboard", " tensorboard , mlflow ", ["tensorboard"], ("tensorboard",)]
)
def test_ways_to_name_trackers(tmp_path: Path, log_with: Any) -> None:
    tracking = ot.Tracking(log_with=log_with, project_dir=tmp_path)
    with pytest.raises(ot.ConfigurationError, match="tensorboard"):
        tracking.get_tracker("nope")


@pytest.mark.parametrize(
    "log_with", [RecordingTracker, RecordingTracker(), [RecordingTracker], {RecordingTracker}]
)
def test_classes_and_instances_are_trackers(tmp_path: Path, log_with: Any) -> None:
    tracking = ot.Tracking(log_with=log_with, project_dir=tmp_path)
    tracking.init_trackers("p")
    tracking.log({"a": 1.0}, step=0)
    assert tracking.flush(20)
    assert [p.value for p in tracking.get_tracker("recording").points()] == [1.0]


@pytest.mark.parametrize("log_with", [5, [None], [object()], int, b"wandb", ["tensorboard", 3]])
def test_what_is_no_tracker_is_refused(tmp_path: Path, log_with: Any) -> None:
    with pytest.raises(ot.ConfigurationError, match="log_with takes names"):
        ot.Tracking(log_with=log_with, project_dir=tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x" * 200, "a b", "-x"])
def test_a_trackers_own_name_is_fit_for_files(tmp_path: Path, name: str) -> None:
    odd = type("Odd", (RecordingTracker,), {"name": name})
    with pytest.raises(ot.ConfigurationError, match="a tracker's name is"):
        ot.Tracking(log_with=odd(), project_dir=tmp_path)


def test_an_unknown_name_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ot.UnknownTracker, match="Did you mean 'tensorboard'"):
        ot.Tracking(log_with="tensorbord", project_dir=tmp_path)
    with pytest.raises(ot.UnknownTracker, match=r"Known: .*mlflow"):
        ot.Tracking(log_with="zzzz", project_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_needed_where_one_is_needed(tmp_path: Path) -> None:
    sentence = "Logging with `tensorboard` requires a `logging_dir` to be passed in."
    with pytest.raises(ValueError, match=sentence):
        ot.Tracking(log_with="tensorboard")
    with pytest.raises(ot.LoggingDirectoryRequired) as caught:
        ot.Tracking(log_with=["mlflow", "all", NeedsDirectory()])
    assert caught.value.tracker == "needs_directory"
    ot.Tracking(log_with="tensorboard", project_dir=tmp_path)
    ot.Tracking(log_with="tensorboard", logging_dir=tmp_path)
    ot.Tracking(log_with=RecordingTracker())


def test_the_environments_directory_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACKING_PROJECT_DIR", str(tmp_path / "env"))
    tracking = ot.Tracking(log_with=NeedsDirectory())
    tracking.init_trackers("p")
    assert tracking.run_directory is not None
    assert tracking.run_directory.parent == tmp_path / "env" / "p"


@pytest.mark.usefixtures("without_package")
def test_all_leaves_out_what_can_not_be_used_and_lists_it() -> None:
    tracking = ot.Tracking(log_with="all")
    assert set(tracking.left_out) >= {"absent", "tensorboard"}
    assert "package is unavailable" in tracking.left_out["absent"]
    assert "requires a `logging_dir`" in tracking.left_out["tensorboard"]
    with pytest.raises(ot.ConfigurationError, match="requires a `logging_dir`"):
        tracking.get_tracker("tensorboard")
    with_directory = ot.Tracking(log_with="all", project_dir="outputs")
    assert "tensorboard" not in with_directory.left_out
    assert "absent" in with_directory.left_out


@pytest.mark.usefixtures("without_package")
def test_a_tracker_named_in_code_whose_package_is_missing() -> None:
    with pytest.raises(ot.TrackerNotInstalled) as caught:
        ot.Tracking(log_with=["absent", "all"], project_dir="outputs")
    assert isinstance(caught.value, ImportError)
    assert "Tried adding logger absent, but package is unavailable in the system." in str(caught.value)
    assert "pip install 'otel-tracking[absent]'" in str(caught.value)


@pytest.mark.usefixtures("without_package")
def test_from_the_environment_what_is_wrong_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACKING_LOG_WITH", "absent, tensorbord,tensorboard,tensorboard")
    monkeypatch.setenv("OTEL_TRACKING_RANKS", "mian")
    tracking = ot.Tracking()
    assert "Tried adding logger absent, but package is unavailable in the system." in caplog.text
    assert "Did you mean 'tensorboard'" in caplog.text
    assert "OTEL_TRACKING_RANKS is ignored" in caplog.text
    assert list(tracking.left_out) == ["absent"]
    tracking.init_trackers("p")
    tracking.log({"a": 1.0}, step=0)
    tracking.end_training()
    assert tracking.run_directory == tmp_path / "outputs" / "p" / tracking.run_id
    assert scalars(tracking.run_directory) == {"a": [(0, 1.0)]}
    assert len(ot.read_run(tracking.run_directory)) == 1


def test_no_tracker_is_only_a_journal(tmp_path: Path) -> None:
    tracking = ot.Tracking(project_dir=tmp_path)
    tracking.init_trackers("p")
    tracking.log({"a": 1.0}, step=0)
    assert tracking.flush(1)
    tracking.end_training()
    assert tracking.receipt().complete
    assert tracking.run_directory is not None
    assert len(ot.read_run(tracking.run_directory)) == 1


def test_delivery_off_is_only_a_journal(tmp_path: Path) -> None:
    tracker = RecordingTracker()
    tracking = ot.Tracking(log_with=tracker, project_dir=tmp_path, delivery="off")
    tracking.init_trackers("p")
    tracking.log({"a": 1.0}, step=0)
    assert tracking.flush(1)
    with pytest.raises(ot.NotStarted, match="delivery is off"):
        tracking.get_tracker("recording")
    tracking.end_training()
    assert tracker.calls == []
    assert tracking.run_directory is not None
    (cursor,) = (tracking.run_directory / "cursors").glob("*.json")
    assert cursor.name == "rank-00000-recording.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delivery": "proces"}, "delivery can't be 'proces': known are thread, process, off"),
        ({"budget": 0}, "budget is a number above 0"),
        ({"budget": 2.0}, "budget is a number above 0"),
        ({"ranks": "mian"}, "Did you mean 'main'"),
        ({"ranks": {"wnadb": "all"}}, "Did you mean 'wandb'"),
    ],
)
def test_wrong_arguments_are_explained(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ot.ConfigurationError, match=message):
        ot.Tracking(project_dir=tmp_path, **arguments)


def test_init_kwargs_are_for_trackers(tmp_path: Path) -> None:
    tracking = ot.Tracking(log_with=RecordingTracker(), project_dir=tmp_path)
    tracking.init_trackers("p", init_kwargs={"wandb": {"name": "known, and not used here"}})
    with pytest.raises(ot.ConfigurationError, match=r"init_kwargs\['wnadb'\] is for no tracker"):
        tracking.init_trackers("p", init_kwargs={"wnadb": {}})


# Before, after, between


def test_what_needs_a_run_says_so(tmp_path: Path) -> None:
    tracking = ot.Tracking(log_with=RecordingTracker(), project_dir=tmp_path)
    for call in (
        lambda: tracking.log({"a": 1.0}),
        lambda: tracking.log_text({"a": "x"}),
        lambda: tracking.get_tracker("recording"),
        tracking.receipt,
    ):
        with pytest.raises(ot.NotStarted, match="call init_trackers"):
            call()
    assert tracking.flush(0)
    assert tracking.run_id == ""
    assert tracking.run_directory is None
    tracking.end_training()
    assert list(tmp_path.iterdir()) == []


def test_config_before_the_run_and_after(tmp_path: Path) -> None:
    tracker = RecordingTracker()
    tracking = ot.Tracking(log_with=tracker, project_dir=tmp_path)
    tracking.store_init_configuration({"before": 1, "lr": 0.1})
    tracking.init_trackers("p", config={"lr": 0.2})
    tracking.store_init_configuration(argparse.Namespace(after=2))
    tracking.end_training()
    assert tracker.config == {"before": 1, "lr": 0.2, "after": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_each_run_counts_what_it_refused_itself(tmp_path: Path) -> None:
    tracking = ot.Tracking(log_with=[], project_dir=tmp_path)
    tracking.init_trackers("p")
    tracking.log({"a": 1.0, "b": object()}, step=0)
    tracking.end_training()
    tracking.log({"a": 1.0}, step=1)
    first = tracking._session
    assert first is not None
    refused = {"object is not a number": 1, "recorded after the run had ended": 1}
    assert tracking.receipt().not_recorded == refused
    tracking.init_trackers("p")
    tracking.log({"a": 1.0, "b": []}, step=0)
    tracking.end_training()
    assert tracking.receipt().not_recorded == {"list is not a number": 1}
    assert first.receipt().not_recorded == refused


def test_reading_a_run_ends_though_more_is_recorded_than_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = ot.Tracking(log_with=[], project_dir=tmp_path)
    tracking.init_trackers("p")
    tracking.log({"a": 1.0}, step=-1)
    row = {f"a{i}": 1.0 for i in range(4096)}
    read = RecordStream.read
    reads = 0

    def record_and_read(stream: RecordStream, slots: int) -> list[Points | Entry] | None:
        nonlocal reads
        reads += 1
        assert reads < 100
        for step in range(64):  # 2 MiB; a read takes 512 KiB
            tracking.log(row, step=step)
        return read(stream, slots)

    monkeypatch.setattr(RecordStream, "read", record_and_read)
    assert tracking.run_directory is not None
    data = ot.read_run(tracking.run_directory)
    assert data.steps[0] == -1
    assert len(data) > 1


def test_logging_after_the_end_is_counted_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = ot.Tracking(log_with=RecordingTracker(), project_dir=tmp_path)
    tracking.init_trackers("p")
    tracking.log({"a": 1.0}, step=0)
    tracking.end_training()
    tracking.end_training()
    for step in range(5):
        tracking.log({"a": 1.0}, step=step)
    tracking.log_text({"a": "x"}, step=9)
    receipt = tracking.receipt()
    assert receipt.recorded == 1
    assert receipt.not_recorded == {"recorded after the run had ended": 6}
    told = [r for r in caplog.records if "after the end of the run" in r.getMessage()]
    assert len(told) == 1
    assert tracking.get_tracker("recording").status is RunStatus.FINISHED


def test_one_run_after_the_other(tmp_path: Path, process: Process) -> None:
    gauge = process.provider.get_meter("train").create_gauge("loss")
    first, second = RecordingTracker(), RecordingTracker()
    ids = []
    for phase, tracker in enumerate((first, second)):
        tracking = ot.Tracking(log_with=tracker, project_dir=tmp_path)
        tracking.init_trackers(f"phase-{phase}", config={"phase": phase})
        gauge.set(float(phase), {"training.step": phase})
        tracking.log({"a": float(phase)}, step=phase)
        tracking.end_training()
        ids.append(tracking.run_id)
        assert tracking.receipt().complete
    assert len(set(ids)) == 2
    assert [(p.tag, p.value) for p in first.points()] == [("loss", 0.0), ("a", 0.0)]
    assert [(p.tag, p.value) for p in second.points()] == [("loss", 1.0), ("a", 1.0)]
    assert (first.config, second.config) == ({"phase": 0}, {"phase": 1})


def test_a_second_init_ends_the_first_run(tmp_path: Path) -> None:
    trackers: list[RecordingTracker] = []

    class Kept(RecordingTracker):
        def __init__(self) -> None:
            super().__init__()
            trackers.append(self)

    tracking = ot.Tracking(log_with=Kept, project_dir=tmp_path)
    for phase in range(3):
        tracking.init_trackers("p")
        tracking.log({"a": float(phase)}, step=0)
    tracking.end_training()
    assert [[p.value for p in tracker.points()] for tracker in trackers] == [[0.0], [1.0], [2.0]]
    assert [tracker.status for tracker in trackers] == [RunStatus.FINISHED] * 3


def test_an_ended_tracking_does_not_end_anothers_run(tmp_path: Path) -> None:
    older, newer = RecordingTracker(), RecordingTracker()
    with ot.Tracking(log_with=older, project_dir=tmp_path) as outer:
        outer.init_trackers("p")
        outer.log({"a": 1.0}, step=0)
        inner = ot.Tracking(log_with=newer, project_dir=tmp_path)
        inner.init_trackers("p")
    assert older.status is RunStatus.FINISHED
    assert newer.status is None
    inner.log({"a": 2.0}, step=0)
    inner.end_training()
    assert [p.value for p in newer.points()] == [2.0]
    assert outer.receipt().recorded == 1


def test_a_run_that_can_not_begin_leaves_the_error_to_its_caller(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("a file where the project's directory should be")
    tracking = ot.Tracking(log_with=RecordingTracker(), project_dir=tmp_path)
    with pytest.raises(OSError, match="p"):
        tracking.init_trackers("p")
    with pytest.raises(ot.NotStarted):
        tracking.log({"a": 1.0})


# How runs end


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, RunStatus.FINISHED),
        (ValueError("nan loss"), RunStatus.FAILED),
        (KeyboardInterrupt(), RunStatus.KILLED),
        (SystemExit(), RunStatus.FINISHED),
        (SystemExit(0), RunStatus.FINISHED),
        (SystemExit(1), RunStatus.FAILED),
        (SystemExit("message"), RunStatus.FAILED),
    ],
    ids=repr,
)
def test_the_context_manager_knows_how_it_ended(
    tmp_path: Path, error: BaseException | None, status: RunStatus
) -> None:
    tracker = RecordingTracker()

    def train() -> None:
        with ot.Tracking(log_with=tracker, project_dir=tmp_path) as tracking:
            tracking.init_trackers("p")
            tracking.log({"a": 1.0}, step=0)
            if error is not None:
                raise error

    if error is None:
        train()
    else:
        with pytest.raises(type(error)):
            train()
    assert status_of(error) is status
    assert tracker.status is status


def test_end_training_takes_a_status(tmp_path: Path) -> None:
    tracker = RecordingTracker()
    tracking = ot.Tracking(log_with=tracker, project_dir=tmp_path)
    tracking.init_trackers("p")
    with pytest.raises(ot.ConfigurationError, match="status can't be 'crashed'"):
        tracking.end_training(status="crashed")
    tracking.end_training(status="killed")
    assert tracker.status is RunStatus.KILLED


def test_a_callback_that_raises_does_not_keep_the_run_open(
    tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("downstream")

    monkeypatch.setattr(process.provider, "before_end", broken)
    tracker = RecordingTracker()
    tracking = ot.Tracking(log_with=tracker, project_dir=tmp_path)
    tracking.init_trackers("p")
    tracking.end_training()
    assert tracker.status is RunStatus.FINISHED


def test_observables_are_asked_once_at_the_end(tmp_path: Path, process: Process) -> None:
    asked: list[float] = []

    def look(options: CallbackOptions) -> list[Observation]:
        asked.append(1.0)
        return [Observation(float(len(asked)))]

    process.provider.get_meter("m").create_observable_gauge("memory", [look])
    tracking = ot.Tracking(log_with=RecordingTracker(), project_dir=tmp_path)
    tracking.init_trackers("p")
    tracking.end_training()
    tracking.end_training()
    assert len(asked) == 1
    assert tracking.receipt().recorded == 1
    assert not tracking.receipt().not_recorded


# Handles


def test_get_tracker_gives_the_handle_and_the_sdks_own(tmp_path: Path) -> None:
    tracking = ot.Tracking(log_with="tensorboard", project_dir=tmp_path)
    tracking.init_trackers("p")
    handle = tracking.get_tracker("tensorboard")
    handle.log({"by/handle": 1.0}, step=1)
    tracking.get_tracker("tensorboard", unwrap=True).add_scalar("by/native", 2.0, global_step=2)
    tracking.log({"by/log": 3.0}, step=3)
    tracking.end_training()
    assert tracking.run_directory is not None
    assert scalars(tracking.run_directory) == {
        "by/handle": [(1, 1.0)],
        "by/native": [(2, 2.0)],
        "by/log": [(3, 3.0)],
    }


def test_get_tracker_of_what_did_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ot.ConfigurationError("no such entity")

    def down() -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(tracking_module, "_FAILING_TIMEOUT", 0.3)
    trackers = [RecordingTracker(faults={"start": refuse}), Second(faults={"start": down})]
    tracking = ot.Tracking(log_with=trackers, project_dir=tmp_path)
    tracking.init_trackers("p")
    begun = time.monotonic()
    with pytest.raises(
        ot.NotStarted, match="'recording' has not started: ConfigurationError: no such entity"
    ):
        tracking.get_tracker("recording")
    with pytest.raises(ot.NotStarted, match="'second' has not started: ConnectionError: refused"):
        tracking.get_tracker("second")
    assert time.monotonic() - begun < 20
    tracking.end_training(timeout=0.1)


def test_get_tracker_waits_for_one_that_starts_at_the_second_try(tmp_path: Path) -> None:
    faults: dict[str, Callable[[], object]] = {}

    def once() -> None:
        faults.clear()
        raise ConnectionError("refused")

    faults["start"] = once
    tracker = RecordingTracker(faults=faults)
    tracking = ot.Tracking(log_with=tracker, project_dir=tmp_path)
    tracking.init_trackers("p")
    assert tracking.get_tracker("recording") is tracker


def test_a_blank_stands_for_anything() -> None:
    blank: Any = Blank()
    assert blank.writer.add_graph(1, x=2).anything["key"].more is blank
    assert not blank
    assert list(blank) == []
    assert len(blank) == 0
    assert "x" not in blank
    blank.attribute = 5
    blank["key"] = 5
    assert blank.attribute is blank
    assert blank["key"] is blank
    with blank.start_run() as run:
        assert run is blank
    assert copy.deepcopy(blank).log({}) is not None
    with pytest.raises(ValueError, match="mine"), blank.scope():
        raise ValueError("mine")


# Ranks


def test_a_rank_that_is_not_wanted_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    tracker = RecordingTracker()
    tracking = ot.Tracking(log_with=[tracker, "tensorboard"], project_dir=tmp_path / "never")
    assert not tracking.is_main_process
    tracking.store_init_configuration({"a": 1})
    tracking.init_trackers("p", config={"lr": 0.1})
    tracking.log({"a": 1.0}, step=0)
    tracking.log_text({"a": "x"})
    assert tracking.flush(0)
    native: Any = tracking.get_tracker("tensorboard", unwrap=True)
    native.add_scalar("a", 1.0)
    with pytest.raises(ot.ConfigurationError):
        tracking.get_tracker("wandb")
    receipt = tracking.receipt()
    assert (receipt.recorded, receipt.trackers, receipt.not_recorded) == (0, {}, {})
    tracking.end_training()
    assert tracker.calls == []
    assert not (tmp_path / "never").exists()
    assert tracking.run_directory is None


def test_policies_by_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("OTEL_TRACKING_RUN_ID", "shared")
    wanted, unwanted = RecordingTracker(), Second()
    ranks: dict[str, str | Collection[int]] = {"recording": [1], "*": "main"}
    tracking = ot.Tracking(log_with=[wanted, unwanted], project_dir=tmp_path, ranks=ranks)
    tracking.init_trackers("p")
    tracking.log({"a": 1.0}, step=0)
    assert isinstance(tracking.get_tracker("second"), Blank)
    assert tracking.get_tracker("recording") is wanted
    tracking.end_training()
    assert len(wanted.points()) == 1
    assert unwanted.calls == []
    assert list(tracking.receipt().trackers) == ["recording"]


def test_opentelemetrys_own_switch_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "TRUE")
    tracker = RecordingTracker()
    tracking = ot.Tracking(log_with=tracker, project_dir=tmp_path / "never")
    tracking.init_trackers("p", config={"lr": 1})
    tracking.log({"a": 1.0}, step=0)
    tracking.end_training()
    assert tracker.calls == []
    assert not (tmp_path / "never").exists()


# Values and options


@dataclasses.dataclass
class Optimizer:
    name: str = "adam"
    betas: tuple[float, float] = (0.9, 0.999)


@dataclasses.dataclass
class Settings:
    lr: float = 0.1
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)


@pytest.mark.parametrize(
    ("config", "stored"),
    [
        ({"a": {"b": [1, None, {"c": "x"}]}, "n": None}, {"a": {"b": [1, None, {"c": "x"}]}, "n": None}),
        (Settings(), {"lr": 0.1, "optimizer": {"name": "adam", "betas": [0.9, 0.999]}}),
        (argparse.Namespace(lr=np.float32(0.5), n=np.int64(3)), {"lr": 0.5, "n": 3}),
        ({}, {}),
        ({"long": "x" * 100_000}, {"long": "x" * 100_000}),
    ],
    ids=["nested", "dataclass", "namespace", "empty", "long"],
)
def test_config_of_any_shape(tmp_path: Path, config: Any, stored: dict[str, Any]) -> None:
    tracker = RecordingTracker()
    tracking = ot.Tracking(log_with=[tracker, "tensorboard"], project_dir=tmp_path)
    tracking.init_trackers("p", config=config)
    tracking.end_training()
    assert tracker.config == stored
    receipt = tracking.receipt()
    assert receipt.trackers["tensorboard"].not_stored == receipt.trackers["tensorboard"].stored_altered == {}
    assert not receipt.trackers["tensorboard"].errors


def test_values_of_any_kind_and_any_step(tmp_path: Path) -> None:
    tracker = RecordingTracker()
    tracking = ot.Tracking(log_with=tracker, project_dir=tmp_path)
    tracking.init_trackers("p")
    tracking.log({"f32": np.float32(0.5), "i": 3, "b": True, "nan": math.nan}, step=5)
    tracking.log({"low": -math.inf}, step=-3)
    tracking.log({"auto": 1.0})
    tracking.log({"auto": 2.0})
    with ot.step(41):
        tracking.log({"scoped": 1.0})
    tracking.log({"bad": object()}, step=1)
    tracking.log({"bad step": 1.0}, step="seven")  # type: ignore[arg-type]  # what users do
    tracking.log([1, 2], step=1)  # type: ignore[arg-type]  # what users do
    tracking.end_training()
    points = {(p.tag, p.step): p.value for p in tracker.points()}
    assert math.isnan(points.pop(("nan", 5)))
    assert points == {
        ("f32", 5): 0.5,
        ("i", 5): 3.0,
        ("b", 5): 1.0,
        ("low", -3): -math.inf,
        ("auto", 0): 1.0,
        ("auto", 1): 2.0,
        ("scoped", 41): 1.0,
    }
    assert sum(tracking.receipt().not_recorded.values()) == 3


def test_walltime_goes_to_tensorboard(tmp_path: Path) -> None:
    other = RecordingTracker()
    tracking = ot.Tracking(log_with=["tensorboard", other], project_dir=tmp_path)
    tracking.init_trackers("p")
    tracking.log({"a": 1.0, "b": 2.0}, step=0, log_kwargs={"tensorboard": {"walltime": 1234.5}})
    tracking.log({"a": 3.0}, step=1)
    tracking.end_training()
    assert tracking.run_directory is not None
    accumulator = EventAccumulator(str(tracking.run_directory), size_guidance={"scalars": 0})
    accumulator.Reload()
    walls = [event.wall_time for event in accumulator.Scalars("a")]
    assert walls[0] == accumulator.Scalars("b")[0].wall_time == 1234.5
    assert abs(walls[1] - time.time()) < 60
    assert not any(batch.options for batch in other.batches)


def test_the_runs_name_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACKING_RUN_NAME", "from the environment")
    tracker, second = RecordingTracker(), RecordingTracker()
    with ot.Tracking(log_with=tracker, project_dir=tmp_path, run_name="in code") as tracking:
        tracking.init_trackers("p")
    with ot.Tracking(log_with=second, project_dir=tmp_path, run_id="mine") as tracking:
        tracking.init_trackers("p")
    assert tracker.run is not None
    assert second.run is not None
    assert tracker.run.name == "in code"
    assert (second.run.name, second.run.run_id) == ("from the environment", "mine")


def test_meters_choose_what_is_recorded(tmp_path: Path, process: Process) -> None:
    tracker = RecordingTracker()
    tracking = ot.Tracking(log_with=tracker, project_dir=tmp_path, meters=["train", "!train.noisy"])
    tracking.init_trackers("p")
    for meter in ("train", "other", "train.noisy"):
        process.provider.get_meter(meter).create_gauge(f"g.{meter}").set(1.0, {"training.step": 1})
    tracking.end_training()
    assert [p.tag for p in tracker.points()] == ["g.train"]


def test_training_hears_nothing_of_broken_trackers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise RuntimeError("boom")

    methods = ("start", "write", "write_text", "write_config", "confirm", "state", "finish")
    every: dict[str, Callable[[], object]] = dict.fromkeys(methods, broken)
    whole = RecordingTracker()
    tracking = ot.Tracking(
        log_with=[Second(faults=every), NeedsDirectory(faults={"write": broken}), whole], project_dir=tmp_path
    )
    with caplog.at_level(logging.WARNING):
        tracking.init_trackers("p", config={"lr": 0.1})
        for step in range(1000):
            tracking.log({"a": float(step)}, step=step)
        begun = time.monotonic()
        tracking.end_training(timeout=1)
    assert time.monotonic() - begun < 20
    assert [p.step for p in whole.points()] == list(range(1000))
    receipt = tracking.receipt()
    assert list(receipt.trackers["second"].errors) == ["RuntimeError: boom"]
    assert "RuntimeError: boom" in str(receipt)
    assert len(caplog.records) < 10
