"""`runs`, `show` and `export`: what lies in a directory, as people and other programs see it."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from google.protobuf import json_format  # type: ignore[import-untyped]
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

import otel_tracking as ot
from otel_tracking.cli.runs import size
from otel_tracking.cli.show import sparkline
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.records import Rank, RunStatus
from otel_tracking.resource import resource
from otel_tracking.summary import CURVE_POINTS, Curve, summarize
from tests import readback
from tests.damage import flip, unseal

COMMAND = str(Path(sys.executable).with_name("otel-tracking"))
HOSTILE = 'a/\x1b[31mred\u202e,"quoted"\n'


def command(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def record(run: Path, rank: int = 0, *, close: bool = True) -> Recorder:
    """A run with everything that is awkward, of one rank."""
    recorder = Recorder()
    who = {"project": "p", "pid": 1, "host": "node", "resource": resource("p", Rank(rank, 2))}
    recorder.open(run / "journal" / f"rank-{rank:05d}", rank=rank, start=who)
    description = {"version": 1, "run_id": run.name, "project": "p", "name": "first", "created": 10**18}
    (run / "run.json").write_text(json.dumps(description))
    meter = TrackingMeterProvider(recorder).get_meter("meter")
    counter = meter.create_counter("samples", unit="1", description="seen")
    histogram = meter.create_histogram("sizes")
    recorder.log({"loss": 0.1, HOSTILE: math.nan}, step=3)
    recorder.log({"loss": math.inf, "note": "text"}, step=1)
    recorder.log({"loss": -0.0}, step=-5)
    for step in range(4):
        counter.add(2, {"training.step": step, "kind": "image", "sizes": (1, 2)})
        histogram.record(-1.5, {"training.step": step})
    if close:
        recorder.close(RunStatus.FINISHED)
    return recorder


POINTS = 4 + 8


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "outputs" / "p" / "run-1"
    for rank in (0, 1):
        record(directory, rank)
    return directory


def test_exported_csv_is_what_was_recorded(run: Path, tmp_path: Path) -> None:
    command("export", "run-1", "--format", "csv", "-o", "out.csv", cwd=tmp_path)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    data = ot.read_run(run)
    assert len(rows) == len(data) == 2 * POINTS
    columns = ("name", "tag", "attributes", "step", "time_ns", "value", "rank")
    for row, name, tag, attributes, step, time_ns, value, rank in zip(
        rows, *(data[column] for column in columns), strict=True
    ):
        assert (row["run_id"], row["name"], row["tag"]) == ("run-1", name, tag)
        assert json.loads(row["attributes"]) == json.loads(json.dumps(attributes))
        assert (int(row["step"]), int(row["time_ns"]), int(row["rank"])) == (step, time_ns, rank)
        assert readback.bits(float(row["value"])) == readback.bits(value)
    assert command("export", "run-1", "--format", "csv", cwd=tmp_path).stdout.count("\nrun-1,") == 2 * POINTS


def test_exported_parquet_is_what_was_recorded(run: Path, tmp_path: Path) -> None:
    command("export", "run-1", "--format", "parquet", "-o", "out.parquet", cwd=tmp_path)
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    data = ot.read_run(run)
    assert table["name"] == data["name"].tolist()
    assert table["tag"] == data["tag"].tolist()
    assert (table["step"], table["time_ns"]) == (data.steps.tolist(), data.times.tolist())
    assert np.array(table["value"]).tobytes() == data.values.tobytes()
    assert table["rank"] == data.ranks.tolist()
    assert set(table["kind"]) == {"gauge", "counter", "histogram"}
    assert {json.loads(text).get("kind") for text in table["attributes"]} == {None, "image"}


def test_exported_otlp_is_read_by_opentelemetrys_own_messages(run: Path, tmp_path: Path) -> None:
    command("export", str(run), "--format", "otlp-json", "-o", "out.jsonl", cwd=tmp_path)
    found: dict[tuple[int, str], list[tuple[int, int, bytes]]] = {}
    for line in (tmp_path / "out.jsonl").read_text().splitlines():
        request = json_format.Parse(line, ExportMetricsServiceRequest())
        for of_resource in request.resource_metrics:
            said = {a.key: a.value for a in of_resource.resource.attributes}
            assert said["service.name"].string_value == "p"
            assert said["training.run_id"].string_value == "run-1"
            rank = said["training.rank"].int_value
            for scope in of_resource.scope_metrics:
                for metric in scope.metrics:
                    kind = metric.WhichOneof("data")
                    if metric.name == "samples":
                        assert (kind, metric.sum.is_monotonic) == ("sum", True)
                        assert metric.sum.aggregation_temporality == 2
                        assert (metric.unit, metric.description, scope.scope.name) == ("1", "seen", "meter")
                    else:
                        assert kind == "gauge"
                    for point in getattr(metric, kind).data_points:
                        attributes = {a.key: a.value for a in point.attributes}
                        step = attributes["training.step"].int_value
                        found.setdefault((rank, metric.name), []).append(
                            (step, point.time_unix_nano, readback.bits(point.as_double))
                        )
    data = ot.read_run(run)
    expected: dict[tuple[int, str], list[tuple[int, int, bytes]]] = {}
    for name, step, time_ns, value, rank in zip(
        *(data[c].tolist() for c in ("name", "step", "time_ns", "value", "rank")), strict=True
    ):
        expected.setdefault((rank, name), []).append((step, time_ns, readback.bits(value)))
    assert found == expected


def test_what_export_refuses(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("mine")
    done = command("export", "run-1", "--format", "csv", "-o", "there.csv", cwd=tmp_path, code=1)
    assert "--force" in done.stderr
    assert (tmp_path / "there.csv").read_text() == "mine"
    command("export", "run-1", "--format", "csv", "-o", "there.csv", "--force", cwd=tmp_path)
    assert (tmp_path / "there.csv").read_text().startswith("run_id,")
    assert "stdout" in command("export", "run-1", "--format", "parquet", cwd=tmp_path, code=1).stderr
    command("export", "run-1", "--format", "xml", cwd=tmp_path, code=2)
    gone = command("export", "run-1", "--format", "csv", "-o", "no/such/dir.csv", cwd=tmp_path, code=1)
    assert "no/such" in gone.stderr
    assert not list(tmp_path.glob(".*draft"))


def shown(*arguments: str, cwd: Path, code: int = 0) -> Any:
    return json.loads(command(*arguments, "--json", cwd=cwd, code=code).stdout)


def test_show_says_what_a_run_holds(run: Path, tmp_path: Path) -> None:
    about = shown("show", "run", cwd=tmp_path)
    assert (about["run"], about["status"], about["texts"]) == ("run-1", "finished", 2)
    assert about["receipt"]["recorded"] == 2 * POINTS
    series = {(each["tag"], each["rank"]): each for each in about["series"]}
    loss = series["loss", 0]
    assert (loss["points"], loss["last_step"], loss["last_value"]) == (3, -5, 0.0)
    assert (loss["lowest"], loss["highest"]) == (0.0, math.inf)
    samples = next(each for (tag, _), each in series.items() if tag.startswith("samples"))
    assert (samples["points"], samples["last_value"], samples["highest"]) == (4, 8.0, 8.0)
    assert math.isnan(series[HOSTILE, 1]["lowest"])

    text = command("show", "run-1", cwd=tmp_path).stdout
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"\x1b[31mred" in text
    assert "begun" in text
    assert "on node, process 1" in text
    some = shown("show", "run-1", "--series", "lo*", cwd=tmp_path)
    assert {each["tag"] for each in some["series"]} == {"loss"}


def test_show_while_it_is_recorded_and_after_a_kill(tmp_path: Path) -> None:
    directory = tmp_path / "outputs" / "p" / "live"
    recorder = record(directory, close=False)
    assert shown("show", "live", cwd=tmp_path)["status"] == "running"
    (listed,) = shown("runs", cwd=tmp_path)
    assert (listed["status"], listed["points"]) == ("running", POINTS)
    copy = tmp_path / "copied" / "p" / "live"
    shutil.copytree(directory, copy)
    assert shown("show", str(copy), cwd=tmp_path)["status"] == "killed"
    recorder.close(RunStatus.FAILED)
    assert shown("show", "live", cwd=tmp_path)["status"] == "failed"


def test_runs_lists_what_is_not_delivered(tmp_path: Path) -> None:
    for delivery in ("thread", "off"):
        tracking = ot.Tracking(
            log_with="tensorboard", project_dir=tmp_path / "outputs", run_id=delivery, delivery=delivery
        )
        tracking.init_trackers("p", config={"lr": 1})
        tracking.log({"a": 1.0}, step=1)
        tracking.end_training()
    (tmp_path / "outputs" / ".pending" / "x").mkdir(parents=True)
    listed = {each["run"]: each for each in shown("runs", "--project", "p", cwd=tmp_path)}
    assert listed["thread"]["trackers"]["tensorboard"]["delivered"] == 1
    assert listed["off"]["trackers"]["tensorboard"]["pending"] == 1
    done = command("runs", cwd=tmp_path)
    assert "tensorboard (1 pending)" in done.stdout
    assert "1 journals in" in done.stderr
    assert shown("runs", "--project", "other", cwd=tmp_path) == []
    cursor = next((tmp_path / "outputs" / "p" / "off" / "cursors").glob("*.json"))
    cursor.write_text("{")
    assert "remove the file" in command("runs", cwd=tmp_path).stdout


def test_which_run_is_meant(run: Path, tmp_path: Path) -> None:
    record(run.with_name("run-2"))
    assert "more than one run" in command("show", "run", cwd=tmp_path, code=2).stderr
    assert shown("show", "run-1", cwd=tmp_path)["run"] == "run-1"
    assert "run-1, run-2" in command("show", "none", cwd=tmp_path, code=2).stderr
    os.chdir(run)
    assert shown("show", ".", cwd=run)["run"] == "run-1"


def test_a_curve_is_means_of_equal_stretches() -> None:
    values = np.sin(np.arange(10_000) / 1_000)
    whole, parts = Curve(), Curve()
    whole.add(values)
    for part in np.array_split(values, 37):
        parts.add(part)
    means = whole.means()
    np.testing.assert_allclose(parts.means(), means)
    assert CURVE_POINTS / 2 < len(means) <= CURVE_POINTS
    np.testing.assert_allclose(means[:-1], values[: 256 * (len(means) - 1)].reshape(-1, 256).mean(1))
    holes = Curve()
    holes.add(np.array([1.0, math.nan, math.inf, 3.0]))
    assert holes.means().tolist()[0] == 1.0
    assert np.isnan(holes.means()[1:3]).all()


def test_a_sparkline_takes_every_number() -> None:
    assert sparkline(np.array([0.0, 1.0, math.nan, 0.5])) == "▁█ ▅"
    assert sparkline(np.array([7.0, 7.0])) == "▁▁"
    assert sparkline(np.array([-1.7e308, 1.7e308])) == "▁█"
    assert sparkline(np.array([math.nan])) == " "


def test_sizes_are_for_people() -> None:
    assert [size(n) for n in (0, 999, 1_000, 2_500_000, 10**16)] == [
        "0 B",
        "999 B",
        "1.0 KB",
        "2.5 MB",
        "10000.0 TB",
    ]


def test_a_summary_of_many_blocks_is_that_of_the_points(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.open(tmp_path / "journal")
    rng = np.random.default_rng(1)
    values = rng.normal(size=60_000)
    for step, value in enumerate(values.tolist()):
        recorder.log({f"s{step % 7}": value}, step=step)
    recorder.close(RunStatus.FINISHED)
    summary = summarize(tmp_path / "journal")
    for number, each in enumerate(sorted(summary.series, key=lambda one: one.series.tag)):
        mine = values[number::7]
        assert (each.points, each.last_value) == (len(mine), mine[-1])
        assert (each.lowest, each.highest) == (mine.min(), mine.max())
    assert summary.status == "finished"


def test_looking_at_a_run_changes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "outputs" / "p" / "live"
    recorder = record(directory, close=False)
    copy = tmp_path / "copied" / "p" / "live"
    # As a kill leaves it, with space reserved. A draft of the next segment comes and goes.
    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("*.draft"))
    description = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**description, "created": "1e99"}))
    recorder.close(RunStatus.FINISHED)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert shown("show", str(copy), cwd=tmp_path)["status"] == "killed"
    command("runs", "--project-dir", "copied", cwd=tmp_path)
    command("export", str(copy), "--format", "csv", cwd=tmp_path)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_verify_finds_damage_and_mends_what_it_can(tmp_path: Path) -> None:
    run = tmp_path / "outputs" / "p" / "run-1"
    record(run)
    assert "nothing is damaged" in command("verify", "run-1", cwd=tmp_path).stdout
    (segment,) = run.rglob("*.segment")
    flip(segment, 8 * 1000)
    said = command("verify", "run-1", cwd=tmp_path, code=1).stdout
    assert f"lost: {POINTS} points, 1 text\n" in said
    assert "blocks of 64 KiB damaged: 0" in said
    ((report,),) = (rank["segments"] for rank in shown("verify", "run-1", cwd=tmp_path, code=1))
    assert (report["lost"], report["points"], report["damaged_blocks"]) == (POINTS, 0, [0])
    assert shown("show", "run-1", cwd=tmp_path)["damaged"] == POINTS
    assert f"{POINTS:,} points; see" in command("show", "run-1", cwd=tmp_path).stdout
    exported = command("export", "run-1", "--format", "csv", cwd=tmp_path)
    assert f"{POINTS} points are damaged, and not exported" in exported.stderr
    command("verify", "run-1", "--repair", cwd=tmp_path, code=1)
    flip(segment, 8 * 1000)
    command("verify", "run-1", cwd=tmp_path)


def test_verify_shows_and_cuts_a_torn_tail_and_names_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "outputs" / "p" / "run-1"
    record(run)
    (segment,) = run.rglob("*.segment")
    unseal(run)
    whole = segment.read_bytes()
    segment.write_bytes(whole + b"\x05" * 96)
    said = command("verify", "run-1", cwd=tmp_path, code=1)
    assert "3 slots at the end torn" in said.stdout
    assert "--repair cuts" in said.stderr
    assert "nothing is damaged" in command("verify", "run-1", "--repair", cwd=tmp_path).stdout
    assert segment.read_bytes() == whole
    recorder = Recorder()
    recorder.open(segment.parent)
    assert "run-1" in command("verify", "run-1", cwd=tmp_path).stdout, (
        "a run may be looked at while it is recorded"
    )
    assert "being written" in command("verify", "run-1", "--repair", cwd=tmp_path, code=2).stderr
    recorder.close(RunStatus.FINISHED)
    segment.unlink()
    assert "is missing" in command("verify", "run-1", cwd=tmp_path, code=1).stdout
