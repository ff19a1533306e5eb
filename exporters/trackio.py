"""Trackio: a sqlite database for each project, in `TRACKIO_DIR`, or where trackio has it by default.

Each row of the journal is a row of the table `metrics`, under its own step and time, with a key of its
own: a row that is sent again is stored once. Look at a project with `trackio show --project <project>`.

`init_kwargs={"trackio": {...}}` takes `name`, `group`, `config`, and with `space_id` (and `private`) the
project is copied to that Space of Hugging Face when the run ends.
"""

from __future__ import annotations

import difflib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from trackio import Image, Table, sync
from trackio.run import Run
from trackio.sqlite_storage import SQLiteStorage

from otel_tracking.capabilities import Declaration
from otel_tracking.config import to_jsonable, without_surrogates
from otel_tracking.errors import ConfigurationError, NotStarted, Retry
from otel_tracking.media.overlays import lost_overlays
from otel_tracking.names import NameRule
from otel_tracking.records import Batch, Config, Media, MediaKind, RunInfo, RunStatus, Text, Written
from otel_tracking.sdk_exporters import TrackerMetricExporter, TrackerSpanExporter
from otel_tracking.sdk_logs import TrackerLogExporter
from otel_tracking.tracker import Pacing, Tracker
from otel_tracking_exporters._trackio_media import as_artifact, as_values
from otel_tracking_exporters.declarations import TRACKIO

_OPTIONS: Final = ("name", "group", "config", "space_id", "private")
_TABLES: Final = (
    "system|configs|traces|artifacts|artifact_versions|artifact_aliases|run_artifact_links"
    "|external_run_artifact_links"
)
_PROJECTS: Final = NameRule(
    forbidden=r"^\w\-", forbidden_parts=rf"^r(?=egistry-)|_(?=(?:{_TABLES})\Z)", max_bytes=150
)
_RUN_NAMES: Final = NameRule(forbidden=r"\x00-\x1f\x7f/\\", forbidden_parts=r"^\.(?=\.?\Z)", max_bytes=200)
_NUMBERS_AS_TEXT: Final = ("NaN", "Infinity", "-Infinity")


class TrackioTracker(Tracker):
    """A run in a project's database. Everything is in it when a call returns."""

    name: ClassVar[str] = "trackio"
    exactly_once = True
    # What trackio uses itself; `__` begins names that it hides.
    names: ClassVar[NameRule] = NameRule(
        forbidden_parts=(
            r"^p(?=roject\Z)|^r(?=un\Z)|^t(?=imestamp\Z)|^s(?=tep\Z)|^t(?=ime\Z)|^m(?=etrics\Z)|^_(?=_)"
        ),
    )
    pacing: ClassVar[Pacing] = Pacing(max_points=5_000)
    declaration: ClassVar[Declaration] = TRACKIO

    def __init__(self) -> None:
        self._project = ""
        self._run_id = ""
        self._run_name = ""
        self._options: Mapping[str, Any] = {}
        self._config: dict[str, Any] = {}
        self._config_due = False
        self._position = 0
        self._stored = 0
        """Up to there everything is in the database, the config included."""
        self._group = ""
        self._extra: dict[str, Any] = {}
        self._last: tuple[int, int] = (0, 0)
        """Step and time of what came last."""
        self._run: Run | None = None

    def start(self, run: RunInfo) -> int:
        """Look what the database has of the run.

        Raises:
            ConfigurationError: An option is not known here.
        """
        self._open(run)
        known = SQLiteStorage.get_run_config(self._project, self._run_name, run_id=self._run_id) or {}
        self._config = {key: value for key, value in known.items() if not key.startswith("_")}
        self._update(to_jsonable(self._options.get("config")), run.resource, known)
        # The rows say what is stored, whatever became of the cursor.
        self._position = self._stored = run.position if known or not run.position else 0
        return self._position

    def _open(self, run: RunInfo) -> None:
        for name in run.options:
            if name not in _OPTIONS:
                close = difflib.get_close_matches(name, _OPTIONS, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ConfigurationError(
                    f"trackio has no option {name!r} here.{hint} Known: {', '.join(_OPTIONS)}."
                )
        self._options = run.options
        self._project = _PROJECTS.escape(run.project)
        self._run_id = f"{run.run_id}/rank-{run.rank.rank}" if run.group else run.run_id
        self._run_name = _RUN_NAMES.escape(str(run.options.get("name") or run.name))
        self._group = str(run.options.get("group") or run.group)

    def _update(
        self, values: Mapping[str, Any], resource: Mapping[str, Any], known: Mapping[str, Any]
    ) -> None:
        self._config |= values
        self._extra = {f"_{key}": value for key, value in resource.items() if key.startswith("training.")}
        # Never empty: that there is a config is how a later start sees that the run is in the database.
        self._extra["_Created"] = known.get("_Created") or _iso(time.time_ns())
        if self._group:
            self._extra["_Group"] = self._group
        self._config_due = True

    def attach(self, run: RunInfo) -> None:
        """Write into the same database: sqlite takes several processes."""
        self._open(run)

    def write(self, batch: Batch) -> Written:
        """Insert a row for each of the journal's."""
        names = [self.names.escape(series.tag) for series in batch.series]
        moments = list(batch.moments())
        self._insert(
            [{names[i]: value for i, value in moment.values.items()} for moment in moments],
            [moment.step for moment in moments],
            [moment.time for moment in moments],
            [f"{self._run_id}:{moment.position}:{moment.part}" for moment in moments],
        )
        self._position = self._stored = int(batch.positions[-1])
        return Written(len(batch))

    def write_text(self, text: Text) -> Written:
        """Insert a row with the text."""
        clean = without_surrogates(text.text)
        value = {"_type": "trackio.markdown", "_value": clean} if clean in _NUMBERS_AS_TEXT else clean
        self._insert_one({self.names.escape(text.tag): value}, text.step, text.time, text.position)
        return Written(1, {"lone surrogates are escaped": 1} if clean != text.text else {})

    def write_media(self, media: Media) -> Written:
        """Copy files to where trackio has them, and insert a row that names them."""
        if media.kind is MediaKind.ARTIFACT:
            self.native.log_artifact(as_artifact(media))
            self._position = media.position
            return Written(1, lost_overlays(media))
        try:
            values = as_values(media, self._project, self._run_name)
        except OSError as error:
            raise Retry(f"files of media can't be stored: {error.strerror}") from error
        escaped = {self.names.escape(name): value for name, value in values.items()}
        self._insert_one(escaped, media.step, media.time, media.position)
        return Written(1, lost_overlays(media))

    def write_config(self, config: Config) -> Written:
        """Have the next row carry the config: trackio stores it with one."""
        values = without_surrogates(config.values)
        self._config |= values
        self._config_due = True
        self._last = self._last if self._last[1] else (0, config.time)
        self._position = config.position
        changed_ = {"lone surrogates in the config are escaped": 1} if values != config.values else {}
        return Written(1, changed_)

    def confirm(self, *, flush: bool = False) -> int:
        """All that was written, as sqlite has it; of a config that waits for a row, nothing."""
        if self._config_due:
            if not flush:
                return self._stored
            self._store_config()
        return self._position

    def _store_config(self) -> None:
        step, time = self._last
        self._insert([{}], [step], [time], [None])

    def _insert_one(self, values: dict[str, Any], step: int, time: int, position: int) -> None:
        self._insert([values], [step], [time], [f"{self._run_id}:{position}:0"])
        self._position = self._stored = position

    def _insert(
        self,
        rows: list[dict[str, Any]],
        steps: list[int],
        times: list[int],
        ids: list[Any],
    ) -> None:
        config = {**self._extra, **self._config} if self._config_due else None
        try:
            SQLiteStorage.bulk_log(
                self._project,
                self._run_name,
                rows,
                steps=steps,
                timestamps=[_iso(time) for time in times],
                config=config,
                log_ids=ids,
                run_id=self._run_id,
            )
        except (OSError, sqlite3.Error) as error:
            raise Retry(f"trackio's database can't be written: {error}") from error
        self._config_due = False
        self._last = steps[-1], times[-1]

    def finish(self, status: RunStatus) -> None:
        """Note the status, with an alert if it is not a good one, and copy the project to the Space that is
        named, if one is."""
        if not self._run_id:
            return
        self._extra["_Status"] = status.value
        self._config_due = True
        self._store_config()
        if status in (RunStatus.FAILED, RunStatus.KILLED):
            step, time = self._last
            SQLiteStorage.bulk_alert(
                self._project,
                self._run_name,
                titles=["the run failed" if status is RunStatus.FAILED else "the run was killed"],
                texts=[self.failure.reason if self.failure else ""],
                levels=["error"],
                steps=[step],
                timestamps=[_iso(time)],
                # A run may fail again after it was resumed; of one id trackio keeps the first alert.
                alert_ids=[f"{self._run_id}:{self._position}:end"],
                run_id=self._run_id,
            )
        if self._run is not None:
            self._run.finish()  # type: ignore[no-untyped-call]
        if space := self._options.get("space_id"):
            sync(self._project, space_id=str(space), private=self._options.get("private"))

    @property
    def native(self) -> Run:
        """A `trackio.Run` on the same run; made at the first use."""
        if not self._run_id:
            raise NotStarted("the trackio run has not been started yet")
        if self._run is None:
            self._run = Run(
                url=None,
                project=self._project,
                client=None,
                name=self._run_name,
                run_id=self._run_id,
                config=None,
            )
        return self._run

    @property
    def handle(self) -> TrackioHandle:
        """The run with Accelerate's words."""
        return TrackioHandle(self.native)


class TrackioHandle:
    """Accelerate's words for a `trackio.Run`; every other attribute is the run's own.

    What is logged here goes to trackio only, under the time at which trackio writes it, half a second later.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tracker = run

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Add hyperparameters to the run's config, which trackio stores with the next row."""
        self.run.config.update(dict(values))

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Log a row. `kwargs` are `trackio.Run.log`'s."""
        self.run.log(dict(values), step=step, **kwargs)

    def log_images(self, values: Mapping[str, Sequence[Any]], step: int | None = None, **kwargs: Any) -> None:
        """Log lists of images: `trackio.Image`, or anything it can be made from."""
        for name, images in values.items():
            for number, image in enumerate(images):
                made = image if isinstance(image, Image) else Image(image)
                self.log({f"{name}/{number}" if len(images) > 1 else name: made}, step=step, **kwargs)

    def log_table(
        self,
        table_name: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Log a table, of columns and rows or of a pandas DataFrame."""
        table = Table(columns=columns, data=data, dataframe=dataframe)
        self.log({table_name: table}, step=step, **kwargs)

    def finish(self) -> None:
        """Nothing: `end_training` closes the run, after what is still in the journal."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)


class TrackioMetricExporter(TrackerMetricExporter):
    """An OpenTelemetry `MetricExporter` that writes into a trackio database."""

    tracker = TrackioTracker


class TrackioSpanExporter(TrackerSpanExporter):
    """An OpenTelemetry `SpanExporter` that writes spans' durations into a trackio database."""

    tracker = TrackioTracker


class TrackioLogExporter(TrackerLogExporter):
    """An OpenTelemetry `LogRecordExporter` that writes log records into a trackio database."""

    tracker = TrackioTracker


def _iso(time_ns: int) -> str:
    """UTC with nine digits: trackio sorts the texts, and keeps them as they are."""
    seconds, rest = divmod(max(time_ns, 0), 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}+00:00"
