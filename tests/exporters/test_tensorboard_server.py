"""A real TensorBoard, with either of its loaders, shows what the tracker writes while it is written."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest

from otel_tracking.records import Batch, Config, Kind, Rewind, RunInfo, RunStatus, Series, Text
from otel_tracking_exporters.tensorboard import TensorBoardTracker

START_NS = 1_700_000_000_000_000_000
CONFIG = {
    "optim": {"lr": 0.1, "betas": [0.9, 0.99], "none": None, "inf": math.inf, "big": 2**53 + 1, "empty": {}},
    "optim/lr": "same name, other key",
    "flag": True,
    "long": "x" * 20_000,
}
SERIES = [
    Series("loss", "loss", Kind.GAUGE, unit="s", description="the **loss**"),
    Series("acc/class.cat", "acc", Kind.GAUGE, group="acc"),
    Series("acc/class.(dog", "acc", Kind.GAUGE, group="acc"),
    Series("acc/class.catfish", "acc", Kind.GAUGE),
]


def points(first: int, last: int, series: list[Series]) -> Batch:
    """A row of all series for each position; the step is the position, values tell series apart."""
    positions = np.repeat(np.arange(first, last + 1), len(series))
    index = np.tile(np.arange(len(series), dtype=np.int32), last - first + 1)
    return Batch(series, index, positions, START_NS + positions, positions + index / 4, positions)


def start(directory: Path, **changes: Any) -> TensorBoardTracker:
    directory.mkdir(parents=True, exist_ok=True)
    tracker = TensorBoardTracker()
    tracker.start(RunInfo("p", directory.name, "r", directory, directory.parent, **changes))
    return tracker


class Server:
    """A TensorBoard on loopback."""

    def __init__(self, logdir: Path, load_fast: str) -> None:
        options = ["--host", "127.0.0.1", "--port", "0", "--reload_interval", "1", "--load_fast", load_fast]
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        found = (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in self.process.stdout)
        self.url = next(match[0] for match in found if match)

    def get(self, path: str, body: Any = None, **query: str) -> Any:
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.url}data/plugin/{path}?{urlencode(query)}"
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(url, data, headers), timeout=30) as answer:
            return json.load(answer)

    def steps(self, run: str, tag: str) -> list[int]:
        if tag not in self.get("scalars/tags").get(run, {}):
            return []
        return [step for _, step, _ in self.get("scalars/scalars", run=run, tag=tag)]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(params=["true", "false"])
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], Server]]:
    servers: list[Server] = []

    def make(logdir: Path) -> Server:
        servers.append(Server(logdir, request.param))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def wait_for(expected: Any, look: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while (seen := look()) != expected:
        assert time.monotonic() < end, f"expected {expected}, last saw {seen}"
        time.sleep(0.1)


def test_every_tab_shows_a_run_and_its_next_start(tmp_path: Path, serve: Callable[[Path], Server]) -> None:
    done = start(tmp_path / "done")
    done.write_config(Config(CONFIG, START_NS, 1))
    done.write_text(Text("predictions", "a *sample*", 1, START_NS, 2))
    done.write(points(3, 20, SERIES[:2]))
    done.write(points(21, 30, SERIES))
    done.finish(RunStatus.FINISHED)
    failed = start(tmp_path / "failed")
    failed.write_config(Config({"optim": {"lr": 0.2}}, START_NS, 1))
    failed.write(points(2, 3, SERIES[:1]))
    failed.finish(RunStatus.FAILED)
    live = start(tmp_path / "live")
    live.write(points(1, 5, SERIES))
    live.native.add_custom_scalars({"mine": {"chart": ["Multiline", ["loss"]]}})

    server = serve(tmp_path)
    wait_for(list(range(1, 6)), lambda: server.steps("live", "loss"))

    scalars = server.get("scalars/scalars", run="done", tag="loss")
    assert [point[1:] for point in scalars] == [[i, float(i)] for i in range(3, 31)]
    assert server.get("scalars/tags")["done"]["loss"]["description"] == "<p>the <strong>loss</strong> [s]</p>"

    assert set(server.get("text/tags")["done"]) == {"predictions/text_summary", "config/text_summary"}
    text = server.get("text/text", run="done", tag="predictions/text_summary")
    assert "a <em>sample</em>" in text[0]["text"]

    statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    request = {"allowedStatuses": statuses, "startIndex": 0, "sliceSize": 10}
    groups = {g["name"]: g for g in server.get("hparams/session_groups", request)["sessionGroups"]}
    assert {name: g["sessions"][0]["status"] for name, g in groups.items()} == {
        "done": "STATUS_SUCCESS",
        "failed": "STATUS_FAILURE",
    }
    assert groups["done"]["hparams"] == {
        "optim/lr": 0.1,
        "optim/lr~2": "same name, other key",
        "optim/betas": "[0.9, 0.99]",
        "optim/none": "null",
        "optim/inf": "Infinity",
        "optim/big": str(2**53 + 1),
        "optim/empty": "{}",
        "flag": True,
        "long": "x" * 20_000,
    }
    metrics = {m["name"]["tag"]: m["value"] for m in groups["done"]["metricValues"]}
    assert metrics["loss"] == 30.0

    categories = {c["title"]: c["chart"] for c in server.get("custom_scalars/layout")["category"]}
    assert [chart["title"] for chart in categories["mine"]] == ["chart"]
    (chart,) = categories["grouped series"]
    assert chart["title"] == "acc"
    shown = [
        tag
        for pattern in chart["multiline"]["tag"]
        for tag in server.get("custom_scalars/scalars", run="done", tag=pattern)["tag_to_events"]
    ]
    assert shown == ["acc/class.cat", "acc/class.(dog"]

    state, cursor = live.state(), live.confirm()
    live.write(points(6, 8, SERIES))
    with (tmp_path / "live" / state["file"]).open("ab") as torn:
        torn.write(b"\x40\0\0\0\0\0\0\0torn")
    wait_for(list(range(1, 9)), lambda: server.steps("live", "loss"))
    again = start(tmp_path / "live", state=state, position=cursor)
    assert again.confirm() == 8
    new_dog = Series("acc/class.emu", "acc", Kind.GAUGE, group="acc")
    again.write(points(9, 12, [SERIES[0], new_dog]))
    wait_for(list(range(1, 13)), lambda: server.steps("live", "loss"))
    assert "mine" in {c["title"] for c in server.get("custom_scalars/layout")["category"]}
    again.write(points(13, 14, SERIES))
    wait_for(list(range(1, 15)), lambda: server.steps("live", "loss"))
    again.finish(RunStatus.FINISHED)
    live.finish(RunStatus.KILLED)


def test_a_rewind_hides_what_is_void(tmp_path: Path, serve: Callable[[Path], Server]) -> None:
    run = start(tmp_path / "run")
    run.write(points(1, 9, SERIES[:2]))
    server = serve(tmp_path)
    wait_for(list(range(1, 10)), lambda: server.steps("run", "loss"))
    assert run.write_rewind(Rewind(6, START_NS, 10)).accepted == 1
    assert run.confirm() == 10
    again = Batch(
        SERIES[:1],
        np.zeros(2, np.int32),
        np.array([6, 7]),
        np.array([START_NS, START_NS]),
        np.array([0.5, 0.5]),
        np.array([11, 12]),
    )
    run.write(again)
    run.write(points(13, 13, SERIES[1:2]))
    wait_for([1, 2, 3, 4, 5, 6, 7], lambda: server.steps("run", "loss"))
    wait_for([1, 2, 3, 4, 5, 13], lambda: server.steps("run", SERIES[1].tag))
    run.finish(RunStatus.FINISHED)
