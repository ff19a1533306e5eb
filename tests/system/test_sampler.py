"""The sampler: when it samples, what it records, and that nothing waits for a source or fails with one."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest

import otel_tracking as ot
from otel_tracking.recorder import Recorder
from otel_tracking.records import Kind
from otel_tracking.system import forking
from otel_tracking.system import sampler as sampler_module
from otel_tracking.system.figures import Figure, Metric, Source
from otel_tracking.system.sampler import METER, Sampler

TIMEOUT = 60.0
METRIC = Metric("system.made.up", Kind.OBSERVABLE_GAUGE, "By", "Made up.")


class Told(Source):
    """Gives what it is told to, and counts."""

    def __init__(self, name: str, figures: Callable[[int], Iterator[Figure]]) -> None:
        self.name = name
        self._figures = figures
        self.asked = 0
        self.closed = 0
        self.threads: set[int] = set()

    def figures(self) -> Iterator[Figure]:
        self.asked += 1
        self.threads.add(threading.get_ident())
        return self._figures(self.asked)

    def close(self) -> None:
        self.closed += 1


def told(name: str, *, until: int = 0, reached: threading.Event | None = None) -> Told:
    """Gives 1, 2, 3, ...; `reached` is set once it was asked `until` times."""

    def figures(asked: int) -> Iterator[Figure]:
        if reached is not None and asked >= until:
            reached.set()
        yield Figure(METRIC, asked, {"source": name})

    return Told(name, figures)


@pytest.fixture(autouse=True)
def _at_the_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "_FIRST", 3600)
    monkeypatch.setattr(sampler_module, "_STOP_TIMEOUT", TIMEOUT)


def sample_once(recorder: Recorder, *sources: Source) -> None:
    """By a sampler that comes to no sample but the last."""
    sampler = Sampler(recorder, 3600, openers=[lambda: sources])
    sampler.start()
    sampler.stop()


def test_a_run_shorter_than_an_interval_has_one_sample(recorder: Recorder) -> None:
    first, second = told("first"), told("second")
    sample_once(recorder, first, second)
    data = ot.read_run("journal")
    assert data.values.tolist() == [1, 1]
    assert len(set(data.times.tolist())) == 1
    series = data.series[0]
    assert (series.name, series.tag) == ("system/made.up", "system/made.up/source.first")
    assert (series.unit, series.description, series.meter) == ("By", "Made up.", METER)
    assert series.kind is Kind.OBSERVABLE_GAUGE
    assert first.closed == second.closed == 1
    assert threading.get_ident() not in first.threads


def test_samples_come_on_the_interval(recorder: Recorder) -> None:
    reached = threading.Event()
    source = told("source", until=5, reached=reached)
    sampler = Sampler(recorder, 0.001, openers=[lambda: [source]])
    sampler.start()
    assert reached.wait(TIMEOUT)
    sampler.stop()
    data = ot.read_run("journal")
    assert data.values.tolist() == list(range(1, source.asked + 1))
    assert data.steps.tolist() == list(range(source.asked))


def test_the_process_s_step_is_the_sample_s(recorder: Recorder) -> None:
    ot.set_step(7)
    with ot.step(8):  # this thread's, and not the sampler's
        sample_once(recorder, told("source"))
    assert ot.read_run("journal").steps.tolist() == [7]


def test_a_source_that_fails_is_counted_and_warned_of_once(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(asked: int) -> Iterator[Figure]:
        yield Figure(METRIC, asked, {"source": "failing"})
        raise PermissionError("no")

    reached = threading.Event()
    bad, good = Told("bad", failing), told("good", until=4, reached=reached)

    def no_source() -> list[Source]:
        raise OSError("none")

    sampler = Sampler(recorder, 0.001, openers=[no_source, lambda: [bad, good]])
    with caplog.at_level(logging.WARNING):
        sampler.start()
        assert reached.wait(TIMEOUT)
        sampler.stop()
    assert recorder.refused == {
        "system metrics: no_source raised OSError": 1,
        "system metrics: bad raised PermissionError": bad.asked,
    }
    assert len(caplog.records) == 2
    data = ot.read_run("journal")
    assert data.of("system/made.up", {"source": "good"}).values.tolist() == list(range(1, good.asked + 1))
    assert len(data.of("system/made.up", {"source": "failing"})) == bad.asked


def test_the_end_waits_for_no_source_that_hangs(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sampler_module, "_STOP_TIMEOUT", 0.01)
    asked, released = threading.Event(), threading.Event()

    def hanging(_: int) -> Iterator[Figure]:
        asked.set()
        assert released.wait(TIMEOUT)
        yield Figure(METRIC, 1)

    sampler = Sampler(recorder, 0.001, openers=[lambda: [Told("hanging", hanging)]])
    sampler.start()
    (thread,) = [t for t in threading.enumerate() if t.name == "otel-tracking-system"]
    assert thread.daemon
    assert asked.wait(TIMEOUT)
    with caplog.at_level(logging.WARNING):
        sampler.stop()
    assert "too long" in caplog.text
    released.set()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert len(ot.read_run("journal")) == 0


def test_a_thread_that_can_t_start_is_a_warning(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    sample_once(recorder, told("source"))
    assert "no system metrics are recorded" in caplog.text


def test_a_fork_waits_for_a_sample_and_only_once_for_one_that_hangs(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, released = threading.Event(), threading.Event()

    def slow(_: int) -> Iterator[Figure]:
        asked.set()
        assert released.wait(TIMEOUT)
        yield Figure(METRIC, 1)

    sampler = Sampler(recorder, 3600, openers=[lambda: [Told("slow", slow)]])
    monkeypatch.setattr(sampler_module, "_STOP_TIMEOUT", 0.01)
    sampler.start()
    sampler.stop()  # begins the last sample
    assert asked.wait(TIMEOUT)
    monkeypatch.setattr(forking, "_LONGEST", 0.01)
    fork_and_exit()
    monkeypatch.setattr(forking, "_LONGEST", 10 * TIMEOUT)  # it would be seen
    fork_and_exit()
    released.set()
    for thread in threading.enumerate():
        if thread.name == "otel-tracking-system":
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def fork_and_exit() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on: there are threads, as is meant
        child = os.fork()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
