"""MLflow: a database of your own (sqlite by default), a tracking server, or what `MLFLOW_TRACKING_URI` says.

Where things are stored::

    points   metrics, with step and time in milliseconds. MLflow's history of a metric is ordered by
             time, then step, then value.
    config   params, nested ones as `outer/inner`, and whole in the artifact `config.json`
    texts    artifacts, `text/<name>/<step>-<position>.txt`; MLflow has no series of texts
    spans    traces, one a root span, linked to the run; `traces=False` leaves them out
    media    artifacts: images and figures in `images/`, tables in `tables/`, where MLflow's pages show
             them, all else in a folder of its kind; of histograms the quantiles are metrics too

`init_kwargs={"mlflow": {...}}` takes what Accelerate's tracker takes (`experiment_name`, `logging_dir`,
`run_id`, `tags`, `nested_run`, `run_name`, `description`) and `experiment_id`, `artifact_location`,
`tracking_uri`, `local_dir`, `traces`; what is not given there is looked up in MLflow's own environment
variables.

Without a tracking URI all runs are in `<project_dir>/mlflow.db`, or in the folder `local_dir`::

    mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH, MAX_TAG_VAL_LENGTH

from otel_tracking.capabilities import Declaration
from otel_tracking.config import without_surrogates
from otel_tracking.errors import ConfigurationError, NotStarted, Retry
from otel_tracking.media.overlays import lost_overlays
from otel_tracking.names import NameRule
from otel_tracking.records import Batch, Config, Media, RunInfo, RunStatus, Text, Written
from otel_tracking.sdk_exporters import TrackerMetricExporter, TrackerSpanExporter
from otel_tracking.sdk_logs import TrackerLogExporter
from otel_tracking.span_records import RecordedSpan, Spans
from otel_tracking.tracker import Pacing, Tracker
from otel_tracking_exporters._mlflow_active import ActiveRun
from otel_tracking_exporters._mlflow_media import FILES, send
from otel_tracking_exporters._mlflow_params import (
    METRICS,
    NAMES,
    cut,
    json_bytes,
    param_requests,
    parameters,
    portions,
    storable,
)
from otel_tracking_exporters._mlflow_run import MLflowHandle, MLflowRun
from otel_tracking_exporters._mlflow_store import (
    Options,
    connect,
    experiment,
    is_permanent,
    place,
    public,
    retrying,
)
from otel_tracking_exporters._mlflow_times import Timestamps
from otel_tracking_exporters._mlflow_traces import send_spans
from otel_tracking_exporters._servers import require_answer
from otel_tracking_exporters.declarations import MLFLOW

_log = logging.getLogger(__name__)

_IDENTITY_TAG = "otel_tracking.run_id"
_GROUP_TAG = "otel_tracking.group"
_ERROR_TAG = "otel_tracking.error"
_RESOURCE_TAGS = ("training.rank", "training.world_size", "host.name", "service.name")

_IDENTITIES = NameRule(forbidden=r"^A-Za-z0-9.\-_", max_length=200)
_RUN_NAMES = NameRule(forbidden=r"\x00", max_length=250)

_LARGEST = sys.float_info.max
_METRIC_BYTES = 120
"""A metric in a request, without its name."""


class MLflowTracker(Tracker):
    """A run in MLflow.

    Every point is in the store when `write` returns. A point that is sent again is the same row, so
    nothing is stored twice; `Timestamps` says how equal points are kept apart all the same.
    """

    name: ClassVar[str] = "mlflow"
    declaration: ClassVar[Declaration] = MLFLOW
    exactly_once = True
    names: ClassVar[NameRule] = METRICS
    # MLflow's client would wait for a server that went away in the middle of a request for minutes, in
    # pauses of up to one; to try again is the follower's business.
    environment: ClassVar[Mapping[str, str]] = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    }
    # A point costs 42 us of CPU in requests of 1,000, 49 in 250, 75 to 100 in 100 (sqlite); the training
    # loop shares the GIL with a request of 250 for 12 ms, of 1,000 for 42 ms.
    pacing: ClassVar[Pacing] = Pacing(max_points=250)

    def __init__(self) -> None:
        active = mlflow.active_run()
        self._parent: str | None = active.info.run_id if active else None
        self._experiment_id = ""
        self._uri = ""
        self._run: MLflowRun | None = None
        self._stored = 0
        self._position = 0
        self._timestamps = Timestamps()
        self._config: dict[str, Any] | None = None
        self._warned: set[str] = set()
        self._active: ActiveRun | None = None

    def start(self, run: RunInfo) -> int:
        """Open the run, or go on with the one that was opened before or that `run_id` names.

        Raises:
            ConfigurationError: An option is wrong, or names something MLflow doesn't have.
            Retry: The store can't be reached.
        """
        options = Options.parse(run.options, os.environ)
        self.takes_spans = options.traces
        self._uri, location = place(options, run)
        client = connect(self._uri)
        experiment_id = experiment(client, options, run.project, location)
        identity = _IDENTITIES.escape(run.run_id) + (f"/rank-{run.rank.rank}" if run.group else "")
        known = run.state if run.state.get("tracking_uri") == public(self._uri) else {}
        with retrying():
            found = self._find(client, run, options, experiment_id, identity, known)
            if found is None:
                found = client.create_run(
                    experiment_id,
                    run_name=_RUN_NAMES.escape(options.run_name or run.name),
                    tags=resolve_tags({_IDENTITY_TAG: identity}),
                )
            else:
                client.update_run(found.info.run_id, status="RUNNING")
            self._run = MLflowRun(client, found.info.run_id)
            self._experiment_id = found.info.experiment_id
            self._tag(self._run, run, options, identity)
        # Of any other run we don't know what it holds; what it has already is not stored twice.
        self._stored = run.position if found.info.run_id == known.get("run_id") else 0
        self._position = self._stored
        begin = min(self._stored, int(known.get("rewind", 0)))
        self._timestamps = Timestamps(begin)
        return max(begin, 1) if self._stored else 0  # 0 would mean that nothing is stored

    def attach(self, run: RunInfo) -> None:
        """Use the run that the delivering process has opened: MLflow takes any number of writers."""
        run_id = run.state.get("run_id")
        if run_id is None:
            raise Retry("the MLflow run is not open yet")
        self._uri, _ = place(Options.parse(run.options, os.environ), run)
        self._run = MLflowRun(connect(self._uri), run_id)

    def write(self, batch: Batch) -> Written:
        """Store points as metrics.

        Those at or before the cursor only show which timestamps are taken.
        """
        names = [self.names.escape(series.tag) for series in batch.series]
        keys = [names[i] for i in batch.index.tolist()]
        steps = batch.steps.tolist()
        values = np.clip(batch.values, -_LARGEST, _LARGEST).tolist()
        wanted = np.maximum(batch.times // 1_000_000, 0).tolist()
        times = self._timestamps.assign(
            (key, step, None if value != value else value, time)
            for key, step, value, time in zip(keys, steps, values, wanted, strict=True)
        )
        first = int(np.searchsorted(batch.positions, self._stored, side="right"))
        metrics = list(map(Metric, keys, values, times, steps))[first:]
        longest = _METRIC_BYTES + max(map(json_bytes, names))
        rejected: dict[str, list[int]] = {}
        for part in portions([(metric, longest) for metric in metrics], MAX_METRICS_PER_BATCH):
            for reason, places in self._send(metrics=part).items():
                rejected.setdefault(reason, []).extend(first + place for place in places)
            first += len(part)
        self._timestamps.keep(int(batch.positions[-1]), wanted[-1])
        self._position = max(self._position, int(batch.positions[-1]))
        altered = {
            "timestamp moved by 1 ms or more": sum(map(int.__ne__, times, wanted)),
            "infinity stored as ±1.797e308": int(np.isinf(batch.values).sum()),
            "negative zero stored as zero": int(((batch.values == 0) & np.signbit(batch.values)).sum()),
            "time before 1970 stored as 1970": int((batch.times < 0).sum()),
        }
        return Written(
            len(batch) - sum(map(len, rejected.values())),
            {reason: n for reason, n in altered.items() if n},
            rejected,
        )

    def write_text(self, text: Text) -> Written:
        """Store a text as an artifact whose name says step and journal position."""
        kept = without_surrogates(text.text)
        file = f"text/{FILES.escape(text.tag)}/{text.step}-{text.position}.txt"
        refused = self._attempt(lambda run: run.client.log_text(run.run_id, kept, file))
        self._position = max(self._position, text.position)
        if refused:
            return Written(0, rejected={refused: [0]})
        return Written(1, {"lone surrogates written as escapes": 1} if kept != text.text else {})

    def write_media(self, media: Media) -> Written:
        """Store media as artifacts; images and tables where MLflow's pages show them."""
        changed: list[str] = []
        refused = self._attempt(lambda run: changed.append(send(run, media)))
        self._position = max(self._position, media.position)
        if refused:
            return Written(0, rejected={refused: [0]})
        altered = dict.fromkeys(filter(None, changed[-1:]), 1)
        return Written(1, altered | media.lost_captions | lost_overlays(media))

    def write_spans(self, spans: Spans) -> Written:
        """Store spans as traces of the run."""
        rejected = self._send_spans(spans.spans)
        self._position = max(self._position, spans.position)
        return Written(len(spans) - sum(map(len, rejected.values())), {}, rejected)

    def _send_spans(self, spans: Sequence[RecordedSpan]) -> dict[str, list[int]]:
        """By reason, the places of those that are refused. They are found by halving, as in `_send`."""
        try:
            refused = self._attempt(
                lambda run: send_spans(run.client, self._uri, self._experiment_id, run.run_id, spans)
            )
        except NotImplementedError:  # MLflow's own word for it
            return {"this MLflow store has no traces": list(range(len(spans)))}
        if not refused or len(spans) == 1:
            return {refused: [0]} if refused else {}
        half = len(spans) // 2
        found = self._send_spans(spans[:half])
        for reason, places in self._send_spans(spans[half:]).items():
            found.setdefault(reason, []).extend(half + place for place in places)
        return found

    def write_config(self, config: Config) -> Written:
        """Store hyperparameters as params, and all of them as `config.json`.

        MLflow lets no param change: the first value stays, and `config.json` has the newest.
        """
        run = self._opened()
        merged = {**self._stored_config(run), **config.values}
        whole = json.dumps(merged, indent=2, default=str)
        refused = self._attempt(lambda run: run.client.log_text(run.run_id, whole, "config.json"))
        self._config = merged
        params, altered = parameters(config.values)
        with retrying():
            existing = run.data.params
        if any(existing.get(name, value) != value for name, value in params.items()):
            altered.add("param changed; new value is in config.json")
        new = {name: value for name, value in params.items() if name not in existing}
        for part in param_requests(new):
            altered.update(f"a param is only in config.json: {why}" for why in self._send(params=part))
        self._position = max(self._position, config.position)
        if refused:
            altered.add(f"no config.json: {refused}")
        return Written(1, dict.fromkeys(altered, 1))

    def confirm(self, *, flush: bool = False) -> int:
        """All that was written: MLflow has stored it when it returns."""
        return self._position

    def state(self) -> Mapping[str, Any]:
        """Which run it is, and from where points have to be looked at again."""
        if self._run is None:
            return {}
        return {
            "tracking_uri": public(self._uri),
            "run_id": self._run.run_id,
            "rewind": self._timestamps.rewind,
        }

    def finish(self, status: RunStatus) -> None:
        """Set the run's status and end time; of a run that failed, the reason as a tag."""
        if self._run is None:
            return
        require_answer(self._uri, "MLflow")
        with retrying():
            self._note_failure(self._run)
            self._run.client.set_terminated(self._run.run_id, status.name)

    def _note_failure(self, run: MLflowRun) -> None:
        if self.failure:
            run.client.set_tag(run.run_id, _ERROR_TAG, self.failure.reason)
        elif _ERROR_TAG in run.client.get_run(run.run_id).data.tags:  # of a run that has been resumed since
            run.client.delete_tag(run.run_id, _ERROR_TAG)

    @property
    def native(self) -> MLflowRun:
        """The run, with MLflow's words."""
        return self._opened()

    def enter(self) -> None:
        """Make the run the active one of MLflow's fluent calls in this thread."""
        if self._active is None:
            self._active = ActiveRun(self._uri, self._opened().run_id)
        self._active.enter()

    def leave(self) -> None:
        """Let go of the run in MLflow's fluent calls."""
        if self._active is not None:
            self._active.leave()

    @property
    def handle(self) -> MLflowHandle:
        """The run, with the words of Accelerate's tracker."""
        return MLflowHandle(self._opened())

    def _opened(self) -> MLflowRun:
        if self._run is None:
            raise NotStarted("the MLflow run has not been opened yet")
        return self._run

    def _find(
        self,
        client: MlflowClient,
        run: RunInfo,
        options: Options,
        experiment_id: str,
        identity: str,
        known: Mapping[str, Any],
    ) -> Run | None:
        """The run to go on with: the one of the last start, the one the user names, one with our tag."""
        named = options.run_id if run.rank.is_main or not run.group else None
        for run_id in filter(None, (known.get("run_id"), named)):
            try:
                found = client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST" and not is_permanent(error):
                    raise
            else:
                if found.info.lifecycle_stage == LifecycleStage.ACTIVE:
                    return found
            if run_id == named:
                raise ConfigurationError(
                    f"MLflow has no run {run_id!r} at {public(self._uri)}, or it has been deleted. "
                    "Name another as `run_id` (or MLFLOW_RUN_ID), or none for a new run."
                )
        ours = client.search_runs([experiment_id], f"tags.`{_IDENTITY_TAG}` = '{identity}'", max_results=1)
        return ours[0] if ours else None

    def _tag(self, opened: MLflowRun, run: RunInfo, options: Options, identity: str) -> None:
        whole = {name: str(run.resource[name]) for name in _RESOURCE_TAGS if name in run.resource}
        whole |= {str(name): str(value) for name, value in (options.tags or {}).items()}
        whole[_IDENTITY_TAG] = identity
        if run.group:
            whole[_GROUP_TAG] = run.group
        if options.description:
            whole[MLFLOW_RUN_NOTE] = options.description
        if options.nested_run and self._parent and self._parent != opened.run_id:
            whole[MLFLOW_PARENT_RUN_ID] = self._parent
        kept = {
            NAMES.escape(name): cut(storable(value), MAX_TAG_VAL_LENGTH, "tags.json")
            for name, value in whole.items()
        }
        if list(kept.values()) != list(whole.values()):
            opened.client.log_text(opened.run_id, json.dumps(whole, indent=2), "tags.json")
        sized = [(RunTag(name, value), json_bytes(name) + json_bytes(value)) for name, value in kept.items()]
        for part in portions(sized, MAX_PARAMS_TAGS_PER_BATCH):
            opened.client.log_batch(opened.run_id, tags=part, synchronous=True)

    def _stored_config(self, run: MLflowRun) -> dict[str, Any]:
        """What `config.json` holds, from this start or an earlier one."""
        if self._config is not None:
            return self._config
        with retrying():
            if all(file.path != "config.json" for file in run.client.list_artifacts(run.run_id)):
                return {}
            with tempfile.TemporaryDirectory() as folder:
                path = Path(run.client.download_artifacts(run.run_id, "config.json", folder))
                try:
                    stored = json.loads(path.read_bytes())
                except ValueError:
                    return {}  # somebody else's file, in a run that was attached to
        return stored if isinstance(stored, dict) else {}

    def _attempt(self, call: Callable[[MLflowRun], object]) -> str:
        """Make a call; why MLflow refuses it for good, or nothing when it was taken."""
        run = self._opened()
        require_answer(self._uri, "MLflow")
        try:
            with retrying():
                call(run)
        except MlflowException as error:
            if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
                raise Retry("the MLflow run has been deleted; restore it and it goes on") from error
            reason = f"MLflow refuses it: {error.error_code}"
            if reason not in self._warned:
                self._warned.add(reason)
                _log.warning("MLflow refuses what it was sent: %s", public(error.message[:500]))
            return reason
        return ""

    def _send(
        self, *, metrics: Sequence[Metric] = (), params: Sequence[Param] = ()
    ) -> Mapping[str, Sequence[int]]:
        """Send one request; what MLflow refuses is found by halving, so that it takes nothing with it.

        Returns:
            By reason, the places of what is refused.
        """
        refused = self._attempt(
            lambda run: run.client.log_batch(run.run_id, metrics, params, synchronous=True)
        )
        if not refused:
            return {}
        if len(metrics) + len(params) == 1:
            return {refused: [0]}
        m, p = (len(metrics) + 1) // 2, (len(params) + 1) // 2
        found = {k: list(places) for k, places in self._send(metrics=metrics[:m], params=params[:p]).items()}
        for reason, places in self._send(metrics=metrics[m:], params=params[p:]).items():
            found.setdefault(reason, []).extend(m + p + place for place in places)
        return found


class MLflowMetricExporter(TrackerMetricExporter):
    """Writes what an SDK metric reader collects into an MLflow run."""

    tracker = MLflowTracker


class MLflowSpanExporter(TrackerSpanExporter):
    """Writes the durations of finished spans into an MLflow run."""

    tracker = MLflowTracker


class MLflowLogExporter(TrackerLogExporter):
    """Writes log records into an MLflow run, as artifacts."""

    tracker = MLflowTracker
