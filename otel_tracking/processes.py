"""What only one process of several does: helpers that need no other library."""

from __future__ import annotations

import builtins
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from otel_tracking.errors import ConfigurationError
from otel_tracking.records import Rank

P = ParamSpec("P")
R = TypeVar("R")


class Processes:
    """For what knows its `rank`."""

    rank: Rank

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0."""
        return self.rank.is_main

    @property
    def is_local_main_process(self) -> bool:
        """Whether this is the first rank of its node."""
        return self.rank.is_local_main

    def on_main_process(self, function: Callable[P, R]) -> Callable[P, R | None]:
        """A decorator: the function runs on rank 0, and returns None elsewhere."""
        return self._only_if(lambda: self.rank.is_main, function)

    def on_local_main_process(self, function: Callable[P, R]) -> Callable[P, R | None]:
        """A decorator: the function runs on the first rank of each node, and returns None elsewhere."""
        return self._only_if(lambda: self.rank.is_local_main, function)

    @staticmethod
    def _only_if(wanted: Callable[[], bool], function: Callable[P, R]) -> Callable[P, R | None]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
            return function(*args, **kwargs) if wanted() else None

        return call

    def print(self, *values: Any, **kwargs: Any) -> None:
        """`print`, on the first rank of each node."""
        if self.rank.is_local_main:
            builtins.print(*values, **kwargs)

    def wait_for_everyone(self) -> None:
        """Wait until every rank is here.

        Raises:
            ConfigurationError: There are several ranks, and no process group of torch.distributed.
        """
        if self.rank.world_size == 1:
            return
        distributed = getattr(sys.modules.get("torch"), "distributed", None)
        if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
            raise ConfigurationError(
                f"rank {self.rank.rank} can't wait for the others without a process group: "
                "call torch.distributed.init_process_group first"
            )
        distributed.barrier()

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Rank 0 does what is inside first, to download or cache something; the others after it."""
        with self._first(first=self.rank.is_main):
            yield

    @contextlib.contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """The first rank of each node does what is inside first, the others after it."""
        with self._first(first=self.rank.is_local_main):
            yield

    @contextlib.contextmanager
    def _first(self, *, first: bool) -> Iterator[None]:
        if not first:
            self.wait_for_everyone()
        try:
            yield
        finally:
            if first:
                self.wait_for_everyone()
