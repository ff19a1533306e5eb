"""Helpers for what one process of several does."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

import otel_tracking as ot
from otel_tracking.errors import ConfigurationError

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def tracking(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> ot.Tracking:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setenv("OTEL_TRACKING_RUN_ID", "one")
    return ot.Tracking(log_with=())


def test_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tracking(monkeypatch, 0, 1)
    assert alone.is_main_process
    assert alone.is_local_main_process
    assert alone.on_main_process(lambda x: x + 1)(1) == 2
    alone.print("a", "b", sep="-")
    with alone.main_process_first(), alone.local_main_process_first():
        alone.wait_for_everyone()
    assert capsys.readouterr().out == "a-b\n"


def test_on_another_rank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    other = tracking(monkeypatch, 1, 2)
    assert not other.is_main_process
    assert not other.is_local_main_process
    assert other.on_main_process(lambda: 1)() is None
    assert other.on_local_main_process(lambda: 1)() is None
    other.print("a")
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigurationError, match="init_process_group"):
        other.wait_for_everyone()


ORDER = """
import os, time
import torch.distributed
import otel_tracking as ot

torch.distributed.init_process_group("gloo")
tracking = ot.Tracking(log_with=())
with tracking.main_process_first():
    if tracking.is_main_process:
        time.sleep(0.5)
    with open("order.txt", "a") as file:
        file.write(f"{tracking.rank.rank}")
tracking.print("printed by", tracking.rank.rank)
torch.distributed.destroy_process_group()
"""


def test_the_main_process_comes_first(run_script: Run, tmp_path: object) -> None:
    from pathlib import Path

    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = run_script(ORDER, launcher=launcher)
    assert Path("order.txt").read_text() == "01"
    assert done.stdout.count("printed by 0") == 1
    assert "printed by 1" not in done.stdout
