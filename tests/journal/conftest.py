"""What the journal's tests share: programs that can be killed, and recorders with small segments."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel_tracking import recorder as recorder_module
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.recorder import Recorder

Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """`spawn(source, *args)`: a Python program whose stdout is a pipe; killed when the test ends."""
    programs: list[subprocess.Popen[bytes]] = []

    def start(source: str, *args: object) -> subprocess.Popen[bytes]:
        path = tmp_path / f"program{len(programs)}.py"
        path.write_text(source)
        program = subprocess.Popen(
            [sys.executable, str(path), *map(str, args)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        programs.append(program)
        return program

    yield start
    for program in programs:
        program.kill()
        program.wait()
        if program.stdout is not None:
            program.stdout.close()


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`small_segments(slots)`: recorders rotate often."""

    def use(slots: int) -> None:
        monkeypatch.setattr(
            recorder_module, "JournalWriter", functools.partial(JournalWriter, segment_slots=slots)
        )

    return use


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    """A recorder that opens `tmp_path/journal` at its first record."""
    made = Recorder()
    made.opener = lambda this: this.open(tmp_path / "journal")
    yield made
    if made.journal is not None:
        made.journal.close()
