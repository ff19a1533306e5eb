"""`otel-tracking doctor` and `otel-tracking trackers`: what they say, and what they never say."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from otel_tracking import discovery
from otel_tracking.capabilities import Feature, Level
from otel_tracking.cli import app
from otel_tracking.doctor import folders, servers, trackers
from otel_tracking.doctor.finding import State
from otel_tracking.records import MediaKind


def asked(*arguments: str) -> tuple[int, Any, str]:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    return done.exit_code, json.loads(done.output), done.output


def doctor(*arguments: str) -> tuple[int, dict[str, list[dict[str, str]]], str]:
    code, findings, output = asked("doctor", *arguments)
    by_about: dict[str, list[dict[str, str]]] = {}
    for finding in findings:
        by_about.setdefault(finding["about"], []).append(finding)
    return code, by_about, output


def test_a_machine_that_is_well() -> None:
    code, found, _ = doctor("--log-with", "tensorboard,wandb")
    assert code == 0
    assert {finding["state"] for findings in found.values() for finding in findings} == {"ok"}
    assert [finding["text"].split()[0] for finding in found["wandb"]] == ["wandb", "no"]
    assert "GiB free" in found["project directory"][0]["text"]


def test_a_login_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    code, found, _ = doctor("--log-with", "wandb")
    assert code == 1
    problem = found["wandb"][-1]
    assert (problem["state"], problem["text"]) == ("problem", "there is no login")
    assert problem["fix"] == "set WANDB_API_KEY, or WANDB_MODE=offline"


def test_a_login_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t" * 7)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cr3t@127.0.0.1:9")
    _, found, output = doctor("--log-with", "wandb,mlflow")
    assert "s3cr3t" not in output
    assert found["wandb"][-1]["text"] == "WANDB_API_KEY is set"
    assert found["mlflow"][-1]["text"].startswith("127.0.0.1:9 of MLFLOW_TRACKING_URI can't be reached")


def test_a_login_in_a_file() -> None:
    Path.home().joinpath(".netrc").write_text("machine api.wandb.ai login user password x")
    try:
        findings = list(trackers.look_at_tracker("wandb"))
    finally:
        Path.home().joinpath(".netrc").unlink()
    assert findings[-1].text == "~/.netrc is there"


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "installed_version", lambda name: "")
    (finding,) = trackers.look_at_tracker("aim")
    assert (finding.state, finding.fix) == (State.PROBLEM, "pip install 'otel-tracking[aim]'")


def test_a_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackio.py").write_text("raise ImportError('no libfoo')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = trackers.look_at_tracker("trackio")
    assert finding.state is State.PROBLEM
    assert "no libfoo" in finding.text
    assert finding.fix.startswith("pip install --upgrade --force-reinstall")


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("value", "state", "text"),
    [
        ("http://127.0.0.1:{port}", State.OK, "127.0.0.1:{port} of SERVER answers"),
        ("http://user:s3cr3t@127.0.0.1:{port}/x?y", State.OK, "127.0.0.1:{port} of SERVER answers"),
        ("127.0.0.1:{port}", State.OK, "127.0.0.1:{port} of SERVER answers"),
        ("http://127.0.0.1:1", State.PROBLEM, "127.0.0.1:1 of SERVER can't be reached (Connection refused)"),
        ("http://[::1", State.PROBLEM, "SERVER is no address"),
        ("http:///x", State.PROBLEM, "SERVER names no host"),
        ("sqlite:////data/x.db", State.NOTE, "SERVER names a file or folder: //data/x.db"),
    ],
)
def test_servers(monkeypatch: pytest.MonkeyPatch, port: int, value: str, state: State, text: str) -> None:
    monkeypatch.setenv("SERVER", value.format(port=port))
    (finding,) = servers.look_at_servers("a tracker", ["SERVER", "UNSET"])
    assert (finding.state, finding.text) == (state, text.format(port=port))
    assert bool(finding.fix) == (state is State.PROBLEM)


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    (finding,) = folders.look_at_folder("project directory", tmp_path / "a" / "b", "SETTING")
    assert finding.state is State.OK
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (finding,) = folders.look_at_folder("project directory", tmp_path / "file", "SETTING")
    assert finding.state is State.PROBLEM
    assert "SETTING" in finding.fix


def test_a_folder_that_cannot_be_written() -> None:
    (finding,) = folders.look_at_folder("project directory", Path("/proc/otel-tracking"), "SETTING")
    assert finding.state is State.PROBLEM
    assert "can't be written" in finding.text


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage())
    (finding,) = folders.look_at_folder("project directory", tmp_path, "SETTING")
    assert (finding.state, finding.fix) == (State.PROBLEM, "make room, or set SETTING to another disk")


class _Usage:
    free = 5


def test_an_unknown_tracker() -> None:
    for command in (["doctor", "--log-with", "wandbb"], ["trackers", "wandbb"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2
        assert "wandbb" in done.output


def test_the_matrix_is_what_trackers_declare() -> None:
    _, found, _ = asked("trackers")
    assert sorted(found) == sorted(discovery.known())
    assert len(found) == 9
    for name, about in found.items():
        declaration = discovery.load(name).declaration
        assert declaration is not None
        assert declaration is discovery.declaration(name)
        told = {label: Level(each["level"]) for label, each in about["capabilities"].items()}
        wanted = {feature.value: declaration.of(feature).level for feature in Feature}
        wanted |= {kind.plural: declaration.of(kind).level for kind in MediaKind}
        assert told == wanted
        assert about["installed"]
        assert about["offline"]


def test_tables_for_people() -> None:
    shown = CliRunner().invoke(app, ["trackers"]).output
    for text in ("swanlab", "SWANLAB_MODE=offline", "points of one step", "histograms"):
        assert text in shown
    one = CliRunner().invoke(app, ["trackers", "clearml"]).output
    assert "NaN, infinities" in one
    assert "not stored" in one
