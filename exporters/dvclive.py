"""DVCLive: a folder of text files, that DVC, its VS Code extension and Studio read.

Where things are stored, below `<run directory>/dvclive` unless `init_kwargs={"dvclive": {"dir": ...}}`::

    points   plots/metrics/<name>.tsv: timestamp (milliseconds), step, value; every point, in its order
    latest   metrics.json
    config   params.yaml
    texts    texts/<name>/<step>-<position>.txt
    media    plots/images, plots/custom (histograms), artifacts

`init_kwargs` are the arguments of `dvclive.Live`. Other than there, nothing outside the folder is written
unless asked for: no `dvc.yaml` (`dvcyaml="dvc.yaml"`), no experiment in Git (`save_dvc_exp=True`), no report.
A folder that exists is never wiped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from otel_tracking.capabilities import Declaration
from otel_tracking.config import without_surrogates
from otel_tracking.errors import ConfigurationError, NotStarted, Retry
from otel_tracking.names import NameRule
from otel_tracking.records import Batch, Config, Media, RunInfo, RunStatus, Text, Written
from otel_tracking.sdk_exporters import TrackerMetricExporter, TrackerSpanExporter
from otel_tracking.sdk_logs import TrackerLogExporter
from otel_tracking.tracker import Tracker
from otel_tracking_exporters import _dvclive_media
from otel_tracking_exporters._dvclive_live import InvalidDvcyamlError, InvalidReportModeError, Live
from otel_tracking_exporters._dvclive_series import NAMES, Row, SeriesFiles
from otel_tracking_exporters.declarations import DVCLIVE

_DEFAULTS: Mapping[str, Any] = {"save_dvc_exp": False, "dvcyaml": None, "report": None}


class DVCLiveTracker(Tracker):
    """A folder of DVCLive's, and a `Live` on it."""

    name: ClassVar[str] = "dvclive"
    names: ClassVar[NameRule] = NAMES
    exactly_once = True
    declaration: ClassVar[Declaration] = DVCLIVE

    def __init__(self) -> None:
        self._live: Any = None  # DVCLive types a part of its methods only
        self._files: SeriesFiles | None = None
        self._position = 0
        self._step = 0
        """Of `Live`, as it was set here."""
        self._latest_stored = True

    def start(self, run: RunInfo) -> int:
        """Open the folder, keeping what is in it.

        Raises:
            ConfigurationError: `Live` doesn't take an option.
        """
        options = {"dir": str(run.directory / "dvclive"), **_DEFAULTS, **run.options, "resume": True}
        try:
            self._live = Live(**options)
        except (TypeError, InvalidDvcyamlError, InvalidReportModeError) as error:
            raise ConfigurationError(f"dvclive.Live refused its arguments: {error}") from error
        except OSError as error:
            raise Retry(f"the folder {options['dir']} can't be used: {error.strerror}") from error
        _with_timestamps(self._live)
        self._step = self._live.step
        known = run.state if run.state.get("directory") == os.fspath(self._folder.absolute()) else {}
        self._files = SeriesFiles(self._folder / "plots" / "metrics", known.get("sizes", {}))
        self._position = run.position if known or not run.position else 0
        return self._position

    def write(self, batch: Batch) -> Written:
        """Append each point to the file of its series, and note the latest."""
        assert self._files is not None
        times = np.maximum(batch.times, 0) // 1_000_000
        order = np.argsort(batch.index, kind="stable")
        bounds = np.searchsorted(batch.index[order], np.arange(len(batch.series) + 1))
        columns = [column[order].tolist() for column in (times, batch.steps, batch.values, batch.positions)]
        try:
            for series, first, end in zip(batch.series, bounds, bounds[1:], strict=False):
                if first == end:
                    continue
                name = self.names.escape(series.tag)
                rows = [Row(*row) for row in zip(*(column[first:end] for column in columns), strict=True)]
                self._files.append(name, rows)
                _set_latest(self._opened.summary, name, rows[-1])
        except OSError as error:
            raise Retry(f"the files in {self._folder} can't be written: {error.strerror}") from error
        if self._opened.step == self._step:  # else it is counted natively
            self._opened.step = self._step = int(batch.steps[-1])
        self._latest_stored = False
        self._position = int(batch.positions[-1])
        early = int((batch.times < 0).sum())
        return Written(len(batch), {"time before 1970 stored as 1970": early} if early else {})

    def write_text(self, text: Text) -> Written:
        """Write a file: DVCLive has no texts."""
        return self._filed(lambda folder: _dvclive_media.write_text(folder, text), text.position)

    def write_media(self, media: Media) -> Written:
        """Write files, where DVC looks for them if it does."""
        written = self._filed(lambda folder: _dvclive_media.write_media(folder, media), media.position)
        return Written(1, {**written.altered, **media.lost_captions})

    def _filed(self, write: Any, position: int) -> Written:
        try:
            changed = write(self._folder)
        except OSError as error:
            raise Retry(f"the files in {self._folder} can't be written: {error.strerror}") from error
        self._position = position
        return Written(1, {changed: 1} if changed else {})

    def write_config(self, config: Config) -> Written:
        """Write `params.yaml`."""
        values = without_surrogates(config.values)
        self._opened.log_params(values)
        self._position = config.position
        changed = {"lone surrogates in the config are escaped": 1} if values != config.values else {}
        return Written(1, changed)

    def confirm(self, *, flush: bool = False) -> int:
        """All that was written: the operating system has it."""
        if flush and not self._latest_stored:
            self._opened.make_summary()
            self._latest_stored = True
        return self._position

    def state(self) -> Mapping[str, Any]:
        """Which folder, and how long each file is."""
        if self._files is None:
            return {}
        return {"directory": os.fspath(self._folder.absolute()), "sizes": dict(self._files.sizes)}

    def finish(self, status: RunStatus) -> None:
        """Write `metrics.json`, and what was asked for: `dvc.yaml`, a report, an experiment.

        DVCLive has no word for how a run ended.
        """
        if self._live is not None:
            self._live.end()

    @property
    def native(self) -> Any:
        """The `Live`. Its own step is its own: what is recorded through the journal does not move it."""
        return self._opened

    @property
    def handle(self) -> DVCLiveHandle:
        """The `Live` with Accelerate's words."""
        return DVCLiveHandle(self._opened)

    @property
    def _opened(self) -> Any:
        if self._live is None:
            raise NotStarted("DVCLive has not been started yet")
        return self._live

    @property
    def _folder(self) -> Path:
        return Path(self._opened.dir)


class DVCLiveHandle:
    """Accelerate's words for a `Live`; every other attribute is its own.

    What is logged here is written at once and only there: it is not in the journal.
    """

    def __init__(self, live: Any) -> None:
        self.live = live
        self.tracker = live

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Write parameters."""
        self.live.log_params(dict(values))

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Log numbers, and go to the next step, as Accelerate does. `kwargs` are `Live.log_metric`'s."""
        if step is not None:
            self.live.step = step
        for name, value in values.items():
            self.live.log_metric(name, value, **kwargs)
        self.live.next_step()

    def finish(self) -> None:
        """Nothing: `end_training` ends the run, after what is still in the journal."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.live, name)


class DVCLiveMetricExporter(TrackerMetricExporter):
    """An OpenTelemetry `MetricExporter` that writes DVCLive's files."""

    tracker = DVCLiveTracker


class DVCLiveSpanExporter(TrackerSpanExporter):
    """An OpenTelemetry `SpanExporter` that writes spans' durations into DVCLive's files."""

    tracker = DVCLiveTracker


class DVCLiveLogExporter(TrackerLogExporter):
    """An OpenTelemetry `LogRecordExporter` that writes log records into files beside DVCLive's."""

    tracker = DVCLiveTracker


def _with_timestamps(live: Any) -> None:
    """Have native rows carry the time as ours do: one file may have both."""
    original = live.log_metric

    def log_metric(name: str, val: Any, timestamp: bool = True, plot: bool = True) -> None:
        original(name, val, timestamp=timestamp, plot=plot)

    live.log_metric = log_metric  # of this object only


def _set_latest(summary: dict[str, Any], name: str, row: Row) -> None:
    """Set the latest value, in mappings as DVCLive nests them; a series within a series stands beside it."""
    value = row.value if np.isfinite(row.value) else str(row.value)
    *outer, last = name.split("/")
    place = summary
    for part in outer:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            summary[name] = value
            return
        place = inner
    if isinstance(place.get(last), dict):
        summary[f"{name}/"] = value
    else:
        place[last] = value
