"""`Tracking.log` of ten scalars, beside W&B's and Accelerate's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import wandb
from accelerate import Accelerator

from benchmarks.loops import log_ten
from benchmarks.measuring import PACE, Contender, Size, take_turns
from benchmarks.tables import COMPARISON, Table, compared
from otel_tracking import Tracking

_Log = Callable[[int], None]


def measure(size: Size) -> list[Table]:
    """With nothing but the journal, and while TensorBoard is being delivered."""
    run = wandb.init(dir=".", mode="offline", settings=wandb.Settings(console="off", x_disable_stats=True))
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir="accelerate")
    accelerator.init_trackers("log")
    peers = log_ten(run.log), log_ten(accelerator.log)
    rounds, calls = size(15, 3), size(20_000, 2_000)
    at_full_speed = [
        *_rows("journal alone", [], *peers, rounds=rounds, calls=calls),
        *_rows("TensorBoard delivered", ["tensorboard"], *peers, rounds=rounds, calls=calls),
    ]
    paced = _rows("TensorBoard delivered", ["tensorboard"], *peers, rounds=size(500, 10))
    accelerator.end_training()
    run.finish()
    return [
        Table("log of ten scalars with a step, caller's thread", COMPARISON, at_full_speed),
        Table(f"The same, one call every {PACE * 1000:g} ms", COMPARISON, paced),
    ]


def _rows(
    setup: str,
    trackers: list[str],
    log_to_wandb: _Log,
    log_by_accelerate: _Log,
    *,
    rounds: int,
    calls: int | None = None,
) -> list[Sequence[str]]:
    """Of rounds of many calls; of paced ones where `calls` is None, for which there is no target."""
    with Tracking(log_with=trackers, project_dir="runs") as tracking:
        tracking.init_trackers("log")
        log = log_ten(tracking.log)
        if calls is None:
            logs = log, log_to_wandb, log_by_accelerate
            contenders = [Contender(make, 1, settle=lambda: time.sleep(PACE)) for make in logs]
        else:
            contenders = [
                Contender(log, calls),
                Contender(log_to_wandb, calls // 40, settle=_until_idle),
                Contender(log_by_accelerate, calls // 80, settle=_until_idle),
            ]
        ours, of_wandb, of_accelerate = take_turns(contenders, rounds=rounds)
    return [
        compared(f"W&B offline, wall, {setup}", ours.wall, of_wandb.wall, at_most=40 if calls else None),
        compared(f"W&B offline, CPU, {setup}", ours.cpu, of_wandb.cpu),
        compared(
            f"Accelerate to TensorBoard, wall, {setup}",
            ours.wall,
            of_accelerate.wall,
            at_most=80 if calls else None,
        ),
        compared(f"Accelerate to TensorBoard, CPU, {setup}", ours.cpu, of_accelerate.cpu),
    ]


def _until_idle() -> None:
    time.sleep(0.2)  # W&B's service and SummaryWriter's thread go on after the call
