"""ClearML: every point with its own step and time (in milliseconds), on a server or in an offline session.

ClearML has no NaN and no infinities (it stores 0.0 for them): such points are refused, counted, and lie in
the dead letters. `train/loss` is the line `loss` of the chart `train`. The configuration is the task's
hyperparameters, and whole its configuration object `config`; texts and media are debug samples with a step,
tables and histograms are plots.

Offline (`CLEARML_OFFLINE_MODE=1`) a session lies in `$CLEARML_CACHE_DIR/offline`, with a zip beside it at the
end, for `Task.import_offline_session`. ClearML can't continue one: that of a run that was interrupted or is
resumed is moved to `<run directory>/clearml-retired/`, and the run is written again whole.
`init_kwargs={"clearml": {...}}` takes the arguments of `Task.init`; frameworks, streams, arguments and
resources are connected only if asked for. A task that is active already is used, and left open.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from clearml import Task
from clearml.backend_api import Session
from clearml.config import config_obj, get_offline_dir

from otel_tracking.capabilities import Declaration
from otel_tracking.config import flatten_config, without_surrogates
from otel_tracking.errors import ConfigurationError, NotStarted
from otel_tracking.media.overlays import lost_overlays
from otel_tracking.names import NameRule
from otel_tracking.records import Batch, Config, Media, MediaKind, RunInfo, RunStatus, Text, Written
from otel_tracking.sdk_exporters import TrackerMetricExporter, TrackerSpanExporter
from otel_tracking.sdk_logs import TrackerLogExporter
from otel_tracking.tracker import Pacing, Tracker
from otel_tracking_exporters._clearml_events import NAMES, EventWriter, upload_artifact
from otel_tracking_exporters._servers import require_answer
from otel_tracking_exporters.declarations import CLEARML

_OTHERS: Final = "clearml-others.json"
"""In the run's directory: the offline sessions that are none of the run's."""
_FRAMEWORKS: Final = (
    "catboost",
    "detect_repository",
    "fastai",
    "gradio",
    "hydra",
    "joblib",
    "jsonargparse",
    "lightgbm",
    "matplotlib",
    "megengine",
    "pytorch",
    "scikit",
    "tensorboard",
    "tensorflow",
    "tfdefines",
    "xgboost",
)
_NOT_FINITE: Final = "ClearML has no NaN or infinities"
_PARENT_VARIABLES: Final = ("CLEARML_PROC_MASTER_ID", "TRAINS_PROC_MASTER_ID")
"""`<process>:<task>` of the process that used ClearML first."""
_TITLES: Final = NameRule(forbidden=r"\x00-\x1f\x7f", max_length=200)

_init_lock: Final = threading.Lock()
_own_tasks: Final[set[str]] = set()


class ClearMLTracker(Tracker):
    """A ClearML task. What was written is stored when a call returns."""

    name: ClassVar[str] = "clearml"
    declaration: ClassVar[Declaration] = CLEARML
    names: ClassVar[NameRule] = NAMES
    pacing: ClassVar[Pacing] = Pacing(max_points=2_000)
    closes_at_exit: ClassVar[bool] = True

    def __init__(self) -> None:
        self._task: Task | None = None
        self._writer: EventWriter
        """Set by `start`."""
        self._adopted = False
        self._others: Path | None = None
        self._position = 0
        self._config: dict[str, Any] = {}

    def start(self, run: RunInfo) -> int:
        """Open the task, or go on with the one of the last start if it is on a server.

        Raises:
            ConfigurationError: `Task.init` refuses an argument, or there is no login.
        """
        if Task.is_offline() and not run.state.get("adopted"):
            _retire(run)
        with _init_lock, _hooks_kept():
            # A process that reports would be forked off the training process, and waited for at the end.
            config_obj.set_overrides({"sdk": {"development": {"report_use_subprocess": False}}})
            _forget_parent()
            active = Task.current_task()
            if active is None and not Task.is_offline():
                require_answer(Session.get_api_server_host(), "ClearML")
            self._adopted = active is not None and active.id not in _own_tasks
            task = active if self._adopted else self._init(run)
        assert task is not None
        _own_tasks.add(task.id)
        self._task = task
        self._writer = EventWriter(task)
        offline = Task.is_offline()
        self.exactly_once = offline
        known = run.state.get("task") == task.id and not offline
        self._position = run.position if known else 0
        return self._position

    def _init(self, run: RunInfo) -> Task:
        if Task.is_offline():
            self._others = run.directory / _OTHERS
            _note_others(self._others)
        arguments: dict[str, Any] = {
            "project_name": _TITLES.escape(run.project),
            "task_name": _TITLES.escape(run.name),
            "tags": [run.group] if run.group else [],
            "auto_connect_arg_parser": False,
            "auto_connect_frameworks": dict.fromkeys(_FRAMEWORKS, False),
            "auto_connect_streams": False,
            "auto_resource_monitoring": False,
            "reuse_last_task_id": False,
        }
        known = run.state.get("task")
        if known and not Task.is_offline() and not run.state.get("adopted"):
            arguments["continue_last_task"] = known
        try:
            return Task.init(**{**arguments, **run.options})
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"clearml.Task.init refused its arguments: {error!s:.500}") from error

    def write(self, batch: Batch) -> Written:
        """Write points, those that are finite."""
        names = [self.names.escape(series.tag) for series in batch.series]
        finite = np.isfinite(batch.values)
        kept = np.flatnonzero(finite)
        columns = [column[kept].tolist() for column in (batch.index, batch.steps, batch.values, batch.times)]
        self._writer.write(
            [
                self._writer.scalar(names[index], step, value, time)
                for index, step, value, time in zip(*columns, strict=True)
            ]
        )
        self._position = int(batch.positions[-1])
        rejected = {} if finite.all() else {_NOT_FINITE: np.flatnonzero(~finite).tolist()}
        early = int((batch.times[kept] < 1_000_000).sum())
        return Written(len(kept), {"time before 1970 stored as 1970": early} if early else {}, rejected)

    def write_text(self, text: Text) -> Written:
        """Write a text as a debug sample."""
        clean = without_surrogates(text.text)
        name = self.names.escape(text.tag)
        self._writer.write([self._writer.text(name, text.step, text.time, text.position, clean)])
        self._position = text.position
        return Written(1, {"lone surrogates are escaped": 1} if clean != text.text else {})

    def write_media(self, media: Media) -> Written:
        """Write media as debug samples and plots, files as an artifact."""
        name = self.names.escape(media.tag)
        if media.kind is MediaKind.ARTIFACT:
            # ClearML keeps the last artifact of a name alone.
            unique = f"{name}/{media.step}-{media.position}"
            with tempfile.TemporaryDirectory() as folder:
                upload_artifact(self._opened, unique, media, Path(folder))
            self._position = media.position
            return Written(1)
        events, change = self._writer.media(name, media)
        self._writer.write(events)
        self._position = media.position
        altered = {change: 1} if change else {}
        return Written(1, altered | media.lost_captions | lost_overlays(media))

    def write_config(self, config: Config) -> Written:
        """Set hyperparameters, and the whole as the configuration object `config`."""
        values = without_surrogates(config.values)
        self._config |= values
        # ClearML's own flattening lets an empty mapping take the place of another value.
        self._opened.set_parameters_as_dict(flatten_config(self._config))
        self._opened.connect_configuration(self._config, name="config")
        self._position = config.position
        changed = {"lone surrogates in the config are escaped": 1} if values != config.values else {}
        return Written(1, changed)

    def confirm(self, *, flush: bool = False) -> int:
        """All that was written: the file or the server has it."""
        return self._position

    def state(self) -> Mapping[str, Any]:
        """Which task a later start finds."""
        if self._task is None:
            return {}
        folder = str(self._task.get_offline_mode_folder() or "") if Task.is_offline() else ""
        return {"task": self._task.id, "adopted": self._adopted, "folder": folder}

    def finish(self, status: RunStatus) -> None:
        """Note the status, and close the task unless it was the user's."""
        if self._task is None:
            return
        self._task.set_parameter("otel_tracking/status", status.value)
        reason = "killed" if status is RunStatus.KILLED else "failed"
        message = None
        if self.failure:
            reason, message = self.failure.reason, self.failure.traceback
            self._task.set_parameter("otel_tracking/error", reason)
            # The console, where ClearML's users look first. Python has printed it there already.
            self._task.get_logger().report_text(message, level=logging.ERROR, print_console=False)
        if self._adopted:
            self._task.flush(wait_for_uploads=True)
            return
        with _hooks_kept():
            if status in (RunStatus.FAILED, RunStatus.KILLED) and not Task.is_offline():
                self._task.mark_failed(ignore_errors=True, status_reason=reason, status_message=message)
            self._task.close()
        if self._others is not None:
            self._others.unlink(missing_ok=True)

    @property
    def _opened(self) -> Task:
        if self._task is None:
            raise NotStarted("the ClearML task has not been started yet")
        return self._task

    @property
    def native(self) -> Task:
        """The `clearml.Task`."""
        return self._opened

    @property
    def handle(self) -> ClearMLHandle:
        """The task with Accelerate's words."""
        return ClearMLHandle(self._opened)


class ClearMLHandle:
    """Accelerate's words for a ClearML task; every other attribute is the task's own.

    What is logged here goes to ClearML only, when ClearML's reporter gets to it: it is not in the journal.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.tracker = task

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Connect hyperparameters."""
        self.task.connect_configuration(dict(values))

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Report numbers by name; without a step, as single values. `kwargs` are the logger's."""
        logger = self.task.get_logger()
        for name, value in values.items():
            title, _, series = name.partition("/")
            if step is None:
                logger.report_single_value(name=name, value=value, **kwargs)
            else:
                logger.report_scalar(title, series or title, value, iteration=step, **kwargs)

    def log_images(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Report an image by name. `kwargs` are `Logger.report_image`'s."""
        for name, image in values.items():
            title, _, series = name.partition("/")
            self.task.get_logger().report_image(title, series or title, iteration=step, image=image, **kwargs)

    def log_table(
        self,
        table_name: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Report a table, of columns and rows or of a pandas DataFrame."""
        if dataframe is None and data is not None:
            dataframe = data if columns is None else [columns, *data]
        title, _, series = table_name.partition("/")
        self.task.get_logger().report_table(
            title=title, series=series or title, table_plot=dataframe, iteration=step, **kwargs
        )

    def finish(self) -> None:
        """Nothing: `end_training` closes the task, after what is still in the journal."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


class ClearMLMetricExporter(TrackerMetricExporter):
    """An OpenTelemetry `MetricExporter` that reports to a ClearML task."""

    tracker = ClearMLTracker


class ClearMLSpanExporter(TrackerSpanExporter):
    """An OpenTelemetry `SpanExporter` that reports spans' durations to a ClearML task."""

    tracker = ClearMLTracker


class ClearMLLogExporter(TrackerLogExporter):
    """An OpenTelemetry `LogRecordExporter` that reports log records to a ClearML task, as debug samples."""

    tracker = ClearMLTracker


def _retire(run: RunInfo) -> None:
    """Move the sessions of earlier starts out of the way, so that nobody imports them as well."""
    place = run.directory / "clearml-retired"
    known = [Path(run.state["folder"])] if run.state.get("folder") else []
    for folder in dict.fromkeys([*known, *_unknown_sessions(run)]):
        for path in (folder, folder.with_name(f"{folder.name}.zip")):
            if path.exists():
                place.mkdir(exist_ok=True)
                shutil.move(path, place / path.name)


def _note_others(path: Path) -> None:
    """Note which sessions there are before this run begins one: a kill may leave nothing that names it."""
    offline = get_offline_dir()
    names = [path.name for path in offline.iterdir()] if offline.is_dir() else []
    path.write_text(json.dumps(names), encoding="utf-8")


def _unknown_sessions(run: RunInfo) -> list[Path]:
    """Sessions of this run's names that came after the last `_note_others`.

    One that was killed before it had a name stays: nobody can import it.
    """
    try:
        others = set(json.loads((run.directory / _OTHERS).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []
    wanted = (
        run.options.get("task_name", _TITLES.escape(run.name)),
        run.options.get("project_name", _TITLES.escape(run.project)),
    )
    found = []
    for path in get_offline_dir().glob("*/task.json"):
        if path.parent.name not in others:
            with contextlib.suppress(OSError, ValueError):
                task = json.loads(path.read_text(encoding="utf-8"))
                # The project comes a moment after the name.
                if (task.get("name"), task.get("project_name") or wanted[1]) == wanted:
                    found.append(path.parent)
    return found


def _forget_parent() -> None:
    """A process started by one that has used ClearML is no part of that one's task, unless it has one.

    `Task.init` would return an object every call of which does nothing.
    """
    for name in _PARENT_VARIABLES:
        process, _, task = os.environ.get(name, "").partition(":")
        if process != str(os.getpid()) and (not task or Task.is_offline()):
            os.environ.pop(name, None)


@contextlib.contextmanager
def _hooks_kept() -> Iterator[None]:
    """Whatever ClearML does inside: excepthook, `sys.exit` and signal handlers are the same afterwards."""
    hook, leave = sys.excepthook, sys.exit
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        sys.excepthook, sys.exit = hook, leave
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)
