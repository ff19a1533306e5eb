"""Trackers are found by entry point, and what is wrong with one is said of that one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_tracking import discovery
from otel_tracking.errors import ConfigurationError, TrackerNotInstalled, UnknownTracker
from otel_tracking.testing import RecordingTracker
from tests.plugin_site import Site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(made.directory)
    yield made
    for module in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[module]


def test_the_projects_own_are_found() -> None:
    assert {"tensorboard", "wandb", "mlflow"} <= set(discovery.known())


def test_nothing_is_imported_to_know_a_name(site: Site) -> None:
    site.install("loud", "raise SystemExit('imported')")
    assert "loud" in discovery.known()
    assert discovery.check("loud").name == "loud"


def test_a_package_of_anybodys_is_found(site: Site) -> None:
    site.install("plugin")
    tracker = discovery.load("plugin")
    assert issubclass(tracker, RecordingTracker)
    assert tracker.name == "plugin"


def test_an_unknown_name() -> None:
    with pytest.raises(UnknownTracker, match="Did you mean 'mlflow'") as caught:
        discovery.load("ml_flow")
    assert caught.value.tracker == "ml_flow"
    assert "tensorboard" in caught.value.known


def test_a_missing_package_is_named_with_the_line_that_installs_it(site: Site) -> None:
    site.install("wandb2", "import a_package_that_is_not_installed")
    with pytest.raises(TrackerNotInstalled) as caught:
        discovery.load("wandb2")
    assert str(caught.value) == (
        "Tried adding logger wandb2, but package is unavailable in the system. "
        "Install it: pip install 'otel-tracking[wandb2]' (No module named 'a_package_that_is_not_installed')"
    )


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (
            "raise TypeError('Descriptors cannot be created directly')",
            "Made",
            "can't be imported: TypeError: Desc",
        ),
        (None, "Missing", "can't be imported: AttributeError"),
        ("def Made(): ...", "Made", "is no subclass of Tracker"),
        (
            "from otel_tracking.testing import RecordingTracker\nMade = RecordingTracker()",
            "Made",
            "no subclass",
        ),
    ],
)
def test_what_is_no_tracker_is_explained(site: Site, source: str | None, target: str, message: str) -> None:
    site.install("odd", source, target=target)
    with pytest.raises(ConfigurationError, match=message):
        discovery.load("odd")


def test_one_that_can_not_be_loaded_does_not_take_the_others_along(site: Site) -> None:
    site.install("plugin")
    site.install("absent", "import a_package_that_is_not_installed")
    site.install("broken", "raise RuntimeError('protobuf')")
    trackers, left_out = discovery.load_available(["absent", "plugin", "broken", "unheard"])
    assert list(trackers) == ["plugin"]
    assert {name: reason.split(".")[0] for name, reason in left_out.items()} == {
        "absent": "Tried adding logger absent, but package is unavailable in the system",
        "broken": "tracker 'broken' is installed and can't be imported: RuntimeError: protobuf",
        "unheard": "unknown tracker 'unheard'",
    }


def test_what_the_environment_names(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert discovery.named_by_environment() == []
    site.install("plugin")
    monkeypatch.setenv("OTEL_TRACKING_LOG_WITH", "plugin,wandb,plugin,wnadb")
    assert discovery.named_by_environment() == ["plugin", "wandb"]
    assert "Did you mean 'wandb'" in caplog.text
    monkeypatch.setenv("OTEL_TRACKING_LOG_WITH", "wandb,all")
    names = discovery.named_by_environment()
    assert names[0] == "wandb"
    assert sorted(names) == sorted(discovery.known())


def test_the_environments_ranks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_TRACKING_RANKS", "all,mine=main")
    policies = discovery.policies_by_environment(["mine"])
    assert (policies.of("mine").word, policies.of("wandb").word) == ("main", "all")
    assert not caplog.records
    assert discovery.policies_by_environment([]).default.word == "main"
    assert "OTEL_TRACKING_RANKS is ignored: unknown tracker 'mine'" in caplog.text
