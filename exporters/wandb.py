"""Weights & Biases: each row of the journal is a row of the run's history, none dropped.

A row holds its values, its step in `training/step` (the x-axis of all charts; W&B's own `step=` is
never used, since W&B drops a step below the last one), its time in `_timestamp`, and in the hidden
field `_otel_tracking/position` up to where the journal is stored with it.

Offline runs lie in `<run directory>/wandb/offline-run-*`; upload them with `wandb sync <that folder>`.
W&B can't continue an offline run: one that was interrupted, or that is resumed, is moved to
`<run directory>/wandb-retired/` and written again whole, under the same id. An online run goes on
where W&B says it stopped; what it had when the process died but had not yet said may be there twice.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import wandb

from otel_tracking.capabilities import Declaration
from otel_tracking.config import without_surrogates
from otel_tracking.errors import ConfigurationError, NotStarted
from otel_tracking.names import NameRule
from otel_tracking.process import process
from otel_tracking.records import Batch, Config, Media, MediaKind, RunInfo, RunStatus, Text, Written
from otel_tracking.sdk_exporters import TrackerMetricExporter, TrackerSpanExporter
from otel_tracking.sdk_logs import TrackerLogExporter
from otel_tracking.tracker import Pacing, Tracker
from otel_tracking_exporters import _wandb_setup
from otel_tracking_exporters._servers import require_answer
from otel_tracking_exporters._wandb_file import WandbFile, parse, parse_value
from otel_tracking_exporters._wandb_handle import WandbHandle, finish_after, log_steps_as_field
from otel_tracking_exporters._wandb_mapping import (
    CONFIG_NAMES,
    STEP,
    TIME,
    config_value,
    split_row,
    unused_options,
)
from otel_tracking_exporters._wandb_media import TABLE_NAMES, as_artifact, as_value
from otel_tracking_exporters.declarations import WANDB

_logger = logging.getLogger(__name__)

POSITION = "_otel_tracking/position"
"""The history field that holds the journal position up to which everything is stored."""
_RUN = "_otel_tracking/run"

_EXIT_CODES = {RunStatus.FAILED: 1, RunStatus.KILLED: 255}
"""255 is what W&B itself gives a run that Ctrl-C ended."""

_STATUSES = {0: RunStatus.FINISHED, 255: RunStatus.KILLED}

_CLOSE_TIMEOUT = 5.0
_POLL = 0.1
_UPLOAD_PATIENCE = 60.0
"""Seconds that the end of a run waits for `finish`, which returns when all is uploaded."""
_FLUSH_TIMEOUT = 2.5 * _wandb_setup.FLUSH_INTERVAL

# `wandb.init` sets process-wide state, and returns the active run unless told otherwise.
_init_lock = threading.Lock()
_own_runs: weakref.WeakSet[wandb.Run] = weakref.WeakSet()


class WandbTracker(Tracker):
    """One W&B run. A run that is active when this starts (in a sweep) is used, and finished.

    Finished natively before that, as by a sweep's agent, it has what was recorded by then, and nothing later.
    """

    name = "wandb"
    declaration: ClassVar[Declaration] = WANDB
    # W&B's own fields and ours; control and bidirectional characters; an empty key would be lost.
    names: ClassVar[NameRule] = NameRule(
        forbidden=r"\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff",
        forbidden_parts=r"^_(?=(?:step|runtime|timestamp|wandb)\Z|otel_tracking/)|^t(?=raining/step\Z)",
    )
    pacing: ClassVar[Pacing] = Pacing(max_points=2_000)
    closes_at_exit: ClassVar[bool] = True

    def __init__(self) -> None:
        self._run: wandb.Run | None = None
        self._log: Callable[..., None]
        """The run's `log`, set by `start`."""
        self._close: Callable[..., None]
        """The run's `finish`, likewise."""
        self._adopted = False
        self._exit_code: int | None = None
        """What the run is finished with natively."""
        self._file: WandbFile | None = None
        self._escaped: dict[str, str] = {}
        self._held: dict[str, Any] | None = None
        """A row logged with commit=False, to join the next one."""
        self._taken = 0
        """The highest position taken over, held rows included."""
        self._complete = 0
        """Everything at or before it has been given to W&B."""
        self._stored = 0
        """Everything at or before it is in the file."""
        self._ended = False
        """Whether the file says that the run was finished."""

    def start(self, run: RunInfo) -> int:
        """Open the run; see the module for what becomes of an earlier start's."""
        with _init_lock, _wandb_setup.exit_hooks_restored():
            _wandb_setup.leave_inherited_service()
            self._adopted = wandb.run is not None and wandb.run not in _own_runs
            opened = wandb.run if wandb.run and self._adopted else self._init(run)
            _own_runs.add(opened)
        if self._adopted:
            _logger.info("the active W&B run %s is used; init_kwargs have no effect on it", opened.id)
        self.exactly_once = opened.offline
        if not opened.offline:
            self.patience = _UPLOAD_PATIENCE
        self._run = opened
        self._log = log_steps_as_field(opened)
        self._close = finish_after(opened, self._end_delivery)
        settings = opened.settings
        if not (opened.disabled or settings.x_skip_transaction_log):
            self._file = WandbFile(Path(settings.sync_file))
        opened.define_metric(STEP)
        opened.define_metric(POSITION, hidden=True)
        opened.define_metric("*", step_metric=STEP)
        # Another journal may have written to this run: its positions say nothing about ours.
        summary: Any = opened.summary  # W&B's methods carry no types
        known = opened.resumed and run.resumed and summary.get(_RUN) == run.run_id
        summary[_RUN] = run.run_id
        stored = int(summary.get(POSITION, 0)) if known else 0
        self._taken = self._complete = self._stored = stored
        return stored

    def _init(self, run: RunInfo) -> wandb.Run:
        mode = _wandb_setup.mode_of(run.options)
        arguments = _wandb_setup.init_arguments(run, mode)
        if mode in ("online", "shared"):
            _wandb_setup.require_login(arguments["settings"])
            require_answer(_wandb_setup.base_url(arguments["settings"]), "W&B")
        earlier = run.state.get("directory")
        folders = [] if earlier is None or run.state.get("adopted") else [Path(earlier)]
        if arguments.get("dir") == str(run.directory):
            # A process killed early left no state, but nothing else writes here.
            folders += _wandb_setup.offline_folders(run.directory, arguments["id"])
        _wandb_setup.retire(dict.fromkeys(folders), POSITION.encode())
        if _own_runs:
            arguments.setdefault("reinit", "create_new")
        try:
            return wandb.init(**arguments)
        except (wandb.errors.UsageError, ValueError, TypeError) as error:
            raise ConfigurationError(f"wandb.init refused its arguments: {error}") from error

    def write(self, batch: Batch) -> Written:
        """Log each row; of a row that W&B can't hold as one, as many as it takes."""
        altered: Counter[str] = Counter()
        columns = [column.tolist() for column in (batch.index, batch.steps, batch.times, batch.values)]
        tags = [self._escape(series.tag) for series in batch.series]
        for start, stop in batch.rows():
            position = int(batch.positions[start])
            if position <= self._taken:
                continue  # a second try, after an error further on
            options = batch.options.get(position, {})
            *earlier, last = split_row(tags, *(column[start:stop] for column in columns))
            for part in earlier:
                self._commit(part, None, altered)
            self._commit(last, position, altered, hold=options.get("commit") is False)
            altered.update(dict.fromkeys(unused_options(options), stop - start))
        return Written(len(batch), altered)

    def write_text(self, text: Text) -> Written:
        """Log the text as a string, in a row of its own."""
        altered: Counter[str] = Counter()
        if text.position > self._taken:
            clean = without_surrogates(text.text)
            if clean != text.text:
                altered["lone surrogates are escaped"] = 1
            row = {self._escape(text.tag): clean, STEP: text.step, TIME: text.time / 1e9}
            self._commit(row, text.position, altered, hold=text.options.get("commit") is False)
            altered.update(unused_options(text.options))
        return Written(1, altered)

    def write_media(self, media: Media) -> Written:
        """Log media as W&B's own objects; files of any kind become an artifact."""
        altered: Counter[str] = Counter()
        if media.position <= self._taken:
            return Written(1)
        try:
            value = as_value(media)
            artifact = as_artifact(media) if value is None else None
        except (wandb.Error, TypeError, ValueError) as error:
            return Written(0, rejected={f"W&B refuses the {media.kind}: {error!s:.200}": [0]})
        if artifact is not None:
            if media.kind is not MediaKind.ARTIFACT:
                altered[f"{media.kind.plural}: an artifact"] = 1
            self._opened.log_artifact(artifact)
            self._release()
            self._store({STEP: media.step, TIME: media.time / 1e9}, media.position)
            self._taken = media.position
        else:
            name = self._escape(media.tag)
            if media.kind is MediaKind.TABLE:
                name = TABLE_NAMES.escape(name)
            row = {name: value, STEP: media.step, TIME: media.time / 1e9}
            self._commit(row, media.position, altered, hold=media.options.get("commit") is False)
        altered.update(unused_options(media.options))
        return Written(1, altered)

    def write_config(self, config: Config) -> Written:
        """Update the run's config; what JSON or W&B can't take as it is becomes text."""
        written = Written(1)
        try:
            values = {CONFIG_NAMES.escape(key): config_value(v) for key, v in config.values.items()}
            kept: Any = self._opened.config
            kept.update(values, allow_val_change=True)
            if values != config.values:
                written = Written(1, {"config keys or values W&B can't store are escaped or text": 1})
        except RecursionError:
            written = Written(0, rejected={"config nested too deep for W&B": [0]})
        self._taken = max(self._taken, config.position)
        return written

    def confirm(self, *, flush: bool = False) -> int:
        """What is in the `.wandb` file. W&B has no call to flush it, but does so every 250 ms."""
        if self._file is None:  # as the user set it: no file, so nothing to wait for
            return self._complete
        if flush and not self._ended:
            self._release()
            if self._taken > self._complete:  # a config came last, which carries no position
                self._store({}, self._taken)
        self._read_until(lambda: self._stored >= self._complete, self._file, _FLUSH_TIMEOUT if flush else 0)
        return self._stored

    def _commit(
        self, row: dict[str, Any], position: int | None, altered: Counter[str], *, hold: bool = False
    ) -> None:
        """Log a row, or hold it back, together with one held back before.

        Args:
            row: Names and values, step and time included.
            position: What is complete with it; None if more of the same position follows.
            altered: Takes what could not be joined.
            hold: Keep it for the next row to join.
        """
        if self._held is not None:
            shared = self._held.keys() & row.keys() - {STEP, TIME}
            if shared or self._held[STEP] != row[STEP]:
                altered["commit=False row of another step or with the same name, stored as its own row"] += (
                    len(self._held) - 2
                )
                self._release()
            else:
                row = {**self._held, **row}
        if hold:
            self._held = row
        else:
            self._store(row, position)
            self._held = None
        if position is not None:
            self._taken = position

    def _release(self) -> None:
        if self._held is not None:
            self._store(self._held, self._taken)
            self._held = None

    def _store(self, row: dict[str, Any], position: int | None) -> None:
        if position is None:
            position = self._complete
        self._log({**row, POSITION: position})
        self._complete = position

    def _read_until(self, done: Callable[[], bool], file: WandbFile, timeout: float) -> None:
        """Follow the file until it holds what it should, for `timeout` seconds at most."""
        deadline = time.monotonic() + timeout
        self._read_new(file)
        while not (self._ended or done()) and time.monotonic() < deadline:
            time.sleep(0.02)
            self._read_new(file)

    def _read_new(self, file: WandbFile) -> None:
        marked = []
        ending: deque[bytes] = deque(maxlen=8)  # the exit record is among the file's last
        for payload in file.payloads():
            ending.append(payload)
            if POSITION.encode() in payload:
                marked.append(payload)
        for payload in reversed(marked):
            position = _position_in(payload)
            if position is not None:
                self._stored = max(self._stored, position)
                break
        if any(parse(payload).WhichOneof("record_type") == "exit" for payload in ending):
            self._ended = True
            self._stored = self._complete if self._held else self._taken

    def state(self) -> Mapping[str, Any]:
        """Which run and folder a later start finds."""
        if self._run is None:
            return {}
        directory = self._run.settings.sync_dir
        return {"id": self._run.id, "directory": directory, "adopted": self._adopted}

    def finish(self, status: RunStatus) -> None:
        """Finish the run: `failed` and `killed` show as failed, with exit code 1 and 255.

        Online this waits for the upload; W&B's setting `finish_timeout` bounds it.
        """
        if self._run is None:
            return
        self._release()
        try:
            code = _EXIT_CODES.get(status, 0) if self._exit_code is None else self._exit_code
            self._close(exit_code=code)
        finally:
            _own_runs.discard(self._run)
        self._complete = self._taken
        if self._file is not None:  # which W&B closes a little after `finish` has returned
            self._read_until(lambda: False, self._file, _CLOSE_TIMEOUT)

    def _end_delivery(self, exit_code: int | None) -> None:
        """Before the run is finished natively: deliver what is recorded by then, and close it from here."""
        session = process().session
        follower = session.followers.get(self.name) if session and session.in_this_process else None
        if follower is None or follower.tracker is not self or follower.ending:
            return
        self._exit_code = exit_code
        follower.end(_STATUSES.get(exit_code or 0, RunStatus.FAILED))
        while not (follower.done.wait(_POLL) or follower.stuck()):
            pass

    @property
    def _opened(self) -> wandb.Run:
        if self._run is None:
            raise NotStarted("the W&B run has not been started yet")
        return self._run

    @property
    def native(self) -> wandb.Run:
        """The `wandb.Run`. Its `log` stores `step=` in the field `training/step`."""
        return self._opened

    @property
    def handle(self) -> WandbHandle:
        """The run with Accelerate's words: `log`, `log_images`, `log_table`, `run`, `tracker`."""
        return WandbHandle(self._opened, self._escape)

    def _escape(self, tag: str) -> str:
        escaped = self._escaped.get(tag)
        if escaped is None:
            escaped = self._escaped[tag] = self.names.escape(tag)
        return escaped


class WandbMetricExporter(TrackerMetricExporter):
    """An OpenTelemetry `MetricExporter` that logs to a W&B run."""

    tracker = WandbTracker


class WandbSpanExporter(TrackerSpanExporter):
    """An OpenTelemetry `SpanExporter` that logs spans' durations to a W&B run."""

    tracker = WandbTracker


class WandbLogExporter(TrackerLogExporter):
    """An OpenTelemetry `LogRecordExporter` that logs log records as texts to a W&B run."""

    tracker = WandbTracker


def _position_in(payload: bytes) -> int | None:
    """The position of a history row, if the record is one of ours."""
    for item in parse(payload).history.item:
        if item.key == POSITION or list(item.nested_key) == [POSITION]:
            return int(parse_value(item.value_json))
    return None
