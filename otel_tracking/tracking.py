"""The facade, in the words of Accelerate's tracking."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from opentelemetry.metrics import MeterProvider

from otel_tracking import discovery, settings
from otel_tracking.config import to_jsonable
from otel_tracking.errors import ConfigurationError, LoggingDirectoryRequired, NotStarted
from otel_tracking.journal.format import RecordType
from otel_tracking.process import process, status_of
from otel_tracking.ranks import Policy, RankPolicies, detect, parse
from otel_tracking.records import Rank, Receipt, RunStatus
from otel_tracking.request import RunRequest
from otel_tracking.session import RunSession
from otel_tracking.tracker import Tracker

_LOG: Final = logging.getLogger(__name__)
_START_TIMEOUT: Final = 120.0
_FAILING_TIMEOUT: Final = 10.0
"""Seconds that `get_tracker` waits for a tracker that has failed to start, and is tried again."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")

LogWith = str | type[Tracker] | Tracker


class Tracking:
    """Records a run and carries it into trackers.

    ::

        tracking = Tracking(log_with=["tensorboard", "mlflow"], project_dir="outputs")
        tracking.init_trackers("bert", config={"lr": 1e-4})
        tracking.log({"train/loss": loss}, step=step)
        tracking.end_training()

    Also a context manager, which ends the run. Everything recorded through OpenTelemetry's API in
    this process goes into the same run.

    Args:
        log_with: A tracker's name, a `Tracker` subclass or instance, several of these, or `"all"`
            for every tracker that is installed. Default: OTEL_TRACKING_LOG_WITH.
        project_dir: Directory of all runs. Default: OTEL_TRACKING_PROJECT_DIR, else `./outputs`.
        logging_dir: Where trackers that keep one store for many runs put it. Default: `project_dir`.
        ranks: Which ranks record: `"main"`, `"local_main"`, `"all"`, rank numbers, or one of these by
            tracker, `{"wandb": "all", "*": "main"}`. Default: OTEL_TRACKING_RANKS, else `"main"`.
        delivery: `"thread"`, or `"off"`: only the journal is written. Default: OTEL_TRACKING_DELIVERY.
        run_id: The run's identity; one that exists is resumed. Default: OTEL_TRACKING_RUN_ID, else the
            launcher's, else a new one.
        run_name: The run's name for people. Default: OTEL_TRACKING_RUN_NAME, else the run id.
        meter_provider: An SDK provider that is to get what is recorded too; one that is or becomes the
            global one need not be named.
        meters: Patterns of meter names that are recorded; `!` excludes. Default: all but
            OpenTelemetry's own instrumentations.
        budget: CPU seconds a second that all delivery threads may take. Default: OTEL_TRACKING_BUDGET.

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
        run_id: str | None = None,
        run_name: str | None = None,
        meter_provider: MeterProvider | None = None,
        meters: Sequence[str] | None = None,
        budget: float | None = None,
    ) -> None:
        self.rank: Rank = detect()
        directory = project_dir if project_dir is not None else settings.PROJECT_DIR.get() or None
        self._trackers: Mapping[str, _Maker]
        self.left_out: Mapping[str, str]
        """Trackers of `"all"` or the environment that can't be used, and why."""
        if log_with is None:
            self._trackers, self.left_out = _wanted_by_environment()
        else:
            self._trackers, self.left_out = _wanted(log_with, directory=directory or logging_dir)
        self._project_dir = Path(directory if directory is not None else logging_dir or "outputs").absolute()
        self._logging_dir = None if logging_dir is None else Path(logging_dir).absolute()
        self._policies: RankPolicies = (
            discovery.policies_by_environment(self._trackers, self.rank.world_size)
            if ranks is None
            else parse(ranks, known={*discovery.known(), *self._trackers}, world_size=self.rank.world_size)
        )
        self._delivery = _choice("delivery", delivery or settings.DELIVERY.get(), ("thread", "off"))
        self._run_id = run_id
        self._run_name = run_name or settings.RUN_NAME.get()
        self._budget = settings.BUDGET.get() if budget is None else _fraction("budget", budget)
        self._session: RunSession | None = None
        self._begun = False
        self._process = process()
        if meters is not None:
            self._process.provider.meters = tuple(meters)
        self._process.install()
        if meter_provider is not None and not self._process.provider.attach(meter_provider):
            raise ConfigurationError("another SDK meter provider is attached already; there can be one")
        self._process.record_pending(self._request(settings.project(), {}))

    # The tutorial's words

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0."""
        return self.rank.is_main

    def init_trackers(
        self,
        project_name: str,
        config: Any = None,
        init_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Begin a run; one that this process is recording is ended first.

        Returns at once: trackers start on threads of their own.

        Args:
            project_name: What runs are collected under.
            config: Hyperparameters: a mapping, dataclass or namespace, nested, of any values.
            init_kwargs: By tracker: what its own start takes.

        Raises:
            ConfigurationError: `init_kwargs` names a tracker that is not used.
            JournalLocked, OSError: The run's journal can't be written.
        """
        options = dict(init_kwargs or {})
        for name in options:
            if name not in self._trackers and name not in discovery.known():
                used = ", ".join(self._trackers) or "none"
                raise ConfigurationError(f"init_kwargs[{name!r}] is for no tracker of this run: {used}")
        self._session = self._process.begin(self._request(str(project_name), options))
        self._begun = True
        if config is not None:
            self.store_init_configuration(config)

    def store_init_configuration(self, values: Any) -> None:
        """Add hyperparameters; later keys win."""
        self._process.recorder.entry(RecordType.CONFIG, {"config": to_jsonable(values)})

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
        follower = session.followers.get(name)
        if follower is None:
            raise NotStarted(f"{name!r} is not running: {session.left_out.get(name, 'delivery is off')}")
        tracker = follower.wait_for_tracker(_START_TIMEOUT, failing=_FAILING_TIMEOUT)
        if tracker is None:
            errors = follower.receipt(int).errors
            raise NotStarted(f"{name!r} has not started: {next(iter(errors), 'it is still starting')}")
        return tracker.native if unwrap else tracker.handle

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

    def end_training(self, timeout: float | None = None, status: str = "finished") -> None:
        """Deliver what is left and close the run in every tracker.

        Args:
            timeout: Seconds, for all trackers together. What is not delivered by then stays in the
                journal. Default: OTEL_TRACKING_END_TIMEOUT, 120.
            status: `finished`, `failed` or `killed`.

        A run that is never ended is ended when the interpreter exits: as failed after an exception or
        `sys.exit` with anything but 0 and None, as killed after Ctrl-C, else as finished.
        """
        ended = RunStatus(_choice("status", status, ("finished", "failed", "killed")))
        if self._session is not None and self._session is self._process.session:
            self._process.end(ended, timeout)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end_training(status=status_of(error).value)

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
            deliver=self._delivery == "thread",
            ordinal=self._process.next_ordinal,
        )


class Blank:
    """Stands for a tracker on ranks that don't record: every attribute, item and call is itself.

    Empty as a collection, false as a condition.
    """

    def __getattr__(self, name: str) -> Blank:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Blank:
        """Nothing is done."""
        return self

    def __enter__(self) -> Blank:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __getitem__(self, key: object) -> Blank:
        return self

    def __setitem__(self, key: object, value: object) -> None:
        """Nothing is kept."""

    def __setattr__(self, name: str, value: object) -> None:
        """Nothing is kept."""

    def __iter__(self) -> Iterator[Blank]:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Maker:
    """Makes trackers of one class; an instance that the user made is used as it is."""

    def __init__(self, source: type[Tracker] | Tracker) -> None:
        self._source = source

    def __call__(self) -> Tracker:
        return self._source() if isinstance(self._source, type) else self._source


def _wanted_by_environment() -> tuple[dict[str, _Maker], dict[str, str]]:
    """The trackers by name, and why others are left out. They never lack a directory: there is a default."""
    trackers, left_out = discovery.load_available(discovery.named_by_environment())
    for reason in left_out.values():
        _LOG.warning("%s The journal is kept.", reason)
    return {name: _Maker(tracker) for name, tracker in trackers.items()}, left_out


def _wanted(
    log_with: LogWith | Iterable[LogWith], *, directory: object
) -> tuple[dict[str, _Maker], dict[str, str]]:
    """The trackers by name, and what `all` leaves out."""
    items: Iterable[LogWith]
    if isinstance(log_with, str):
        items = [name for part in log_with.split(",") if (name := part.strip())]
    elif isinstance(log_with, Iterable):
        items = log_with
    else:
        items = [log_with]
    makers: dict[str, _Maker] = {}
    left_out: dict[str, str] = {}
    for item in items:
        if item == discovery.ALL:
            trackers, left_out = discovery.load_available(discovery.known())
            for name, tracker in trackers.items():
                if tracker.requires_logging_directory and directory is None:
                    left_out[name] = str(LoggingDirectoryRequired(name))
                else:
                    makers.setdefault(name, _Maker(tracker))
            continue
        name, source = (item, discovery.load(item)) if isinstance(item, str) else (_name_of(item), item)
        if source.requires_logging_directory and directory is None:
            raise LoggingDirectoryRequired(name)
        makers[name] = _Maker(source)
    return makers, {name: reason for name, reason in left_out.items() if name not in makers}


def _name_of(item: object) -> str:
    """The name of a tracker that is given as a class or an instance; it becomes part of file names."""
    if not (isinstance(item, Tracker) or (isinstance(item, type) and issubclass(item, Tracker))):
        raise ConfigurationError(f"log_with takes names, Tracker classes and instances, not {item!r:.200}")
    name: object = getattr(item, "name", None)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ConfigurationError(f"a tracker's name is letters, digits, `_` and `-`, not {name!r:.200}")
    return name


def _choice(what: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ConfigurationError(f"{what} can't be {value!r:.80}: known are {', '.join(known)}")
    return value


def _fraction(what: str, value: float) -> float:
    if not 0 < value <= 1:
        raise ConfigurationError(f"{what} is a number above 0 and up to 1, not {value!r:.80}")
    return value
