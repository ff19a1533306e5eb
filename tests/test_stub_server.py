"""A server that answers at random: all that can be stored arrives, the rest is kept and counted."""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from otel_tracking import failures as failures_module
from otel_tracking.cursor import Cursor
from otel_tracking.dead_letters import DeadLetters
from otel_tracking.errors import Retry
from otel_tracking.followers import Follower
from otel_tracking.journal.reader import PointCounter
from otel_tracking.pace import Budget
from otel_tracking.recorder import Recorder
from otel_tracking.records import Batch, Config, RunInfo, RunStatus, Text, TrackerReceipt, Written
from otel_tracking.tracker import Pacing, Tracker

TIMEOUT = 0.05
DEADLINE = 600


class Server(ThreadingHTTPServer):
    """Takes points as JSON. Steps that 97 divides are never right."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.dice = random.Random(11)
        self.answers: Counter[str] = Counter()
        self.stored: dict[tuple[int, str], tuple[int, float]] = {}
        self.received = 0
        self.guard = threading.Lock()

    def take(self, points: list[tuple[int, str, int, float]]) -> None:
        with self.guard:
            for position, tag, step, value in points:
                self.received += 1
                self.stored[position, tag] = (step, value)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that went away are what this is about."""


class Handler(BaseHTTPRequestHandler):
    """Answers at random, sometimes after having stored what came."""

    server: Server
    protocol_version = "HTTP/1.1"
    KINDS: ClassVar = ["fine"] * 10 + ["429", "429 later", "500", "503", "reset", "hang", "half"]

    def do_POST(self) -> None:
        points = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            kind = self.server.dice.choice(self.KINDS)
            stores = kind == "fine" or (not kind.startswith("429") and self.server.dice.random() < 0.5)
            self.server.answers[kind] += 1
        wrong = [place for place, point in enumerate(points) if point[2] % 97 == 0]
        if stores:
            self.server.take([point for place, point in enumerate(points) if place not in wrong])
        if kind == "hang":
            time.sleep(3 * TIMEOUT)
        elif kind == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        elif kind == "half":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"wrong": [')
            self.close_connection = True
        elif kind == "fine":
            self.answer(200, json.dumps({"wrong": wrong}).encode())
        elif kind == "429 later":
            self.answer(429, b"", {"Retry-After": "0.01"})
        else:
            self.answer(int(kind), b"no")

    def answer(self, code: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not in the output of tests."""


class HttpTracker(Tracker):
    """Sends points to the server, and does not know what that has already."""

    name = "http"
    pacing = Pacing(max_points=20, interval=0.001)

    def __init__(self, port: int) -> None:
        self.port = port
        self.position = 0

    def start(self, run: RunInfo) -> int:
        self.position = run.position
        return run.position

    def write(self, batch: Batch) -> Written:
        tags = [series.tag for series in batch.series]
        columns = (batch.positions, batch.index, batch.steps, batch.values)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        points = [(position, tags[index], step, value) for position, index, step, value in rows]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request("POST", "/", json.dumps(points))
            response = connection.getresponse()
            after = response.getheader("Retry-After")
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise Retry(f"HTTP {response.status}", after=float(after) if after else None)
        wrong = json.loads(body)["wrong"]
        self.position = int(batch.positions[-1])
        return Written(len(batch) - len(wrong), rejected={"97 divides the step": wrong} if wrong else {})

    def write_text(self, text: Text) -> Written:
        self.position = text.position
        return Written(1)

    def write_config(self, config: Config) -> Written:
        self.position = config.position
        return Written(1)

    def confirm(self, *, flush: bool = False) -> int:
        return self.position

    def finish(self, status: RunStatus) -> None:
        pass

    @property
    def native(self) -> Any:
        return self


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield made
        made.shutdown()


def test_a_server_that_answers_at_random(
    server: Server, tmp_path: Path, size: Callable[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = size(700, 10_000)
    monkeypatch.setattr(failures_module, "_BACKOFF_FIRST", 0.0002)
    monkeypatch.setattr(failures_module, "_BACKOFF_MOST", 0.002)
    run = tmp_path / "run"
    (run / "cursors").mkdir(parents=True)
    recorder = Recorder()
    recorder.open(run / "journal")
    path = run / "cursors" / "rank-00000-http.json"
    info = RunInfo("p", "run", "run", run, tmp_path)

    def follow() -> Follower:
        cursor = Cursor.load(path) or Cursor("http")
        follower = Follower(
            lambda: HttpTracker(server.server_port), info, run / "journal", cursor, path, Budget(1.0)
        )
        threading.Thread(target=follower.run, daemon=True).start()
        return follower

    counter = PointCounter(run / "journal")
    follower = follow()
    step = 0
    deadline = time.monotonic() + DEADLINE
    while sum(server.answers.values()) < answers:
        assert time.monotonic() < deadline
        for _ in range(200):
            recorder.log({"a": float(step), "b": -float(step)}, step=step)
            step += 1
        time.sleep(0.05)
        if step % 4000 == 0:  # as if the process had died
            follower.abandon()
            assert follower.done.wait(60)
            follower = follow()
        adds_up(follower.receipt(counter.count))
    recorder.close(RunStatus.FINISHED)
    follower.end(RunStatus.FINISHED)
    assert follower.done.wait(DEADLINE)
    receipt = follower.receipt(counter.count)
    counter.close()
    adds_up(receipt)

    refused = [n for n in range(step) if n % 97 == 0]
    assert (receipt.recorded, receipt.pending, receipt.state) == (2 * step, 0, "finished")
    assert receipt.dropped == {"97 divides the step": 2 * len(refused)}
    letters = DeadLetters(path).load()
    assert sorted((letter.step, letter.name, letter.content["value"]) for letter in letters) == sorted(
        (n, tag, sign * float(n)) for n in refused for tag, sign in (("a", 1), ("b", -1))
    )
    taken = sorted((tag, *point) for (_, tag), point in server.stored.items())
    assert taken == sorted(
        (tag, n, sign * float(n)) for n in range(step) if n % 97 for tag, sign in (("a", 1), ("b", -1))
    )
    # What the server got twice is known to the receipt; that may be too careful by what never reached it.
    twice = server.received - len(server.stored)
    assert 0 < twice <= receipt.perhaps_twice
    assert set(server.answers) == set(Handler.KINDS)
    assert {"Retry: HTTP 429", "Retry: HTTP 500", "Retry: HTTP 503"} <= set(receipt.errors)


def adds_up(receipt: TrackerReceipt) -> None:
    assert receipt.recorded == receipt.delivered + receipt.pending + sum(receipt.dropped.values())
    assert receipt.pending >= 0
