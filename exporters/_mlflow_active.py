"""Our run as MLflow's active one, for a thread that uses fluent calls (`mlflow.pytorch.log_model`)."""

from __future__ import annotations

import logging
from typing import Final

import mlflow

_log: Final = logging.getLogger(__name__)


class ActiveRun:
    """Makes a run the active one of the thread that asks, and lets go of it there.

    A thread with an active run of its own keeps that one. Where no tracking URI is set, ours is until then.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self._uri = uri
        self._run_id = run_id
        self._uri_is_ours = False

    def enter(self) -> None:
        """Make it active in this thread, unless another one is, or MLflow works with another store."""
        if mlflow.active_run() is not None:
            return
        if not mlflow.is_tracking_uri_set():  # type: ignore[no-untyped-call]  # as in _mlflow_store
            mlflow.set_tracking_uri(self._uri)
            self._uri_is_ours = True
        elif mlflow.get_tracking_uri() != self._uri:
            _log.warning("MLflow's tracking URI is another store's: its fluent calls do not go into this run")
            return
        mlflow.start_run(run_id=self._run_id, log_system_metrics=False)

    def leave(self) -> None:
        """Let go of it in this thread. Its status is set when the run ends."""
        active = mlflow.active_run()
        if active is not None and active.info.run_id == self._run_id:
            mlflow.end_run("RUNNING")
        if self._uri_is_ours and mlflow.get_tracking_uri() == self._uri:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # as MLflow itself resets it
        self._uri_is_ours = False
