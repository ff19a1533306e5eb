"""W&B, on the real SDK offline: what a `.wandb` file holds afterwards."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from otel_tracking.errors import ConfigurationError, NotStarted
from otel_tracking.records import Batch, Config, Kind, Rank, RunInfo, RunStatus, Series, Text
from otel_tracking.tracking import Tracking
from otel_tracking_exporters import wandb as exporter
from otel_tracking_exporters._wandb_file import WandbRun, read_history, read_wandb
from otel_tracking_exporters.wandb import POSITION, WandbMetricExporter, WandbSpanExporter, WandbTracker
from tests.given import run_info as info

STEP = "training/step"
T0 = 1_790_000_000_123_456_789
Point = tuple[str, int, float, int]
"""Tag, step, value, position."""


@pytest.fixture(autouse=True)
def _finished() -> Iterator[None]:
    """No test leaves a run open to the next one."""
    yield
    for run in list(exporter._own_runs):
        run.finish()
        exporter._own_runs.discard(run)
    if wandb.run:
        wandb.run.finish()


def batch(
    points: Sequence[Point],
    options: Mapping[int, Mapping[str, Any]] | None = None,
    times: Sequence[int] | None = None,
) -> Batch:
    tags = list(dict.fromkeys(point[0] for point in points))
    return Batch(
        [Series(tag, tag, Kind.GAUGE) for tag in tags],
        np.array([tags.index(point[0]) for point in points], np.int32),
        np.array([point[1] for point in points], np.int64),
        np.array(times or [T0 + point[3] for point in points], np.int64),
        np.array([point[2] for point in points], np.float64),
        np.array([point[3] for point in points], np.int64),
        options or {},
    )


def started(tmp_path: Path, **changes: Any) -> WandbTracker:
    tracker = WandbTracker()
    assert tracker.start(info(tmp_path, **changes)) == 0
    return tracker


def stored(tracker: WandbTracker, status: RunStatus = RunStatus.FINISHED) -> WandbRun:
    tracker.finish(status)
    return read_wandb(Path(tracker.state()["directory"]))


def ours(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without W&B's and our bookkeeping."""
    hidden = {POSITION, "_step", "_timestamp", "_runtime"}
    return {name: value for name, value in row.items() if name not in hidden}


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_values_are_bit_exact_in_order_with_step_time_and_position(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    random = rng.integers(0, 2**64, 300, dtype=np.uint64).view(np.float64).tolist()
    special = [math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, 1e308, 1e22, 0.1, 1 / 3, 2.0**53 + 2, -1.0]
    values = [math.nan if math.isnan(value) else value for value in random] + special
    tracker = started(tmp_path)
    points = [("loss", 1000 - n, value, 32 * (n + 1)) for n, value in enumerate(values)]
    written = tracker.write(batch(points))
    assert (written.accepted, written.altered, written.rejected) == (len(values), {}, {})
    rows = stored(tracker).history
    assert [bits(float(row["loss"])) for row in rows] == [bits(value) for value in values]
    assert [row[STEP] for row in rows] == [point[1] for point in points]
    assert [row[POSITION] for row in rows] == [point[3] for point in points]
    assert [row["_timestamp"] for row in rows] == [(T0 + point[3]) / 1e9 for point in points]
    assert [row["_step"] for row in rows] == list(range(len(values)))


def test_two_axes_lower_steps_and_huge_steps_are_all_kept(tmp_path: Path) -> None:
    steps = [100, 200, 1, 200, 200, 2, -5, 0, 2**53 + 1, 2**63 - 1, -(2**63), 3]
    tracker = started(tmp_path)
    tracker.write(batch([("acc", step, n, n + 1) for n, step in enumerate(steps)]))
    rows = stored(tracker).history
    assert [(row[STEP], row["acc"]) for row in rows] == [(step, n) for n, step in enumerate(steps)]


def test_a_row_is_one_row_unless_wandb_can_not_hold_it(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    points = [
        ("a", 1, 1, 8),
        ("b", 1, 2, 8),
        ("a", 2, 3, 16),
        ("b", 3, 4, 16),
        ("b", 3, 5, 16),
        ("a", 4, 6, 24),
    ]
    tracker.write(batch(points))
    rows = stored(tracker).history
    assert [ours(row) for row in rows] == [
        {"a": 1, "b": 2, STEP: 1},
        {"a": 3, STEP: 2},
        {"b": 4, STEP: 3},
        {"b": 5, STEP: 3},
        {"a": 6, STEP: 4},
    ]
    # A position is stored with the last part only: a file torn in between claims less.
    assert [row[POSITION] for row in rows] == [8, 8, 8, 16, 24]


def test_points_of_one_row_with_two_times_keep_both(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.write(batch([("a", 1, 1, 8), ("b", 1, 2, 8)], times=[T0, T0 + 10**9]))
    assert [row["_timestamp"] for row in stored(tracker).history] == [T0 / 1e9, (T0 + 10**9) / 1e9]


HOSTILE = [
    "",
    ".",
    "..",
    "/",
    "//",
    "a//b",
    "../../etc/passwd",
    "a",
    "a.b",
    "a.",
    ".a",
    "A",
    " a",
    "a ",
    "a\n",
    "a\0b",
    "\u202eevil",
    "\u2066x",
    "\ufeffx",
    "\ud800",
    "x\udfffy",
    "_step",
    "_runtime",
    "_timestamp",
    "_wandb",
    "_mine",
    "_x5f_step",
    "_x_",
    STEP,
    "training/step ",
    "_x74_raining/step",
    "x_x74_",
    POSITION,
    "_otel_tracking/run",
    "*",
    "a*",
    "a*b",
    "a\\b",
    "a\\.b",
    'a"b',
    "é",
    "e\u0301",
    "日本",
    "\U0001f600",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "accuracy/class.cat",
    "a%2Fb",
    "k" * 4096,
    "k" * 4095 + "l",
    "<script>",
    "gradients/0.weight",
    "system/cpu",
]


def test_hostile_names_are_stored_apart_and_come_back(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.write(batch([(tag, n, n + 0.5, n + 1) for n, tag in enumerate(HOSTILE)]))
    rows = stored(tracker).history
    found = {}
    for row in rows:
        (name,) = ours(row).keys() - {STEP}
        found[WandbTracker.names.unescape(name)] = (row[STEP], row[name], row[POSITION])
        assert not any(ord(c) < 32 or c == "\u202e" for c in name)
    assert found == {tag: (n, n + 0.5, n + 1) for n, tag in enumerate(HOSTILE)}


@pytest.mark.parametrize(
    "tag", ["loss", "Train/Loss", "accuracy/class.cat", "_mine", "training/steps", "日本"]
)
def test_ordinary_names_stay_as_they_are(tag: str) -> None:
    assert WandbTracker.names.escape(tag) == tag


def test_charts_use_the_step_and_the_position_is_hidden(tmp_path: Path) -> None:
    metrics = stored(started(tmp_path)).metrics
    assert metrics["*"].step_metric == STEP
    assert metrics[POSITION].options.hidden


def test_config_is_kept_nested_and_long_and_may_come_twice(tmp_path: Path) -> None:
    values = {
        "optimizer": {"name": "adamw", "betas": [0.9, 0.999], "scheduler": {"warmup": None, "": {"x": True}}},
        "long": "y" * 20_000,
        "lr": 3e-4,
        "layers": [[1, 2], [3]],
        "seed": 2**70,
        "k.dot/slash": False,
    }
    tracker = started(tmp_path)
    assert tracker.write_config(Config(values, T0, 8)).altered == {}
    assert tracker.write_config(Config({"lr": 1.0, "later": "x"}, T0, 16)).altered == {}
    assert tracker.confirm(flush=True) == 16
    assert stored(tracker).config == {**values, "lr": 1.0, "later": "x"}


def test_config_that_wandb_would_lose_is_kept_as_text(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    values = {
        "": 1,
        "_wandb": 2,
        "--flag--": 3,
        "flag": 4,
        "nan": {"deep": [math.nan, -math.inf]},
        "art": "wandb-artifact://someone/model:v0",
        "ref": {"_type": "artifactVersion", "id": "x"},
        "\ud800": "\ud800",
    }
    written = tracker.write_config(Config(values, T0, 8))
    assert written.accepted == 1
    assert sum(written.altered.values()) == 1
    assert stored(tracker).config == {
        "_x_": 1,
        "_x5f_wandb": 2,
        "_x2d_-flag-_x2d_": 3,
        "flag": 4,
        "nan": {"deep": ["NaN", "-Infinity"]},
        "art": '"wandb-artifact://someone/model:v0"',
        "ref": json.dumps(values["ref"]),
        "_xd800_": "\\ud800",
    }


def test_config_too_deep_is_refused_and_counted(tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"d": deep}
    tracker = started(tmp_path)
    written = tracker.write_config(Config(deep, T0, 8))
    assert (written.accepted, written.rejected) == (0, {"config nested too deep for W&B": [0]})
    assert tracker.confirm(flush=True) == 8  # so that a flush does not wait for it


def test_text_is_a_row_of_its_own(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    texts = ["plain", "nul\0", "\u202eright", "<b>x</b>", "NaN", "é😀", "long " * 60_000]
    for n, text in enumerate(texts):
        assert tracker.write_text(Text("sample", text, 10 - n, T0 + n, n + 1)).altered == {}
    assert tracker.write_text(Text("sample", "\ud800", 0, T0, 90)).altered == {
        "lone surrogates are escaped": 1
    }
    rows = stored(tracker).history
    assert [row["sample"] for row in rows] == [*texts, "\\ud800"]
    assert [row[STEP] for row in rows] == [10 - n for n in range(len(texts))] + [0]


class TestCommitFalse:
    HOLD: Mapping[str, Any] = {"commit": False}

    def test_joins_the_next_row(self, tmp_path: Path) -> None:
        tracker = started(tmp_path)
        points = [("a", 1, 1, 8), ("b", 1, 2, 16), ("c", 1, 3, 24)]
        assert tracker.write(batch(points, {8: self.HOLD, 16: self.HOLD})).altered == {}
        (row,) = stored(tracker).history
        assert (ours(row), row[POSITION]) == ({"a": 1, "b": 2, "c": 3, STEP: 1}, 24)

    @pytest.mark.parametrize("following", [("b", 2, 2, 16), ("a", 1, 2, 16)])
    def test_is_stored_alone_where_joining_would_change_it(self, tmp_path: Path, following: Point) -> None:
        tracker = started(tmp_path)
        written = tracker.write(batch([("a", 1, 1, 8), following], {8: self.HOLD}))
        assert sum(written.altered.values()) == 1
        first, second = stored(tracker).history
        assert (ours(first), first[POSITION]) == ({"a": 1, STEP: 1}, 8)
        assert (ours(second), second[POSITION]) == ({following[0]: 2, STEP: following[1]}, 16)

    def test_is_not_confirmed_before_it_is_stored_and_stored_at_the_latest_by_finish(
        self, tmp_path: Path
    ) -> None:
        tracker = started(tmp_path)
        tracker.write(batch([("a", 1, 1, 8)]))
        tracker.write(batch([("b", 1, 2, 16)], {16: self.HOLD}))
        deadline = time.monotonic() + 20
        while tracker.confirm() < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert tracker.confirm() == 8
        assert tracker.confirm(flush=True) == 16
        tracker.write(batch([("c", 1, 3, 24)], {24: self.HOLD}))
        assert [ours(row) for row in stored(tracker).history] == [
            {"a": 1, STEP: 1},
            {"b": 2, STEP: 1},
            {"c": 3, STEP: 1},
        ]
        assert tracker.confirm() == 24


def test_other_log_options_are_counted(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    altered = tracker.write(batch([("a", 1, 1, 8), ("b", 1, 1, 8)], {8: {"step": 9, "sync": True}})).altered
    assert sorted(altered.values()) == [2, 2]
    assert stored(tracker).history[0][STEP] == 1


def test_the_same_batch_again_after_an_error_is_stored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = started(tmp_path)
    points = [("a", n, n, n + 1) for n in range(10)]
    log, calls = tracker._log, iter(range(100))

    def failing(row: dict[str, Any]) -> None:
        if next(calls) == 5:
            raise OSError("gone")
        log(row)

    monkeypatch.setattr(tracker, "_log", failing)
    with pytest.raises(OSError, match="gone"):
        tracker.write(batch(points))
    assert tracker.write(batch(points)).accepted == 10
    assert [row["a"] for row in stored(tracker).history] == list(range(10))


def test_confirm_rises_and_never_passes_what_is_on_disk(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    path = Path(tracker.state()["directory"])
    confirmed = [tracker.confirm()]
    for n in range(1, 1_500, 100):
        tracker.write(batch([("a", k, k, k) for k in range(n, n + 100)]))
        confirmed.append(tracker.confirm())
        rows = read_history(path)
        assert confirmed[-1] <= (rows[-1][POSITION] if rows else 0)
    assert confirmed == sorted(confirmed)
    began = time.monotonic()
    assert tracker.confirm(flush=True) == 1_500
    assert time.monotonic() - began < 8
    assert len(read_history(path)) == 1_500
    tracker.finish(RunStatus.FINISHED)
    assert tracker.confirm() == 1_500


def test_a_config_alone_is_confirmed_by_finish_too(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.write_config(Config({"a": 1}, T0, 8))
    assert tracker.confirm() == 0
    tracker.finish(RunStatus.FINISHED)
    assert tracker.confirm() == 8
    assert tracker.confirm(flush=True) == 8


@pytest.mark.parametrize(
    ("status", "code"), [(RunStatus.FINISHED, 0), (RunStatus.FAILED, 1), (RunStatus.KILLED, 255)]
)
def test_status_becomes_the_exit_code(tmp_path: Path, status: RunStatus, code: int) -> None:
    assert stored(started(tmp_path), status).exit_code == code


def test_finish_without_a_start_and_native_before_it() -> None:
    tracker = WandbTracker()
    tracker.finish(RunStatus.FAILED)
    assert tracker.state() == {}
    with pytest.raises(NotStarted):
        _ = tracker.native


def test_a_resumed_run_is_written_again_whole_and_the_old_folder_is_kept_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = started(tmp_path)
    first.write(batch([("a", n, n, n + 1) for n in range(5)]))
    first.native.log({"native": 1})
    old = Path(first.state()["directory"])
    first.finish(RunStatus.KILLED)
    second = WandbTracker()
    with caplog.at_level(logging.INFO):
        assert second.start(info(tmp_path, state=first.state(), position=5)) == 0
    second.write(batch([("a", n, n, n + 1) for n in range(8)]))
    assert [row["a"] for row in stored(second).history] == list(range(8))
    (retired,) = (tmp_path / "project" / "run-1" / "wandb-retired").iterdir()
    assert retired.name == old.name
    assert len(read_history(retired)) == 6
    (warning,) = [
        r for r in caplog.records if r.name.startswith("otel_tracking") and r.levelname == "WARNING"
    ]
    assert str(retired) in warning.getMessage()
    # What `wandb sync` would take: one file, with the id of the first.
    (left,) = (tmp_path / "project" / "run-1" / "wandb").glob("offline-run-*/*.wandb")
    assert left.name == f"run-{first.state()['id']}.wandb"


def test_a_folder_left_before_any_state_was_saved_is_retired_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        tracker = started(tmp_path)
        tracker.write(batch([("a", 1, 1, 1)]))
        tracker.finish(RunStatus.FINISHED)
    assert len(list((tmp_path / "project" / "run-1" / "wandb").glob("offline-run-*/*.wandb"))) == 1
    assert len(list((tmp_path / "project" / "run-1" / "wandb-retired").iterdir())) == 2
    assert not [record for record in caplog.records if record.name.startswith("otel_tracking")]


KILLED = """
import sys
from pathlib import Path
import numpy as np
from otel_tracking.records import Batch, Kind, RunInfo, Series
from otel_tracking_exporters.wandb import WandbTracker

directory = Path(sys.argv[1])
tracker = WandbTracker()
run = RunInfo("project", "run-1", "killed", directory, directory)
assert tracker.start(run) == 0
print(tracker.state()["directory"], flush=True)
at = 1
while True:
    column = np.arange(at, at + 50, dtype=np.int64)
    series = np.zeros(50, np.int32)
    tracker.write(Batch([Series("a", "a", Kind.GAUGE)], series, column, column, column / 7, column))
    at += 50
    print(tracker.confirm(), flush=True)
"""


def test_what_confirm_promised_survives_sigkill(tmp_path: Path) -> None:
    wandb.setup()  # this process's service, named in the environment, outlives the other process
    assert os.environ["WANDB_SERVICE"]
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        promised = 0
        while promised < 1_000:
            promised = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        promised = max([promised, *(int(line) for line in process.stdout.read().split())])
    rows = read_history(folder)
    assert [row["a"] for row in rows] == [(n + 1) / 7 for n in range(len(rows))]
    assert len(rows) >= promised >= 1_000
    assert read_wandb(folder).exit_code is None
    # And the run is free to be gone on with here.
    assert stored(started(tmp_path, name="killed")).run.run_id == "run-1"
    tracker = WandbTracker()
    assert tracker.start(RunInfo("project", "run-1", "again", tmp_path, tmp_path, position=promised)) == 0
    assert (tmp_path / "wandb-retired" / folder.name).is_dir()


def test_an_active_run_is_used_and_finished(tmp_path: Path) -> None:
    mine = wandb.init(project="sweep", id="mine", config={"lr": 1}, settings={"console": "off"})
    mine.log({"before": 1}, step=50)
    tracker = started(tmp_path, options={"tags": ["ignored"]})
    assert tracker.native is mine
    assert wandb.run is mine
    tracker.write(batch([("a", 3, 1, 8)]))
    wandb.log({"after": 2}, step=1)
    found = stored(tracker)
    assert wandb.run is None
    assert (found.exit_code, found.config) == (0, {"lr": 1})
    assert [ours(row) for row in found.history] == [{"before": 1, "a": 1, STEP: 3}, {"after": 2, STEP: 1}]
    # The folder is the user's: a restart leaves it alone.
    folder = Path(tracker.state()["directory"])
    started(tmp_path, state=tracker.state(), position=8)
    assert folder.is_dir()


def test_a_run_finished_natively_has_what_was_recorded_by_then(tmp_path: Path) -> None:
    tracking = Tracking(["wandb", "tensorboard"], project_dir=tmp_path)
    tracking.init_trackers("native")
    run = tracking.get_tracker("wandb", unwrap=True)
    for step in range(1_000):
        tracking.log({"a": step}, step=step)
    run.finish(exit_code=3)
    tracking.log({"a": 1_000}, step=1_000)  # what this run can't have any more, others get
    began = time.monotonic()
    tracking.end_training()
    assert time.monotonic() - began < 20
    (path,) = tmp_path.rglob("*.wandb")
    found = read_wandb(path)
    assert [(row[STEP], row["a"]) for row in found.history] == [(step, step) for step in range(1_000)]
    assert found.exit_code == 3
    receipts = tracking.receipt().trackers
    assert {name: receipt.pending for name, receipt in receipts.items()} == {"wandb": 1, "tensorboard": 0}


def test_two_trackers_in_one_process_are_two_runs(tmp_path: Path) -> None:
    first, second = started(tmp_path), WandbTracker()
    second.start(info(tmp_path, run_id="other"))
    first.write(batch([("a", 1, 1, 8)]))
    second.write(batch([("b", 1, 2, 8)]))
    assert [ours(row) for row in stored(second).history] == [{"b": 2, STEP: 1}]
    assert [ours(row) for row in stored(first).history] == [{"a": 1, STEP: 1}]


def test_native_rows_neither_disturb_ours_nor_get_lost(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    run = tracker.native
    assert isinstance(run, wandb.Run)

    def natively() -> None:
        for n in range(200):
            run.log({"native": n}, step=n % 3)

    thread = threading.Thread(target=natively)
    thread.start()
    for n in range(200):
        tracker.write(batch([("a", n, n, n + 1)]))
    thread.join()
    run.log({"open": 1}, commit=False)
    tracker.write(batch([("a", 200, 200, 201)]))
    run.alert("title", "text")
    found = stored(tracker)
    assert [row["a"] for row in found.history if "a" in row] == list(range(201))
    assert [(row["native"], row[STEP]) for row in found.history if "native" in row] == [
        (n, n % 3) for n in range(200)
    ]
    assert found.history[-1]["open"] == 1
    assert found.alerts == [("title", "text")]


def test_the_handle_speaks_accelerates_words(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    handle = tracker.handle
    assert handle.run is handle.tracker is tracker.native
    assert handle.id == "run-1"
    handle.store_init_configuration({"lr": 1})
    handle.log({"x": 1, STEP: 9, "text": "hello"}, step=7)
    pixels = np.zeros((4, 4, 3), np.uint8)
    handle.log_images({"samples": [pixels, wandb.Image(pixels)]}, step=2)
    handle.log_table("predictions", columns=["a", "b"], data=[[1, "x"]], step=1)
    handle.finish()
    tracker.write(batch([("a", 1, 1, 8)]))
    found = stored(tracker)
    logged, images, table, point = found.history
    assert ours(logged) == {"x": 1, WandbTracker.names.escape(STEP): 9, "text": "hello", STEP: 7}
    assert (images["samples._type"], images["samples.count"], images[STEP]) == ("images/separated", 2, 2)
    assert (table["predictions._type"], table[STEP]) == ("table-file", 1)
    assert ours(point) == {"a": 1, STEP: 1}
    assert found.config == {"lr": 1}


class TestInit:
    def test_defaults_name_the_run(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        tracker = started(tmp_path, project="a/b?", run_id="é/../x")
        assert "'a_x2f_b_x3f_'" in caplog.text
        found = stored(tracker)
        assert (found.run.project, found.run.display_name) == ("a_x2f_b_x3f_", "first try")
        assert found.run.run_id == "_xe9__x2f_.._x2f_x"
        assert Path(tracker.state()["directory"]).parent == tmp_path / "project" / "run-1" / "wandb"

    def test_ranks_have_runs_of_their_own_in_a_group(self, tmp_path: Path) -> None:
        found = stored(started(tmp_path, group="run-1", rank=Rank(rank=3, world_size=4)))
        assert (found.run.run_group, found.run.run_id) == ("run-1", "run-1~rank3")

    def test_long_ids_fit_and_differ(self, tmp_path: Path) -> None:
        ids = [started(tmp_path, run_id="r" * 300 + end).state()["id"] for end in "ab"]
        assert ids[0] != ids[1]
        assert max(map(len, ids)) <= 64

    def test_the_users_arguments_win(self, tmp_path: Path) -> None:
        options = {
            "project": "theirs",
            "name": "named",
            "id": "chosen",
            "tags": ["x"],
            "notes": "n",
            "dir": str(tmp_path / "project"),
            "config": {"c": 1},
            "settings": wandb.Settings(x_disable_stats=True, x_transaction_log_flush_interval=0.1),
        }
        tracker = started(tmp_path, options=options)
        settings = tracker.native.settings
        assert (settings.console, settings.x_transaction_log_flush_interval) == ("off", 0.1)
        found = stored(tracker)
        assert (found.run.project, found.run.display_name, found.run.run_id) == ("theirs", "named", "chosen")
        assert (list(found.run.tags), found.run.notes, found.config) == (["x"], "n", {"c": 1})
        assert Path(tracker.state()["directory"]).parent == tmp_path / "project" / "wandb"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"entitty": "me"}, "no argument 'entitty'"),
            ({"project": "a/b"}, "Invalid project name"),
            ({"settings": {"no_such": 1}}, "no_such"),
            ({"mode": "online"}, "WANDB_API_KEY"),
            ({"settings": {"mode": "online"}}, "WANDB_API_KEY"),
            ({"settings": wandb.Settings(mode="online")}, "WANDB_API_KEY"),
        ],
    )
    def test_what_can_not_work_is_said_at_once(
        self, tmp_path: Path, options: Mapping[str, Any], message: str
    ) -> None:
        began = time.monotonic()
        with pytest.raises(ConfigurationError, match=message):
            WandbTracker().start(info(tmp_path, options=options))
        assert time.monotonic() - began < 20

    def test_a_disabled_run_takes_everything(self, tmp_path: Path) -> None:
        tracker = started(tmp_path, options={"mode": "disabled"})
        tracker.write(batch([("a", 1, 1, 8)]))
        assert tracker.confirm(flush=True) == 8
        tracker.finish(RunStatus.FINISHED)

    def test_another_thread_and_no_process_wide_traces(self, tmp_path: Path) -> None:
        wandb.teardown()  # so that the service, and with it W&B's hooks, starts anew
        before = sys.excepthook, sys.exit, sys.stdout.write, signal.getsignal(signal.SIGINT)
        tracker = WandbTracker()
        thread = threading.Thread(target=tracker.start, args=[info(tmp_path)])
        thread.start()
        thread.join()
        tracker.write(batch([("a", 1, 1, 8)]))
        assert (sys.excepthook, sys.exit, sys.stdout.write, signal.getsignal(signal.SIGINT)) == before
        assert len(stored(tracker).history) == 1


def test_the_metric_exporter_works_in_a_plain_sdk_pipeline(tmp_path: Path) -> None:
    metrics = WandbMetricExporter(project_dir=tmp_path, project="sdk", run_name="plain")
    provider = MeterProvider([PeriodicExportingMetricReader(metrics, export_interval_millis=math.inf)])
    loss = provider.get_meter("train").create_gauge("loss")
    for step in (3, 1):
        loss.set(step / 7, {"training.step": step})
        provider.force_flush()
    provider.shutdown()
    (path,) = tmp_path.rglob("*.wandb")
    rows = {(row[STEP], row["loss"]) for row in read_history(path)}
    assert rows == {(3, 3 / 7), (1, 1 / 7)}


def test_the_span_exporter_works_in_a_plain_sdk_pipeline(tmp_path: Path) -> None:
    spans = WandbSpanExporter(project_dir=tmp_path, project="sdk")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with provider.get_tracer("train").start_as_current_span("step", attributes={"training.step": 4}):
        pass
    provider.shutdown()
    (path,) = tmp_path.rglob("*.wandb")
    (row,) = read_history(path)
    assert row[STEP] == 4
    assert row["time/step"] >= 0
