"""What stands for a tracker on ranks that don't record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Blank:
    """Stands for a tracker on ranks that don't record: every attribute, item and call is itself.

    Empty as a collection, false as a condition.
    """

    def __getattr__(self, name: str) -> Blank:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Blank:
        """Nothing is done."""
        return self

    def __enter__(self) -> Blank:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __getitem__(self, key: object) -> Blank:
        return self

    def __setitem__(self, key: object, value: object) -> None:
        """Nothing is kept."""

    def __setattr__(self, name: str, value: object) -> None:
        """Nothing is kept."""

    def __iter__(self) -> Iterator[Blank]:
        return iter(())

    def __len__(self) -> int:
        return 0
