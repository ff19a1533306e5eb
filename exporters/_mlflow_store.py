"""Where a run goes: the options, the store they name, the experiment, and what its errors mean."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import mlflow
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _initialize_tables

from otel_tracking.errors import ConfigurationError, Retry
from otel_tracking.names import NameRule
from otel_tracking.records import RunInfo
from otel_tracking_exporters._locks import locked
from otel_tracking_exporters._servers import require_answer

_PERMANENT = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}
_SQLITE = "sqlite:///"
_DRAFT = ".new"
_CREDENTIALS = re.compile(r"://[^/\s]*@")
_EXPERIMENT_NAMES = NameRule(forbidden=r"\x00", max_length=500)


@dataclass(frozen=True, slots=True)
class Options:
    """`init_kwargs["mlflow"]`: what Accelerate's tracker takes, and where to store.

    What is not given is looked up in MLflow's own variables (`MLFLOW_EXPERIMENT_NAME`, ...).
    """

    experiment_name: str | None = None
    experiment_id: str | None = None
    logging_dir: str | None = None
    """A folder of its own for local runs (`local_store` says which files); with a tracking URI it is
    where the experiment keeps its artifacts, as in Accelerate."""
    artifact_location: str | None = None
    local_dir: str | None = None
    """As `logging_dir`, but nothing to a store that a tracking URI names."""
    run_id: str | None = None
    """An MLflow run to go on with."""
    run_name: str | None = None
    tags: Mapping[str, Any] | None = None
    nested_run: bool = False
    """Make the run a child of the fluent run that is active in the thread that made the tracker."""
    description: str | None = None
    tracking_uri: str | None = None
    traces: bool = True
    """Whether spans become traces."""

    @classmethod
    def parse(cls, given: Mapping[str, Any], env: Mapping[str, str]) -> Options:
        """Options as given, completed from the environment.

        Raises:
            ConfigurationError: An option is unknown, or `tags` is no mapping.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ConfigurationError(f"mlflow has no option {name!r}.{hint} Known: {', '.join(known)}.")
        found: dict[str, Any] = {
            name: env[variable]
            for name in ("experiment_name", "experiment_id", "run_id", "tags", "nested_run")
            if env.get(variable := f"MLFLOW_{name.upper()}")
        }
        found |= {
            name: os.fspath(value) if isinstance(value, os.PathLike) else value
            for name, value in given.items()
            if value is not None
        }
        if isinstance(found.get("nested_run"), str):
            found["nested_run"] = found["nested_run"].lower() in ("1", "true", "yes", "on", "y", "t")
        if isinstance(found.get("tags"), str):
            try:
                found["tags"] = json.loads(found["tags"])
            except ValueError as error:
                raise ConfigurationError(f"mlflow's tags are no JSON: {found['tags']!r} ({error})") from error
        if not isinstance(found.get("tags", {}), Mapping):
            raise ConfigurationError(f"mlflow's tags must be a mapping, not {found['tags']!r}")
        for name in ("experiment_id", "run_id"):
            if name in found:
                found[name] = str(found[name])
        return cls(**found)


def place(options: Options, run: RunInfo) -> tuple[str, str | None]:
    """The tracking URI, and where a new experiment's artifacts go (None: what MLflow chooses).

    The option `tracking_uri`, else what the user set (`MLFLOW_TRACKING_URI`, `mlflow.set_tracking_uri`),
    else a database in the folder `logging_dir`, or `local_dir`, by default the run's own.
    """
    # mlflow has types, but not on this function.
    is_set = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    uri = options.tracking_uri or (mlflow.get_tracking_uri() if is_set else None)
    if uri:
        location = options.artifact_location or options.logging_dir
    else:
        uri, local = local_store(Path(options.logging_dir or options.local_dir or run.logging_dir))
        location = options.artifact_location or local
    if location and "://" not in location:
        location = Path(location).resolve().as_uri()
    return uri, location


def local_store(folder: Path) -> tuple[str, str]:
    """The database and the artifacts' place of a local folder.

    Both lie in it, as `mlflow.db` and `mlartifacts`: `mlflow ui` started in the folder shows them. A
    folder `mlruns` is where MLflow itself keeps artifacts, with the database beside it, so there
    `mlflow ui` is started, as ever, next to `mlruns`.
    """
    folder = folder.resolve()
    beside = folder.name == "mlruns"
    database = (folder.parent if beside else folder) / "mlflow.db"
    artifacts = folder if beside else folder / "mlartifacts"
    # SQLAlchemy reads `?` and `%` of a path as its own.
    path = str(database).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}", artifacts.as_uri()


def connect(uri: str) -> MlflowClient:
    """A client of that store. A new sqlite database gets its tables here, by one process at a time."""
    require_answer(uri, "MLflow")
    log = logging.getLogger("mlflow.store.db.utils")
    level = log.level
    path = _database(uri)
    with contextlib.ExitStack() as alone:
        # Two ranks that create the tables at once break them.
        if path is not None and alone.enter_context(locked(path.parent)):
            _remove_drafts(path)
        # Two lines at INFO for each new database.
        log.setLevel(max(level, logging.WARNING))
        try:
            if path is not None:
                _make_database(path)
            return MlflowClient(tracking_uri=uri)
        except MlflowException as error:
            if is_permanent(error):
                raise ConfigurationError(
                    f"mlflow can't use {public(uri)}: {public(error.message)}"
                ) from error
            raise Retry(public(error.message)) from error
        finally:
            log.setLevel(level)


def _make_database(path: Path) -> None:
    """Make a new sqlite database under another name first: MLflow can't use one that is half made."""
    if path.exists():
        return
    draft = path.with_name(f"{path.name}.{os.getpid()}{_DRAFT}")
    draft.unlink(missing_ok=True)
    try:
        engine = sqlalchemy.create_engine(f"{_SQLITE}{quote(str(draft), safe='/')}")
        try:
            _initialize_tables(engine)  # type: ignore[no-untyped-call]  # as the store itself does
        finally:
            engine.dispose()
        draft.rename(path)
    except (OSError, sqlalchemy.exc.SQLAlchemyError) as error:
        draft.unlink(missing_ok=True)
        raise Retry(f"the database {path} can't be made: {error}") from error


def _remove_drafts(path: Path) -> None:
    """Remove what processes left that were killed while they made the database, sqlite's journal included."""
    ours = re.compile(rf"{re.escape(path.name)}\.\d+{re.escape(_DRAFT)}(-journal)?")
    with contextlib.suppress(OSError):
        for other in path.parent.iterdir():
            if ours.fullmatch(other.name):
                other.unlink()


def _database(uri: str) -> Path | None:
    """The file of an sqlite database's URI; None of another store, or where the URI has options."""
    if not uri.startswith(_SQLITE) or "?" in uri:
        return None
    return Path(unquote(uri.removeprefix(_SQLITE)))


def experiment(client: MlflowClient, options: Options, project: str, location: str | None) -> str:
    """The id of the experiment the options name, else of the project's, made where it is missing.

    Raises:
        ConfigurationError: It was deleted, or an id is given that doesn't exist.
    """
    with retrying():
        if options.experiment_id:
            try:
                found: Experiment | None = client.get_experiment(options.experiment_id)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise ConfigurationError(error.message) from error
                raise
        else:
            name = _EXPERIMENT_NAMES.escape(options.experiment_name or project)
            found = client.get_experiment_by_name(name)
            if found is None:
                try:
                    return str(client.create_experiment(name, artifact_location=location))
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                found = client.get_experiment_by_name(name)  # another rank was faster
    if found is None:
        raise Retry(f"the MLflow experiment {name!r} exists, but is not found")
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise ConfigurationError(
            f"the MLflow experiment {found.name!r} has been deleted. Restore it "
            f"(`mlflow experiments restore -x {found.experiment_id}`) or name another: "
            "init_kwargs={'mlflow': {'experiment_name': ...}}."
        )
    return str(found.experiment_id)


@contextlib.contextmanager
def retrying() -> Iterator[None]:
    """Turn MLflow's errors into `Retry`, except those that would be the same again."""
    try:
        yield
    except MlflowException as error:
        if is_permanent(error):
            raise
        raise Retry(f"{error.error_code}: {public(error.message[:500])}") from error


def is_permanent(error: MlflowException) -> bool:
    """Whether a request fails because of what it says, so that it would fail again."""
    return error.error_code in _PERMANENT


def public(text: str) -> str:
    """The text with the user and password left out of every URI in it."""
    return _CREDENTIALS.sub("://", text)
