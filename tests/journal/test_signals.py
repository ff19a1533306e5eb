"""Signal handlers that record, and that raise, in the middle of recording."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from otel_tracking import read_run

Run = Callable[..., "subprocess.CompletedProcess[str]"]

# A SIGALRM each 0.1 ms. `returned` lists the steps whose calls came back, by series.
PROGRAM = '''
import faulthandler, functools, itertools, json, signal, struct, sys, threading, time
from pathlib import Path
from otel_tracking import recorder as module
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.provider import TrackingMeterProvider

how, slots, threads, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
faulthandler.dump_traceback_later(50 + 2 * seconds, exit=True)  # says where a deadlock is
module.JournalWriter = functools.partial(JournalWriter, segment_slots=slots)
recorder = module.Recorder()
recorder.opener = lambda this: this.open(Path("journal"))
meter = TrackingMeterProvider(recorder).get_meter("train")
main, inside = meter.create_gauge("main"), meter.create_gauge("handler")
errors = itertools.cycle([ValueError, struct.error, OSError, TypeError, KeyError, TimeoutError, RuntimeError])
returned = {"main": [], "handler": [], "row": []} | {f"thread{n}": [] for n in range(threads)}
raised = caught = 0
handled = itertools.count()
armed = False
inside_each_other = 0

def mine(error):
    """How many of the handler's exceptions came out: one more may be raised while one is on its way."""
    assert getattr(error, "mine", False), repr(error)
    count = 0
    while error is not None:
        count += getattr(error, "mine", False)
        error = error.__context__
    return count

def handler(number, frame):
    global raised, inside_each_other
    if inside_each_other > 30:
        return  # slower than its own interval: without this, any handler ends in a RecursionError
    inside_each_other += 1
    try:
        work(next(handled))
    finally:
        inside_each_other -= 1

def work(step):
    global raised
    if "record" in how:
        inside.set(step * 2.0, {"training.step": step})
        returned["handler"].append(step)
    if "new" in how:
        inside.set(1.0, {"training.step": step, "series": f"h{step % 50}"})
    if "raise" in how and armed and step % 3 == 0:
        error = next(errors)(f"mine {step}")
        error.mine = True
        raised += 1  # no call between this line and the next, so no other handler
        raise error

def beside(name):
    gauge = meter.create_gauge(name)
    step = 0
    while not stop.is_set():
        gauge.set(step * 2.0, {"training.step": step})
        returned[name].append(step)
        step += 1

stop = threading.Event()
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)  # before the journal is open
others = [threading.Thread(target=beside, args=(f"thread{n}",)) for n in range(threads)]
for other in others:
    other.start()
end = time.monotonic() + seconds
step = 0
while time.monotonic() < end:
    step += 1
    try:
        armed = True
        main.set(step * 2.0, {"training.step": step})
        armed = False
        returned["main"].append(step)
    except Exception as error:
        armed = False
        caught += mine(error)
    if "new" in how:
        step += 1
        try:
            armed = True
            main.set(step * 2.0, {"training.step": step, "series": f"s{step % 400}"})
            armed = False
            returned["main"].append(step)
        except Exception as error:
            armed = False
            caught += mine(error)
    if "row" in how:
        try:
            armed = True
            recorder.log({f"row/{n}": step * 2.0 for n in range(3 + step % 4)}, step=step)
            armed = False
            returned["row"].append(step)
        except Exception as error:
            armed = False
            caught += mine(error)
signal.setitimer(signal.ITIMER_REAL, 0)
stop.set()
for other in others:
    other.join()
recorder.journal.close()
print(json.dumps({"returned": returned, "raised": raised, "caught": caught, "handled": next(handled),
                  "not_recorded": recorder.not_recorded()}))
'''


def play(run_script: Run, how: str, *, slots: int, threads: int = 0, seconds: float = 1.0) -> dict[str, int]:
    """Run the program and compare what it recorded with what it says it did."""
    # A deadlock is a timeout.
    said = json.loads(
        run_script(PROGRAM, how, str(slots), str(threads), str(seconds), timeout=60 + 3 * seconds).stdout
    )
    run = read_run(Path("journal"))
    assert said["not_recorded"] == {}
    for name, returned in said["returned"].items():
        points = run.of("row/0" if name == "row" else name)
        if name == "handler":  # those of the series `h<n>` repeat steps
            points = run.of(name, {})
        steps = points.steps
        assert len(np.unique(steps)) == len(steps)  # a call that an exception ended may have recorded; once
        assert np.isin(returned, steps).all()
        assert (points.values == steps * 2.0).all()
        if name != "handler":  # one handler may have interrupted another
            assert (np.diff(steps) > 0).all()
    for n in range(6):
        column = run.of(f"row/{n}")
        assert (column.values == column.steps * 2.0).all()
    assert said["handled"] > 100
    return {key: said[key] for key in ("raised", "caught", "handled")} | {
        "segments": len(list(Path("journal").glob("*.segment")))
    }


def test_handlers_that_record(run_script: Run, size: Callable[[int, int], int]) -> None:
    said = play(run_script, "record", slots=128, seconds=size(6, 200) / 10)
    assert said["segments"] > 50


def test_handlers_that_raise(run_script: Run, size: Callable[[int, int], int]) -> None:
    """Every exception that a handler raised inside a call came out of it, whatever its type."""
    said = play(run_script, "record raise", slots=128, seconds=size(6, 200) / 10)
    assert said["segments"] > 50
    assert said["raised"] > 10
    assert said["caught"] == said["raised"]


def test_handlers_among_new_series_and_rows(run_script: Run, size: Callable[[int, int], int]) -> None:
    said = play(run_script, "record raise new row", slots=256, seconds=size(8, 200) / 10)
    assert said["caught"] == said["raised"] > 10


def test_handlers_and_threads(run_script: Run, size: Callable[[int, int], int]) -> None:
    """Segments not so small that threads fill them faster than they can be made.

    Else each handler has to wait for one, longer than its own interval, and handlers are all there is.
    """
    said = play(run_script, "record raise row", slots=8192, threads=2, seconds=size(1, 20))
    assert said["segments"] > 5
    assert said["caught"] == said["raised"] > 10


ASKING = """
import itertools, json, signal, time
from otel_tracking.errors import raised_by_handler

errors = itertools.cycle([ValueError, TypeError, RuntimeError, OSError])
raised = caught = 0

def handler(number, frame):
    global raised
    error = next(errors)()
    raised += 1
    raise error

signal.signal(signal.SIGALRM, handler)
end = time.monotonic() + float(__import__("sys").argv[1])
of_no_handler = ValueError()
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, 3e-5)
        while True:
            assert not raised_by_handler(of_no_handler)
    except Exception as error:
        caught += 1
        assert raised_by_handler(error), repr(error)
print(json.dumps({"raised": raised, "caught": caught}))
"""


def test_asking_whose_exception_it_is_loses_none(run_script: Run, size: Callable[[int, int], int]) -> None:
    """Parts of the standard library catch ValueError, and with it what a handler raises in there."""
    said = json.loads(run_script(ASKING, str(size(5, 100) / 10)).stdout)
    assert said["caught"] == said["raised"] > 100


OPENING = """
import json, signal, sys, time
from pathlib import Path
from otel_tracking.recorder import Recorder
from otel_tracking.provider import TrackingMeterProvider

class Stop(Exception):
    pass

def handler(number, frame):
    raise Stop

recorder = Recorder()
recorder.opener = lambda this: this.open(Path("journal"))
gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
stopped = False
try:
    gauge.set(1.0, {"training.step": 0})
    while True:
        time.sleep(1)
except Stop:
    stopped = True
gauge.set(2.0, {"training.step": 1})
recorder.journal.close()
print(json.dumps([stopped, recorder.not_recorded()]))
"""


@pytest.mark.parametrize("after", [0.0002, 0.001, 0.002, 0.004])
def test_a_handler_that_raises_while_the_journal_opens_does_not_lose_it(
    run_script: Run, after: float
) -> None:
    stopped, not_recorded = json.loads(run_script(OPENING, str(after)).stdout)
    assert stopped
    assert not_recorded == {}
    assert 1 in read_run(Path("journal")).steps
