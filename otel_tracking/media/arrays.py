"""Arrays of NumPy, torch, JAX and their like, as NumPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from otel_tracking.media.encoded import Unencodable, type_name


def is_tensor(value: Any) -> bool:
    """Whether it is one of torch's, whose images have their channels first."""
    return type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach")


def to_array(value: Any) -> npt.NDArray[Any]:
    """Its numbers, copied to this process's memory if they are on a device.

    Raises:
        Unencodable: It holds no numbers.
    """
    if is_tensor(value):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy has none
            value = value.float()
        value = value.numpy()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise Unencodable(f"{type_name(value)} is no array ({error})") from error
    if array.dtype.kind not in "biuf":
        raise Unencodable(f"{type_name(value)} holds no real numbers (dtype {array.dtype})")
    return array
