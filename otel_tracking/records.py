"""The values that cross module borders: series, batches of points, texts, configs, receipts.

Everything here is plain data. Points travel in columns (NumPy arrays), never one object each.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

AttributeValue: TypeAlias = str | bool | int | float | tuple[str | bool | int | float, ...]
"""What an OpenTelemetry attribute can hold, sequences as tuples."""

Int64Array: TypeAlias = npt.NDArray[np.int64]
Float64Array: TypeAlias = npt.NDArray[np.float64]


class Kind(enum.StrEnum):
    """The instrument a series comes from. `Tracking.log` records gauges."""

    GAUGE = "gauge"
    COUNTER = "counter"
    UP_DOWN_COUNTER = "updowncounter"
    HISTOGRAM = "histogram"
    OBSERVABLE_GAUGE = "observable_gauge"
    OBSERVABLE_COUNTER = "observable_counter"
    OBSERVABLE_UP_DOWN_COUNTER = "observable_updowncounter"

    @property
    def accumulates(self) -> bool:
        """Whether the journal holds increments whose running total trackers get."""
        return self in (Kind.COUNTER, Kind.UP_DOWN_COUNTER)


class RunStatus(enum.StrEnum):
    """How a run ended, or that it has not."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class Failure:
    """The exception that ended a run."""

    reason: str
    """Its type and message, as Python's last line of a traceback has them."""
    traceback: str
    """All of it."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line in a chart: an instrument and one set of attributes."""

    tag: str
    """What trackers call it, before their own escaping; unique within a journal."""
    name: str
    """The instrument's name as the user wrote it."""
    kind: Kind
    unit: str = ""
    description: str = ""
    meter: str = ""
    """The meter's name; empty for `Tracking.log`."""
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    """Without the step attribute, keys sorted."""
    group: str = ""
    """What related series share (`class_accuracy` of a nested dict, or the instrument's name of
    series told apart by attributes); empty for a series on its own."""

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes two series the same one. `repr` keeps 1, True, 1.0 and "1" apart."""
        return series_identity(self.meter, self.name, self.kind, self.unit, self.attributes)


def series_identity(
    meter: str, name: str, kind: Kind, unit: str, attributes: Mapping[str, AttributeValue]
) -> tuple[object, ...]:
    """`Series.identity` of a series that need not exist; the attributes' keys sorted."""
    return (meter, name, kind, unit, tuple([(key, repr(value)) for key, value in attributes.items()]))


@dataclass(frozen=True, slots=True)
class Batch:
    """Points in recorded order, in columns of one length n."""

    series: Sequence[Series]
    """The series that occur; `index` points into it."""
    index: npt.NDArray[np.int32]
    """(n,) which of `series` each point belongs to."""
    steps: Int64Array
    """(n,) the step of each point; need not rise."""
    times: Int64Array
    """(n,) nanoseconds since the epoch."""
    values: Float64Array
    """(n,) NaN and infinities included; counters as running totals."""
    positions: Int64Array
    """(n,) journal positions, never falling; points of one `log` call share one."""
    options: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """By position: the `log_kwargs` given for this tracker with that row."""

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice) -> Batch:
        """The points of a slice, as views."""
        return Batch(
            self.series,
            self.index[part],
            self.steps[part],
            self.times[part],
            self.values[part],
            self.positions[part],
            self.options,
        )

    def moments(self) -> Iterator[Moment]:
        """Rows for trackers that take a mapping of names with a step and a time.

        Most often one for each row; a row whose points differ in step or time, or have a name twice,
        becomes several.
        """
        columns = [c.tolist() for c in (self.index, self.steps, self.times, self.values, self.positions)]
        moment: Moment | None = None
        for series, step, time, value, position in zip(*columns, strict=True):
            if (
                moment is None
                or (moment.position, moment.step, moment.time) != (position, step, time)
                or series in moment.values
            ):
                if moment is not None:
                    yield moment
                part = moment.part + 1 if moment is not None and moment.position == position else 0
                moment = Moment(step, time, position, part, {})
            moment.values[series] = value
        if moment is not None:
            yield moment

    def rows(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of each run of points that share a position: one `log` call, one instrument call."""
        if not len(self):
            return
        cuts = np.flatnonzero(np.diff(self.positions)) + 1
        start = 0
        for cut in cuts.tolist():
            yield start, cut
            start = cut
        yield start, len(self)


@dataclass(frozen=True, slots=True)
class Moment:
    """Points of one position, step and time."""

    step: int
    time: int
    """Nanoseconds since the epoch."""
    position: int
    part: int
    """From 0: which of the position's moments it is."""
    values: dict[int, float]
    """By place in `Batch.series`."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text logged under a name at a step."""

    tag: str
    text: str
    step: int
    time: int
    """Nanoseconds since the epoch."""
    position: int
    options: Mapping[str, Any] = field(default_factory=dict)


class MediaKind(enum.StrEnum):
    """What is logged beside numbers and texts."""

    IMAGE = "image"
    """One or more files that are images, most often PNG."""
    AUDIO = "audio"
    """One or more files, most often WAV."""
    VIDEO = "video"
    """One or more files: GIF if it was made of frames."""
    TABLE = "table"
    """`details` has `columns`, and how many `rows`; the first file is JSON, a list of rows. A cell that is
    media is `{"_file": n}`, the n-th file."""
    HISTOGRAM = "histogram"
    """No file: `details` has `counts` (n) and `edges` (n + 1), and of the values `count`, `sum`,
    `sum_squares`, `min`, `max`."""
    FIGURE = "figure"
    """A PNG of it, and HTML if it is a plotly figure."""
    HTML = "html"
    """One file."""
    ARTIFACT = "artifact"
    """Any files; the name of each may have folders (`a/b.txt`)."""

    @property
    def plural(self) -> str:
        """For people."""
        return {"audio": "audio", "html": "HTML"}.get(self.value, f"{self.value}s")


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A file of media. Its name in the journal is its content's hash, so it never changes."""

    path: Path
    """Where it lies; its suffix tells the format."""
    sha256: str
    size: int
    """Bytes."""
    name: str
    """As the user knows it, with its suffix; may have folders."""
    media_type: str
    """`image/png`, ..."""
    caption: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What is known of: images and videos `width` and `height` (pixels), images `channels` and, of those that
    move, `frames`; audio `rate` (samples a second), `frames` and `channels`; videos `fps`. Images that have
    boxes or masks over them have `boxes` (by name, `box_data` and `class_labels`) and `masks` (by name,
    `class_labels` and the `file`, beside `path`, whose pixels are numbers of classes)."""


@dataclass(frozen=True, slots=True)
class Media:
    """What was logged under a name at a step, and is neither number nor text."""

    kind: MediaKind
    tag: str
    files: Sequence[MediaFile]
    details: Mapping[str, Any]
    """What `MediaKind` says."""
    step: int
    time: int
    """Nanoseconds since the epoch."""
    position: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lost_captions(self) -> dict[str, int]:
        """What a tracker that has no place for captions counts as altered."""
        return {"captions are not stored": 1} if any(file.caption for file in self.files) else {}


@dataclass(frozen=True, slots=True)
class Config:
    """Hyperparameters of a run, as given: nested mappings, lists, None and scalars of JSON."""

    values: Mapping[str, Any]
    time: int
    position: int


@dataclass(frozen=True, slots=True)
class Rewind:
    """Training goes on from `step` again: what was recorded at that step and later is void."""

    step: int
    time: int
    """Nanoseconds since the epoch."""
    position: int


@dataclass(frozen=True, slots=True)
class Gone:
    """What was recorded and can't be delivered, as it is damaged on the disk or was removed."""

    points: int
    texts: int
    position: int
    """Of the last of them."""
    began: int
    """Where it begins."""
    removed: bool = False
    """Whether it was removed to save space, rather than damaged."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a tracker did with what it was given."""

    accepted: int
    """Points (or texts, configs, rewinds: 1) it took, altered ones included."""
    altered: Mapping[str, int] = field(default_factory=dict)
    """How many of the accepted it can't store exactly, by reason."""
    rejected: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Which it refuses for good, by reason: places in the batch (0 for a text, config or rewind), each
    under one reason. They become dead letters."""

    @property
    def refused(self) -> int:
        """How many it refuses; accepted + refused = given."""
        return sum(map(len, self.rejected.values()))


@dataclass(frozen=True, slots=True)
class Rank:
    """Who this process is among those that train together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    source: str = "single"
    """What said so: torchrun, slurm, openmpi, torch.distributed, env, single."""

    @property
    def is_main(self) -> bool:
        """Rank 0 of the whole job."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """The first rank of its node."""
        return self.local_rank == 0

    def attributes(self) -> dict[str, AttributeValue]:
        """OpenTelemetry resource attributes."""
        return {
            "training.rank": self.rank,
            "training.world_size": self.world_size,
            "training.local_rank": self.local_rank,
            "training.node_rank": self.node_rank,
        }


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a tracker is told when it starts. One rank's view of one run."""

    project: str
    run_id: str
    """Unique within the project; also the directory's name."""
    name: str
    """For people: the run's name, with `-rank<k>` under the policy `all`."""
    directory: Path
    """The run's own directory (`<project_dir>/<project>/<run_id>`, with `/rank-<k>` under `all`); exists."""
    logging_dir: Path
    """`<project_dir>`: where trackers that keep one store for many runs put it; exists."""
    rank: Rank = field(default_factory=Rank)
    group: str = ""
    """Set when each rank has a run of its own: what those runs share (the run id)."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`init_kwargs` for this tracker, as the user gave them."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """What the tracker's `state()` returned when the cursor was last saved; empty on a first start."""
    position: int = 0
    """The cursor: everything at or before it was confirmed in an earlier start."""
    resource: Mapping[str, AttributeValue] = field(default_factory=dict)
    """OpenTelemetry resource attributes, the rank's included."""

    @property
    def resumed(self) -> bool:
        """Whether this tracker has been started for this run before."""
        return bool(self.state) or self.position > 0


@dataclass(frozen=True, slots=True)
class TrackerReceipt:
    """What became of the points of one tracker; recorded = delivered + pending + sum(dropped)."""

    tracker: str
    recorded: int
    delivered: int
    pending: int
    altered: Mapping[str, int]
    """Of the delivered: how many the tracker can't store exactly, by reason."""
    dropped: Mapping[str, int]
    """Refused for good, by reason."""
    stored_altered: Mapping[str, int]
    """Texts, media and configs that the tracker has in another form, by reason; they are no points, and one
    with two reasons counts under both."""
    not_stored: Mapping[str, int]
    """Texts, media, configs and rewinds refused for good, by reason; they are no points."""
    errors: Mapping[str, int]
    """What the tracker raised, and how often; nothing is lost by it while it is pending."""
    renamed: Mapping[str, str]
    """Tags that the tracker stores under another name."""
    perhaps_twice: int
    """Of the delivered: how many were given again after an error or a kill, to a tracker that may have
    stored them already. 0 for trackers that store exactly once."""
    state: str
    """starting, running, retrying, unavailable (it has failed several times), failed, finished."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was recorded in this process's journal and what became of it."""

    run_id: str
    recorded: int
    """Points in the journal."""
    not_recorded: Mapping[str, int]
    """Measurements that never reached the journal, by reason (not a number, disk full, ...)."""
    trackers: Mapping[str, TrackerReceipt]
    rounded: int = 0
    """Recorded numbers that no double holds exactly (an int above 2^53)."""

    @property
    def complete(self) -> bool:
        """Whether every tracker has delivered every recorded point."""
        return all(t.delivered == t.recorded for t in self.trackers.values())

    def __str__(self) -> str:
        lines = [f"run {self.run_id}: {self.recorded:,} points recorded"]
        lines += [f"  not recorded: {n:,} ({why})" for why, n in sorted(self.not_recorded.items())]
        if self.rounded:
            lines.append(f"  rounded to a double: {self.rounded:,}")
        for t in self.trackers.values():
            lines.append(
                f"  {t.tracker:<12} delivered {t.delivered:,}  pending {t.pending:,}"
                f"  dropped {sum(t.dropped.values()):,}  altered {sum(t.altered.values()):,}  [{t.state}]"
            )
            for what, reasons in (
                ("dropped", t.dropped),
                ("altered", t.altered),
                ("stored altered", t.stored_altered),
                ("not stored", t.not_stored),
                ("error", t.errors),
            ):
                lines += [f"    {what}: {n:,} x {why}" for why, n in sorted(reasons.items())]
            if t.perhaps_twice:
                lines.append(f"    perhaps stored twice: {t.perhaps_twice:,}")
        return "\n".join(lines)
