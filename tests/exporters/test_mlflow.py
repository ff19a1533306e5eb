from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import mlflow
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.tracing.client import TracingClient
from mlflow.utils.validation import _validate_metric
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from otel_tracking.errors import ConfigurationError, NotStarted, Retry
from otel_tracking.records import (
    Batch,
    Config,
    Failure,
    Kind,
    Rank,
    RunInfo,
    RunStatus,
    Series,
    Text,
    Written,
)
from otel_tracking.span_records import RecordedSpan, SpanEvent, SpanLink, Spans
from otel_tracking_exporters import _mlflow_times
from otel_tracking_exporters._mlflow_params import parameters, portions
from otel_tracking_exporters._mlflow_store import connect
from otel_tracking_exporters._mlflow_times import Timestamps
from otel_tracking_exporters.mlflow import MLflowMetricExporter, MLflowTracker
from tests.mlflow_server import MLflowServer

NOW = 1_700_000_000_123_456_789
MS = 1_000_000

HOSTILE_NAMES = [
    "Train/Loss",
    "train/loss",
    " padded ",
    "",
    ".",
    "..",
    "../../etc/passwd",
    "..a",
    "/abs",
    "a//b",
    "a/./b",
    "a/../b",
    "a/",
    "a/..",
    "x_y",
    "_x2f_",
    "acc/class.%3D@[1]",
    "nul\x00",
    "line\n",
    "right\u202eleft",
    "损失/温度°C",
    "lone\ud800",
    "emoji🙂",
    "l" * 250,
    "l" * 251,
    "é" * 400,
    "'; DROP TABLE metrics; --",
]


def batch(
    tags: Sequence[str],
    values: Sequence[float],
    *,
    steps: Sequence[int] | None = None,
    times: Sequence[int] | None = None,
    first: int = 1,
    positions: Sequence[int] | None = None,
) -> Batch:
    """One point a tag, value, step and time (nanoseconds); positions count from `first`."""
    n = len(values)
    names = list(dict.fromkeys(tags))
    return Batch(
        [Series(tag, tag, Kind.GAUGE) for tag in names],
        np.array([names.index(tag) for tag in tags], np.int32),
        np.array(steps if steps is not None else range(n), np.int64),
        np.array(times if times is not None else [NOW + i * MS for i in range(n)], np.int64),
        np.array(values, np.float64),
        np.array(positions if positions is not None else range(first, first + n), np.int64),
    )


@pytest.fixture
def outputs(mlflow_template: Path, tmp_path: Path) -> Path:
    """A logging directory that has its database already."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    shutil.copy(mlflow_template, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="module")
def server(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    server = MLflowServer(folder)
    try:
        server.start()
        yield server.url
    finally:
        server.kill()


@pytest.fixture(params=["sqlite", "server"])
def run(request: pytest.FixtureRequest, outputs: Path, tmp_path: Path) -> RunInfo:
    """A run for a tracker to start, in a database and on a server."""
    options = {"tracking_uri": request.getfixturevalue("server")} if request.param == "server" else {}
    return run_info(outputs, tmp_path.name, options=options)


@pytest.fixture
def local(outputs: Path) -> RunInfo:
    return run_info(outputs, "r1")


def run_info(outputs: Path, run_id: str, **changes: Any) -> RunInfo:
    return replace(RunInfo("digits", run_id, "brave-fox", outputs, outputs), **changes)


def started(run: RunInfo) -> MLflowTracker:
    tracker = MLflowTracker()
    tracker.start(run)
    return tracker


def again(run: RunInfo, tracker: MLflowTracker) -> RunInfo:
    """What a later process is told: the cursor and the state, through JSON."""
    state = json.loads(json.dumps(tracker.state()))
    return replace(run, state=state, position=tracker.confirm())


def stored(tracker: MLflowTracker, tag: str) -> list[tuple[int, int, float]]:
    """(milliseconds, step, value) of each point that MLflow has of a series, in MLflow's order."""
    history = tracker.native.get_metric_history(MLflowTracker.names.escape(tag))
    return [(metric.timestamp, metric.step, metric.value) for metric in history]


def artifact(tracker: MLflowTracker, path: str, tmp_path: Path) -> str:
    return Path(tracker.native.download_artifacts(path, str(tmp_path))).read_bytes().decode()


def files(tracker: MLflowTracker, path: str | None = None) -> list[str]:
    """Every artifact's path."""
    found: list[str] = []
    for entry in tracker.native.list_artifacts(path):
        found += files(tracker, entry.path) if entry.is_dir else [entry.path]
    return found


def refusing(monkeypatch: pytest.MonkeyPatch, refuse: Callable[[list[str]], MlflowException | None]) -> None:
    """Have `log_batch` fail where `refuse` says so about the keys of a request."""
    real = MlflowClient.log_batch

    def log_batch(
        self: MlflowClient, run_id: str, metrics: Any = (), params: Any = (), tags: Any = (), **kw: Any
    ) -> Any:
        if error := refuse([entry.key for entry in (*metrics, *params)]):
            raise error
        return real(self, run_id, metrics, params, tags, **kw)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)


# Points


def test_points_come_back_exactly(run: RunInfo) -> None:
    values = [0.1, -1.0, 5e-324, 2.0**53 + 2, 1e22, -1.7976931348623157e308, 1 / 3, 0.0]
    steps = [7, 3, 0, -5, 2**62, 2**63 - 1, -(2**63), 3]
    times = [NOW + i * 1_500_000 for i in range(len(values))]
    tracker = started(run)
    written = tracker.write(batch(["Train/Loss"] * len(values), values, steps=steps, times=times))
    assert (written.accepted, written.altered, written.rejected) == (len(values), {}, {})
    assert tracker.confirm() == len(values)
    found = stored(tracker, "Train/Loss")
    assert [struct.pack("d", value) for *_, value in found] == [struct.pack("d", value) for value in values]
    assert [step for _, step, _ in found] == steps
    assert [at for at, *_ in found] == [at // MS for at in times]


def test_what_a_database_has_no_number_for(run: RunInfo) -> None:
    tracker = started(run)
    written = tracker.write(
        batch(
            ["v"] * 5,
            [math.nan, math.inf, -math.inf, -0.0, 1.0],
            times=[NOW + i * MS for i in range(4)] + [-MS],
        )
    )
    assert written.accepted == 5
    assert written.altered == {
        "infinity stored as ±1.797e308": 2,
        "negative zero stored as zero": 1,
        "time before 1970 stored as 1970": 1,
    }
    values = {step: value for _, step, value in stored(tracker, "v")}
    assert math.isnan(values.pop(0))
    assert values == {1: sys.float_info.max, 2: -sys.float_info.max, 3: 0.0, 4: 1.0}


@pytest.mark.parametrize("value", [1.5, math.nan, math.inf])
def test_equal_points_of_one_millisecond_are_told_apart(run: RunInfo, value: float) -> None:
    tracker = started(run)
    points = batch(["same"] * 1_000, [value] * 1_000, steps=[1] * 1_000, times=[NOW] * 1_000)
    parts = [tracker.write(points[i : i + 250]) for i in range(0, 1_000, 250)]
    assert sum(part.accepted for part in parts) == 1_000
    assert sum(part.altered["timestamp moved by 1 ms or more"] for part in parts) == 999
    assert [at for at, *_ in stored(tracker, "same")] == [NOW // MS + i for i in range(1_000)]


def test_every_name_arrives(run: RunInfo) -> None:
    tracker = started(run)
    assert tracker.write(batch(HOSTILE_NAMES, list(range(len(HOSTILE_NAMES))))).accepted == len(HOSTILE_NAMES)
    assert {name: stored(tracker, name)[0][2] for name in HOSTILE_NAMES} == {
        name: value for value, name in enumerate(HOSTILE_NAMES)
    }
    assert len(tracker.native.data.metrics) == len(HOSTILE_NAMES)


def legal(name: str) -> bool:
    """What MLflow itself says of a name."""
    try:
        _validate_metric(name, 1.0, 1, 1)  # type: ignore[no-untyped-call]  # MLflow has it without types
    except MlflowException:
        return False
    return True


names = st.one_of(
    st.text(st.sampled_from("/._x2e:- Aa\n\x00é\ud800~"), max_size=12),
    st.text(st.characters(), max_size=40),
    st.text("a/._", min_size=230, max_size=270),
)


@given(names)
def test_every_name_is_legal(name: str) -> None:
    escaped = MLflowTracker.names.escape(name)
    assert legal(escaped)
    assert len(escaped) <= 250
    if len(name) < 30:
        assert MLflowTracker.names.unescape(escaped) == name


@given(names, names)
def test_no_two_names_become_one(one: str, other: str) -> None:
    escape = MLflowTracker.names.escape
    assert (escape(one) == escape(other)) == (one == other)


@pytest.mark.parametrize("name", [name for name in HOSTILE_NAMES if "\ud800" not in name])
def test_names_mlflow_takes_stay_as_they_are(name: str) -> None:
    # `$` lets MLflow's check pass a newline at the end, and `_x2f_` would be read as an escape.
    kept = legal(name) and name not in ("line\n", "_x2f_")
    assert (MLflowTracker.names.escape(name) == name) == kept


def test_a_row_larger_than_a_request(run: RunInfo) -> None:
    """1,200 names in one row that take 1,400 bytes each in a request."""
    tags = [f"{'损' * 230}{i}" for i in range(1_200)]
    tracker = started(run)
    assert tracker.write(batch(tags, [1.0] * 1_200, positions=[5] * 1_200)).accepted == 1_200
    assert len(tracker.native.data.metrics) == 1_200
    assert tracker.confirm() == 5


def test_portions_hold_what_they_may() -> None:
    entries = [(i, size) for i, size in enumerate([400_000, 400_000, 400_000, 2_000_000, 1, 1, 1, 1])]
    assert list(portions(entries, 3)) == [[0, 1], [2], [3], [4, 5, 6], [7]]


# Again after a failure


def test_an_error_halfway_leaves_nothing_twice(local: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = started(local)
    calls: list[int] = []

    def refuse(keys: list[str]) -> MlflowException | None:
        calls.append(len(keys))
        return MlflowException("busy", TEMPORARILY_UNAVAILABLE) if len(calls) == 2 else None

    refusing(monkeypatch, refuse)
    points = batch(
        ["row"] * 2_500, [1.0] * 2_500, steps=[3] * 2_500, times=[NOW] * 2_500, positions=[9] * 2_500
    )
    with pytest.raises(Retry, match="TEMPORARILY_UNAVAILABLE: busy"):
        tracker.write(points)
    assert tracker.confirm() == 0
    assert tracker.write(points).accepted == 2_500
    assert calls == [1_000, 1_000, 1_000, 1_000, 500]
    assert [at - NOW // MS for at, *_ in stored(tracker, "row")] == list(range(2_500))


def test_a_restart_stores_nothing_twice_and_loses_nothing(
    run: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the store took a batch and before the cursor moved, in the middle of equal points."""
    points = batch(["same"] * 60, [1.0] * 60, steps=[2] * 60, times=[NOW] * 60, first=2)  # as in a journal
    first = started(run)
    first.write(points[:20])
    later = again(run, first)
    first.write(points[20:40])

    second = MLflowTracker()
    begin = second.start(later) - 1  # how many points that leaves out; 0 would say that nothing is stored
    assert 0 <= begin <= 20
    assert second.native.run_id == first.native.run_id
    calls: list[list[str]] = []
    refusing(monkeypatch, lambda keys: calls.append(keys))
    written = second.write(points[begin:])
    assert written.accepted == 60 - begin
    assert written.altered == {"timestamp moved by 1 ms or more": 59 - begin}
    assert [len(keys) for keys in calls] == [40]
    assert [at - NOW // MS for at, *_ in stored(second, "same")] == list(range(60))
    assert second.confirm() == 61


def test_a_run_is_found_without_its_cursor(run: RunInfo) -> None:
    first = started(run)
    points = batch(["same"] * 30, [1.0] * 30, steps=[2] * 30, times=[NOW] * 30)
    first.write(points)
    second = MLflowTracker()
    assert second.start(run) == 0
    assert second.native.run_id == first.native.run_id
    second.write(points)
    assert len(stored(second, "same")) == 30


def test_a_deleted_run_is_written_again_whole(local: RunInfo) -> None:
    first = started(local)
    first.write(batch(["a"] * 5, [1.0] * 5))
    first.native.client.delete_run(first.native.run_id)
    second = MLflowTracker()
    assert second.start(again(local, first)) == 0
    assert second.native.run_id != first.native.run_id


Point = tuple[str, int, float | None, int]


@given(
    st.integers(0, 2**32),
    st.integers(1, 12),
    st.lists(st.integers(1, 7), min_size=1),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60)), max_size=4),
)
def test_timestamps_after_any_number_of_kills(
    seed: int, rate: int, sizes: list[int], kills: list[tuple[int, int]]
) -> None:
    """Wherever a process is killed, and however old its cursor is then: one row a point, and none more."""
    random = Random(seed)
    groups = list(product("ab", (0, 1), (None, 1.0)))
    points: list[Point] = [
        (*random.choice(groups), 999 + i // rate + random.randrange(4)) for i in range(300)
    ]
    table: set[Point] = set()
    cursor = rewind = 0

    def deliver(until: int, unsaved: int) -> None:
        nonlocal cursor, rewind
        at, confirmed = min(cursor, rewind), cursor
        timestamps = Timestamps(at)
        turn = 0
        while at < until:
            part = points[at : min(at + sizes[turn % len(sizes)], until)]
            turn += 1
            times = timestamps.assign(part)
            table.update(
                (name, step, value, moved)
                for i, ((name, step, value, _), moved) in enumerate(zip(part, times, strict=True))
                if at + i >= confirmed
            )
            at += len(part)
            timestamps.keep(at, part[-1][3])
            if at <= until - unsaved:
                cursor, rewind = max(cursor, at), timestamps.rewind

    with pytest.MonkeyPatch.context() as patch:
        for name, small in (("_MIN_POINTS", 12), ("_MAX_POINTS", 60), ("_SPAN_MS", 8)):
            patch.setattr(_mlflow_times, name, small)
        for until, unsaved in kills:
            deliver(until, unsaved)
        deliver(len(points), 0)
    assert len(table) == len(points)
    assert Counter(row[:3] for row in table) == Counter(point[:3] for point in points)


def test_a_millisecond_stays_taken_while_many_equal_points_come() -> None:
    """100,000 equal points at 1,000 a millisecond reach 100 s into the future; others come between."""
    timestamps = Timestamps()
    given = []
    for i in range(400):
        others = [("b", 1_000 * i + j, 1.0, i) for j in range(750)]
        given += timestamps.assign([*[("a", 0, 1.0, i)] * 250, *others])[:250]
        timestamps.keep(i + 1, i)
    assert given == list(range(100_000))
    assert timestamps.rewind == 0
    for i in range(100):
        timestamps.assign([("b", 1_000 * i + j, 2.0, 200_000 + i) for j in range(1_000)])
        timestamps.keep(401 + i, 200_000 + i)
    assert timestamps.rewind > 400


def test_a_millisecond_in_the_future_stays_taken() -> None:
    """1,000 equal points reach a second ahead; 80,000 others later, their milliseconds are the present."""
    timestamps = Timestamps()
    timestamps.assign([("a", 0, 1.0, 0)] * 1_000)
    timestamps.keep(1, 0)
    for i in range(80):
        timestamps.assign([("b", 1_000 * i + j, 1.0, 10 * i) for j in range(1_000)])
        timestamps.keep(2 + i, 10 * i)
    assert timestamps.rewind == 0
    assert timestamps.assign([("a", 0, 1.0, 900), ("a", 0, 1.0, 950)]) == [1_000, 1_001]


def test_timestamps_remember_a_bounded_number_of_points() -> None:
    timestamps = Timestamps(100)
    for i in range(300):
        timestamps.assign([("a", 1_000 * i + j, 1.0, 5 * i) for j in range(1_000)])
        timestamps.keep(100 + 1_000 * (i + 1), 5 * i)
    assert 100 + 300_000 - timestamps.rewind <= 41_000
    slow = Timestamps()
    for i in range(3_000):
        slow.assign([("heartbeat", 0, 1.0, 1_000 * i)])
        slow.keep(i + 1, 1_000 * i)
    assert 1_000 <= 3_000 - slow.rewind <= 2_000


def test_one_bad_point_takes_nothing_with_it(local: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = started(local)
    refusing(
        monkeypatch,
        lambda keys: MlflowException("no", INVALID_PARAMETER_VALUE) if "bad" in keys else None,
    )
    written = tracker.write(batch(["good", "bad", "fine"] * 30, [1.0] * 90))
    assert written.accepted == 60
    assert written.rejected == {"MLflow refuses it: INVALID_PARAMETER_VALUE": list(range(1, 90, 3))}
    assert len(stored(tracker, "good")) == len(stored(tracker, "fine")) == 30
    assert tracker.confirm() == 90


def test_a_run_deleted_meanwhile_loses_nothing(local: RunInfo) -> None:
    tracker = started(local)
    client, run_id = tracker.native.client, tracker.native.run_id
    client.delete_run(run_id)
    points = batch(["a"] * 3, [1.0] * 3)
    with pytest.raises(Retry, match="deleted"):
        tracker.write(points)
    client.restore_run(run_id)
    assert tracker.write(points).accepted == 3
    assert len(stored(tracker, "a")) == 3


def test_a_server_that_is_down_is_a_retry_at_once(
    outputs: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(Retry, match=rf"no MLflow server at 127\.0\.0\.1:{port}"):
        started(run_info(outputs, "r1", options={"tracking_uri": f"http://user:secret@127.0.0.1:{port}"}))
    tracker = started(run_info(outputs, "down", options={"tracking_uri": server}))

    def refuse(*_: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(Retry):
        tracker.write(batch(["a"], [1.0]))
    with pytest.raises(Retry):
        tracker.write_text(Text("a", "b", 1, NOW, 1))
    with pytest.raises(Retry):
        tracker.finish(RunStatus.FINISHED)
    assert time.monotonic() - began < 20
    monkeypatch.undo()
    assert tracker.write(batch(["a"], [1.0])).accepted == 1


# Config and texts


def test_config(run: RunInfo, tmp_path: Path) -> None:
    values = {
        "lr": 0.1,
        "amp": True,
        "layers": [1, 2],
        "none": None,
        "empty": {},
        "optimizer": {"name": "adam", "betas": [0.9, 0.999]},
        "prompt": "p" * 10_000,
        "surrogate": "a\ud800\x00",
        "weird/../name\n": 1,
        "big": {str(i): i for i in range(250)},
        "text": {str(i): "ж" * 5_000 for i in range(40)},
    }
    tracker = started(run)
    written = tracker.write_config(Config(values, NOW, 4))
    assert (written.accepted, written.rejected) == (1, {})
    assert written.altered == {"param too long or not text; it is whole in config.json": 1}
    params = tracker.native.data.params
    assert params["lr"] == "0.1"
    assert params["amp"] == "True"
    assert params["layers"] == "[1, 2]"
    assert params["none"] == "null"
    assert params["empty"] == "{}"
    assert params["optimizer/name"] == "adam"
    assert params["optimizer/betas"] == "[0.9, 0.999]"
    assert params["surrogate"] == r"a\ud800\x00"
    assert params["weird/_x2e_./name_xa_"] == "1"
    assert params["big/249"] == "249"
    assert params["text/39"] == "ж" * 5_000
    assert len(params["prompt"]) == 6_000
    assert params["prompt"].endswith("[cut; all 10000 characters are in config.json]")
    assert json.loads(artifact(tracker, "config.json", tmp_path)) == values
    assert tracker.confirm() == 4


def test_a_changed_param_keeps_its_first_value(run: RunInfo, tmp_path: Path) -> None:
    first = started(run)
    first.write_config(Config({"lr": 0.1, "seed": 1}, NOW, 1))
    second = started(again(run, first))
    assert second.write_config(Config({"seed": 1}, NOW, 2)).altered == {}
    written = second.write_config(Config({"lr": 0.2, "new": 3}, NOW, 3))
    assert written.altered == {"param changed; new value is in config.json": 1}
    assert second.native.data.params == {"lr": "0.1", "seed": "1", "new": "3"}
    assert json.loads(artifact(second, "config.json", tmp_path)) == {"lr": 0.2, "seed": 1, "new": 3}


def test_a_config_file_of_somebody_else(local: RunInfo, tmp_path: Path) -> None:
    tracker = started(local)
    tracker.native.log_text("{not json", "config.json")
    assert tracker.write_config(Config({"a": 1}, NOW, 1)).accepted == 1
    assert json.loads(artifact(tracker, "config.json", tmp_path)) == {"a": 1}


def test_two_params_of_one_name(local: RunInfo) -> None:
    written = started(local).write_config(Config({"a/b": 1, "a": {"b": 2}}, NOW, 1))
    assert written.altered == {"two params of one name; both are in config.json": 1}


def test_one_bad_param_takes_nothing_with_it(local: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = started(local)
    refusing(
        monkeypatch,
        lambda keys: MlflowException("no", INVALID_PARAMETER_VALUE) if "bad" in keys else None,
    )
    written = tracker.write_config(Config({"a": 1, "bad": 2, "c": 3, "d": 4}, NOW, 1))
    assert written.altered == {
        "a param is only in config.json: MLflow refuses it: INVALID_PARAMETER_VALUE": 1
    }
    assert tracker.native.data.params == {"a": "1", "c": "3", "d": "4"}


def test_texts(run: RunInfo, tmp_path: Path) -> None:
    tracker = started(run)
    texts = [
        Text("../../escape", "out?", -3, NOW, 1),
        Text("sample", "line\r\nzwei ✓\x00", 5, NOW, 2),
        Text("sample", "the same step", 5, NOW, 3),
        Text("sample/5-2.txt", "no file in a file's place", 5, NOW, 4),
        Text("a" * 300, "long", 5, NOW, 5),
        Text("%2e%2e", "percent", 5, NOW, 6),
    ]
    for text in texts * 2:
        written = tracker.write_text(text)
        assert (written.accepted, written.altered, written.rejected) == (1, {}, {})
    assert tracker.confirm() == 6
    found = files(tracker)
    assert len(found) == len(texts)
    assert {"text/sample/5-2.txt", "text/sample/5-3.txt", "text/_x2e_._x2f_.._x2f_escape/-3-1.txt"} <= set(
        found
    )
    assert {artifact(tracker, path, tmp_path) for path in found} == {text.text for text in texts}
    broken = tracker.write_text(Text("broken", "\ud800", 5, NOW, 7))
    assert broken.altered == {"lone surrogates written as escapes": 1}
    assert artifact(tracker, "text/broken/5-7.txt", tmp_path) == r"\ud800"


def test_texts_stay_in_the_artifacts(local: RunInfo, outputs: Path) -> None:
    tracker = started(local)
    tracker.write_text(Text("../../../../escape", "x", 1, NOW, 1))
    assert {path.name for path in outputs.iterdir()} == {"mlflow.db", "mlartifacts"}
    assert len(list(outputs.parent.rglob("*.txt"))) == 1


# The run


@pytest.mark.parametrize("status", [RunStatus.FINISHED, RunStatus.FAILED, RunStatus.KILLED])
def test_status(run: RunInfo, status: RunStatus) -> None:
    tracker = started(run)
    assert tracker.native.info.status == "RUNNING"
    assert tracker.native.info.run_name == "brave-fox"
    tracker.finish(status)
    info = tracker.native.info
    assert info.status == status.name
    assert abs(info.end_time / 1000 - time.time()) < 60
    assert started(again(run, tracker)).native.info.status == "RUNNING"


def test_why_a_run_failed_is_a_tag_until_it_has_finished(local: RunInfo) -> None:
    first = started(local)
    first.failure = Failure("ValueError: no data", "Traceback\nValueError: no data")
    first.finish(RunStatus.FAILED)
    assert first.native.data.tags["otel_tracking.error"] == "ValueError: no data"
    second = started(again(local, first))
    second.finish(RunStatus.FINISHED)
    assert "otel_tracking.error" not in second.native.data.tags


def test_finish_before_start_is_nothing() -> None:
    tracker = MLflowTracker()
    tracker.finish(RunStatus.FAILED)
    assert tracker.state() == {}
    with pytest.raises(NotStarted):
        _ = tracker.native


def test_tags_and_options(run: RunInfo, tmp_path: Path) -> None:
    options = {
        **run.options,
        "experiment_name": f"named {run.run_id}",
        "run_name": "run_001",
        "tags": {"version": "v1.0", "long": "t" * 9_000, "odd@": 1},
        "description": "Baseline BERT model",
    }
    rank = Rank(3, 8, 1, 4, 0, "torchrun")
    told = replace(
        run,
        options=options,
        rank=rank,
        group="g1",
        resource={**rank.attributes(), "host.name": "node7", "secret": "x"},
    )
    tracker = started(told)
    tags = tracker.native.data.tags
    assert tags["version"] == "v1.0"
    assert tags["odd_x40_"] == "1"
    assert len(tags["long"]) == 8_000
    assert tags["mlflow.note.content"] == "Baseline BERT model"
    assert tags["otel_tracking.group"] == "g1"
    assert tags["otel_tracking.run_id"].endswith("/rank-3")
    assert (tags["training.rank"], tags["training.world_size"], tags["host.name"]) == ("3", "8", "node7")
    assert "secret" not in tags
    assert json.loads(artifact(tracker, "tags.json", tmp_path))["long"] == "t" * 9_000
    info = tracker.native.info
    assert info.run_name == "run_001"
    assert tracker.native.client.get_experiment(info.experiment_id).name == f"named {run.run_id}"
    other = started(replace(told, rank=replace(rank, rank=4)))
    assert other.native.run_id != tracker.native.run_id
    assert started(told).native.run_id == tracker.native.run_id


@pytest.mark.parametrize("by", ["option", "environment"])
def test_attach_to_a_run(local: RunInfo, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    theirs = started(run_info(local.logging_dir, "theirs"))
    theirs.write(batch(["theirs"], [1.0]))
    theirs.finish(RunStatus.FINISHED)
    run_id = theirs.native.run_id
    if by == "environment":
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        told = local
    else:
        told = replace(local, options={"run_id": run_id})
    tracker = MLflowTracker()
    assert tracker.start(told) == 0
    tracker.write(batch(["ours"], [2.0]))
    assert tracker.native.run_id == run_id
    assert tracker.native.data.metrics == {"theirs": 1.0, "ours": 2.0}
    assert tracker.native.info.status == "RUNNING"
    # One rank goes on with it; another's points would mix with them.
    rank = started(replace(told, rank=Rank(1, 2), group="g"))
    assert rank.native.run_id != run_id


def test_attach_to_no_run(local: RunInfo) -> None:
    with pytest.raises(ConfigurationError, match="no run 'nowhere'"):
        started(replace(local, options={"run_id": "nowhere"}))
    gone = started(local).native
    gone.client.delete_run(gone.run_id)
    with pytest.raises(ConfigurationError, match="deleted"):
        started(replace(local, options={"run_id": gone.run_id}))


def test_another_store_gets_the_run_whole(local: RunInfo, mlflow_template: Path, tmp_path: Path) -> None:
    first = started(local)
    first.write(batch(["a"] * 5, [1.0] * 5))
    shutil.copy(mlflow_template, tmp_path / "other.db")
    moved = replace(again(local, first), options={"tracking_uri": f"sqlite:///{tmp_path}/other.db"})
    assert MLflowTracker().start(moved) == 0


def test_nested_run(local: RunInfo) -> None:
    uri = f"sqlite:///{local.logging_dir}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        with mlflow.start_run() as parent:
            nested = started(replace(local, options={"nested_run": True}))
            plain = started(run_info(local.logging_dir, "plain"))
        assert nested.native.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert "mlflow.parentRunId" not in plain.native.data.tags
        assert nested.native.client.tracking_uri == uri
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # as MLflow does itself to go back
    assert mlflow.get_tracking_uri() == before


def test_options_that_do_not_exist(local: RunInfo) -> None:
    with pytest.raises(
        ConfigurationError, match=r"no option 'expriment_name'\. Did you mean 'experiment_name'"
    ):
        started(replace(local, options={"expriment_name": "x"}))
    with pytest.raises(ConfigurationError, match="no JSON"):
        started(replace(local, options={"tags": "{"}))
    with pytest.raises(ConfigurationError, match="mapping"):
        started(replace(local, options={"tags": "[1]"}))
    with pytest.raises(ConfigurationError, match="can't use"):
        started(replace(local, options={"tracking_uri": "nothing://u:secret@x"}))


def test_environment(local: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{local.logging_dir}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    monkeypatch.setenv("MLFLOW_TAGS", '{"a": "1"}')
    monkeypatch.setenv("MLFLOW_NESTED_RUN", "true")
    tracker = started(replace(local, logging_dir=Path("elsewhere")))
    experiment = tracker.native.client.get_experiment(tracker.native.info.experiment_id)
    assert experiment.name == "from the environment"
    assert tracker.native.data.tags["a"] == "1"
    assert not Path("elsewhere").exists()


def test_experiments(local: RunInfo) -> None:
    one, other = started(local).native, started(run_info(local.logging_dir, "r2")).native
    experiment_id = one.info.experiment_id
    assert other.info.experiment_id == experiment_id
    assert one.client.get_experiment(experiment_id).name == "digits"
    named = started(
        run_info(local.logging_dir, "r3", project="p", options={"experiment_id": int(experiment_id)})
    )
    assert named.native.info.experiment_id == experiment_id
    with pytest.raises(ConfigurationError, match="No Experiment with id=77"):
        started(replace(local, options={"experiment_id": "77"}))
    one.client.delete_experiment(experiment_id)
    with pytest.raises(ConfigurationError, match=f"deleted.*restore -x {experiment_id}"):
        started(run_info(local.logging_dir, "r4"))


def test_two_processes_make_the_database_at_once(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        """
import sys, time
from pathlib import Path
from otel_tracking.records import Rank, RunInfo
from otel_tracking_exporters.mlflow import MLflowTracker
outputs, rank, at = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
tracker = MLflowTracker()
time.sleep(max(0, at - time.time()))
tracker.start(RunInfo("p", "r", f"r-rank{rank}", outputs, outputs, Rank(rank, 2), group="r"))
print(tracker.native.info.experiment_id)
"""
    )
    folder = tmp_path / "a b%20?ü"
    folder.mkdir()
    at = str(time.time() + 3)
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(rank), at],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    results = [rank.communicate(timeout=60) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], results
    assert [output for output, _ in results] == ["1\n", "1\n"]
    assert [errors for _, errors in results] == ["", ""]
    assert (folder / "mlflow.db").exists()


# Where it is


def test_mlruns_is_what_a_plain_mlflow_ui_opens(mlflow_template: Path, tmp_path: Path) -> None:
    """`init_kwargs={"mlflow": {"logging_dir": "./mlruns"}}`, as the tutorial has it."""
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    tracker = started(run_info(tmp_path / "outputs", "r1", options={"logging_dir": "./mlruns"}))
    tracker.write(batch(["loss"], [0.5]))
    tracker.write_text(Text("a", "b", 1, NOW, 2))
    # What `mlflow ui` without options uses here.
    plain = MlflowClient(tracking_uri=mlflow.get_tracking_uri())
    assert plain.get_run(tracker.native.run_id).data.metrics == {"loss": 0.5}
    assert list((tmp_path / "mlruns").rglob("*.txt"))
    assert not (tmp_path / "outputs").exists()


def test_another_folder_holds_everything(
    mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    shutil.copy(mlflow_template, folder / "mlflow.db")
    tracker = started(run_info(tmp_path / "outputs", "r1", options={"logging_dir": folder}))
    tracker.write_text(Text("a", "b", 1, NOW, 2))
    assert list((folder / "mlartifacts").rglob("*.txt"))
    monkeypatch.chdir(folder)
    assert MlflowClient(tracking_uri=mlflow.get_tracking_uri()).get_run(tracker.native.run_id)


def test_logging_dir_beside_a_tracking_uri_is_for_artifacts(local: RunInfo, tmp_path: Path) -> None:
    uri = f"sqlite:///{local.logging_dir}/mlflow.db"
    tracker = started(replace(local, options={"tracking_uri": uri, "logging_dir": "files"}))
    assert tracker.native.info.artifact_uri.startswith((tmp_path / "files").as_uri())


def test_the_process_stays_as_it_was(local: RunInfo) -> None:
    environment, uri = dict(os.environ), mlflow.get_tracking_uri()
    tracker = started(local)
    tracker.write(batch(["a"], [1.0]))
    tracker.finish(RunStatus.FINISHED)
    assert dict(os.environ) == environment | {"PYTEST_CURRENT_TEST": os.environ["PYTEST_CURRENT_TEST"]}
    assert mlflow.get_tracking_uri() == uri
    assert mlflow.active_run() is None


def test_passwords_are_not_kept(local: RunInfo, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    secret = server.replace("//", "//user:p%40ss@")
    tracker = started(replace(local, options={"tracking_uri": secret}))
    assert tracker.state()["tracking_uri"] == server
    refusing(monkeypatch, lambda keys: MlflowException(f"failed at {secret}/x"))
    with pytest.raises(Retry, match=re.escape(f"failed at {server}/x")):
        tracker.write(batch(["a"], [1.0]))


# What users get


def test_native_words(run: RunInfo, tmp_path: Path) -> None:
    """From another thread than the follower's, and on our run."""
    tracker = started(run)
    native, handle = tracker.native, tracker.handle
    (tmp_path / "loss_curve.png").write_bytes(b"png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")

    def user() -> None:
        native.log_artifact("loss_curve.png")
        native.log_artifacts("folder", "copy")
        native.log_text("text", "t.txt")
        native.log_dict({"a": 1}, "d.json")
        native.log_metric("m", 1.0, 3)
        native.log_metric("m", 2.0, global_step=4)
        native.log_metrics({"n": 5.0})
        native.log_param("p", 1)
        native.log_params({"q": {"r": [1]}})
        native.set_tag("s", 1)
        native.set_tags({"t": 2})
        handle.store_init_configuration({"h": None})
        handle.log({"handle": 6.0}, step=7)
        handle.log_artifact("loss_curve.png", "by-handle")
        handle.log_images({"img/x": [np.zeros((4, 4, 3), np.uint8)]}, step=2)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(user).result()
    assert native.data.metrics == {"m": 2.0, "n": 5.0, "handle": 6.0}
    assert [(m.step, m.value) for m in native.get_metric_history("m")] == [(3, 1.0), (4, 2.0)]
    assert native.data.params == {"p": "1", "q/r": "[1]", "h": "null"}
    assert (native.data.tags["s"], native.data.tags["t"]) == ("1", "2")
    found = files(tracker)
    assert {"loss_curve.png", "t.txt", "d.json", "by-handle/loss_curve.png", "copy/a.txt"} <= set(found)
    assert any(path.startswith("images/") for path in found)
    assert handle.tracker is handle.run
    assert native.info.run_id == native.run_id
    assert "log_figure" in dir(native)
    with pytest.raises(AttributeError, match="log_nothing"):
        native.log_nothing()


def test_exporter_in_a_plain_sdk_pipeline(outputs: Path) -> None:
    exporter = MLflowMetricExporter(project="sdk", project_dir=outputs)
    provider = MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=60_000)])
    gauge = provider.get_meter("m").create_gauge("loss")
    gauge.set(0.25, {"training.step": 12})
    provider.shutdown()
    client = MlflowClient(tracking_uri=f"sqlite:///{outputs}/mlflow.db")
    experiment = client.get_experiment_by_name("sdk")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "loss")] == [(12, 0.25)]


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from otel_tracking_exporters._mlflow_store import connect

def kill():
    while not list(Path().glob("mlflow.db*")):
        time.sleep(0.001)
    time.sleep(float(sys.argv[1]))
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
connect(f"sqlite:///{Path.cwd()}/mlflow.db")
time.sleep(60)
"""


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3, 0.6])
def test_a_kill_while_the_database_is_made(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, moment: float
) -> None:
    """MLflow itself would leave one that it can't open any more."""
    assert run_script(KILLED, str(moment), check=False).returncode == -signal.SIGKILL
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_experiment_by_name("Default") is not None
    assert [path.name for path in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]


def test_only_metrics_leave_names_to_quantiles() -> None:
    name = "weights/histogram/mean"
    assert MLflowTracker.names.escape(name) == "weights_x2f_histogram/mean"
    assert parameters({name: 1}) == ({name: "1"}, set())


def finished_spans() -> list[RecordedSpan]:
    """Of two traces: one of a step that failed within, one of a span alone. Children end first."""
    about: dict[str, Any] = {
        "trace_id": 2**127 + 1,
        "start": NOW,
        "end": NOW + 5_000_000,
        "scope": "train",
        "step": 3,
    }
    failed = SpanEvent("exception", NOW + 1, {"exception.type": "ValueError", "n": 2})
    return [
        RecordedSpan("forward", span_id=2, parent_id=1, **about),
        RecordedSpan(
            "backward",
            span_id=3,
            parent_id=1,
            status="error",
            description="ValueError: \ud800",
            events=(failed,),
            attributes={"lr": 0.5, "many": [1, 2], "nan": math.nan, "big": 2**70},
            **about,
        ),
        RecordedSpan("step", span_id=1, parent_id=0, status="error", **about),
        RecordedSpan(
            "grüße", trace_id=7, span_id=4, parent_id=0, start=NOW, end=NOW + 1, links=(SpanLink(1, 2),)
        ),
    ]


def test_spans_are_traces_of_the_run(run: RunInfo) -> None:
    tracker = started(run)
    spans = finished_spans()
    assert tracker.takes_spans
    for part in (spans[:2], spans[2:], spans):  # the last as after a kill
        assert tracker.write_spans(Spans(part, 0)) == Written(len(part))
    tracker.finish(RunStatus.FINISHED)
    client = tracker.native.client
    experiment = tracker.native.info.experiment_id
    traces = {
        found.info.trace_id: found
        for found in client.search_traces(run_id=tracker.native.run_id, locations=[experiment])
    }
    assert set(traces) == {f"tr-{2**127 + 1:032x}", f"tr-{7:032x}"}
    assert len(client.search_traces(locations=[experiment])) == 2
    nested = traces[f"tr-{2**127 + 1:032x}"]
    assert (nested.info.state.value, nested.info.request_time) == ("ERROR", NOW // 1_000_000)
    assert traces[f"tr-{7:032x}"].info.state.value == "OK"
    by_name = {span.name: span for span in nested.data.spans}
    assert len(nested.data.spans) == 3
    assert by_name["step"].parent_id is None
    assert by_name["forward"].parent_id == by_name["backward"].parent_id == by_name["step"].span_id
    backward = by_name["backward"]
    assert (backward.start_time_ns, backward.end_time_ns) == (NOW, NOW + 5_000_000)
    assert (backward.status.status_code.value, backward.status.description) == (
        "ERROR",
        "ValueError: \\ud800",
    )
    assert (backward.attributes["training.step"], backward.attributes["lr"]) == (3, 0.5)
    assert (backward.attributes["many"], backward.attributes["nan"]) == ([1, 2], "nan")
    assert backward.attributes["big"] == str(2**70)
    (event,) = backward.events
    assert (event.name, event.timestamp) == ("exception", NOW + 1)
    assert dict(event.attributes) == {"exception.type": "ValueError", "n": 2}


def test_a_folder_has_no_traces_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker = started(run_info(tmp_path, "r1", options={"tracking_uri": (tmp_path / "runs").as_uri()}))
    assert tracker.write_spans(Spans(finished_spans(), 0)) == Written(
        0, rejected={"this MLflow store has no traces": [0, 1, 2, 3]}
    )


def test_spans_can_be_left_out(outputs: Path) -> None:
    assert not started(run_info(outputs, "r1", options={"traces": False})).takes_spans


def test_a_span_that_is_refused_takes_no_other_along(local: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = started(local)
    log_spans = TracingClient.log_spans

    def refuse(client: TracingClient, location: str, spans: list[Any]) -> Any:
        if any(span.name == "backward" for span in spans):
            raise MlflowException("no", INVALID_PARAMETER_VALUE)
        return log_spans(client, location, spans)

    monkeypatch.setattr(TracingClient, "log_spans", refuse)
    written = tracker.write_spans(Spans(finished_spans(), 0))
    assert written == Written(3, {}, {"MLflow refuses it: INVALID_PARAMETER_VALUE": [1]})
    (failed, _) = tracker.native.client.search_traces(locations=[tracker.native.info.experiment_id])
    assert {span.name for span in failed.data.spans} <= {"step", "forward", "grüße"}
