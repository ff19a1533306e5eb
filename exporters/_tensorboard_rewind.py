"""Going back to a step: what became void leaves a run's event files.

TensorBoard has a mark for it, `SessionLog.START`, that one of its two loaders heeds, and readers by
other hands don't. So the run goes on in a new file, which begins with a copy of what stays valid, and
what the files before it hold is moved to names that no reader of event files takes. Nothing is deleted:
they may hold events that were logged natively.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

from otel_tracking_exporters._tensorboard_events import frame, records, stamp, step_of
from otel_tracking_exporters._tensorboard_file import EventFile, event_files, first_record

REWOUND: Final = ".rewound"
"""Ends the name of a file that holds all of the run: what lies in files before it is void."""
_PIECE: Final = 2**20
_WITHOUT_STEP: Final = ("hparams", "custom_scalars")
"""Plugins whose summaries are about the whole run."""
_STEP_MIN: Final = -(2**63)


def rewind(file: EventFile, step: int, wall: float, position: int) -> None:
    """Have a run's files hold nothing of that step and later ones.

    Args:
        file: The one that grows; another file, in its place, afterwards.
        step: Events with a lower step stay.
        wall: When training went back, seconds since the epoch.
        position: That of the rewind in the journal.

    Raises:
        OSError: There is no space for the copy; all is as before.
    """
    with file.lock:
        before = event_files(file.path.parent)
        # A TensorBoard that is running forgets at the second of these what it has read till now.
        content = [frame(_restart(_STEP_MIN, wall))] * 2
        end = frame(stamp(position) + _restart(step, wall))
        file.start_anew(_chain(content, _valid(before, step), [end]), suffix=REWOUND)
    _retire(before)


def retire_void(directory: Path) -> None:
    """Finish what a killed process could not: take away what a rewind left behind."""
    files = event_files(directory)
    rewound = [number for number, path in enumerate(files) if path.name.endswith(REWOUND)]
    if rewound:
        _retire(files[: rewound[-1]])


def _retire(files: Iterable[Path]) -> None:
    for path in files:
        void = path.with_name(path.name.replace("tfevents", "void"))
        if not void.exists():
            path.rename(void)
            # A TensorBoard that is reading it would wait for it to come back, and not look at newer ones.
            path.write_bytes(first_record())


def _chain(*parts: Iterable[bytes]) -> Iterator[bytes]:
    """What the parts hold, in pieces that are worth a system call."""
    piece = bytearray()
    for part in parts:
        for data in part:
            piece += data
            if len(piece) > _PIECE:
                yield bytes(piece)
                piece.clear()
    yield bytes(piece)


def _valid(files: Iterable[Path], step: int) -> Iterator[bytes]:
    """The records that stay, as they are stored."""
    for path in files:
        if not path.stat().st_size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = 0
            for end, payload in records(data):
                if step_of(payload) < step or _has_no_step(payload):
                    yield data[start:end]
                start = end


def _has_no_step(payload: bytes) -> bool:
    """Whether an event is about the run as a whole: a graph, hyperparameters, the layout of charts."""
    event = Event.FromString(payload)
    if event.HasField("summary"):
        return any(value.metadata.plugin_data.plugin_name in _WITHOUT_STEP for value in event.summary.value)
    return not (event.HasField("session_log") or event.HasField("file_version"))


def _restart(step: int, wall: float) -> bytes:
    restart = Event(wall_time=wall, step=step, session_log=SessionLog(status=SessionLog.START))
    return bytes(restart.SerializeToString())
