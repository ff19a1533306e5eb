"""Giving a tracker one thing of the journal."""

from __future__ import annotations

from otel_tracking.feed import Item
from otel_tracking.records import Batch, Config, Media, Rewind, Text, Written
from otel_tracking.span_records import Spans
from otel_tracking.tracker import Tracker


def give(tracker: Tracker, item: Batch | Text | Media | Config | Spans | Rewind) -> Written:
    """Have a tracker take an item, or say why not.

    Raises:
        Retry: It took nothing, and may later.
        Exception: Whatever its package raises.
    """
    match item:
        case Batch():
            return tracker.write(item)
        case Text():
            return tracker.write_text(item)
        case Media():
            return _give_media(tracker, item)
        case Config():
            return tracker.write_config(item)
        case Spans():
            return tracker.write_spans(item)
        case Rewind():
            return tracker.write_rewind(item)


def count(item: Item) -> int:
    """What has to be accounted for: points, spans, else 1."""
    return len(item) if isinstance(item, Batch | Spans) else 1


def _give_media(tracker: Tracker, media: Media) -> Written:
    if all(file.path.is_file() for file in media.files):
        return tracker.write_media(media)
    return Written(0, rejected={"a file of it is not in the journal's `media` any more": [0]})
