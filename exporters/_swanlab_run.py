"""Opening and closing a SwanLab run, and writing records into it with times of their own.

`swanlab.init` installs an excepthook, and at the end sets back what it found, whoever has come in between;
both are undone here. `swanlab.Run` has no call that takes a time: records go to the writer that a run itself
gives them to (`run._core`), which is no public name. `RecordWriter` is all that knows it.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import swanlab
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]
from swanlab.proto.swanlab.metric.column.v1.column_pb2 import ColumnType
from swanlab.proto.swanlab.metric.data.v1.data_pb2 import (
    MediaItem,
    MediaRecord,
    MediaValue,
    ScalarRecord,
    ScalarValue,
)
from swanlab.sdk.internal.pkg import adapter

from otel_tracking.errors import ConfigurationError
from otel_tracking.names import NameRule
from otel_tracking.records import RunInfo
from otel_tracking_exporters._servers import require_answer

PROJECTS: Final = NameRule(forbidden=r"^0-9a-zA-Z_\-+.", max_length=100)
_IDS: Final = NameRule(forbidden=r"\x00-\x1f\x7f<>:\"/\\|?*#%", max_length=200)
_TEXTS: Final = NameRule(forbidden=r"\x00-\x1f\x7f", max_length=512)
_CALLS: Final = ("upsert_columns", "upsert_scalars", "upsert_media", "upsert_logs", "upsert_saves")
_PROBES: Final = ("hardware", "runtime", "requirements", "conda", "git", "swanlab", "monitor")

_init_lock: Final = threading.Lock()


@contextlib.contextmanager
def hooks_kept() -> Iterator[None]:
    """Whatever SwanLab does inside: the excepthook and the handler of Ctrl-C are the same afterwards."""
    hook, handler = sys.excepthook, signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        sys.excepthook = hook
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _no_excepthook() -> Iterator[None]:
    """The excepthook that a run installs does nothing of its own.

    The main thread may die of an exception while another one opens a run: SwanLab's hook would end it there,
    before anything has been delivered.
    """

    def pass_on(self: Any, *error: Any) -> None:
        self._sys_origin_excepthook(*error)

    known = vars(swanlab.Run).get("_handle_except")
    if known is None:  # SwanLab has another way; what it has installed is undone afterwards
        yield
        return
    swanlab.Run._handle_except = pass_on
    try:
        yield
    finally:
        swanlab.Run._handle_except = known


def open_run(run: RunInfo, own: Callable[[swanlab.Run], bool]) -> tuple[swanlab.Run, bool]:
    """The run, and whether it was active already, and is the user's.

    Args:
        run: What to open.
        own: Whether an active run is one of this module's, of an earlier run.

    Raises:
        ConfigurationError: SwanLab refuses an argument, or there is no login.
    """
    with _init_lock, hooks_kept():
        if swanlab.has_run():
            active = swanlab.get_run()
            if not own(active):
                return active, True
        arguments = _arguments(run)
        settings = arguments["settings"]
        if isinstance(settings, swanlab.Settings) and arguments.get("mode", settings.mode) == "online":
            arguments.setdefault("resume", "allow")  # with an id, SwanLab asks for it there
            require_answer(settings.api_host, "SwanLab")
        try:
            with _no_excepthook():
                return swanlab.init(**arguments), False
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"swanlab.init refused its arguments: {error!s:.500}") from error


def _arguments(run: RunInfo) -> dict[str, Any]:
    options = dict(run.options)
    for old, new in (("experiment_name", "name"), ("logdir", "log_dir")):  # SwanLab's earlier words
        if old in options:
            options.setdefault(new, options.pop(old))
    arguments: dict[str, Any] = {
        "project": PROJECTS.escape(run.project),
        "name": _TEXTS.escape(run.name),
        "id": _IDS.escape(run.run_id + (f"-rank{run.rank.rank}" if run.group else "")),
        "log_dir": str(run.directory / "swanlog"),
        **({"group": _TEXTS.escape(run.group)} if run.group else {}),
        **options,
    }
    arguments.setdefault("settings", _quiet_settings())
    return arguments


def _quiet_settings() -> swanlab.Settings:
    """Nothing is asked, nobody's output is captured; what the user's environment says otherwise, holds."""
    settings = swanlab.Settings()
    given = settings.model_fields_set
    wanted: dict[str, Any] = {
        "interactive": False,
        "terminal": {"proxy_type": "none"},
        "probe": dict.fromkeys(_PROBES, False),
    }
    return swanlab.Settings(**{name: value for name, value in wanted.items() if name not in given})


def timestamp(time_ns: int) -> Timestamp:
    """A time as records hold it."""
    made = Timestamp()
    made.FromNanoseconds(time_ns)
    return made


class RecordWriter:
    """Writes records to a run's file, and has them uploaded if the run is online. From one thread at a time.

    The run's own calls write from a thread of SwanLab's: a lock goes around both.
    """

    def __init__(self, run: swanlab.Run) -> None:
        core: Any = getattr(run, "_core", None)
        if core is None or not all(hasattr(core, name) for name in _CALLS):
            raise ConfigurationError(
                f"swanlab {swanlab.__version__} has no record writer that is known here; "
                "install a version that the extra 'otel-tracking[swanlab]' names"
            )
        self._core = core
        self._run = run
        lock = threading.RLock()
        for name in _CALLS:
            setattr(core, name, _locked(getattr(core, name), lock))
        self._lock = lock

    def scalars(self, rows: Sequence[tuple[str, int, float, int]]) -> None:
        """Write (key, step, value, nanoseconds since the epoch)."""
        self._core.upsert_scalars(
            [
                ScalarRecord(
                    key=key,
                    step=step,
                    type=ColumnType.COLUMN_TYPE_SCALAR,
                    timestamp=timestamp(time_ns),
                    value=ScalarValue(number=value),
                )
                for key, step, value, time_ns in rows
            ]
        )

    def media(
        self, key: str, step: int, time_ns: int, type_: int, items: Sequence[tuple[str, str, bytes, str]]
    ) -> None:
        """Write files (name, SHA-256, content, caption) of one key and step.

        Raises:
            OSError: A file can't be written.
        """
        folder = Path(self._run.dir) / "media" / adapter.medium[type_]
        folder.mkdir(parents=True, exist_ok=True)
        for name, _, content, _ in items:
            (folder / name).write_bytes(content)
        known = [
            MediaItem(filename=name, sha256=sha256, size=len(content), caption=caption)
            for name, sha256, content, caption in items
        ]
        self._core.upsert_media(
            [
                MediaRecord(
                    key=key,
                    step=step,
                    type=type_,
                    timestamp=timestamp(time_ns),
                    value=MediaValue(items=known),
                )
            ]
        )

    def flush(self) -> None:
        """Have the operating system take what is buffered.

        Raises:
            OSError: It can't be written.
        """
        store: Any = getattr(self._core, "_store", None)
        if hasattr(store, "ensure_flushed"):
            with self._lock:
                store.ensure_flushed()


def _locked(call: Callable[..., Any], lock: threading.RLock) -> Callable[..., Any]:
    @functools.wraps(call)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return call(*args, **kwargs)

    return locked


def retire(directory: Path, known: Mapping[str, Any]) -> None:
    """Move folders of earlier starts, which SwanLab can't go on in, out of the way."""
    folders = sorted((directory / "swanlog").glob("run-*"))
    if known.get("directory"):
        named = Path(known["directory"])
        if named.parent != directory / "swanlog" and named.is_dir():
            folders.append(named)
    place = directory / "swanlab-retired"
    for folder in folders:
        place.mkdir(exist_ok=True)
        number = sum(1 for _ in place.iterdir())
        folder.rename(place / f"{folder.name}.{number}")
