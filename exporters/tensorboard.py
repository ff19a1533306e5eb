"""TensorBoard: a run is a directory with event files.

Scalars are what `SummaryWriter.add_scalar` stores (float32, wall time as a double of seconds, the
step as an int64), in recorded order. Every write is with the operating system when it returns.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

from otel_tracking.capabilities import Declaration
from otel_tracking.config import flatten_config
from otel_tracking.errors import ConfigurationError, Retry
from otel_tracking.names import NameRule
from otel_tracking.records import (
    Batch,
    Config,
    Float64Array,
    Media,
    Rewind,
    RunInfo,
    RunStatus,
    Text,
    Written,
)
from otel_tracking.sdk_exporters import TrackerMetricExporter, TrackerSpanExporter
from otel_tracking.sdk_logs import TrackerLogExporter
from otel_tracking.tags import KIND_PARTS, of_kind
from otel_tracking.tracker import Tracker
from otel_tracking_exporters._tensorboard_events import encode_rows, frame, scalar, stamp
from otel_tracking_exporters._tensorboard_file import (
    EventFile,
    TornWrite,
    last_position,
    read_event,
    stored_position,
)
from otel_tracking_exporters._tensorboard_media import forms_of, media_values
from otel_tracking_exporters._tensorboard_options import Options
from otel_tracking_exporters._tensorboard_rewind import retire_void
from otel_tracking_exporters._tensorboard_rewind import rewind as rewound
from otel_tracking_exporters._tensorboard_summaries import (
    Charts,
    config_values,
    is_layout,
    scalar_metadata,
    session_end_value,
    text_value,
)
from otel_tracking_exporters.declarations import TENSORBOARD

if TYPE_CHECKING:
    from otel_tracking_exporters._tensorboard_native import RunWriter

_SERIES: Final = "series"
_logger = logging.getLogger(__name__)


class TensorBoardTracker(Tracker):
    """One run's event file.

    `init_kwargs` are those of torch's `SummaryWriter`: `purge_step` hides later steps of an earlier
    start, `filename_suffix` ends the file's name; `flush_secs` and `max_queue` have no effect
    because nothing is queued, nor has `comment`, as in torch, because the directory is given.
    `log_kwargs` know `walltime`, seconds since the epoch.
    """

    name = "tensorboard"
    declaration: ClassVar[Declaration] = TENSORBOARD
    requires_logging_directory = True
    exactly_once = True
    # Tags that TensorBoard's plugins, or we, give a meaning of their own.
    names = NameRule(
        forbidden_parts=rf"^_(?=hparams_/)|^c(?=ustom_scalars__config__\Z)|/(?=text_summary\Z)|{KIND_PARTS}",
    )

    def __init__(self) -> None:
        self._file: EventFile | None = None
        self._position = 0
        # After a write that was torn, the rows that got in come a second time.
        self._torn_after = 0
        self._group = ""
        self._charts = Charts()
        self._forms: dict[str, str] = {}
        """What tags have: TensorBoard shows one form of data a tag. Those of series are described."""
        self._config: dict[str, Any] = {}
        self._config_due: tuple[Event, int] | None = None
        self._configured = False
        self._ignored: set[str] = set()
        self._writer: RunWriter | None = None
        self._writer_lock = threading.Lock()

    def start(self, run: RunInfo) -> int:
        """Read what earlier files of the run hold, and open a new one.

        Raises:
            ConfigurationError: An option that `SummaryWriter` does not have, or of the wrong type.
        """
        options = Options.of(run.options)
        retire_void(run.directory)
        self._position = stored_position(run.directory, run.position, run.state)
        self._configured = bool(run.state.get("configured"))
        self._forms = dict(run.state.get("forms", {}))
        self._group = run.group
        charts_at = run.state.get("charts_at")
        if charts_at is not None and (run.directory / run.state["file"]).exists():
            event = read_event(run.directory / run.state["file"], charts_at)
            for value in filter(is_layout, event.summary.value if event else ()):
                self._charts.adopt(value)
        self._file = EventFile(run.directory, options.filename_suffix)
        if options.purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            for _ in range(2):  # the first one in a run is where it begins, and TensorBoard takes no notice
                self._file.append_event(Event(step=options.purge_step, session_log=start))
        return self._position

    def attach(self, run: RunInfo) -> None:
        """Write native events into a sub-run of the run's, `native`.

        Of two files that grow in one directory, TensorBoard stops reading the older one.
        """
        directory = run.directory / "native"
        directory.mkdir(exist_ok=True)
        self._file = EventFile(directory)

    def write(self, batch: Batch) -> Written:
        """Append points, and before them the layout of charts if groups have grown."""
        self._write_config()
        walls, altered = self._walls(batch)
        with np.errstate(over="ignore", under="ignore"):
            values = batch.values.astype(np.float32)
        changed = (values != batch.values) & ~np.isnan(batch.values)
        overflown = changed & np.isinf(values)
        altered["beyond float32, stored as infinity"] = int(overflown.sum())
        altered["stored as float32"] = int(changed.sum()) - int(overflown.sum())

        tags = [self._series_tag(series.tag) for series in batch.series]
        apart = [n for n, tag in enumerate(tags) if tag.endswith(f" ({_SERIES})")]  # no other one does
        altered[_apart(_SERIES)] = int(np.isin(batch.index, apart).sum()) if apart else 0
        new = int(np.searchsorted(batch.positions, self._torn_after, side="right"))
        if new < len(batch):
            self._append_points(batch[new:], tags, walls[new:], values[new:])
        return Written(len(batch), altered={reason: n for reason, n in altered.items() if n})

    def write_text(self, text: Text) -> Written:
        """Append a text for the Text tab."""
        self._write_config()
        wall = _wall(text.options, default=text.time / 1e9)
        value = text_value(self.names.escape(text.tag), text.text)
        self._append_ours(_event([value], wall, text.step), text.position)
        return Written(1)

    def write_media(self, media: Media) -> Written:
        """Append media, as images, audio, distributions or texts."""
        self._write_config()
        tag = self.names.escape(media.tag)
        values, changed = media_values(tag, media)
        altered = ({changed: 1} if changed else {}) | media.lost_captions
        if any(self._forms.get(tag, form) != form for tag, form in forms_of(values).items()):
            altered[_apart(media.kind)] = 1
            values, _ = media_values(of_kind(media.tag, media.kind, self.names), media)
        wall = _wall(media.options, default=media.time / 1e9)
        self._append_ours(_event(values, wall, media.step), media.position)
        self._forms.update(forms_of(values))
        return Written(1, altered)

    def write_config(self, config: Config) -> Written:
        """Take hyperparameters for the HParams tab.

        They are appended before what is recorded next, because TensorBoard heeds the first
        hyperparameters of a run alone: those that come together are stored together. Later ones
        are stored too, and shown as a text.
        """
        merged = self._config | dict(config.values)
        started = config.time / 1e9
        # Made here and not later, so that a config that can't be stored doesn't stand in the points' way.
        self._config_due = _event(config_values(merged, started, self._group), started), config.position
        self._config = merged
        late = {"the HParams tab shows the first config": 1} if self._configured else {}
        return Written(1, altered=late)

    def write_rewind(self, rewind: Rewind) -> Written:
        """Go on in a file without what has that step or a later one."""
        self._write_config()
        try:
            rewound(self._open_file, rewind.step, rewind.time / 1e9, rewind.position)
        except OSError as error:
            raise Retry(f"{self._open_file.path.name} can't be written again: {error.strerror}") from error
        self._position = rewind.position
        self._charts.lost()
        return Written(1)

    def confirm(self, *, flush: bool = False) -> int:
        """The last position appended: the operating system has it."""
        if flush:
            self._write_config()
        return self._position

    def state(self) -> Mapping[str, Any]:
        """Which file grows, up to where, and where in it the layout of charts is."""
        file = self._open_file
        return {
            "file": file.path.name,
            "size": file.size,
            "configured": self._configured,
            "charts_at": self._charts.stored_at,
            "forms": {tag: form for tag, form in self._forms.items() if form != _SERIES},
        }

    def finish(self, status: RunStatus) -> None:
        """Append how the run ended, if it has hyperparameters, and close the file.

        A run that was killed is left open: it may be resumed, and TensorBoard heeds the first end alone.
        """
        if self._file is None:
            return
        try:
            self._write_config()
            if self._configured and status in (RunStatus.FINISHED, RunStatus.FAILED):
                now = time.time()
                self._file.append_event(_event([session_end_value(status, now)], now))
            if self._writer is not None:
                self._writer.close()
        finally:
            self._file.close()

    @property
    def native(self) -> Any:
        """torch's `SummaryWriter`, writing into the run's file; made at the first use.

        Its methods take `step=` as well as `global_step=`, which torch's annotations don't know.

        Raises:
            ConfigurationError: torch is not installed.
        """
        with self._writer_lock:
            if self._writer is None:
                try:
                    from otel_tracking_exporters._tensorboard_native import RunWriter
                except ImportError as error:
                    raise ConfigurationError(
                        "TensorBoard's native writer is torch's SummaryWriter, and torch can't be imported "
                        f"({error}). Install it: pip install 'otel-tracking[torch]'. "
                        "Scalars, texts and hyperparameters don't need it."
                    ) from error
                self._writer = RunWriter(self._open_file, self._charts)
            return self._writer

    @property
    def handle(self) -> TensorBoardHandle:
        """An object with the words of Accelerate's TensorBoard tracker."""
        return TensorBoardHandle(self)

    @property
    def _open_file(self) -> EventFile:
        assert self._file is not None, "`start` comes first"
        return self._file

    def _series_tag(self, tag: str) -> str:
        plain = self.names.escape(tag)
        return plain if self._forms.get(plain, _SERIES) == _SERIES else of_kind(tag, _SERIES, self.names)

    def _append_points(
        self, batch: Batch, tags: Sequence[str], walls: Float64Array, values: npt.NDArray[np.float32]
    ) -> None:
        scalars = [scalar(tag) for tag in tags]
        index = batch.index
        described = self._described_first(batch, tags)
        if described:
            index = index.copy()
            for point, metadata in described.items():
                scalars.append(scalar(tags[index[point]], metadata))
                index[point] = len(scalars) - 1
        points = encode_rows(scalars, index, batch.steps, walls, values, batch.positions)
        grouped = (
            (series.group, tag) for series, tag in zip(batch.series, tags, strict=True) if series.group
        )
        with self._open_file.lock:
            self._charts.add(grouped)
            self._append(self._layout() + points, int(batch.positions[-1]))
            self._charts.due = False
        self._forms.update(dict.fromkeys(tags, _SERIES))

    def _described_first(self, batch: Batch, tags: Sequence[str]) -> dict[int, bytes]:
        """By point: the metadata of series that occur for the first time and have a description."""
        about = {
            i: metadata
            for i, (series, tag) in enumerate(zip(batch.series, tags, strict=True))
            if tag not in self._forms and (metadata := scalar_metadata(series))
        }
        if not about:
            return {}
        occurring, first = np.unique(batch.index, return_index=True)
        firsts = zip(occurring.tolist(), first.tolist(), strict=True)
        return {point: about[i] for i, point in firsts if i in about}

    def _layout(self) -> bytes:
        if not self._charts.due:
            return b""
        self._charts.stored_at = self._open_file.size
        return frame(_event([self._charts.value()], time.time()).SerializeToString())

    def _write_config(self) -> None:
        if self._config_due is not None:
            self._append_ours(*self._config_due)
            self._config_due = None
            self._configured = True

    def _append_ours(self, event: Event, position: int) -> None:
        self._append(frame(stamp(position) + event.SerializeToString()), position)

    def _append(self, data: bytes, position: int) -> None:
        try:
            self._open_file.append(data)
        except TornWrite as error:
            self._torn_after = max(self._torn_after, last_position(error.kept))
            self._position = max(self._position, self._torn_after)
            raise Retry(f"{self._open_file.path.name}: {error.strerror}") from error
        self._position = position
        self._torn_after = 0

    def _walls(self, batch: Batch) -> tuple[Float64Array, dict[str, int]]:
        """(n,) seconds since the epoch, and how many points' `walltime` is no time."""
        walls = batch.times / 1e9
        refused = 0
        for position, options in batch.options.items():
            first, end = np.searchsorted(batch.positions, [position, position + 1]).tolist()
            if first == end:
                continue
            wall = _wall(options, default=math.nan)
            if not math.isnan(wall):
                walls[first:end] = wall
            elif "walltime" in options:
                refused += end - first
            self._warn_unknown(options)
        return walls, {"walltime is not a time in seconds": refused}

    def _warn_unknown(self, options: Mapping[str, Any]) -> None:
        unknown = options.keys() - {"walltime"} - self._ignored
        if unknown:
            self._ignored |= unknown
            _logger.warning("tensorboard knows no log_kwargs %s, only 'walltime'", sorted(unknown))


class TensorBoardHandle:
    """What `get_tracker("tensorboard")` returns: Accelerate's words, written into the run's file at once.

    Args:
        tracker: The run's tracker, started.
    """

    name: ClassVar[str] = "tensorboard"

    def __init__(self, tracker: TensorBoardTracker) -> None:
        self._tracker = tracker

    @property
    def writer(self) -> Any:
        """torch's `SummaryWriter`; methods take `step=` as well as `global_step=`."""
        return self._tracker.native

    @property
    def tracker(self) -> Any:
        """The same object, under the name that Accelerate's trackers share."""
        return self._tracker.native

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Log numbers as scalars and strings as texts; mappings flatten to `a/b`.

        Args:
            values: By tag.
            step: Of all of them.
            kwargs: `walltime`, and what else `add_scalar` and `add_text` share.
        """
        for tag, value in flatten_config(values).items():
            if isinstance(value, str):
                self.writer.add_text(tag, value, global_step=step, **kwargs)
            else:
                self.writer.add_scalar(tag, value, global_step=step, **kwargs)

    def log_images(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Log batches of images.

        Args:
            values: By tag: arrays or tensors, (N, C, H, W) unless `dataformats` says otherwise.
            step: Of all of them.
            kwargs: Passed to `SummaryWriter.add_images`.
        """
        for tag, images in values.items():
            self.writer.add_images(tag, images, global_step=step, **kwargs)

    def finish(self) -> None:
        """Close the sub-runs of native calls; the run itself ends with `end_training`."""
        self.writer.close()


class TensorBoardMetricExporter(TrackerMetricExporter):
    """OpenTelemetry metric exporter that writes TensorBoard event files."""

    tracker = TensorBoardTracker


class TensorBoardSpanExporter(TrackerSpanExporter):
    """OpenTelemetry span exporter that writes spans' durations into TensorBoard event files."""

    tracker = TensorBoardTracker


class TensorBoardLogExporter(TrackerLogExporter):
    """OpenTelemetry log exporter that writes log records into TensorBoard event files."""

    tracker = TensorBoardTracker


def _apart(kind: str) -> str:
    return f"stored as <name> ({kind}): the name has other data"


def _wall(options: Mapping[str, Any], *, default: float) -> float:
    wall = options.get("walltime")
    if isinstance(wall, int | float) and math.isfinite(wall):
        return float(wall)
    return default


def _event(values: Sequence[Summary.Value], wall: float, step: int = 0) -> Event:
    return Event(wall_time=wall, step=step, summary=Summary(value=values))
