"""Loops that do nothing but record: each function returns one that makes as many calls as it is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any


def set_with_step(gauge: Any) -> Callable[[int], None]:
    """`gauge.set` with its step."""
    steps = itertools.count()

    def make_calls(calls: int) -> None:
        for step in itertools.islice(steps, calls):
            gauge.set(0.5, {"training.step": step})

    return make_calls


def set_with_step_and_attribute(gauge: Any) -> Callable[[int], None]:
    """`gauge.set` with its step and a text."""
    steps = itertools.count()

    def make_calls(calls: int) -> None:
        for step in itertools.islice(steps, calls):
            gauge.set(0.5, {"training.step": step, "split": "train"})

    return make_calls


def set_with_attribute(gauge: Any) -> Callable[[int], None]:
    """`gauge.set` with a text, for the SDK's."""

    def make_calls(calls: int) -> None:
        for _ in itertools.repeat(None, calls):
            gauge.set(0.5, {"split": "train"})

    return make_calls


def log_ten(log: Callable[..., object]) -> Callable[[int], None]:
    """`log` of ten scalars with a step."""
    steps = itertools.count()

    def make_calls(calls: int) -> None:
        for step in itertools.islice(steps, calls):
            log(
                {
                    "train/loss": 0.5,
                    "train/accuracy": 0.5,
                    "train/lr": 0.5,
                    "train/grad_norm": 0.5,
                    "train/perplexity": 0.5,
                    "eval/loss": 0.5,
                    "eval/accuracy": 0.5,
                    "time/data": 0.5,
                    "time/forward": 0.5,
                    "time/backward": 0.5,
                },
                step=step,
            )

    return make_calls
