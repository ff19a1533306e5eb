"""Loaded by every Python process under `otel-tracking run`, before the program.

Steps aside for a `sitecustomize` of the environment's own. Most processes record nothing (package
tools, launchers, workers), so recording is prepared, and paid for, when OpenTelemetry's API or
otel_tracking is first imported. This file can be loaded by an interpreter that has neither.
"""

from __future__ import annotations

import importlib
import os
import sys

TYPE_CHECKING = False  # `typing` and `pathlib` would cost every process more than the rest of this
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_PROVIDERS = ("OTEL_PYTHON_METER_PROVIDER", "OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_LOGGER_PROVIDER")


def _install() -> None:
    try:
        from otel_tracking.launcher.bootstrap import install

        install()
    except Exception as error:  # noqa: BLE001 - the program must run, whatever is wrong here
        print(f"otel-tracking: nothing is recorded in {sys.executable}: {error}", file=sys.stderr)
        for name in _PROVIDERS:  # else OpenTelemetry would raise in the program
            if os.environ.get(name) == "otel_tracking":
                del os.environ[name]


class _Loader:
    """Loads a module by its own loader, then prepares recording, if it is the first that comes to that."""

    def __init__(self, loader: Loader, turn: list[bool]) -> None:
        self._loader = loader
        self._turn = turn

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        try:
            mine = self._turn.pop()  # threads may import several at once
        except IndexError:
            mine = False
        self._loader.exec_module(module)
        if mine:
            _install()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Finder:
    """Waits for the first module of OpenTelemetry or otel_tracking to be loaded.

    The first of any, because recording needs many of them, and none that is still being loaded.

    It stays where it is, and finds nothing any more: a thread that imports something walks along
    `sys.meta_path`, and would miss a finder if one before it were taken away meanwhile.
    """

    def __init__(self) -> None:
        self._turn = [True]

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not self._turn or not (name.startswith("opentelemetry.") or name == "otel_tracking"):
            return None
        for finder in list(sys.meta_path):
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:  # else a namespace package: wait for the next
                    spec.loader = _Loader(spec.loader, self._turn)  # type: ignore[assignment]  # it has what a loader needs
                return spec
        return None


def _load_others() -> None:
    """Import the environment's own `sitecustomize`, if it has one."""
    here = os.path.realpath(os.path.dirname(__file__))  # noqa: PTH120
    this, path = sys.modules.pop("sitecustomize"), list(sys.path)
    sys.path[:] = [entry for entry in path if os.path.realpath(entry or os.curdir) != here]
    try:
        importlib.import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        added = [entry for entry in sys.path if entry not in path]
        sys.path[:] = path + added
        sys.modules.setdefault("sitecustomize", this)


sys.meta_path.insert(0, _Finder())
_load_others()
