"""Settings: read when needed, empty is unset, wrong is warned of once and is the default."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from otel_tracking import settings


@pytest.fixture(autouse=True)
def _forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_warned", set())


@pytest.mark.parametrize("text", ["", "   ", None])
def test_empty_is_unset(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    for setting in settings.ALL:
        if text is not None:
            monkeypatch.setenv(setting.variable, text)
        assert setting.get() == setting.default


@pytest.mark.parametrize(
    ("setting", "text", "value"),
    [
        (settings.LOG_WITH, "tensorboard, mlflow,,", ("tensorboard", "mlflow")),
        (settings.LOG_WITH, " , ", ()),
        (settings.METERS, "*,!opentelemetry.*", ("*", "!opentelemetry.*")),
        (settings.BUDGET, "0.25", 0.25),
        (settings.BUDGET, "1", 1.0),
        (settings.END_TIMEOUT, "2.5", 2.5),
        (settings.SYSTEM_METRICS, "2.5", 2.5),
        (settings.SYSTEM_METRICS, "off", 0.0),
        (settings.DELIVERY, "off", "off"),
        (settings.SDK_DISABLED, "True", True),
        (settings.SDK_DISABLED, "1", False),
        (settings.SDK_DISABLED, "yes", False),
        (settings.PROJECT_DIR, " /data/runs ", "/data/runs"),
    ],
)
def test_values(
    monkeypatch: pytest.MonkeyPatch,
    setting: settings.Setting[object],
    text: str,
    value: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(setting.variable, text)
    assert setting.get() == value
    assert not caplog.records


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (settings.BUDGET, "0"),
        (settings.BUDGET, "1.01"),
        (settings.BUDGET, "nan"),
        (settings.BUDGET, "5%"),
        (settings.END_TIMEOUT, "-1"),
        (settings.END_TIMEOUT, "inf"),
        (settings.END_TIMEOUT, "nan"),
        (settings.END_TIMEOUT, "soon"),
        (settings.DELIVERY, "Thread"),
        (settings.DELIVERY, "x" * 10_000),
    ],
)
def test_what_is_wrong_is_the_default_and_said_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    setting: settings.Setting[object],
    text: str,
) -> None:
    monkeypatch.setenv(setting.variable, text)
    assert setting.get() == setting.default
    assert setting.get() == setting.default
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{setting.variable}=")
    assert len(record.getMessage()) < 300


def test_settings_are_read_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.PROJECT.get() == ""
    monkeypatch.setenv("OTEL_TRACKING_PROJECT", "now")
    assert settings.PROJECT.get() == "now"


def test_the_project_falls_back_to_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.project() == "default"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "service")
    assert settings.project() == "service"
    monkeypatch.setenv("OTEL_TRACKING_PROJECT", "project")
    assert settings.project() == "project"
    assert settings.project_dir() == "outputs"


def test_every_setting_is_in_the_table_and_explained() -> None:
    defined = {value for value in vars(settings).values() if isinstance(value, settings.Setting)}
    assert set(settings.ALL) == defined
    for setting in settings.ALL:
        assert setting.variable.startswith(("OTEL_TRACKING_", "OTEL_"))
        assert setting.meaning
    assert len({setting.variable for setting in settings.ALL}) == len(settings.ALL)


def test_our_variables_are_read_nowhere_else() -> None:
    """One that is read past the table would be missing from its documentation."""
    known = {setting.variable for setting in settings.ALL}
    core = Path(settings.__file__).parent
    for path in core.rglob("*.py"):
        used = set(re.findall(r"OTEL_TRACKING_[A-Z_]*[A-Z]", path.read_text()))
        assert used <= known, path
