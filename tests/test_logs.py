"""Log records, OpenTelemetry's and Python's, become texts with a step; filtered, and never their own."""

from __future__ import annotations

import ast
import atexit
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan

import otel_tracking as ot
from otel_tracking import tracking as tracking_module
from otel_tracking.errors import ConfigurationError
from otel_tracking.feed import Feed
from otel_tracking.log_texts import LogFilter, LogTags
from otel_tracking.logs import LogCapture, TrackingLogProcessor
from otel_tracking.process import Process
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus, Text
from otel_tracking.spans import TrackingSpanProcessor
from otel_tracking.steps import set_step
from tests.contract.place import Place
from tests.contract.stored_media import READERS

SITE = str(Path(ot.__file__).parent / "launcher" / "site")
RunScript = Callable[..., CompletedProcess[str]]


def texts(journal: str | Path = "journal") -> list[tuple[str, int, str]]:
    """What a journal holds: tag, step, text."""
    feed = Feed(Path(journal), tracker="any", max_points=1000)
    found = []
    while (item := feed.peek()) is not None:
        feed.take()
        if isinstance(item, Text):
            found.append((item.tag, item.step, item.text))
    feed.close()
    return found


def texts_of_run() -> list[tuple[str, int, str]]:
    (path,) = Path("outputs").glob("*/*/journal/rank-00000")
    return texts(path)


@pytest.fixture
def provider(recorder: Recorder) -> LoggerProvider:
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(TrackingLogProcessor(recorder, LogFilter("warning")))
    return provider


@pytest.fixture
def emit(provider: LoggerProvider) -> Callable[..., None]:
    """Emit a record of the logger `train.loop`."""

    def emit(body: Any, severity: SeverityNumber | None = SeverityNumber.WARN, **options: Any) -> None:
        provider.get_logger("train.loop").emit(
            LogRecord(body=body, severity_number=severity, severity_text=None, **options)
        )

    return emit


@pytest.fixture
def capture(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Iterator[LogCapture]:
    """Of Python's `logging` alone: OpenTelemetry's provider is set once a process."""
    capture = LogCapture(recorder, lambda original, wrapper: None)
    monkeypatch.setattr(capture, "_install", lambda: None)
    capture.want("info", [])
    yield capture
    capture.pause()


# What a text looks like


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("grad norm: 1e9", "WARN train.loop: grad norm: 1e9"),
        ({"loss": 0.5, "at": ["a", b"b"]}, 'WARN train.loop: {"loss": 0.5, "at": ["a", "b"]}'),
        (b"\xff", "WARN train.loop: �"),
        (1.5, "WARN train.loop: 1.5"),
        ("\ud800", "WARN train.loop: \ud800"),
        (None, "WARN train.loop: "),
    ],
)
def test_a_body_reads_well(emit: Callable[..., None], body: Any, text: str) -> None:
    emit(body)
    assert texts() == [("logs/train", 0, text)]


def test_an_event_is_its_name_and_what_it_consists_of(emit: Callable[..., None]) -> None:
    emit(None, None, event_name="epoch.done", attributes={"training.step": 3, "loss": 0.5})
    emit("all of it", event_name="epoch.done", attributes={"loss": 0.5})
    assert texts() == [
        ("logs/train", 3, 'train.loop: epoch.done {"loss": 0.5}'),
        ("logs/train", 0, "WARN train.loop: epoch.done all of it"),
    ]


def test_an_exception_has_its_trace(emit: Callable[..., None]) -> None:
    try:
        raise ValueError("diverged")
    except ValueError as error:
        emit("step failed", exception=error)
    emit("step failed", attributes={"exception.type": "OSError", "exception.message": "gone"})
    (_, _, first), (_, _, second) = texts()
    assert first.startswith("WARN train.loop: step failed\nTraceback (most recent call last):\n")
    assert first.endswith('raise ValueError("diverged")\nValueError: diverged')
    assert second == "WARN train.loop: step failed\nOSError: gone"


def test_there_are_no_more_tags_than_trackers_can_show() -> None:
    tags = LogTags()
    assert tags.tag("train.loop") == tags.tag("train") == "logs/train"
    assert (tags.tag("root"), tags.tag("")) == ("logs/root", "logs/root")
    assert len({tags.tag(f"worker-{n}") for n in range(1000)}) == 99
    assert tags.tag("train.again") == "logs/train"


# Steps


def test_a_step_comes_from_the_record_or_from_around_it(
    emit: Callable[..., None], recorder: Recorder
) -> None:
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(TrackingSpanProcessor(recorder))
    tracer = tracers.get_tracer("train")
    emit("none")
    emit("attribute", attributes={"training.step": 3})
    emit("alias", attributes={"step": 4})
    with ot.step(5):
        emit("scope")
    carried = baggage.set_baggage("training.step", "6")
    emit("its own context", context=carried)
    with tracer.start_as_current_span("epoch", attributes={"training.step": 7}):
        emit("span")
        with tracer.start_as_current_span("batch") as child:
            child_named = trace.set_span_in_context(NonRecordingSpan(child.get_span_context()))
            emit("a living child by its id", context=child_named)
    set_step(9)
    emit("the process's")
    assert [step for _, step, _ in texts()] == [0, 3, 4, 5, 6, 7, 7, 9]


def test_logging_takes_a_step_from_extra_or_from_around(capture: LogCapture) -> None:
    log = logging.getLogger("train")
    log.setLevel("INFO")
    log.info("extra", extra={"training.step": 3})
    log.info("alias", extra={"step": 4})
    with ot.step(5):
        log.info("scope %d", 1)
    assert texts() == [
        ("logs/train", 3, "INFO train: extra"),
        ("logs/train", 4, "INFO train: alias"),
        ("logs/train", 5, "INFO train: scope 1"),
    ]


# Filters


@pytest.mark.parametrize(
    ("names", "wanted", "unwanted"),
    [
        ((), ("train", "root", "", "trainer"), ("opentelemetry.instrumentation.openai",)),
        (("train",), ("train", "train.loop"), ("trainer", "root", "other")),
        (("!train",), ("trainer", "other"), ("train", "train.loop")),
        (
            ("train", "!train.noisy", "train.noisy.but"),
            ("train.loop", "train.noisy.but.x"),
            ("train.noisy.x",),
        ),
        (("opentelemetry.instrumentation",), ("opentelemetry.instrumentation.openai",), ("train",)),
        (
            ("otel_tracking", "opentelemetry", "mlflow", "opentelemetry.sdk._logs"),
            (),
            (
                "otel_tracking",
                "otel_tracking.recorder",
                "otel_tracking_exporters.wandb",
                "mlflow.tracking",
                "opentelemetry.sdk._logs.export",
                "opentelemetry.exporter.otlp",
                "opentelemetry.attributes",
            ),
        ),
    ],
)
def test_loggers_by_name(names: tuple[str, ...], wanted: tuple[str, ...], unwanted: tuple[str, ...]) -> None:
    filter_ = LogFilter("info", names, never=["mlflow"])
    assert [name for name in wanted if not filter_.wants(name)] == []
    assert [name for name in unwanted if filter_.wants(name)] == []


def test_levels(emit: Callable[..., None], provider: LoggerProvider) -> None:
    emit("info", SeverityNumber.INFO4)
    emit("warn", SeverityNumber.WARN)
    emit("fatal", SeverityNumber.FATAL4)
    emit("not said", None)
    emit("not said", SeverityNumber.UNSPECIFIED)
    assert [text.split()[-1] for _, _, text in texts()] == ["warn", "fatal", "said", "said"]
    logger = provider.get_logger("train")
    if hasattr(logger, "enabled"):  # not in 1.43
        assert logger.enabled(severity_number=SeverityNumber.ERROR)
        assert not logger.enabled(severity_number=SeverityNumber.INFO)


def test_logging_by_level_and_name(capture: LogCapture) -> None:
    capture.want("error", ["train"])
    logging.getLogger("train").warning("low")
    logging.getLogger("other").error("other")
    logging.getLogger("train.loop").critical("high")
    assert texts() == [("logs/train", 0, "CRITICAL train.loop: high")]


def test_an_unknown_level_is_an_error_in_code() -> None:
    with pytest.raises(ConfigurationError, match="logs can't be 'loud'"):
        ot.Tracking(logs="loud")


# Recursion, and what goes wrong


def test_what_delivery_says_is_left_out(capture: LogCapture, emit: Callable[..., None]) -> None:
    def delivering() -> None:
        logging.getLogger("urllib3").warning("Retrying")
        emit("Retrying")

    thread = threading.Thread(target=delivering, name="otel-tracking-mlflow")
    thread.start()
    thread.join()
    logging.getLogger("otel_tracking.followers").error("ours")
    logging.getLogger("mlflow.tracking").error("a tracker's")
    assert texts() == []


class Chatty:
    def __str__(self) -> str:
        logging.getLogger("train").warning("I am turned into text")
        return "chatty"


class Broken:
    def __str__(self) -> str:
        raise ZeroDivisionError


def test_a_text_that_logs_does_not_log_itself(capture: LogCapture, recorder: Recorder) -> None:
    log = logging.getLogger("train")
    log.propagate = False
    log.addHandler(logging.NullHandler())  # formats nothing
    log.warning("it is %s", Chatty())
    log.propagate = True
    assert texts() == [("logs/train", 0, "WARNING train: it is chatty")]
    assert recorder.not_recorded() == {"logged while a log record was being recorded": 1}


def test_what_is_no_text_is_counted_and_raises_nothing(
    capture: LogCapture, recorder: Recorder, emit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logging.getLogger("train").warning("%d", "no number")
    emit(Broken())
    emit("fine")
    assert [text for _, _, text in texts()] == ["WARN train.loop: fine"]
    assert recorder.not_recorded() == {
        "a log record is no text: TypeError": 1,
        "a log record is no text: ZeroDivisionError": 1,
    }


def test_the_users_handlers_and_levels_are_as_they_were(
    capture: LogCapture, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    capture.want("debug", [])
    assert (root.level, list(root.handlers)) == before
    try:
        raise ValueError
    except ValueError:
        logging.getLogger("train").exception("failed")
    assert caplog.records[-1].exc_text is None or "ValueError" in caplog.records[-1].exc_text
    logging.getLogger("train").debug("root has no debug")
    assert len(texts()) == 1


def test_pausing_leaves_logging_as_it_was(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    original = logging.Logger.callHandlers
    capture = LogCapture(recorder, lambda original, wrapper: None)
    monkeypatch.setattr(capture, "_install", lambda: None)
    capture.want("info", [])
    capture.want("warning", [])
    assert logging.Logger.callHandlers is not original
    capture.pause()
    assert logging.Logger.callHandlers is original
    capture.resume()
    within = logging.Logger.callHandlers
    monkeypatch.setattr(logging.Logger, "callHandlers", lambda logger, record: within(logger, record))
    capture.pause()  # somebody has wrapped it: it stays, and records nothing
    logging.getLogger("train").warning("no")
    capture.resume()
    logging.getLogger("train").warning("once")
    assert [text for _, _, text in texts()] == ["WARNING train: once"]
    monkeypatch.undo()
    logging.Logger.callHandlers = original  # type: ignore[method-assign]


# In a process: providers, runs, exits


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """Of this process, in which the global providers are left alone."""
    made = Process()
    monkeypatch.setattr(made, "install", lambda: None)
    monkeypatch.setattr(LogCapture, "_install", lambda self: None)
    monkeypatch.setattr(tracking_module, "process", lambda: made)
    yield made
    made.end(RunStatus.FINISHED, 5)
    made.recorder.close(RunStatus.FINISHED)
    atexit.unregister(made._at_exit)


def test_three_trackers_have_the_texts_at_their_steps(process: Process, tmp_path: Path) -> None:
    tracking = ot.Tracking(["tensorboard", "mlflow", "wandb"], "outputs", run_id="r", logs="Warning")
    tracking.init_trackers("p")
    log = logging.getLogger("train.loop")
    for step in (1, 2):
        set_step(step)
        log.error("step %d", step)
        log.warning("twice at one step")
    try:
        raise KeyError("key")
    except KeyError:
        log.exception("failed", extra={"training.step": 7})
    tracking.end_training()
    log.warning("after the end")
    receipt = tracking.receipt()
    assert not receipt.not_recorded
    assert all(not each.dropped and not each.pending for each in receipt.trackers.values())
    place = Place(tmp_path, tmp_path / "outputs", "p", "r")
    for tracker in ("tensorboard", "mlflow", "wandb"):
        found = [entry for entry in READERS[tracker](place) if entry.form == "text"]
        assert {entry.name for entry in found} == {"logs/train"}, tracker
        *said, (step, failed) = sorted((entry.step, entry.content) for entry in found)
        assert said == [
            (1, "ERROR train.loop: step 1"),
            (1, "WARNING train.loop: twice at one step"),
            (2, "ERROR train.loop: step 2"),
            (2, "WARNING train.loop: twice at one step"),
        ], tracker
        assert step == 7
        assert failed.startswith("ERROR train.loop: failed\nTraceback")
        assert failed.endswith("KeyError: 'key'")


USERS = """
import logging, sys, warnings
warnings.simplefilter("ignore")  # the handler is deprecated
from opentelemetry import _logs
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from otel_tracking import Tracking
exporter = InMemoryLogRecordExporter()
users = LoggerProvider()
users.add_log_record_processor(SimpleLogRecordProcessor(exporter))
early = _logs.get_logger("early")
if "before" in sys.argv:
    _logs.set_logger_provider(users)
tracking = Tracking([], project_dir="outputs", run_id="r", logs="warning")
tracking.init_trackers("p")
early.emit(body="first", severity_number=_logs.SeverityNumber.WARN)
if "before" not in sys.argv:
    _logs.set_logger_provider(users)
    _logs.set_logger_provider(users)
logging.getLogger().addHandler(LoggingHandler())
logging.getLogger().setLevel(logging.INFO)
logging.getLogger("train").info("low")
logging.getLogger("train").warning("once")
early.emit(body="second", severity_number=_logs.SeverityNumber.WARN)
tracking.end_training()
logging.getLogger("train").warning("after")
print([log.log_record.body for log in exporter.get_finished_logs()])
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_users_provider_keeps_its_own_records(run_script: RunScript, when: str) -> None:
    done = run_script(USERS, when)
    # What comes before a provider is set, its exporters have never had.
    first = ["first"] if when == "before" else []
    assert ast.literal_eval(done.stdout.splitlines()[-1]) == [*first, "low", "once", "second", "after"]
    assert [text for _, _, text in texts_of_run()] == [
        "WARN early: first",
        "WARNING train: once",
        "WARN early: second",
    ]


PLAIN = """
import logging
from opentelemetry import _logs, metrics
_logs.get_logger("events").emit(body="event", severity_number=_logs.SeverityNumber.ERROR)
logging.getLogger("train").warning("seen on stderr too")
logging.getLogger("noisy").warning("left out")
logging.basicConfig(format="%(message)s!")
logging.getLogger("train").error("configured", extra={"training.step": 3})
"""
BY_SITE = {"PYTHONPATH": SITE}
BY_METERS = {"OTEL_PYTHON_METER_PROVIDER": "otel_tracking"}
BY_LOGGERS = {"OTEL_PYTHON_LOGGER_PROVIDER": "otel_tracking"}


@pytest.mark.parametrize(
    ("variables", "ask"),
    [
        (BY_SITE, ""),
        (BY_METERS, "from opentelemetry import metrics\nmetrics.get_meter_provider()"),
        (BY_LOGGERS, ""),
    ],
    ids=["run", "meter provider", "logger provider"],
)
def test_without_a_change_to_the_program(run_script: RunScript, variables: dict[str, str], ask: str) -> None:
    env = {**variables, "OTEL_TRACKING_LOGS": "WARNING", "OTEL_TRACKING_LOG_NAMES": "!noisy"}
    done = run_script(ask + PLAIN, env=env)
    # As Python does it: without configuration to stderr, and then as configured.
    assert done.stderr == "seen on stderr too\nleft out\nconfigured!\n"
    assert texts_of_run() == [
        ("logs/events", 0, "ERROR events: event"),
        ("logs/train", 0, "WARNING train: seen on stderr too"),
        ("logs/train", 3, "ERROR train: configured"),
    ]


NOTHING = """
import logging, sys
original = logging.Logger.callHandlers
from opentelemetry import _logs, metrics
from otel_tracking import Tracking
tracking = Tracking([], project_dir="outputs", run_id="r"LOGS)
tracking.init_trackers("p")
logging.getLogger("train").warning("no")
_logs.get_logger("events").emit(body="event", severity_number=_logs.SeverityNumber.ERROR)
tracking.end_training()
assert logging.Logger.callHandlers is original
print("opentelemetry.sdk._logs" in sys.modules, type(_logs.get_logger_provider()).__name__)
"""


@pytest.mark.parametrize(
    ("argument", "variables"),
    [
        (", logs='off'", {"OTEL_TRACKING_LOGS": "debug"}),
        (", logs='debug'", {"OTEL_SDK_DISABLED": "true"}),
    ],
    ids=["off in code", "SDK disabled"],
)
def test_nothing_is_done_when_off(run_script: RunScript, argument: str, variables: dict[str, str]) -> None:
    done = run_script(NOTHING.replace("LOGS", argument), env=variables)
    assert done.stdout == "False ProxyLoggerProvider\n"
    assert done.stderr == "no\n"
    assert [item for path in Path("outputs").glob("*/*/journal/rank-*") for item in texts(path)] == []


FORKED = """
import logging, os
from otel_tracking import Tracking
log = logging.getLogger("train")
log.addHandler(logging.NullHandler())
log.propagate = False
tracking = Tracking([], project_dir="outputs", run_id="r", logs="info")
tracking.init_trackers("p")
log.warning("parent")
if (child := os.fork()) == 0:
    log.warning("child")
    rank = Tracking([], project_dir="outputs3", run_id="r", logs="info")
    rank.init_trackers("p")
    log.warning("a rank now")
    rank.end_training()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
log.warning("parent again")
tracking.end_training()
tracking = Tracking([], project_dir="outputs2", run_id="r", logs="info")
tracking.init_trackers("p")
log.warning("next run")
tracking.end_training()
"""


def test_a_forked_child_records_what_it_says_as_a_rank_and_no_more(run_script: RunScript) -> None:
    run_script(FORKED)
    assert [text for _, _, text in texts_of_run()] == ["WARNING train: parent", "WARNING train: parent again"]
    assert [text for _, _, text in texts("outputs2/p/r/journal/rank-00000")] == ["WARNING train: next run"]
    assert [text for _, _, text in texts("outputs3/p/r/journal/rank-00000")] == ["WARNING train: a rank now"]
