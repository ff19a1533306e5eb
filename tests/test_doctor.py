"""`otel-tracking doctor` and `otel-tracking trackers`: what they say, and what they never say."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from otel_tracking import discovery
from otel_tracking.capabilities import Feature, Level
from otel_tracking.cli import app
from otel_tracking.doctor import folders, trackers
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
    assert [finding["text"].split()[0] for finding in found["wandb"]][:: len(found["wandb"]) - 1] == [
        "wandb",
        "no",
    ]
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
    assert found["wandb"][-1]["text"] == "WANDB_API_KEY is set; kept offline by WANDB_MODE=offline"
    assert found["mlflow"][-1]["text"].startswith("127.0.0.1:9 of MLFLOW_TRACKING_URI can't be reached")


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "installed_version", lambda name: "")
    (finding,) = trackers.look_at_trackers(["aim"])
    assert (finding.state, finding.fix) == (State.PROBLEM, "pip install 'otel-tracking[aim]'")


def test_a_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackio.py").write_text("raise ImportError('no libfoo')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = trackers.look_at_trackers(["trackio"])
    assert finding.state is State.PROBLEM
    assert "no libfoo" in finding.text
    assert finding.fix.startswith("pip install --upgrade --force-reinstall")


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


def test_the_extra_is_always_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell() -> None:
        shown = CliRunner().invoke(app, ["trackers"]).output
        _, found, _ = asked("trackers")
        for name in discovery.known():
            assert f"otel-tracking[{name}]" in shown
            assert f"otel-tracking[{name}]" in CliRunner().invoke(app, ["trackers", name]).output
            assert found[name]["extra"] == f"otel-tracking[{name}]"

    tell()
    monkeypatch.setattr(discovery, "installed_version", lambda name: "")
    tell()


@pytest.mark.parametrize(
    ("extras", "told"), [("", "my-plugin"), ("Provides-Extra: mine\n", "my-plugin[mine]")]
)
def test_the_package_of_a_plug_in_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extras: str, told: str
) -> None:
    info = tmp_path / "my_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n{extras}")
    (info / "entry_points.txt").write_text("[otel_tracking_trackers]\nmine = nowhere:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _, found, _ = asked("trackers")
    assert (found["mine"]["extra"], found["mine"]["install"]) == (told, f"pip install '{told}'")


def test_servers_of_otlp(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        code, found, _ = doctor("--log-with", "tensorboard")
    assert code == 1
    assert [each["state"] for each in found["OTLP"]] == ["ok", "problem"]


def test_delivery_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACKING_DELIVERY", "off")
    monkeypatch.delenv("WANDB_MODE")
    code, found, _ = doctor("--log-with", "wandb")
    assert code == 0
    assert found["delivery"][0]["state"] == "note"
    assert found["wandb"][-1]["text"] == "no login, and none needed: OTEL_TRACKING_DELIVERY=off"


def test_a_logging_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, code in (("new", 0), ("file", 1)):
        found = doctor("--log-with", "tensorboard", "--logging-dir", str(tmp_path / folder))
        assert found[0] == code
        assert found[1]["logging directory"]


def test_packages_are_imported_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2)
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    def wait(name: str) -> str:
        together.wait(60)
        return ""

    monkeypatch.setattr(trackers, "_import", wait)
    assert {each.state for each in trackers.look_at_trackers(["tensorboard", "wandb"])} == {State.OK}
