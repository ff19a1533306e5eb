"""What `init_kwargs` may be for TensorBoard."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from otel_tracking.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of `SummaryWriter` but the directory; its class docstring says what they do here."""

    comment: str = ""
    purge_step: int | None = None
    max_queue: int = 10
    flush_secs: float = 120
    filename_suffix: str = ""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Options:
        """The options.

        Raises:
            ConfigurationError: One that `SummaryWriter` does not have, or of the wrong type.
        """
        known = sorted(cls.__dataclass_fields__)
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ConfigurationError(
                    f"tensorboard has no option {name!r}.{hint} Known: {', '.join(known)}."
                )
        made = cls(**options)
        if made.purge_step is not None and not isinstance(made.purge_step, int):
            raise ConfigurationError(f"tensorboard's purge_step must be an int, not {made.purge_step!r}")
        if not isinstance(made.filename_suffix, str):
            raise ConfigurationError(
                f"tensorboard's filename_suffix must be a str, not {made.filename_suffix!r}"
            )
        return made
