"""What trackers refuse for good: kept with its reason, and given to them again on demand."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from otel_tracking import discovery
from otel_tracking.dead_letters import DeadLetters, Letter
from otel_tracking.journal.format import RecordType
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.records import Batch, Config, Rank, Receipt, RunStatus, Text, Written
from otel_tracking.request import RunRequest
from otel_tracking.runner import deliver
from otel_tracking.runs import RunOnDisk, find_runs
from otel_tracking.session import RunSession
from otel_tracking.testing import RecordingTracker
from tests import readback
from tests.plugin_site import Site

COMMAND = str(Path(sys.executable).with_name("otel-tracking"))


class Choosy(RecordingTracker):
    """Refuses points of odd steps, every text and every config, until it is told to take them."""

    takes_all = False

    def write(self, batch: Batch) -> Written:
        places = [] if self.takes_all else np.flatnonzero(batch.steps % 2).tolist()
        super().write(batch)
        return Written(len(batch) - len(places), rejected={"odd": places} if places else {})

    def write_text(self, text: Text) -> Written:
        super().write_text(text)
        return Written(1) if self.takes_all else Written(0, rejected={"no texts": [0]})

    def write_config(self, config: Config) -> Written:
        super().write_config(config)
        return Written(1) if self.takes_all else Written(0, rejected={"no config": [0]})


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[Choosy]:
    """What `choosy` is, in this process."""

    class Fresh(Choosy):
        name = "choosy"

    load = discovery.load
    monkeypatch.setattr(discovery, "load", lambda name: Fresh if name == "choosy" else load(name))
    return Fresh


def record(directory: Path, tracker: str) -> RunOnDisk:
    """A run that only the journal has: 10 rows of two points, a counter, two odd values, a text, a config."""
    recorder = Recorder()
    arguments: dict[str, Any] = {"run_id": "run", "delivery": "off", "load": lambda: ({}, {})}
    session = RunSession(recorder, RunRequest("p", directory, names=[tracker], **arguments), Rank())
    session.begin()
    counter = TrackingMeterProvider(recorder).get_meter("m").create_counter("seen", unit="1")
    for step in range(10):
        recorder.log({"a": float(step), "b": -float(step)}, step=step)
        counter.add(2, {"training.step": step, "kind": "image", "sizes": (1, 2)})
    recorder.log({"a": math.nan, "b": math.inf}, step=11)
    recorder.log({"note": "a text"}, step=3)
    recorder.entry(RecordType.CONFIG, {"config": {"lr": 0.1}})
    session.end(RunStatus.FINISHED, 10)
    (run,) = find_runs(directory)
    return run


def letters(run: RunOnDisk, tracker: str) -> list[Letter]:
    return DeadLetters(run.directory / "cursors" / f"rank-00000-{tracker}.json").load()


def sent(run: RunOnDisk, *, resend: bool = False) -> Receipt:
    return deliver(run, RunStatus.FINISHED, 20, resend=resend)


def test_what_is_refused_is_kept_whole_and_taken_later(tracker: type[Choosy], tmp_path: Path) -> None:
    run = record(tmp_path, "choosy")
    receipt = sent(run).trackers["choosy"]
    assert (receipt.recorded, receipt.delivered, receipt.pending) == (32, 15, 0)
    assert receipt.dropped == {"odd": 17}
    assert receipt.not_stored == {"no texts": 1, "no config": 1}
    found = letters(run, "choosy")
    assert [letter.kind for letter in found].count("point") == 17
    assert {letter.reason for letter in found} == {"odd", "no texts", "no config"}
    assert [letter.content["value"] for letter in found if letter.name == "a"][:5] == [
        1.0,
        3.0,
        5.0,
        7.0,
        9.0,
    ]
    assert math.isnan(next(letter.content["value"] for letter in found if letter.step == 11))
    path = run.directory / "dead-letters" / "rank-00000-choosy.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    # Not before it is asked for, and then once.
    assert sent(run).trackers["choosy"].dropped == {"odd": 17}
    tracker.takes_all = True
    assert sent(run).trackers["choosy"].dropped == {"odd": 17}
    receipt = sent(run, resend=True).trackers["choosy"]
    assert (receipt.recorded, receipt.delivered, receipt.pending) == (32, 32, 0)
    assert (receipt.dropped, receipt.not_stored, receipt.state) == ({}, {}, "finished")
    assert letters(run, "choosy") == []
    assert not path.exists()
    assert sent(run, resend=True).trackers["choosy"].delivered == 32


def test_what_comes_again_is_what_was_recorded(
    tracker: type[Choosy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record(tmp_path, "choosy")
    sent(run)
    made: list[Choosy] = []
    init = tracker.__init__

    def remember(self: Choosy) -> None:
        init(self)
        made.append(self)

    monkeypatch.setattr(tracker, "__init__", remember)
    tracker.takes_all = True
    sent(run, resend=True)
    (again,) = made
    rows = readback.journal(run.directory)
    for tag, points in again_by_tag(again).items():
        expected = [point for point in rows[tag] if point.step % 2]
        assert [(p.step, readback.bits(p.value), p.time) for p in points] == expected
    assert len({p.position for p in again.points("a")}) == 6
    assert [p.position for p in again.points("a")] == [p.position for p in again.points("b")]
    ((text,), (config,)) = again.texts, again.configs
    assert (text.tag, text.text, text.step) == ("note", "a text", 3)
    assert config.values == {"lr": 0.1}
    series = {s.tag: s for batch in again.batches for s in batch.series}
    (seen,) = (s for s in series.values() if s.name == "seen")
    assert (seen.unit, seen.meter, dict(seen.attributes)) == ("1", "m", {"kind": "image", "sizes": (1, 2)})
    assert again.status is RunStatus.FINISHED


def again_by_tag(tracker: RecordingTracker) -> dict[str, list[Any]]:
    tags = {point.tag for point in tracker.points()}
    assert len(tags) == 3
    return {tag: tracker.points(tag) for tag in tags}


def test_what_is_refused_again_stays_with_its_reason(tracker: type[Choosy], tmp_path: Path) -> None:
    run = record(tmp_path, "choosy")
    sent(run)
    before = letters(run, "choosy")
    for _ in range(2):
        receipt = sent(run, resend=True).trackers["choosy"]
        assert receipt.dropped == {"odd": 17}
        assert receipt.not_stored == {"no texts": 1, "no config": 1}
        assert letters(run, "choosy") == before


def test_a_run_that_goes_on_after_letters_were_sent_again(tracker: type[Choosy], tmp_path: Path) -> None:
    """The records of the next process come after what was sent again, also in position."""
    run = record(tmp_path, "choosy")
    sent(run)
    tracker.takes_all = True
    sent(run, resend=True)
    tracker.takes_all = False
    recorder = Recorder()
    recorder.open(run.directory / "journal" / "rank-00000")
    for step in range(10):
        recorder.log({"a": float(step)}, step=step)
    recorder.close(RunStatus.FINISHED)
    receipt = sent(run).trackers["choosy"]
    assert (receipt.recorded, receipt.delivered, receipt.pending) == (42, 37, 0)
    assert receipt.dropped == {"odd": 5}
    assert len(letters(run, "choosy")) == 5


def test_a_torn_or_foreign_line_takes_no_other_with_it(tmp_path: Path) -> None:
    dead = DeadLetters(tmp_path / "cursors" / "rank-00000-x.json")
    first = Letter("text", "no", 5, 1, 2, {"tag": "t", "text": "x\u2028y\nz", "options": {}})
    second = Letter("text", "no", 6, 1, 2, {"tag": "t", "text": "\ud800", "options": {}})
    dead.add([first])
    with dead.path.open("a") as file:
        file.write('\n{"kind": "text", "reas')
    dead.add([second, first])
    with dead.path.open("a") as file:
        file.write("\n[1, 2]\n\n5\n")
    assert dead.load() == [first, second]


def test_mlflow_gets_what_it_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record(tmp_path, "mlflow")
    real = MlflowClient.log_batch

    def log_batch(self: MlflowClient, run_id: str, metrics: Any = (), *rest: Any, **named: Any) -> Any:
        if any(metric.key == "b" for metric in metrics):
            raise MlflowException("not this one", error_code=INVALID_PARAMETER_VALUE)
        return real(self, run_id, metrics, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", log_batch)
        receipt = sent(run).trackers["mlflow"]
    (reason,) = receipt.dropped
    assert receipt.dropped == {reason: 11}
    receipt = sent(run, resend=True).trackers["mlflow"]
    assert (receipt.delivered, receipt.pending, receipt.dropped) == (32, 0, {})
    (stored,) = readback.mlflow_runs(tmp_path, "p")
    points = readback.mlflow_points(tmp_path, stored)
    rows = readback.journal(run.directory)
    for tag in ("a", "b"):
        assert [p.step for p in points[tag]] == [p.step for p in rows[tag]]
    assert stored.info.status == "FINISHED"


def test_the_command_shows_and_sends_again(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    site.install(
        "choosy",
        "import os\nfrom tests.test_dead_letters import Choosy\n"
        "class Made(Choosy):\n    name = 'choosy'\n    takes_all = 'TAKES_ALL' in os.environ\n",
    )
    root = str(Path(__file__).parent.parent)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site.directory), root])}

    def command(*arguments: str, code: int, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [COMMAND, *arguments, "--project-dir", str(tmp_path / "out")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**environ, **more},
        )
        assert done.returncode == code, done.stderr
        return done

    record(tmp_path / "out", "choosy")
    assert "there are no dead letters" in command("dead-letters", "run", code=0).stderr
    assert "17 x odd" in command("sync", "run", code=0).stderr
    shown = command("dead-letters", "run", code=1)
    assert "choosy" in shown.stdout
    assert "no texts" in shown.stdout
    assert "--resend" in shown.stderr
    lines = command("dead-letters", "run", "--json", code=1).stdout.splitlines()
    assert len(lines) == 19
    assert json.loads(lines[0])["tracker"] == "choosy"
    assert command("dead-letters", "run", "--json", "--tracker", "other", code=0).stdout == ""
    again = command("dead-letters", "run", "--resend", code=0, TAKES_ALL="1")
    assert "delivered 32  pending 0  dropped 0" in again.stderr
    assert "there is no run 'x'" in command("dead-letters", "x", code=2).stderr
