"""Audio and videos: arrays of samples and of frames, or files."""

from __future__ import annotations

import io
import os
import wave
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from otel_tracking.media.arrays import is_tensor, to_array
from otel_tracking.media.encoded import Encoded, EncodedMedia, Unencodable, from_file, type_name
from otel_tracking.media.images import pixels
from otel_tracking.records import MediaKind

_MOST_CHANNELS: Final = 64
_MOST_FRAMES: Final = 10_000


def encode_audio(value: Any, rate: int) -> EncodedMedia:
    """Samples (n,), (n, channels) or (channels, n), the bytes of a file, or a path.

    Samples become WAV of 16 bits. Floats are -1 to 1, what lies outside is cut; of integers the type says
    the range, but those of 64 bits, Python's own among them, are taken as 16 bits, and refused beyond.

    Args:
        value: As above.
        rate: Samples a second.

    Raises:
        Unencodable: It is none of these.
    """
    if isinstance(value, str | os.PathLike):
        return EncodedMedia(MediaKind.AUDIO, (from_file(value, "audio"),))
    if isinstance(value, bytes):
        return EncodedMedia(MediaKind.AUDIO, (_known_audio(value),))
    if isinstance(rate, bool) or not isinstance(rate, int) or not 0 < rate < 2**31:
        raise Unencodable(f"a sample rate is a positive integer, not {rate!r:.40}")
    samples = to_array(value)
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1] and samples.shape[0] <= _MOST_CHANNELS:
        samples = samples.T
    if samples.ndim == 1:
        samples = samples[:, None]
    if samples.ndim != 2 or not samples.size or samples.shape[1] > _MOST_CHANNELS:
        raise Unencodable(f"{type_name(value)} of shape {np.shape(value)} is no audio: (n,) or (n, channels)")
    remarks = []
    if samples.dtype.kind == "f":
        scaled = np.nan_to_num(samples.astype(np.float64), nan=0.0) * 32767
        cut = np.clip(scaled, -32767, 32767)
        if (cut != scaled).any():
            remarks.append("samples beyond -1 to 1 were cut")
    elif samples.dtype.kind == "b":
        raise Unencodable("booleans are no samples")
    elif samples.dtype.itemsize == 8:
        cut = samples.astype(np.float64)
        if cut.min() < -32768 or cut.max() > 32767:
            raise Unencodable("integers of 64 bits beyond 16 bits say no range: give int32, int16 or floats")
    else:
        info = np.iinfo(samples.dtype)
        middle = 0 if info.min else (info.max + 1) // 2
        cut = (samples.astype(np.float64) - middle) * (32768 / ((info.max + 1) if info.min else middle))
    if cut.any() and not np.rint(cut).any():
        remarks.append("samples so close to 0 became silence in 16 bits")
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(cut).clip(-32768, 32767).astype("<i2").tobytes())
    details = {"rate": rate, "frames": len(samples), "channels": samples.shape[1]}
    encoded = Encoded(data.getvalue(), ".wav", "audio/wav", details=details)
    return EncodedMedia(MediaKind.AUDIO, (encoded,), remarks=tuple(remarks))


def _known_audio(data: bytes) -> Encoded:
    for magic, suffix, media_type in (
        (b"RIFF", ".wav", "audio/wav"),
        (b"ID3", ".mp3", "audio/mpeg"),
        (b"\xff\xfb", ".mp3", "audio/mpeg"),
        (b"OggS", ".ogg", "audio/ogg"),
        (b"fLaC", ".flac", "audio/flac"),
    ):
        if data.startswith(magic):
            return Encoded(data, suffix, media_type)
    raise Unencodable("bytes that are no WAV, MP3, OGG or FLAC file")


def encode_video(value: Any, fps: float) -> EncodedMedia:
    """Frames (T, H, W), (T, H, W, C) or (T, C, H, W), a sequence of images, the bytes of a file, or a path.

    Frames become a GIF, which has 256 colours a frame; a file of yours stays as it is.

    Args:
        value: As above.
        fps: Frames a second.

    Raises:
        Unencodable: It is none of these.
    """
    if isinstance(value, str | os.PathLike):
        return EncodedMedia(MediaKind.VIDEO, (from_file(value, "a video"),))
    if isinstance(value, bytes):
        return EncodedMedia(MediaKind.VIDEO, (_known_video(value),))
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= 1000:
        raise Unencodable(f"frames a second are a number up to 1000, not {fps!r:.40}")
    remarks: list[str] = []
    frames = _frames(value, remarks)
    from PIL import Image

    images = [Image.fromarray(frame).convert("RGB") for frame in frames]
    if len({image.size for image in images}) != 1:
        raise Unencodable("its frames are not all of one size")
    data = io.BytesIO()
    images[0].save(
        data, "GIF", save_all=True, append_images=images[1:], duration=max(20, round(1000 / fps)), loop=0
    )
    details = {"width": images[0].width, "height": images[0].height, "frames": len(images), "fps": fps}
    encoded = Encoded(data.getvalue(), ".gif", "image/gif", details=details)
    remarks.append("frames stored as GIF, of 256 colours and up to 50 frames a second")
    return EncodedMedia(MediaKind.VIDEO, (encoded,), remarks=tuple(dict.fromkeys(remarks)))


def _frames(value: Any, remarks: list[str]) -> list[Any]:
    if not (isinstance(value, Sequence) or (hasattr(value, "ndim") and value.ndim in (3, 4))):
        raise Unencodable(f"{type_name(value)} is no video: frames (T, H, W, C), a file, or its bytes")
    frames = list(value) if isinstance(value, Sequence) or is_tensor(value) else list(to_array(value))
    if not 0 < len(frames) <= _MOST_FRAMES:
        raise Unencodable(f"{len(frames):,} frames; a video has 1 to {_MOST_FRAMES:,}")
    return [
        np.asarray(frame.convert("RGB")) if hasattr(frame, "getbands") else pixels(frame, remarks)
        for frame in frames
    ]


def _known_video(data: bytes) -> Encoded:
    if data[:4] == b"GIF8":
        return Encoded(data, ".gif", "image/gif")
    if data[4:8] == b"ftyp":
        return Encoded(data, ".mp4", "video/mp4")
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return Encoded(data, ".webm", "video/webm")
    if data[:4] == b"OggS":
        return Encoded(data, ".ogg", "video/ogg")
    raise Unencodable("bytes that are no GIF, MP4, WebM or OGG file")
