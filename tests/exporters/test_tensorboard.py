"""TensorBoard's event files: what is written is what tensorboard reads, also after a kill."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
    LegacyEventFileLoader,
)
from torch.utils.tensorboard import SummaryWriter

from otel_tracking.errors import ConfigurationError, Retry, TrackingError
from otel_tracking.records import (
    Batch,
    Config,
    Kind,
    Media,
    MediaFile,
    MediaKind,
    RunInfo,
    RunStatus,
    Series,
    Text,
)
from otel_tracking_exporters import _tensorboard_file as file_module
from otel_tracking_exporters._tensorboard_events import records
from otel_tracking_exporters.tensorboard import TensorBoardTracker

START_NS = 1_700_000_000_123_456_789


def run_in(directory: Path, **changes: Any) -> RunInfo:
    directory.mkdir(parents=True, exist_ok=True)
    run = RunInfo(project="p", run_id="r", name="r", directory=directory, logging_dir=directory.parent)
    return replace(run, **changes)


def started(directory: Path, **changes: Any) -> TensorBoardTracker:
    tracker = TensorBoardTracker()
    tracker.start(run_in(directory, **changes))
    return tracker


def batch_of(
    tags: Sequence[str],
    rows: Sequence[tuple[int, int, Mapping[str, float]]],
    options: Mapping[int, Mapping[str, Any]] | None = None,
    series: Sequence[Series] | None = None,
) -> Batch:
    """Rows of (position, step, {tag: value}); a row's time is its position in milliseconds."""
    points = [(position, step, tag, value) for position, step, row in rows for tag, value in row.items()]
    return Batch(
        series or [Series(tag=tag, name=tag, kind=Kind.GAUGE) for tag in tags],
        np.array([tags.index(point[2]) for point in points], dtype=np.int32),
        np.array([point[1] for point in points], dtype=np.int64),
        np.array([START_NS + point[0] * 1_000_000 for point in points], dtype=np.int64),
        np.array([point[3] for point in points], dtype=np.float64),
        np.array([point[0] for point in points], dtype=np.int64),
        options or {},
    )


def losses(first: int, last: int) -> Batch:
    """Positions first..last of one series, step = position, value = position / 2."""
    return batch_of(["loss"], [(i, i, {"loss": i / 2}) for i in range(first, last + 1)])


def events_in(directory: Path) -> list[Any]:
    return [e for path in file_module.event_files(directory) for e in LegacyEventFileLoader(str(path)).Load()]


def scalars_in(directory: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) in the order of the files."""
    return [
        (value.tag, event.step, value.simple_value)
        for event in events_in(directory)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def accumulated(directory: Path) -> EventAccumulator:
    sizes = {"scalars": 0, "tensors": 0}
    return EventAccumulator(str(directory), size_guidance=sizes).Reload()


def text_of(accumulator: EventAccumulator, tag: str) -> list[str]:
    return [e.tensor_proto.string_val[0].decode() for e in accumulator.Tensors(f"{tag}/text_summary")]


def test_every_point_comes_back_in_recorded_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tags = [f"train/s{i}" for i in range(5)]
    special = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 1e-310, 1e300, 0.1, 16_777_217.0, 3.4028234e38]
    rows = []
    for position in range(1, 1001):
        value = special[position % len(special)]
        step = int(rng.integers(-500, 500))
        rows.append((position, step, {tag: value if i else float(position) for i, tag in enumerate(tags)}))
    batch = batch_of(tags, rows)
    tracker = started(tmp_path)
    results = [tracker.write(batch[start : start + 775]) for start in range(0, 5000, 775)]
    tracker.finish(RunStatus.FINISHED)

    accumulator = accumulated(tmp_path)
    for i, tag in enumerate(tags):
        mine = batch.index == i
        got = accumulator.Scalars(tag)
        assert [e.step for e in got] == batch.steps[mine].tolist()
        with np.errstate(over="ignore", under="ignore"):
            expected = batch.values[mine].astype(np.float32)
        assert np.array([e.value for e in got], dtype=np.float32).tobytes() == expected.tobytes()
        assert max(abs(np.array([e.wall_time for e in got]) - batch.times[mine] / 1e9)) < 1e-6
    assert [tag for tag, _, _ in scalars_in(tmp_path)] == tags * 1000
    assert sum(result.accepted for result in results) == 5000
    total: Counter[str] = Counter()
    for result in results:
        total.update(result.altered)
    # 1e-310, 0.1 and 2**24 + 1 are rounded, and so is 3.4028234e38; 1e-45 is too as a double.
    assert total == {"beyond float32, stored as infinity": 400, "stored as float32": 2000}


def test_names_of_every_kind_stay_apart(tmp_path: Path) -> None:
    tags = [
        "", "a", "a/b", "../../etc/passwd", "nul\0", "‮rtl", "\ud800", "_xd800_", "损失", " ", "x" * 5000,
        "_hparams_/session_start_info", "custom_scalars__config__", "a/text_summary", "<script>",
    ]  # fmt: skip
    tracker = started(tmp_path)
    tracker.write(batch_of(tags, [(1, 1, {tag: float(i) for i, tag in enumerate(tags)})]))
    tracker.finish(RunStatus.FINISHED)
    accumulator = accumulated(tmp_path)
    stored = {tag: accumulator.Scalars(tag)[0].value for tag in accumulator.Tags()["scalars"]}
    assert stored == {tracker.names.escape(tag): float(i) for i, tag in enumerate(tags)}
    assert [tracker.names.unescape(tag) for tag in stored] == tags
    assert [path.name for path in tmp_path.iterdir()] == [
        path.name for path in file_module.event_files(tmp_path)
    ]


def test_walltime_is_a_rows_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[int, dict[str, object]] = {2: {"walltime": 123.5}, 3: {"walltime": "noon", "commit": 0}}
    options[9] = {"walltime": 1.0}
    rows = [(i, i, {"a": 1.0, "b": 2.0}) for i in (1, 2, 3)]
    tracker = started(tmp_path)
    with caplog.at_level(logging.WARNING):
        written = tracker.write(batch_of(["a", "b"], rows, options))
        tracker.write(batch_of(["a"], [(4, 4, {"a": 1.0})], {4: {"commit": True}}))
    tracker.write_text(Text("note", "hi", 7, START_NS, 5, {"walltime": 99.0}))
    tracker.finish(RunStatus.FINISHED)
    accumulator = accumulated(tmp_path)
    walls = [e.wall_time for e in accumulator.Scalars("b")]
    assert walls == pytest.approx([START_NS / 1e9 + 0.001, 123.5, START_NS / 1e9 + 0.003], abs=1e-6)
    assert accumulator.Tensors("note/text_summary")[0].wall_time == 99.0
    assert written.altered == {"walltime is not a time in seconds": 2}
    assert [record.message for record in caplog.records] == [
        "tensorboard knows no log_kwargs ['commit'], only 'walltime'"
    ]


def test_unit_and_description_are_stored_with_the_first_point(tmp_path: Path) -> None:
    series = [
        Series(tag="plain", name="plain", kind=Kind.GAUGE),
        Series(tag="t", name="t", kind=Kind.GAUGE, unit="s", description="time \ud800 *taken*"),
    ]
    rows = [(1, 1, {"plain": 1.0}), (2, 1, {"plain": 1.0, "t": 2.0}), (3, 2, {"t": 3.0}), (4, 2, {"t": 4.0})]
    tracker = started(tmp_path)
    tracker.write(batch_of(["plain", "t"], rows, series=series))
    tracker.write(batch_of(["plain", "t"], [(5, 3, {"t": 5.0})], series=series))
    tracker.finish(RunStatus.FINISHED)
    accumulator = accumulated(tmp_path)
    assert accumulator.SummaryMetadata("t").summary_description == r"time \ud800 *taken* [s]"
    assert [e.value for e in accumulator.Scalars("t")] == [2.0, 3.0, 4.0, 5.0]
    with_metadata = [v.tag for e in events_in(tmp_path) for v in e.summary.value if v.HasField("metadata")]
    assert with_metadata == ["t"]


def test_a_text_is_stored_as_summary_writer_stores_it(tmp_path: Path) -> None:
    tracker = started(tmp_path / "ours")
    text = "## Sample\n" + "long " * 100_000
    tracker.write_text(Text("predictions", text, 100, START_NS, 1))
    tracker.write_text(Text("odd", "\ud800", 1, START_NS, 2))
    tracker.finish(RunStatus.FINISHED)
    with SummaryWriter(str(tmp_path / "torch")) as writer:
        writer.add_text("predictions", text, global_step=100, walltime=START_NS / 1e9)
    ours, theirs = (events_in(tmp_path / name)[1] for name in ("ours", "torch"))
    assert ours.summary == theirs.summary
    assert (ours.step, ours.wall_time) == (theirs.step, theirs.wall_time)
    assert text_of(accumulated(tmp_path / "ours"), "odd") == [r"\ud800"]


def test_native_calls_from_another_thread_share_the_file(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    writer = tracker.handle.writer
    assert writer is tracker.native is tracker.handle.tracker
    assert isinstance(tracker.native, SummaryWriter)

    def native() -> None:
        model = torch.nn.Linear(4, 2)
        writer.add_graph(model, torch.zeros(1, 4))
        writer.add_embedding(torch.zeros(3, 5), metadata=["x", "y", "z"], step=3)
        for i in range(100):
            writer.add_text("predictions", f"Sample {i}", step=i)
            writer.add_image("image", np.zeros((3, 4, 4), dtype=np.uint8), global_step=i)
            writer.add_histogram("histogram", np.arange(9.0), i)
        writer.add_hparams({"lr": 0.1, "name": "x", "none": None}, {"final": 0.5}, step=9)
        tracker.handle.log({"a": np.float32(1.5), "n": {"b": 2}, "note": "text"}, step=4)
        tracker.handle.log_images({"batch": np.zeros((2, 3, 4, 4))}, step=1)
        tracker.handle.finish()
        writer.add_scalar("after close", 1.0, 1)

    thread = threading.Thread(target=native)
    thread.start()
    position = 0
    while thread.is_alive() or position < 2000:
        tracker.write(losses(position + 1, position + 200))
        position += 200
    thread.join()
    tracker.finish(RunStatus.FINISHED)

    assert len(file_module.event_files(tmp_path)) == 1
    assert (tmp_path / "00003" / "default" / "tensors.tsv").exists()
    accumulator = accumulated(tmp_path)
    assert [e.step for e in accumulator.Scalars("loss")] == list(range(1, position + 1))
    assert text_of(accumulator, "predictions") == [f"Sample {i}" for i in range(100)]
    tags = accumulator.Tags()
    assert "image" in tags["images"]
    assert tags["graph"]
    assert "histogram" in tags["histograms"]
    values = {tag: accumulator.Scalars(tag)[0].value for tag in ("final", "a", "n/b", "after close")}
    assert values == {"final": 0.5, "a": 1.5, "n/b": 2.0, "after close": 1.0}
    assert text_of(accumulator, "note") == ["text"]
    assert "_hparams_/session_start_info" in accumulator.PluginTagToContent("hparams")
    with pytest.raises(TrackingError, match="the run has ended"):
        writer.add_scalar("late", 1.0, 1)


def test_native_sub_runs_stay_inside_the_run(tmp_path: Path) -> None:
    tracker = started(tmp_path / "logs" / "run")
    writer = tracker.native
    writer.add_scalars("x", {"/../../../escaped": 1.0, "..": 2.0, "train/loss": 3.0}, step=1)
    writer.add_hparams({"lr": 1.0}, {"m": 1.0}, run_name="../../escaped")
    writer.add_hparams({"lr": 1.0}, {"m": 1.0}, run_name=str(tmp_path / "escaped"))
    writer.add_embedding(torch.zeros(1, 2), tag="..")
    tracker.finish(RunStatus.FINISHED)
    outside = [path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "logs" / "run")]
    assert outside == [tmp_path / "logs"]
    assert scalars_in(tmp_path / "logs" / "run" / "x_train" / "loss") == [("x", 1, 3.0)]
    assert len(file_module.event_files(tmp_path / "logs" / "run")) == 1


def test_without_torch_only_the_native_writer_is_missing(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["torch"] = None
from pathlib import Path
import numpy as np
from otel_tracking.errors import ConfigurationError
from otel_tracking.records import *
from otel_tracking_exporters.tensorboard import TensorBoardTracker
tracker = TensorBoardTracker()
tracker.start(RunInfo("p", "r", "r", Path({str(tmp_path)!r}), Path({str(tmp_path)!r})))
one = np.ones(1, np.int64)
tracker.write(Batch([Series("a", "a", Kind.GAUGE)], np.zeros(1, np.int32), one, one, np.ones(1), one))
try:
    tracker.native
except ConfigurationError as error:
    assert "otel-tracking[torch]" in str(error)
    tracker.finish(RunStatus.FINISHED)
    print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr
    assert scalars_in(tmp_path) == [("a", 1, 1.0)]


def test_options_are_those_of_summary_writer(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no option 'flush_sec'.*'flush_secs'.*purge_step"):
        started(tmp_path, options={"flush_sec": 1})
    for wrong in ({"purge_step": "5"}, {"filename_suffix": 5}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            started(tmp_path, options=wrong)
    options = {"filename_suffix": "/../x", "purge_step": 5, "flush_secs": 1, "max_queue": 1, "comment": "c"}
    tracker = started(tmp_path, options=options)
    tracker.finish(RunStatus.FINISHED)
    (path,) = file_module.event_files(tmp_path)
    assert path.name.endswith(".0_x2f_.._x2f_x")
    assert [(e.step, e.session_log.status) for e in events_in(tmp_path)][-2:] == [(5, 1)] * 2


def test_a_full_disk_takes_whole_rows_and_the_rest_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = started(tmp_path)
    tracker.write(losses(1, 10))
    tracker.native.add_text("native", "kept")
    real = os.write
    room = [300]

    def short(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken, room[0] = real(fd, data[: room[0]]), 0
        return taken

    monkeypatch.setattr(os, "write", short)
    for _ in range(2):
        with pytest.raises(Retry, match="No space left"):
            tracker.write(losses(11, 50))
    stored = [step for _, step, _ in scalars_in(tmp_path)]
    assert stored == list(range(1, tracker.confirm() + 1))
    assert 10 < len(stored) < 50
    (path,) = file_module.event_files(tmp_path)
    assert max(end for end, _ in records(path.read_bytes())) == path.stat().st_size
    with pytest.raises(OSError, match="No space left"):
        tracker.native.add_text("native", "refused")
    monkeypatch.undo()
    assert tracker.write(losses(11, 50)).accepted == 40
    assert tracker.confirm() == 50
    tracker.finish(RunStatus.FINISHED)
    assert [step for _, step, _ in scalars_in(tmp_path)] == list(range(1, 51))
    assert text_of(accumulated(tmp_path), "native") == ["kept"]


def test_a_restart_finds_what_is_stored_wherever_the_last_record_is_torn(tmp_path: Path) -> None:
    tracker = started(tmp_path / "whole")
    tracker.write(losses(1, 3))
    state, cursor = dict(tracker.state()), tracker.confirm()
    tracker.native.add_text("native", "kept")
    row = batch_of(["a", "b"], [(4, 4, {"a": 1.0, "b": 2.0}), (5, 5, {"a": 3.0, "b": 4.0})])
    tracker.write(row)
    tracker.finish(RunStatus.KILLED)
    (whole,) = file_module.event_files(tmp_path / "whole")
    data = whole.read_bytes()
    *_, before_last, last = [end for end, _ in records(data)]
    assert last == len(data)

    for cut in range(before_last, last + 1):
        directory = tmp_path / f"cut{cut}"
        directory.mkdir()
        (directory / whole.name).write_bytes(data[:cut])
        again = TensorBoardTracker()
        position = again.start(run_in(directory, state=state, position=cursor))
        assert position == (5 if cut == last else 4)
        assert again.confirm() == position
        again.write(row[2:] if position == 4 else losses(6, 6))
        again.finish(RunStatus.FINISHED)
        rest = [("a", 5, 3.0), ("b", 5, 4.0)] + ([("loss", 6, 3.0)] if cut == last else [])
        first = [("loss", i, i / 2) for i in (1, 2, 3)] + [("a", 4, 1.0), ("b", 4, 2.0)]
        assert scalars_in(directory) == first + rest
        assert (directory / whole.name).read_bytes() == data[:cut]


def test_a_restart_whose_cursor_was_never_saved_doubles_nothing(tmp_path: Path) -> None:
    for first in (1, 101, 201):
        tracker = TensorBoardTracker()
        assert tracker.start(run_in(tmp_path)) == first - 1
        tracker.write(losses(first, first + 99))
        tracker.finish(RunStatus.KILLED)
    assert len(file_module.event_files(tmp_path)) == 3
    assert [step for _, step, _ in scalars_in(tmp_path)] == list(range(1, 301))


def test_files_that_are_gone_or_cut_are_written_again(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.write(losses(1, 10))
    tracker.finish(RunStatus.KILLED)
    tracker = started(tmp_path, state=tracker.state(), position=10)
    tracker.write(losses(11, 20))
    state = tracker.state()
    tracker.finish(RunStatus.KILLED)
    first, second = file_module.event_files(tmp_path)
    os.truncate(second, second.stat().st_size - 1)
    assert TensorBoardTracker().start(run_in(tmp_path, state=state, position=20)) == 19
    for path in file_module.event_files(tmp_path):
        if path != first:
            path.unlink()
    assert TensorBoardTracker().start(run_in(tmp_path, state=state, position=20)) == 10
    for path in file_module.event_files(tmp_path):
        path.unlink()
    assert TensorBoardTracker().start(run_in(tmp_path, state=state, position=20)) == 0


def test_kill_while_writing(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_tensorboard import started, losses
tracker = started(Path({str(tmp_path)!r}))
first = 1
while True:
    tracker.write(losses(first, first + 999))
    first += 1000
    print(tracker.confirm(), flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    confirmed = [int(child.stdout.readline()) for _ in range(5)]
    time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    confirmed += [int(line) for line in child.stdout if line.endswith("\n")]
    child.wait()
    child.stdout.close()

    tracker = TensorBoardTracker()
    stored = tracker.start(run_in(tmp_path))
    assert stored >= confirmed[-1]
    tracker.write(losses(stored + 1, stored + 1000))
    tracker.finish(RunStatus.FINISHED)
    assert [step for _, step, _ in scalars_in(tmp_path)] == list(range(1, stored + 1001))


def test_configs_that_come_together_are_stored_together(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    assert tracker.write_config(Config({"lr": 0.1, "x": 1}, START_NS, 1)).altered == {}
    assert tracker.write_config(Config({"lr": 0.2}, START_NS, 2)).altered == {}
    assert tracker.confirm() == 0
    assert tracker.confirm(flush=True) == 2
    with pytest.raises(TypeError):
        tracker.write_config(Config({"bad": {1, 2}}, START_NS, 3))
    late = tracker.write_config(Config({"late": [1]}, START_NS, 3))
    assert late.altered == {"the HParams tab shows the first config": 1}
    tracker.write(losses(4, 4))
    tracker.finish(RunStatus.KILLED)
    again = started(tmp_path, state=tracker.state(), position=4)
    assert again.write_config(Config({"lr": 0.3}, START_NS, 5)).altered == late.altered
    again.finish(RunStatus.FAILED)
    ends = [v.tag for e in events_in(tmp_path) for v in e.summary.value if "session_end" in v.tag]
    assert len(ends) == 1
    texts = text_of(accumulated(tmp_path), "config")
    assert '"lr": 0.2' in texts[0]
    assert '"late"' in texts[1]
    assert '"lr": 0.3' in texts[2]


def test_finish_after_a_start_that_failed() -> None:
    TensorBoardTracker().finish(RunStatus.FAILED)


def test_a_later_start_knows_which_names_have_media(tmp_path: Path) -> None:
    """TensorBoard shows one form of data a tag; what else has the name is a series of another name."""
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    image = MediaFile(tmp_path / "a.png", "0", 1, "a.png", "image/png")
    run = tmp_path / "run"
    tracker = started(run)
    tracker.write_media(Media(MediaKind.IMAGE, "a", (image,), {}, 0, START_NS, 1))
    state = json.loads(json.dumps(tracker.state()))
    tracker.finish(RunStatus.KILLED)
    again = started(run, state=state, position=1)
    written = again.write(batch_of(["a", "b"], [(2, 0, {"a": 1.0, "b": 2.0})]))
    assert written.altered == {"stored as <name> (series): the name has other data": 1}
    again.finish(RunStatus.FINISHED)
    assert scalars_in(run) == [("a (series)", 0, 1.0), ("b", 0, 2.0)]
