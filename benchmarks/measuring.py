"""How costs are taken: contenders in turn, so that a busy machine is busy for all of them."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from benchmarks.tables import Table

_P = ParamSpec("_P")
_T = TypeVar("_T")

PACE = 0.002
"""Seconds between the calls of a training loop that the benchmarks imitate: its caches are cold for us."""


class Size(Protocol):
    """`size(full, quick)`: how much to measure, the second under `--quick`."""

    def __call__(self, full: int, quick: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to be timed."""

    make_calls: Callable[[int], object]
    """Makes that many calls, in a loop of its own."""
    calls: int
    """How many a round."""
    settle: Callable[[], object] = lambda: None
    """Called after each round, untimed: waits until what the calls set off has come to rest."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one call: medians over rounds, in nanoseconds."""

    cpu: float
    """Of the calling thread."""
    wall: float


def take_turns(contenders: Sequence[Contender], *, rounds: int) -> list[Cost]:
    """The cost of a call of each contender, after a round that does not count."""
    cpu: list[list[float]] = [[] for _ in contenders]
    wall: list[list[float]] = [[] for _ in contenders]
    for turn in range(rounds + 1):
        for contender, cpus, walls in zip(contenders, cpu, wall, strict=True):
            cpu_start, wall_start = time.thread_time_ns(), time.perf_counter_ns()
            contender.make_calls(contender.calls)
            wall_end, cpu_end = time.perf_counter_ns(), time.thread_time_ns()
            contender.settle()
            if turn:
                cpus.append((cpu_end - cpu_start) / contender.calls)
                walls.append((wall_end - wall_start) / contender.calls)
    return [Cost(statistics.median(c), statistics.median(w)) for c, w in zip(cpu, wall, strict=True)]


def in_own_process(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function in a fresh interpreter and return what it returns."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *args, **kwargs).result()


def measure_topic(topic: str, directory: str, *, quick: bool) -> list[Table]:
    """Call `measure` of one of this package's modules, in a directory of its own."""
    os.chdir(directory)
    module = importlib.import_module(f"benchmarks.{topic}")
    tables: list[Table] = module.measure(lambda full, small: small if quick else full)
    return tables
