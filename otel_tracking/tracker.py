"""The contract that every tracker implements. It is all a new tracker has to know."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from otel_tracking.capabilities import Declaration
from otel_tracking.errors import NativeHandleUnavailable
from otel_tracking.names import NameRule
from otel_tracking.records import (
    Batch,
    Config,
    Failure,
    Media,
    Rewind,
    RunInfo,
    RunStatus,
    Text,
    Written,
)
from otel_tracking.span_records import Spans


@dataclass(frozen=True, slots=True)
class Pacing:
    """How much a tracker is given, and how often. The follower applies it."""

    max_points: int = 50_000
    """Points in one `write`, at most."""
    interval: float = 0.5
    """Seconds between looks into the journal."""


class Tracker(abc.ABC):
    """One run in one tracker.

    Threads: `start`, `write*`, `confirm`, `state` and `finish` are called by one follower thread,
    one at a time; `native` and `handle` may be read, `enter` and `leave` called, by any thread between
    `start` and `finish`.

    Order: points, texts, media and configs come in the order they were recorded, spans a little early.

    Retry: a `write*` that raises `Retry`, or anything else, is called again with the same argument
    after a backoff, so it must have taken nothing, or must be able to take it twice. An exception
    never reaches the training code; it is counted under its text.

    Loss: `confirm` says up to where the tracker's data would survive a SIGKILL of this process.
    The cursor moves only that far, and after a restart everything later is written again, unless
    `start` says that more is already stored. What can't be stored goes into `Written.rejected`,
    what is stored changed into `Written.altered`; nothing is dropped without a number.

    Names: a tag is passed as recorded; `self.names.escape(tag)` makes it legal here, injectively.

    Numbers: what `write*` returns accounts for everything it was given; if it does not, delivery to
    this tracker stops.

    Instances are made by `Tracker()`, with no arguments, for one rank of one run. One whose `start`
    raises is dropped, `finish` not called, and a fresh one is tried later.
    """

    name: ClassVar[str]
    """What users write in `log_with`."""
    requires_logging_directory: ClassVar[bool] = False
    """Whether users must name a directory (the journal's default does not count)."""
    declaration: ClassVar[Declaration | None] = None
    """What it can store, for people; `otel-tracking trackers` shows it."""
    names: ClassVar[NameRule] = NameRule()
    """Which tags are legal; the default takes all."""
    pacing: ClassVar[Pacing] = Pacing()
    patience: float = 4.0
    """Seconds that the end of a run waits for a call that does not return, or for one that succeeds."""
    exactly_once: bool = False
    """Whether what is given again, after an error or a kill, is stored once: because `start` found what is
    stored, or because the store takes the same point once. If not, receipts count what may be there twice."""
    takes_spans: bool = False
    """Whether it stores spans, and is to be given them; all trackers get their durations as points."""
    failure: Failure | None = None
    """Set before `finish`: what ended a run that failed, if that is known. `write_text` was given it too."""
    environment: ClassVar[Mapping[str, str]] = {}
    """What a process that does nothing but deliver sets in its environment, unless the user has. In a process
    that trains, such variables are the user's alone."""
    closes_at_exit: ClassVar[bool] = False
    """Whether the tracker's package closes runs in an exit handler of its own, registered in `start`:
    what is delivered at exit has to be delivered by a handler registered after that."""

    @abc.abstractmethod
    def start(self, run: RunInfo) -> int:
        """Open the run, or open it again (`run.resumed`).

        Returns:
            The position after which to go on: normally `run.position`. Higher when the tracker
            finds later points already stored; lower to be given some again, which count as what they
            were; 0 when the store holds nothing, so that all is to be written and counted anew.
        """

    def attach(self, run: RunInfo) -> None:
        """Instead of `start`: make `native` and `handle` work here, while another process delivers.

        Nothing else is called then.

        Raises:
            NativeHandleUnavailable: The tracker allows that to one process only.
            Retry: It is not there yet; `run.state` is what the other process has said last.
        """
        raise NativeHandleUnavailable(self.name)

    @abc.abstractmethod
    def write(self, batch: Batch) -> Written:
        """Take points. `len(batch)` is at least 1 and at most `pacing.max_points` (one row may exceed it)."""

    def write_text(self, text: Text) -> Written:
        """Take a text. A tracker without texts says so in the receipt."""
        return Written(0, rejected={f"{self.name} has no texts": [0]})

    def write_media(self, media: Media) -> Written:
        """Take an image, a table, a file, ..., as `media.kind` says. What it consists of are files to read.

        A tracker without that kind says so in the receipt; one that stores what is near to it, in `altered`.
        """
        return Written(0, rejected={f"{self.name} has no {media.kind.plural}": [0]})

    def write_spans(self, spans: Spans) -> Written:
        """Take finished spans, if `takes_spans`; `confirm` says nothing of them.

        After a kill some come again. Those that are refused are counted, and no dead letters: the journal
        has them, and their durations are points.
        """
        return Written(0, rejected={f"{self.name} has no spans": range(len(spans))})

    def write_config(self, config: Config) -> Written:
        """Take hyperparameters; may come more than once, later keys win."""
        return Written(0, rejected={f"{self.name} has no config": [0]})

    def write_rewind(self, rewind: Rewind) -> Written:
        """Hide or remove what was stored at that step and later: it is recorded again from now on.

        A tracker that can't says so in the receipt; earlier points stay beside the new ones there.
        """
        return Written(0, rejected={f"{self.name} keeps the points recorded before a rewind": [0]})

    @abc.abstractmethod
    def confirm(self, *, flush: bool = False) -> int:
        """The highest position that survives SIGKILL, with everything before it.

        Args:
            flush: Push what is buffered first, if that can be done.
        """

    def state(self) -> Mapping[str, Any]:
        """What `start` needs to go on after a restart, as JSON values; saved beside the cursor."""
        return {}

    @abc.abstractmethod
    def finish(self, status: RunStatus) -> None:
        """Store everything and close the run with that status. Called once, also after errors.

        Some of what was taken may be unconfirmed still; `confirm(flush=True)` is asked again afterwards.
        """

    def enter(self) -> None:  # noqa: B027  # most trackers have nothing to do
        """A thread is about to use `native`, by `get_tracker(name, unwrap=True)`. Called there."""

    def leave(self) -> None:  # noqa: B027  # most trackers have nothing to do
        """The thread that ends the run uses `native` no more. Called there, before `finish`."""

    @property
    @abc.abstractmethod
    def native(self) -> Any:
        """The tracker's own object for the run: what `get_tracker(name, unwrap=True)` returns."""

    @property
    def handle(self) -> Any:
        """What `get_tracker(name)` returns: an object with the words of Accelerate's tracker."""
        return self.native
