"""Images: arrays, tensors, PIL's, files, and what trackers make of them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from otel_tracking.media.arrays import is_tensor, to_array
from otel_tracking.media.encoded import Encoded, EncodedMedia, Unencodable, from_file, type_name
from otel_tracking.media.overlays import overlays_of
from otel_tracking.records import MediaKind

if TYPE_CHECKING:
    from PIL import Image

_CHANNELS: Final = (1, 3, 4)
_FORMATS: Final = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "WEBP": ".webp"}
"""What every browser shows; other files become PNG."""
_PNG_MODES: Final = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_MOST_IMAGES: Final = 1000


def encode_images(value: Any) -> EncodedMedia:
    """One image, a sequence of images, or an array of them.

    An array of two dimensions is a grey image (H, W). One of three whose first or last dimension is 1, 3 or
    4 is one image with so many channels, (C, H, W) or (H, W, C); where both are, a tensor's channels come
    first and another array's last. Any other of three is N grey images (N, H, W). One of four is N images,
    each of which is read by itself, so that (3, 1, H, W) of tensors is three grey ones.

    Integers are 0 to 255, floats and booleans 0 to 1; what lies outside is cut, NaN is black. Boxes and masks
    of a `wandb.Image` are kept.

    Raises:
        Unencodable: It is none.
    """
    remarks: list[str] = []
    files = tuple(_encode(image, remarks) for image in _each(value))
    if not files:
        raise Unencodable("there is no image in it")
    return EncodedMedia(MediaKind.IMAGE, files, remarks=tuple(dict.fromkeys(remarks)))


def encode_image(value: Any, remarks: list[str]) -> Encoded:
    """One image; `remarks` takes what was changed.

    Raises:
        Unencodable: It is none.
    """
    return _encode(value, remarks)


def is_image(value: Any) -> bool:
    """Whether it can be nothing else: PIL's, or a tracker's own object around one."""
    return _pil_of(value) is not None


def _each(value: Any) -> list[Any]:
    if (isinstance(value, Sequence) and not isinstance(value, str | bytes)) or _are_several(value):
        images = list(value)
    else:
        return [value]
    if len(images) > _MOST_IMAGES:
        raise Unencodable(f"{len(images):,} images under one name; {_MOST_IMAGES:,} are the most")
    return images


def _are_several(array: Any) -> bool:
    shape: Sequence[int] = getattr(array, "shape", ())
    return len(shape) == 4 or (len(shape) == 3 and not {shape[0], shape[-1]} & set(_CHANNELS))


def _encode(value: Any, remarks: list[str]) -> Encoded:
    pil = _pil_of(value)
    if pil is not None:
        details, masks = overlays_of(value)
        image = _png(pil, caption=_caption_of(value))
        return replace(image, details={**image.details, **details}, masks=masks)
    if isinstance(value, bytes):
        return _from_bytes(value, "")
    if isinstance(value, str | os.PathLike):
        return _from_path(value)
    if hasattr(value, "savefig"):
        raise Unencodable("a figure; that is what log_figure is for")
    return _png(_from_array(value, remarks))


def _pil_of(value: Any) -> Image.Image | None:
    """A PIL image, or that of a `wandb.Image`, an `mlflow.Image`, a `swanlab.Image`, ..."""
    if hasattr(value, "to_pil"):
        value = value.to_pil()
    elif type(value).__module__.split(".")[0] != "PIL":
        value = getattr(value, "image", None)
    is_pil = type(value).__module__.split(".")[0] == "PIL" and hasattr(value, "getbands")
    return value if is_pil else None


def _caption_of(value: Any) -> str:
    caption = getattr(value, "_caption", None) or getattr(value, "caption", None)
    return caption if isinstance(caption, str) else ""


def _png(image: Image.Image, *, name: str = "", caption: str = "") -> Encoded:
    if image.mode not in _PNG_MODES:
        image = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    details = {"width": image.width, "height": image.height, "channels": len(image.getbands())}
    return Encoded(buffer.getvalue(), ".png", "image/png", name, caption, details)


def _from_path(path: str | os.PathLike[str]) -> Encoded:
    file = from_file(path, "an image")
    assert isinstance(file.source, Path)
    return _from_bytes(file.source.read_bytes(), file.name)


def _from_bytes(data: bytes, name: str) -> Encoded:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            suffix = _FORMATS.get(image.format or "")
            if suffix is None:
                return _png(image, name=f"{Path(name).stem}.png" if name else "")
            image.load()
            details = {"width": image.width, "height": image.height, "channels": len(image.getbands())}
            frames = _frames(image)
            if frames > 1:
                details["frames"] = frames
            return Encoded(data, suffix, Image.MIME[image.format or ""], name, details=details)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unencodable(f"{name or 'the bytes'!r:.200} is no image that can be read ({error})") from error


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # noqa: BLE001 - of a file whose first frame is whole, later ones may be anything
        return 1


def _from_array(value: Any, remarks: list[str]) -> Image.Image:
    from PIL import Image

    return Image.fromarray(pixels(value, remarks))


def pixels(value: Any, remarks: list[str]) -> npt.NDArray[np.uint8]:
    """(H, W), (H, W, 3) or (H, W, 4) bytes of an array that is one image, as `encode_images` reads it.

    Raises:
        Unencodable: It has none of these.
    """
    array = to_array(value)
    shape = array.shape
    if array.ndim == 3:
        first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
        if first and (is_tensor(value) or not last):
            array = array.transpose(1, 2, 0)
        elif not last:
            array = np.empty(0)
        if array.size and array.shape[2] == 1:
            array = array[:, :, 0]
    if array.ndim not in (2, 3) or not array.size:
        raise Unencodable(f"{type_name(value)} of shape {shape} is no image: (H, W), (H, W, C) or (C, H, W)")
    return np.ascontiguousarray(_bytes(array, remarks))


def _bytes(array: npt.NDArray[Any], remarks: list[str]) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False)
    if array.dtype.kind in "bf":
        array = np.nan_to_num(array.astype(np.float64), nan=0.0) * 255
        outside = "pixels beyond 0 to 1 were cut"
    else:
        outside = "pixels beyond 0 to 255 were cut"
    cut = np.clip(array, 0, 255)
    if (cut != array).any():
        remarks.append(outside)
    rounded: npt.NDArray[np.uint8] = np.rint(cut).astype(np.uint8)
    return rounded
