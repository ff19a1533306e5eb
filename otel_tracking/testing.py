"""For tests of training code and of delivery: a tracker that keeps what it gets, and fails as told.

::

    tracker = RecordingTracker()
    with Tracking(log_with=tracker, project_dir=tmp_path) as tracking:
        tracking.init_trackers("test")
        train(tracking)
    assert [point.value for point in tracker.points("train/loss")] == [0.5, 0.25]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from otel_tracking.records import Batch, Config, Media, Rewind, RunInfo, RunStatus, Text, Written
from otel_tracking.tracker import Pacing, Tracker


class RecordedPoint(NamedTuple):
    """One point as a tracker got it."""

    tag: str
    step: int
    value: float
    time: int
    """Nanoseconds since the epoch."""
    position: int


class RecordingTracker(Tracker):
    """A tracker in memory. Pass an instance in `log_with`; subclass it for another name.

    Args:
        faults: By the name of one of this class's methods: what to call first each time. It raises, or
            blocks, to make a failure happen. The mapping is kept, so that faults may come and go.
        lag: How many of the last batches, texts, configs and rewinds `confirm` leaves unconfirmed until it is
            told to flush, or the run is finished.

    Attributes:
        run: What `start` was told last.
        batches, texts, media, configs, rewinds: What was taken, in order; what came twice is there twice.
        calls: The methods called, in order.
        status: How the run was finished; None while it is not.
    """

    name = "recording"
    pacing: ClassVar[Pacing] = Pacing(interval=0.01)

    def __init__(self, *, faults: Mapping[str, Callable[[], object]] | None = None, lag: int = 0) -> None:
        self.faults: Mapping[str, Callable[[], object]] = {} if faults is None else faults
        self.lag = lag
        self.run: RunInfo | None = None
        self.batches: list[Batch] = []
        self.texts: list[Text] = []
        self.media: list[Media] = []
        self.configs: list[Config] = []
        self.rewinds: list[Rewind] = []
        self.calls: list[str] = []
        self.status: RunStatus | None = None
        self._ends: list[int] = []

    def points(self, tag: str | None = None) -> list[RecordedPoint]:
        """Every point taken, in order, or those of one tag."""
        return [
            RecordedPoint(batch.series[index].tag, step, value, time, position)
            for batch in list(self.batches)
            for index, step, value, time, position in zip(
                batch.index.tolist(),
                batch.steps.tolist(),
                batch.values.tolist(),
                batch.times.tolist(),
                batch.positions.tolist(),
                strict=True,
            )
            if tag is None or batch.series[index].tag == tag
        ]

    @property
    def config(self) -> dict[str, Any]:
        """All hyperparameters; later keys win."""
        return {key: value for config in list(self.configs) for key, value in config.values.items()}

    def start(self, run: RunInfo) -> int:
        """Go on where the cursor is."""
        self._called("start")
        self.run = run
        self.status = None
        self._ends = [run.position]
        return run.position

    def write(self, batch: Batch) -> Written:
        """Keep points."""
        self._called("write")
        self.batches.append(batch)
        self._ends.append(int(batch.positions[-1]))
        return Written(len(batch))

    def write_text(self, text: Text) -> Written:
        """Keep a text."""
        self._called("write_text")
        self.texts.append(text)
        self._ends.append(text.position)
        return Written(1)

    def write_media(self, media: Media) -> Written:
        """Keep media."""
        self._called("write_media")
        self.media.append(media)
        self._ends.append(media.position)
        return Written(1)

    def write_config(self, config: Config) -> Written:
        """Keep hyperparameters."""
        self._called("write_config")
        self.configs.append(config)
        self._ends.append(config.position)
        return Written(1)

    def write_rewind(self, rewind: Rewind) -> Written:
        """Keep a rewind."""
        self._called("write_rewind")
        self.rewinds.append(rewind)
        self._ends.append(rewind.position)
        return Written(1)

    def confirm(self, *, flush: bool = False) -> int:
        """All but the last `lag` of what was taken."""
        self._called("confirm")
        lag = 0 if flush or self.status is not None else self.lag
        return self._ends[max(0, len(self._ends) - 1 - lag)]

    def state(self) -> Mapping[str, Any]:
        """How much was taken."""
        self._called("state")
        return {"taken": len(self._ends) - 1}

    def finish(self, status: RunStatus) -> None:
        """Note the status."""
        self._called("finish")
        self.status = status

    @property
    def native(self) -> RecordingTracker:
        """The tracker itself."""
        return self

    def _called(self, method: str) -> None:
        self.calls.append(method)
        fault = self.faults.get(method)
        if fault is not None:
            fault()
