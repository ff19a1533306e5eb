"""Texts and media as entries that can be compared: what the journal has, and what trackers make of it."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from otel_tracking.capabilities import Declaration, Level
from otel_tracking.journal.entries import Entry as JournalEntry
from otel_tracking.journal.format import RecordType
from otel_tracking.journal.media import media_of
from otel_tracking.media.tables import rows_of
from otel_tracking.reading import journals, read_items
from otel_tracking.records import Media, MediaFile, MediaKind, Text


class Entry(NamedTuple):
    """One thing that a tracker shows under a name at a step."""

    form: str
    """What the tracker takes it for: an image, a text, ..."""
    name: str
    """Of several files of one name, the n-th is `<name>/<n>`."""
    step: int
    content: Any
    """Hashable: bytes, a text, or one of what the functions below make."""
    caption: str = ""
    time: int = 0
    """Nanoseconds since the epoch, 0 where the tracker has none."""


Conversion: TypeAlias = Callable[[Media], list[Entry]]


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Any:
    """A table, whose cells are bytes if they are images; `1`, `1.0` and `True` are told apart."""
    return tuple(columns), tuple(
        tuple(cell if isinstance(cell, bytes) else json.dumps(cell) for cell in row) for row in rows
    )


def histogram(counts: Iterable[float], edges: Iterable[float], **more: float) -> Any:
    """A histogram, and what more is known of its values."""
    return tuple(map(float, counts)), tuple(map(float, edges)), tuple(sorted(more.items()))


def pixels(data: bytes) -> Any:
    """An image's size and pixels, of a moving one those of its first frame."""
    with Image.open(io.BytesIO(data)) as image:
        return image.size, image.convert("RGBA").tobytes()


def journal(run: Path) -> tuple[list[Text], list[Media]]:
    """What was recorded, of a run's directory."""
    texts, media = [], []
    ((_, place),) = journals(run)
    for item, _ in read_items(place):
        if isinstance(item, JournalEntry) and item.type == RecordType.TEXT:
            content = item.content
            texts.append(Text(content["tag"], content["text"], item.step, item.time, item.position))
        elif isinstance(item, JournalEntry) and item.type == RecordType.MEDIA:
            media.append(media_of(item, place, ""))
    return texts, media


def _files(media: Media, form: str) -> list[Entry]:
    several = len(media.files) > 1
    return [
        Entry(
            form,
            f"{media.tag}/{number}" if several else media.tag,
            media.step,
            file.path.read_bytes(),
            file.caption,
        )
        for number, file in enumerate(media.files)
    ]


def _artifact(media: Media) -> list[Entry]:
    return [
        Entry("artifact", media.tag, media.step, (file.name, file.path.read_bytes())) for file in media.files
    ]


def _histogram(media: Media, *more: str) -> list[Entry]:
    details = media.details
    known = histogram(details["counts"], details["edges"], **{name: details[name] for name in more})
    return [Entry("histogram", media.tag, media.step, known)]


def _whole_histogram(media: Media) -> list[Entry]:
    return _histogram(media, "count", "sum", "sum_squares", "min", "max")


def _exact(media: Media) -> list[Entry]:
    """As it was recorded; a figure is an image, or HTML, in every tracker."""
    match media.kind:
        case MediaKind.HISTOGRAM:
            return _histogram(media)
        case MediaKind.TABLE:
            rows = _rows(media, lambda file: file.path.read_bytes())
            return [Entry("table", media.tag, media.step, table(media.details["columns"], rows))]
        case MediaKind.ARTIFACT:
            return _artifact(media)
        case MediaKind.FIGURE:
            return _files(media, "image")
    return _files(media, media.kind.value)


def _rows(media: Media, shown: Callable[[MediaFile], Any]) -> list[list[Any]]:
    return [[shown(cell) if isinstance(cell, MediaFile) else cell for cell in row] for row in rows_of(media)]


def _text(media: Media, text: str) -> list[Entry]:
    return [Entry("text", media.tag, media.step, text)]


def _content_as_text(media: Media) -> list[Entry]:
    return _text(media, media.files[0].path.read_text(encoding="utf-8"))


def _markdown(media: Media) -> list[Entry]:
    rows = [media.details["columns"], ["---"] * len(media.details["columns"])]
    for row in _rows(media, lambda file: f"({file.media_type})"):
        texts = ["" if cell is None else str(cell) for cell in row]
        rows.append([text.replace("|", "\\|").replace("\n", "<br>") for text in texts])
    return _text(media, "\n".join(f"| {' | '.join(row)} |" for row in rows))


def _names_of_files(media: Media) -> list[Entry]:
    return _text(
        media,
        "\n".join(f"- `{file.name}`, {file.size:,} bytes, SHA-256 `{file.sha256}`" for file in media.files),
    )


def _as_csv(media: Media, shown: Callable[[MediaFile], Any]) -> list[list[Any]]:
    rows = [["" if cell is None else cell for cell in row] for row in _rows(media, shown)]
    return [media.details["columns"], *([c if isinstance(c, bytes) else str(c) for c in row] for row in rows)]


def _texts_of_cells(media: Media) -> list[Entry]:
    """A CSV file, beside which the images of cells lie: all other cells are texts."""
    columns, *rows = _as_csv(media, lambda file: file.path.read_bytes())
    return [Entry("table", media.tag, media.step, table(columns, rows))]


def _csv_text(media: Media) -> list[Entry]:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_as_csv(media, lambda file: file.sha256))
    return _text(media, text.getvalue())


def _html_cells(media: Media) -> list[Entry]:
    rows = _as_csv(media, lambda file: file.path.read_bytes())
    return [Entry("html", media.tag, media.step, tuple(map(tuple, rows)))]


def _html_bars(media: Media) -> list[Entry]:
    edges = media.details["edges"]
    rows = tuple(
        (f"{low:.4g} to {high:.4g}", f"{count:g}", "")
        for (low, high), count in zip(pairwise(edges), media.details["counts"], strict=True)
    )
    return [Entry("html", media.tag, media.step, rows)]


def _html_names(media: Media) -> list[Entry]:
    rows = tuple((f"{file.name}, {file.size:,} bytes, SHA-256 {file.sha256}",) for file in media.files)
    return [Entry("html", media.tag, media.step, rows)]


def _bins_of_comet(media: Media) -> list[Entry]:
    """What a bin holds is counted in the bin of Comet's that has its middle."""
    from comet_ml.data_structure import Histogram

    bins, counts = Histogram(), Counter[int]()
    for (low, high), count in zip(pairwise(media.details["edges"]), media.details["counts"], strict=True):
        counts[bins.get_bin_index((low + high) / 2)] += int(count)
    return [Entry("histogram", media.tag, media.step, tuple(sorted((+counts).items())))]


def _as(form: str) -> Conversion:
    return lambda media: _files(media, form)


@dataclass(frozen=True)
class Storage:
    """How a tracker stores media, beyond what its declaration says."""

    changed: Mapping[MediaKind, tuple[Conversion, str]]
    """What becomes of the kinds that it declares as changed, and what receipts say of it."""
    exact: Mapping[MediaKind, Conversion] = field(default_factory=dict)
    """What the others are compared with, if not with what was recorded."""
    uneven: str = ""
    """What receipts say of histograms with bins of several widths, if it has these as texts alone."""
    captions: bool = False
    """Whether it has captions of images."""
    quantiles: bool = False
    """Whether a histogram becomes series too."""
    pixels: bool = False
    """Whether images are encoded anew."""
    timed: frozenset[str] = frozenset()
    """The forms of entries that have their times."""
    one_kind: frozenset[str] = frozenset()
    """Of texts and media: which go to `<name> (<kind>)`, if a series has the name."""


def _uniform(media: Media) -> bool:
    return bool(np.ptp(np.diff(media.details["edges"])) < 1e-9)


def quantiles(media: Media) -> dict[str, float]:
    """What series a histogram becomes: values that lie evenly in their bins."""
    counts, edges = media.details["counts"], media.details["edges"]
    reached = np.cumsum([0, *counts])
    found = {
        f"p{share:02d}": float(np.interp(share / 100 * reached[-1], reached, edges))
        for share in (5, 25, 50, 75, 95)
    }
    mean = media.details["sum"] / media.details["count"]
    return {**found, "mean": mean, "min": media.details["min"], "max": media.details["max"]}


def _even_or_told(media: Media) -> list[Entry]:
    if _uniform(media):
        return _histogram(media)
    known = quantiles(media)
    order = ("min", "max", "p05", "p25", "p50", "p75", "p95", "mean")
    return _text(media, ", ".join(f"{name} {known[name]:g}" for name in order))


_MEDIA: Final = frozenset(kind.value for kind in MediaKind)
_ALL: Final = frozenset(("text", "image", "audio", "video", "table", "histogram", "html"))
"""Forms of all but artifacts, which few trackers know the times of."""
STORAGE: Final[Mapping[str, Storage]] = {
    "tensorboard": Storage(
        {
            MediaKind.TABLE: (_markdown, "a table is a text (Markdown)"),
            MediaKind.HTML: (_content_as_text, "HTML is a text"),
            MediaKind.ARTIFACT: (
                _names_of_files,
                "artifacts: a text names the files; the journal has them",
            ),
        },
        {MediaKind.HISTOGRAM: _whole_histogram, MediaKind.VIDEO: _as("image")},
        timed=_ALL,
        one_kind=_MEDIA - {"table", "html", "artifact"},  # these are texts, which have tags of their own
    ),
    "wandb": Storage({MediaKind.AUDIO: (_artifact, "audio: an artifact")}, captions=True, timed=_ALL),
    "mlflow": Storage(
        {
            MediaKind.HISTOGRAM: (
                _whole_histogram,
                "a histogram is a JSON artifact, and its quantiles are metrics",
            )
        },
        quantiles=True,
        pixels=True,
        timed=frozenset(("image",)),
    ),
    "trackio": Storage({}, captions=True, timed=_ALL),
    "comet_ml": Storage(
        {
            MediaKind.TABLE: (_texts_of_cells, "a table is a CSV asset"),
            MediaKind.HISTOGRAM: (_bins_of_comet, "a histogram has Comet's bins"),
            MediaKind.HTML: (_as("html"), "HTML is an asset"),
        },
        captions=True,
    ),
    "aim": Storage(
        {
            MediaKind.VIDEO: (_as("image"), "a video is an image; Aim keeps its first frame"),
            MediaKind.TABLE: (
                _csv_text,
                "a table is a text (CSV), which names its images by their hash",
            ),
            MediaKind.HTML: (_content_as_text, "HTML is a text"),
        },
        {MediaKind.HISTOGRAM: _even_or_told},
        uneven="a histogram with bins of several widths is a text of its quantiles",
        captions=True,
        pixels=True,
        timed=_ALL,
        one_kind=_MEDIA | {"text"},
    ),
    "clearml": Storage({}, timed=_ALL),
    "dvclive": Storage(
        {
            MediaKind.AUDIO: (_as("audio"), "audio: a file"),
            MediaKind.VIDEO: (_as("video"), "videos: a file"),
            MediaKind.TABLE: (_texts_of_cells, "a table is a CSV file"),
            MediaKind.HISTOGRAM: (_histogram, "a histogram is a plot's JSON file"),
            MediaKind.HTML: (_as("html"), "HTML: a file"),
        },
    ),
    "swanlab": Storage(
        {
            MediaKind.TABLE: (_html_cells, "a table is HTML"),
            MediaKind.HISTOGRAM: (_html_bars, "a histogram is HTML, and its quantiles are series"),
            MediaKind.ARTIFACT: (
                _html_names,
                "artifacts: HTML names the files; the journal has them",
            ),
        },
        {MediaKind.VIDEO: _as("image")},  # SwanLab's own videos are GIFs among the images
        captions=True,
        quantiles=True,
        timed=_ALL,
        one_kind=_MEDIA | {"text"},
    ),
}


def told(storage: Storage, media: Sequence[Media]) -> Counter[str]:
    """What a tracker's receipt should say of media, and how often."""
    said = Counter(storage.changed[each.kind][1] for each in media if each.kind in storage.changed)
    if not storage.captions:
        said["captions are not stored"] = sum(any(file.caption for file in each.files) for each in media)
    said[storage.uneven] += sum(each.kind is MediaKind.HISTOGRAM and not _uniform(each) for each in media)
    del said[""]
    return said


def expected(
    storage: Storage, declaration: Declaration, texts: Sequence[Text], media: Sequence[Media], taken: set[str]
) -> list[Entry]:
    """What a tracker should have.

    Args:
        storage: How it stores media.
        declaration: What it says of itself.
        texts: What was recorded.
        media: What was recorded.
        taken: The tags of series.
    """

    def name(tag: str, kind: str) -> str:
        return f"{tag} ({kind})" if kind in storage.one_kind and tag in taken else tag

    entries = [Entry("text", name(text.tag, "text"), text.step, text.text, time=text.time) for text in texts]
    for each in media:
        made = replace(each, tag=name(each.tag, each.kind.value))
        level = declaration.of(each.kind).level
        if level is Level.CHANGED:
            convert, _ = storage.changed[each.kind]
        else:
            convert = storage.exact.get(each.kind, _exact)
        if level is not Level.NOT_STORED:
            entries += (entry._replace(time=each.time) for entry in convert(made))
    return [_comparable(entry, storage) for entry in entries]


def without_times(entries: Iterable[Entry]) -> Counter[Entry]:
    """How often each is there."""
    return Counter(entry._replace(time=0) for entry in entries)


def times(entries: Iterable[Entry], forms: Container[str]) -> list[tuple[Entry, int]]:
    """The times of entries of these forms, in an order that depends on nothing else but what they are."""
    timed = [(entry._replace(time=0), entry.time) for entry in entries if entry.form in forms]
    return sorted(timed, key=lambda pair: (repr(pair[0]), pair[1]))


def _comparable(entry: Entry, storage: Storage) -> Entry:
    if not storage.captions:
        entry = entry._replace(caption="")
    if entry.form == "image" and storage.pixels:
        entry = entry._replace(content=pixels(entry.content))
    return entry
