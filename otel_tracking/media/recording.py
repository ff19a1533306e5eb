"""What `log_images` and its like do: encode, store the files, record what they are."""

from __future__ import annotations

import abc
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

from otel_tracking.errors import raised_by_handler
from otel_tracking.journal.entries import entry_bytes
from otel_tracking.journal.format import RecordType
from otel_tracking.journal.media import file_content, file_name, store
from otel_tracking.media.clips import encode_audio, encode_video
from otel_tracking.media.documents import encode_artifact, encode_figure, encode_html
from otel_tracking.media.encoded import Encoded, EncodedMedia, Unencodable
from otel_tracking.media.histograms import encode_histogram
from otel_tracking.media.images import encode_images
from otel_tracking.media.overlays import with_files
from otel_tracking.media.tables import encode_table
from otel_tracking.records import MediaFile, MediaKind
from otel_tracking.registry import SeriesRegistry
from otel_tracking.rows import jsonable_options
from otel_tracking.steps import ambient, as_step
from otel_tracking.values import key_text

Options: TypeAlias = Mapping[str, Mapping[str, Any]]

_RENAMING: Final = 0.001


class MediaRecorder(Protocol):
    """What is needed of a recorder."""

    fsync: str

    def opened(self, measurements: int = 1) -> SeriesRegistry | None:
        """The open journal's series; None when nothing is recorded."""

    def append(self, records: Callable[[SeriesRegistry], bytes], measurements: int) -> None:
        """Append what is made for the open journal."""

    def refuse(self, what: str, reason: str, *, measurements: int = 1) -> None:
        """Count what can't be recorded."""

    def warn_once(self, text: str, *, key: str | None = None) -> None:
        """Log a warning, the first time only."""


def record_media(
    recorder: MediaRecorder,
    kind: MediaKind,
    tag: str,
    encode: Callable[[], EncodedMedia],
    step: object,
    options: Options | None,
) -> None:
    """Record one thing. What can't be, is counted, and warned of once a name.

    Args:
        recorder: Where to.
        kind: What it is.
        tag: Its name.
        encode: Makes the files; called only if something is recorded here.
        step: None means what `steps.ambient` says, else 0.
        options: `log_kwargs`, by tracker.

    Raises:
        Exception: Only what a signal handler raised in the middle of this.
    """
    if recorder.opened() is None:
        return
    number = ambient() if step is None else as_step(step)
    if step is not None and number is None:
        recorder.refuse(f"{kind} {tag!r:.80} with step={step!r:.80}", "a step is an integer of 64 bits")
        return
    try:
        encoded = encode()
        for remark in encoded.remarks:
            recorder.warn_once(f"{kind} {tag!r:.80}: {remark}", key=f"{kind} {tag} {remark}")
        recorder.append(
            functools.partial(
                _stored, encoded, tag, number or 0, jsonable_options(options), recorder.fsync != "off"
            ),
            1,
        )
    except Exception as error:
        if raised_by_handler(error):
            raise
        if isinstance(error, OSError):
            reason = f"a file of {kind.plural} can't be read or stored ({error.strerror or error})"
        elif isinstance(error, Unencodable):
            reason = f"{kind.plural} can't be made of what was given"
        else:
            reason = f"{kind.plural} could not be encoded ({type(error).__name__})"
        recorder.refuse(f"{kind} {tag!r:.80} ({error!s:.300})", reason)


def _stored(
    encoded: EncodedMedia,
    tag: str,
    step: int,
    options: Mapping[str, Any],
    fsync: bool,
    registry: SeriesRegistry,
) -> bytes:
    """The record, its files being in the journal that it is for; nothing, if that is closed."""
    journal = registry.journal
    while not journal.closed:
        place = journal.path
        try:
            files = [_file(place, file, name, fsync) for file, name in _named(encoded)]
        except FileNotFoundError:
            if place.is_dir():
                raise  # it is what was to be stored
            time.sleep(_RENAMING)  # a pending journal is being given its place
        else:
            break
    else:
        return b""
    content = {
        "kind": encoded.kind.value,
        "tag": tag,
        "files": files,
        "details": dict(encoded.details),
        "options": options,
    }
    return entry_bytes(RecordType.MEDIA, content, step=step)


def _file(journal: Path, file: Encoded, name: str, fsync: bool) -> dict[str, Any]:
    sha256, size = store(journal, file.source, file.suffix, fsync=fsync)
    masks = {
        mask: file_name(store(journal, png, ".png", fsync=fsync)[0], ".png")
        for mask, png in file.masks.items()
    }
    details = with_files(file.details, masks)
    known = MediaFile(Path(), sha256, size, name, file.media_type, file.caption, details)
    return file_content(known, file.suffix)


def _named(encoded: EncodedMedia) -> Iterator[tuple[Encoded, str]]:
    """Files and what they are called: by their kind and number, if they have no name."""
    for number, file in enumerate(encoded.files):
        yield file, file.name or f"{encoded.kind.value}-{number}{file.suffix}"


class MediaCalls(abc.ABC):
    """The calls that log media, in whatever has a recorder.

    They encode and store on the calling thread: what is given may be changed when they return, and what
    they recorded survives the process. What can't be recorded is counted and warned of; they raise nothing.
    """

    @abc.abstractmethod
    def _media_recorder(self) -> MediaRecorder:
        """Where media are recorded.

        Raises:
            NotStarted: No run has begun.
        """

    def _log_each(
        self,
        kind: MediaKind,
        values: Mapping[str, Any],
        encode: Callable[[Any], EncodedMedia],
        step: int | None,
        log_kwargs: Options | None,
    ) -> None:
        recorder = self._media_recorder()
        if not isinstance(values, Mapping):
            recorder.refuse(f"{kind} {values!r:.80}", f"{kind.plural} are logged as a mapping by name")
            return
        for name, value in values.items():
            encoder = functools.partial(encode, value)
            record_media(recorder, kind, key_text(name), encoder, step, log_kwargs)

    def log_images(
        self, values: Mapping[str, Any], step: int | None = None, log_kwargs: Options | None = None
    ) -> None:
        """Record images by name.

        Args:
            values: An image, or several of one name: arrays and tensors, integers 0 to 255 or floats 0 to 1;
                PIL's; paths; what W&B and MLflow wrap images in, with its caption, boxes and masks. An array
                (H, W) is a grey image, (C, H, W) or (H, W, C) one with 1, 3 or 4 channels, any other of three
                dimensions N grey images (N, H, W), and one of four N images.
            step: Of all of them.
            log_kwargs: By tracker: what its own call takes.
        """
        self._log_each(MediaKind.IMAGE, values, encode_images, step, log_kwargs)

    def log_audio(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        sample_rate: int = 44_100,
        log_kwargs: Options | None = None,
    ) -> None:
        """Record sounds by name.

        Args:
            values: Samples (n,) or (n, channels), floats -1 to 1, or integers, whose type says the range
                (of 64 bits, as Python's own are: that of 16); a path; a file's bytes.
            step: Of all of them.
            sample_rate: Samples a second, of those that are samples.
            log_kwargs: By tracker: what its own call takes.
        """
        encode = functools.partial(encode_audio, rate=sample_rate)
        self._log_each(MediaKind.AUDIO, values, encode, step, log_kwargs)

    def log_video(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        fps: float = 4,
        log_kwargs: Options | None = None,
    ) -> None:
        """Record videos by name.

        Args:
            values: Frames (T, H, W), (T, H, W, C) or, of a tensor, (T, C, H, W), as in `log_images`, which
                become a GIF; a path; a file's bytes.
            step: Of all of them.
            fps: Frames a second, of those that are frames.
            log_kwargs: By tracker: what its own call takes.
        """
        self._log_each(MediaKind.VIDEO, values, functools.partial(encode_video, fps=fps), step, log_kwargs)

    def log_histogram(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        bins: int = 64,
        log_kwargs: Options | None = None,
    ) -> None:
        """Record distributions by name.

        Args:
            values: Numbers of any shape; or a tuple of n counts and n + 1 edges.
            step: Of all of them.
            bins: Of equal width, for those that are numbers; up to 512.
            log_kwargs: By tracker: what its own call takes.
        """
        encode = functools.partial(encode_histogram, bins=bins)
        self._log_each(MediaKind.HISTOGRAM, values, encode, step, log_kwargs)

    def log_figure(
        self, values: Mapping[str, Any], step: int | None = None, log_kwargs: Options | None = None
    ) -> None:
        """Record figures of matplotlib or plotly by name, as they look now."""
        self._log_each(MediaKind.FIGURE, values, encode_figure, step, log_kwargs)

    def log_html(
        self, values: Mapping[str, Any], step: int | None = None, log_kwargs: Options | None = None
    ) -> None:
        """Record HTML by name: texts, or paths of `.html` files."""
        self._log_each(MediaKind.HTML, values, encode_html, step, log_kwargs)

    def log_table(
        self,
        table_name: str,
        columns: Sequence[Any] | None = None,
        data: Any = None,
        dataframe: Any = None,
        step: int | None = None,
        log_kwargs: Options | None = None,
    ) -> None:
        """Record a table; the words are those of Accelerate's trackers.

        Args:
            table_name: Its name.
            columns: Names of columns, numbers if there are none.
            data: Rows; or a mapping from columns to their values; or a `wandb.Table`. Cells are numbers,
                texts, None, images, and what has a JSON form.
            dataframe: A DataFrame instead; an index that does not just count the rows becomes columns.
            step: Of the table.
            log_kwargs: By tracker: what its own call takes.
        """
        encode = functools.partial(encode_table, columns, data, dataframe)
        record_media(self._media_recorder(), MediaKind.TABLE, key_text(table_name), encode, step, log_kwargs)

    def log_artifact(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        step: int | None = None,
        log_kwargs: Options | None = None,
    ) -> None:
        """Record a file, or all files of a folder, as they are now.

        Args:
            path: Of the file or folder.
            name: Its name; by default the last part of the path.
            step: Of the artifact.
            log_kwargs: By tracker: what its own call takes.
        """
        tag = name or Path(path).absolute().name
        encode = functools.partial(encode_artifact, path)
        record_media(self._media_recorder(), MediaKind.ARTIFACT, tag, encode, step, log_kwargs)

    def log_artifacts(
        self,
        directory: str | os.PathLike[str],
        name: str | None = None,
        step: int | None = None,
        log_kwargs: Options | None = None,
    ) -> None:
        """`log_artifact` of a folder, under the name that MLflow has for it."""
        self.log_artifact(directory, name, step, log_kwargs)
