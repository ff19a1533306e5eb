"""torch's `SummaryWriter`, writing into the run's event file. Imported at its first use: torch is large."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams

from otel_tracking.names import NameRule
from otel_tracking_exporters._tensorboard_file import EventFile
from otel_tracking_exporters._tensorboard_summaries import Charts, is_layout

# Sub-runs are directories: a name may nest (`a/b`), but neither climb (`..`) nor start anew (`/etc`).
_SUB_RUN = NameRule(forbidden=r"\x00\\", forbidden_parts=r"^/|(?:(?<=/)|^)\.(?=\.(?:/|\Z))")


class RunWriter(SummaryWriter):
    """A `SummaryWriter` of a run: the same words, the run's own file.

    Methods that take `global_step=` take `step=` as well. `close` flushes; the file is the
    tracker's to close. Events are in the file when a call returns.

    Args:
        file: The run's event file.
        charts: The layout of charts that a native one becomes part of.
    """

    def __init__(self, file: EventFile, charts: Charts) -> None:
        self._run_writer = _RunFileWriter(_EventWriter(file, charts))
        super().__init__(log_dir=str(file.path.parent))

    def _get_file_writer(self) -> FileWriter:
        # torch annotates neither attribute; both are None after `close`.
        if self.all_writers is None:
            self.file_writer = self._run_writer  # type: ignore[assignment]
            self.all_writers = {self.log_dir: self._run_writer}  # type: ignore[assignment]
        return self._run_writer

    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: Mapping[str, Any],
        global_step: int | None = None,
        walltime: float | None = None,
    ) -> None:
        """As torch's, a sub-run for each key; a key can't name a directory outside the run."""
        shielded = {_SUB_RUN.escape(tag): value for tag, value in tag_scalar_dict.items()}
        super().add_scalars(main_tag, shielded, global_step, walltime)

    def add_hparams(
        self,
        hparam_dict: dict[str, Any],
        metric_dict: dict[str, Any],
        hparam_domain_discrete: dict[str, list[Any]] | None = None,
        run_name: str | None = None,
        global_step: int | None = None,
    ) -> None:
        """Hyperparameters and metrics of this run; of a sub-run only if `run_name` is given."""
        if run_name:
            super().add_hparams(
                hparam_dict, metric_dict, hparam_domain_discrete, _SUB_RUN.escape(run_name), global_step
            )
            return
        # The experiment summary would hide the hyperparameters of every other run in the tab;
        # without one TensorBoard collects them from all runs.
        _, start, end = hparams(  # type: ignore[no-untyped-call]
            hparam_dict, metric_dict, hparam_domain_discrete
        )
        writer = self._get_file_writer()
        writer.add_summary(start, global_step)
        writer.add_summary(end, global_step)
        for tag, value in metric_dict.items():
            self.add_scalar(tag, value, global_step)

    @staticmethod
    def _encode(rawstr: str) -> str:
        encoded: str = SummaryWriter._encode(_SUB_RUN.escape(rawstr))  # type: ignore[no-untyped-call]
        return encoded


class _EventWriter:
    """Stands where torch has tensorboard's `EventFileWriter`."""

    def __init__(self, file: EventFile, charts: Charts) -> None:
        self._file = file
        self._charts = charts

    def get_logdir(self) -> str:
        return str(self._file.path.parent)

    def add_event(self, event: Event) -> None:
        with self._file.lock:
            for value in event.summary.value:
                if is_layout(value):
                    self._charts.adopt(value)
                    value.CopyFrom(self._charts.value())
                    self._charts.stored_at = self._file.size
            self._file.append_event(event)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """The file is the tracker's to close."""

    def reopen(self) -> None:
        """Nothing was closed."""


class _RunFileWriter(FileWriter):
    """torch's `FileWriter` without the file and the thread that its constructor makes."""

    def __init__(self, events: _EventWriter) -> None:
        self.event_writer = events


def _taking_step(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, step: int | None = None, **kwargs: Any) -> Any:
        if step is not None:
            kwargs["global_step"] = step
        return method(*args, **kwargs)

    return call


for _name, _method in inspect.getmembers(RunWriter, inspect.isfunction):
    if "global_step" in inspect.signature(_method).parameters:
        setattr(RunWriter, _name, _taking_step(_method))
