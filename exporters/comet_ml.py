"""Comet: every point with its own step and time (in milliseconds), online or as an archive to upload.

Comet spells NaN and infinities as texts. The configuration is parameters, nested ones as `outer|inner`, and
whole the asset `config.json`. Texts, images, audio, videos and histograms are Comet's own; tables are CSV
assets, files and HTML are assets.

Offline (`COMET_START_ONLINE=0`, or `init_kwargs={"comet_ml": {"online": False}}`) an experiment becomes the
archive `<run directory>/comet/<key>.zip` when it ends; upload it with `comet upload`. Comet can't continue
one: that of a run that was interrupted or is resumed is moved to `<run directory>/comet-retired/`, and the
run is written again whole. `init_kwargs` are the arguments of `comet_ml.Experiment`, and `name`, `tags` and
`online`; what Comet would log by itself is off unless asked for.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final

from otel_tracking_exporters._comet_ml_experiment import (  # isort: skip  # before comet_ml
    NAMES,
    is_offline,
    open_experiment,
    retire,
)
from comet_ml.data_structure import Histogram
from comet_ml.messages import MetricMessage

from otel_tracking.capabilities import Declaration
from otel_tracking.config import without_surrogates
from otel_tracking.errors import NotStarted, Retry
from otel_tracking.media.overlays import lost_overlays
from otel_tracking.media.tables import as_csv
from otel_tracking.names import FILE_PATHS, NameRule
from otel_tracking.records import (
    Batch,
    Config,
    Media,
    MediaFile,
    MediaKind,
    RunInfo,
    RunStatus,
    Text,
    Written,
)
from otel_tracking.sdk_exporters import TrackerMetricExporter, TrackerSpanExporter
from otel_tracking.sdk_logs import TrackerLogExporter
from otel_tracking.tracker import Pacing, Tracker
from otel_tracking_exporters.declarations import COMET_ML

_FLUSH_TIMEOUT: Final = 10.0
_UPLOAD_PATIENCE: Final = 60.0


class CometMLTracker(Tracker):
    """One Comet experiment."""

    name: ClassVar[str] = "comet_ml"
    declaration: ClassVar[Declaration] = COMET_ML
    names: ClassVar[NameRule] = NAMES
    pacing: ClassVar[Pacing] = Pacing(max_points=2_000)
    closes_at_exit: ClassVar[bool] = True

    def __init__(self) -> None:
        self._experiment: Any = None
        self._offline = True
        self._archive = ""
        self._position = 0
        self._stored = 0
        self._config: dict[str, Any] = {}

    def start(self, run: RunInfo) -> int:
        """Open the experiment; see the module for what becomes of an earlier start's."""
        self._offline = is_offline(run.options)
        self.exactly_once = self._offline
        if self._offline:
            retire(run.directory, run.state)
        else:
            self.patience = _UPLOAD_PATIENCE
        with _excepthook_kept():
            self._experiment, known = open_experiment(run)
        if self._offline:
            folder = Path(self._experiment.offline_directory)
            self._archive = str((folder / f"{self._experiment.get_key()}.zip").absolute())
        self._position = self._stored = run.position if known else 0
        return self._position

    def write(self, batch: Batch) -> Written:
        """Queue points under their own times."""
        names = [self.names.escape(series.tag) for series in batch.series]
        columns = [c.tolist() for c in (batch.index, batch.steps, batch.values, batch.times, batch.positions)]
        altered: Counter[str] = Counter()
        for index, step, value, time_ns, position in zip(*columns, strict=True):
            if position <= self._position:
                continue
            # `Experiment.log_metric` takes no time; this is what it puts into the queue with the present one.
            message = MetricMessage(timestamp=max(time_ns, 0) // 1_000_000)
            message.set_metric(names[index], value, step=step)
            self._opened._enqueue_message(message)
            if value - value != 0:
                altered["NaN and infinities are texts"] += 1
        self._position = max(self._position, int(batch.positions[-1]))
        return Written(len(batch), altered)

    def write_text(self, text: Text) -> Written:
        """Log a text."""
        clean = without_surrogates(text.text)
        metadata = {"name": without_surrogates(text.tag)}
        return self._logged(
            lambda experiment: experiment.log_text(clean, step=text.step, metadata=metadata),
            text.position,
            {"lone surrogates are escaped": 1} if clean != text.text else {},
        )

    def write_media(self, media: Media) -> Written:
        """Log media as Comet's own, or as assets."""
        name = self.names.escape(media.tag)
        step = media.step
        changed = ""
        match media.kind:
            case MediaKind.TABLE:
                cells = {file.sha256: f"{file.sha256[:16]}{file.path.suffix}" for file in media.files[1:]}
                content = without_surrogates(as_csv(media, cells))
                folder = f"{FILE_PATHS.escape(media.tag)}/{step}-{media.position}"
                for file in media.files[1:]:
                    self._asset(file, f"{folder}/{cells[file.sha256]}", step)
                self._opened.log_asset_data(content, name=f"{folder}.csv", step=step)
                changed = "a table is a CSV asset"
            case MediaKind.HISTOGRAM:
                histogram = Histogram()
                edges, counts = media.details["edges"], media.details["counts"]
                histogram.add([(low + high) / 2 for low, high in pairwise(edges)], counts=counts)
                self._opened.log_histogram_3d(histogram, name=name, step=step)
                changed = "a histogram has Comet's bins"
            case MediaKind.ARTIFACT:
                folder = f"{FILE_PATHS.escape(media.tag)}/{step}-{media.position}"
                for file in media.files:
                    self._asset(file, f"{folder}/{FILE_PATHS.escape(file.name)}", step)
            case _:
                for number, file in enumerate(media.files):
                    label = name if len(media.files) == 1 else f"{name}/{number}"
                    self._file(media, file, label)
                changed = "HTML is an asset" if media.files[0].media_type == "text/html" else ""
        self._position = media.position
        return Written(1, ({changed: 1} if changed else {}) | lost_overlays(media))

    def _file(self, media: Media, file: MediaFile, name: str) -> None:
        experiment, path = self._opened, str(file.path)
        metadata = {"caption": file.caption} if file.caption else None
        kind = file.media_type.partition("/")[0]
        if media.kind is MediaKind.VIDEO:
            experiment.log_video(path, name=name, format=path.rpartition(".")[2], step=media.step)
        elif kind == "image":
            experiment.log_image(
                path, name=name, image_format=file.path.suffix[1:], step=media.step, metadata=metadata
            )
        elif kind == "audio":
            experiment.log_audio(path, file_name=f"{name}{file.path.suffix}", step=media.step)
        else:
            asset = f"{FILE_PATHS.escape(media.tag)}/{media.step}-{media.position}{file.path.suffix}"
            self._asset(file, asset, media.step)

    def _asset(self, file: MediaFile, name: str, step: int) -> None:
        self._opened.log_asset(str(file.path), file_name=name, step=step)

    def write_config(self, config: Config) -> Written:
        """Log parameters, and the whole as the asset `config.json`."""
        values = without_surrogates(config.values)
        self._config |= values

        def log(experiment: Any) -> None:
            experiment.log_parameters(values, nested_support=True)
            whole = json.dumps(self._config, indent=2)
            experiment.log_asset_data(whole, name="config.json", overwrite=True)

        changed = {"lone surrogates in the config are escaped": 1} if values != config.values else {}
        return self._logged(log, config.position, changed)

    def _logged(self, log: Callable[[Any], object], position: int, changed: Mapping[str, int]) -> Written:
        log(self._opened)
        self._position = max(self._position, position)
        return Written(1, changed)

    def confirm(self, *, flush: bool = False) -> int:
        """What Comet's thread has taken out of its queue: it is in a file or, if online, sent.

        A file that a kill leaves is no archive yet; the next start writes one, whole.
        """
        if self._stored < self._position and self._idle(_FLUSH_TIMEOUT if flush else 0.0):
            self._stored = self._position
        return self._stored

    def _idle(self, timeout: float) -> bool:
        if not self._offline:
            return bool(self._opened.flush(timeout=int(timeout))) if timeout else False
        deadline = time.monotonic() + timeout
        queue = self._opened.streamer.messages
        while not queue.empty():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def state(self) -> Mapping[str, Any]:
        """Which experiment a later start finds."""
        if self._experiment is None:
            return {}
        return {"key": self._experiment.get_key(), "archive": self._archive}

    def finish(self, status: RunStatus) -> None:
        """Note the status, as `otel_tracking.status`, and end.

        One that is not good is a tag, too, and the experiment has crashed, as by Comet's own excepthook.
        """
        if self._experiment is None:
            return
        self._experiment.log_other("otel_tracking.status", status.value)
        if status in (RunStatus.FAILED, RunStatus.KILLED):
            self._experiment.add_tags([status.value])
            self._report_crash("the run was killed" if status is RunStatus.KILLED else "the run failed")
        with _excepthook_kept():
            self._experiment.end()
        if self._archive and not Path(self._archive).exists():
            raise Retry(f"Comet did not write its archive {self._archive}")
        self._stored = self._position

    def _report_crash(self, message: str) -> None:
        if self.failure:
            message = self.failure.reason
            self._experiment.log_other("otel_tracking.error", message)
        # What Comet's excepthook calls. There is no public call for it in a process that logs.
        report = getattr(self._experiment, "_report_experiment_error", None)
        if report is not None:
            report(message, has_crashed=True)

    @property
    def _opened(self) -> Any:
        if self._experiment is None:
            raise NotStarted("the Comet experiment has not been started yet")
        return self._experiment

    @property
    def native(self) -> Any:
        """The `comet_ml.CometExperiment`."""
        return self._opened

    @property
    def handle(self) -> CometMLHandle:
        """The experiment with Accelerate's words."""
        return CometMLHandle(self._opened)


class CometMLHandle:
    """Accelerate's words for a Comet experiment; every other attribute is the experiment's own.

    What is logged here goes to Comet only: it is not in the journal, and an archive that has to be written
    again after a crash does not have it.
    """

    def __init__(self, experiment: Any) -> None:
        self.writer = experiment
        self.tracker = experiment

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Log parameters."""
        self.writer.log_parameters(dict(values))

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Log numbers and texts by name, groups of numbers as mappings. `kwargs` are Comet's."""
        if step is not None:
            self.writer.set_step(step)
        for name, value in values.items():
            if isinstance(value, str):
                self.writer.log_other(name, value, **kwargs)
            elif isinstance(value, Mapping):
                self.writer.log_metrics({f"{name}/{k}": v for k, v in value.items()}, step=step, **kwargs)
            else:
                self.writer.log_metric(name, value, step=step, **kwargs)

    def finish(self) -> None:
        """Nothing: `end_training` ends the experiment, after what is still in the journal."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)


class CometMLMetricExporter(TrackerMetricExporter):
    """An OpenTelemetry `MetricExporter` that logs to a Comet experiment."""

    tracker = CometMLTracker


class CometMLSpanExporter(TrackerSpanExporter):
    """An OpenTelemetry `SpanExporter` that logs spans' durations to a Comet experiment."""

    tracker = CometMLTracker


class CometMLLogExporter(TrackerLogExporter):
    """An OpenTelemetry `LogRecordExporter` that logs log records as texts to a Comet experiment."""

    tracker = CometMLTracker


_hook_lock: Final = threading.Lock()


@contextlib.contextmanager
def _excepthook_kept() -> Iterator[None]:
    with _hook_lock:
        hook = sys.excepthook
        try:
            yield
        finally:
            sys.excepthook = hook
