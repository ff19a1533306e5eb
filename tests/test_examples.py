"""The examples run, print what the README says they print, and store every point."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

import otel_tracking as ot

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text()

RunScript = Callable[..., subprocess.CompletedProcess[str]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def recorded(run: Path) -> Counter[str]:
    """Points in the journal, by the instrument's name."""
    return Counter(ot.read_run(run).columns()["name"].tolist())


def scalars(run: Path) -> int:
    events = event_accumulator.EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return sum(len(events.Scalars(tag)) for tag in events.Tags()["scalars"])


def test_the_readme_shows_the_examples() -> None:
    assert blocks("python") == [(EXAMPLES / name).read_text() for name in ("quickstart.py", "otel_only.py")]


def test_the_quickstart_prints_what_the_readme_says(run_script: RunScript) -> None:
    printed = run_script(EXAMPLES / "quickstart.py").stdout

    def without_id(receipt: str) -> str:
        return re.sub(r"^run \S+:", "run ID:", receipt)

    assert [without_id(printed)] == [without_id(block) for block in blocks("text")]


def test_a_program_that_knows_only_opentelemetry(tmp_path: Path) -> None:
    (command,) = (block for block in blocks("sh") if block.startswith("otel-tracking run"))
    launcher = command.split()
    assert launcher[-2:] == ["python", "examples/otel_only.py"]
    launcher[0] = str(Path(sys.executable).with_name(launcher[0]))
    launcher[-2:] = [sys.executable, str(EXAMPLES / "otel_only.py")]
    subprocess.run(launcher, check=True, timeout=120)
    (run,) = (path.parent for path in tmp_path.glob("outputs/*/*/run.json"))
    assert recorded(run) == {"train/loss": 1000}
    assert scalars(run) == 1000


def test_the_demo_learns_and_delivers(run_script: RunScript, tmp_path: Path) -> None:
    epochs = 5
    done = run_script(EXAMPLES / "demo" / "demo.py", env={"DEMO_EPOCHS": str(epochs)}, timeout=300)
    assert done.stdout.count("accuracy on held-out digits") == 2
    with sqlite3.connect(tmp_path / "outputs" / "mlflow.db") as store:
        in_mlflow = dict(
            store.execute(
                "select e.name, count(*) from metrics join runs using (run_uuid) "
                "join experiments e using (experiment_id) where key not like '%/distribution/%' "
                "group by e.name"
            )
        )
    runs = {path.parent.parent.name: path.parent for path in tmp_path.glob("outputs/*/*/run.json")}
    assert set(runs) == {"digits-otel", "digits-facade"}
    for project, run in runs.items():
        points = recorded(run)
        assert points["train/loss"] == points["train/lr"] == points["train/grad_norm"]
        assert points["val/accuracy"] == epochs
        assert scalars(run) == points.total()
        assert in_mlflow[project] == points.total()
    assert len(list(tmp_path.glob("outputs/*/*/wandb/offline-run-*/*.wandb"))) == 2
