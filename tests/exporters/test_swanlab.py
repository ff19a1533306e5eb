"""SwanLab beyond the contract: hooks, refused points, runs that are active, folders of earlier starts."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import swanlab

from otel_tracking.errors import ConfigurationError, Retry
from otel_tracking.records import Media, MediaFile, MediaKind, RunStatus, Text
from otel_tracking_exporters import swanlab as exporter
from otel_tracking_exporters._swanlab_media import as_items
from otel_tracking_exporters.swanlab import SwanLabTracker
from tests.given import batch, run_info


@pytest.fixture(autouse=True)
def _finished() -> Iterator[None]:
    yield
    if swanlab.has_run():
        swanlab.get_run().finish()
    exporter._own_runs.clear()


def test_refused_points_are_told(tmp_path: Path) -> None:
    tracker = SwanLabTracker()
    tracker.start(run_info(tmp_path))
    written = tracker.write(
        batch([("a", 1, 1.0), ("a", -1, 2.0), ("a", 1, 3.0), ("b", 1, 4.0), ("a", 2**50, 5.0)])
    )
    assert written.accepted == 2
    assert {reason: list(places) for reason, places in written.rejected.items()} == {
        "SwanLab has no negative steps": [1],
        "SwanLab keeps the first point of a step alone": [2],
        "SwanLab has no steps above 2^48": [4],
    }
    tracker.finish(RunStatus.FINISHED)


def test_hooks_stay_those_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SwanLab takes them, and at the end sets back what it found then, whoever came in between."""
    tracker = SwanLabTracker()
    before = sys.excepthook, signal.getsignal(signal.SIGINT), sys.stdout.write
    tracker.start(run_info(tmp_path))
    assert (sys.excepthook, signal.getsignal(signal.SIGINT), sys.stdout.write) == before
    between = lambda *error: None  # noqa: E731
    monkeypatch.setattr(sys, "excepthook", between)
    tracker.finish(RunStatus.FINISHED)
    assert sys.excepthook is between


def test_an_exception_that_ends_the_program_while_a_run_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is ours to end, once what was recorded is delivered."""
    seen: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: seen.append(error))
    error = ValueError("boom")

    def welcome(*_: object) -> None:
        sys.excepthook(ValueError, error, None)

    monkeypatch.setattr("swanlab.sdk.internal.run.greeting.welcome", welcome)
    tracker = SwanLabTracker()
    tracker.start(run_info(tmp_path))
    assert seen == [error]
    assert tracker.native.alive
    tracker.write(batch([("a", 0, 1.0)]))
    tracker.finish(RunStatus.FAILED)


def test_a_name_has_one_kind_of_data(tmp_path: Path) -> None:
    tracker = SwanLabTracker()
    tracker.start(run_info(tmp_path))
    tracker.write(batch([("a", 0, 1.0)]))
    written = tracker.write_text(Text("a", "text", 0, 1, 5))
    assert written.altered == {"stored as <name> (text): the name has other data": 1}
    tracker.finish(RunStatus.FINISHED)
    (folder,) = (tmp_path / "project" / "run-1" / "swanlog").glob("run-*")
    assert [path.read_text() for path in (folder / "media" / "text").iterdir()] == ["text"]


def test_an_active_run_is_used(tmp_path: Path) -> None:
    mine = swanlab.init(mode="offline", project="mine", log_dir=str(tmp_path / "mine"))
    tracker = SwanLabTracker()
    tracker.start(run_info(tmp_path))
    assert tracker.native is mine
    tracker.finish(RunStatus.FINISHED)
    assert not (tmp_path / "project" / "run-1" / "swanlog").exists()


def test_an_earlier_folder_is_retired(tmp_path: Path) -> None:
    first = SwanLabTracker()
    first.start(run_info(tmp_path))
    first.write(batch([("a", 0, 1.0)]))
    state = dict(first.state())
    first.finish(RunStatus.KILLED)
    again = SwanLabTracker()
    assert again.start(run_info(tmp_path, position=1, state=state)) == 0
    again.finish(RunStatus.FINISHED)
    run = tmp_path / "project" / "run-1"
    assert len(list((run / "swanlog").glob("run-*"))) == 1
    assert len(list((run / "swanlab-retired").iterdir())) == 1


def test_a_wrong_argument(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"swanlab\.init refused its arguments"):
        SwanLabTracker().start(run_info(tmp_path, options={"tags": "x" * 600, "job_type": "y" * 600}))


class Refusing(BaseHTTPRequestHandler):
    """A server that knows nobody."""

    asked: list[str]

    def do_POST(self) -> None:
        self.asked.append(self.path)
        self.send_response(400)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


def test_online_the_server_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SwanLab takes our id there only with leave to resume; without, it asks no server at all."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Refusing,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SWANLAB_MODE", "online")
    monkeypatch.setenv("SWANLAB_API_KEY", "abcdefghijklmnopqrstu")
    monkeypatch.setenv("SWANLAB_API_HOST", f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(swanlab.exceptions.AuthenticationError):
        SwanLabTracker().start(run_info(tmp_path))
    assert asked == ["/api/login/api_key"]
    server.shutdown()
    server.server_close()
    with pytest.raises(Retry, match="no SwanLab server at"):
        SwanLabTracker().start(run_info(tmp_path))


def test_tables_have_captions_and_any_text(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([["\ud800<", {"_file": 1}]]))
    (tmp_path / "image.png").write_bytes(b"pixels")
    rows = MediaFile(tmp_path / "rows.json", "0", 1, "rows.json", "application/json")
    image = MediaFile(tmp_path / "image.png", "1", 1, "", "image/png", 'a "cat"')
    details = {"columns": ["\udc00", "image"], "rows": 1}
    _, ((_, _, content, _),), _ = as_items(Media(MediaKind.TABLE, "t", (rows, image), details, 0, 1, 1))
    shown = content.decode()
    assert "<th>\\udc00</th>" in shown
    assert "<td>\\ud800&lt;</td>" in shown
    assert 'title="a &quot;cat&quot;"' in shown
