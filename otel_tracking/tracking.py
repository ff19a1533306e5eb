"""The facade, in the words of Accelerate's tracking."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from opentelemetry.metrics import MeterProvider

from otel_tracking import discovery, resuming, settings
from otel_tracking.blank import Blank
from otel_tracking.choosing import LogWith, choose
from otel_tracking.config import redacted, without_secrets
from otel_tracking.errors import ConfigurationError, NotStarted
from otel_tracking.final_error import passing_error, status_of
from otel_tracking.journal import zstd_blocks
from otel_tracking.journal.format import STEP_MAX, STEP_MIN, RecordType
from otel_tracking.media.recording import MediaCalls, MediaRecorder
from otel_tracking.process import process
from otel_tracking.processes import Processes
from otel_tracking.ranks import Policy, RankPolicies, detect, parse
from otel_tracking.records import Rank, Receipt, RunStatus
from otel_tracking.request import RunRequest, wants
from otel_tracking.retention import Keep
from otel_tracking.session import RunSession
from otel_tracking.system.interval import interval
from otel_tracking.tracker import Tracker

_LOG: Final = logging.getLogger(__name__)
_START_TIMEOUT: Final = 120.0
_FAILING_TIMEOUT: Final = 10.0
"""Seconds that `get_tracker` waits for a tracker that has failed to start, and is tried again."""


class Tracking(MediaCalls, Processes):
    """Records a run and carries it into trackers.

    ::

        tracking = Tracking(log_with=["tensorboard", "mlflow"], project_dir="outputs")
        tracking.init_trackers("bert", config={"lr": 1e-4})
        tracking.log({"train/loss": loss}, step=step)
        tracking.end_training()

    Also a context manager, which ends the run. Everything recorded through OpenTelemetry's API in
    this process goes into the same run.

    Args:
        log_with: A tracker's name, a `Tracker` subclass or instance, a `GeneralTracker` of Accelerate's,
            several of these, or `"all"` for every tracker that is installed. Default: OTEL_TRACKING_LOG_WITH.
        project_dir: Directory of all runs. Default: OTEL_TRACKING_PROJECT_DIR, else `./outputs`.
        logging_dir: Where trackers that keep one store for many runs put it. Default: `project_dir`.
        ranks: Which ranks record: `"main"`, `"local_main"`, `"all"`, rank numbers, or one of these by
            tracker, `{"wandb": "all", "*": "main"}`. Default: OTEL_TRACKING_RANKS, else `"main"`.
        delivery: `"thread"`: trackers run on threads of this process; `"process"`: in a process of their
            own, which outlives this one; `"off"`: only the journal is written, for `otel-tracking sync`.
            Default: OTEL_TRACKING_DELIVERY.
        fsync: `"off"`: what was recorded survives the process, and not the machine; `"interval"`: all but
            the last second or so survives that as well; `"always"`: everything whose call has returned.
            Default: OTEL_TRACKING_FSYNC.
        compress: The form of the journal's segments once they are full: `"pack"` (some 12 bytes a point),
            `"zstd"` (less, needs an extra), or `"off"` (32 bytes).
            Default: OTEL_TRACKING_COMPRESS, else `"pack"`.
        keep: What of the journal stays: `"always"` everything; `"delivered"`: what some tracker has not got
            yet; a size such as `"10GB"`: the newest records of each rank, whether delivered or not.
            Default: OTEL_TRACKING_KEEP, else `"always"`.
        system_metrics: Seconds between two samples of CPU, memory, disk, network and GPUs, recorded under
            `system/` by one rank of each node; `"off"` for none. Needs `otel-tracking[system]`.
            Default: OTEL_TRACKING_SYSTEM_METRICS, else `"off"`.
        run_id: The run's identity; one that exists is resumed. Default: OTEL_TRACKING_RUN_ID, else the
            launcher's, else a new one.
        run_name: The run's name for people. Default: OTEL_TRACKING_RUN_NAME, else the run id.
        meter_provider: An SDK provider that is to get what is recorded too; one that is or becomes the
            global one need not be named.
        meters: Patterns of meter names that are recorded; `!` excludes. Default: all but
            OpenTelemetry's own instrumentations.
        budget: CPU seconds a second that all delivery threads may take. Default: OTEL_TRACKING_BUDGET.
        logs: Log records from that level on become texts: `"debug"` to `"critical"`; `"off"` for none.
            Default: OTEL_TRACKING_LOGS, else `"off"`.
        log_names: Loggers, each with those below it, whose records do; `!name` leaves out. Default:
            OTEL_TRACKING_LOG_NAMES, else all.

    Raises:
        UnknownTracker: A name is no tracker's.
        TrackerNotInstalled: A tracker named in code lacks its package.
        LoggingDirectoryRequired: A tracker needs a directory and none is given.
        ConfigurationError: Another argument is wrong.
    """

    def __init__(
        self,
        log_with: LogWith | Iterable[LogWith] | None = None,
        project_dir: str | os.PathLike[str] | None = None,
        logging_dir: str | os.PathLike[str] | None = None,
        *,
        ranks: Policy | None = None,
        delivery: str | None = None,
        fsync: str | None = None,
        compress: str | None = None,
        keep: str | None = None,
        system_metrics: float | str | None = None,
        run_id: str | None = None,
        run_name: str | None = None,
        meter_provider: MeterProvider | None = None,
        meters: Sequence[str] | None = None,
        budget: float | None = None,
        logs: str | None = None,
        log_names: Sequence[str] | None = None,
    ) -> None:
        self.rank: Rank = detect()
        directory = project_dir if project_dir is not None else settings.PROJECT_DIR.get() or None
        self._delivery = _choice("delivery", delivery or settings.DELIVERY.get(), settings.DELIVERIES)
        self._fsync = _choice("fsync", fsync or settings.FSYNC.get(), settings.FSYNCS)
        self._compress = _choice("compress", compress or settings.COMPRESS.get(), settings.COMPRESSIONS)
        if self._compress == "zstd" and not zstd_blocks.available():
            raise ConfigurationError("compress='zstd' needs zstandard: pip install 'otel-tracking[zstd]'")
        self._keep = Keep.parse(keep if keep is not None else settings.KEEP.get())
        self._system_metrics = interval(system_metrics)
        self._trackers, self.left_out = choose(
            log_with, has_directory=bool(directory or logging_dir), delivery=self._delivery
        )
        self._project_dir = Path(directory if directory is not None else logging_dir or "outputs").absolute()
        self._logging_dir = None if logging_dir is None else Path(logging_dir).absolute()
        self._policies: RankPolicies = (
            discovery.policies_by_environment(self._trackers, self.rank.world_size)
            if ranks is None
            else parse(ranks, known={*discovery.known(), *self._trackers}, world_size=self.rank.world_size)
        )
        self._run_id = run_id
        self._run_name = run_name or settings.RUN_NAME.get()
        self._budget = settings.BUDGET.get() if budget is None else _fraction("budget", budget)
        level = _choice("logs", (logs or settings.LOGS.get()).lower(), settings.LOG_LEVELS)
        self._session: RunSession | None = None
        self._begun = self._begun_in_except = False
        self._attachments: dict[str, tuple[RunSession, Tracker]] = {}
        self._last: _Begun | None = None
        self._checkpoint: resuming.Checkpoint | None = None
        self._process = process()
        if meters is not None:
            self._process.provider.meters = tuple(meters)
        self._process.install()
        if meter_provider is not None and not self._process.provider.attach(meter_provider):
            raise ConfigurationError("another SDK meter provider is attached already; there can be one")
        self._process.record_pending(self._request(settings.project(), {}))
        self._process.want_logs(level, settings.LOG_NAMES.get() if log_names is None else log_names)

    # The tutorial's words

    def init_trackers(
        self,
        project_name: str,
        config: Any = None,
        init_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        resume: str | os.PathLike[str] | None = None,
        resume_from_step: int | None = None,
    ) -> None:
        """Begin a run, or go on with one; one that this process is recording is ended first.

        Returns at once: trackers start on threads of their own.

        Args:
            project_name: What runs are collected under.
            config: Hyperparameters: a mapping, dataclass or namespace, nested, of any values.
            init_kwargs: By tracker: what its own start takes.
            resume: The run to go on with: its id, or its directory. It has to exist. Default: the run of
                the checkpoint that `load_state_dict` was given, if it was; else the run of `run_id`.
            resume_from_step: Training goes on from that step again: what the run holds of that step and
                later ones is void. TensorBoard hides it; the receipt says which trackers keep it.

        Raises:
            RunNotFound: There is no run to resume.
            ConfigurationError: `init_kwargs` names a tracker that is not used; or the run to resume is
                one of another project.
            JournalLocked, OSError: The run's journal can't be written.
        """
        options = {name: without_secrets(given) for name, given in (init_kwargs or {}).items()}
        for name in options:
            if name not in self._trackers and name not in discovery.known():
                used = ", ".join(self._trackers) or "none"
                raise ConfigurationError(f"init_kwargs[{name!r}] is for no tracker of this run: {used}")
        request = self._request(str(project_name), options)
        if resume is not None:
            request = resuming.resumed(request, resume, required=wants(request, self.rank))
        elif self._checkpoint is not None:
            request = self._checkpoint.resumed(request)
        self._begin(_Begun(request, config))
        if resume_from_step is not None:
            self.rewind(resume_from_step)

    def _begin(self, begun: _Begun) -> None:
        self._begun_in_except = sys.exc_info()[1] is not None
        self._session = self._process.begin(begun.request)
        self._begun = True
        self._last = begun
        if begun.config is not None:
            self.store_init_configuration(begun.config)

    def rewind(self, step: int) -> None:
        """Training goes back to a step: what was recorded at that step and later ones is void.

        Points stay in the journal; what a tracker can do about those it has, the receipt says.

        Raises:
            NotStarted: `init_trackers` has not been called.
            ConfigurationError: The step is no integer of 64 bits.
        """
        if not self._begun:
            raise NotStarted("call init_trackers(project_name) before rewind")
        if isinstance(step, bool) or not (isinstance(step, Integral) and STEP_MIN <= step <= STEP_MAX):
            raise ConfigurationError(f"training can't go on from step {step!r:.80}: an integer is needed")
        self._process.recorder.entry(RecordType.REWIND, {}, step=int(step))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold for the run to be gone on with: see `load_state_dict`.

        Waits for the ranks to agree on the run's name, if they have not. JSON values.

        Raises:
            NotStarted: `init_trackers` has not been called.
        """
        if self._last is None:
            raise NotStarted("call init_trackers(project_name) before state_dict")
        if self._session is not None and self._session.identity is None:
            self._session.ready.wait(_START_TIMEOUT)
        return resuming.Checkpoint(self._last.request.project, self.run_id).state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the run of a checkpoint: at the next `init_trackers`, or at once if a run has begun.

        A run that has begun, and is another, is ended, with a warning: load before `init_trackers`, if
        you can. The names are those that Accelerate's `register_for_checkpointing` asks for.

        Args:
            state: From `state_dict`.

        Raises:
            ConfigurationError: It is not; or it is one of a run of another project.
        """
        checkpoint = resuming.Checkpoint.of(state)
        self._checkpoint = checkpoint
        if self._last is None or self._session is None or self._session.ended:
            return
        if not checkpoint.run_id or checkpoint.run_id == self.state_dict()["run_id"]:
            return
        request = checkpoint.resumed(self._last.request)
        _LOG.warning(
            "the run %s is ended and %s, the checkpoint's, is gone on with; "
            "load the checkpoint before init_trackers and there will be one run only",
            self.run_id,
            checkpoint.run_id,
        )
        self._begin(_Begun(replace(request, ordinal=self._process.next_ordinal), self._last.config))

    def store_init_configuration(self, values: Any) -> None:
        """Add hyperparameters; later keys win. What looks like a secret is not recorded, and warned of."""
        config, _ = redacted(values)
        self._process.recorder.entry(RecordType.CONFIG, {"config": config})

    def log(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        log_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Record the values of one moment. They are in the journal when this returns.

        Args:
            values: Numbers (Python's, NumPy's, torch's), texts, and nested mappings of these.
            step: Any integer, in any order. Default: `set_step` and the other sources of a step.
            log_kwargs: By tracker: what its own call takes (`{"wandb": {"commit": False}}`).

        Raises:
            NotStarted: `init_trackers` has not been called.
        """
        if not self._begun:
            raise NotStarted("call init_trackers(project_name) before log")
        self._process.recorder.log(values, step=step, options=log_kwargs)

    def _media_recorder(self) -> MediaRecorder:
        if not self._begun:
            raise NotStarted("call init_trackers(project_name) before logging media")
        return self._process.recorder

    def log_text(self, values: Mapping[str, str], step: int | None = None) -> None:
        """Record texts by name."""
        self.log({name: str(text) for name, text in values.items()}, step=step)

    def get_tracker(self, name: str, unwrap: bool = False) -> Any:
        """A tracker's own object for this run, to use its own features.

        Waits until the tracker has started.

        Args:
            name: As in `log_with`.
            unwrap: The object of the tracker's SDK itself instead of one with Accelerate's words.

        Returns:
            On a rank that does not record for this tracker: an object every call of which does nothing.

        Raises:
            ConfigurationError: The tracker is not among `log_with`.
            NativeHandleUnavailable: It runs in the sidecar, and allows no second process.
            NotStarted: `init_trackers` has not been called, or the tracker could not be started.
        """
        if name not in self._trackers:
            raise ConfigurationError(
                f"{name!r} is no tracker of this run: {', '.join(self._trackers) or 'none'}. "
                f"{self.left_out.get(name, '')}"
            )
        if not self._begun:
            raise NotStarted("call init_trackers(project_name) before get_tracker")
        session = self._session
        if session is None or not session.in_this_process or not self._policies.wants(name, self.rank):
            return Blank()
        session.ready.wait(_START_TIMEOUT)
        if self._delivery == "process":
            return self._attached(session, name, unwrap=unwrap)
        follower = session.followers.get(name)
        if follower is None:
            raise NotStarted(f"{name!r} is not running: {session.left_out.get(name, 'delivery is off')}")
        tracker = follower.wait_for_tracker(_START_TIMEOUT, failing=_FAILING_TIMEOUT)
        if tracker is None:
            errors = follower.receipt(int).errors
            raise NotStarted(f"{name!r} has not started: {next(iter(errors), 'it is still starting')}")
        return _object_of(tracker, unwrap=unwrap)

    def _attached(self, session: RunSession, name: str, *, unwrap: bool) -> Any:
        if name not in self._attachments or self._attachments[name][0] is not session:
            self._attachments[name] = session, session.attached(name, _START_TIMEOUT)
        tracker = self._attachments[name][1]
        return _object_of(tracker, unwrap=unwrap)

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until all that was recorded is stored in every tracker; False after `timeout` seconds."""
        return self._session is None or self._session.flush(timeout)

    def receipt(self) -> Receipt:
        """What was recorded, and what became of it in each tracker.

        Raises:
            NotStarted: `init_trackers` has not been called.
        """
        if not self._begun:
            raise NotStarted("call init_trackers(project_name) before receipt")
        if self._session is None:
            return Receipt("", 0, self._process.recorder.not_recorded(), {})
        return self._session.receipt()

    @property
    def run_id(self) -> str:
        """The run's identity; empty while the ranks are still agreeing on one."""
        identity = self._session.identity if self._session else None
        return identity.run_id if identity else ""

    @property
    def run_directory(self) -> Path | None:
        """Where the run lies; None while it has no name yet, or records nothing on this rank."""
        return self._session.directory if self._session else None

    def end_training(self, timeout: float | None = None, status: str | None = None) -> None:
        """Deliver what is left and close the run in every tracker.

        Args:
            timeout: Seconds, for all trackers together. What is not delivered by then stays in the
                journal. Default: OTEL_TRACKING_END_TIMEOUT, 120.
            status: `finished`, `failed` or `killed`. Default: what the exception says that the calling code
                is handling, in a `finally` or an `except`; `finished` if there is none.

        A run that is never ended is ended when the interpreter exits: as failed after an exception or
        `sys.exit` with anything but 0 and None, as killed after Ctrl-C, else as finished. The exception that
        made it fail is recorded as the text `exception`, at the step that training was at.
        """
        if status is None:
            status = status_of(passing_error(begun_in_except=self._begun_in_except))
        ended = RunStatus(_choice("status", status, ("finished", "failed", "killed")))
        if self._session is not None and self._session is self._process.session:
            self._process.end(ended, timeout)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end_training(status=status_of(error))

    def _request(self, project: str, init_kwargs: Mapping[str, Mapping[str, Any]]) -> RunRequest:
        trackers = dict(self._trackers)
        return RunRequest(
            project=project,
            project_dir=self._project_dir,
            load=lambda: (trackers, {}),
            names=tuple(trackers),
            logging_dir=self._logging_dir,
            run_id=self._run_id,
            run_name=self._run_name,
            policies=self._policies,
            init_kwargs=init_kwargs,
            budget=self._budget,
            delivery=self._delivery,
            fsync=self._fsync,
            compress=self._compress,
            keep=self._keep,
            system_metrics=self._system_metrics,
            ordinal=self._process.next_ordinal,
        )


@dataclass(frozen=True, slots=True)
class _Begun:
    """What `init_trackers` was told."""

    request: RunRequest
    config: Any


def _object_of(tracker: Tracker, *, unwrap: bool) -> Any:
    if not unwrap:
        return tracker.handle
    tracker.enter()
    return tracker.native


def _choice(what: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ConfigurationError(f"{what} can't be {value!r:.80}: known are {', '.join(known)}")
    return value


def _fraction(what: str, value: float) -> float:
    if not 0 < value <= 1:
        raise ConfigurationError(f"{what} is a number above 0 and up to 1, not {value!r:.80}")
    return value
