"""SwanLab: every point with its own step and time, online or in a file below the run's directory.

SwanLab keeps one point a series and step, the first, and takes steps from 0 to 2^48: other points are
refused, counted, and lie in the dead letters. A name has one kind of data: media under a series' name go
to `<name> (<kind>)`.

Offline (`SWANLAB_MODE=offline`, or `init_kwargs={"swanlab": {"mode": "offline"}}`) a run lies in
`<run directory>/swanlog/run-*`; upload it with `swanlab sync <that folder>`. SwanLab can't continue an
offline run: one that was interrupted or is resumed is moved to `<run directory>/swanlab-retired/` and
written again whole, under the same id. `init_kwargs` are the arguments of `swanlab.init`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import swanlab
from pyroaring import BitMap64

from otel_tracking.capabilities import Declaration
from otel_tracking.config import without_surrogates
from otel_tracking.errors import NotStarted, Retry
from otel_tracking.media.histograms import QUANTILE_PARTS, quantile_series
from otel_tracking.media.overlays import lost_overlays
from otel_tracking.names import NameRule
from otel_tracking.records import Batch, Config, Media, MediaKind, RunInfo, RunStatus, Text, Written
from otel_tracking.sdk_exporters import TrackerMetricExporter, TrackerSpanExporter
from otel_tracking.sdk_logs import TrackerLogExporter
from otel_tracking.tags import KIND_PARTS, of_kind
from otel_tracking.tracker import Pacing, Tracker
from otel_tracking_exporters._swanlab_media import TEXT, as_items, item
from otel_tracking_exporters._swanlab_run import RecordWriter, hooks_kept, open_run, retire
from otel_tracking_exporters.declarations import SWANLAB

_STEP_MAX: Final = 2**48
_NEGATIVE: Final = "SwanLab has no negative steps"
_TOO_LARGE: Final = "SwanLab has no steps above 2^48"
_REPEATED: Final = "SwanLab keeps the first point of a step alone"
_SCALAR: Final = -1
_STATES: Final = {RunStatus.FINISHED: "success", RunStatus.FAILED: "crashed", RunStatus.KILLED: "aborted"}

_own_runs: weakref.WeakSet[swanlab.Run] = weakref.WeakSet()


class SwanLabTracker(Tracker):
    """One SwanLab run. A run that is active when this starts is used, and finished."""

    name: ClassVar[str] = "swanlab"
    exactly_once = True
    # What SwanLab strips off the ends, its own names, and control characters, which it drops a point for.
    names: ClassVar[NameRule] = NameRule(
        forbidden=r"\x00-\x1f\x7f-\x9f",
        forbidden_parts=rf"^[ ./]|[ ./]\Z|^_(?=_swanlab__\.)|{QUANTILE_PARTS}|{KIND_PARTS}",
        max_length=512,
    )
    pacing: ClassVar[Pacing] = Pacing(max_points=2_000)
    closes_at_exit: ClassVar[bool] = True
    declaration: ClassVar[Declaration] = SWANLAB

    def __init__(self) -> None:
        self._run: swanlab.Run | None = None
        self._writer: RecordWriter
        """Set by `start`."""
        self._adopted = False
        self._steps: dict[str, BitMap64] = {}
        self._types: dict[str, int] = {}
        self._taken = 0
        self._stored = 0

    def start(self, run: RunInfo) -> int:
        """Open the run, and write all of it: SwanLab takes what it has for the same points."""
        if not run.state.get("adopted"):
            retire(run.directory, run.state)
        self._run, self._adopted = open_run(run, _own_runs.__contains__)
        self._writer = RecordWriter(self._run)
        _own_runs.add(self._run)
        return 0

    def write(self, batch: Batch) -> Written:
        """Write points; which are refused, the module says."""
        if int(batch.positions[-1]) <= self._taken:
            return Written(len(batch))
        names = [self._typed(series.tag, _SCALAR, "series") for series in batch.series]
        apart = {n for n, s in enumerate(batch.series) if names[n] != self.names.escape(s.tag)}
        rejected: dict[str, list[int]] = {}
        rows = []
        columns = [c.tolist() for c in (batch.index, batch.steps, batch.values, batch.times, batch.positions)]
        early = moved = 0
        for place, (index, step, value, time, position) in enumerate(zip(*columns, strict=True)):
            if position <= self._taken:
                continue
            reason = self._refusal(names[index], step)
            if reason:
                rejected.setdefault(reason, []).append(place)
                continue
            early += time < 0
            moved += index in apart
            rows.append((names[index], step, value, max(time, 0)))
        self._writer.scalars(rows)
        self._taken = int(batch.positions[-1])
        refused = sum(map(len, rejected.values()))
        changes = {"time before 1970 stored as 1970": early, _apart("series"): moved}
        return Written(len(batch) - refused, {why: n for why, n in changes.items() if n}, rejected)

    def _refusal(self, key: str, step: int) -> str:
        """Why a point of that step can't be stored, or nothing; then it counts as stored."""
        if step < 0:
            return _NEGATIVE
        if step > _STEP_MAX:
            return _TOO_LARGE
        steps = self._steps.setdefault(key, BitMap64())
        if step in steps:
            return _REPEATED
        steps.add(step)
        return ""

    def _typed(self, tag: str, type_: int, kind: str) -> str:
        """A tag's key for data of that type: another one, if its own has another type already."""
        key = self.names.escape(tag)
        if self._types.setdefault(key, type_) != type_:
            key = of_kind(tag, kind, self.names)
            # Of one kind, figures are images or HTML, and videos GIFs or not.
            while self._types.setdefault(key, type_) != type_:
                key = f"{key} ({kind})"
        return key

    def write_text(self, text: Text) -> Written:
        """Write a text."""
        clean = without_surrogates(text.text)
        content = clean.encode()
        media = Media(MediaKind.HTML, text.tag, (), {}, text.step, text.time, text.position)
        changes = {"lone surrogates are escaped": 1} if clean != text.text else {}
        return self._write_items(media, TEXT, "text", [item(media, "txt", content)], changes)

    def write_media(self, media: Media) -> Written:
        """Write files of media, or HTML that shows them."""
        type_, items, change = as_items(media)
        changes = ({change: 1} if change else {}) | lost_overlays(media)
        is_new = media.position > self._taken
        written = self._write_items(media, type_, media.kind.value, items, changes)
        if media.kind is MediaKind.HISTOGRAM and is_new and not written.refused:
            time = max(media.time, 0)
            quantiles = quantile_series(media, self.names)
            self._writer.scalars([(key, media.step, value, time) for key, value in quantiles.items()])
        return written

    def _write_items(
        self,
        media: Media,
        type_: int,
        kind: str,
        items: Sequence[tuple[str, str, bytes, str]],
        changes: Mapping[str, int],
    ) -> Written:
        if media.position <= self._taken:
            return Written(1)
        key = self._typed(media.tag, type_, kind)
        reason = self._refusal(key, media.step)
        if reason:
            self._taken = media.position
            return Written(0, rejected={reason: [0]})
        try:
            self._writer.media(key, media.step, max(media.time, 0), type_, items)
        except OSError as error:
            self._steps[key].discard(media.step)
            raise Retry(f"SwanLab's files can't be written: {error.strerror}") from error
        self._taken = media.position
        renamed = {_apart(kind): 1} if key != self.names.escape(media.tag) else {}
        return Written(1, {**changes, **renamed})

    def write_config(self, config: Config) -> Written:
        """Update the run's config."""
        values = without_surrogates(config.values)
        self._opened.config.update(values)
        self._taken = max(self._taken, config.position)
        special = values != config.values or any(map(_is_special, values.values()))
        return Written(1, {"config values that SwanLab stores in another form": 1} if special else {})

    def confirm(self, *, flush: bool = False) -> int:
        """All that was written, once the operating system has it."""
        if self._taken > self._stored:
            try:
                self._writer.flush()
            except OSError as error:
                raise Retry(f"SwanLab's file can't be written: {error.strerror}") from error
            self._stored = self._taken
        return self._stored

    def state(self) -> Mapping[str, Any]:
        """Which run and folder a later start finds."""
        if self._run is None:
            return {}
        return {"id": self._run.id, "directory": str(self._run.dir), "adopted": self._adopted}

    def finish(self, status: RunStatus) -> None:
        """Finish the run: failed is `crashed`, with the exception's traceback; killed is `aborted`."""
        if self._run is None:
            return
        error = None
        if status is RunStatus.FAILED:
            error = self.failure.traceback if self.failure else "the run failed"
        state: Any = _STATES.get(status, "success")
        with hooks_kept():
            self._run.finish(state=state, error=error)
        self._stored = self._taken

    @property
    def _opened(self) -> swanlab.Run:
        if self._run is None:
            raise NotStarted("the SwanLab run has not been started yet")
        return self._run

    @property
    def native(self) -> swanlab.Run:
        """The `swanlab.Run`."""
        return self._opened

    @property
    def handle(self) -> SwanLabHandle:
        """The run with Accelerate's words."""
        return SwanLabHandle(self._opened)


class SwanLabHandle:
    """Accelerate's words for a SwanLab run; every other attribute is the run's own.

    What is logged here goes to SwanLab only: it is not in the journal, and a run that has to be written again
    after a crash does not have it.
    """

    def __init__(self, run: swanlab.Run) -> None:
        self.run = run
        self.tracker = run

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Add hyperparameters to the run's config."""
        self.run.config.update(dict(values))

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Log numbers or SwanLab's media. `kwargs` are `swanlab.Run.log`'s."""
        self.run.log(dict(values), step=step, **kwargs)

    def log_images(self, values: Mapping[str, Sequence[Any]], step: int | None = None, **kwargs: Any) -> None:
        """Log lists of images: `swanlab.Image`, or anything it can be made from."""
        images = {
            name: [image if isinstance(image, swanlab.Image) else swanlab.Image(image) for image in batch]
            for name, batch in values.items()
        }
        self.log(images, step=step, **kwargs)

    def finish(self) -> None:
        """Nothing: `end_training` closes the run, after what is still in the journal."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)


class SwanLabMetricExporter(TrackerMetricExporter):
    """An OpenTelemetry `MetricExporter` that logs to a SwanLab run."""

    tracker = SwanLabTracker


class SwanLabSpanExporter(TrackerSpanExporter):
    """An OpenTelemetry `SpanExporter` that logs spans' durations to a SwanLab run."""

    tracker = SwanLabTracker


class SwanLabLogExporter(TrackerLogExporter):
    """An OpenTelemetry `LogRecordExporter` that logs log records as texts to a SwanLab run."""

    tracker = SwanLabTracker


def _apart(kind: str) -> str:
    return f"stored as <name> ({kind}): the name has other data"


def _is_special(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
