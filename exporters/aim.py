"""Aim: runs in one repository, `<project_dir>/.aim`; look at them with `aim up --repo <project_dir>`.

Every point goes into its series with its own step and time (a double of seconds). Aim keeps one value a
series, context and step: the second and later points of a step go into the same series under the context
`{"repetition": 2}` and so on, so that none is lost.

`init_kwargs={"aim": {...}}` takes the arguments of `aim.Run`, among them `repo` for another repository
(`aim://host:port` is a server's) and `experiment`; system metrics and terminal logs are off unless asked for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from aim.__version__ import __version__
from aim.sdk.errors import MissingRunError
from aim.sdk.index_manager import RepoIndexManager
from aim.sdk.objects import Image
from aim.sdk.objects import Text as AimText
from aim.sdk.run import Run
from filelock import Timeout
from pyroaring import BitMap64

from otel_tracking.capabilities import Declaration
from otel_tracking.config import without_surrogates
from otel_tracking.errors import ConfigurationError, NotStarted, Retry
from otel_tracking.media.overlays import lost_overlays
from otel_tracking.names import NameRule
from otel_tracking.records import Batch, Config, Media, RunInfo, RunStatus, Text, Written
from otel_tracking.sdk_exporters import TrackerMetricExporter, TrackerSpanExporter
from otel_tracking.sdk_logs import TrackerLogExporter
from otel_tracking.tags import KIND_PARTS, of_kind
from otel_tracking.tracker import Pacing, Tracker
from otel_tracking_exporters._aim_media import form_of, log_files
from otel_tracking_exporters._aim_repository import folder_of, make, reserve, state_is_saved
from otel_tracking_exporters.declarations import AIM

_QUIET: Final[Mapping[str, Any]] = {
    "system_tracking_interval": None,
    "log_system_params": False,
    "capture_terminal_logs": False,
}
_IDENTITY: Final = "otel_tracking"
_SHIFT: Final = 2**63
_LISTING_KEPT: Final = 0.6  # seconds; Aim keeps its list of runs for 0.5


class AimTracker(Tracker):
    """A run in an Aim repository. Everything is in it when a call returns."""

    name: ClassVar[str] = "aim"
    declaration: ClassVar[Declaration] = AIM
    requires_logging_directory: ClassVar[bool] = True
    exactly_once = True
    # Aim's own series begin with two underscores.
    names: ClassVar[NameRule] = NameRule(forbidden=r"\x00", forbidden_parts=rf"^_(?=_)|{KIND_PARTS}")
    pacing: ClassVar[Pacing] = Pacing(max_points=1_000)

    def __init__(self) -> None:
        self._run: Run | None = None
        self._reserved_in: Path | None = None
        """The run's directory, as long as it may have the hash of a run that no state has."""
        self._position = 0
        self._known = 0
        """Up to there everything is stored by an earlier start."""
        self._steps: dict[str, list[BitMap64]] = {}
        """By name: the steps of its first points, of its second ones, ..., shifted to be positive."""
        self._types: dict[str, str] = {}

    def start(self, run: RunInfo) -> int:
        """Open the run, or go on with the one of the last start.

        What is stored is asked for again, without being written, to know which steps are taken.

        Raises:
            ConfigurationError: `aim.Run` doesn't take an option.
            Retry: The repository is locked, or can't be reached.
        """
        options = {"repo": str(run.logging_dir), "experiment": run.project, **_QUIET, **run.options}
        known = run.state.get("hash") if run.state.get("repo") == str(options["repo"]) else None
        try:
            opened = _open(options, known, run.directory)
        except (TypeError, MissingRunError) as error:
            raise ConfigurationError(f"aim.Run refused its arguments: {error}") from error
        except (OSError, RuntimeError, Timeout) as error:
            raise Retry(f"the Aim repository can't be used: {error}") from error
        if not hasattr(opened._tracker, "_track"):
            raise ConfigurationError(
                f"aim {__version__} can't be given times in a way that is known here; "
                "install a version that the extra 'otel-tracking[aim]' names"
            )
        self._run = opened
        self._reserved_in = run.directory
        self._repo = str(options["repo"])
        opened.name = without_surrogates(run.name)
        opened.set((_IDENTITY, "run_id"), run.run_id, strict=False)
        if run.group:
            opened.set((_IDENTITY, "group"), run.group, strict=False)
            opened.set((_IDENTITY, "rank"), run.rank.rank, strict=False)
        self._known = self._position = run.position if opened.hash == known else 0
        return 1 if self._known else 0  # 0 would mean that nothing is stored

    def write(self, batch: Batch) -> Written:
        """Track points, those of a row in one call."""
        names = [self._typed(series.tag, "series") for series in batch.series]
        apart = [n for n, s in enumerate(batch.series) if names[n] != self.names.escape(s.tag)]
        for moment in batch.moments():
            values: dict[int, dict[str, float]] = {}
            for index, value in moment.values.items():
                values.setdefault(self._repetition(names[index], moment.step), {})[names[index]] = value
            if moment.position > self._known:
                for repetition, part in values.items():
                    self._track(part, None, moment.step, moment.time, repetition)
        self._position = max(self._position, int(batch.positions[-1]))
        moved = int(np.isin(batch.index, apart).sum()) if apart else 0
        return Written(len(batch), {_apart("series"): moved} if moved else {})

    def _track(self, value: Any, name: str | None, step: int, time: int, repetition: int) -> None:
        context = {"repetition": repetition + 1} if repetition else {}
        try:
            # `aim.Run.track` takes no time; this is what it calls with the present one.
            self._opened._tracker._track(value, time / 1e9, name, step, None, context=context)
        except OSError as error:
            raise Retry(f"the Aim repository can't be written: {error}") from error

    def _repetition(self, name: str, step: int) -> int:
        """How many points of that series and step there were before."""
        taken = self._steps.setdefault(name, [])
        for number, steps in enumerate(taken):
            if step + _SHIFT not in steps:
                steps.add(step + _SHIFT)
                return number
        taken.append(BitMap64([step + _SHIFT]))
        return len(taken) - 1

    def _typed(self, tag: str, type_: str) -> str:
        """A tag's name for data of that type: another one, if its own has data of another type already."""
        name = self.names.escape(tag)
        return name if self._types.setdefault(name, type_) == type_ else of_kind(tag, type_, self.names)

    def write_text(self, text: Text) -> Written:
        """Track a text."""
        clean = without_surrogates(text.text)
        changed = {"lone surrogates are escaped": 1} if clean != text.text else {}
        return self._track_object(
            AimText(clean), text.tag, "text", text.step, text.time, text.position, changed
        )

    def write_media(self, media: Media) -> Written:
        """Track media as Aim's objects; what Aim has none for becomes an artifact or a text."""
        form = form_of(media)
        changed = ({form.changed: 1} if form.changed else {}) | lost_overlays(media)
        if form.type:
            # What is stored already is not made again: that would read and decode every file of the run.
            made = form.make() if media.position > self._known else None
            return self._track_object(
                made, media.tag, form.type, media.step, media.time, media.position, changed
            )
        try:
            if media.position > self._known:
                log_files(self._opened, media)
        except OSError as error:
            raise Retry(f"the artifacts of the Aim run can't be written: {error}") from error
        self._position = max(self._position, media.position)
        return Written(1, changed)

    def _track_object(
        self, made: Any, tag: str, type_: str, step: int, time: int, position: int, changed: Mapping[str, int]
    ) -> Written:
        name = self._typed(tag, type_)
        repetition = self._repetition(name, max(step, 0))
        if position > self._known:
            self._track(made, name, max(step, 0), time, repetition)
        self._position = max(self._position, position)
        changes = dict(changed)
        if step < 0:
            changes["a negative step is stored as 0"] = 1
        if name != self.names.escape(tag):
            changes[_apart(type_)] = 1
        return Written(1, changes)

    def write_config(self, config: Config) -> Written:
        """Set the run's parameters `hparams`."""
        values = without_surrogates(config.values)
        if config.position > self._known:
            for key, value in values.items():
                self._opened.set(("hparams", key or "_x_"), value, strict=False)
        self._position = max(self._position, config.position)
        changed = values != config.values or "" in values
        return Written(1, {"config keys or texts that Aim can't store are escaped": 1} if changed else {})

    def confirm(self, *, flush: bool = False) -> int:
        """All that was written: Aim has stored it when a call returns."""
        if self._reserved_in is not None:
            state_is_saved(self._reserved_in)
            self._reserved_in = None
        return self._position

    def state(self) -> Mapping[str, Any]:
        """Which run in which repository."""
        return {} if self._run is None else {"hash": self._run.hash, "repo": self._repo}

    def finish(self, status: RunStatus) -> None:
        """Note the status, close the run, and index it.

        It is a parameter and, if it is not a good one, a tag and a message of the run.
        """
        if self._run is None:
            return
        self._forget_failure(self._run)
        self._run.set((_IDENTITY, "status"), status.value, strict=False)
        if status in (RunStatus.FAILED, RunStatus.KILLED):
            self._run.add_tag(status.value)
            self._note_failure(status)
        repo, run_hash = self._run.repo, self._run.hash
        if status is RunStatus.FINISHED:
            self._run.report_successful_finish()
        self._run.close()
        if not repo.is_remote_repo:  # a run that is not indexed is found by no query
            RepoIndexManager.get_index_manager(repo).index(run_hash)

    @staticmethod
    def _forget_failure(run: Run) -> None:
        """Of a run that has been resumed since."""
        known = run.get(_IDENTITY, {})
        if known.get("status") in (RunStatus.FAILED, RunStatus.KILLED):
            run.remove_tag(known["status"])
        if "error" in known:
            # To delete it would hide other runs' from queries.
            run.set((_IDENTITY, "error"), "", strict=False)

    def _note_failure(self, status: RunStatus) -> None:
        if self.failure:
            self._opened.set((_IDENTITY, "error"), self.failure.reason, strict=False)
            self._opened.log_error(self.failure.traceback)
        else:
            self._opened.log_error(f"the run {'failed' if status is RunStatus.FAILED else 'was killed'}")

    @property
    def _opened(self) -> Run:
        if self._run is None:
            raise NotStarted("the Aim run has not been started yet")
        return self._run

    @property
    def native(self) -> Run:
        """The `aim.Run`."""
        return self._opened

    @property
    def handle(self) -> AimHandle:
        """The run with Accelerate's words."""
        return AimHandle(self._opened)


def _apart(type_: str) -> str:
    return f"stored as <name> ({type_}): the name has other data"


def _open(options: dict[str, Any], known: str | None, run_directory: Path) -> Run:
    """The run of the last start, if it is still there; else another one."""
    folder = folder_of(options["repo"])
    if folder is not None:
        make(folder)
    if known is not None:
        with contextlib.suppress(MissingRunError):
            return Run(**{**options, "run_hash": known, "force_resume": True})
        options = {**options, "run_hash": None}
    if folder is None or options.get("run_hash"):
        return Run(**options)
    run_hash, is_new = reserve(folder, run_directory)
    options = {**options, "run_hash": run_hash, "force_resume": not is_new}
    try:
        return Run(**options)
    except MissingRunError:
        time.sleep(_LISTING_KEPT)
        return Run(**options)


class AimHandle:
    """Accelerate's words for an `aim.Run`; every other attribute is the run's own.

    What is logged here goes to Aim at once and only there: it is not in the journal.
    """

    def __init__(self, run: Run) -> None:
        self.writer = run
        self.tracker = run

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Set the run's parameters `hparams`."""
        self.writer["hparams"] = dict(values)

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Track values by name. `kwargs` are `aim.Run.track`'s."""
        for name, value in values.items():
            self.writer.track(value, name=name, step=step, **kwargs)

    def log_images(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Track images by name.

        Args:
            values: An image, a tuple of an image and its caption, or a list of these.
            step: Of all of them.
            kwargs: For `aim.Image` under `"aim_image"`, for `aim.Run.track` under `"track"`.
        """
        of_image = dict((kwargs or {}).get("aim_image", {}))
        of_track = dict((kwargs or {}).get("track", {}))
        for name, value in values.items():
            images = [_image(each, of_image) for each in (value if isinstance(value, list) else [value])]
            self.writer.track(images if len(images) > 1 else images[0], name=name, step=step, **of_track)

    def finish(self) -> None:
        """Nothing: `end_training` closes the run, after what is still in the journal."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)


class AimMetricExporter(TrackerMetricExporter):
    """An OpenTelemetry `MetricExporter` that tracks in an Aim repository."""

    tracker = AimTracker


class AimSpanExporter(TrackerSpanExporter):
    """An OpenTelemetry `SpanExporter` that tracks spans' durations in an Aim repository."""

    tracker = AimTracker


class AimLogExporter(TrackerLogExporter):
    """An OpenTelemetry `LogRecordExporter` that tracks log records as texts in an Aim repository."""

    tracker = AimTracker


def _image(value: Any, options: Mapping[str, Any]) -> Image:
    if isinstance(value, Image):
        return value
    picture, caption = value if isinstance(value, Sequence) and len(value) == 2 else (value, "")
    return Image(picture, caption=caption, **options)
