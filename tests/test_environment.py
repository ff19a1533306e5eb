"""What a run ran in is recorded once, and looking at it runs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import otel_tracking as ot
from otel_tracking.environment import collect


def git(place: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=place, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    place.mkdir()
    git(place, "init", "-q", "-b", "trunk")
    (place / "train.py").write_text("print()")
    git(place, "add", ".")
    git(place, "commit", "-qm", "one")
    git(place, "remote", "add", "origin", "https://me:s3cr3t@example.org/x.git")
    return place


def test_a_repository(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    clean = {"commit": commit, "branch": "trunk", "remote": "https://example.org/x.git", "dirty": False}
    assert collect(repository)["git"] == clean
    (repository / "train.py").write_text("print(1)")
    assert collect(repository)["git"] == {**clean, "dirty": True}


def test_no_repository(tmp_path: Path) -> None:
    assert "git" not in collect(tmp_path)


def test_no_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = collect(repository)
    assert "git" not in found
    assert found["packages"]["otel-tracking"]


def test_a_hostile_repository(repository: Path) -> None:
    """Its configuration names programs; none is run."""
    trap = repository.parent / "trap"
    trap.write_text("#!/bin/sh\ntouch " + str(repository.parent / "sprung"))
    trap.chmod(0o755)
    for name in ("core.fsmonitor", "core.pager", "core.sshCommand", "diff.external", "core.askPass"):
        git(repository, "config", name, str(trap))
    git(repository, "config", "alias.status", f"!{trap}")
    git(repository, "config", "alias.rev-parse", f"!{trap}")
    (repository / ".git" / "hooks" / "post-index-change").write_bytes(trap.read_bytes())
    (repository / ".git" / "hooks" / "post-index-change").chmod(0o755)
    (repository / "train.py").write_text("print(2)")
    assert collect(repository)["git"]["dirty"]
    assert not (repository.parent / "sprung").exists()


def test_the_command_line_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--api-key", "s3cr3t", "--lr", "0.1"])
    assert collect(tmp_path)["argv"] == ["train.py", "--api-key", "<redacted>", "--lr", "0.1"]


def test_only_variables_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    assert "s3cr3t" not in json.dumps(collect(tmp_path))
    assert collect(tmp_path)["variables"]["OMP_NUM_THREADS"] == "3"


def test_it_is_recorded_once_a_run(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from otel_tracking.cli import app

    monkeypatch.chdir(repository)
    for _ in range(2):
        with ot.Tracking(log_with=(), project_dir=tmp_path / "runs", run_id="one") as tracking:
            tracking.init_trackers("project")
            tracking.log({"loss": 1.0}, step=0)
            tracking.flush()
    shown = CliRunner().invoke(app, ["show", "one", "--json", "--project-dir", str(tmp_path / "runs")])
    assert shown.exit_code == 0
    environment = json.loads(shown.output)["environment"]
    assert environment["git"]["branch"] == "trunk"
    assert environment["packages"]["numpy"]
