"""The contract that every tracker implements. It is all a new tracker has to know."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from otel_tracking.names import NameRule
from otel_tracking.records import Batch, Config, RunInfo, RunStatus, Text, Written


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
    one at a time; `native` and `handle` may be read by any thread between `start` and `finish`.

    Order: points, texts and configs come in the order they were recorded.

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
    names: ClassVar[NameRule] = NameRule()
    """Which tags are legal; the default takes all."""
    pacing: ClassVar[Pacing] = Pacing()
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

    @abc.abstractmethod
    def write(self, batch: Batch) -> Written:
        """Take points. `len(batch)` is at least 1 and at most `pacing.max_points` (one row may exceed it)."""

    def write_text(self, text: Text) -> Written:
        """Take a text. A tracker without texts says so in the receipt."""
        return Written(0, rejected={f"{self.name} has no texts": 1})

    def write_config(self, config: Config) -> Written:
        """Take hyperparameters; may come more than once, later keys win."""
        return Written(0, rejected={f"{self.name} has no config": 1})

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

    @property
    @abc.abstractmethod
    def native(self) -> Any:
        """The tracker's own object for the run: what `get_tracker(name, unwrap=True)` returns."""

    @property
    def handle(self) -> Any:
        """What `get_tracker(name)` returns: an object with the words of Accelerate's tracker."""
        return self.native
