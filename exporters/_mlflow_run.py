"""What users get of the run: MLflow's own words, and those of Accelerate's tracker."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, RunData, RunInfo, RunTag

from otel_tracking_exporters._mlflow_params import NAMES, param_requests, parameters


class MLflowRun:
    """One MLflow run, for any thread.

    Has what an `mlflow.ActiveRun` has (`info`, `data`) and every word of `MlflowClient` that takes a
    run id first, with this run's id given: `log_artifact(path)`, `log_text(text, file)`,
    `log_figure`, `log_image`, `log_table`, `log_dict`, `set_tag`, `get_metric_history(key)`, ...
    What is written here goes to MLflow at once and is not part of the journal.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id

    @property
    def info(self) -> RunInfo:
        """Id, name, status, times and artifact URI, read from the store."""
        return self.client.get_run(self.run_id).info

    @property
    def data(self) -> RunData:
        """Latest metrics, params and tags, read from the store."""
        return self.client.get_run(self.run_id).data

    def log_metric(
        self, key: str, value: float, step: int | None = None, *, global_step: int | None = None
    ) -> None:
        """Write one value now, as `mlflow.log_metric` does."""
        self.log_metrics({key: value}, step, global_step=global_step)

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int | None = None,
        timestamp: int | None = None,
        *,
        global_step: int | None = None,
    ) -> None:
        """Write values now, as `mlflow.log_metrics` does.

        Args:
            metrics: Values by name.
            step: The step they belong to, 0 if not given.
            timestamp: Milliseconds since the epoch, by default now.
            global_step: Another word for `step`.
        """
        milliseconds = time.time_ns() // 1_000_000 if timestamp is None else timestamp
        at = next((s for s in (step, global_step) if s is not None), 0)
        self.client.log_batch(
            self.run_id,
            metrics=[Metric(key, float(value), milliseconds, at) for key, value in metrics.items()],
            synchronous=True,
        )

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Write parameters now; nested ones become `outer/inner`."""
        for part in param_requests(parameters(params)[0]):
            self.client.log_batch(self.run_id, params=part, synchronous=True)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags now."""
        self.client.log_batch(
            self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()], synchronous=True
        )

    def __getattr__(self, name: str) -> Any:
        if name not in _words():
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return functools.partial(getattr(self.client, name), self.run_id)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_words()})

    def __repr__(self) -> str:
        return f"MLflowRun({self.run_id!r} at {self.client.tracking_uri!r})"


class MLflowHandle:
    """The words of Accelerate's MLflow tracker, for our run."""

    name = "mlflow"

    def __init__(self, run: MLflowRun) -> None:
        self.tracker = run
        self.run = run

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Write parameters now."""
        self.run.log_params(values)

    def log(self, values: Mapping[str, float], step: int | None = None, **kwargs: Any) -> None:
        """Write values now, past the journal; `Tracking.log` is what reaches every tracker."""
        self.run.log_metrics(values, step, **kwargs)

    def log_images(self, values: Mapping[str, Sequence[Any]], step: int | None = None, **kwargs: Any) -> None:
        """Write lists of images (arrays, PIL images, `mlflow.Image`) by name."""
        for name, images in values.items():
            for image in images:
                self.run.log_image(image, key=NAMES.escape(name), step=step or 0, **kwargs)

    def log_figure(self, figure: Any, artifact_file: str, **save_kwargs: Any) -> None:
        """Write a matplotlib or plotly figure to a file among the artifacts."""
        self.run.log_figure(figure, artifact_file, **save_kwargs)

    def log_artifact(self, local_path: str, artifact_path: str | None = None) -> None:
        """Copy a file to the artifacts."""
        self.run.log_artifact(local_path, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Copy what a directory holds to the artifacts."""
        self.run.log_artifacts(local_dir, artifact_path)


@functools.cache
def _words() -> frozenset[str]:
    """The public methods of `MlflowClient` that take a run id first."""
    return frozenset(
        name
        for name, method in inspect.getmembers(MlflowClient, inspect.isfunction)
        if not name.startswith("_") and list(inspect.signature(method).parameters)[1:2] == ["run_id"]
    )
