"""Hugging Face Accelerate: its `Accelerator` with our tracking, or our tracking in its `Accelerator`.

With only the import changed, a script's trackers are this project's::

    from otel_tracking.integrations.accelerate import Accelerator

    accelerator = Accelerator(log_with=["tensorboard", "wandb"], project_dir="outputs")

Or its own `Accelerator`, with all of ours as one tracker named `otel`::

    import otel_tracking.integrations.accelerate
    accelerator = accelerate.Accelerator(log_with="otel")
    options = {"log_with": ["tensorboard"], "project_dir": "outputs"}
    accelerator.init_trackers("bert", init_kwargs={"otel": options})
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import accelerate
from accelerate import tracking as upstream
from accelerate.utils import LoggerType

from otel_tracking import discovery, settings
from otel_tracking.media.recording import MediaCalls, MediaRecorder
from otel_tracking.tracking import Tracking

_IDENTITY: Final = "otel_tracking.json"
"""The file of a checkpoint that says which run it belongs to."""
_UPSTREAM: Final = inspect.signature(accelerate.Accelerator.__init__)


class Accelerator(MediaCalls, accelerate.Accelerator):
    """Accelerate's `Accelerator`; what tracks goes through `Tracking`.

    Everything else is Accelerate's: `prepare`, `backward`, `gather`, `save_state`, ... A checkpoint of
    `save_state` has the run's identity too, in a file of its own; `load_state` of one goes on with that run.

    Args:
        *args: As `accelerate.Accelerator` takes them.
        tracking: Keywords for `otel_tracking.Tracking`: `ranks`, `delivery`, `fsync`, `run_id`, ...
        **kwargs: As `accelerate.Accelerator` takes them. `log_with` is what `Tracking` takes, a `LoggerType`
            of Accelerate's, or a name that its `register_tracker_class` was told; None is what
            OTEL_TRACKING_LOG_WITH names.

    Attributes:
        tracking: The `Tracking`; its `receipt()` says what arrived where.
    """

    def __init__(self, *args: Any, tracking: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        arguments = _UPSTREAM.bind(self, *args, **kwargs).arguments
        arguments.pop("self")
        log_with = arguments.pop("log_with", None)
        super().__init__(**arguments)
        given = {"project_dir": self.project_dir, "logging_dir": self.logging_dir, **(tracking or {})}
        trackers = _trackers(log_with)
        everywhere = [t.name for t in trackers or () if getattr(t, "main_process_only", True) is False]
        if everywhere and "ranks" not in given:
            given["ranks"] = {**dict.fromkeys(everywhere, "all"), "*": "main"}
        self.tracking = Tracking(trackers, **given)
        directories = given["project_dir"], given["logging_dir"], settings.PROJECT_DIR.get()
        self._has_directory = any(directory for directory in directories)
        self._begun = self._had_run = False
        self.register_save_state_pre_hook(self._save_identity)
        self.register_load_state_pre_hook(self._load_identity)

    @property
    def trackers(self) -> list[Any]:
        """What `get_tracker` returns, of each tracker that this process has; empty before `init_trackers`.

        After `end_training` they are still those of that run, as upstream.
        """
        return [self.tracking.get_tracker(name) for name in self._names()] if self._had_run else []

    @trackers.setter
    def trackers(self, value: list[Any]) -> None:
        """Upstream's constructor sets an empty list."""

    def _names(self) -> list[str]:
        return list(self.tracking.receipt().trackers)

    def init_trackers(
        self,
        project_name: str,
        config: Any = None,
        init_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin a run: `Tracking.init_trackers`, whose other arguments are `kwargs`.

        Without a directory and a tracking URI, MLflow's runs are where upstream's are: in the working
        directory, as `mlflow ui` shows them.
        """
        if not self._has_directory:
            given = init_kwargs or {}
            local = {"local_dir": str(Path("mlruns").absolute())}
            init_kwargs = {**given, "mlflow": {**local, **given.get("mlflow", {})}}
        self.tracking.init_trackers(project_name, config, init_kwargs, **kwargs)
        self._begun = self._had_run = True

    def store_init_configuration(self, values: Any) -> None:
        """Add hyperparameters."""
        self.tracking.store_init_configuration(values)

    def log(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        log_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Record the values of one moment; nothing, as upstream, before `init_trackers`."""
        if self._begun:
            self.tracking.log(values, step=step, log_kwargs=log_kwargs)

    def log_text(self, values: Mapping[str, str], step: int | None = None) -> None:
        """Record texts by name."""
        self.tracking.log_text(values, step=step)

    def get_tracker(self, name: str, unwrap: bool = False) -> Any:
        """A tracker's own object for this run: `Tracking.get_tracker`."""
        return self.tracking.get_tracker(name, unwrap=unwrap)

    def end_training(self) -> None:
        """Deliver what is left, close the run everywhere, and leave the process group, as upstream does."""
        self.tracking.end_training()
        self._begun = False
        self.state.destroy_process_group()

    def _media_recorder(self) -> MediaRecorder:
        return self.tracking._media_recorder()

    def _save_identity(self, models: Any, weights: Any, output_dir: str) -> None:
        if self._begun and self.is_main_process:
            Path(output_dir, _IDENTITY).write_text(json.dumps(self.tracking.state_dict()), encoding="utf-8")

    def _load_identity(self, models: Any, input_dir: str) -> None:
        path = Path(input_dir, _IDENTITY)
        if path.exists():  # a checkpoint of another Accelerator has none
            self.tracking.load_state_dict(json.loads(path.read_text(encoding="utf-8")))


def _trackers(log_with: Any) -> list[Any] | None:
    if log_with is None:
        return None
    items = [log_with] if isinstance(log_with, str) or not isinstance(log_with, Iterable) else list(log_with)
    return [_registered(item.value if isinstance(item, LoggerType) else item) for item in items]


def _registered(item: Any) -> Any:
    """The class that someone registered with Accelerate under a name that is none of ours."""
    if isinstance(item, str) and item not in ("all", OtelTracker.name, *discovery.known()):
        return upstream.LOGGER_TYPE_TO_CLASS.get(item, item)
    return item


class OtelTracker(upstream.GeneralTracker):
    """All trackers of this project as one of Accelerate's, named `otel`.

    Args:
        run_name: The project's name, from `Accelerator.init_trackers`.
        log_with: As for `Tracking`; by default what OTEL_TRACKING_LOG_WITH names.
        init_kwargs: By tracker, as for `Tracking.init_trackers`.
        **kwargs: As for `Tracking`: `project_dir`, `delivery`, ...
    """

    name: ClassVar[str] = "otel"
    requires_logging_directory: ClassVar[bool] = False
    main_process_only: ClassVar[bool] = False  # each process knows by itself whether it records

    def __init__(
        self,
        run_name: str,
        *,
        log_with: Any = None,
        init_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self._project = run_name
        self._init_kwargs = init_kwargs
        self._tracking = Tracking(_trackers(log_with), **kwargs)

    def start(self) -> None:
        """Begin the run."""
        self._tracking.init_trackers(self._project, init_kwargs=self._init_kwargs)

    @property
    def tracker(self) -> Tracking:
        """The `Tracking`."""
        return self._tracking

    def store_init_configuration(self, values: Any) -> None:
        """Add hyperparameters."""
        self._tracking.store_init_configuration(values)

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record the values of one moment. `kwargs` are `log_kwargs` by tracker."""
        self._tracking.log(values, step=step, log_kwargs=kwargs or None)

    def log_images(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images."""
        self._tracking.log_images(values, step=step, log_kwargs=kwargs or None)

    def log_table(self, table_name: str, *args: Any, **kwargs: Any) -> None:
        """Record a table: `Tracking.log_table`."""
        self._tracking.log_table(table_name, *args, **kwargs)

    def finish(self) -> None:
        """End the run."""
        self._tracking.end_training()


if hasattr(upstream, "register_tracker_class"):
    upstream.register_tracker_class(OtelTracker)
else:  # before accelerate 1.14: it knows names of its own only, and takes this one as an instance
    upstream.LOGGER_TYPE_TO_CLASS[OtelTracker.name] = OtelTracker
