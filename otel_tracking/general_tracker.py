"""Trackers written for Accelerate (its `GeneralTracker`), used as trackers of this project."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from otel_tracking.errors import Retry
from otel_tracking.records import Batch, Config, Media, MediaKind, RunInfo, RunStatus, Text, Written
from otel_tracking.tracker import Tracker

_WORDS: Final = ("store_init_configuration", "log", "finish", "requires_logging_directory")
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]")


@dataclass
class _Call:
    """A `log` call to be."""

    values: dict[str, Any]
    step: int
    time: int
    options: Mapping[str, Any]
    position: int


def is_general_tracker(item: object) -> bool:
    """Whether it is one, or a class of them. Accelerate is not imported for it."""
    if isinstance(item, Tracker) or (isinstance(item, type) and issubclass(item, Tracker)):
        return False
    return hasattr(item, "name") and all(hasattr(item, word) for word in _WORDS)


class GeneralTrackerAdapter(Tracker):
    """Feeds one, a row of the journal a call. It is called by one thread, which is not the training one.

    Args:
        source: An instance, or a class that is made with the project's name, then the directory for logs if
            it asks for one, and `init_kwargs` as keywords.
    """

    def __init__(self, source: Any) -> None:
        self.name = _NOT_IN_NAMES.sub("_", str(source.name))  # type: ignore[misc]  # of the instance: many share the class
        # An instance has been given its directory.
        needs = isinstance(source, type) and bool(source.requires_logging_directory)  # type: ignore[attr-defined]
        self.requires_logging_directory = needs  # type: ignore[misc]  # as above
        self._source = source
        self._inner: Any = None
        self._position = 0
        self._held: _Call | None = None
        """A row that the texts of the same call may still join."""
        self._looked = False

    def start(self, run: RunInfo) -> int:
        """Make it, if it is a class; and have it start."""
        if isinstance(self._source, type):
            places = [str(run.logging_dir)] if self.requires_logging_directory else []
            self._inner = self._source(run.project, *places, **run.options)
        else:
            self._inner = self._source
        if hasattr(self._inner, "start"):
            self._inner.start()
        self._position = run.position
        return run.position

    def write(self, batch: Batch) -> Written:
        """Log each row, with the texts of the same `log` call."""
        for moment in batch.moments():
            if moment.position > self._taken:
                self._release()
                values: dict[str, Any] = {batch.series[i].tag: v for i, v in moment.values.items()}
                options = batch.options.get(moment.position, {})
                self._held = _Call(values, moment.step, moment.time, options, moment.position)
        return Written(len(batch))

    def write_text(self, text: Text) -> Written:
        """Log the text, with the row of the same `log` call."""
        if text.position > self._taken:
            held = self._held
            if held is None or (held.step, held.time) != (text.step, text.time) or text.tag in held.values:
                self._release()
                held = self._held = _Call({}, text.step, text.time, text.options, text.position)
            held.values[text.tag] = text.text
            held.position = text.position
        return Written(1)

    @property
    def _taken(self) -> int:
        return self._position if self._held is None else self._held.position

    def _release(self) -> None:
        held = self._held
        if held is not None:
            try:
                self._inner.log(held.values, step=held.step, **held.options)
            except Exception as error:
                # Not the fault of what comes next, which would become a dead letter for it.
                raise Retry(f"{type(error).__name__}: {error!s:.200}") from error
            self._position, self._held = held.position, None
        self._looked = False

    def write_media(self, media: Media) -> Written:
        """Log images as PIL's, and tables, if it has words for them."""
        self._release()
        if media.kind is MediaKind.IMAGE and hasattr(self._inner, "log_images"):
            from PIL import Image

            with contextlib.ExitStack() as files:
                images = [files.enter_context(Image.open(file.path)) for file in media.files]
                for image in images:
                    image.load()  # it may be kept
                self._inner.log_images({media.tag: images}, step=media.step)
        elif media.kind is MediaKind.TABLE and hasattr(self._inner, "log_table"):
            from otel_tracking.media.tables import rows_of

            rows = [[str(c.path) if hasattr(c, "path") else c for c in row] for row in rows_of(media)]
            columns = media.details["columns"]
            self._inner.log_table(media.tag, columns=columns, data=rows, step=media.step)
        else:
            return super().write_media(media)
        self._position = max(self._position, media.position)
        return Written(1)

    def write_config(self, config: Config) -> Written:
        """Store hyperparameters."""
        self._release()
        self._inner.store_init_configuration(dict(config.values))
        self._position = max(self._position, config.position)
        return Written(1)

    def confirm(self, *, flush: bool = False) -> int:
        """All that it was given: it has no word for what it has stored."""
        if flush or self._looked:  # nothing has joined the row since the last look
            self._release()
        self._looked = self._held is not None
        return self._position

    def state(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def finish(self, status: RunStatus) -> None:
        """Have it finish."""
        if self._inner is not None:
            self._release()
            self._inner.finish()

    @property
    def native(self) -> Any:
        """What it calls its `tracker`."""
        return self._inner.tracker

    @property
    def handle(self) -> Any:
        """The instance."""
        return self._inner
