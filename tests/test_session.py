"""A run's session: trackers that fail beside one that does not, names that come late, ends in time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import otel_tracking as ot
from otel_tracking import session as session_module
from otel_tracking.cursor import Cursor, cursor_path
from otel_tracking.errors import Retry, RunIdentityUnknown
from otel_tracking.identity import RunIdentity
from otel_tracking.journal.reader import Block, JournalReader, PointCounter
from otel_tracking.ranks import parse
from otel_tracking.recorder import Recorder
from otel_tracking.records import Rank, Receipt, RunStatus
from otel_tracking.request import RunRequest
from otel_tracking.session import RunSession, open_pending
from otel_tracking.testing import RecordingTracker
from otel_tracking.tracker import Tracker

DEADLINE = 20.0
EVERY_METHOD = ("start", "write", "write_text", "write_config", "confirm", "state", "finish")


class Sessions:
    """Runs of one process, in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recorder = Recorder()
        self.begun: list[RunSession] = []
        self.release = threading.Event()

    def request(self, trackers: Mapping[str, Tracker], **values: Any) -> RunRequest:
        makers = {name: (lambda tracker=tracker: tracker) for name, tracker in trackers.items()}
        arguments = {
            "project": "p",
            "project_dir": self.directory,
            "load": lambda: (makers, {}),
            "names": list(makers),
            "budget": 1.0,
            **values,
        }
        return RunRequest(**arguments)

    def begin(
        self, trackers: Mapping[str, Tracker], *, rank: Rank | None = None, **values: Any
    ) -> RunSession:
        return self.begin_request(self.request(trackers, **values), rank=rank)

    def begin_request(self, request: RunRequest, *, rank: Rank | None = None) -> RunSession:
        self.recorder.unmute()
        session = RunSession(self.recorder, request, rank or Rank())
        self.begun.append(session)
        session.begin()
        return session

    def log(self, count: int, *, start: int = 0) -> None:
        for step in range(start, start + count):
            self.recorder.log({"a": float(step)}, step=step)

    def hang(self) -> None:
        self.release.wait(60)


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    made = Sessions(tmp_path)
    yield made
    made.release.set()
    for session in made.begun:
        session.end(RunStatus.FINISHED, 5)
        for follower in session.followers.values():
            follower.abandon()
            assert follower.done.wait(DEADLINE)


def steps(tracker: RecordingTracker) -> list[int]:
    return [point.step for point in tracker.points()]


def adds_up(receipt: Receipt) -> bool:
    return all(
        t.recorded == t.delivered + t.pending + sum(t.dropped.values()) and t.pending >= 0
        for t in receipt.trackers.values()
    )


# Trackers that fail beside one that does not


def raising(method: str) -> Callable[[], None]:
    def raise_it() -> None:
        raise RuntimeError(f"{method} of a broken tracker")

    return raise_it


@pytest.mark.parametrize("methods", [*((m,) for m in EVERY_METHOD), EVERY_METHOD], ids=lambda m: "+".join(m))
def test_two_of_three_raise_on_every_call(sessions: Sessions, methods: tuple[str, ...]) -> None:
    whole = RecordingTracker()
    broken = [RecordingTracker(faults={m: raising(m) for m in methods}) for _ in range(2)]
    session = sessions.begin({"one": broken[0], "two": broken[1], "whole": whole})
    for step in range(200):
        sessions.recorder.log({"a": float(step), "note": f"text {step}"}, step=step)
        assert adds_up(session.receipt())
    stored_nothing = bool({"start", "write", "write_text", "confirm"} & set(methods))
    others = ["whole"] if stored_nothing else ["whole", "one", "two"]
    assert until(lambda: not any(session.receipt().trackers[name].pending for name in others))
    begun = time.monotonic()
    receipt = session.end(RunStatus.FINISHED, timeout=5 if methods == EVERY_METHOD else 1)
    assert time.monotonic() - begun < 20
    assert adds_up(receipt)
    assert steps(whole) == list(range(200))
    assert len(whole.texts) == 200
    assert (receipt.trackers["whole"].delivered, receipt.trackers["whole"].state) == (200, "finished")
    assert not receipt.trackers["whole"].errors
    for name in ("one", "two"):
        reasons = list(receipt.trackers[name].errors)
        assert (
            f"RuntimeError: {'start' if len(methods) > 1 else methods[0]} of a broken tracker" in reasons
            or (methods == ("write_config",))
        )
        assert (receipt.trackers[name].pending > 0) == stored_nothing


@pytest.mark.parametrize("method", ["start", "write", "confirm", "state", "finish"])
def test_two_of_three_hang_for_good(sessions: Sessions, method: str) -> None:
    whole = RecordingTracker()
    stuck = [RecordingTracker(faults={method: sessions.hang}) for _ in range(2)]
    session = sessions.begin({"one": stuck[0], "whole": whole, "two": stuck[1]})
    sessions.log(200)
    begun = time.monotonic()
    assert not session.flush(0.3) or method == "finish"
    receipt = session.end(RunStatus.FINISHED, timeout=1)
    assert time.monotonic() - begun < 20
    assert adds_up(receipt)
    assert steps(whole) == list(range(200))
    assert receipt.trackers["whole"].state == "finished"
    again = time.monotonic()
    session.end(RunStatus.FINISHED, timeout=60)
    assert time.monotonic() - again < 20, "whoever had his time is not waited for again"


def test_what_was_not_delivered_is_said_once_with_the_reason(
    sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    broken = RecordingTracker(faults={"write": raising("write")})
    session = sessions.begin({"broken": broken})
    sessions.log(3)
    session.end(RunStatus.FINISHED, timeout=0.5)
    session.end(RunStatus.FINISHED, timeout=0.5)
    told = [r.getMessage() for r in caplog.records if "not delivered" in r.getMessage()]
    assert len(told) == 1
    assert "broken: 3 of 3 points are not delivered (RuntimeError: write of a broken tracker)" in told[0]
    assert str(session.directory) in told[0]


def test_delivery_is_parallel(sessions: Sessions) -> None:
    together = threading.Barrier(4, timeout=DEADLINE)
    waiting = {f"t{i}": RecordingTracker(faults={"finish": together.wait}) for i in range(4)}
    session = sessions.begin(waiting)
    sessions.log(10)
    receipt = session.end(RunStatus.FINISHED, timeout=2 * DEADLINE)
    assert [tracker.state for tracker in receipt.trackers.values()] == ["finished"] * 4
    assert receipt.complete


# Trackers that can't be had


def test_a_tracker_that_is_not_there_yet_is_pending(sessions: Sessions) -> None:
    loaded = RecordingTracker()

    def load() -> tuple[dict[str, Callable[[], Tracker]], dict[str, str]]:
        assert sessions.release.wait(DEADLINE)
        return {"slow": lambda: loaded}, {}

    session = sessions.begin_request(RunRequest("p", sessions.directory, load, ["slow"], budget=1.0))
    sessions.log(5)
    receipt = session.receipt()
    assert not receipt.complete
    assert (receipt.trackers["slow"].pending, receipt.trackers["slow"].state) == (5, "starting")
    assert not session.flush(0.1)
    sessions.release.set()
    assert session.flush(DEADLINE)
    assert session.receipt().complete


def test_an_import_that_hangs_holds_up_no_end(sessions: Sessions) -> None:
    late = RecordingTracker()

    def load() -> tuple[dict[str, Callable[[], Tracker]], dict[str, str]]:
        sessions.hang()
        return {"late": lambda: late}, {}

    session = sessions.begin_request(RunRequest("p", sessions.directory, load, ["late"], budget=1.0))
    sessions.log(5)
    begun = time.monotonic()
    receipt = session.end(RunStatus.FINISHED, timeout=0.5)
    session.end(RunStatus.FINISHED, timeout=60)
    assert time.monotonic() - begun < 20
    assert receipt.trackers["late"].pending == 5
    sessions.release.set()
    assert session.ready.wait(DEADLINE)
    assert not session.followers, "the run is over; the journal keeps it for later"
    assert not late.calls


def test_trackers_that_can_not_be_loaded_are_named(sessions: Sessions) -> None:
    whole = RecordingTracker()

    def load() -> tuple[dict[str, Callable[[], Tracker]], dict[str, str]]:
        return {"whole": lambda: whole}, {"missing": "Tried adding logger missing"}

    request = RunRequest("p", sessions.directory, load, ["missing", "odd", "whole"], budget=1.0)
    session = sessions.begin_request(request)
    sessions.log(5)
    assert not session.flush(DEADLINE), "not stored in every tracker"
    receipt = session.end(RunStatus.FINISHED, DEADLINE)
    assert not receipt.complete
    assert receipt.trackers["missing"].errors == {"Tried adding logger missing": 1}
    assert receipt.trackers["odd"].state == "failed"
    assert receipt.trackers["whole"].delivered == 5


def test_a_load_that_breaks_keeps_the_journal(sessions: Sessions, caplog: pytest.LogCaptureFixture) -> None:
    def load() -> tuple[dict[str, Callable[[], Tracker]], dict[str, str]]:
        raise AttributeError("module 'numpy' has no attribute 'float_'")

    session = sessions.begin_request(RunRequest("p", sessions.directory, load, ["x"], budget=1.0))
    sessions.log(5)
    assert not session.flush(DEADLINE)
    receipt = session.end(RunStatus.FINISHED, DEADLINE)
    assert receipt.trackers["x"].errors == {"module 'numpy' has no attribute 'float_'": 1}
    assert session.directory is not None
    assert len(ot.read_run(session.directory)) == 5
    assert "nothing is delivered" in caplog.text


def test_a_damaged_cursor_stops_its_tracker_alone(sessions: Sessions) -> None:
    first = sessions.begin({"a": RecordingTracker(), "b": RecordingTracker()}, run_id="r")
    sessions.log(3)
    assert first.end(RunStatus.FINISHED, DEADLINE).complete
    assert first.directory is not None
    cursor_path(first.directory, 0, "a").write_text('{"version": 1, "trac')
    trackers = {"a": RecordingTracker(), "b": RecordingTracker()}
    second = sessions.begin(trackers, run_id="r")
    sessions.log(2, start=3)
    receipt = second.end(RunStatus.FINISHED, DEADLINE)
    assert steps(trackers["b"]) == [3, 4]
    assert (receipt.trackers["b"].delivered, receipt.trackers["b"].recorded) == (5, 5)
    assert trackers["a"].calls == []
    assert "remove the file to deliver the run again" in next(iter(receipt.trackers["a"].errors))


# Ends


def test_the_first_end_decides(sessions: Sessions) -> None:
    tracker = RecordingTracker()
    session = sessions.begin({"t": tracker})
    sessions.log(3)
    first = session.end(RunStatus.FAILED, DEADLINE)
    second = session.end(RunStatus.FINISHED, DEADLINE)
    assert first == second
    assert tracker.status is RunStatus.FAILED
    assert tracker.calls.count("finish") == 1
    assert session.flush(1.0)
    assert session.receipt() == first


def test_an_end_during_an_end_waits_for_it(sessions: Sessions) -> None:
    tracker = RecordingTracker(faults={"finish": lambda: time.sleep(0.5)})
    session = sessions.begin({"t": tracker})
    sessions.log(3)
    receipts: list[Receipt] = []
    threads = [
        threading.Thread(target=lambda: receipts.append(session.end(RunStatus.FINISHED, DEADLINE)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.trackers["t"].state for r in receipts] == ["finished"] * 3
    assert tracker.calls.count("finish") == 1


def test_any_timeout_is_a_timeout(sessions: Sessions) -> None:
    session = sessions.begin({"t": RecordingTracker()})
    sessions.log(3)
    assert session.flush(float("inf"))
    assert session.flush(1e300)
    session.flush(-1.0)
    assert session.end(RunStatus.FINISHED, float("inf")).complete


def test_records_after_the_end_are_counted(sessions: Sessions) -> None:
    session = sessions.begin({"t": RecordingTracker()})
    sessions.log(3)
    session.end(RunStatus.FINISHED, DEADLINE)
    sessions.log(4)
    receipt = session.receipt()
    assert receipt.recorded == 3
    assert receipt.not_recorded == {"recorded after the run had ended": 4}


def test_receipts_from_many_threads_agree(sessions: Sessions) -> None:
    session = sessions.begin({"t": RecordingTracker()})
    stop = threading.Event()
    wrong: list[Receipt] = []

    def poll() -> None:
        last = 0
        while not stop.is_set():
            receipt = session.receipt()
            if not adds_up(receipt) or receipt.recorded < last:
                wrong.append(receipt)
            last = receipt.recorded

    pollers = [threading.Thread(target=poll) for _ in range(3)]
    for poller in pollers:
        poller.start()
    for start in range(0, 20_000, 100):
        sessions.log(100, start=start)
    stop.set()
    for poller in pollers:
        poller.join()
    assert not wrong
    receipt = session.end(RunStatus.FINISHED, DEADLINE)
    assert (receipt.recorded, receipt.complete) == (20_000, True)


def descriptors() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def test_runs_give_their_descriptors_back(sessions: Sessions) -> None:
    def run() -> None:
        session = sessions.begin({"t": RecordingTracker()})
        sessions.log(3)
        assert session.end(RunStatus.FINISHED, DEADLINE).complete

    run()
    before = descriptors()
    for _ in range(5):
        run()
    assert descriptors() <= before


# What is on disk


def test_a_tracker_is_on_record_before_it_starts(sessions: Sessions) -> None:
    tracker = RecordingTracker(faults={"start": sessions.hang})
    lock = threading.Lock()  # of an SDK's object: no copy can be made of it
    session = sessions.begin(
        {"t": tracker}, init_kwargs={"t": {"client": lock, ("a", 1): {"deep": [1, None]}}}, run_id="r"
    )
    assert session.directory is not None
    cursor = Cursor.load(cursor_path(session.directory, 0, "t"))
    assert cursor is not None
    assert cursor.run["run_id"] == "r"
    assert cursor.run["options"]["client"].startswith("<unlocked")
    assert json.loads((session.directory / "run.json").read_text())["project"] == "p"
    sessions.release.set()
    assert until(lambda: tracker.run is not None)
    assert tracker.run is not None
    assert tracker.run.options["client"] is lock


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/etc/x",
        "a\0b",
        "..",
        ".",
        "",
        "x" * 5000,
        "-rf",
        "\u202egnp",
        "a/../../b",
        "\ud800",
        "ü" * 300,
    ],
)
def test_hostile_names_stay_inside(sessions: Sessions, name: str) -> None:
    home = sessions.directory / "home"
    session = sessions.begin({"t": RecordingTracker()}, project=name, run_id=name or None, project_dir=home)
    sessions.log(1)
    assert session.end(RunStatus.FINISHED, DEADLINE).complete
    assert session.directory is not None
    assert session.directory.resolve().parent.parent == home.resolve()
    assert [path.name for path in sessions.directory.iterdir()] == ["home"]
    assert len(ot.read_run(session.directory)) == 1


def test_a_resumed_run_goes_on(sessions: Sessions) -> None:
    first, second = RecordingTracker(), RecordingTracker()
    begun = sessions.begin({"t": first}, run_id="same")
    sessions.log(3)
    assert begun.end(RunStatus.FINISHED, DEADLINE).complete
    resumed = sessions.begin({"t": second}, run_id="same")
    sessions.log(2, start=3)
    receipt = resumed.end(RunStatus.FINISHED, DEADLINE)
    assert (steps(first), steps(second)) == ([0, 1, 2], [3, 4])
    assert (receipt.recorded, receipt.trackers["t"].delivered) == (5, 5)
    assert second.run is not None
    assert second.run.resumed


# Names that come late


class Late:
    """A run whose name comes when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known = threading.Event()
        self.identity: RunIdentity | None = RunIdentity("agreed", "store")
        monkeypatch.setattr(session_module, "resolve_now", lambda *a, **k: None)
        monkeypatch.setattr(session_module, "resolve", self._resolve)

    def _resolve(self, *args: Any, stop: threading.Event, **kwargs: Any) -> RunIdentity:
        while not (self.known.is_set() or stop.is_set()):
            stop.wait(0.01)
        if self.identity is None:
            raise RunIdentityUnknown("no rung applies")
        return self.identity


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Late:
    return Late(monkeypatch)


def test_a_pending_run_gets_its_name_while_it_records(sessions: Sessions, late: Late) -> None:
    tracker = RecordingTracker()
    session = sessions.begin({"t": tracker})
    sessions.log(3)
    assert session.receipt().recorded == 3
    assert not session.flush(0.05)
    late.known.set()
    assert session.flush(DEADLINE)
    sessions.log(3, start=3)
    receipt = session.end(RunStatus.FINISHED, DEADLINE)
    assert session.directory == sessions.directory / "p" / "agreed"
    assert steps(tracker) == list(range(6))
    assert (receipt.recorded, receipt.run_id, receipt.complete) == (6, "agreed", True)
    assert not (sessions.directory / ".pending").exists()


def test_a_pending_run_that_ends_gets_its_name_first(sessions: Sessions, late: Late) -> None:
    tracker = RecordingTracker()
    session = sessions.begin({"t": tracker})
    sessions.log(3)
    begun = time.monotonic()
    receipt = session.end(RunStatus.FAILED, DEADLINE)
    assert time.monotonic() - begun < 20
    assert (receipt.recorded, receipt.complete) == (3, True)
    assert tracker.status is RunStatus.FAILED
    sessions.log(2)
    assert session.receipt().recorded == 3, "the journal is not opened again"


def test_a_pending_run_is_appended_to_what_lies_there(sessions: Sessions, late: Late) -> None:
    late.known.set()
    first, second = RecordingTracker(), RecordingTracker()
    begun = sessions.begin({"t": first})
    sessions.log(3)
    assert begun.end(RunStatus.FINISHED, DEADLINE).complete

    late.known.clear()
    resumed = sessions.begin({"t": second})
    sessions.log(2, start=3)
    assert resumed.receipt().recorded == 2
    late.known.set()
    assert resumed.flush(DEADLINE)
    assert steps(second) == [3, 4], "flush waits for positions in the journal's place, not before it had one"
    sessions.log(1, start=5)
    receipt = resumed.end(RunStatus.FINISHED, DEADLINE)
    assert steps(second) == [3, 4, 5]
    assert (receipt.recorded, receipt.trackers["t"].delivered) == (6, 6)


def test_appending_at_the_end_does_not_wait_for_itself(sessions: Sessions, late: Late) -> None:
    late.known.set()
    begun = sessions.begin({"t": RecordingTracker()})
    sessions.log(3)
    assert begun.end(RunStatus.FINISHED, DEADLINE).complete
    late.known.clear()
    second = RecordingTracker()
    resumed = sessions.begin({"t": second})
    sessions.log(2, start=3)
    begun_at = time.monotonic()
    receipt = resumed.end(RunStatus.FINISHED, DEADLINE)
    assert time.monotonic() - begun_at < 20
    assert steps(second) == [3, 4]
    assert receipt.complete


def test_a_run_without_a_name_keeps_its_journal(
    sessions: Sessions, late: Late, caplog: pytest.LogCaptureFixture
) -> None:
    late.identity = None
    session = sessions.begin({"t": RecordingTracker()})
    sessions.log(3)
    receipt = session.end(RunStatus.FINISHED, DEADLINE)
    assert receipt.trackers["t"].errors == {"no rung applies": 1}
    assert receipt.trackers["t"].pending == 3
    (pending,) = (sessions.directory / ".pending").iterdir()
    assert str(pending) in caplog.text
    assert len(ot.read_run(pending)) == 3


def test_a_name_after_the_end_touches_no_later_run(
    sessions: Sessions, late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stubborn(*args: Any, **kwargs: Any) -> RunIdentity:
        assert late.known.wait(DEADLINE)
        return RunIdentity("too-late", "store")

    monkeypatch.setattr(session_module, "resolve", stubborn)
    session = sessions.begin({"t": RecordingTracker()})
    sessions.log(3)
    assert session.end(RunStatus.FINISHED, 0.2).trackers["t"].pending == 3
    monkeypatch.setattr(session_module, "resolve_now", lambda *a, **k: RunIdentity("next", "explicit"))
    tracker = RecordingTracker()
    following = sessions.begin({"t": tracker})
    late.known.set()
    assert session.ready.wait(DEADLINE)
    sessions.log(2)
    assert following.end(RunStatus.FINISHED, DEADLINE).recorded == 2
    assert steps(tracker) == [0, 1]
    assert not (sessions.directory / "p" / "too-late").exists()
    assert "had ended before" in next(iter(session.receipt().trackers["t"].errors))


def test_what_was_recorded_before_the_run_lands_in_it(sessions: Sessions) -> None:
    tracker = RecordingTracker()
    request = sessions.request({"t": tracker}, run_id="r")
    open_pending(sessions.recorder, request, Rank())
    sessions.log(2)
    session = sessions.begin_request(request)
    sessions.log(2, start=2)
    assert session.end(RunStatus.FINISHED, DEADLINE).complete
    assert steps(tracker) == [0, 1, 2, 3]
    assert [path.name for path in sessions.directory.iterdir()] == ["p"]


# Ranks


def test_ranks_without_trackers_still_share_a_run(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def resolve_now(rank: Rank, *, several: bool, **kwargs: Any) -> RunIdentity:
        asked.append(several)
        return RunIdentity("r", "explicit")

    monkeypatch.setattr(session_module, "resolve_now", resolve_now)
    session = sessions.begin({}, rank=Rank(0, 2, 0, 2), policies=parse("all", known=()))
    session.end(RunStatus.FINISHED, DEADLINE)
    assert asked == [True]


def test_each_rank_has_its_journal_and_under_all_its_own_run(sessions: Sessions) -> None:
    tracker = RecordingTracker()
    session = sessions.begin(
        {"t": tracker}, rank=Rank(1, 2, 1, 2), run_id="r", policies=parse("all", known=["t"])
    )
    sessions.log(2)
    assert session.end(RunStatus.FINISHED, DEADLINE).complete
    assert tracker.run is not None
    assert (tracker.run.name, tracker.run.group) == ("r-rank1", "r")
    assert tracker.run.directory == sessions.directory / "p" / "r" / "rank-1"
    assert tracker.run.resource["training.rank"] == 1
    assert ot.read_run(sessions.directory / "p" / "r").ranks.tolist() == [1, 1]


def test_retry_is_no_failure_of_the_run(sessions: Sessions) -> None:
    calls = iter([Retry("a moment", after=0.01), None])

    def once() -> None:
        error = next(calls, None)
        if error is not None:
            raise error

    tracker = RecordingTracker(faults={"write": once})
    session = sessions.begin({"t": tracker})
    sessions.log(3)
    receipt = session.end(RunStatus.FINISHED, DEADLINE)
    assert receipt.complete
    assert receipt.trackers["t"].errors == {"Retry: a moment": 1}


def test_a_signal_handler_may_end_the_run_in_the_middle_of_a_receipt(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = sessions.begin({})
    sessions.log(3)
    count = PointCounter.count
    inner: list[int] = []

    def interrupted(counter: PointCounter, *, until: int | None = None) -> int:
        if not inner:
            inner.append(0)  # so that the inner one is not interrupted
            inner[0] = session.end(RunStatus.KILLED, DEADLINE).recorded
        return count(counter, until=until)

    monkeypatch.setattr(PointCounter, "count", interrupted)
    outer: list[int] = []
    thread = threading.Thread(target=lambda: outer.append(session.receipt().recorded), daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert (inner, outer) == ([3], [3])
    assert session.receipt().recorded == 3


def test_what_is_raised_in_the_middle_of_a_receipt_spoils_no_later_one(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = sessions.begin({})
    sessions.log(3)
    read = JournalReader.read

    def read_and_raise(reader: JournalReader) -> Block | None:
        read(reader)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(JournalReader, "read", read_and_raise)
        with pytest.raises(KeyboardInterrupt):
            session.receipt()
    assert session.receipt().recorded == 3
